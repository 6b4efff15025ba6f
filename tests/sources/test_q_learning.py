"""Batched Q-learning against the textbook's loop, a hand-worked update, and what it learns."""

import numpy as np
import pytest
import torch

from distillery.core.records import EpisodeBatch
from distillery.sources.q_learning import QLearners, QLearning
from distillery.tasks.dark_key_to_door import DarkKeyToDoor
from distillery.tasks.dark_room import DarkRoom


def table(learners: QLearners) -> np.ndarray:
    """(E, S, A) values of all learners."""
    return learners._values.reshape(len(learners.task_ids), -1, 5).double().numpy().copy()


def learn_in_plain_python(values: np.ndarray, episode: EpisodeBatch, room: DarkRoom, source: QLearning) -> None:
    """One learner after another, one step after another."""
    for learner in range(len(values)):
        for step in range(int(episode.num_steps[learner])):
            x, y = (int(axis) for axis in episode.observations[learner, step])
            state, action = x + room.width * y, int(episode.actions[learner, step])
            next_state = room.next_state[state, action]
            ended = episode.terminated[learner] and step == episode.num_steps[learner] - 1
            ahead = 0.0 if ended else max(values[learner, next_state])
            target = float(episode.rewards[learner, step]) + source.discount * ahead
            values[learner, state, action] += source.learning_rate * (target - values[learner, state, action])


@pytest.mark.parametrize("termination", ["never", "at_goal"])
@pytest.mark.parametrize(("learning_rate", "initial_value"), [(0.99, 0.0), (0.3, 20.0)])
def test_the_batch_learns_what_a_plain_loop_learns(
    termination: str, learning_rate: float, initial_value: float
) -> None:
    room = DarkRoom(width=4, height=3, num_validation=2, num_held_out=2, termination=termination)
    source = QLearning(num_episodes=12, learning_rate=learning_rate, initial_value=initial_value, epsilon_fraction=0.5)
    learners = source.start(room, np.arange(12), seed=0)
    values = table(learners)
    first = values.copy()
    for _ in range(source.num_episodes):
        learn_in_plain_python(values, learners.episode(), room, source)
    np.testing.assert_allclose(table(learners), values, atol=1e-4)
    assert np.abs(values - first).max() > 0.5


def test_updates_worked_by_hand() -> None:
    source = QLearning(num_episodes=1, learning_rate=0.5, discount=0.9)
    learners = source.start(DarkRoom(), np.array([0, 0, 0]), seed=0)
    learners._values.zero_()
    rows = learners._values.view(3, 81, 5)
    rows[:, 40, 1] = 2.0
    rows[:, 41] = torch.tensor([0.0, 4.0, 1.0, 0.0, 0.0])
    states, actions, rewards = torch.full((3,), 40), torch.full((3,), 1), torch.ones(3)
    terminated, alive = torch.tensor([False, True, False]), torch.tensor([True, True, False])
    learners._learn(states, actions, rewards, torch.full((3,), 41), terminated, alive)
    # 2 + 0.5 * (1 + 0.9 * 4 - 2) = 3.3;   2 + 0.5 * (1 - 2) = 1.5 at the task's end;   2 after the episode's
    torch.testing.assert_close(rows[:, 40, 1], torch.tensor([3.3, 1.5, 2.0]))
    rows[:, 40, 1] = 0.0
    rows[:, 41] = 0.0
    assert not rows.any()


def test_epsilon_falls_linearly_and_stays() -> None:
    source = QLearning(num_episodes=100, epsilon_start=0.8, epsilon_end=0.2, epsilon_fraction=0.5)
    assert [source.epsilon(episode) for episode in (0, 25, 50, 99)] == pytest.approx([0.8, 0.5, 0.2, 0.2])
    assert QLearning(num_episodes=10, epsilon_fraction=0.0, epsilon_end=0.1).epsilon(0) == pytest.approx(0.1)


@pytest.mark.parametrize("epsilon", [0.25, 1.0])
def test_epsilon_is_the_chance_of_a_random_action(epsilon: float) -> None:
    source = QLearning(num_episodes=1, epsilon_start=epsilon)
    learners = source.start(DarkRoom(), np.zeros(20_000, dtype=int), seed=0)
    learners._values.zero_()
    learners._values[:, 3] = 1.0
    shares = torch.bincount(learners.episode().actions[:, 0].long()) / 20_000
    expected = torch.full((5,), epsilon / 5)
    expected[3] += 1 - epsilon
    torch.testing.assert_close(shares, expected, atol=0.015, rtol=0.0)


@pytest.mark.parametrize("initial_value", [0.0, 20.0, 33.3, -5.0])
def test_untried_actions_are_preferred_alike(initial_value: float) -> None:
    source = QLearning(num_episodes=1, epsilon_start=0.0, initial_value=initial_value)
    first_actions = source.start(DarkRoom(), np.zeros(5000, dtype=int), seed=0).episode().actions[:, 0]
    shares = torch.bincount(first_actions.long(), minlength=5) / 5000
    torch.testing.assert_close(shares, torch.full((5,), 0.2), atol=0.03, rtol=0.0)


def test_it_learns_the_room_to_the_oracle() -> None:
    room, task_ids = DarkRoom(), np.tile(np.arange(81), 2)
    source = QLearning(num_episodes=200, epsilon_start=0.5, initial_value=20.0)
    learners = source.start(room, task_ids, seed=0)
    returns = torch.stack([learners.episode().returns for _ in range(source.num_episodes)])  # (N, E)
    oracle = room.oracle_returns()[task_ids]
    first, last = returns[:20].mean().item(), returns[-20:].mean().item()
    assert first < 3.5
    assert last > 0.98 * oracle.mean()
    near = learners.episode(frozen=True).returns.numpy() > 0.9 * oracle
    assert near.mean() > 0.97


def test_it_learns_the_way_from_key_to_door() -> None:
    room = DarkKeyToDoor()
    task_ids = np.random.default_rng(0).choice(room.num_tasks, 100, replace=False)
    source = QLearning(num_episodes=200, epsilon_start=0.05, initial_value=0.2)
    learners = source.start(room, task_ids, seed=0)
    returns = torch.stack([learners.episode().returns for _ in range(source.num_episodes)])  # (N, E)
    assert returns[:20].mean() < 0.8
    assert 1.0 < returns[20:40].mean() < 1.5
    assert (returns[-20:].mean(0) > 1.9).float().mean() > 0.95


def test_a_goal_that_pays_once_is_found_in_the_hard_room_and_kept() -> None:
    room = DarkRoom(width=17, height=17, reward="once", num_validation=24, num_held_out=48)
    source = QLearning(num_episodes=300, discount=0.9, epsilon_start=0.05, initial_value=0.05)
    learners = source.start(room, np.arange(0, 289, 3), seed=0)
    returns = torch.stack([learners.episode().returns for _ in range(source.num_episodes)])
    found = returns[:200].amax(0) > 0
    assert found.float().mean() > 0.5
    assert (returns[-20:].mean(0)[found] > 0.9).float().mean() > 0.8


def test_an_episode_read_backwards_tells_every_step_of_its_reward() -> None:
    room = DarkRoom(width=5, height=1, start=[0, 0], reward="once", episode_steps=4, num_validation=1, num_held_out=1)
    settings = {"num_episodes": 1, "learning_rate": 0.5, "discount": 0.8, "epsilon_start": 0.0}
    values = {}
    for replay in (None, "backward"):
        learners = QLearning(**settings, replay=replay).start(room, np.array([4]), seed=0)
        learners._values.zero_()
        learners._values[:, 1] = 1e-6  # it walks to the right, to the goal at the end
        assert learners.episode().returns.tolist() == [1.0]
        values[replay] = learners._values[:4, 1].tolist()
    assert values[None] == pytest.approx([0.0, 0.0, 0.0, 0.5], abs=1e-5)
    # The last step moves on from 0.5 to 0.75; each before it is half of 0.8 of the one behind.
    assert values["backward"] == pytest.approx([0.048, 0.12, 0.3, 0.75], abs=1e-5)


def test_what_was_found_once_is_found_again_after_reading_backwards() -> None:
    room = DarkRoom(width=17, height=17, reward="once", num_validation=24, num_held_out=48)
    settings = {"num_episodes": 150, "discount": 0.9, "epsilon_start": 0.05, "initial_value": 0.05}
    again = {}
    for replay in (None, "backward"):
        source = QLearning(**settings, replay=replay)
        returns = torch.stack(
            [episode.returns for episode in source.run(room, np.arange(0, 289, 3), seed=0)]
        )  # (N, E)
        after = (returns.cumsum(0) - returns > 0).float()  # episodes after the first that found it
        again[replay] = ((returns * after).sum() / after.sum()).item()
    assert again["backward"] > 0.9 > 0.6 > again[None]


def test_bad_replay_is_named() -> None:
    with pytest.raises(ValueError, match="replay must be null or backward, got 'forward'"):
        QLearning(num_episodes=1, replay="forward")
