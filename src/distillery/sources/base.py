"""The contract of a source: E independent learners, every episode kept, in learning order."""

import abc
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from distillery.core.protocols import TabularTaskBatch, TaskBatch, TaskDistribution
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


def require_counts(source: str, **values: int) -> None:
    """Raises ValueError naming the setting unless every value is at least 1."""
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{source} {name} must be at least 1, got {value}")


def require_positive(source: str, **values: float | None) -> None:
    """Raises ValueError naming the setting unless every value is above 0 and finite; None is let pass."""
    for name, value in values.items():
        if value is not None and not 0.0 < value < math.inf:
            raise ValueError(f"{source} {name} must be above 0 and finite, got {value}")


def require_betas(source: str, adam_betas: Sequence[float]) -> None:
    """Raises ValueError unless these are decays of Adam's two averages."""
    if len(adam_betas) != 2 or not all(0.0 <= beta < 1.0 for beta in adam_betas):
        raise ValueError(f"{source} adam_betas must be two numbers from 0 to below 1, got {adam_betas}")


def falling(start: float, end: float, fraction: float, *, episode: int, num_episodes: int) -> float:
    """Value of a setting that goes from `start` to `end` linearly over the first `fraction` of the episodes."""
    span = fraction * num_episodes
    progress = min(episode / span, 1.0) if span > 0 else 1.0
    return start + (end - start) * progress


def require_tabular(source: str, batch: TaskBatch) -> TabularTaskBatch:
    """The same environments, known to have numbered states.

    Raises:
        ValueError: they have none.
    """
    if not isinstance(batch, TabularTaskBatch):
        raise ValueError(
            f"{source} reads the numbers of states, which {type(batch).__name__} does not give; "
            "choose a source that reads observations: ppo, dqn or noise_annealed"
        )
    return batch
