"""The contract of a source: E independent learners, every episode kept, in learning order."""

import abc
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from distillery.core.records import EpisodeBatch
from distillery.tasks.base import TaskBatch, TaskDistribution


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


Choose = Callable[[int, Tensor], Tensor]
Learn = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None], None]


def play_tabular_episode(batch: TaskBatch, choose: Choose, learn: Learn | None) -> EpisodeBatch:
    """One episode of E learners that read states instead of observations.

    Args:
        batch: E environments.
        choose: ``(step, states) -> actions``, both (E,) int64.
        learn: ``(states, actions, rewards, next_states, terminated, alive)``, or None for a frozen policy. `alive`,
            (E,) bool, says whose episode had not ended before this step; None says everybody's.
    """
    batch.reset()
    states, actions, rewards = [], [], []
    num_steps = torch.full_like(batch.task_ids, batch.spec.episode_steps)
    terminated_ever = torch.zeros_like(batch.task_ids, dtype=torch.bool)
    alive = torch.ones_like(terminated_ever) if batch.can_terminate else None
    for step in range(batch.spec.episode_steps):
        state = batch.state
        action = choose(step, state)
        reward, terminated, _ = batch.advance(action)
        if learn is not None:
            learn(state, action, reward, batch.state, terminated, alive)
        states.append(state)
        actions.append(action)
        rewards.append(reward)
        if alive is not None:
            now = terminated & alive
            num_steps = torch.where(now, step + 1, num_steps)
            terminated_ever |= now
            alive = alive & ~terminated
    observations = batch.observe(torch.stack(states, 1))  # (E, T, D)
    return EpisodeBatch(
        observations=observations.to(torch.uint8),
        actions=torch.stack(actions, 1).to(torch.uint8),
        rewards=torch.stack(rewards, 1),
        terminated=terminated_ever,
        num_steps=num_steps,
    )


def require_fraction(source: str, **values: float) -> None:
    """Raises ValueError naming the setting unless every value lies in [0, 1]."""
    for name, value in values.items():
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"{source} {name} must be from 0 to 1, got {value}")
