"""Records that pass between the wings, and the one place that says what precedes what.

At step t an agent sees ``observation[t]``, takes ``action[t]`` and is then given ``reward[t]``. The step that ends
an episode is flagged `terminated` (the task ended it) or `truncated` (time ran out), never both merged into one.

Letters: B batch, E parallel environments or learners, L lifetimes, N episodes, T environment steps, D observation
dimensions.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Transition:
    """What one call of `TaskBatch.step` returns, for E environments.

    Attributes:
        observations: (E, D) int64, the observation after the step.
        rewards: (E,) float32.
        terminated: (E,) bool, the task ended the episode.
        truncated: (E,) bool, the episode ran out of steps.
    """

    observations: Tensor
    rewards: Tensor
    terminated: Tensor
    truncated: Tensor


@dataclass(frozen=True)
class EpisodeBatch:
    """One episode of each of E independent learners, in lock-step; shorter episodes are padded at the end.

    Attributes:
        observations: (E, T, D) uint8, seen before the action.
        actions: (E, T) uint8.
        rewards: (E, T) float32, given after the action.
        terminated: (E,) bool, whether the task ended the episode; otherwise it was truncated.
        num_steps: (E,) int64, how many of the T steps are real.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    terminated: Tensor
    num_steps: Tensor

    @property
    def returns(self) -> Tensor:
        """(E,) float32 undiscounted returns."""
        steps = torch.arange(self.rewards.shape[1], device=self.rewards.device)
        return (self.rewards * (steps < self.num_steps[:, None])).sum(1)


@dataclass(frozen=True)
class Context:
    """A batch of stretches of histories, as a model reads them; episodes run on without a seam.

    Attributes:
        observations: (B, T, D) int64.
        actions: (B, T) int64, the action taken at each step: the training target.
        rewards: (B, T) float32, given after that action.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor

    def to(self, device: torch.device | str) -> "Context":
        """The same context on another device."""
        return Context(*(x.to(device, non_blocking=True) for x in (self.observations, self.actions, self.rewards)))


@dataclass(frozen=True)
class Lifetimes:
    """L lifetimes of N consecutive episodes each, every one on one task with frozen weights.

    Attributes:
        task_ids: (L,) int64.
        seeds: (L,) int64, number of the repetition of that task.
        returns: (L, N) float32, undiscounted return of each episode.
        observations: (L, N, T, D) uint8, what was seen before each step.
        actions: (L, N, T) uint8, or None where only returns were kept.
        num_steps: (L, N) int64, real steps of each episode.
    """

    task_ids: np.ndarray
    seeds: np.ndarray
    returns: np.ndarray
    observations: np.ndarray | None = None
    actions: np.ndarray | None = None
    num_steps: np.ndarray | None = None
