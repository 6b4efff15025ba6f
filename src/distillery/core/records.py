"""Records that pass between the wings, and the one place that says what precedes what.

At step t an agent sees ``observation[t]``, takes ``action[t]`` and is then given ``reward[t]``. The step that ends
an episode is flagged `terminated` (the task ended it) or `truncated` (time ran out), never both merged into one.

An observation is a row of D numbers (see `distillery.core.specs`); an action is one whole number, or a row of K.

Letters: B batch, E parallel environments or learners, L lifetimes, N episodes, T environment steps, D numbers of an
observation, K numbers of an action; ``[, K]`` is absent where an action is one whole number.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Transition:
    """What one call of `TaskBatch.step` returns, for E environments.

    Attributes:
        observations: (E, D) of `TaskSpec.observation_dtype`, the observation after the step.
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
        observations: (E, T, D) of `TaskSpec.stored_dtype`, seen before the action.
        actions: (E, T[, K]) of the action space's `stored_dtype`.
        rewards: (E, T) float32, given after the action.
        terminated: (E,) bool, whether the task ended the episode; otherwise it was truncated.
        num_steps: (E,) int64, how many of the T steps are real; 0 where a learner played no such episode, because its
            history was over.
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

    def select(self, learners: Any) -> "EpisodeBatch":
        """The same episode of some learners: an index, a mask or a slice of E."""
        return EpisodeBatch(**{name: value[learners] for name, value in vars(self).items()})


@dataclass(frozen=True)
class Context:
    """A batch of stretches of histories, as a model reads them; episodes run on without a seam.

    Attributes:
        observations: (B, T, D) of `TaskSpec.observation_dtype`.
        actions: (B, T[, K]) of `TaskSpec.action_dtype`, the action taken at each step.
        rewards: (B, T) float32, given after that action.
        targets: (B, T[, K]), the action to predict at each step; None says the one that was taken.
        weights: (B, T) float32, what each step's loss counts; None says 1. Steps that pad a shorter history count 0.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    targets: Tensor | None = None
    weights: Tensor | None = None

    def apply(self, change: Callable[[Tensor], Tensor]) -> "Context":
        """The same context with every part changed alike."""
        return Context(
            change(self.observations),
            change(self.actions),
            change(self.rewards),
            None if self.targets is None else change(self.targets),
            None if self.weights is None else change(self.weights),
        )

    def to(self, device: torch.device | str) -> "Context":
        """The same context on another device."""
        return self.apply(lambda part: part.to(device, non_blocking=True))


@dataclass(frozen=True)
class Lifetimes:
    """L lifetimes of N consecutive episodes each, every one on one task with frozen weights.

    Attributes:
        task_ids: (L,) int64.
        seeds: (L,) int64, number of the repetition of that task.
        returns: (L, N) float32, undiscounted return of each episode.
        observations: (L, N, T, D) of `TaskSpec.stored_dtype`, what was seen before each step.
        actions: (L, N, T[, K]), or None where only returns were kept.
        num_steps: (L, N) int64, real steps of each episode.
    """

    task_ids: np.ndarray
    seeds: np.ndarray
    returns: np.ndarray
    observations: np.ndarray | None = None
    actions: np.ndarray | None = None
    num_steps: np.ndarray | None = None
