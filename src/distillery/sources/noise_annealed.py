"""Learning histories without learning: a policy that knows the task, under noise that fades.

Source: Zisman et al., Emergence of In-Context Reinforcement Learning from Noise Distillation (2023), arXiv
2312.12275, where distilling such histories is called AD^epsilon.

    a ~ epsilon(p) * uniform + (1 - epsilon(p)) * policy(task, state),   epsilon falls as p goes from 0 to 1

Here p is the part of the schedule that is over, counted in environment steps, or in episodes. The policy is the
family's oracle, or what any other source has learned by the end of its histories, which are not kept. (For one that is
not optimal, the paper's code lets epsilon end above 0.) Ours differs in two things: the fall need not be linear, and
the schedule counts `episode_steps` for every episode, so that a history whose episodes end early keeps pace with one
whose episodes do not.

Letters: E streams.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import hydra
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
_Result = TypeVar("_Result")


class NoiseAnnealed(Source):
    """A policy's actions, replaced by random ones ever more rarely.

    Args:
        num_episodes: length of one history, in episodes.
        epsilon_start: chance of a random action at first.
        epsilon_end: the same once the schedule is over.
        epsilon_fraction: part of the history over which epsilon falls; 0.9 is that of the paper's code.
        schedule: ``linear``, ``exponential`` (by the same factor every time) or ``cosine`` (slowly at both ends).
        anneal_every: ``step`` or ``episode``, how often epsilon changes.
        policy: a source, or its configuration: it learns on the task for all its `num_episodes`, and what it plays
            frozen is the policy. None is the family's oracle.

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
        policy: Source | Mapping[str, Any] | None = None,
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
        self.policy = _source(policy) if isinstance(policy, Mapping) else policy

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
    ) -> "NoisyOracles | NoisyPolicies":
        """See `Source.start`; a policy that is a source learns first."""
        if self.policy is not None:
            return NoisyPolicies(self, self.policy, tasks, task_ids, seed=seed, device=device)
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


class NoisyPolicies(Learners):
    """E policies, each learned by a source, under noise.

    Noise strikes an action on its way into the environment, so that it serves any source; what was done in its stead
    is what the episode tells. Frozen episodes are those of a twin that learned the same, or they would move the
    environments that histories go on in.
    """

    def __init__(
        self,
        source: NoiseAnnealed,
        policy: Source,
        tasks: TaskDistribution,
        task_ids: np.ndarray,
        *,
        seed: int,
        device: torch.device | str,
    ) -> None:
        self._source = source

        def learned(*names: str) -> tuple[Learners, _Noise]:
            noise = _Noise(torch_generator(seed, "noise_annealed", *names, device=device))
            learners = policy.start(_Struck(tasks, noise), task_ids, seed=stream_seed(seed, "policy"), device=device)
            for _ in range(policy.num_episodes):
                learners.episode()
            return learners, noise

        self._learned = learned
        self._own = learned()
        self._frozen: tuple[Learners, _Noise] | None = None
        self.task_ids = self._own[0].task_ids
        self._episode_steps, self._episode = tasks.spec.episode_steps, 0

    def episode(self, *, frozen: bool = False) -> EpisodeBatch:
        """See `Learners.episode`; `frozen` plays with what noise there is once the schedule is over, `epsilon_end`."""
        if frozen and self._frozen is None:
            self._frozen = self._learned("frozen")
        learners, noise = self._frozen if frozen and self._frozen is not None else self._own
        source, episode = self._source, self._episode
        noise.epsilon = lambda step: (
            source.epsilon_end if frozen else source.epsilon(episode, step, self._episode_steps)
        )
        self._episode += not frozen
        noise.taken.clear()
        played = learners.episode(frozen=True)
        taken = torch.stack(noise.taken, 1).to(played.actions.dtype)
        return EpisodeBatch(**{**vars(played), "actions": taken})


class _Noise:
    """What replaces actions on their way into environments.

    Attributes:
        epsilon: from the number of a step to the chance of a random action; None is no noise.
        taken: what was done, step by step, under noise; each (E[, K]).
    """

    def __init__(self, generator: torch.Generator) -> None:
        self.epsilon: Callable[[int], float] | None = None
        self.taken: list[Tensor] = []
        self._generator, self._inside = generator, False

    def before(self, batch: TaskBatch, act: Callable[[Tensor], _Result]) -> Callable[[Tensor], _Result]:
        """A method that takes actions, with noise before it; where one such method calls another, but once."""

        def struck(actions: Tensor) -> _Result:
            if self.epsilon is None or self._inside:
                return act(actions)
            taken = _replaced(batch, actions, self.epsilon(len(self.taken)), self._generator)
            self.taken.append(taken)
            self._inside = True
            try:
                return act(taken)
            finally:
                self._inside = False

        return struck


class _Struck:
    """Tasks whose environments noise strikes; all else is theirs."""

    def __init__(self, tasks: TaskDistribution, noise: _Noise) -> None:
        self._tasks, self._noise = tasks, noise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tasks, name)

    def batch(self, task_ids: np.ndarray, *, seed: int, device: torch.device | str = "cpu") -> TaskBatch:
        """See `TaskDistribution.batch`."""
        batch = self._tasks.batch(task_ids, seed=seed, device=device)
        for name in ("step", "advance"):  # of the one object, which stays of its class: sources ask for that
            if hasattr(batch, name):
                setattr(batch, name, self._noise.before(batch, getattr(batch, name)))
        return batch


def _source(settings: Mapping[str, Any]) -> Source:
    """The source that a configuration describes.

    Raises:
        ValueError: it describes none.
    """
    values = dict(settings)
    target = str(values.pop("_target_", None))
    if not target.startswith("distillery.sources."):
        raise ValueError(
            f"noise_annealed policy must be a source of distillery.sources, got _target_={target!r}; choose one like "
            "sources=noise_annealed +sources@sources.policy=q_learning"
        )
    source: Source = hydra.utils.get_class(target)(**values)
    return source


def _noisy(batch: TaskBatch, epsilon: float, generator: torch.Generator) -> Tensor:
    """(E[, K]) random actions where a draw falls below epsilon, the oracle's elsewhere."""
    return _replaced(batch, batch.oracle_actions(), epsilon, generator)


def _replaced(batch: TaskBatch, actions: Tensor, epsilon: float, generator: torch.Generator) -> Tensor:
    """(E[, K]) random actions where a draw falls below epsilon, the given ones elsewhere."""
    if epsilon == 0.0:
        return actions
    draws = torch.rand(len(actions), generator=generator, device=actions.device)
    explore = (draws < epsilon).view(-1, *[1] * (actions.ndim - 1))
    return torch.where(explore, random_actions(batch, generator), actions)
