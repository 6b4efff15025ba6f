"""What a dataset of histories is on disk.

A dataset is a folder with a few large Parquet shards and ``metadata.json``. One row is one step. A history is never
split over shards; inside a shard, histories, episodes and steps are in order. The metadata hold neither time nor
commit, so that the same data have the same hash.

Whole numbers of an observation or action have a column each, ``observation_0``, ``observation_<part>_0``; a box of an
observation is one column of fixed-size lists, ``observation``, ``observation_<part>``. In a file, a box of bytes is
one string of bytes per row: Parquet's own lists keep every byte as a number of four, and take ten times as long.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from distillery.core.files import read_json, write_json
from distillery.core.specs import SOLE, Box, TaskSpec

FORMAT_VERSION = 2
KINDS = ("learning", "expert", "shuffled")
METADATA_FILE = "metadata.json"


class DatasetError(ValueError):
    """A dataset on disk is not what it should be."""


def observation_columns(spec: TaskSpec) -> dict[str, list[str]]:
    """The columns of each part of an observation, in order."""
    columns = {}
    for part, space in spec.observation.items():
        prefix = "observation" if part == SOLE else f"observation_{part}"
        columns[part] = [prefix] if isinstance(space, Box) else [f"{prefix}_{d}" for d in range(space.width)]
    return columns


def action_columns(spec: TaskSpec) -> list[str]:
    """The columns of an action's K numbers."""
    width = spec.action.width
    return ["action"] if width == 1 else [f"action_{k}" for k in range(width)]


def byte_columns(spec: TaskSpec) -> dict[str, int]:
    """The columns that hold a string of bytes per row in a file, and its length."""
    boxes = {names[0]: spec.observation[part] for part, names in observation_columns(spec).items()}
    return {name: box.width for name, box in boxes.items() if isinstance(box, Box) and box.dtype == "uint8"}


def column_types(spec: TaskSpec) -> dict[str, Any]:
    """Name and polars type of every column, in order.

    Raises:
        ValueError: two parts of the observation would share a column.
    """
    observations: dict[str, Any] = {}
    for part, names in observation_columns(spec).items():
        space = spec.observation[part]
        kind = _POLARS_TYPES[space.stored_dtype.name]
        shared = observations.keys() & set(names)
        if shared:
            raise ValueError(f"two parts of the observation would share the column {min(shared)}; rename '{part}'")
        observations |= dict.fromkeys(names, pl.Array(kind, space.width) if isinstance(space, Box) else kind)
    return {
        "history": pl.Int32,
        "task_id": pl.Int32,
        "episode": pl.Int32,
        "step": pl.Int16 if spec.episode_steps <= 1 << 15 else pl.Int32,
        **observations,
        **dict.fromkeys(action_columns(spec), _POLARS_TYPES[spec.action.stored_dtype.name]),
        "reward": pl.Float32,
        "terminated": pl.Boolean,
        "truncated": pl.Boolean,
    }


_POLARS_TYPES = {"uint8": pl.UInt8, "int16": pl.Int16, "int32": pl.Int32, "float32": pl.Float32}


@dataclass(frozen=True)
class Shard:
    """One Parquet file.

    Attributes:
        file: name inside the dataset's folder.
        num_histories: whole histories in it.
        num_steps: rows.
        sha256: of the file's bytes.
    """

    file: str
    num_histories: int
    num_steps: int
    sha256: str


@dataclass(frozen=True)
class Metadata:
    """Everything about a dataset but the steps.

    Attributes:
        kind: `learning`, `expert` (a frozen converged policy) or `shuffled` (episodes out of order).
        spec: shape of the tasks.
        tasks: settings of the task distribution.
        splits: task ids of each split of that distribution.
        source: settings of the source algorithm.
        seed: of the collection.
        num_episodes: episodes of the longest history.
        min_episodes: episodes of the shortest.
        selection: the rule that dropped failed runs, and how many it dropped.
        mean_returns: mean return of each episode number over the histories that have that episode.
        mean_tenths: mean return of the first and of the last tenth of each history's own episodes; where every history
            is a single episode, of its steps, scaled to whole episodes.
        shards: the files.
        content_hash: SHA-256 of the decoded columns, independent of compression.
        generator: versions of what wrote the files.
        mean_step_rewards: mean reward of each step number over the histories that have that step, where every history
            is a single episode; otherwise None.
        format_version: of this layout.
    """

    kind: str
    spec: TaskSpec
    tasks: Mapping[str, Any]
    splits: Mapping[str, list[int]]
    source: Mapping[str, Any]
    seed: int
    num_episodes: int
    min_episodes: int
    selection: Mapping[str, Any]
    mean_returns: list[float]
    mean_tenths: list[float]
    shards: list[Shard]
    content_hash: str
    generator: Mapping[str, str]
    mean_step_rewards: list[float] | None = None
    format_version: int = field(default=FORMAT_VERSION)

    @property
    def num_histories(self) -> int:
        """Histories in all shards."""
        return sum(shard.num_histories for shard in self.shards)

    @property
    def num_steps(self) -> int:
        """Steps in all shards."""
        return sum(shard.num_steps for shard in self.shards)

    def write(self, folder: Path) -> None:
        """Writes ``metadata.json``."""
        write_json(folder / METADATA_FILE, {**asdict(self), "spec": self.spec.to_dict()})

    @classmethod
    def read(cls, folder: Path | str) -> "Metadata":
        """Reads ``metadata.json``.

        Raises:
            DatasetError: missing, broken, or of another format version.
        """
        path = Path(folder) / METADATA_FILE
        remedy = (
            "run `dvc repro` or `dvc pull` for histories of the pipeline, and others by `python -m "
            "distillery.stages.collect` with the tasks, the source and the dataset that are to be read"
        )
        try:
            values = read_json(path, remedy=remedy)
        except ValueError as error:
            raise DatasetError(str(error)) from error
        found = values.get("format_version") if isinstance(values, dict) else None
        if found != FORMAT_VERSION:
            raise DatasetError(f"{path} has format version {found}, this code reads {FORMAT_VERSION}; {remedy}")
        try:
            values["spec"] = TaskSpec.from_dict(values["spec"])
            values["shards"] = [Shard(**shard) for shard in values["shards"]]
            metadata = cls(**values)
            missing = [split for split in ("train", "validation", "held_out") if split not in metadata.splits]
            if missing:
                raise KeyError(missing[0])
            counts = Counter(task for ids in metadata.splits.values() for task in ids)
        except (KeyError, TypeError, ValueError) as error:
            raise DatasetError(f"{path} lacks or misnames a field ({error}); {remedy}") from error
        if metadata.kind not in KINDS:
            raise DatasetError(f"{path} is of kind {metadata.kind!r}, which is none of {', '.join(KINDS)}; {remedy}")
        shared = sorted(task for task, count in counts.items() if count > 1)
        if shared:
            raise DatasetError(f"{path} has the tasks {shared} in more than one split; {remedy}")
        return metadata


class ContentHash:
    """SHA-256 over decoded columns, fed shard by shard; how the rows are divided into shards does not matter."""

    def __init__(self) -> None:
        self._columns: dict[str, Any] = {}

    def add(self, frame: pl.DataFrame) -> None:
        """Takes in the next shard."""
        for name in frame.columns:
            values = np.ascontiguousarray(frame[name].to_numpy())
            self._columns.setdefault(name, hashlib.sha256()).update(values.data)

    def hexdigest(self) -> str:
        """The hash so far."""
        whole = hashlib.sha256()
        for name, digest in self._columns.items():
            whole.update(f"{name}:{digest.hexdigest()};".encode())
        return whole.hexdigest()
