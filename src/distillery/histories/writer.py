"""Writes histories as Parquet shards, validated before anything appears under the dataset's name.

Letters: E learners, N episodes, T environment steps.
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
from distillery.core.specs import TaskSpec
from distillery.histories.format import ContentHash, Metadata, Shard, column_types
from distillery.histories.schema import validate_learning, validate_steps

# Counters that go up by one: DELTA_BINARY_PACKED stores them in next to nothing.
DELTA_COLUMNS = ("history", "task_id", "episode", "step")
ROW_GROUP_STEPS = 1 << 20


class HistoryWriter:
    """Appends shards of whole histories to a folder, then seals it with its metadata.

    Args:
        folder: an empty folder, see `distillery.core.files.whole_folder`.
        kind: one of `distillery.histories.format.KINDS`.
        spec: shape of the tasks.
        splits: task ids of each split; histories may be of train tasks only.
        num_episodes: episodes of every history.
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
        self._return_sums = np.zeros(num_episodes)

    def append(self, episodes: Sequence[EpisodeBatch], task_ids: np.ndarray) -> None:
        """Writes E whole histories as one shard.

        Args:
            episodes: N batches of E learners, in learning order.
            task_ids: (E,) task of each learner.

        Raises:
            DatasetError: the histories break the schema.
        """
        frame = steps_frame(episodes, task_ids, self._spec, first_history=self._num_histories)
        file = f"shard-{len(self._shards):05d}.parquet"
        validate_steps(frame, self._spec, self._splits["train"], self._num_episodes, where=file)
        path = self._folder / file
        pq.write_table(
            frame.to_arrow(),
            path,
            compression="zstd",
            compression_level=self._compression_level,
            row_group_size=ROW_GROUP_STEPS,
            use_dictionary=[name for name in frame.columns if name not in DELTA_COLUMNS],
            column_encoding=dict.fromkeys(DELTA_COLUMNS, "DELTA_BINARY_PACKED"),
        )
        self._shards.append(Shard(file, len(task_ids), frame.height, sha256_file(path)))
        self._hash.add(frame)
        self._num_histories += len(task_ids)
        self._return_sums += [float(batch.returns.double().sum()) for batch in episodes]

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
        mean_returns = [round(float(x), 6) for x in self._return_sums / self._num_histories]
        if self._kind == "learning":
            validate_learning(mean_returns, where=str(self._folder.name))
        metadata = Metadata(
            kind=self._kind,
            spec=self._spec,
            tasks=tasks,
            splits={split: [int(task) for task in ids] for split, ids in self._splits.items()},
            source=source,
            seed=seed,
            num_episodes=self._num_episodes,
            selection=selection,
            mean_returns=mean_returns,
            shards=self._shards,
            content_hash=self._hash.hexdigest(),
            generator={
                "distillery": distillery.__version__,
                "torch": torch.__version__.split("+")[0],
                "pyarrow": pyarrow.__version__,
            },
        )
        metadata.write(self._folder)
        return metadata


def steps_frame(
    episodes: Sequence[EpisodeBatch], task_ids: np.ndarray, spec: TaskSpec, *, first_history: int = 0
) -> pl.DataFrame:
    """One row per real step, history by history."""

    def stack(name: str) -> np.ndarray:
        return torch.stack([getattr(batch, name) for batch in episodes], 1).cpu().numpy()

    observations, actions, rewards = stack("observations"), stack("actions"), stack("rewards")  # (E, N, T, ...)
    num_steps, terminated = stack("num_steps"), stack("terminated")  # (E, N)
    num_learners, num_episodes, length = actions.shape
    steps = np.arange(length)
    real = steps < num_steps[..., None]  # (E, N, T)
    last = steps == num_steps[..., None] - 1

    def rows(values: np.ndarray) -> np.ndarray:
        return np.broadcast_to(values, real.shape)[real]

    columns = {
        "history": rows((first_history + np.arange(num_learners))[:, None, None]),
        "task_id": rows(np.asarray(task_ids)[:, None, None]),
        "episode": rows(np.arange(num_episodes)[None, :, None]),
        "step": rows(steps),
        **{f"observation_{d}": observations[..., d][real] for d in range(observations.shape[-1])},
        "action": actions[real],
        "reward": rewards[real],
        "terminated": rows(last & terminated[..., None]),
        "truncated": rows(last & ~terminated[..., None]),
    }
    return pl.DataFrame(columns, schema_overrides=column_types(spec)).select(list(column_types(spec)))
