"""The pose searcher covers the pool, finds every platform, remembers it, and reads neither goals nor pictures."""

import numpy as np
import pytest
import torch

from distillery.core.records import EpisodeBatch
from distillery.sources.pose_searcher import PoseSearcher, PoseSearchers
from distillery.tasks.dark_room import DarkRoom
from distillery.tasks.watermaze import TURNS, Watermaze, WatermazeBatch

PIXELS = {"height": 2, "width": 2}
POOL = Watermaze(**PIXELS, num_tasks=300)
# Short episodes and large platforms, for what does not depend on how hard the search is.
EASY = {**PIXELS, "num_tasks": 300, "episode_steps": 15, "platform_radius": 0.2, "step_length": 0.15}
LASTING, ENDING = Watermaze(**EASY), Watermaze(**EASY, termination="at_platform")
SOURCES = {
    "sure": PoseSearcher(num_episodes=5),
    "sidestepping": PoseSearcher(num_episodes=5, gait="sidestep"),
    "noisy": PoseSearcher(num_episodes=5, epsilon=0.3),
}
for_all_sources = pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES.keys())
for_all_pools = pytest.mark.parametrize("pool", [LASTING, ENDING], ids=["lasting", "ending"])


def equal(one: EpisodeBatch, other: EpisodeBatch) -> bool:
    return all(torch.equal(value, vars(other)[name]) for name, value in vars(one).items())


def play(learners: PoseSearchers, num_episodes: int) -> list[EpisodeBatch]:
    return [learners.episode() for _ in range(num_episodes)]


def test_the_curve_of_the_default_pool() -> None:
    learners = PoseSearcher(num_episodes=20).start(POOL, np.arange(150), seed=0)
    returns = torch.stack([episode.returns for episode in play(learners, 20)])  # (N, E)
    curve = returns.mean(1).tolist()
    assert curve[:8] == sorted(curve[:8])
    assert 0.1 < curve[0] < 0.3 and curve[3] == pytest.approx(0.65, abs=0.1)
    assert min(curve[10:]) > 0.98 and np.mean(curve[15:]) > 0.99
    # Whoever has found the platform goes back to it: a few miss its edge once or twice.
    found_before = returns.cumsum(0).roll(1, 0) > 0
    found_before[0] = False
    assert returns[found_before].mean() > 0.97
    assert learners.episode(frozen=True).returns.mean() > 0.98


def test_it_goes_back_the_short_way() -> None:
    learners = PoseSearcher(num_episodes=1).start(POOL, np.arange(100), seed=1)
    play(learners, 14)
    episode = learners.episode()
    paid = episode.returns > 0
    steps = episode.rewards.argmax(1)[paid] + 1
    fewest = ((torch.as_tensor(POOL.goals[:100]).norm(dim=1) - POOL.platform_radius) / POOL.step_length).ceil()
    assert (steps - fewest[paid].clamp(min=1)).float().mean() < 2.0


@pytest.mark.parametrize(
    "settings", [{"reward": "every_step"}, {"termination": "at_platform"}, {"heading": "fixed"}, {"start": [0.5, 0.0]}]
)
def test_it_learns_in_every_variant(settings: dict) -> None:
    pool = Watermaze(**{**EASY, **settings})
    episodes = play(PoseSearcher(num_episodes=1).start(pool, np.arange(60), seed=0), 12)
    paid = torch.stack([episode.returns > 0 for episode in episodes]).float().mean(1)
    assert paid[0] < 0.5 and paid[-1] > 0.95


def test_who_sidesteps_never_turns_and_finds_as_much() -> None:
    learners = PoseSearcher(num_episodes=1, gait="sidestep").start(POOL, np.arange(100), seed=0)
    episodes = play(learners, 16)
    turning = torch.tensor([action for action, turn in enumerate(TURNS) if turn])
    assert not any(torch.isin(episode.actions, turning).any() for episode in episodes)
    assert episodes[0].returns.mean() < 0.4 and episodes[-1].returns.mean() > 0.97


def test_a_sidestep_is_the_move_that_ends_nearest() -> None:
    pool = Watermaze(**PIXELS, num_tasks=50)
    batch = pool.batch(np.arange(50), seed=0)
    batch.reset()
    targets = torch.as_tensor(pool.goals)
    chosen = batch.sidestep(targets)
    place, heading = batch.position.clone(), batch.heading.clone()
    ended = {}
    for action in (action for action, turn in enumerate(TURNS) if not turn):
        batch.position, batch.heading = place, heading
        batch.advance(torch.full((50,), action))
        ended[action] = (batch.position - targets).norm(dim=1)
    for i, action in enumerate(chosen.tolist()):
        assert ended[action][i] == min(distances[i] for distances in ended.values())


def test_it_stays_where_it_was_paid() -> None:
    learners = PoseSearcher(num_episodes=1).start(POOL, np.arange(100), seed=0)
    for num_before in (0, 6):
        play(learners, num_before)
        paid = learners.episode().returns > 0
        away = (learners._batch.position - torch.as_tensor(POOL.goals[:100])).norm(dim=1)
        assert paid.any() and away[paid].max() < POOL.platform_radius + POOL.step_length


def test_counts_are_of_the_ground_that_was_covered() -> None:
    learners = PoseSearcher(num_episodes=1).start(POOL, np.arange(30), seed=0)
    batch, places, pays = learners._batch, [], []
    advance = batch.advance

    def watched(actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        result = advance(actions)
        places.append(batch.position)
        pays.append(result[0] > 0)
        return result

    batch.advance = watched
    learners.episode()
    paid = torch.stack(pays, 1).cumsum(1) > 0  # (E, T)
    offset = torch.stack(places, 1)[:, :, None] - learners._cells  # (E, T, C, 2)
    near = offset.square().sum(-1).sqrt() <= POOL.platform_radius
    expected = (near & ~paid[..., None]).sum(1)
    assert (learners._counts != expected).float().mean() < 1e-4  # but for roundings at the rim
    assert torch.equal(learners._found, paid[:, -1])


def test_the_first_episode_wastes_little() -> None:
    learners = PoseSearcher(num_episodes=1).start(POOL, np.arange(100), seed=0)
    learners.episode()
    lost = ~learners._found
    covered = (learners._counts[lost] > 0).float().mean(1)
    # 49 steps of 0.06, a band 0.2 wide and a cap at either end, as a part of the circle of 0.9 that may hold goals.
    most = (49 * 0.06 * 0.2 + 0.1**2 * np.pi) / (0.9**2 * np.pi)
    assert most * 0.7 < covered.mean() < most * 1.05


@for_all_sources
@for_all_pools
def test_a_run_repeats_bit_for_bit(source: PoseSearcher, pool: Watermaze) -> None:
    first, again, other = (list(source.run(pool, np.arange(20), seed=seed)) for seed in (4, 4, 5))
    assert len(first) == 5
    assert all(equal(*pair) for pair in zip(first, again, strict=True))
    assert not all(equal(*pair) for pair in zip(first, other, strict=True))


@for_all_sources
@for_all_pools
def test_a_learner_does_not_feel_the_others(source: PoseSearcher, pool: Watermaze) -> None:
    beside = np.concatenate([np.arange(20), 150 - np.arange(20)]), np.concatenate([np.arange(20), np.arange(100, 120)])
    one, other = (source.start(pool, ids, seed=0) for ids in beside)
    for first, second in zip(play(one, 6), play(other, 6), strict=True):
        assert equal(first.select(slice(20)), second.select(slice(20)))


@for_all_sources
def test_frozen_episodes_learn_nothing(source: PoseSearcher) -> None:
    learners, interrupted = (source.start(LASTING, np.arange(20), seed=0) for _ in range(2))
    for expected in play(learners, 5):
        frozen = interrupted.episode(frozen=True)
        assert frozen.actions.shape == expected.actions.shape
        assert equal(interrupted.episode(), expected)


def test_pictures_are_not_read() -> None:
    source, ids = PoseSearcher(num_episodes=4, epsilon=0.1), np.arange(10)
    small, large = (source.run(Watermaze(**{**EASY, "height": size, "width": size}), ids, seed=0) for size in (2, 9))
    for one, other in zip(small, large, strict=True):
        assert torch.equal(one.actions, other.actions) and torch.equal(one.rewards, other.rewards)


class SecretBatch(WatermazeBatch):
    """Pays as ever, and tells no one where the platform is or whether it has risen."""

    def oracle_actions(self) -> torch.Tensor:
        raise AssertionError("a source asked the oracle")


class SecretPool(Watermaze):
    """A pool of such."""

    def batch(self, task_ids: np.ndarray, *, seed: int, device: torch.device | str = "cpu") -> SecretBatch:
        return SecretBatch(self, np.asarray(task_ids), seed=seed, device=device)


def test_the_oracle_is_not_asked() -> None:
    secret = SecretPool(**EASY)
    source, ids = PoseSearcher(num_episodes=3), np.arange(10)
    for one, other in zip(source.run(secret, ids, seed=0), source.run(LASTING, ids, seed=0), strict=True):
        assert equal(one, other)


def test_noise_is_as_frequent_as_asked() -> None:
    actions = next(PoseSearcher(num_episodes=1, epsilon=1.0).run(POOL, np.arange(200), seed=0)).actions.long()
    frequencies = torch.bincount(actions.flatten(), minlength=8) / actions.numel()
    np.testing.assert_allclose(frequencies, np.full(8, 1 / 8), atol=0.02)
    sure, noisy = (
        next(PoseSearcher(num_episodes=1, epsilon=epsilon).run(POOL, np.arange(200), seed=0)).actions[:, 0]
        for epsilon in (0.0, 0.4)
    )
    assert (sure != noisy).float().mean() == pytest.approx(0.4 * 7 / 8, abs=0.1)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_episodes": 0},
        {"gait": "crawl"},
        {"discount": 1.5},
        {"discount": 0.0},
        {"power": -1.0},
        {"cell_size": 0.0},
        {"cell_size": 1.5},
        {"preference": 2.0},
        {"epsilon": -0.1},
        {"epsilon_end": 1.5},
    ],
)
def test_bad_settings_are_named(settings: dict) -> None:
    ((name, value),) = settings.items()
    with pytest.raises(ValueError, match=f"{name}.*{value}"):
        PoseSearcher(**{"num_episodes": 10} | settings)


def test_tasks_without_positions_are_refused() -> None:
    with pytest.raises(ValueError, match="DarkRoom have none"):
        PoseSearcher(num_episodes=1).start(DarkRoom(), np.array([0]), seed=0)


def test_epsilon_falls_linearly_or_stays() -> None:
    falling = PoseSearcher(num_episodes=5, epsilon=0.5, epsilon_end=0.1)
    assert [falling.epsilon_of(episode) for episode in range(6)] == pytest.approx([0.5, 0.4, 0.3, 0.2, 0.1, 0.1])
    assert PoseSearcher(num_episodes=5, epsilon=0.3).epsilon_of(4) == pytest.approx(0.3)
    assert PoseSearcher(num_episodes=1, epsilon=0.3, epsilon_end=0.0).epsilon_of(0) == pytest.approx(0.3)
