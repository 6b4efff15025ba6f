"""Learning histories without learning: a policy that knows the task, under noise that fades.

Source: Zisman et al., Emergence of In-Context Reinforcement Learning from Noise Distillation (2023), arXiv
2312.12275, where distilling such histories is called AD^epsilon.

    a ~ epsilon(p) * uniform + (1 - epsilon(p)) * policy(task, state),   epsilon falls as p goes from 0 to 1

Here p is the part of the schedule that is over, counted in environment steps, or in episodes. Ours differs in three
things: the policy is the family's oracle (for one that is not optimal, let epsilon end above 0, as the paper's code
does), the fall need not be linear, and the schedule counts `episode_steps` for every episode, so that a history whose
episodes end early keeps pace with one whose episodes do not.

Letters: E streams.
"""

import math

import numpy as np
import torch
from torch import Tensor

from distillery.core.protocols import TaskBatch, TaskDistribution
from distillery.core.records import EpisodeBatch
from distillery.core.rollouts import play_episode, random_actions
from distillery.core.seeding import stream_seed, torch_generator
from distillery.sources.base import Learners, Source, require_counts, require_fraction

SCHEDULES = ("linear", "exponential", "cosine")
UNITS = ("step", "episode")


class NoiseAnnealed(Source):
    """The oracle's actions, replaced by random ones ever more rarely.

    Args:
        num_episodes: length of one history, in episodes.
        epsilon_start: chance of a random action at first.
        epsilon_end: the same once the schedule is over.
        epsilon_fraction: part of the history over which epsilon falls; 0.9 is that of the paper's code.
        schedule: ``linear``, ``exponential`` (by the same factor every time) or ``cosine`` (slowly at both ends).
        anneal_every: ``step`` or ``episode``, how often epsilon changes.

    Raises:
        ValueError: a setting is out of range.
    """

    def __init__(
        self,
        *,
        num_episodes: int,
        epsilon_start: float = 1.0,
        epsilon_end: float = 0.0,
        epsilon_fraction: float = 0.9,
        schedule: str = "linear",
        anneal_every: str = "step",
    ) -> None:
        require_counts("noise_annealed", num_episodes=num_episodes)
        require_fraction(
            "noise_annealed", epsilon_start=epsilon_start, epsilon_end=epsilon_end, epsilon_fraction=epsilon_fraction
        )
        for name, value, allowed in (("schedule", schedule, SCHEDULES), ("anneal_every", anneal_every, UNITS)):
            if value not in allowed:
                raise ValueError(f"noise_annealed {name} must be one of {', '.join(allowed)}, got {value!r}")
        if schedule == "exponential" and min(epsilon_start, epsilon_end) == 0.0:
            raise ValueError(
                f"noise_annealed epsilon_start={epsilon_start} and epsilon_end={epsilon_end} must both be above 0 "
                "where schedule=exponential, for no factor leads to 0; set epsilon_end to 0.01, or choose linear"
            )
        self.num_episodes, self.schedule, self.anneal_every = num_episodes, schedule, anneal_every
        self.epsilon_start, self.epsilon_end = epsilon_start, epsilon_end
        self.epsilon_fraction = epsilon_fraction

    def epsilon(self, episode: int, step: int, episode_steps: int) -> float:
        """Chance of a random action at a step of an episode, both counted from 0."""
        part = step / episode_steps if self.anneal_every == "step" else 0.0
        span = self.epsilon_fraction * self.num_episodes
        progress = min((episode + part) / span, 1.0) if span > 0 else 1.0
        start, end = self.epsilon_start, self.epsilon_end
        if self.schedule == "exponential":
            return start * (end / start) ** progress
        if self.schedule == "cosine":
            progress = 0.5 - 0.5 * math.cos(math.pi * progress)
        return start + (end - start) * progress

    def start(
        self, tasks: TaskDistribution, task_ids: np.ndarray, *, seed: int, device: torch.device | str = "cpu"
    ) -> "NoisyOracles":
        """See `Source.start`."""
        return NoisyOracles(self, tasks, task_ids, seed=seed, device=device)


class NoisyOracles(Learners):
    """E oracles under noise. Frozen episodes have environments and draws of their own."""

    def __init__(
        self,
        source: NoiseAnnealed,
        tasks: TaskDistribution,
        task_ids: np.ndarray,
        *,
        seed: int,
        device: torch.device | str,
    ) -> None:
        self.task_ids = np.asarray(task_ids)
        self._source = source
        self._batch, self._frozen_batch = (
            tasks.batch(self.task_ids, seed=stream_seed(seed, stream), device=device)
            for stream in ("tasks", "frozen tasks")
        )
        self._generator, self._frozen_generator = (
            torch_generator(seed, "noise_annealed", *names, device=device) for names in ((), ("frozen",))
        )
        self._episode = 0

    def episode(self, *, frozen: bool = False) -> EpisodeBatch:
        """See `Learners.episode`; `frozen` plays with what noise there is once the schedule is over, `epsilon_end`.

        Raises:
            ValueError: the family knows of no best actions.
        """
        batch, generator = self._batch, self._generator
        if frozen:
            batch, generator = self._frozen_batch, self._frozen_generator
        episode, episode_steps = self._episode, batch.spec.episode_steps

        def choose(step: int, observations: Tensor) -> Tensor:
            source = self._source
            return _noisy(
                batch, source.epsilon_end if frozen else source.epsilon(episode, step, episode_steps), generator
            )

        self._episode += not frozen
        return play_episode(batch, choose)


def _noisy(batch: TaskBatch, epsilon: float, generator: torch.Generator) -> Tensor:
    """(E[, K]) random actions where a draw falls below epsilon, the oracle's elsewhere."""
    best = batch.oracle_actions()
    if epsilon == 0.0:
        return best
    draws = torch.rand(len(best), generator=generator, device=best.device)
    explore = (draws < epsilon).view(-1, *[1] * (best.ndim - 1))
    return torch.where(explore, random_actions(batch, generator), best)
