"""Deep Q-learning with Q(lambda) targets and many actors per learner, all learners advanced together.

Source: Mnih et al., Human-level control through deep reinforcement learning (2015), Nature 518:529-533, with the
targets of Peng and Williams, Incremental Multi-Step Q-Learning (1996), and the residual network of Espeholt et al.,
IMPALA (2018), arXiv 1802.01561. Settings, and the use of every actor's stream as a history of its own: Laskin et al.
(2022), arXiv 2210.14215, appendix, where it is the source of Watermaze.

    loss = mean[ (G_t - Q(o_t, a_t))^2 / 2 ]
    G_t  = r_t + discount * ((1 - lambda) * max_a Q'(o_t+1, a) + lambda * G_t+1),   G = max_a Q' beyond a sequence

Q' is the target network, a copy of Q made every `target_every_updates` updates. With ``trace: watkins`` lambda counts
0 where a_t+1 is not what Q' likes best, so that no random action spoils a target (Watkins, Learning from delayed
rewards, 1989); with ``peng`` it is the same everywhere. Time running out is no end of the task: the last observation
is kept and looked at. Where the task itself ends, nothing is ahead.

Ours differs from a distributed agent in being synchronous: the actors of a learner move in lock-step, and after every
`rollout_steps` - `overlap_steps` steps, when each has a new sequence of `rollout_steps`, the learner makes
`updates_per_rollout` updates. Every batch takes a share of `replay_fraction` anywhere from the replay and the rest
from the newest sequences, of one actor after another: with the paper's 16 actors and batches of 8, eight updates read
each new sequence once. Sequences run across the seams between episodes, and replayed ones begin at any step. The
paper prints no number of updates, no number of residual blocks and no width of the last layer.

A run repeats exactly (on a GPU only under ``torch.use_deterministic_algorithms(True)``).

Letters: L learners, N actors of each, E = L * N streams, T environment steps of an episode, B sequences, S entries of
a sequence, A actions.
"""

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from distillery.core.protocols import TaskDistribution
from distillery.core.records import EpisodeBatch, Transition
from distillery.core.returns import lambda_returns
from distillery.core.rollouts import play_episode
from distillery.core.seeding import stream_seed, torch_generator
from distillery.layers.perceptrons import StackedAdam
from distillery.sources.base import (
    Learners,
    Source,
    falling,
    require_betas,
    require_counts,
    require_fraction,
    require_positive,
)
from distillery.sources.q_networks import QNetworks
from distillery.sources.replay import Replay, Sequences


class DQN(Source):
    """Synchronous deep Q-learning from any observation, one of A actions at a time.

    Args:
        num_episodes: length of one history, in episodes of one actor.
        num_actors: streams that share a learner's weights.
        rollout_steps: steps of a sequence.
        overlap_steps: steps that one new sequence of an actor shares with the next.
        batch_size: sequences of an update.
        replay_fraction: part of them that comes from anywhere in the replay.
        replay_steps: steps of all actors that a learner remembers, each with its observation.
        updates_per_rollout: updates whenever every actor has a new sequence.
        target_every_updates: updates between two copies to the target network.
        discount: from 0 to 1.
        return_lambda: how far targets trust rewards (1) over the value of the next observation (0).
        trace: ``peng`` or ``watkins``.
        epsilon_start: chance of a random action in the first episode.
        epsilon_end: the same once the schedule is over.
        epsilon_fraction: part of `num_episodes` over which epsilon falls.
        learning_rate: of Adam.
        adam_betas: decay of Adam's two averages.
        adam_epsilon: added to the root of the second.
        max_gradient_norm: longest gradient of one learner; None leaves gradients alone.
        channels: of each section of convolutions; an observation without an image has none.
        num_residual_blocks: of each section.
        num_layers: hidden layers behind the convolutions.
        hidden_size: units of each.

    Raises:
        ValueError: a setting is out of range.
    """

    def __init__(
        self,
        *,
        num_episodes: int,
        num_actors: int = 16,
        rollout_steps: int = 40,
        overlap_steps: int = 31,
        batch_size: int = 8,
        replay_fraction: float = 0.7,
        replay_steps: int = 100_000,
        updates_per_rollout: int = 8,
        target_every_updates: int = 50,
        discount: float = 0.9,
        return_lambda: float = 0.75,
        trace: str = "peng",
        epsilon_start: float = 0.01,
        epsilon_end: float = 0.01,
        epsilon_fraction: float = 0.0,
        learning_rate: float = 1e-4,
        adam_betas: Sequence[float] = (0.9, 0.999),
        adam_epsilon: float = 1e-6,
        max_gradient_norm: float | None = 10.0,
        channels: Sequence[int] = (32, 64, 64),
        num_residual_blocks: int = 2,
        num_layers: int = 1,
        hidden_size: int = 256,
    ) -> None:
        self.num_episodes, self.num_actors = num_episodes, num_actors
        self.rollout_steps, self.overlap_steps, self.batch_size = rollout_steps, overlap_steps, batch_size
        self.replay_fraction, self.replay_steps = replay_fraction, replay_steps
        self.updates_per_rollout, self.target_every_updates = updates_per_rollout, target_every_updates
        self.discount, self.return_lambda, self.trace = discount, return_lambda, trace
        self.epsilon_start, self.epsilon_end, self.epsilon_fraction = epsilon_start, epsilon_end, epsilon_fraction
        self.learning_rate, self.adam_betas, self.adam_epsilon = learning_rate, tuple(adam_betas), adam_epsilon
        self.max_gradient_norm = max_gradient_norm
        self.channels, self.num_residual_blocks = tuple(channels), num_residual_blocks
        self.num_layers, self.hidden_size = num_layers, hidden_size
        self._require_settings()

    def _require_settings(self) -> None:
        """Raises ValueError unless every setting is in range."""
        require_counts(
            "dqn",
            num_episodes=self.num_episodes,
            num_actors=self.num_actors,
            rollout_steps=self.rollout_steps,
            batch_size=self.batch_size,
            updates_per_rollout=self.updates_per_rollout,
            target_every_updates=self.target_every_updates,
            num_layers=self.num_layers,
            hidden_size=self.hidden_size,
        )
        require_fraction(
            "dqn",
            replay_fraction=self.replay_fraction,
            discount=self.discount,
            return_lambda=self.return_lambda,
            epsilon_start=self.epsilon_start,
            epsilon_end=self.epsilon_end,
            epsilon_fraction=self.epsilon_fraction,
        )
        require_positive(
            "dqn",
            learning_rate=self.learning_rate,
            adam_epsilon=self.adam_epsilon,
            max_gradient_norm=self.max_gradient_norm,
        )
        require_betas("dqn", self.adam_betas)
        if not 0 <= self.overlap_steps < self.rollout_steps:
            raise ValueError(
                f"dqn overlap_steps must be from 0 to below rollout_steps={self.rollout_steps}, "
                f"got {self.overlap_steps}"
            )
        if self.replay_steps <= self.num_actors * self.rollout_steps:
            raise ValueError(
                f"dqn replay_steps must be above num_actors={self.num_actors} times "
                f"rollout_steps={self.rollout_steps}, so that every actor has a sequence to replay, "
                f"got {self.replay_steps}"
            )
        if self.trace not in ("peng", "watkins"):
            raise ValueError(f"dqn trace must be peng or watkins, got {self.trace!r}")
        if not self.channels or min(self.channels) < 1:
            raise ValueError(f"dqn channels must be positive and at least one, got {list(self.channels)}")
        if self.num_residual_blocks < 0:
            raise ValueError(f"dqn num_residual_blocks must not be negative, got {self.num_residual_blocks}")

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
    ) -> "DQNLearners":
        """One learner for each task id; its `num_actors` streams stand next to each other.

        Raises:
            ValueError: actions are not one of a number of actions, or an observation holds several images.
        """
        return DQNLearners(self, tasks, task_ids, seed=seed, device=device)


class DQNLearners(Learners):
    """L learners, and the environments of their L * N actors; actor n of learner l is stream ``l * N + n``."""

    def __init__(
        self,
        source: DQN,
        tasks: TaskDistribution,
        task_ids: np.ndarray,
        *,
        seed: int,
        device: torch.device | str,
    ) -> None:
        self.task_ids = np.repeat(np.asarray(task_ids), source.num_actors)
        self._source, self._num_learners = source, len(task_ids)
        self._batch = tasks.batch(self.task_ids, seed=stream_seed(seed, "tasks"), device=device)
        self._generator = torch_generator(seed, "dqn", device=device)
        spec = self._batch.spec
        self._networks = QNetworks(
            self._num_learners,
            spec,
            self._generator,
            channels=source.channels,
            num_residual_blocks=source.num_residual_blocks,
            num_layers=source.num_layers,
            hidden_size=source.hidden_size,
        )
        self._target = copy.deepcopy(self._networks)
        self._adams = [
            StackedAdam(
                part.parameters,
                learning_rate=source.learning_rate,
                betas=source.adam_betas,
                epsilon=source.adam_epsilon,
            )
            for part in self._networks.parts
        ]
        # No more than a whole history has: a step's entry each, and every episode's last look.
        capacity = min(source.replay_steps // source.num_actors, source.num_episodes * (spec.episode_steps + 1))
        self._replay = Replay(
            max(capacity, source.rollout_steps + 1),
            num_learners=self._num_learners,
            num_streams=len(self.task_ids),
            spec=spec,
            device=device,
        )
        self._episode = self._num_steps = self._num_updates = 0

    @torch.no_grad()
    def _greedy(self, observations: Tensor) -> Tensor:
        values = self._networks(observations.unflatten(0, (self._num_learners, -1)))  # (L, N, A)
        return values.argmax(-1).flatten()

    def _draw_sequences(self, update: int) -> Sequences:
        """(L, B, `rollout_steps` + 1) of what a batch is made of; the last entry of each is only looked at."""
        length, device = self._source.rollout_steps + 1, self._generator.device
        num_replayed = round(self._source.replay_fraction * self._source.batch_size)
        shape = (self._num_learners, num_replayed)
        last_start = self._replay.num_entries - length
        actors = torch.randint(self._source.num_actors, shape, generator=self._generator, device=device)
        starts = torch.randint(last_start + 1, shape, generator=self._generator, device=device)
        num_new = self._source.batch_size - num_replayed
        newest = (update * num_new + torch.arange(num_new, device=device)) % self._source.num_actors
        newest = newest.expand(self._num_learners, -1)
        return self._replay.sequences(
            torch.cat([actors, newest], 1), torch.cat([starts, torch.full_like(newest, last_start)], 1), length
        )

    @torch.no_grad()
    def _targets(self, sequences: Sequences) -> Tensor:
        """(L, B, `rollout_steps`), by the target network."""
        best = self._target(sequences.observations.flatten(1, 2)).max(-1)
        values, likes = (x.view_as(sequences.actions) for x in (best.values, best.indices))
        follows = sequences.acted
        if self._source.trace == "watkins":
            follows = follows & (sequences.actions == likes)
        return lambda_returns(
            sequences.rewards[..., :-1],
            values[..., 1:],
            discount=self._source.discount * sequences.continues[..., :-1],
            return_lambda=self._source.return_lambda * follows[..., 1:],
        )

    def _losses(self, sequences: Sequences) -> Tensor:
        """(L,) loss of each learner on its own sequences."""
        values = self._networks(sequences.observations[:, :, :-1].flatten(1, 2))  # (L, B * (S - 1), A)
        actions, acted = (x[..., :-1].flatten(1) for x in (sequences.actions, sequences.acted))
        errors = self._targets(sequences).flatten(1) - values.gather(2, actions[..., None])[..., 0]
        return (0.5 * errors.square() * acted).sum(1) / acted.sum(1).clamp(min=1)

    def _update(self, sequences: Sequences) -> None:
        parameters = [part.parameters for part in self._networks.parts]
        # Summed over learners: no row of parameters is in another's loss.
        gradients = torch.autograd.grad(self._losses(sequences).sum(), parameters)
        if self._source.max_gradient_norm is not None:
            norm = torch.stack([gradient.square().sum(1) for gradient in gradients]).sum(0).sqrt()[:, None]  # (L, 1)
            scale = (self._source.max_gradient_norm / norm.clamp(min=1e-12)).clamp(max=1.0)
            gradients = tuple(gradient * scale for gradient in gradients)
        for adam, gradient in zip(self._adams, gradients, strict=True):
            adam.step(gradient, None)
        self._num_updates += 1
        if self._num_updates % self._source.target_every_updates == 0:
            self._networks.copy_to(self._target)

    def _watch(self, observations: Tensor, actions: Tensor, transition: Transition, alive: Tensor | None) -> None:
        acted = torch.ones_like(transition.terminated) if alive is None else alive
        self._replay.append(observations, actions, transition.rewards, continues=~transition.terminated, acted=acted)
        self._num_steps += 1
        if self._num_steps % self._batch.spec.episode_steps == 0:
            nothing = torch.zeros_like(acted)
            self._replay.append(transition.observations, actions, nothing, continues=nothing, acted=nothing)
        is_due = self._num_steps % (self._source.rollout_steps - self._source.overlap_steps) == 0
        if is_due and self._replay.num_entries > self._source.rollout_steps:
            for update in range(self._source.updates_per_rollout):
                self._update(self._draw_sequences(update))

    def episode(self, *, frozen: bool = False) -> EpisodeBatch:
        """See `Learners.episode`."""
        if frozen:
            return play_episode(self._batch, lambda step, observations: self._greedy(observations))
        epsilon = self._source.epsilon(self._episode)
        self._episode += 1
        shape = (self._batch.spec.episode_steps, len(self.task_ids))
        draws = torch.rand(shape, generator=self._generator, device=self._generator.device)
        # One uniform draw decides whether to explore, and where.
        num_actions = self._batch.spec.num_actions
        random_actions = (draws * (num_actions / max(epsilon, 1e-9))).long().clamp_(max=num_actions - 1)

        def choose(step: int, observations: Tensor) -> Tensor:
            return torch.where(draws[step] < epsilon, random_actions[step], self._greedy(observations))

        return play_episode(self._batch, choose, self._watch)
