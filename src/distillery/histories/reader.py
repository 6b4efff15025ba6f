"""Reads a dataset of histories: checks it once, then serves it from a packed memory-map.

What is versioned is small and slow to read at random; training reads a memory-map that is expanded from it once per
machine and content hash, outside version control.
"""

from pathlib import Path

import filelock
import numpy as np
import polars as pl

from distillery.core.files import sha256_file, whole_folder
from distillery.histories.contexts import PackedHistories, step_dtype
from distillery.histories.format import ContentHash, DatasetError, Metadata, Shard
from distillery.histories.schema import validate_learning, validate_steps

_REMEDY = "restore it with `dvc checkout` or `dvc pull`, or collect again with `dvc repro -f collect`"


def read_shard(folder: Path, shard: Shard) -> pl.DataFrame:
    """Decodes one shard.

    Raises:
        DatasetError: missing, truncated or edited.
    """
    path = folder / shard.file
    if not path.is_file():
        raise DatasetError(f"{path} is listed in the metadata and does not exist; {_REMEDY}")
    found = sha256_file(path)
    if found != shard.sha256:
        raise DatasetError(
            f"{path} was truncated or edited: its SHA-256 is {found[:12]}..., the metadata say "
            f"{shard.sha256[:12]}...; {_REMEDY}"
        )
    return pl.read_parquet(path)


def validate_dataset(folder: Path | str, split: str = "train") -> tuple[Metadata, dict[str, int]]:
    """Checks every shard and the dataset as a whole.

    Args:
        folder: of the dataset, named like its kind where it lies in the pipeline's place.
        split: the only split whose tasks may appear.

    Returns:
        The metadata, and for each rule the number of rows it was checked on.

    Raises:
        DatasetError: naming every broken rule with counts and first failing rows.
    """
    folder = Path(folder)
    metadata = Metadata.read(folder)
    checked: dict[str, int] = {}
    content = ContentHash()
    next_history = 0
    return_sums = np.zeros(metadata.num_episodes)
    for shard in metadata.shards:
        frame = read_shard(folder, shard)
        counts = validate_steps(
            frame, metadata.spec, metadata.splits[split], metadata.num_episodes, where=str(folder / shard.file)
        )
        first, last = frame["history"][0], frame["history"][-1]
        if (first, last - first + 1) != (next_history, shard.num_histories):
            raise DatasetError(
                f"{folder / shard.file} holds histories {first} to {last}, expected {shard.num_histories} from "
                f"{next_history} on; {_REMEDY}"
            )
        next_history = last + 1
        content.add(frame)
        per_episode = frame.group_by("episode").agg(pl.col("reward").cast(pl.Float64).sum()).sort("episode")
        return_sums += per_episode["reward"].to_numpy()
        checked = {rule: checked.get(rule, 0) + rows for rule, rows in counts.items()}
    if content.hexdigest() != metadata.content_hash:
        raise DatasetError(f"{folder} does not match the content hash in its metadata; {_REMEDY}")
    if metadata.kind == "learning":
        validate_learning(return_sums / metadata.num_histories, where=str(folder))
    return metadata, checked


def open_packed(folder: Path | str, scratch: Path | str) -> tuple[Metadata, PackedHistories]:
    """The dataset as a read-only memory-map; expands and checks it on first use.

    Args:
        folder: of the dataset.
        scratch: folder for expanded datasets, one sub-folder per content hash.

    Raises:
        DatasetError: the dataset is damaged.
    """
    folder = Path(folder)
    metadata = Metadata.read(folder)
    packed = Path(scratch) / f"v{_PACKED_VERSION}-{metadata.content_hash}"
    packed.parent.mkdir(parents=True, exist_ok=True)
    # Several processes may ask for one dataset at once; one expands it, the others wait.
    with filelock.FileLock(packed.with_suffix(".lock")):
        histories = _load_packed(packed, metadata)
        if histories is None:
            validate_dataset(folder)
            with whole_folder(packed) as temporary:
                _expand(folder, metadata, temporary)
            histories = _load_packed(packed, metadata)
    assert histories is not None
    return metadata, histories


def _load_packed(packed: Path, metadata: Metadata) -> PackedHistories | None:
    """The expanded dataset, or None where it is missing or damaged."""
    try:
        arrays = {name: np.load(packed / f"{name}.npy", mmap_mode="r") for name in _ARRAYS}
    except (FileNotFoundError, ValueError, EOFError):
        return None
    histories = PackedHistories(**arrays)
    whole = (len(histories.steps), len(histories.task_ids)) == (metadata.num_steps, metadata.num_histories)
    return histories if whole else None


_PACKED_VERSION = 1
_ARRAYS = ("steps", "episode_starts", "history_starts", "task_ids")


def _expand(folder: Path, metadata: Metadata, packed: Path) -> None:
    dtype = step_dtype(len(metadata.spec.observation_sizes))
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (metadata.num_steps,)}
    lengths, task_ids = [], []
    # Ordinary writes rather than a memory-map, in which a full disk is a bus error.
    with (packed / "steps.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for shard in metadata.shards:
            frame = read_shard(folder, shard)
            _packed_rows(frame, dtype).tofile(file)
            ends = frame["terminated"].to_numpy() | frame["truncated"].to_numpy()
            lengths.append(np.diff(np.flatnonzero(ends), prepend=-1))
            first = (frame["step"].to_numpy() == 0) & (frame["episode"].to_numpy() == 0)
            task_ids.append(frame["task_id"].to_numpy()[first].astype(np.int64))
    np.save(packed / "episode_starts.npy", np.concatenate([[0], np.cumsum(np.concatenate(lengths))]))
    np.save(packed / "history_starts.npy", np.arange(metadata.num_histories + 1) * metadata.num_episodes)
    np.save(packed / "task_ids.npy", np.concatenate(task_ids))


def _packed_rows(frame: pl.DataFrame, dtype: np.dtype) -> np.ndarray:
    """(rows,) records of a shard."""
    rows = np.empty(frame.height, dtype)
    rows["action"], rows["reward"] = frame["action"].to_numpy(), frame["reward"].to_numpy()
    for dimension in range(rows["observation"].shape[1]):
        rows["observation"][:, dimension] = frame[f"observation_{dimension}"].to_numpy()
    return rows
