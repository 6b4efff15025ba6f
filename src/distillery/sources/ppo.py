"""Proximal policy optimisation from observations, all learners advanced together.

Source: Schulman et al., Proximal Policy Optimization Algorithms (2017), arXiv 1707.06347.

    loss = -mean[ min(p * A, clip(p, 1 - clip_range, 1 + clip_range) * A) + entropy_weight * entropy(pi(.|o)) ]
    p    = pi(a|o) / pi_old(a|o),      A = G - V(o), scaled to mean 0 and deviation 1 in each minibatch
    G_t  = r_t + discount * ((1 - lambda) * V(o_t+1) + lambda * G_t+1),      G = V beyond a stretch's last step

The values are fitted to G, the mean of (V(o) - G)^2, by a network of their own; G - V is the paper's advantage (its
equation 11). One stretch is `rollout_steps` steps of all actors of a learner; it is gone through `num_epochs` times,
in a new order each time, in `num_minibatches` parts. A stretch ends with the episode at the latest. An episode that
runs out of time still looks ahead, from its last observation, for a time limit is no end of the task; one that
terminates does not. What pads an episode that ended early counts nothing.

Ours differs from the paper in ReLU units, He's initial weights, a first policy that is nearly uniform, advantages
scaled by minibatch (their deviation counted as 0.1 at least), and gradients cut to a longest norm; there is no
schedule of the learning rate or the clip range. Continuous actions are cut to their bounds, and the densities compared
are those of the actions after the cut. Networks are perceptrons on whole rows
(`distillery.layers.perceptrons.RowInputs`): fine for vectors, grids of symbols and positions, poor for large images.

Mean return of 16 actors on one goal in the corner of Dark Room, whose oracle gets 13, and of an episode of Gymnasium's
Pendulum with varied physics, its rewards shifted so that a random agent gets 1 and a good controller 105:

    episodes                             0     10     20     30     60
    Dark Room, learning_rate=1e-3      0.2   12.2   12.8   13.0   13.0
    Dark Room, learning_rate=3e-4      0.2    9.4   12.5   12.9   12.9
    Pendulum, learning_rate=1e-3, num_epochs=10, discount=0.95, entropy_weight=0
                                        -7     50     88     93    101

Letters: L learners, N actors of each, E = L * N streams, T environment steps of a stretch, M = N * T samples of it,
D numbers of an observation, K numbers of an action, I network inputs, P parameters of an action.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from distillery.core.protocols import TaskDistribution
from distillery.core.records import EpisodeBatch, Transition
from distillery.core.returns import lambda_returns
from distillery.core.rollouts import play_episode
from distillery.core.seeding import stream_seed, torch_generator
from distillery.layers.actions import entropy, likeliest, log_probability, num_action_parameters, sample
from distillery.layers.perceptrons import RowInputs, StackedAdam, StackedPerceptrons
from distillery.sources.base import Learners, Source, require_betas, require_counts, require_fraction, require_positive

# Where nobody has met a reward yet, advantages are noise; scaled up to 1 it would settle the policy by chance.
LEAST_DEVIATION = 0.1


class PPO(Source):
    """Proximal policy optimisation with many actors per learner; each actor's stream is a history of its own.

    Args:
        num_episodes: length of one history, in episodes of one actor.
        num_actors: streams that share a learner's weights.
        rollout_steps: steps of every actor between two updates, at most.
        num_epochs: how often an update goes through its samples.
        num_minibatches: parts of one pass.
        learning_rate: of Adam.
        clip_range: how far probabilities may move from the old ones, as a ratio, before their gain stops counting.
        discount: from 0 to 1.
        return_lambda: how far returns trust rewards (1) over the value of the next observation (0).
        entropy_weight: of the bonus for undecided policies.
        reward_scale: what rewards are multiplied by for learning, not in the histories; values are learned fastest
            where returns are around 1 to 10.
        num_layers: hidden layers of the policy, and of the values.
        hidden_size: units of each.
        adam_betas: decay of Adam's two averages.
        adam_epsilon: added to the root of the second.
        max_gradient_norm: longest gradient of one network of one learner; None leaves gradients alone.

    Raises:
        ValueError: a setting is out of range.
    """

    def __init__(
        self,
        *,
        num_episodes: int,
        num_actors: int = 8,
        rollout_steps: int = 128,
        num_epochs: int = 4,
        num_minibatches: int = 4,
        learning_rate: float = 1e-3,
        clip_range: float = 0.2,
        discount: float = 0.99,
        return_lambda: float = 0.95,
        entropy_weight: float = 0.01,
        reward_scale: float = 1.0,
        num_layers: int = 2,
        hidden_size: int = 64,
        adam_betas: Sequence[float] = (0.9, 0.999),
        adam_epsilon: float = 1e-5,
        max_gradient_norm: float | None = 0.5,
    ) -> None:
        require_counts(
            "ppo",
            num_episodes=num_episodes,
            num_actors=num_actors,
            rollout_steps=rollout_steps,
            num_epochs=num_epochs,
            num_minibatches=num_minibatches,
            num_layers=num_layers,
            hidden_size=hidden_size,
        )
        require_positive(
            "ppo",
            learning_rate=learning_rate,
            clip_range=clip_range,
            reward_scale=reward_scale,
            adam_epsilon=adam_epsilon,
            max_gradient_norm=max_gradient_norm,
        )
        require_fraction("ppo", discount=discount, return_lambda=return_lambda)
        if not 0.0 <= entropy_weight < math.inf:
            raise ValueError(f"ppo entropy_weight must not be negative, got {entropy_weight}")
        require_betas("ppo", adam_betas)
        self.num_episodes, self.num_actors, self.rollout_steps = num_episodes, num_actors, rollout_steps
        self.num_epochs, self.num_minibatches, self.learning_rate = num_epochs, num_minibatches, learning_rate
        self.clip_range, self.discount, self.return_lambda = clip_range, discount, return_lambda
        self.entropy_weight, self.reward_scale = entropy_weight, reward_scale
        self.num_layers, self.hidden_size = num_layers, hidden_size
        self.adam_betas, self.adam_epsilon = tuple(adam_betas), adam_epsilon
        self.max_gradient_norm = max_gradient_norm

    def start(
        self, tasks: TaskDistribution, task_ids: np.ndarray, *, seed: int, device: torch.device | str = "cpu"
    ) -> "PPOLearners":
        """One learner for each task id; its `num_actors` streams stand next to each other."""
        return PPOLearners(self, tasks, task_ids, seed=seed, device=device)


@dataclass(frozen=True)
class Stretch:
    """Consecutive steps of all actors, between two updates.

    Attributes:
        inputs: (L, N, T + 1, I) float32, before each action, and after the last one.
        actions: (L, N, T[, K]).
        rewards: (L, N, T) float32.
        terminated: (L, N, T) bool, the action ended the task.
        alive: (L, N, T) bool, False where the episode was over before the action; None says nowhere.
    """

    inputs: Tensor
    actions: Tensor
    rewards: Tensor
    terminated: Tensor
    alive: Tensor | None


@dataclass(frozen=True)
class Samples:
    """What a policy is improved on, by learner.

    Attributes:
        inputs: (L, M, I) float32.
        actions: (L, M[, K]).
        log_old: (L, M) float32, log-probability of each action by the policy that took it.
        returns: (L, M) float32, targets of the values.
        values: (L, M) float32, what they were before.
        weights: (L, M) float32, 1 for real samples and 0 for padding.
    """

    inputs: Tensor
    actions: Tensor
    log_old: Tensor
    returns: Tensor
    values: Tensor
    weights: Tensor

    def part(self, order: Tensor) -> "Samples":
        """Those that (L, m) indices name, for each learner its own."""
        learners = torch.arange(len(order), device=order.device)[:, None]
        return Samples(**{name: value[learners, order] for name, value in vars(self).items()})


def _weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """(L,) means over samples, 0 for a learner all of whose weights are 0."""
    return (values * weights).sum(1) / weights.sum(1).clamp(min=1.0)


def scaled_advantages(advantages: Tensor, weights: Tensor) -> Tensor:
    """(L, M) advantages with mean 0 and deviation 1 over each learner's real samples; less if they hardly differ."""
    centred = advantages - _weighted_mean(advantages, weights)[:, None]
    deviation = _weighted_mean(centred.square(), weights)[:, None].sqrt()
    return centred / deviation.clamp(min=LEAST_DEVIATION)


def clipped_losses(log_new: Tensor, log_old: Tensor, advantages: Tensor, clip_range: float) -> Tensor:
    """(L, M) of the paper's equation 7, to be minimised."""
    ratio = (log_new - log_old).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1.0 - clip_range, 1.0 + clip_range) * advantages)


class _Network:
    """L perceptrons with their optimiser."""

    def __init__(self, source: PPO, num_learners: int, inputs: RowInputs, size: int, random: torch.Generator) -> None:
        sizes = (inputs.width, *[source.hidden_size] * source.num_layers, size)
        self.stack = StackedPerceptrons(num_learners, sizes, inputs.num_active, random)
        self._max_norm = source.max_gradient_norm
        self._adam = StackedAdam(
            self.stack.parameters,
            learning_rate=source.learning_rate,
            betas=source.adam_betas,
            epsilon=source.adam_epsilon,
        )

    def improve(self, losses: Tensor, active: Tensor | None) -> None:
        """One step down (L,) losses, each of which depends on its own learner's weights alone."""
        (gradient,) = torch.autograd.grad(losses.sum(), self.stack.parameters)
        if self._max_norm is not None:
            norm = gradient.norm(dim=1, keepdim=True)
            gradient = gradient * (self._max_norm / norm.clamp(min=1e-12)).clamp(max=1.0)
        self._adam.step(gradient, active)


class PPOLearners(Learners):
    """L learners, and the environments of their L * N actors; actor n of learner l is stream ``l * N + n``."""

    def __init__(
        self,
        source: PPO,
        tasks: TaskDistribution,
        task_ids: np.ndarray,
        *,
        seed: int,
        device: torch.device | str,
    ) -> None:
        self.task_ids = np.repeat(np.asarray(task_ids), source.num_actors)
        self._source = source
        self._batch = tasks.batch(self.task_ids, seed=stream_seed(seed, "tasks"), device=device)
        self._generator = torch_generator(seed, "ppo", device=device)
        self._space = self._batch.spec.action
        self._encode = RowInputs(self._batch.spec)
        num_parameters = num_action_parameters(self._space)
        self._no_policy = torch.zeros(len(self.task_ids), num_parameters, device=device)
        self._policy = _Network(source, len(task_ids), self._encode, num_parameters, self._generator)
        self._critic = _Network(source, len(task_ids), self._encode, 1, self._generator)
        self._steps: list[tuple[Tensor, Tensor, Transition, Tensor | None]] = []
        self._step = 0
        self._all_over = False

    def _by_learner(self, values: Tensor) -> Tensor:
        """(E, ...) to (L, N, ...)."""
        return values.unflatten(0, (-1, self._source.num_actors))

    @torch.no_grad()
    def _parameters(self, observations: Tensor) -> Tensor:
        """(E, P) of the current policy."""
        return self._policy.stack.outputs(self._by_learner(self._encode(observations))).flatten(0, 1)

    def _choose(self, step: int, observations: Tensor) -> Tensor:
        # Padding is drawn for nobody: so that a learner's draws do not depend on how long the others' episodes last.
        parameters = self._no_policy if self._all_over else self._parameters(observations)
        return sample(self._space, parameters, self._generator)

    def _greedy(self, step: int, observations: Tensor) -> Tensor:
        return likeliest(self._space, self._parameters(observations))

    def _watch(self, observations: Tensor, actions: Tensor, transition: Transition, alive: Tensor | None) -> None:
        self._steps.append((observations, actions, transition, alive))
        self._step += 1
        if len(self._steps) == self._source.rollout_steps or self._step == self._batch.spec.episode_steps:
            stretch, self._steps = self._stretch(), []
            self._learn(stretch)
            # Asked once a stretch and not at every step, for on a GPU the answer has to be waited for.
            self._all_over = alive is not None and not bool((alive & ~transition.terminated).any())

    def _stretch(self) -> Stretch:
        observations, actions, transitions, alive = zip(*self._steps, strict=True)
        seen = torch.stack([*observations, transitions[-1].observations], 1)  # (E, T + 1, D)
        return Stretch(
            inputs=self._by_learner(self._encode(seen)),
            actions=self._by_learner(torch.stack(actions, 1)),
            rewards=self._by_learner(torch.stack([after.rewards for after in transitions], 1)),
            terminated=self._by_learner(torch.stack([after.terminated for after in transitions], 1)),
            alive=None if alive[0] is None else self._by_learner(torch.stack(alive, 1)),
        )

    @torch.no_grad()
    def _samples(self, stretch: Stretch) -> Samples:
        """What the stretch teaches, by the weights that played it."""
        values = self._critic.stack.outputs(stretch.inputs.flatten(1, 2))  # (L, N * (T + 1), 1)
        values = values.view(stretch.inputs.shape[:3])
        returns = lambda_returns(
            stretch.rewards * self._source.reward_scale,
            values[..., 1:],
            None if stretch.alive is None else ~stretch.terminated,
            discount=self._source.discount,
            return_lambda=self._source.return_lambda,
        )
        inputs, actions = stretch.inputs[:, :, :-1].flatten(1, 2), stretch.actions.flatten(1, 2)
        return Samples(
            inputs=inputs,
            actions=actions,
            log_old=log_probability(self._space, self._policy.stack.outputs(inputs), actions),
            returns=returns.flatten(1),
            values=values[..., :-1].flatten(1),
            weights=torch.ones_like(returns).flatten(1) if stretch.alive is None else stretch.alive.flatten(1).float(),
        )

    def _policy_losses(self, samples: Samples) -> Tensor:
        """(L,) loss of each learner's policy on its own samples."""
        parameters = self._policy.stack.outputs(samples.inputs)
        losses = clipped_losses(
            log_probability(self._space, parameters, samples.actions),
            samples.log_old,
            scaled_advantages(samples.returns - samples.values, samples.weights),
            self._source.clip_range,
        )
        bonus = self._source.entropy_weight * entropy(self._space, parameters)
        return _weighted_mean(losses - bonus, samples.weights)

    def _value_losses(self, samples: Samples) -> Tensor:
        """(L,) squared error of each learner's values."""
        values = self._critic.stack.outputs(samples.inputs)[..., 0]
        return _weighted_mean((values - samples.returns).square(), samples.weights)

    def _learn(self, stretch: Stretch) -> None:
        num_samples = stretch.rewards[0].numel()
        shape = (self._source.num_epochs, len(stretch.rewards), num_samples)
        draws = torch.rand(shape, generator=self._generator, device=self._generator.device)
        if self._all_over:
            return
        samples = self._samples(stretch)
        for order in (order for epoch in draws.argsort(2) for order in epoch.chunk(self._source.num_minibatches, 1)):
            part = samples.part(order)
            active = None if stretch.alive is None else part.weights.any(1)
            self._policy.improve(self._policy_losses(part), active)
            self._critic.improve(self._value_losses(part), active)

    def episode(self, *, frozen: bool = False) -> EpisodeBatch:
        """See `Learners.episode`."""
        if frozen:
            return play_episode(self._batch, self._greedy)
        self._step, self._all_over = 0, False
        return play_episode(self._batch, self._choose, self._watch)
