"""UCB and Thompson sampling: scores worked by hand, the textbook's loop, and what they earn."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from distillery.core.records import EpisodeBatch
from distillery.sources.base import Source
from distillery.sources.thompson import ThompsonSampling, gamma_draws
from distillery.sources.ucb import UCB, BanditLearners
from distillery.tasks.adversarial_bandit import AdversarialBandit
from distillery.tasks.dark_room import DarkRoom

SOURCES = {"ucb": UCB(num_episodes=1), "thompson": ThompsonSampling(num_episodes=1)}
for_both = pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES.keys())


@pytest.fixture(scope="module")
def bandit() -> AdversarialBandit:
    return AdversarialBandit(num_train=1000, num_validation=1, num_held_out=1000, num_uniform=1000, num_seen=0)


def test_upper_bounds_by_hand() -> None:
    pulls, sums = torch.tensor([[1.0, 4.0, 0.0], [2.0, 6.0, 8.0]]), torch.tensor([[1.0, 1.0, 0.0], [0.0, 3.0, 8.0]])
    scores = UCB(num_episodes=1, confidence=2.0).score(pulls, sums, torch.Generator())
    first = [1 + 2 * math.sqrt(math.log(5)), 0.25 + 2 * math.sqrt(math.log(5) / 4), math.inf]
    second = [2 * math.sqrt(math.log(16) / n) + mean for n, mean in ((2, 0.0), (6, 0.5), (8, 1.0))]
    torch.testing.assert_close(scores, torch.tensor([first, second]))


def test_nothing_pulled_is_no_error() -> None:
    zeros = torch.zeros(2, 3)
    assert (UCB(num_episodes=1).score(zeros, zeros, torch.Generator()) == math.inf).all()


@pytest.mark.parametrize("confidence", [0.0, 0.5, math.sqrt(2)])
def test_every_pull_is_the_textbooks(bandit: AdversarialBandit, confidence: float) -> None:
    episode = UCB(num_episodes=1, confidence=confidence).start(bandit, np.arange(100), seed=0).episode()
    for learner in range(100):
        pulls, sums = np.zeros(10), np.zeros(10)
        for step, (arm, reward) in enumerate(zip(episode.actions[learner], episode.rewards[learner], strict=True)):
            if step < 10:
                assert pulls[arm] == 0
            else:
                scores = sums / pulls + confidence * np.sqrt(np.log(step) / pulls)
                assert scores[arm] >= scores.max() - 1e-5
            pulls[arm] += 1
            sums[arm] += reward


@for_both
def test_first_pulls_favour_no_arm(source: Source) -> None:
    bandit = AdversarialBandit(num_train=1, num_validation=1, num_held_out=1, num_pulls=1)
    first = source.start(bandit, np.zeros(20_000, dtype=int), seed=0).episode().actions[:, 0]
    shares = torch.bincount(first.long(), minlength=10) / 20_000
    torch.testing.assert_close(shares, torch.full((10,), 0.1), atol=0.01, rtol=0.0)


def test_ties_keep_to_the_learners_own_order(bandit: AdversarialBandit) -> None:
    learners = UCB(num_episodes=1, confidence=0.0).start(bandit, np.zeros(500, dtype=int), seed=0)
    tied = torch.tensor([0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]).expand(500, 10)
    arms = learners._highest(tied)
    assert torch.equal(arms, learners._highest(tied))
    assert torch.bincount(arms, minlength=10)[[1, 3, 4]].min() > 120
    assert set(arms.tolist()) == {1, 3, 4}


@pytest.mark.parametrize("shape", [1.0, 1.5, 4.0, 60.0])
def test_gamma_draws(shape: float) -> None:
    draws = gamma_draws(torch.full((60_000,), shape), torch.Generator().manual_seed(0)).double().numpy()
    assert stats.kstest(draws, stats.gamma(shape).cdf).pvalue > 0.01


def test_thompson_draws_from_beta() -> None:
    num_draws = 40_000
    pulls, sums = (torch.tensor([values]).expand(num_draws, 3) for values in ([0.0, 5.0, 30.0], [0.0, 4.0, 6.0]))
    draws = ThompsonSampling(num_episodes=1).score(pulls, sums, torch.Generator().manual_seed(0))
    for arm, (a, b) in enumerate([(1, 1), (5, 2), (7, 25)]):
        mean, variance = a / (a + b), a * b / ((a + b) ** 2 * (a + b + 1))
        assert draws[:, arm].mean().item() == pytest.approx(mean, abs=4 * (variance / num_draws) ** 0.5)
        assert draws[:, arm].var().item() == pytest.approx(variance, rel=0.05)
    assert torch.histc(draws[:, 0], 4, 0, 1) / num_draws == pytest.approx(torch.full((4,), 0.25), abs=0.01)


@for_both
def test_counts_are_what_was_pulled_and_paid(bandit: AdversarialBandit, source: Source) -> None:
    learners = source.start(bandit, np.arange(50), seed=0)
    episodes = [learners.episode() for _ in range(2)]
    learners.episode(frozen=True)
    actions = torch.cat([episode.actions for episode in episodes], 1).long()
    rewards = torch.cat([episode.rewards for episode in episodes], 1)
    assert torch.equal(learners._pulls, torch.zeros(50, 10).scatter_add(1, actions, torch.ones(50, 200)))
    assert torch.equal(learners._sums, torch.zeros(50, 10).scatter_add(1, actions, rewards))


@for_both
def test_frozen_learners_pull_their_best_arm(bandit: AdversarialBandit, source: Source) -> None:
    learners = source.start(bandit, np.arange(200), seed=0)
    learners.episode()
    means = learners._sums / learners._pulls.clamp(min=1)
    frozen = learners.episode(frozen=True).actions.long()
    assert (frozen == frozen[:, :1]).all()
    assert torch.equal(means.gather(1, frozen[:, :1])[:, 0], means.amax(1))


def share_of_the_way(bandit: AdversarialBandit, ids: np.ndarray, episode: EpisodeBatch) -> float:
    """From the random policy's return, 0, to the oracle's, 1."""
    random, oracle = 100 * bandit.means[ids].mean(), bandit.oracle_returns()[ids].mean()
    return float((episode.returns.mean().item() - random) / (oracle - random))


@for_both
@pytest.mark.parametrize("split", ["train", "held_out", "uniform"])
def test_they_learn_whatever_arms_pay(bandit: AdversarialBandit, source: Source, split: str) -> None:
    ids = bandit.task_ids(split)[:600]
    learners = source.start(bandit, ids, seed=0)
    episode = learners.episode()
    assert 0.62 < share_of_the_way(bandit, ids, episode) < 0.74
    assert share_of_the_way(bandit, ids, learners.episode(frozen=True)) > 0.92
    tenths = episode.rewards.view(len(ids), 10, 10).mean((0, 2))
    assert tenths[0] < 0.6
    assert tenths[-1] > 0.81
    assert (tenths.diff() > -0.04).all()


@for_both
def test_a_second_episode_goes_on_learning(bandit: AdversarialBandit, source: Source) -> None:
    first, second = [
        episode.returns.mean() for episode in type(source)(num_episodes=2).run(bandit, np.arange(500), seed=0)
    ]
    assert second > first + 5


@for_both
def test_rooms_are_refused(source: Source) -> None:
    with pytest.raises(ValueError, match=r"single state.*DarkRoom.*adversarial_bandit"):
        source.start(DarkRoom(), np.array([0]), seed=0)


def test_both_share_their_learners(bandit: AdversarialBandit) -> None:
    assert all(type(source.start(bandit, np.array([0]), seed=0)) is BanditLearners for source in SOURCES.values())
