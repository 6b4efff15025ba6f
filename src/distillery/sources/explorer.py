"""An efficient explorer: optimistic model-based learning when moves are known and rewards are not.

Source: Brafman and Tennenholtz, R-max (2002), JMLR 3:213-231. Every state whose reward was never seen is assumed to
pay; value iteration plans in that optimistic model; what is seen replaces what was assumed.

    V(s) <- max_a  R(s') + discount * V(s'),   s' = next_state(s, a),   R(s') = best seen reward, or optimism

Ours differs from R-max in three ways: one visit makes a state known (rewards here are deterministic and transitions
are given), and of several visits the best counts, so that a goal which pays once per episode is not forgotten; an
unseen state is assumed to pay a little rather than the largest reward, so that a goal once found ends the search; and
equally good actions are drawn at random at every step.

Letters: E learners, S states, A actions, T environment steps.
"""

import numpy as np
import torch
from torch import Tensor

from distillery.core.protocols import TaskDistribution
from distillery.core.records import EpisodeBatch
from distillery.core.rollouts import play_tabular_episode
from distillery.core.seeding import stream_seed, torch_generator
from distillery.sources.base import Learners, Source, require_fraction

_TIE = 1e-5  # worth this close counts as equal


class Explorer(Source):
    """Optimistic exploration by value iteration.

    Args:
        num_episodes: length of one history, in episodes.
        discount: of the planner, from 0 to 1.
        optimism: reward assumed of a state never entered, above 0. At ``discount ** longest_path`` or less, any
            known reward is preferred to any search.
        num_sweeps: value-iteration sweeps before each action; values travel one step a sweep and start from the
            plan before, so few are enough.
    """

    def __init__(
        self, *, num_episodes: int, discount: float = 0.9, optimism: float = 0.1, num_sweeps: int = 8
    ) -> None:
        if num_episodes < 1 or num_sweeps < 1:
            raise ValueError(
                f"explorer num_episodes and num_sweeps must be at least 1, got {num_episodes} and {num_sweeps}"
            )
        require_fraction("explorer", discount=discount, optimism=optimism)
        if optimism == 0.0:
            raise ValueError("explorer optimism must be above 0, got 0: nothing would draw it to unseen states")
        self.num_episodes, self.discount, self.optimism = num_episodes, discount, optimism
        self.num_sweeps = num_sweeps

    def start(
        self, tasks: TaskDistribution, task_ids: np.ndarray, *, seed: int, device: torch.device | str = "cpu"
    ) -> "Explorers":
        """See `Source.start`."""
        return Explorers(self, tasks, task_ids, seed=seed, device=device)


class Explorers(Learners):
    """E explorers: what each has seen of its rewards, and its current plan."""

    def __init__(
        self,
        source: Explorer,
        tasks: TaskDistribution,
        task_ids: np.ndarray,
        *,
        seed: int,
        device: torch.device | str,
    ) -> None:
        self.task_ids = np.asarray(task_ids)
        self._source = source
        self._batch = tasks.batch(task_ids, seed=stream_seed(seed, "tasks"), device=device)
        self._generator = torch_generator(seed, "explorer", device=device)
        self._frozen_generator = torch_generator(seed, "explorer", "frozen", device=device)
        num_states = len(self._batch.next_state)
        self._learners = torch.arange(len(task_ids), device=device)
        # (S, E): states first, so that looking ahead along one action is one gather of whole rows.
        self._rewards = torch.full((num_states, len(task_ids)), source.optimism, device=device)
        self._values = torch.zeros_like(self._rewards)
        self._plan_is_stale = True

    def _plan(self) -> None:
        for _ in range(self._source.num_sweeps):
            worth = torch.add(self._rewards, self._values, alpha=self._source.discount)  # (S, E)
            best = worth[self._batch.next_state[:, 0]]
            for action in range(1, self._batch.spec.num_actions):
                torch.maximum(best, worth[self._batch.next_state[:, action]], out=best)
            self._plan_is_stale = not torch.equal(best, self._values)
            self._values = best
            if not self._plan_is_stale:
                break

    def _act(self, step: int, state: Tensor) -> Tensor:
        if self._plan_is_stale:
            self._plan()
        worth = torch.add(self._rewards, self._values, alpha=self._source.discount)
        ahead = worth[self._batch.next_state[state], self._learners[:, None]]  # (E, A)
        tie_break = torch.rand(ahead.shape, generator=self._generator, device=ahead.device)
        nearly_best = ahead >= ahead.amax(1, keepdim=True) - _TIE
        return (tie_break * nearly_best).argmax(1)

    def _learn(
        self,
        state: Tensor,
        action: Tensor,
        reward: Tensor,
        next_state: Tensor,
        terminated: Tensor,
        alive: Tensor | None,
    ) -> None:
        known = self._rewards[next_state, self._learners]
        reward = torch.where(known == self._source.optimism, reward, torch.maximum(known, reward))
        if alive is not None:
            reward = torch.where(alive, reward, known)
        if not torch.equal(known, reward):
            self._rewards[next_state, self._learners] = reward
            self._plan_is_stale = True

    def episode(self, *, frozen: bool = False) -> EpisodeBatch:
        """See `Learners.episode`."""
        if not frozen:
            return play_tabular_episode(self._batch, self._act, self._learn)
        plan, is_stale, generator = self._values, self._plan_is_stale, self._generator
        self._generator = self._frozen_generator  # ties are broken apart, so that learning goes on as if never stopped
        episode = play_tabular_episode(self._batch, self._act, None)
        self._values, self._plan_is_stale, self._generator = plan, is_stale, generator
        return episode
