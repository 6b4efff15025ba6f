"""Adversarial Bandit: which arms pay, in which split, and that a task is a number."""

import numpy as np
import pytest
import torch

from distillery.core.records import EpisodeBatch
from distillery.core.rollouts import play_episode, random_actions
from distillery.tasks.adversarial_bandit import AdversarialBandit

SIZES = {"num_train": 2000, "num_validation": 500, "num_held_out": 2000, "num_uniform": 2000, "num_seen": 500}
FIVE = ("train", "validation", "held_out", "uniform", "seen")
SMALL = {"num_train": 5, "num_validation": 2, "num_held_out": 3, "num_uniform": 2, "num_seen": 1}


@pytest.fixture(scope="module")
def bandit() -> AdversarialBandit:
    return AdversarialBandit(**SIZES)


def odd_share(bandit: AdversarialBandit, split: str) -> float:
    """Share of the split's tasks all of whose odd arms, counted from 1, pay at least 1/2 and no even one does."""
    means = bandit.means[bandit.task_ids(split)]
    return float(((means[:, 0::2] >= 0.5).all(1) & (means[:, 1::2] < 0.5).all(1)).mean())


def even_share(bandit: AdversarialBandit, split: str) -> float:
    means = bandit.means[bandit.task_ids(split)]
    return float(((means[:, 1::2] >= 0.5).all(1) & (means[:, 0::2] < 0.5).all(1)).mean())


def test_five_splits_number_all_tasks_one_after_another(bandit: AdversarialBandit) -> None:
    splits = bandit.splits()
    assert tuple(splits) == FIVE
    assert [len(splits[split]) for split in FIVE] == list(SIZES.values())
    np.testing.assert_array_equal(np.concatenate(list(splits.values())), np.arange(bandit.num_tasks))


def test_further_splits_may_be_empty() -> None:
    bandit = AdversarialBandit(**SMALL | {"num_uniform": 0, "num_seen": 0})
    assert tuple(bandit.splits()) == FIVE[:3]
    with pytest.raises(ValueError, match="'uniform'"):
        bandit.task_ids("uniform")


@pytest.mark.parametrize("split", ["train", "validation", "seen"])
def test_odd_arms_pay_in_most_tasks_of_the_training_distribution(bandit: AdversarialBandit, split: str) -> None:
    num_tasks = len(bandit.task_ids(split))
    assert odd_share(bandit, split) == pytest.approx(0.95, abs=4 * (0.05 * 0.95 / num_tasks) ** 0.5)
    assert odd_share(bandit, split) + even_share(bandit, split) == 1.0


def test_held_out_is_flipped(bandit: AdversarialBandit) -> None:
    assert even_share(bandit, "held_out") == pytest.approx(0.95, abs=0.02)
    assert odd_share(bandit, "held_out") + even_share(bandit, "held_out") == 1.0


def test_uniform_is_uniform(bandit: AdversarialBandit) -> None:
    means = bandit.means[bandit.task_ids("uniform")]
    # Chances are over the two halves of the arms alike: 20 000 draws, deviation 0.29 / sqrt(10 000).
    assert means[:, 0::2].mean() == pytest.approx(0.5, abs=0.012)
    assert means[:, 1::2].mean() == pytest.approx(0.5, abs=0.012)
    assert np.histogram(means, 4, (0, 1))[0] / means.size == pytest.approx([0.25] * 4, abs=0.013)
    assert odd_share(bandit, "uniform") < 0.01


def test_the_laws_of_the_two_halves(bandit: AdversarialBandit) -> None:
    favoured = AdversarialBandit(**SIZES | {"favoured_probability": 1.0})
    means = favoured.means[favoured.task_ids("train")]
    assert means[:, 0::2].min() >= 0.5
    assert means[:, 1::2].max() < 0.5
    assert means[:, 0::2].mean() == pytest.approx(0.75, abs=0.01)
    assert means[:, 1::2].mean() == pytest.approx(0.25, abs=0.01)
    assert odd_share(AdversarialBandit(**SIZES | {"favoured_probability": 0.0}), "train") == 0.0


def test_what_arms_pay_is_a_function_of_the_settings() -> None:
    one, again, other = (AdversarialBandit(**SMALL, split_seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.means, again.means)
    assert not np.array_equal(one.means, other.means)


def test_more_tasks_in_one_split_change_none_in_another() -> None:
    small, large = AdversarialBandit(**SMALL), AdversarialBandit(**SMALL | {"num_train": 50})
    for split in FIVE:
        ids = small.task_ids(split)
        np.testing.assert_array_equal(small.means[ids], large.means[large.task_ids(split)[: len(ids)]])


def test_splits_have_tasks_of_their_own(bandit: AdversarialBandit) -> None:
    assert len(np.unique(bandit.means, axis=0)) == bandit.num_tasks


def test_the_oracle_pulls_the_best_arm(bandit: AdversarialBandit) -> None:
    np.testing.assert_array_equal(bandit.oracle_returns(), 100 * bandit.means.max(1))
    ids = bandit.task_ids("train")
    # The best of five draws from U[1/2, 1] is 11/12 on average.
    assert bandit.oracle_returns()[ids].mean() == pytest.approx(100 * 11 / 12, abs=0.8)
    batch = bandit.batch(ids, seed=0)
    episode = play_episode(batch, lambda step, observations: batch.oracle_actions())
    assert episode.returns.mean().item() == pytest.approx(bandit.oracle_returns()[ids].mean(), abs=0.3)


def test_random_pulls_earn_the_mean_of_all_arms(bandit: AdversarialBandit) -> None:
    batch = bandit.batch(np.arange(bandit.num_tasks), seed=0)
    generator = torch.Generator().manual_seed(0)
    episode = play_episode(batch, lambda step, observations: random_actions(batch, generator))
    assert episode.returns.mean().item() == pytest.approx(100 * bandit.means.mean(), abs=4 * 5 / 7000**0.5)


def test_an_arm_pays_one_or_nothing_as_often_as_it_says(bandit: AdversarialBandit) -> None:
    ids = np.array([3, 2600]).repeat(4000)
    batch = bandit.batch(ids, seed=0)
    batch.reset()
    for arm in (0, 1, 9):
        rewards = batch.advance(torch.full((8000,), arm))[0]
        assert set(rewards.tolist()) <= {0.0, 1.0}
        shares = rewards.view(2, 4000).mean(1)
        np.testing.assert_allclose(shares, bandit.means[[3, 2600], arm], atol=0.032)


def test_one_episode_is_the_whole_run() -> None:
    bandit = AdversarialBandit(**SMALL, num_arms=3, num_pulls=4)
    batch = bandit.batch(np.array([0, 1]), seed=0)
    assert bandit.spec.observation_sizes == (1,)
    assert bandit.spec.num_actions == 3
    assert batch.next_state.tolist() == [[0, 0, 0]]
    assert batch.reset().tolist() == [[0], [0]]
    steps = [batch.step(torch.tensor([2, 0])) for _ in range(4)]
    assert [step.truncated.tolist() for step in steps] == [[False] * 2] * 3 + [[True] * 2]
    assert not any(step.terminated.any() for step in steps)
    assert all(step.observations.tolist() == [[0], [0]] for step in steps)
    batch.reset(torch.tensor([True, False]))
    assert batch.step(torch.tensor([2, 0])).truncated.tolist() == [False, True]


def test_rewards_repeat_and_tasks_can_be_reassigned(bandit: AdversarialBandit) -> None:
    def rewards(seed: int) -> torch.Tensor:
        batch = bandit.batch(np.arange(200), seed=seed)
        return torch.stack([batch.advance(torch.zeros(200, dtype=torch.int64))[0] for _ in range(5)])

    assert torch.equal(rewards(1), rewards(1))
    assert not torch.equal(rewards(1), rewards(2))
    batch = bandit.batch(np.array([0, 1]), seed=0)
    batch.assign(torch.tensor([7, 7]), torch.tensor([False, True]))
    assert batch.oracle_actions().tolist() == bandit.means[[0, 7]].argmax(1).tolist()


def test_the_expert_pulls_the_best_arm(bandit: AdversarialBandit) -> None:
    ids = np.array([0, 2600, 5000])
    batch = bandit.batch(ids, seed=0)
    generator = torch.Generator().manual_seed(0)
    episode: EpisodeBatch = play_episode(batch, lambda step, observations: random_actions(batch, generator))
    best = bandit.means[ids].argmax(1)
    assert torch.equal(bandit.expert_actions(episode, ids), torch.as_tensor(best)[:, None].expand(3, 100))


def test_arms_are_drawn(bandit: AdversarialBandit) -> None:
    letters = bandit.draw(task_id=4, state=0)
    assert letters.shape == (1, 10)
    assert letters[0, bandit.means[4].argmax()] == "G"
    assert (letters == "G").sum() == 1


@pytest.mark.parametrize(
    ("settings", "shown"),
    [
        ({"num_arms": 1}, "num_arms.*1"),
        ({"num_pulls": 0}, "got 0"),
        ({"favoured_probability": 1.5}, "favoured_probability.*1.5"),
        ({"num_train": 0}, "num_train.*0"),
        ({"num_validation": 0}, "num_validation.*0"),
        ({"num_held_out": -1}, "num_held_out.*-1"),
        ({"num_seen": -2}, "num_seen.*-2"),
    ],
)
def test_bad_settings_are_named(settings: dict, shown: str) -> None:
    with pytest.raises(ValueError, match=shown):
        AdversarialBandit(**SMALL | settings)


@pytest.mark.parametrize("task_ids", [[], [13], [-1], [0.5]])
def test_bad_task_ids_are_refused(task_ids: list) -> None:
    with pytest.raises(ValueError, match="task ids"):
        AdversarialBandit(**SMALL).batch(np.array(task_ids), seed=0)
