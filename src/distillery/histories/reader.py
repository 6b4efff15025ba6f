"""Reads a dataset of histories: checks it once, then serves it from a packed memory-map.

What is versioned is small and slow to read at random; training reads a memory-map that is expanded from it once per
machine and content hash, outside version control.
"""

from pathlib import Path

import filelock
import numpy as np
import polars as pl

from distillery.core.files import sha256_file, whole_folder
from distillery.core.specs import Box, TaskSpec
from distillery.histories.curves import LearningCurves
from distillery.histories.format import (
    ContentHash,
    DatasetError,
    Metadata,
    Shard,
    action_columns,
    byte_columns,
    observation_columns,
)
from distillery.histories.packed import PackedHistories, step_dtype
from distillery.histories.schema import validate_learning, validate_steps

_REMEDY = "restore it with `dvc checkout` or `dvc pull`, or collect again with `dvc repro -f collect`"


def read_shard(folder: Path, shard: Shard, spec: TaskSpec) -> pl.DataFrame:
    """Decodes one shard.

    Raises:
        DatasetError: missing, truncated, edited, or of another spec.
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
    return _with_lists(pl.read_parquet(path), spec, where=path)


def _with_lists(frame: pl.DataFrame, spec: TaskSpec, *, where: Path) -> pl.DataFrame:
    """The frame with strings of bytes as lists of numbers."""
    for name, width in byte_columns(spec).items():
        if frame.schema.get(name) != pl.Binary:
            continue  # a column of another type is the schema's to name
        if not (frame[name].bin.size() == width).fill_null(False).all():
            raise DatasetError(f"{where} holds values of {name} that are not {width} bytes long; {_REMEDY}")
        frame = frame.with_columns(pl.col(name).bin.reinterpret(dtype=pl.Array(pl.UInt8, width)))
    return frame


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
    curves = LearningCurves(metadata.num_episodes, metadata.spec.episode_steps)
    for shard in metadata.shards:
        frame = read_shard(folder, shard, metadata.spec)
        counts = validate_steps(
            frame,
            metadata.spec,
            metadata.splits[split],
            metadata.num_episodes,
            metadata.min_episodes,
            where=str(folder / shard.file),
        )
        first, last = frame["history"][0], frame["history"][-1]
        if (first, last - first + 1) != (next_history, shard.num_histories):
            raise DatasetError(
                f"{folder / shard.file} holds histories {first} to {last}, expected {shard.num_histories} from "
                f"{next_history} on; {_REMEDY}"
            )
        next_history = last + 1
        content.add(frame)
        curves.add(frame)
        checked = {rule: checked.get(rule, 0) + rows for rule, rows in counts.items()}
    if content.hexdigest() != metadata.content_hash:
        raise DatasetError(f"{folder} does not match the content hash in its metadata; {_REMEDY}")
    if metadata.kind == "learning":
        validate_learning(curves, where=str(folder))
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
    histories = PackedHistories(spec=metadata.spec, **arrays)
    num_episodes = len(histories.terminated)
    whole = (
        histories.steps.dtype == step_dtype(metadata.spec)
        and len(histories.steps) == metadata.num_steps
        and len(histories.task_ids) == metadata.num_histories
        and len(histories.episode_starts) == num_episodes + 1
        and len(histories.history_starts) == metadata.num_histories + 1
        and histories.episode_starts[-1] == metadata.num_steps
        and histories.history_starts[-1] == num_episodes
    )
    return histories if whole else None


_PACKED_VERSION = 2
_ARRAYS = ("steps", "episode_starts", "history_starts", "task_ids", "terminated")


def _expand(folder: Path, metadata: Metadata, packed: Path) -> None:
    dtype = step_dtype(metadata.spec)
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (metadata.num_steps,)}
    lengths, counts, task_ids, terminated = [], [], [], []
    # Ordinary writes rather than a memory-map, in which a full disk is a bus error.
    with (packed / "steps.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for shard in metadata.shards:
            frame = read_shard(folder, shard, metadata.spec)
            _packed_rows(frame, metadata.spec).tofile(file)
            first = frame["step"].to_numpy() == 0
            lengths.append(np.diff(np.flatnonzero(first), append=frame.height))
            first_episode = frame["episode"].to_numpy()[first] == 0
            counts.append(np.diff(np.flatnonzero(first_episode), append=len(first_episode)))
            task_ids.append(frame["task_id"].to_numpy()[first][first_episode].astype(np.int64))
            last = frame["terminated"].to_numpy() | frame["truncated"].to_numpy()
            terminated.append(frame["terminated"].to_numpy()[last])
    np.save(packed / "episode_starts.npy", np.concatenate([[0], np.cumsum(np.concatenate(lengths))]))
    np.save(packed / "history_starts.npy", np.concatenate([[0], np.cumsum(np.concatenate(counts))]))
    np.save(packed / "task_ids.npy", np.concatenate(task_ids))
    np.save(packed / "terminated.npy", np.concatenate(terminated))


def _packed_rows(frame: pl.DataFrame, spec: TaskSpec) -> np.ndarray:
    """(rows,) records of a shard."""
    rows = np.empty(frame.height, step_dtype(spec))
    rows["reward"] = frame["reward"].to_numpy()
    actions = rows["action"].reshape(frame.height, -1)
    for k, name in enumerate(action_columns(spec)):
        actions[:, k] = frame[name].to_numpy()
    columns, stretches = observation_columns(spec), spec.stretches()
    for part, space in spec.observation.items():
        observations = rows["observation"][:, stretches[part]]
        if isinstance(space, Box):
            observations[:] = frame[columns[part][0]].to_numpy()
        else:
            for d, name in enumerate(columns[part]):
                observations[:, d] = frame[name].to_numpy()
    return rows
