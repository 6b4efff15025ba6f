"""Tabular Q-learning, one table per learner, all learners advanced together.

Source: Watkins and Dayan, Q-learning (1992); its use as the source of distilled histories follows Laskin et al.
(2022), arXiv 2210.14215.

    Q(s, a) <- Q(s, a) + rate * (r + discount * max_a' Q(s', a') - Q(s, a))

Ours differs in one thing: the first values are a little above `initial_value`, by draws of at most 1e-6 plus a
ten-thousandth of its size (less would drown in float32), so that ties between untried actions are broken by a
preference that each learner keeps, and no tie is left to break at every step.
A time limit is not an end of the task: the last step of a truncated episode still looks ahead.

Under ``replay: backward`` an episode is learned from once more when it is over, its last step first, so that a reward
tells every step that led to it at once and not one step more each time it is found again: Lin, Self-improving reactive
agents based on reinforcement learning, planning and teaching (1992), Machine Learning 8:293-321.

Letters: E learners, S states, A actions, T environment steps.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from distillery.core.protocols import TaskDistribution
from distillery.core.records import EpisodeBatch
from distillery.core.rollouts import play_tabular_episode
from distillery.core.seeding import stream_seed, torch_generator
from distillery.sources.base import Learners, Source, falling, require_counts, require_fraction, require_tabular


class QLearning(Source):
    """Q-learning with an epsilon-greedy policy, epsilon falling linearly over the first episodes.

    Args:
        num_episodes: length of one history, in episodes.
        learning_rate: of the table, from 0 to 1.
        discount: from 0 to 1.
        epsilon_start: chance of a random action in the first episode.
        epsilon_end: the same once the schedule is over.
        epsilon_fraction: part of `num_episodes` over which epsilon falls.
        initial_value: first value of every entry; a value near ``1 / (1 - discount)`` is optimistic and explores
            by itself.
        replay: ``backward`` learns every episode once more from its end to its beginning; None does not.

    Raises:
        ValueError: a setting is out of range.
    """

    def __init__(
        self,
        *,
        num_episodes: int,
        learning_rate: float = 0.99,
        discount: float = 0.97,
        epsilon_start: float = 1.0,
        epsilon_end: float = 0.0,
        epsilon_fraction: float = 0.6,
        initial_value: float = 0.0,
        replay: str | None = None,
    ) -> None:
        require_counts("q_learning", num_episodes=num_episodes)
        require_fraction(
            "q_learning",
            learning_rate=learning_rate,
            discount=discount,
            epsilon_start=epsilon_start,
            epsilon_end=epsilon_end,
            epsilon_fraction=epsilon_fraction,
        )
        if replay not in (None, "backward"):
            raise ValueError(f"q_learning replay must be null or backward, got {replay!r}")
        self.num_episodes, self.replay = num_episodes, replay
        self.learning_rate, self.discount, self.initial_value = learning_rate, discount, initial_value
        self.epsilon_start, self.epsilon_end = epsilon_start, epsilon_end
        self.epsilon_fraction = epsilon_fraction

    def epsilon(self, episode: int) -> float:
        """Chance of a random action in the given episode, counted from 0."""
        return falling(
            self.epsilon_start,
            self.epsilon_end,
            self.epsilon_fraction,
            episode=episode,
            num_episodes=self.num_episodes,
        )

    def start(
        self, tasks: TaskDistribution, task_ids: np.ndarray, *, seed: int, device: torch.device | str = "cpu"
    ) -> "QLearners":
        """See `Source.start`.

        Raises:
            ValueError: states are not numbered.
        """
        return QLearners(self, tasks, task_ids, seed=seed, device=device)


class QLearners(Learners):
    """E tables and the environments they act in."""

    def __init__(
        self,
        source: QLearning,
        tasks: TaskDistribution,
        task_ids: np.ndarray,
        *,
        seed: int,
        device: torch.device | str,
    ) -> None:
        self.task_ids = np.asarray(task_ids)
        self._source = source
        batch = tasks.batch(task_ids, seed=stream_seed(seed, "tasks"), device=device)
        self._batch = require_tabular("q_learning", batch)
        self._generator = torch_generator(seed, "q_learning", device=device)
        num_states, self._num_actions = self._batch.next_state.shape
        shape = (len(task_ids) * num_states, self._num_actions)
        self._values = torch.rand(shape, generator=self._generator, device=device)  # (E * S, A)
        self._values.mul_(1e-6 + 1e-4 * abs(source.initial_value)).add_(source.initial_value)
        self._entries = self._values.view(-1)  # (E * S * A,), the same memory
        self._first_row = torch.arange(len(task_ids), device=device) * num_states
        self._episode = 0

    def _draw_exploration(self, epsilon: float) -> tuple[Tensor, Tensor]:
        """Where to explore, (T, E) bool, and the random actions, (T, E): one uniform draw decides both."""
        shape = (self._batch.spec.episode_steps, len(self.task_ids))
        draws = torch.rand(shape, generator=self._generator, device=self._values.device)
        random_actions = (draws * (self._num_actions / epsilon)).long()
        return draws < epsilon, random_actions.clamp_(max=self._num_actions - 1)

    def _greedy(self, state: Tensor) -> Tensor:
        return self._values.index_select(0, self._first_row + state).max(1).indices

    def _learn(
        self,
        state: Tensor,
        action: Tensor,
        reward: Tensor,
        next_state: Tensor,
        terminated: Tensor,
        alive: Tensor | None,
    ) -> None:
        ahead = self._values.index_select(0, self._first_row + next_state).amax(1)
        if alive is not None:
            ahead = ahead * ~terminated
        entry = (self._first_row + state) * self._num_actions + action
        old = self._entries.index_select(0, entry)
        new = torch.lerp(old, torch.add(reward, ahead, alpha=self._source.discount), self._source.learning_rate)
        self._entries.put_(entry, new if alive is None else torch.where(alive, new, old))

    def episode(self, *, frozen: bool = False) -> EpisodeBatch:
        """See `Learners.episode`."""
        if frozen:
            return play_tabular_episode(self._batch, lambda step, state: self._greedy(state), None)
        choose = self._policy(self._source.epsilon(self._episode))
        self._episode += 1
        if self._source.replay is None:
            return play_tabular_episode(self._batch, choose, self._learn)
        steps: list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None]] = []

        def learn(*step: *tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None]) -> None:
            self._learn(*step)
            steps.append(step)

        episode = play_tabular_episode(self._batch, choose, learn)
        for step in reversed(steps):
            self._learn(*step)
        return episode

    def _policy(self, epsilon: float) -> Callable[[int, Tensor], Tensor]:
        """How one episode is played."""
        if epsilon == 0.0:
            return lambda step, state: self._greedy(state)
        explore, random_actions = self._draw_exploration(epsilon)
        if epsilon == 1.0:
            return lambda step, state: random_actions[step]
        return lambda step, state: torch.where(explore[step], random_actions[step], self._greedy(state))
