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

# Episodes: their streams, and their numbers in them.
_Hand = tuple[np.ndarray, np.ndarray]


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
    """Episodes of a source, each as near as there are to a fraction of the oracle's return, in the order of learning.

    Of consecutive episodes, as many as a context holds, the first may return nothing and the last all there is: such a
    prompt would show how to learn. These are of one level, if need be from several streams of the task. Of the
    episodes of a task the nearest are dealt out to its lifetimes in turn, so that all are equally near.

    Args:
        episodes: N of them, of E streams, in the order of learning.
        stream_task_ids: (E,) the task of each stream.
        spec: of the tasks.
        task_ids: which tasks to make prompts for, in the order of the lifetimes.
        num_seeds: lifetimes of each task.
        oracle_returns: (all tasks,), indexed by task id.
        fraction: of the oracle's return, from 0 to 1.
        num_steps: P at most; as many as every lifetime of every task can be given.

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
    targets = fraction * np.asarray(oracle_returns)
    dealt = [
        hand for task in task_ids for hand in _dealt(task, stream_task_ids, returns, steps, targets[task], num_seeds)
    ]
    num_steps = min(num_steps, *(int(steps[streams, numbers].sum()) for streams, numbers in dealt))
    chosen = [_enough(hand, steps, num_steps) for hand in dealt]
    parts = [_last_steps(episodes, steps, hand, num_steps) for hand in chosen]
    observations, actions, rewards = (torch.stack(column) for column in zip(*parts, strict=True))
    levels = np.array([returns[streams, numbers].mean() for streams, numbers in chosen])
    return Prompt(observations.to(spec.observation_dtype), actions.to(spec.action_dtype), rewards, levels)


def _dealt(
    task: int, stream_task_ids: np.ndarray, returns: np.ndarray, steps: np.ndarray, target: float, num_seeds: int
) -> list[_Hand]:
    """Every episode of a task, the nearest to the target first, dealt out to `num_seeds` lifetimes.

    Where there are fewer episodes than lifetimes, all are given all.
    """
    streams, numbers = np.nonzero((stream_task_ids[:, None] == task) & (steps > 0))
    order = np.argsort(np.abs(returns[streams, numbers] - target), kind="stable")
    apart = num_seeds if len(order) >= num_seeds else 1
    hands = [order[seed % apart :: apart] for seed in range(num_seeds)]
    return [(streams[hand], numbers[hand]) for hand in hands]


def _enough(hand: _Hand, steps: np.ndarray, num_steps: int) -> _Hand:
    """The first episodes that hold P steps together, put into the order of learning."""
    streams, numbers = hand
    count = int(np.searchsorted(np.cumsum(steps[streams, numbers]), num_steps)) + 1
    streams, numbers = streams[:count], numbers[:count]
    order = np.argsort(numbers, kind="stable")
    return streams[order], numbers[order]


def _last_steps(
    episodes: Sequence[EpisodeBatch], steps: np.ndarray, hand: _Hand, num_steps: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Observations, actions and rewards of the last P steps of some episodes in a row."""
    parts = []
    for stream, number in zip(*hand, strict=True):
        batch, real = episodes[number], steps[stream, number]
        parts.append((batch.observations[stream, :real], batch.actions[stream, :real], batch.rewards[stream, :real]))
    observations, actions, rewards = (torch.cat(column)[-num_steps:] for column in zip(*parts, strict=True))
    return observations, actions, rewards
