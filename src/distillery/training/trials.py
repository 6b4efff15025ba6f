"""Trials: consecutive episodes on one task as one run of steps, and what their actions were worth.

Letters: B trials, T environment steps of a trial, N episodes.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from distillery.core.records import Context


@dataclass(frozen=True)
class Trials:
    """B trials as they were played; T is the longest's number of steps.

    Attributes:
        context: the steps; its weights are 1 up to each trial's last step, and 0 after it.
        log_probabilities: (B, T) float32, of the actions when they were taken.
        values: (B, T) float32, expected discounted return until the trial's end, when the action was taken.
        episodes: (B, T) int64, number of each step's episode in its trial, from 0; N after the trial's last.
        num_episodes: N.
    """

    context: Context
    log_probabilities: Tensor
    values: Tensor
    episodes: Tensor
    num_episodes: int

    @property
    def weights(self) -> Tensor:
        """(B, T) float32: 1 for steps of the trial, 0 for what pads it."""
        assert self.context.weights is not None
        return self.context.weights

    @property
    def returns(self) -> Tensor:
        """(B, N) float32: undiscounted return of each episode."""
        sums = self.values.new_zeros(len(self.episodes), self.num_episodes + 1)
        return sums.scatter_add(1, self.episodes, self.context.rewards)[:, : self.num_episodes]


def estimate_advantages(
    rewards: Tensor, values: Tensor, weights: Tensor, *, discount: float, gae_lambda: float
) -> Tensor:
    """(B, T) generalised advantages over whole trials (Schulman et al., 2015, arXiv 1506.02438).

    Args:
        rewards: (B, T).
        values: (B, T), of each step before its action.
        weights: (B, T), 1 up to each trial's last step, 0 after it; advantages are 0 there.
        discount: from 0 to 1.
        gae_lambda: how far advantages trust rewards (1) over the next step's value (0).
    """
    following = F.pad((values * weights)[:, 1:], (0, 1))
    surprises = (rewards + discount * following - values) * weights
    advantages = torch.empty_like(surprises)
    running = torch.zeros_like(surprises[:, 0])
    for step in reversed(range(surprises.shape[1])):
        running = surprises[:, step] + discount * gae_lambda * running
        advantages[:, step] = running
    return advantages
