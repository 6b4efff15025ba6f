"""Windows from a Minari dataset, whose unit is the episode: two ways to lay histories out in it, in its formats."""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
from minari import MinariDataset, create_dataset_from_buffers
from minari.data_collector import EpisodeBuffer

from benchmarks.timing import Variant, Work, installed
from distillery.core.specs import TaskSpec
from distillery.histories.packed import PackedHistories
from distillery.tasks.spaces import action_space, observation_space

# Minari looks at all files after each episode that it writes, so that many take very long.
NUM_HISTORIES = 40
# By format, the package it needs; HDF5 is Minari's default.
FORMATS = {"arrow": "pyarrow", "hdf5": "h5py"}


@contextmanager
def _stored_in(folder: Path) -> Iterator[None]:
    """Minari keeps its datasets in the folder that a variable names."""
    before = os.environ.get("MINARI_DATASETS_PATH")
    os.environ["MINARI_DATASETS_PATH"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["MINARI_DATASETS_PATH"]
        else:
            os.environ["MINARI_DATASETS_PATH"] = before


def _buffer(histories: PackedHistories, first: int, end: int) -> EpisodeBuffer:
    """Steps as an episode of Minari; it wants the observation after the last step as well, and repeats the last."""
    steps, ends = histories.steps[first:end], np.zeros(end - first, bool)
    observations = np.concatenate([steps["observation"], steps["observation"][-1:]]).astype(np.int64)
    ends[-1] = True
    return EpisodeBuffer(
        observations=list(observations),
        actions=list(steps["action"].astype(np.int64)),
        rewards=steps["reward"].tolist(),
        terminations=np.zeros_like(ends).tolist(),
        truncations=ends.tolist(),
    )


def _written(folder: Path, name: str, data_format: str, buffers: list[EpisodeBuffer], spec: TaskSpec) -> MinariDataset:
    with _stored_in(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it misses an author, a licence and the like
        return create_dataset_from_buffers(
            f"benchmarks/{name}-{data_format}-v0",
            buffers,
            observation_space=observation_space(spec),
            action_space=action_space(spec),
            data_format=data_format,
        )


def of_histories(
    folder: Path, histories: PackedHistories, *, data_format: str, batch_size: int, sequence_length: int
) -> Callable[[], Work]:
    """Whole histories as Minari's episodes: sampled by Minari, then cut to a window each."""

    def prepare() -> Work:
        starts = histories.episode_starts[histories.history_starts[: NUM_HISTORIES + 1]]
        buffers = [_buffer(histories, *ends) for ends in pairwise(starts)]
        dataset = _written(folder, "histories", data_format, buffers, histories.spec)
        random = np.random.default_rng(0)

        def work() -> int:
            num_steps = 0
            for episode in dataset.sample_episodes(batch_size):
                first = random.integers(len(episode.rewards) - sequence_length + 1)
                window = slice(first, first + sequence_length)
                num_steps += len(np.stack(episode.observations)[window])
                assert len(episode.actions[window]) == len(episode.rewards[window]) == sequence_length
            return num_steps

        return work

    return prepare


def of_episodes(
    folder: Path, histories: PackedHistories, *, data_format: str, batch_size: int, sequence_length: int
) -> Callable[[], Work]:
    """Episodes as they are: of a random history, as many in a row as make up a window."""

    def prepare() -> Work:
        per_window = -(-sequence_length // histories.spec.episode_steps)
        per_history = int(histories.history_starts[1])
        starts = histories.episode_starts[: NUM_HISTORIES * per_history + 1]
        buffers = [_buffer(histories, *ends) for ends in pairwise(starts)]
        dataset = _written(folder, "episodes", data_format, buffers, histories.spec)
        random = np.random.default_rng(0)

        def work() -> int:
            num_steps = 0
            for history in random.integers(NUM_HISTORIES, size=batch_size):
                first = history * per_history + random.integers(per_history - per_window + 1)
                episodes = list(dataset.iterate_episodes(range(first, first + per_window)))
                num_steps += len(np.concatenate([episode.rewards for episode in episodes]))
                np.concatenate([episode.observations[:-1] for episode in episodes])
                np.concatenate([episode.actions for episode in episodes])
            return num_steps

        return work

    return prepare


def variants(folder: Path, histories: PackedHistories, *, batch_size: int, sequence_length: int) -> list[Variant]:
    """Both ways in every format that is installed."""
    shape = {"batch_size": batch_size, "sequence_length": sequence_length}
    return [
        Variant(
            make(folder, histories, data_format=data_format, **shape),
            {"format": data_format, "episodes are": what, "histories": NUM_HISTORIES, **shape},
        )
        for data_format, package in FORMATS.items()
        if installed([package])
        for what, make in (("whole histories", of_histories), ("episodes", of_episodes))
    ]
