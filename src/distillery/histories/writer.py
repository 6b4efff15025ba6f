"""Writes histories as Parquet shards, validated before anything appears under the dataset's name.

Letters: E learners, N episodes, T environment steps, D numbers of an observation, K numbers of an action.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow
import pyarrow.parquet as pq
import torch

import distillery
from distillery.core.files import sha256_file
from distillery.core.records import EpisodeBatch
from distillery.core.specs import Box, TaskSpec
from distillery.histories.curves import LearningCurves
from distillery.histories.format import (
    ContentHash,
    DatasetError,
    Metadata,
    Shard,
    action_columns,
    byte_columns,
    column_types,
    observation_columns,
)
from distillery.histories.reader import read_shard
from distillery.histories.schema import validate_learning, validate_steps

# Counters that go up by one: DELTA_BINARY_PACKED stores them in next to nothing.
DELTA_COLUMNS = ("history", "task_id", "episode", "step")
# A row group, whichever is less.
ROW_GROUP_STEPS = 1 << 20
ROW_GROUP_BYTES = 1 << 28


class HistoryWriter:
    """Appends shards of whole histories to a folder, then seals it with its metadata.

    Args:
        folder: an empty folder, or one whose shards are taken over first, by `adopt`.
        kind: one of `distillery.histories.format.KINDS`.
        spec: shape of the tasks.
        splits: task ids of each split; histories may be of train tasks only.
        num_episodes: episodes of every history; the most, where some end earlier.
        compression_level: of zstd.
    """

    def __init__(
        self,
        folder: Path,
        *,
        kind: str,
        spec: TaskSpec,
        splits: Mapping[str, np.ndarray],
        num_episodes: int,
        compression_level: int = 3,
    ) -> None:
        self._folder, self._kind, self._spec, self._splits = folder, kind, spec, splits
        self._num_episodes, self._compression_level = num_episodes, compression_level
        self._shards: list[Shard] = []
        self._hash = ContentHash()
        self._num_histories = 0
        self._curves = LearningCurves(num_episodes, spec.episode_steps)

    def append(self, episodes: Sequence[EpisodeBatch], task_ids: np.ndarray) -> None:
        """Writes E whole histories as one shard.

        Args:
            episodes: N batches of E learners, in learning order; a learner whose history is over has 0 steps.
            task_ids: (E,) task of each learner.

        Raises:
            DatasetError: the histories break the schema.
        """
        frame = steps_frame(episodes, task_ids, self._spec, first_history=self._num_histories)
        file = f"shard-{len(self._shards):05d}.parquet"
        # Only a learner that says so may have fewer episodes than the others.
        min_episodes = 1 if any(bool((batch.num_steps == 0).any()) for batch in episodes) else None
        validate_steps(frame, self._spec, self._splits["train"], self._num_episodes, min_episodes, where=file)
        path = self._folder / file
        write_shard(frame, path, self._spec, compression_level=self._compression_level)
        self._count(frame, Shard(file, len(task_ids), frame.height, sha256_file(path)))

    def adopt(self, shard: Shard) -> None:
        """Takes over the next shard, which an earlier writer of the same histories left in the folder.

        Raises:
            DatasetError: it is not there or not whole; nothing was taken over.
        """
        self._count(read_shard(self._folder, shard, self._spec), shard)

    @property
    def shards(self) -> list[Shard]:
        """What was written so far."""
        return list(self._shards)

    def _count(self, frame: pl.DataFrame, shard: Shard) -> None:
        self._shards.append(shard)
        self._hash.add(frame)
        self._num_histories += shard.num_histories
        self._curves.add(frame)

    def seal(
        self,
        *,
        tasks: Mapping[str, Any],
        source: Mapping[str, Any],
        seed: int,
        selection: Mapping[str, Any],
    ) -> Metadata:
        """Checks the dataset as a whole and writes its metadata.

        Raises:
            DatasetError: of kind `learning`, and nothing was learned.
            ValueError: nothing was appended.
        """
        if not self._num_histories:
            raise ValueError(f"no history is left to write in {self._folder}; the selection dropped all: {selection}")
        if self._kind == "learning":
            validate_learning(self._curves, where=str(self._folder.name))
        step_rewards = self._curves.mean_step_rewards
        metadata = Metadata(
            kind=self._kind,
            spec=self._spec,
            tasks=tasks,
            splits={split: [int(task) for task in ids] for split, ids in self._splits.items()},
            source=source,
            seed=seed,
            num_episodes=self._curves.num_episodes,
            min_episodes=self._curves.min_episodes,
            selection=selection,
            mean_returns=_rounded(self._curves.mean_returns),
            mean_tenths=_rounded(np.array(self._curves.mean_tenths)),
            shards=self._shards,
            content_hash=self._hash.hexdigest(),
            generator={
                "distillery": distillery.__version__,
                "torch": torch.__version__.split("+")[0],
                "pyarrow": pyarrow.__version__,
            },
            mean_step_rewards=None if step_rewards is None else _rounded(step_rewards),
        )
        metadata.write(self._folder)
        return metadata


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(x), 6) for x in values]


def write_shard(frame: pl.DataFrame, path: Path, spec: TaskSpec, *, compression_level: int) -> None:
    """Writes steps that obey the schema as Parquet, every column in the encoding that suits it."""
    table = frame.to_arrow()
    for name, width in byte_columns(spec).items():
        bytes_of_rows = pyarrow.py_buffer(np.ascontiguousarray(frame[name].to_numpy()))
        column = pyarrow.FixedSizeBinaryArray.from_buffers(pyarrow.binary(width), frame.height, [None, bytes_of_rows])
        table = table.set_column(table.column_names.index(name), name, column)
    lists = [name for name, kind in frame.schema.items() if kind == pl.Array]
    float_lists = [f"{name}.list.element" for name in lists if name not in byte_columns(spec)]
    pq.write_table(
        table,
        path,
        compression="zstd",
        compression_level=compression_level,
        row_group_size=min(ROW_GROUP_STEPS, max(1, ROW_GROUP_BYTES * frame.height // max(1, table.nbytes))),
        use_dictionary=[name for name in frame.columns if name not in (*DELTA_COLUMNS, *lists)],
        column_encoding={
            **dict.fromkeys(DELTA_COLUMNS, "DELTA_BINARY_PACKED"),
            **dict.fromkeys(float_lists, "BYTE_STREAM_SPLIT"),
        },
    )


def steps_frame(
    episodes: Sequence[EpisodeBatch], task_ids: np.ndarray, spec: TaskSpec, *, first_history: int = 0
) -> pl.DataFrame:
    """One row per real step, history by history.

    Raises:
        DatasetError: a history has no episode or goes on after its end, or a number does not fit its column.
    """
    num_steps, terminated = _stacked(episodes, "num_steps"), _stacked(episodes, "terminated")  # (E, N)
    _require_over_for_good(num_steps)
    num_learners, num_episodes = num_steps.shape
    steps = np.arange(episodes[0].rewards.shape[1])
    real = steps < num_steps[..., None]  # (E, N, T)
    last = steps == num_steps[..., None] - 1

    def rows(values: np.ndarray) -> np.ndarray:
        return np.broadcast_to(values, real.shape)[real]

    columns = {
        "history": rows((first_history + np.arange(num_learners))[:, None, None]),
        "task_id": rows(np.asarray(task_ids)[:, None, None]),
        "episode": rows(np.arange(num_episodes)[None, :, None]),
        "step": rows(steps),
        **_observations(_real_rows(episodes, "observations", real), spec),
        **_actions(_real_rows(episodes, "actions", real), spec),
        "reward": _real_rows(episodes, "rewards", real),
        "terminated": rows(last & terminated[..., None]),
        "truncated": rows(last & ~terminated[..., None]),
    }
    return pl.DataFrame(columns, schema_overrides=column_types(spec)).select(list(column_types(spec)))


def _stacked(episodes: Sequence[EpisodeBatch], name: str) -> np.ndarray:
    """(E, N, ...) one field of all episodes."""
    return torch.stack([getattr(batch, name) for batch in episodes], 1).cpu().numpy()


def _real_rows(episodes: Sequence[EpisodeBatch], name: str, real: np.ndarray) -> np.ndarray:
    """(rows, ...) one field of all real steps; without a second copy where all are real."""
    stacked = _stacked(episodes, name)
    return stacked.reshape(-1, *stacked.shape[3:]) if real.all() else stacked[real]


def _require_over_for_good(num_steps: np.ndarray) -> None:
    """A history is at least one episode, and once it is over, nothing follows; `num_steps` is (E, N)."""
    played = num_steps > 0
    if not played[:, 0].all():
        raise DatasetError(
            f"learner {np.argmin(played[:, 0])} of the source has no steps in its first episode; a history has at "
            "least one episode"
        )
    again = np.argwhere(played[:, 1:] & ~played[:, :-1])
    if len(again):
        learner, episode = again[0]
        raise DatasetError(
            f"learner {learner} of the source plays episode {episode + 1} although its history was over: it had no "
            f"steps in episode {episode}"
        )


def _observations(rows: np.ndarray, spec: TaskSpec) -> dict[str, Any]:
    """Columns of (rows, D) observations."""
    columns: dict[str, Any] = {}
    stretches = spec.stretches()
    for part, names in observation_columns(spec).items():
        space = spec.observation[part]
        values = _fitting(rows[:, stretches[part]], space.stored_dtype, names[0])
        if isinstance(space, Box):
            columns[names[0]] = pl.Series(np.ascontiguousarray(values))
        else:
            columns |= {name: values[:, d] for d, name in enumerate(names)}
    return columns


def _actions(rows: np.ndarray, spec: TaskSpec) -> dict[str, Any]:
    """Columns of (rows[, K]) actions."""
    values = _fitting(rows.reshape(len(rows), -1), spec.action.stored_dtype, "action")
    return {name: values[:, k] for k, name in enumerate(action_columns(spec))}


def _fitting(values: np.ndarray, dtype: np.dtype, column: str) -> np.ndarray:
    """The values in the column's type, refusing what a type of whole numbers would change."""
    if values.dtype == dtype:
        return values
    with np.errstate(invalid="ignore"):
        cast = values.astype(dtype)
    if dtype.kind in "ui" and not np.array_equal(cast, values):
        wrong = values[cast != values][0]
        raise DatasetError(f"{column} holds {wrong}, which is no {dtype} number; the source and its spec disagree")
    return cast
