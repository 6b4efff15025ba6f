"""What a dataset of histories is on disk.

A dataset is a folder with a few large Parquet shards and ``metadata.json``. One row is one step. A history is never
split over shards; inside a shard, histories, episodes and steps are in order. The metadata hold neither time nor
commit, so that the same data have the same hash.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from distillery.core.files import read_json, write_json
from distillery.core.specs import TaskSpec

FORMAT_VERSION = 1
KINDS = ("learning", "expert", "shuffled")
METADATA_FILE = "metadata.json"


class DatasetError(ValueError):
    """A dataset on disk is not what it should be."""


def column_types(spec: TaskSpec) -> dict[str, Any]:
    """Name and polars type of every column, in order."""
    return {
        "history": pl.Int32,
        "task_id": pl.Int32,
        "episode": pl.Int32,
        "step": pl.Int16,
        **{f"observation_{dimension}": pl.UInt8 for dimension in range(len(spec.observation_sizes))},
        "action": pl.UInt8,
        "reward": pl.Float32,
        "terminated": pl.Boolean,
        "truncated": pl.Boolean,
    }


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
        num_episodes: episodes of every history.
        selection: the rule that dropped failed runs, and how many it dropped.
        mean_returns: mean return of each episode number over all histories.
        shards: the files.
        content_hash: SHA-256 of the decoded columns, independent of compression.
        generator: versions of what wrote the files.
        format_version: of this layout.
    """

    kind: str
    spec: TaskSpec
    tasks: Mapping[str, Any]
    splits: Mapping[str, list[int]]
    source: Mapping[str, Any]
    seed: int
    num_episodes: int
    selection: Mapping[str, Any]
    mean_returns: list[float]
    shards: list[Shard]
    content_hash: str
    generator: Mapping[str, str]
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
        remedy = "run `dvc repro` to collect the histories again, or `dvc pull` to fetch them"
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
            tasks = [task for split in ("train", "validation", "held_out") for task in metadata.splits[split]]
        except (KeyError, TypeError, ValueError) as error:
            raise DatasetError(f"{path} lacks or misnames a field ({error}); {remedy}") from error
        if metadata.kind not in KINDS:
            raise DatasetError(f"{path} is of kind {metadata.kind!r}, which is none of {', '.join(KINDS)}; {remedy}")
        shared = sorted({task for task in tasks if tasks.count(task) > 1})
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
            self._columns.setdefault(name, hashlib.sha256()).update(frame[name].to_numpy().tobytes())

    def hexdigest(self) -> str:
        """The hash so far."""
        whole = hashlib.sha256()
        for name, digest in self._columns.items():
            whole.update(f"{name}:{digest.hexdigest()};".encode())
        return whole.hexdigest()
