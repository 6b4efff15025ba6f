"""What every test shares: one thread, and small real datasets."""

from pathlib import Path

import numpy as np
import pytest
import torch

from distillery.core.records import EpisodeBatch
from distillery.histories.writer import HistoryWriter
from distillery.sources.q_learning import QLearning
from distillery.tasks.dark_room import DarkRoom

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def room() -> DarkRoom:
    """A 5x5 room with short episodes: 25 goals, 18 of them to train on."""
    return DarkRoom(width=5, height=5, episode_steps=8, num_validation=3, num_held_out=4)


@pytest.fixture(scope="session")
def learning_episodes(room: DarkRoom) -> tuple[np.ndarray, list[EpisodeBatch]]:
    """Task ids (36,) and 30 episodes of Q-learning on every training goal, twice."""
    task_ids = np.repeat(room.task_ids("train"), 2)
    source = QLearning(num_episodes=30, epsilon_start=0.5, initial_value=5.0)
    return task_ids, list(source.run(room, task_ids, seed=0))


@pytest.fixture
def dataset(tmp_path: Path, room: DarkRoom, learning_episodes) -> Path:
    """A small learning dataset on disk, in two shards."""
    folder = tmp_path / "dataset"
    write_dataset(folder, room, *learning_episodes)
    return folder


def write_dataset(folder: Path, room: DarkRoom, task_ids: np.ndarray, episodes: list[EpisodeBatch]) -> None:
    """Writes histories in two shards."""
    folder.mkdir(parents=True)
    writer = HistoryWriter(folder, kind="learning", spec=room.spec, splits=room.splits(), num_episodes=len(episodes))
    for half in (slice(None, 20), slice(20, None)):
        writer.append([batch.select(half) for batch in episodes], task_ids[half])
    writer.seal(tasks={}, source={}, seed=0, selection={"rule": "all runs are kept"})
