"""Stacked actor-critics: returns and losses by hand, one learner beside others and alone, and what they learn."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from distillery.layers.perceptrons import StackedAdam
from distillery.sources.a2c import A2C, A2CLearners, Stretch
from distillery.tasks.dark_key_to_door import DarkKeyToDoor
from distillery.tasks.dark_room import DarkRoom

SMALL = {"num_episodes": 10, "num_actors": 4, "rollout_steps": 6, "num_layers": 2, "hidden_size": 16}
ROOM = {"width": 4, "height": 3, "num_validation": 2, "num_held_out": 2}


def record_stretches(learners: A2CLearners, num_episodes: int) -> list[tuple[Stretch, Tensor]]:
    """Plays, and keeps each update's stretch with its gradient."""
    kept, gradient_of = [], learners._gradient

    def gradient(stretch: Stretch) -> Tensor:
        kept.append((stretch, gradient_of(stretch)))
        return kept[-1][1]

    learners._gradient = gradient
    for _ in range(num_episodes):
        learners.episode()
    del learners._gradient
    return kept


def of_learner(stretch: Stretch, learner: int) -> Stretch:
    return Stretch(**{name: None if x is None else x[learner : learner + 1] for name, x in vars(stretch).items()})


@pytest.mark.parametrize("termination", ["never", "at_goal"])
def test_a_learners_gradients_and_weights_are_those_it_has_alone(termination: str) -> None:
    room = DarkRoom(**ROOM, termination=termination)
    source = A2C(**SMALL, learning_rate=1e-2, max_gradient_norm=0.1)
    learners = source.start(room, np.array([0, 5, 11]), seed=0)
    alone = source.start(room, np.array([5]), seed=1)
    with torch.no_grad():
        alone._networks.parameters.copy_(learners._networks.parameters[1:2])
    alone._evaluate()
    for stretch, gradient in record_stretches(learners, 5):
        assert gradient.abs().amax(1).min() > 0 or stretch.alive is not None
        own = of_learner(stretch, 1)
        torch.testing.assert_close(alone._gradient(own), gradient[1:2], atol=1e-6, rtol=1e-3)
        alone._adam.step(gradient[1:2], None if own.alive is None else own.alive.any(2).any(1))
        alone._evaluate()
    torch.testing.assert_close(alone._networks.parameters, learners._networks.parameters[1:2])


def test_one_learners_loss_reaches_no_other_weights() -> None:
    learners = A2C(**SMALL).start(DarkRoom(**ROOM), np.array([0, 5, 11]), seed=0)
    (stretch, _), *_ = record_stretches(learners, 1)
    (gradient,) = torch.autograd.grad(learners._losses(stretch)[1], learners._networks.parameters)
    assert gradient[1].any()
    assert not gradient[0].any()
    assert not gradient[2].any()


def plain_outputs(learners: A2CLearners, learner: int, cell: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Log-policy (A,) and value of one learner in one cell, by an ordinary network on the cell's one-hot axes."""
    hidden = torch.zeros(ROOM["width"] + ROOM["height"])
    hidden[cell[0]] = hidden[ROOM["width"] + cell[1]] = 1.0
    row, first = learners._networks.parameters[learner].detach(), 0
    for size_in, size_out in ((7, 16), (16, 16), (16, 6)):
        weight = row[first : first + size_in * size_out].view(size_in, size_out)
        bias = row[first + size_in * size_out : first + (size_in + 1) * size_out]
        first += (size_in + 1) * size_out
        hidden = hidden @ weight + bias
        if size_out == 16:
            hidden = hidden.relu()
    assert first == len(row)
    return hidden[:5].log_softmax(0), hidden[5]


@pytest.mark.parametrize("termination", ["never", "at_goal"])
def test_losses_equal_the_formula_sample_by_sample(termination: str) -> None:
    room = DarkRoom(**ROOM, termination=termination)
    source = A2C(**SMALL, discount=0.9, return_lambda=0.8, entropy_weight=0.3, value_weight=0.7)
    learners = source.start(room, np.array([6, 5]), seed=0)
    (stretch, _), *_ = record_stretches(learners, 1)
    losses = learners._losses(stretch)  # by the weights after the episode
    for learner in range(2):
        expected = []
        for actor in range(source.num_actors):
            path = [(int(s) % 4, int(s) // 4) for s in stretch.states[learner, actor]]
            end = int(stretch.next_states[learner, actor, -1])
            values = [plain_outputs(learners, learner, cell)[1] for cell in [*path, (end % 4, end // 4)]]
            ahead = values[-1]
            for step in reversed(range(source.rollout_steps)):
                at = (learner, actor, step)
                if termination == "at_goal" and stretch.terminated[at]:
                    ahead = torch.tensor(0.0)
                else:
                    ahead = 0.2 * values[step + 1] + 0.8 * ahead
                ahead = stretch.rewards[at] + 0.9 * ahead
                log_policy, value = plain_outputs(learners, learner, path[step])
                entropy = -(log_policy.exp() * log_policy).sum()
                log_chosen = log_policy[stretch.actions[at]]
                if termination == "never" or stretch.alive[at]:
                    expected.append(0.7 * (ahead - value) ** 2 - log_chosen * (ahead - value) - 0.3 * entropy)
        torch.testing.assert_close(losses[learner], torch.stack(expected).mean())


def test_stacked_adam_is_adam() -> None:
    generator = torch.Generator().manual_seed(0)
    ours = torch.randn(3, 7, generator=generator)
    theirs = ours.clone().requires_grad_()
    stacked = StackedAdam(ours, learning_rate=0.1, betas=(0.9, 0.999), epsilon=1e-6)
    single = torch.optim.Adam([theirs], lr=0.1, betas=(0.9, 0.999), eps=1e-6)
    for _ in range(20):
        theirs.grad = torch.randn(3, 7, generator=generator)
        stacked.step(theirs.grad, None)
        single.step()
    torch.testing.assert_close(ours, theirs.detach())


def test_stacked_adam_leaves_the_inactive_alone() -> None:
    gradients = torch.randn(6, 2, 5, generator=torch.Generator().manual_seed(0))
    both, one = torch.ones(2, 5), torch.ones(1, 5)
    stacked, single = (StackedAdam(x, learning_rate=0.1, betas=(0.9, 0.999), epsilon=1e-6) for x in (both, one))
    for update, gradient in enumerate(gradients):
        before = both.clone()
        stacked.step(gradient, torch.tensor([True, update % 2 == 0]))
        if update % 2 == 0:
            single.step(gradient[1:], None)
        else:
            assert torch.equal(both[1], before[1])
        assert not torch.equal(both[0], before[0])
    torch.testing.assert_close(both[1:], one)


def test_gradients_are_clipped_learner_by_learner() -> None:
    room, ids = DarkRoom(**ROOM), np.array([6, 0, 11])
    free, clipped = (A2C(**SMALL, max_gradient_norm=norm).start(room, ids, seed=0) for norm in (None, 0.05))
    (_, gradient), *_ = record_stretches(free, 1)
    (_, short), *_ = record_stretches(clipped, 1)
    norms = gradient.norm(dim=1)
    assert norms.max() > 0.05
    torch.testing.assert_close(short.norm(dim=1), norms.clamp(max=0.05))
    torch.testing.assert_close(short / short.norm(dim=1, keepdim=True), gradient / norms[:, None])


@pytest.mark.parametrize(("rollout_steps", "lengths"), [(5, [5, 5, 5, 5]), (6, [6, 6, 6, 2]), (20, [20]), (50, [20])])
def test_a_stretch_ends_with_the_episode(rollout_steps: int, lengths: list[int]) -> None:
    source = A2C(**SMALL | {"rollout_steps": rollout_steps})
    learners = source.start(DarkRoom(**ROOM), np.array([0, 5]), seed=0)
    for _ in range(2):
        stretches = record_stretches(learners, 1)
        assert [stretch.rewards.shape for stretch, _ in stretches] == [(2, 4, length) for length in lengths]


def test_the_end_of_time_is_no_end_of_the_task() -> None:
    source = A2C(**SMALL | {"rollout_steps": 20}, discount=0.9, return_lambda=1.0)
    learners = source.start(DarkRoom(**ROOM), np.array([0]), seed=0)
    ((stretch, _),) = record_stretches(learners, 1)
    with torch.no_grad():
        learners._networks.parameters.zero_()
        learners._networks.parameters[:, -1] = 10.0  # the value of every state
    learners._evaluate()
    last_rewards = stretch.rewards[..., -1]
    torch.testing.assert_close(learners._returns(stretch)[..., -1], last_rewards + 9.0)


def test_actions_are_drawn_from_the_policy() -> None:
    source = A2C(**SMALL | {"num_actors": 40_000})
    learners = source.start(DarkRoom(**ROOM), np.array([0]), seed=0)
    with torch.no_grad():
        learners._networks.parameters.zero_()
        learners._networks.parameters[:, -6:-1] = torch.tensor([0.1, 0.4, 0.2, 0.25, 0.05]).log()
    learners._evaluate()
    shares = torch.bincount(learners.episode().actions[:, 0].long(), minlength=5) / 40_000
    torch.testing.assert_close(shares, torch.tensor([0.1, 0.4, 0.2, 0.25, 0.05]), atol=0.012, rtol=0.0)
    first = plain_outputs(learners, 0, (2, 1))[0].argmax()
    assert (learners.episode(frozen=True).actions[:, 0] == first).all()


def test_the_first_policy_is_nearly_uniform_and_learners_start_apart() -> None:
    learners = A2C(num_episodes=1).start(DarkRoom(), np.array([3, 3]), seed=0)
    policy = learners._log_policy.detach().exp()
    assert (policy - 0.2).abs().max() < 0.02
    assert not torch.equal(policy[0], policy[1])
    assert policy.shape == (2, 81, 5)
    # Two hot inputs: 18 x 128, then two of 128 x 128, then five logits and a value.
    assert learners._networks.parameters.shape[1] == 19 * 128 + 2 * 129 * 128 + 129 * 6


def test_it_learns_the_room_at_its_published_size() -> None:
    room, goals = DarkRoom(), np.array([40, 32, 59, 12, 70, 9])
    source = A2C(num_episodes=150, rollout_steps=20, learning_rate=5e-4)
    learners = source.start(room, goals, seed=0)
    returns = torch.stack([learners.episode().returns for _ in range(150)]).view(150, 6, 100)
    oracle = torch.as_tensor(room.oracle_returns()[goals])
    assert returns[:5].mean() < 2.0
    assert returns[-10:].mean() > 0.9 * oracle.mean()
    assert learners.episode(frozen=True).returns.mean() > 0.8 * oracle.mean()


def test_it_learns_where_episodes_end_at_the_goal() -> None:
    room, goals = DarkRoom(termination="at_goal"), np.array([32, 59, 12, 70])
    source = A2C(num_episodes=60, rollout_steps=10, learning_rate=1e-3, hidden_size=64)
    learners = source.start(room, goals, seed=0)
    episodes = [learners.episode() for _ in range(60)]
    assert episodes[0].terminated.float().mean() < 0.4
    assert episodes[-1].terminated.float().mean() > 0.95
    assert episodes[-1].num_steps.float().mean() < 0.7 * episodes[0].num_steps.float().mean()


def test_entropy_starts_near_its_bound() -> None:
    learners = A2C(**SMALL, entropy_weight=1.0, value_weight=0.0).start(DarkRoom(**ROOM), np.array([0]), seed=0)
    with torch.no_grad():
        learners._networks.parameters.zero_()
    learners._evaluate()
    ((stretch, _), *_) = record_stretches(A2C(**SMALL).start(DarkRoom(**ROOM), np.array([0]), seed=0), 1)
    # No values and a uniform policy: only returns weigh log(1/5), and the bonus is log 5.
    expected = math.log(5) * learners._returns(stretch).mean().item() - math.log(5)
    assert learners._losses(stretch).item() == pytest.approx(expected, abs=1e-5)


def test_states_tell_what_observations_hide() -> None:
    room, ids = DarkKeyToDoor(width=3, height=3, num_train=None, num_validation=2, num_held_out=2), np.array([5, 7])
    by_observation, by_state = (
        A2C(**SMALL, reads=reads).start(room, ids, seed=0) for reads in ("observation", "state")
    )
    num_states = 27
    assert by_observation._inputs.shape == (num_states, 6)
    assert torch.equal(by_state._inputs, torch.eye(num_states))
    without_key, with_key = by_observation._log_policy[:, :9], by_observation._log_policy[:, 9:18]
    assert torch.equal(without_key, with_key)
    assert not torch.isclose(by_state._log_policy[:, :9], by_state._log_policy[:, 9:18]).all(-1).any()


def test_one_actor_learns_from_key_to_door() -> None:
    room, ids = DarkKeyToDoor(width=4, height=4, episode_steps=30, num_train=None), np.array([3, 100, 202, 155])
    source = A2C(
        num_episodes=250,
        num_actors=1,
        rollout_steps=30,
        learning_rate=1e-2,
        num_layers=1,
        hidden_size=32,
        reads="state",
    )
    learners = source.start(room, ids, seed=0)
    np.testing.assert_array_equal(learners.task_ids, ids)
    returns = torch.stack([learners.episode().returns for _ in range(250)])
    assert returns[:20].mean() < 1.4
    assert returns[-50:].mean() > 1.85


def test_what_is_read_is_named() -> None:
    with pytest.raises(ValueError, match="reads.*pixels"):
        A2C(num_episodes=1, reads="pixels")
