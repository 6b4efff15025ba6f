"""An efficient explorer: optimistic model-based learning of rewards, and of moves where tasks do not share them.

Source: Brafman and Tennenholtz, R-max (2002), JMLR 3:213-231. Every state whose reward was never seen is assumed to
pay; value iteration plans in that optimistic model; what is seen replaces what was assumed.

    V(s) <- max_a  R(s') + discount * V(arrival(s')),   s' = next_state(s, a),   R(s') = best seen reward, or optimism

`arrival` is what a task itself changes: entering the key's cell leads to the same cell with the key in hand. Nothing
is assumed to be changed until it was seen.

Ours differs from R-max in three ways: one visit makes a state known (rewards here are deterministic and moves are
given, or deterministic, too), and of several visits the best counts, so that a goal which pays once per episode is not
forgotten; an unseen state is assumed to pay a little rather than the largest reward, so that a goal once found ends
the search; and equally good actions are drawn at random at every step. Under ``tie_break: first`` the lowest is taken
instead, and under ``kept`` the one that comes first in an order that each learner draws once. Then what a learner does
follows from what it has seen and done, and is easier to distil: drawn, every search and every shortest way is another,
and so is whatever is done once nothing is left to find.

Where rewards are random one visit tells little. ``bonus: visit`` then takes the interval estimate of Strehl and
Littman, An analysis of model-based interval estimation for Markov decision processes (2008), JCSS 74:1309-1331:

    R(s') = mean reward of n visits + bonus_weight / sqrt(n),      optimism + bonus_weight before the first

with the rewards of each pair (s, a) in place of each s' under ``reward_of: action``, as the paper has it. That is what
a bandit needs, all of whose arms lead to one state. A goal that pays once per episode looks poorer at every further
visit, so such tasks are better off without.

Where actions mean something else in every task, moves are learned, too, as in R-max: until a pair (s, a) was tried
once, it is assumed to pay and to lead back to s. There are more pairs than states, so that takes longer, and optimism
must be larger: a goal is stayed at only once the action that stays was tried there, which must look better than to go
round and come back.

Letters: E learners, S states, A actions, T environment steps, K keys of rewards: S states, or S * A pairs under
``reward_of: action`` and where moves are learned.
"""

import math

import numpy as np
import torch
from torch import Tensor

from distillery.core.protocols import TaskDistribution
from distillery.core.records import EpisodeBatch
from distillery.core.rollouts import play_tabular_episode
from distillery.core.seeding import stream_seed, torch_generator
from distillery.sources.base import Learners, Source, require_counts, require_fraction, require_tabular

_TIE = 1e-5  # worth this close counts as equal


class Explorer(Source):
    """Optimistic exploration by value iteration.

    Args:
        num_episodes: length of one history, in episodes.
        discount: of the planner, from 0 to 1.
        optimism: reward assumed of a state never entered, of a pair never tried where moves are learned, above 0. A
            reward that pays on every step is preferred to any search at ``discount ** longest_path`` or less. One that
            pays and leads on, as a key does, needs about ``(1 - discount) * discount ** longest_path``.
        num_sweeps: value-iteration sweeps before each action; values travel one step a sweep and start from the
            plan before, so few are enough.
        bonus: ``visit`` for rewards that are random: their mean and a bonus for few visits; None for rewards that
            are not, which one visit makes known.
        bonus_weight: of that bonus, in units of the rewards' spread.
        reward_of: what decides a reward, the state that is entered (``arrival``) or the state and ``action``, as it is
            wherever moves are learned.
        tie_break: among equally good actions one is drawn at ``random``, or the ``first`` is taken, or the first in an
            order that each learner has ``kept`` from its start.

    Raises:
        ValueError: a setting is out of range.
    """

    def __init__(
        self,
        *,
        num_episodes: int,
        discount: float = 0.9,
        optimism: float = 0.1,
        num_sweeps: int = 8,
        bonus: str | None = None,
        bonus_weight: float = 0.5,
        reward_of: str = "arrival",
        tie_break: str = "random",
    ) -> None:
        require_counts("explorer", num_episodes=num_episodes, num_sweeps=num_sweeps)
        require_fraction("explorer", discount=discount, optimism=optimism)
        if optimism == 0.0:
            raise ValueError("explorer optimism must be above 0, got 0: nothing would draw it to unseen states")
        if bonus not in (None, "visit"):
            raise ValueError(f"explorer bonus must be null or visit, got {bonus!r}")
        if not 0.0 <= bonus_weight < math.inf:
            raise ValueError(f"explorer bonus_weight must be finite and not negative, got {bonus_weight}")
        if reward_of not in ("arrival", "action"):
            raise ValueError(f"explorer reward_of must be arrival or action, got {reward_of!r}")
        if tie_break not in ("random", "first", "kept"):
            raise ValueError(f"explorer tie_break must be random, first or kept, got {tie_break!r}")
        self.num_episodes, self.discount, self.optimism = num_episodes, discount, optimism
        self.num_sweeps, self.bonus, self.bonus_weight, self.reward_of = num_sweeps, bonus, bonus_weight, reward_of
        self.tie_break = tie_break

    def start(
        self, tasks: TaskDistribution, task_ids: np.ndarray, *, seed: int, device: torch.device | str = "cpu"
    ) -> "Explorers":
        """See `Source.start`.

        Raises:
            ValueError: states are not numbered.
        """
        return Explorers(self, tasks, task_ids, seed=seed, device=device)


class Explorers(Learners):
    """E explorers: what each has seen of its rewards and of what its moves lead to, and its current plan."""

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
        batch = tasks.batch(task_ids, seed=stream_seed(seed, "tasks"), device=device)
        self._batch = require_tabular("explorer", batch)
        self._generator = torch_generator(seed, "explorer", device=device)
        self._frozen_generator = torch_generator(seed, "explorer", "frozen", device=device)
        next_state = self._batch.next_state
        learns_moves = not self._batch.shares_dynamics
        by_action = learns_moves or source.reward_of == "action"
        pairs = torch.arange(next_state.numel(), device=device).view_as(next_state)
        self._key = pairs if by_action else next_state  # (S, A): the row of each action's reward
        self._entered = next_state.flatten() if by_action else None  # (K,): where each row leads, if not to itself
        num_keys = next_state.numel() if by_action else len(next_state)
        first = source.optimism if source.bonus is None else source.optimism + source.bonus_weight
        self._learners = torch.arange(len(task_ids), device=device)
        # (K, E) and (S, E): states first, so that looking ahead along one action is one gather of whole rows.
        self._rewards = torch.full((num_keys, len(task_ids)), first, device=device)
        self._values = torch.zeros((len(next_state), len(task_ids)), device=device)
        self._arrival: Tensor | None = None  # (S, E); None as long as every move led where it should
        self._leads: Tensor | None = None  # (K, E): the state that each pair leads to; None where moves are known
        if learns_moves:
            own = torch.arange(len(next_state), device=device).repeat_interleave(next_state.shape[1])
            self._leads = own[:, None].repeat(1, len(task_ids))
        if source.bonus is not None:
            self._num_visits = torch.zeros_like(self._rewards)
            self._sums = torch.zeros_like(self._rewards)
        self._plan_is_stale = True
        self._preference = self._settled_preference()

    def _worth(self) -> Tensor:
        """(K, E): reward, and value of what follows."""
        if self._leads is not None:
            ahead = self._values.gather(0, self._leads)
            return torch.add(self._rewards, ahead, alpha=self._source.discount)
        ahead = self._values if self._arrival is None else self._values.gather(0, self._arrival)
        if self._entered is not None:
            ahead = ahead[self._entered]
        return torch.add(self._rewards, ahead, alpha=self._source.discount)

    def _plan(self) -> None:
        for _ in range(self._source.num_sweeps):
            worth = self._worth()
            best = worth[self._key[:, 0]]
            for action in range(1, self._batch.spec.num_actions):
                torch.maximum(best, worth[self._key[:, action]], out=best)
            self._plan_is_stale = not torch.equal(best, self._values)
            self._values = best
            if not self._plan_is_stale:
                break

    def _act(self, step: int, state: Tensor) -> Tensor:
        if self._plan_is_stale:
            self._plan()
        ahead = self._worth()[self._key[state], self._learners[:, None]]  # (E, A)
        nearly_best = ahead >= ahead.amax(1, keepdim=True) - _TIE
        preference = self._preference
        if preference is None:
            preference = torch.rand(ahead.shape, generator=self._generator, device=ahead.device)
        return (preference * nearly_best).argmax(1)

    def _settled_preference(self) -> Tensor | None:
        """(E, A) above 0, larger for what is preferred among equals; None where that is drawn at every step."""
        shape = (len(self.task_ids), self._batch.spec.num_actions)
        if self._source.tie_break == "first":
            return torch.arange(shape[1], 0, -1, device=self._rewards.device).expand(shape)
        if self._source.tie_break == "kept":
            return 1.0 + torch.rand(shape, generator=self._generator, device=self._rewards.device)
        return None

    def _learn(
        self,
        state: Tensor,
        action: Tensor,
        reward: Tensor,
        next_state: Tensor,
        terminated: Tensor,
        alive: Tensor | None,
    ) -> None:
        key = self._key[state, action]
        known = self._rewards[key, self._learners]
        reward = self._estimate(key, known, reward, alive)
        if not torch.equal(known, reward):
            self._rewards[key, self._learners] = reward
            self._plan_is_stale = True
        if self._leads is None:
            self._learn_arrival(self._batch.next_state[state, action], next_state, alive)
        else:
            self._learn_move(key, next_state, alive)

    def _learn_move(self, key: Tensor, reached: Tensor, alive: Tensor | None) -> None:
        """Takes in where some pairs, (E,), led, (E,)."""
        assert self._leads is not None
        known = self._leads[key, self._learners]
        reached = reached if alive is None else torch.where(alive, reached, known)
        if not torch.equal(known, reached):
            self._leads[key, self._learners] = reached
            self._plan_is_stale = True

    def _estimate(self, key: Tensor, known: Tensor, reward: Tensor, alive: Tensor | None) -> Tensor:
        """(E,) what the reward at each learner's key is taken to be, now that it paid once more."""
        if self._source.bonus is None:
            reward = torch.where(known == self._source.optimism, reward, torch.maximum(known, reward))
            return reward if alive is None else torch.where(alive, reward, known)
        visited = torch.ones_like(reward) if alive is None else alive.float()
        self._num_visits[key, self._learners] += visited
        self._sums[key, self._learners] += torch.where(visited > 0, reward, 0.0)
        num_visits = self._num_visits[key, self._learners].clamp(min=1)
        estimate = self._sums[key, self._learners] / num_visits + self._source.bonus_weight * num_visits.rsqrt()
        return torch.where(visited > 0, estimate, known)

    def _learn_arrival(self, entered: Tensor, reached: Tensor, alive: Tensor | None) -> None:
        """Takes in that the moves into some states, (E,), led to others, (E,)."""
        known = entered if self._arrival is None else self._arrival[entered, self._learners]
        if alive is not None:
            reached = torch.where(alive, reached, known)
        if not torch.equal(known, reached):
            if self._arrival is None:
                states = torch.arange(len(self._values), device=reached.device)
                self._arrival = states[:, None].repeat(1, len(self._learners))
            self._arrival[entered, self._learners] = reached
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
