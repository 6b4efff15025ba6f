"""Which runs become histories."""

import numpy as np
import pytest
import torch

from distillery.core.records import EpisodeBatch
from distillery.core.specs import TaskSpec
from distillery.histories.selection import Selection
from tests.histories.conftest import random_episodes


def test_selection_follows_its_rule(room, learning_episodes):
    task_ids, episodes = learning_episodes
    oracle = room.oracle_returns()[task_ids]
    final = np.mean([batch.returns.numpy() for batch in episodes[-3:]], axis=0)
    selection = Selection(min_final_fraction=0.9)
    kept = selection.keep(episodes, oracle)
    np.testing.assert_array_equal(kept, final >= 0.9 * oracle)
    report = selection.report(kept, task_ids)
    assert report["num_kept"] + report["num_dropped"] == len(task_ids)
    assert sum(report["dropped_per_task"].values()) == report["num_dropped"]
    assert Selection().keep(episodes, oracle).all()
    with pytest.raises(ValueError, match=r"1\.5"):
        Selection(min_final_fraction=1.5)


def with_rewards(rewards: np.ndarray, num_steps: np.ndarray) -> list[EpisodeBatch]:
    """N batches of E episodes with the (E, N, T) rewards."""
    spec = TaskSpec.of_sizes((2,), 2, rewards.shape[2])
    batches = random_episodes(spec, num_steps)
    for number, batch in enumerate(batches):
        batch.rewards[:] = torch.from_numpy(rewards[:, number])
    return batches


def test_each_run_is_judged_by_its_own_last_episodes():
    num_steps = np.zeros((2, 40), dtype=np.int64)
    num_steps[0], num_steps[1, :20] = 2, 2
    rewards = np.zeros((2, 40, 2))
    rewards[0, 36:], rewards[1, 18:20] = 1.0, 0.5  # the last 4 of 40 and the last 2 of 20
    rewards[0, 35], rewards[1, 17] = 100.0, 100.0
    rewards[1, 20:] = 100.0  # padding
    episodes = with_rewards(rewards, num_steps)
    oracle = np.array([2.0, 2.0])
    np.testing.assert_array_equal(Selection(min_final_fraction=1.0).keep(episodes, oracle), [True, False])
    np.testing.assert_array_equal(Selection(min_final_fraction=0.5).keep(episodes, oracle), [True, True])
    np.testing.assert_array_equal(Selection(min_final_fraction=0.51).keep(episodes, oracle), [True, False])


def test_one_long_episode_is_judged_by_its_last_steps():
    rewards = np.zeros((2, 1, 50))
    rewards[0, 0, 45:], rewards[1, 0, 27:30] = 0.8, 0.4
    rewards[1, 0, 30:] = 9.0  # padding
    episodes = with_rewards(rewards, np.array([[50], [30]]))
    oracle = np.array([50.0, 30.0])  # 1 per step
    np.testing.assert_array_equal(Selection(min_final_fraction=0.79).keep(episodes, oracle), [True, False])
    np.testing.assert_array_equal(Selection(min_final_fraction=0.39).keep(episodes, oracle), [True, True])
    np.testing.assert_array_equal(Selection(min_final_fraction=0.81).keep(episodes, oracle), [False, False])
    rule = Selection(min_final_fraction=0.5).report(np.array([True]), np.array([3]), one_episode=True)["rule"]
    assert rule == "mean return of the last tenth of steps, scaled to a whole episode, >= 0.5 x the oracle's"
