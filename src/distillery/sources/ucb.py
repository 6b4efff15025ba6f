"""Upper confidence bounds for bandits, one table of arms per learner, all learners advanced together.

Source: Auer, Cesa-Bianchi and Fischer, Finite-time Analysis of the Multiarmed Bandit Problem (2002), Machine Learning
47:235-256, after Lai and Robbins, Asymptotically Efficient Adaptive Allocation Rules (1985). Its use as the source of
distilled histories follows Laskin et al. (2022), arXiv 2210.14215.

    arm <- argmax_a  mean(a) + confidence * sqrt(ln(pulls) / pulls(a)),   after pulling every arm once

UCB1 has confidence sqrt(2), which is what its proof needs. Ours differs in making it a setting, and in breaking ties
by an order of the arms that each learner draws at its birth; it pulls the arms for the first time in that order.

On 10 arms and 100 pulls, mean return over 4000 runs on bandits of the training distribution, mean reward of the first
and of the last 20 pulls, and return of the frozen learner (oracle 91.7, random 49.8):

    confidence             0     0.1    0.3    0.5    1.0    sqrt(2)   Thompson sampling
    return              82.4    82.5   81.6   78.6   68.5       64.1                78.0
    first 20 pulls      0.64    0.61   0.61   0.61   0.60       0.57                0.62
    last 20 pulls       0.89    0.90   0.88   0.85   0.76       0.70                0.86
    frozen afterwards   88.6    89.6   89.9   90.2   89.7       89.6                89.0

Letters: E learners, A arms.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from distillery.core.protocols import TabularTaskBatch, TaskDistribution
from distillery.core.records import EpisodeBatch
from distillery.core.rollouts import play_tabular_episode
from distillery.core.seeding import stream_seed, torch_generator
from distillery.sources.base import Learners, Source, require_counts

Score = Callable[[Tensor, Tensor, torch.Generator], Tensor]


class UCB(Source):
    """Pulls the arm that may be the best.

    Args:
        num_episodes: length of one history, in episodes; what was learned in one is kept in the next.
        confidence: how far an arm's mean is trusted less for every pull it lacks; 0 is greedy.
    """

    def __init__(self, *, num_episodes: int, confidence: float = 0.5) -> None:
        require_counts("ucb", num_episodes=num_episodes)
        if not 0.0 <= confidence < math.inf:
            raise ValueError(f"ucb confidence must be finite and not negative, got {confidence}")
        self.num_episodes, self.confidence = num_episodes, confidence

    def score(self, pulls: Tensor, sums: Tensor, generator: torch.Generator) -> Tensor:
        """(E, A) upper bounds from pulls and summed rewards, both (E, A); infinite for an arm never pulled."""
        bonus = self.confidence * (pulls.sum(1, keepdim=True).clamp(min=1).log() / pulls).sqrt()
        return torch.where(pulls == 0, math.inf, sums / pulls + bonus)

    def start(
        self, tasks: TaskDistribution, task_ids: np.ndarray, *, seed: int, device: torch.device | str = "cpu"
    ) -> "BanditLearners":
        """See `Source.start`.

        Raises:
            ValueError: the tasks are no bandits.
        """
        return BanditLearners("ucb", self.score, tasks, task_ids, seed=seed, device=device)


class BanditLearners(Learners):
    """E learners that know how often they pulled each arm and what it paid.

    Frozen episodes have environments of their own, so that learning goes on as if never stopped.

    Args:
        name: of the source; names its random streams.
        score: ``(pulls, sums, generator) -> (E, A)``; the arm with the highest score is pulled.
        tasks: a family with a single state.
        task_ids: (E,).
        seed: of everything random.
        device: of all tensors.
    """

    def __init__(
        self,
        name: str,
        score: Score,
        tasks: TaskDistribution,
        task_ids: np.ndarray,
        *,
        seed: int,
        device: torch.device | str,
    ) -> None:
        self.task_ids, self._score = np.asarray(task_ids), score
        self._batch, self._frozen_batch = (
            _bandits(name, tasks, self.task_ids, seed=stream_seed(seed, stream), device=device)
            for stream in ("tasks", "frozen tasks")
        )
        self._generator = torch_generator(seed, name, device=device)
        shape = (len(self.task_ids), self._batch.spec.num_actions)
        self._order = torch.rand(shape, generator=self._generator, device=device).argsort(1)  # (E, A) arms
        self._pulls, self._sums = torch.zeros(shape, device=device), torch.zeros(shape, device=device)
        self._learners = torch.arange(len(self.task_ids), device=device)

    def _highest(self, scores: Tensor) -> Tensor:
        """(E,) the arm with the highest of (E, A) scores; of several, the first in the learner's order."""
        place = scores.gather(1, self._order).argmax(1, keepdim=True)
        return self._order.gather(1, place)[:, 0]

    def _learn(
        self,
        state: Tensor,
        arm: Tensor,
        reward: Tensor,
        next_state: Tensor,
        terminated: Tensor,
        alive: Tensor | None,
    ) -> None:
        weight = torch.ones_like(reward) if alive is None else alive.float()
        self._pulls[self._learners, arm] += weight
        self._sums[self._learners, arm] += weight * reward

    def episode(self, *, frozen: bool = False) -> EpisodeBatch:
        """See `Learners.episode`; `frozen` pulls the arm with the best mean so far, and no other."""
        if frozen:
            best = self._highest(self._sums / self._pulls.clamp(min=1))
            return play_tabular_episode(self._frozen_batch, lambda step, state: best, None)

        def choose(step: int, state: Tensor) -> Tensor:
            return self._highest(self._score(self._pulls, self._sums, self._generator))

        return play_tabular_episode(self._batch, choose, self._learn)


def _bandits(
    name: str, tasks: TaskDistribution, task_ids: np.ndarray, *, seed: int, device: torch.device | str
) -> TabularTaskBatch:
    batch = tasks.batch(task_ids, seed=seed, device=device)
    if not isinstance(batch, TabularTaskBatch) or len(batch.next_state) != 1:
        raise ValueError(
            f"{name} is for tasks with a single state, which {type(tasks).__name__} is not; choose "
            "tasks=adversarial_bandit, or a source that reads states (q_learning)"
        )
    return batch
