"""The explorer wastes no step, learns at the known speed, and ends at the oracle."""

import numpy as np
import pytest
import torch

from distillery.sources.explorer import Explorer
from distillery.tasks.dark_room import DarkRoom


def test_the_first_episode_enters_a_new_cell_whenever_one_is_near() -> None:
    room = DarkRoom(width=31, height=31)  # the goal, a corner, is out of reach
    learners = Explorer(num_episodes=1).start(room, np.zeros(200, dtype=int), seed=0)
    episode = learners.episode()
    x, y = episode.observations.long().unbind(-1)
    states, actions = (x + 31 * y).numpy(), episode.actions.long().numpy()
    num_cornered = 0
    for learner in range(len(states)):
        entered: set[int] = set()  # the first cell counts once a step has ended on it
        for state, action in zip(states[learner], actions[learner], strict=True):
            reached = room.next_state[state, action]
            if set(room.next_state[state]) <= entered:
                num_cornered += 1
            else:
                assert reached not in entered
            entered.add(reached)
    assert num_cornered < 0.02 * states.size


def test_later_episodes_make_for_what_is_left() -> None:
    room = DarkRoom(width=3, height=3, num_validation=1, num_held_out=1, episode_steps=4)
    learners = Explorer(num_episodes=3).start(room, np.zeros(100, dtype=int), seed=0)
    episodes = [learners.episode() for _ in range(5)]
    # Nine cells at four steps a time: whoever never goes where it has been, but to start again, is through in four.
    assert (episodes[-1].returns > 0).all()


def test_the_curve_of_the_published_room() -> None:
    room = DarkRoom()
    task_ids = np.tile(np.arange(81), 20)
    returns = [episode.returns.mean().item() for episode in Explorer(num_episodes=12).run(room, task_ids, seed=0)]
    assert returns[:3] == pytest.approx([2.5, 6.7, 10.4], abs=0.4)
    oracle = room.oracle_returns().mean()
    assert returns[:6] == sorted(returns[:6])
    assert returns[9:] == pytest.approx([oracle] * 3, abs=1e-3)


@pytest.mark.parametrize("settings", [{"reward": "once"}, {"termination": "at_goal"}, {"walls": "wrap"}])
def test_it_reaches_the_oracle_in_every_variant(settings: dict) -> None:
    room = DarkRoom(**settings)
    learners = Explorer(num_episodes=12).start(room, np.arange(81), seed=0)
    for _ in range(12):
        learners.episode()
    expected = torch.as_tensor(room.oracle_returns(), dtype=torch.float32)
    for frozen in (False, True):
        torch.testing.assert_close(learners.episode(frozen=frozen).returns, expected)


def test_a_goal_that_pays_once_is_remembered() -> None:
    learners = Explorer(num_episodes=3).start(DarkRoom(reward="once"), np.array([40]), seed=0)
    ones, zeros = torch.ones(1), torch.zeros(1)
    goal = torch.tensor([40])
    for reward in (ones, zeros):
        learners._learn(goal, goal, reward, goal, zeros.bool(), None)
    assert learners._rewards[40].item() == 1.0
    learners._learn(goal, goal, zeros, torch.tensor([41]), zeros.bool(), None)
    assert learners._rewards[41].item() == 0.0
