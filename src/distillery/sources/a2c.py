"""Advantage actor-critic with many actors per learner, all learners advanced together.

Source: Mnih et al., Asynchronous Methods for Deep Reinforcement Learning (2016), arXiv 1602.01783. Settings, and the
use of every actor's stream as a history of its own: Laskin et al. (2022), arXiv 2210.14215, appendix.

    loss = mean[ -log pi(a|s) * (G - V(s)) + value_weight * (G - V(s))^2 - entropy_weight * entropy(pi(.|s)) ]
    G_t  = r_t + discount * ((1 - lambda) * V(s_t+1) + lambda * G_t+1),      G = V beyond a stretch's last step

The mean runs over one stretch: `rollout_steps` steps of all actors of a learner. G, and the G - V(s) that weighs the
log-probability, are constants to the gradient. A stretch ends with the episode at the latest. An episode that runs
out of time still looks ahead, for a time limit is no end of the task; one that terminates does not.

Ours differs from the paper's A3C in being synchronous: the actors of a learner move in lock-step and share each
update, so that a run repeats exactly (on a GPU only under ``torch.use_deterministic_algorithms(True)``). The price is
one update where A3C makes as many as there are actors. The paper gives no length of a stretch; with its learning rate
of 1e-4, 5 steps come closest to its curve. Whole episodes (20 steps) cost a third of that and end nearer the oracle's
16.54, but need a higher rate. Mean return over the 81 goals of Dark Room after so many episodes per actor:

    episodes                                  0     50     75    100    200    400
    paper, read off its figure             0.31    9.3   14.7   16.0     --   16.9
    rollout_steps=5,  learning_rate=1e-4   0.25   11.4   13.5   14.5   15.7   16.1
    rollout_steps=20, learning_rate=1e-4   0.25    1.3    3.4    6.3   13.3   15.4
    rollout_steps=20, learning_rate=5e-4   0.25   12.0   14.3   15.2   16.1   16.4
    rollout_steps=20, learning_rate=1e-3   0.25   14.1   15.6   15.9   16.3   16.4

Also not in the paper: the weight of the value loss, ReLU units, He's initial weights, and a first policy that is
nearly uniform.

The network reads observations, each dimension one-hot, or under ``reads: state`` the number of the state, one-hot,
which tells what observations hide (the key in hand). Either is a function of the state, so the network is evaluated
once per update on all S states, and both acting and learning look their answers up: the same numbers as evaluating it
at every step, far fewer products wherever S is below `num_actors` times `rollout_steps`.

Letters: L learners, N actors of each, E = L * N streams, T environment steps, M = N * T samples of a stretch,
S states, A actions, I network inputs, P parameters.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from distillery.core.protocols import TaskDistribution
from distillery.core.records import EpisodeBatch
from distillery.core.returns import lambda_returns
from distillery.core.rollouts import play_tabular_episode
from distillery.core.seeding import stream_seed, torch_generator
from distillery.layers.perceptrons import StackedAdam, StackedPerceptrons
from distillery.sources.base import (
    Learners,
    Source,
    require_betas,
    require_counts,
    require_fraction,
    require_positive,
    require_tabular,
)


class A2C(Source):
    """Synchronous advantage actor-critic.

    Args:
        num_episodes: length of one history, in episodes of one actor.
        num_actors: streams that share a learner's weights.
        rollout_steps: steps of every actor between two updates.
        learning_rate: of Adam.
        discount: from 0 to 1.
        return_lambda: how far returns trust rewards (1) over the value of the next state (0).
        entropy_weight: of the bonus for undecided policies.
        value_weight: of the squared error of the value.
        num_layers: hidden layers, shared by policy and value.
        hidden_size: units of each.
        adam_betas: decay of Adam's two averages.
        adam_epsilon: added to the root of the second.
        max_gradient_norm: longest gradient of one learner; None leaves gradients alone.
        reads: ``observation``, or ``state`` for the state's number, of which observations may show only a part.

    Raises:
        ValueError: a setting is out of range.
    """

    def __init__(
        self,
        *,
        num_episodes: int,
        num_actors: int = 100,
        rollout_steps: int = 5,
        learning_rate: float = 1e-4,
        discount: float = 0.99,
        return_lambda: float = 0.95,
        entropy_weight: float = 0.01,
        value_weight: float = 0.5,
        num_layers: int = 3,
        hidden_size: int = 128,
        adam_betas: Sequence[float] = (0.9, 0.999),
        adam_epsilon: float = 1e-6,
        max_gradient_norm: float | None = None,
        reads: str = "observation",
    ) -> None:
        require_counts(
            "a2c",
            num_episodes=num_episodes,
            num_actors=num_actors,
            rollout_steps=rollout_steps,
            num_layers=num_layers,
            hidden_size=hidden_size,
        )
        require_fraction("a2c", discount=discount, return_lambda=return_lambda)
        require_positive(
            "a2c", learning_rate=learning_rate, adam_epsilon=adam_epsilon, max_gradient_norm=max_gradient_norm
        )
        for name, value in (("entropy_weight", entropy_weight), ("value_weight", value_weight)):
            if not 0.0 <= value < math.inf:
                raise ValueError(f"a2c {name} must not be negative, got {value}")
        require_betas("a2c", adam_betas)
        if reads not in ("observation", "state"):
            raise ValueError(f"a2c reads must be observation or state, got {reads!r}")
        self.num_episodes, self.num_actors, self.rollout_steps = num_episodes, num_actors, rollout_steps
        self.learning_rate, self.discount, self.return_lambda = learning_rate, discount, return_lambda
        self.entropy_weight, self.value_weight = entropy_weight, value_weight
        self.num_layers, self.hidden_size = num_layers, hidden_size
        self.adam_betas, self.adam_epsilon = tuple(adam_betas), adam_epsilon
        self.max_gradient_norm = max_gradient_norm
        self.reads = reads

    def start(
        self, tasks: TaskDistribution, task_ids: np.ndarray, *, seed: int, device: torch.device | str = "cpu"
    ) -> "A2CLearners":
        """One learner for each task id; its `num_actors` streams stand next to each other.

        Raises:
            ValueError: states are not numbered, or what is to be read is not whole numbers.
        """
        return A2CLearners(self, tasks, task_ids, seed=seed, device=device)


@dataclass(frozen=True)
class Stretch:
    """Consecutive steps of all actors, between two updates.

    Attributes:
        states: (L, N, T) int64, before the action.
        actions: (L, N, T) int64.
        rewards: (L, N, T) float32.
        next_states: (L, N, T) int64, after it.
        terminated: (L, N, T) bool, the action ended the task.
        alive: (L, N, T) bool, False where the episode was over before the action; None says nowhere.
    """

    states: Tensor
    actions: Tensor
    rewards: Tensor
    next_states: Tensor
    terminated: Tensor
    alive: Tensor | None


class A2CLearners(Learners):
    """L learners, and the environments of their L * N actors; actor n of learner l is stream ``l * N + n``."""

    def __init__(
        self,
        source: A2C,
        tasks: TaskDistribution,
        task_ids: np.ndarray,
        *,
        seed: int,
        device: torch.device | str,
    ) -> None:
        self.task_ids = np.repeat(np.asarray(task_ids), source.num_actors)
        self._source = source
        batch = tasks.batch(self.task_ids, seed=stream_seed(seed, "tasks"), device=device)
        self._batch = require_tabular("a2c", batch)
        self._generator = torch_generator(seed, "a2c", device=device)
        num_states, self._num_actions = self._batch.next_state.shape
        self._inputs = self._encode(torch.arange(num_states, device=device))
        sizes = (self._inputs.shape[1], *[source.hidden_size] * source.num_layers, self._num_actions + 1)
        num_active = 1 if source.reads == "state" else len(self._batch.spec.observation_sizes)
        self._networks = StackedPerceptrons(len(task_ids), sizes, num_active, self._generator)
        self._adam = StackedAdam(
            self._networks.parameters,
            learning_rate=source.learning_rate,
            betas=source.adam_betas,
            epsilon=source.adam_epsilon,
        )
        learners = torch.arange(len(task_ids), device=device)
        self._first_row = learners.repeat_interleave(source.num_actors) * num_states  # (E,)
        self._step = 0
        self._steps: list[tuple[Tensor | None, ...]] = []
        self._evaluate()

    def _encode(self, states: Tensor) -> Tensor:
        """(S, I) float32: every dimension of a state's observation one-hot, side by side; or its number, one-hot."""
        if self._source.reads == "state":
            return torch.eye(len(states), device=states.device)
        observations = self._batch.observe(states)
        sizes = self._batch.spec.observation_sizes
        return torch.cat([one_hot(observations[:, d], size) for d, size in enumerate(sizes)], 1).float()

    def _evaluate(self) -> None:
        """Runs the networks on all states; the result serves acting, and learning from what it leads to."""
        logits, self._values = self._networks(self._inputs)  # (L, S, A), (L, S)
        self._log_policy = logits.log_softmax(-1)
        self._cumulative = self._log_policy.detach().exp().cumsum(-1).flatten(0, 1)  # (L * S, A)

    def _greedy(self, step: int, state: Tensor) -> Tensor:
        return self._log_policy.detach().flatten(0, 1).index_select(0, self._first_row + state).argmax(1)

    def _learn(
        self,
        state: Tensor,
        action: Tensor,
        reward: Tensor,
        next_state: Tensor,
        terminated: Tensor,
        alive: Tensor | None,
    ) -> None:
        self._steps.append((state, action, reward, next_state, terminated, alive))
        self._step += 1
        if len(self._steps) == self._source.rollout_steps or self._step == self._batch.spec.episode_steps:
            stretch, self._steps = self._stretch(), []
            self._adam.step(self._gradient(stretch), None if stretch.alive is None else stretch.alive.any(2).any(1))
            self._evaluate()

    def _stretch(self) -> Stretch:
        def stack(steps: tuple[Any, ...]) -> Any:
            """(L, N, T), or None where the steps hold none."""
            return None if steps[0] is None else torch.stack(steps, 1).unflatten(0, (-1, self._source.num_actors))

        return Stretch(*(stack(steps) for steps in zip(*self._steps, strict=True)))

    def _returns(self, stretch: Stretch) -> Tensor:
        """(L, N, T) targets of the values."""
        values_ahead = self._values.detach().gather(1, stretch.next_states.flatten(1)).view_as(stretch.rewards)
        return lambda_returns(
            stretch.rewards,
            values_ahead,
            None if stretch.alive is None else ~stretch.terminated,
            discount=self._source.discount,
            return_lambda=self._source.return_lambda,
        )

    def _losses(self, stretch: Stretch) -> Tensor:
        """(L,) loss of each learner on its own samples."""
        states = stretch.states.flatten(1)  # (L, M)
        chosen = states * self._num_actions + stretch.actions.flatten(1)
        log_chosen = self._log_policy.flatten(1).gather(1, chosen)
        entropy = -(self._log_policy.exp() * self._log_policy).sum(-1).gather(1, states)
        advantage = self._returns(stretch).flatten(1) - self._values.gather(1, states)
        losses = (
            self._source.value_weight * advantage.square()
            - log_chosen * advantage.detach()
            - self._source.entropy_weight * entropy
        )
        if stretch.alive is None:
            return losses.mean(1)
        alive = stretch.alive.flatten(1)
        return (losses * alive).sum(1) / alive.sum(1).clamp(min=1)

    def _gradient(self, stretch: Stretch) -> Tensor:
        """(L, P): the summed loss parts into the learners' own, since no row of parameters is in another's loss."""
        (gradient,) = torch.autograd.grad(self._losses(stretch).sum(), self._networks.parameters)
        if self._source.max_gradient_norm is not None:
            norm = gradient.norm(dim=1, keepdim=True)
            gradient = gradient * (self._source.max_gradient_norm / norm.clamp(min=1e-12)).clamp(max=1.0)
        return gradient

    def episode(self, *, frozen: bool = False) -> EpisodeBatch:
        """See `Learners.episode`."""
        if frozen:
            return play_tabular_episode(self._batch, self._greedy, None)
        self._step = 0
        shape = (self._batch.spec.episode_steps, len(self.task_ids))
        draws = torch.rand(shape, generator=self._generator, device=self._generator.device)

        def choose(step: int, state: Tensor) -> Tensor:
            cumulative = self._cumulative.index_select(0, self._first_row + state)  # (E, A)
            return (draws[step, :, None] > cumulative).sum(1).clamp_(max=self._num_actions - 1)

        return play_tabular_episode(self._batch, choose, self._learn)
