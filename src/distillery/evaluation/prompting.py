"""Prompts: contexts that are filled with somebody else's steps before a lifetime begins.

Source: Laskin et al. (2022), arXiv 2210.14215, on prompting with demonstrations: a context is filled with what a
source did on the test task when it had reached some part of the best return, and the model goes on from there, weights
frozen.

Letters: L lifetimes, P steps of a prompt, D numbers of an observation, K numbers of an action, E streams of episodes,
N episodes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distillery.core.protocols import SequenceModel
from distillery.core.records import EpisodeBatch
from distillery.core.specs import TaskSpec


@dataclass(frozen=True)
class Prompt:
    """P steps for each of L lifetimes, whatever episodes they belong to.

    Attributes:
        observations: (L, P, D), seen before the action.
        actions: (L, P[, K]).
        rewards: (L, P) float32, given after the action.
        mean_returns: (L,) float64, mean return of the episodes in it, where it is known.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    mean_returns: np.ndarray | None = None

    def __post_init__(self) -> None:
        shapes = [tuple(part.shape[:2]) for part in (self.observations, self.actions, self.rewards)]
        if len(set(shapes)) > 1:
            raise ValueError(f"a prompt's observations, actions and rewards must be (L, P, ...) alike, got {shapes}")

    @property
    def num_lifetimes(self) -> int:
        """L."""
        return self.rewards.shape[0]

    @property
    def num_steps(self) -> int:
        """P."""
        return self.rewards.shape[1]

    def select(self, chosen: slice) -> "Prompt":
        """Some of the lifetimes'."""
        returns = None if self.mean_returns is None else self.mean_returns[chosen]
        return Prompt(self.observations[chosen], self.actions[chosen], self.rewards[chosen], returns)

    def feed(self, model: SequenceModel, cache: Any, device: torch.device | str) -> tuple[Tensor, Tensor] | None:
        """Lets the model take in every step; returns the last action and reward, which its first step follows."""
        spec, previous = model.spec, None
        observations = self.observations.to(device, spec.observation_dtype)
        actions, rewards = self.actions.to(device, spec.action_dtype), self.rewards.to(device)
        for step in range(self.num_steps):
            model.encode_step(observations[:, step], previous, cache)
            previous = (actions[:, step], rewards[:, step])
        return previous


@dataclass(frozen=True)
class _Stretches:
    """Of every stream, the stretch whose level is nearest to its target.

    Attributes:
        ends: (E,) int64, number of the episode it ends with; -1 where the stream is too short.
        levels: (E,) float64, mean return of the whole episodes in it.
        distances: (E,) float64, from the target; infinite where the stream is too short.
    """

    ends: np.ndarray
    levels: np.ndarray
    distances: np.ndarray


def prompt_at_fraction(
    episodes: Sequence[EpisodeBatch],
    stream_task_ids: np.ndarray,
    spec: TaskSpec,
    *,
    task_ids: np.ndarray,
    num_seeds: int,
    oracle_returns: np.ndarray,
    fraction: float,
    num_steps: int,
) -> Prompt:
    """The stretches of a source's life in which it was nearest to a fraction of the oracle's return.

    A stretch ends with an episode, and has as many steps as every task can give. Each stream of a task offers its
    nearest; of these, the first seed's lifetime is given the nearest, the second's the next, and so on round.

    Args:
        episodes: N of them, of E streams, in the order of learning.
        stream_task_ids: (E,) the task of each stream.
        spec: of the tasks.
        task_ids: which tasks to make prompts for, in the order of the lifetimes.
        num_seeds: lifetimes of each task.
        oracle_returns: (all tasks,), indexed by task id.
        fraction: of the oracle's return, from 0 to 1.
        num_steps: P at most.

    Raises:
        ValueError: a setting is out of range, or a task has no stream.
    """
    if not 0.0 <= fraction <= 1.0:
        raise ValueError(f"a prompt's fraction of the oracle's return must be from 0 to 1, got {fraction}")
    if num_steps < 1:
        raise ValueError(f"a prompt's num_steps must be at least 1, got {num_steps}")
    missing = np.setdiff1d(task_ids, stream_task_ids)
    if len(missing):
        raise ValueError(f"there are no episodes to prompt with of tasks {missing.tolist()}; run the source on them")
    returns = torch.stack([batch.returns for batch in episodes], 1).cpu().numpy().astype(np.float64)  # (E, N)
    steps = torch.stack([batch.num_steps for batch in episodes], 1).cpu().numpy()
    longest = min(steps[stream_task_ids == task].sum(1).max() for task in task_ids)
    num_steps = min(num_steps, int(longest))
    targets = fraction * np.asarray(oracle_returns)[stream_task_ids]
    nearest = _nearest_stretches(returns, steps, targets, num_steps)
    chosen = np.concatenate([_streams_of(task, stream_task_ids, nearest, num_seeds) for task in task_ids])
    parts = [_last_steps(episodes, steps, stream, nearest.ends[stream], num_steps) for stream in chosen]
    observations, actions, rewards = (torch.stack(column) for column in zip(*parts, strict=True))
    return Prompt(
        observations.to(spec.observation_dtype), actions.to(spec.action_dtype), rewards, nearest.levels[chosen]
    )


def _nearest_stretches(returns: np.ndarray, steps: np.ndarray, targets: np.ndarray, num_steps: int) -> _Stretches:
    """Of (E, N) returns and numbers of steps."""
    num_streams = len(returns)
    ends = np.full(num_streams, -1)
    levels, distances = np.full(num_streams, np.nan), np.full(num_streams, np.inf)
    for stream in range(num_streams):
        after = np.cumsum(steps[stream])
        before = after - steps[stream]
        candidates = np.flatnonzero((steps[stream] > 0) & (after >= num_steps))
        if not len(candidates):
            continue
        # The first episode that lies wholly inside; where none does, the last one, which does in part.
        first = np.minimum(np.searchsorted(before, after[candidates] - num_steps), candidates)
        sums = np.concatenate([[0.0], np.cumsum(returns[stream])])
        means = (sums[candidates + 1] - sums[first]) / (candidates + 1 - first)
        best = int(np.abs(means - targets[stream]).argmin())
        ends[stream], levels[stream] = candidates[best], means[best]
        distances[stream] = abs(means[best] - targets[stream])
    return _Stretches(ends, levels, distances)


def _streams_of(task: int, stream_task_ids: np.ndarray, nearest: _Stretches, num_seeds: int) -> np.ndarray:
    """(`num_seeds`,) streams of one task, the nearest first."""
    streams = np.flatnonzero((stream_task_ids == task) & (nearest.ends >= 0))
    ordered = streams[np.argsort(nearest.distances[streams], kind="stable")]
    return ordered[np.arange(num_seeds) % len(ordered)]


def _last_steps(
    episodes: Sequence[EpisodeBatch], steps: np.ndarray, stream: int, end: int, num_steps: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Observations, actions and rewards of the last P steps of one stream up to the end of an episode."""
    first, found = end, int(steps[stream, end])
    while found < num_steps:
        first -= 1
        found += int(steps[stream, first])
    parts = [
        (batch.observations[stream, :real], batch.actions[stream, :real], batch.rewards[stream, :real])
        for batch, real in zip(episodes[first : end + 1], steps[stream, first : end + 1], strict=True)
    ]
    observations, actions, rewards = (torch.cat(column)[-num_steps:] for column in zip(*parts, strict=True))
    return observations, actions, rewards
