"""The contract of a source: E independent learners, every episode kept, in learning order."""

import abc
from collections.abc import Iterator

import numpy as np
import torch

from distillery.core.protocols import TaskDistribution
from distillery.core.records import EpisodeBatch


class Learners(abc.ABC):
    """E learners in the middle of their lives; each stream of episodes has its own task.

    Attributes:
        task_ids: (E,) int64, the task of each stream.
    """

    task_ids: np.ndarray

    @abc.abstractmethod
    def episode(self, *, frozen: bool = False) -> EpisodeBatch:
        """Plays the next episode everywhere; `frozen` plays the greedy policy learned so far and learns nothing."""


class Source(abc.ABC):
    """A learning algorithm with its settings.

    Attributes:
        num_episodes: length of one history, in episodes.
    """

    num_episodes: int

    @abc.abstractmethod
    def start(
        self, tasks: TaskDistribution, task_ids: np.ndarray, *, seed: int, device: torch.device | str = "cpu"
    ) -> Learners:
        """Fresh learners for the given tasks. A source with several actors returns a stream for each actor."""

    def run(
        self, tasks: TaskDistribution, task_ids: np.ndarray, *, seed: int, device: torch.device | str = "cpu"
    ) -> Iterator[EpisodeBatch]:
        """The whole histories, one episode of all learners at a time."""
        learners = self.start(tasks, task_ids, seed=seed, device=device)
        for _ in range(self.num_episodes):
            yield learners.episode()


def require_fraction(source: str, **values: float) -> None:
    """Raises ValueError naming the setting unless every value lies in [0, 1]."""
    for name, value in values.items():
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"{source} {name} must be from 0 to 1, got {value}")
