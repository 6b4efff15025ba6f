"""Proximal policy optimisation: the losses by hand, ends of episodes, learners apart, and what it learns."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from distillery.core.records import EpisodeBatch, Transition
from distillery.core.specs import Box, Discrete, Space, TaskSpec
from distillery.sources.ppo import PPO, PPOLearners, Samples, Stretch, clipped_losses, scaled_advantages
from distillery.tasks.base import TaskBatch, TaskDistribution
from distillery.tasks.dark_room import DarkRoom
from distillery.tasks.gymnasium_family import GymnasiumFamily

SMALL = {"num_episodes": 6, "num_actors": 3, "rollout_steps": 8, "num_minibatches": 2, "hidden_size": 16}
ROOM = {"width": 4, "height": 3, "num_validation": 2, "num_held_out": 2}
CARTPOLE = GymnasiumFamily(
    env_id="CartPole-v1",
    best_return=60,
    episode_steps=60,
    variations={"length": {"low": 0.4, "high": 0.8}},
    num_train=3,
    num_validation=1,
    num_held_out=1,
)


class Aim(TaskDistribution):
    """Hit a number that is shown, shifted by one that is not: each task has its own shift. A perfect step pays 0.

    With continuous actions a step pays the negative square of the miss; with whole numbers, 1 for each that is right.
    """

    num_tasks = 5
    shifts = torch.linspace(-0.4, 0.4, 5)

    def __init__(self, action: Space) -> None:
        super().__init__(num_validation=1, num_held_out=1, split_seed=0)
        self.spec = TaskSpec({"shown": Box((2,), -0.5, 0.5)}, action, 8)

    def batch(self, task_ids: np.ndarray, *, seed: int, device: torch.device | str = "cpu") -> "AimBatch":
        return AimBatch(self, task_ids, seed)

    def oracle_returns(self) -> np.ndarray:
        return np.zeros(5)


class AimBatch(TaskBatch):
    """E aims, each at a new place at every step."""

    can_terminate = False

    def __init__(self, aim: Aim, task_ids: np.ndarray, seed: int) -> None:
        self.spec, self.task_ids = aim.spec, torch.as_tensor(task_ids)
        self.shift = aim.shifts[self.task_ids][:, None]
        self.generator = torch.Generator().manual_seed(seed % 2**31)

    def reset(self, where: Tensor | None = None) -> Tensor:
        self.elapsed = 0
        self.shown = torch.rand(len(self.task_ids), 2, generator=self.generator) - 0.5
        return self.shown

    def step(self, actions: Tensor) -> Transition:
        if isinstance(self.spec.action, Box):
            rewards = -(actions - 10 * (self.shown + self.shift)).square().sum(1) / 100
        else:
            right = (self.shown + self.shift > 0).long() + torch.tensor([0, 1])
            rewards = (actions == right).float().sum(1)
        elapsed = self.elapsed + 1
        seen = self.reset()
        self.elapsed = elapsed
        over = torch.full((len(self.task_ids),), elapsed == 8)
        return Transition(seen, rewards, torch.zeros_like(over), over)


def equal(one: EpisodeBatch, other: EpisodeBatch) -> bool:
    return all(torch.equal(value, vars(other)[name]) for name, value in vars(one).items())


def stretches_of(learners: PPOLearners, num_episodes: int) -> list[Stretch]:
    kept, learn = [], learners._learn

    def keep(stretch: Stretch) -> None:
        kept.append(stretch)
        learn(stretch)

    learners._learn = keep
    for _ in range(num_episodes):
        learners.episode()
    del learners._learn
    return kept


def with_values(learners: PPOLearners, value: float) -> None:
    """Makes every observation worth the same."""
    with torch.no_grad():
        learners._critic.stack.parameters.zero_()
        learners._critic.stack.parameters[:, -1] = value


def test_clipped_losses_worked_by_hand() -> None:
    ratio = torch.tensor([1.5, 0.5, 1.5, 0.5, 1.1])
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0, 2.0])
    losses = clipped_losses(ratio.log() - 3.0, torch.full((5,), -3.0), advantages, 0.2)
    torch.testing.assert_close(losses, torch.tensor([-1.2, -0.5, 1.5, 0.8, -2.2]))


def test_what_has_moved_too_far_pulls_no_more() -> None:
    log_new = torch.tensor([1.5, 0.5, 1.5, 0.5]).log().requires_grad_()
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0])
    (gradient,) = torch.autograd.grad(clipped_losses(log_new, torch.zeros(4), advantages, 0.2).sum(), log_new)
    torch.testing.assert_close(gradient, torch.tensor([0.0, -0.5, 1.5, 0.0]))


def test_advantages_are_scaled_over_what_is_real() -> None:
    advantages = torch.tensor([[1.0, 3.0, 900.0], [5.0, 5.0, 5.0], [0.01, -0.01, 0.0]])
    weights = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
    scaled = scaled_advantages(advantages, weights)
    torch.testing.assert_close(scaled[0, :2], torch.tensor([-1.0, 1.0]))
    torch.testing.assert_close(scaled[1], torch.zeros(3))
    torch.testing.assert_close(scaled[2, :2], torch.tensor([0.1, -0.1]))  # 0.01 / 0.1: noise stays small


def test_losses_equal_the_formula_sample_by_sample() -> None:
    learners = PPO(**SMALL, entropy_weight=0.3).start(DarkRoom(**ROOM), np.array([6, 5]), seed=0)
    first, *_ = stretches_of(learners, 1)
    samples = learners._samples(first)
    with torch.no_grad():
        learners._policy.stack.parameters.add_(0.05)
    logs = learners._policy.stack.outputs(samples.inputs).log_softmax(-1)
    advantages = scaled_advantages(samples.returns - samples.values, samples.weights)
    for learner in range(2):
        losses = []
        for sample, action in enumerate(samples.actions[learner]):
            log_policy = logs[learner, sample]
            ratio = (log_policy[action] - samples.log_old[learner, sample]).exp()
            gain = min(ratio * advantages[learner, sample], ratio.clamp(0.8, 1.2) * advantages[learner, sample])
            losses.append(-gain + 0.3 * (log_policy.exp() * log_policy).sum())
        torch.testing.assert_close(learners._policy_losses(samples)[learner], torch.stack(losses).mean())
    values = learners._critic.stack.outputs(samples.inputs)[..., 0]
    torch.testing.assert_close(learners._value_losses(samples), (values - samples.returns).square().mean(1))


def test_the_end_of_time_is_no_end_of_the_task() -> None:
    source = PPO(**SMALL | {"rollout_steps": 60}, discount=0.9, return_lambda=1.0, reward_scale=2.0)
    learners = source.start(DarkRoom(**ROOM), np.array([0]), seed=0)
    (stretch,) = stretches_of(learners, 1)
    assert stretch.inputs.shape == (1, 3, 21, 7)
    with_values(learners, 10.0)
    returns = learners._samples(stretch).returns.view(1, 3, 20)
    torch.testing.assert_close(returns[..., -1], 2 * stretch.rewards[..., -1] + 9.0)
    torch.testing.assert_close(returns[..., -2], 2 * stretch.rewards[..., -2] + 0.9 * returns[..., -1])


def test_the_last_observation_is_what_it_looks_ahead_from() -> None:
    learners = PPO(**SMALL).start(DarkRoom(**ROOM), np.array([0]), seed=0)
    first, second, third = stretches_of(learners, 1)
    assert [stretch.rewards.shape[-1] for stretch in (first, second, third)] == [8, 8, 4]
    assert torch.equal(first.inputs[:, :, -1], second.inputs[:, :, 0])
    # Where an episode's last action led is seen nowhere else: a move of at most one cell.
    moved = (third.inputs[:, :, -1] - third.inputs[:, :, -2]).abs().sum(-1)
    assert moved.max() <= 2


def test_a_fall_is_an_end_and_padding_counts_nothing() -> None:
    source = PPO(**SMALL | {"rollout_steps": 60}, discount=0.9, return_lambda=1.0)
    learners = source.start(CARTPOLE, np.array([0, 1]), seed=1)
    (stretch,) = stretches_of(learners, 1)
    lengths = stretch.alive.sum(2)
    assert (lengths < 60).all()
    with_values(learners, 10.0)
    samples = learners._samples(stretch)
    returns = samples.returns.view(2, 3, 60)
    for learner, actor in np.ndindex(2, 3):
        length = int(lengths[learner, actor])
        left = torch.arange(length, 0, -1)
        torch.testing.assert_close(returns[learner, actor, :length], (1 - 0.9**left) / 0.1)
    assert torch.equal(samples.weights.view(2, 3, 60).bool(), stretch.alive)
    # Whatever the padding held, nothing would be learned from it.
    dead = ~stretch.alive
    poisoned = Stretch(
        inputs=torch.where(torch.cat([dead[:, :, :1] & False, dead], 2)[..., None], 7.0, stretch.inputs),
        actions=torch.where(dead, 1 - stretch.actions, stretch.actions),
        rewards=torch.where(dead, 1e4, stretch.rewards),
        terminated=stretch.terminated,
        alive=stretch.alive,
    )
    other = learners._samples(poisoned)
    torch.testing.assert_close(learners._policy_losses(other), learners._policy_losses(samples))
    torch.testing.assert_close(learners._value_losses(other), learners._value_losses(samples))


def test_records_of_falls() -> None:
    learners = PPO(**SMALL).start(CARTPOLE, np.array([0, 1]), seed=0)
    np.testing.assert_array_equal(learners.task_ids, [0, 0, 0, 1, 1, 1])
    for frozen in (False, True, False):
        episode = learners.episode(frozen=frozen)
        assert episode.observations.shape == (6, 60, 4) and episode.observations.dtype == torch.float32
        assert episode.actions.shape == (6, 60) and episode.actions.dtype == torch.uint8
        assert torch.equal(episode.terminated, episode.num_steps < 60)
        assert torch.equal(episode.returns, episode.num_steps.float())
        if not frozen:
            assert episode.terminated.any() and len(set(episode.num_steps.tolist())) > 1


def test_a_learners_weights_are_those_it_has_alone() -> None:
    source = PPO(**SMALL, learning_rate=1e-2)
    for tasks in (DarkRoom(**ROOM), CARTPOLE):
        learners = source.start(tasks, np.array([0, 1, 2]), seed=0)
        alone = source.start(tasks, np.array([1]), seed=1)
        first, *_ = stretches_of(source.start(tasks, np.array([0, 1, 2]), seed=2), 1)
        own = Stretch(**{name: None if x is None else x[1:2] for name, x in vars(first).items()})
        samples, own_samples = learners._samples(first), None
        with torch.no_grad():
            for ours, theirs in ((alone._policy, learners._policy), (alone._critic, learners._critic)):
                ours.stack.parameters.copy_(theirs.stack.parameters[1:2])
        for _ in range(3):
            samples, own_samples = learners._samples(first), alone._samples(own)
            for one, which in ((learners, samples), (alone, own_samples)):
                one._policy.improve(one._policy_losses(which), None)
                one._critic.improve(one._value_losses(which), None)
        for ours, theirs in ((alone._policy, learners._policy), (alone._critic, learners._critic)):
            torch.testing.assert_close(ours.stack.parameters, theirs.stack.parameters[1:2], atol=1e-5, rtol=1e-3)


def test_one_learners_loss_reaches_no_other_weights() -> None:
    learners = PPO(**SMALL).start(DarkRoom(**ROOM), np.array([0, 5, 11]), seed=0)
    first, *_ = stretches_of(learners, 1)
    losses = learners._policy_losses(learners._samples(first))
    (gradient,) = torch.autograd.grad(losses[1], learners._policy.stack.parameters)
    assert gradient[1].any() and not gradient[0].any() and not gradient[2].any()


def test_every_sample_is_in_one_minibatch_of_each_pass() -> None:
    source = PPO(**SMALL | {"rollout_steps": 60, "num_epochs": 3, "num_minibatches": 7})
    learners, parts = source.start(DarkRoom(**ROOM), np.array([0, 5]), seed=0), []
    losses_of = learners._value_losses

    def losses(samples: Samples) -> Tensor:
        parts.append(samples.returns)
        return losses_of(samples)

    learners._value_losses = losses
    (stretch,) = stretches_of(learners, 1)
    assert len(parts) == 21
    for epoch in range(3):
        whole = torch.cat(parts[7 * epoch : 7 * epoch + 7], 1)
        assert whole.shape == (2, 60) == stretch.rewards.flatten(1).shape
        assert torch.equal(whole.sort(1).values, torch.cat(parts[:7], 1).sort(1).values)
    assert not torch.equal(torch.cat(parts[:7], 1), torch.cat(parts[7:14], 1))


@pytest.mark.parametrize(
    "tasks",
    [DarkRoom(**ROOM), CARTPOLE, Aim(Box((2,), -10, 10)), Aim(Discrete((2, 3)))],
    ids=["discrete", "falls", "continuous", "several"],
)
def test_a_run_repeats_and_frozen_episodes_learn_nothing(tasks: TaskDistribution) -> None:
    source, ids = PPO(**SMALL), np.array([0, 2])
    first, again = (list(source.run(tasks, ids, seed=4)) for _ in range(2))
    assert len(first) == 6
    assert all(equal(*pair) for pair in zip(first, again, strict=True))
    assert not all(equal(*pair) for pair in zip(first, source.run(tasks, ids, seed=5), strict=True))
    learners = source.start(tasks, ids, seed=6)
    before = [network.stack.parameters.detach().clone() for network in (learners._policy, learners._critic)]
    learners.episode(frozen=True)
    for network, parameters in zip((learners._policy, learners._critic), before, strict=True):
        assert torch.equal(network.stack.parameters, parameters)
    learners.episode()
    assert not torch.equal(learners._policy.stack.parameters, before[0])
    assert not torch.equal(learners._critic.stack.parameters, before[1])


def test_the_first_policy_is_nearly_uniform_and_learners_start_apart() -> None:
    learners = PPO(num_episodes=1).start(DarkRoom(), np.array([3, 3]), seed=0)
    parameters = learners._parameters(learners._batch.reset()).view(2, 8, 5)
    assert (parameters.softmax(-1) - 0.2).abs().max() < 0.02
    assert not torch.equal(parameters[0], parameters[1])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("tasks", [DarkRoom(**ROOM), CARTPOLE], ids=["discrete", "falls"])
def test_it_runs_on_a_gpu(tasks: TaskDistribution) -> None:
    for episode in PPO(**SMALL).run(tasks, np.array([0, 1]), seed=0, device="cuda"):
        assert all(value.device.type == "cuda" for value in vars(episode).values())


def mean_returns(learners: PPOLearners, num_episodes: int) -> Tensor:
    """(num_episodes,)"""
    return torch.stack([learners.episode().returns.mean() for _ in range(num_episodes)])


def test_it_learns_the_dark_room() -> None:
    room, goals = DarkRoom(width=5, height=5, num_validation=3, num_held_out=4), np.array([0, 7, 24])
    learners = PPO(num_episodes=16, num_actors=16, learning_rate=3e-3).start(room, goals, seed=0)
    returns = mean_returns(learners, 16)
    oracle = room.oracle_returns()[goals].mean()
    assert returns[0] < 2.0
    assert returns[-3:].mean() > 0.9 * oracle
    assert learners.episode(frozen=True).returns.mean() > 0.95 * oracle


def test_it_learns_to_balance() -> None:
    source = PPO(num_episodes=12, num_actors=8, rollout_steps=30, learning_rate=5e-3)
    learners = source.start(CARTPOLE, np.array([0, 1]), seed=0)
    returns = mean_returns(learners, 12)
    assert returns[:2].mean() < 30
    assert learners.episode(frozen=True).returns.mean() > 50


AIMER = {"num_actors": 16, "num_epochs": 6, "num_minibatches": 2, "learning_rate": 3e-3, "hidden_size": 32}


def test_it_learns_continuous_actions() -> None:
    source = PPO(num_episodes=12, **AIMER, discount=0.0, entropy_weight=0.0)
    learners = source.start(Aim(Box((2,), -10, 10)), np.array([1, 3]), seed=0)
    returns = mean_returns(learners, 12)
    # Aiming at the middle misses each number by 1/12 + shift^2 on average, over two numbers and 8 steps.
    middle = -8 * 2 * (1 / 12 + 0.2**2)
    assert returns[0] < 2 * middle
    episode = learners.episode(frozen=True)
    assert episode.returns.mean() > 0.15 * middle
    assert episode.actions.dtype == torch.float32 and episode.actions.shape == (32, 8, 2)


def test_it_learns_actions_of_several_numbers() -> None:
    source = PPO(num_episodes=20, **AIMER, discount=0.0)
    learners = source.start(Aim(Discrete((2, 3))), np.array([1, 2]), seed=0)
    returns = mean_returns(learners, 20)
    assert returns[:2].mean() < 9  # by chance 8 * (1/2 + 1/3)
    assert learners.episode(frozen=True).returns.mean() > 15  # of 16


@pytest.mark.parametrize(
    "settings",
    [
        {"num_episodes": 0},
        {"num_actors": 0},
        {"rollout_steps": -1},
        {"num_epochs": 0},
        {"num_minibatches": 0},
        {"num_layers": 0},
        {"hidden_size": 0},
        {"learning_rate": 0.0},
        {"learning_rate": math.nan},
        {"clip_range": 0.0},
        {"discount": 1.5},
        {"return_lambda": -0.5},
        {"entropy_weight": -0.01},
        {"reward_scale": 0.0},
        {"adam_betas": [0.9, 1.0]},
        {"adam_betas": [0.9]},
        {"adam_epsilon": 0.0},
        {"max_gradient_norm": 0.0},
    ],
    ids=str,
)
def test_bad_settings_are_named(settings: dict) -> None:
    ((name, value),) = settings.items()
    with pytest.raises(ValueError, match=f"ppo {name}.*{str(value).replace('[', '.')}"):
        PPO(**{"num_episodes": 10} | settings)
