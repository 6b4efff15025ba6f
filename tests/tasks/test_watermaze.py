"""Watermaze: pictures against a plain ray-caster, moves and rewards worked by hand, and how good agents can be."""

import math

import numpy as np
import pytest
import torch

from distillery.core.rollouts import play_episode, random_actions
from distillery.core.seeding import torch_generator
from distillery.core.specs import TaskSpec
from distillery.tasks.base import SPLITS
from distillery.tasks.watermaze import ACTION_NAMES, Watermaze
from distillery.tasks.watermaze_renderer import (
    DARKEST,
    EYE_HEIGHT,
    NUM_BINS,
    NUM_SHADES,
    PLATFORM_HEIGHT,
    SECTORS,
    SKY,
    WALL_HEIGHT,
    WATER,
    PoolRenderer,
)

SMALL = {"height": 6, "width": 8, "num_tasks": 30, "num_validation": 4, "num_held_out": 6}
FORWARD, BACK, LEFT, RIGHT, ROTATE_LEFT, ROTATE_RIGHT, FORWARD_LEFT, FORWARD_RIGHT = range(8)
POOL_RADIUS, PLATFORM_RADIUS = 1.0, 0.1


def points(num: int, farthest: float, seed: int) -> torch.Tensor:
    """(num, 2), uniform in a circle."""
    random = np.random.default_rng(seed)
    radius, angle = farthest * np.sqrt(random.random(num)), math.tau * random.random(num)
    return torch.as_tensor(np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1), dtype=torch.float32)


# Pictures


def first_crossing(start: np.ndarray, direction: np.ndarray, radius: float, last: bool = False) -> np.ndarray:
    """Along level rays, where they enter (or leave) a circle about (0, 0); infinite if they never do."""
    a, b = (direction**2).sum(-1), (start * direction).sum(-1)
    root = b**2 - a * ((start**2).sum(-1) - radius**2)
    with np.errstate(invalid="ignore"):
        along = (-b + (1 if last else -1) * np.sqrt(root)) / a
    return np.where((root > 0) & (along > 0), along, np.inf)


def cast_rays(height, width, field_of_view, position, heading, platform, risen) -> np.ndarray:
    """(E, H, W, 3) float: each pixel's own ray, in three dimensions, and the nearest of all that it meets."""
    focal = width / 2 / math.tan(math.radians(field_of_view / 2))
    right = (np.arange(width) + 0.5 - width / 2) / focal
    up = (height / 2 - np.arange(height) - 0.5) / focal
    shape = (len(position), height, width)
    angle = heading[:, None, None]
    level = np.stack(
        [np.cos(angle) + np.sin(angle) * right, np.sin(angle) - np.cos(angle) * right], -1
    )  # (E, 1, W, 2)
    level = np.broadcast_to(level, (*shape, 2))
    up = np.broadcast_to(up[:, None], shape)
    eye = position[:, None, None]
    wall = first_crossing(eye, level, POOL_RADIUS, last=True)
    meets = wall * up + EYE_HEIGHT  # everyone is inside, so every ray meets the wall
    wall = np.where((meets >= 0) & (meets <= WALL_HEIGHT), wall, np.inf)
    with np.errstate(divide="ignore"):
        water = np.where(up < 0, -EYE_HEIGHT / up, np.inf)
        top = np.where(up < 0, (PLATFORM_HEIGHT - EYE_HEIGHT) / up, np.inf)
    offset = eye - platform[:, None, None]
    on_top = ((offset + top[..., None] * level) ** 2).sum(-1) <= PLATFORM_RADIUS**2
    side = first_crossing(offset, level, PLATFORM_RADIUS)
    with np.errstate(invalid="ignore"):
        meets = side * up + EYE_HEIGHT
        side = np.where((meets >= 0) & (meets <= PLATFORM_HEIGHT), side, np.inf)
    platforms = np.where(risen[:, None, None], np.minimum(np.where(on_top, top, np.inf), side), np.inf)
    nearest = np.stack([platforms, wall, water, np.full(shape, 1e9)]).argmin(0)

    where = eye + np.where(np.isfinite(wall), wall, 0.0)[..., None] * level
    degrees = np.arctan2(where[..., 1], where[..., 0]) % math.tau * (NUM_BINS / math.tau)
    ends = np.cumsum([width for width, _ in SECTORS])
    colours = np.array([colour for _, colour in SECTORS])[np.searchsorted(ends, degrees, side="right").clip(max=11)]
    distance = np.hypot(*np.moveaxis(where - eye, -1, 0)) / (2 * POOL_RADIUS)
    shades = 1 - (1 - DARKEST) * np.floor(distance * NUM_SHADES).clip(max=NUM_SHADES - 1) / (NUM_SHADES - 1)
    fixed = np.array([(255, 255, 255), (0, 0, 0), WATER, SKY], dtype=float)
    return np.where((nearest == 1)[..., None], colours * shades[..., None], fixed[nearest])


@pytest.mark.parametrize(("height", "width", "field_of_view"), [(18, 24, 90.0), (25, 31, 60.0), (1, 5, 120.0)])
def test_pictures_equal_those_of_a_ray_caster(height: int, width: int, field_of_view: float) -> None:
    num = 300
    position, platform = points(num, 0.95, 0), points(num, 0.9, 1)
    platform[:60] = position[:60] + points(60, 0.3, 2)  # near, or underfoot
    platform *= (0.9 / platform.norm(dim=1, keepdim=True)).clamp(max=1.0)
    heading = torch.as_tensor(np.random.default_rng(3).uniform(-1, 7, num), dtype=torch.float32)
    risen = torch.arange(num) % 5 != 4
    renderer = PoolRenderer(
        height=height,
        width=width,
        field_of_view=field_of_view,
        pool_radius=POOL_RADIUS,
        platform_radius=PLATFORM_RADIUS,
    )
    drawn = renderer.render(position, heading, platform, risen)
    assert drawn.shape == (num, height, width, 3) and drawn.dtype == torch.uint8
    poses = (x.numpy().astype(float) for x in (position, heading, platform))
    expected = cast_rays(height, width, field_of_view, *poses, risen.numpy())
    different = (np.abs(drawn.numpy() - expected) > 0.51).any(-1)
    # Rays that all but touch an edge may fall to its other side in single precision.
    assert different.mean() < 5e-4
    white = (drawn == 255).all(-1)
    assert height == 1 or (white[risen].any() and not white[~risen].any())
    unseen = renderer.render(position, heading, platform, torch.zeros_like(risen))
    assert torch.equal(unseen[~risen], drawn[~risen])


def test_many_pictures_are_drawn_as_few_are() -> None:
    settings = {"height": 60, "width": 80, "field_of_view": 90.0, "pool_radius": 2.0, "platform_radius": 0.3}
    position, heading, platform = points(300, 1.8, 0), torch.linspace(0, 6, 300), points(300, 1.7, 1)
    renderer, risen = PoolRenderer(**settings), torch.arange(300) % 2 == 0
    whole = renderer.render(position, heading, platform, risen)
    for part in (slice(0, 7), slice(140, 160), slice(299, 300)):
        few = renderer.render(position[part], heading[part], platform[part], risen[part])
        assert (few != whole[part]).float().mean() < 1e-4


def test_every_heading_looks_different() -> None:
    pool = Watermaze(height=18, width=24, num_tasks=3, num_validation=1, num_held_out=1).batch(
        np.zeros(72, int), seed=0
    )
    pool.heading = torch.arange(72) * math.tau / 72
    assert len(torch.unique(pool.frames().flatten(1), dim=0)) == 72
    colours = {tuple(colour) for _, colour in SECTORS}
    assert len(colours) == len(SECTORS) and sum(width for width, _ in SECTORS) == NUM_BINS


def test_the_view_from_the_centre() -> None:
    pool = Watermaze(height=72, width=96).batch(np.array([0]), seed=0)
    picture = pool.frames()[0]
    # Half the field of view is 45 degrees, so a pixel's slope is 1 / 48 and the wall, at 1, ends 0.38 * 48 = 18.24
    # rows above the horizon and 0.12 * 48 = 5.76 below: rows 18 to 41 by their middles.
    column = picture[:, 47]
    wall = [row for row in range(72) if tuple(column[row].tolist()) not in (SKY, WATER)]
    assert wall == list(range(18, 42))
    assert tuple(column[0].tolist()) == SKY and tuple(column[-1].tolist()) == WATER
    # A little to the left begins the first sector, to the right ends the last; both half way to the darkest.
    shade = 1 - (1 - DARKEST) * 16 / 31
    for number, sector in ((47, 0), (48, -1)):
        expected = torch.tensor(SECTORS[sector][1]) * shade
        assert (picture[36, number] - expected).abs().max() <= 1


# Moves and rewards


def at(pool, x: float, y: float, heading: float = 0.0) -> None:
    pool.position = torch.tensor([[x, y]]).repeat(len(pool.task_ids), 1)
    pool.heading = torch.full((len(pool.task_ids),), heading)


def test_each_action_by_hand() -> None:
    tasks = Watermaze(**SMALL, heading="fixed")
    pool = tasks.batch(np.zeros(8, int), seed=0)
    pool.reset()
    assert torch.equal(pool.position, torch.zeros(8, 2)) and torch.equal(pool.heading, torch.zeros(8))
    at(pool, 0.2, 0.1, math.pi / 2)  # looks along the second axis
    pool.step(torch.arange(8))
    half, high = 0.03, 0.06 * math.sqrt(3) / 2
    moved = [(0, 0.06), (0, -0.06), (-0.06, 0), (0.06, 0), (0, 0), (0, 0), (-half, high), (half, high)]
    np.testing.assert_allclose(pool.position, np.array(moved) + np.array([0.2, 0.1]), atol=1e-6)
    np.testing.assert_allclose(np.degrees(pool.heading.numpy()), [90, 90, 90, 90, 120, 60, 120, 60], atol=1e-3)
    assert len(ACTION_NAMES) == 8


def test_the_wall_stops_and_lets_slide() -> None:
    pool = Watermaze(**SMALL, heading="fixed").batch(np.zeros(1, int), seed=0)
    at(pool, 0.93, 0.0)
    pool.step(torch.tensor([FORWARD]))
    np.testing.assert_allclose(pool.position, [[0.95, 0.0]], atol=1e-6)
    at(pool, 0.95, 0.0, math.pi / 4)
    for _ in range(5):
        pool.step(torch.tensor([FORWARD]))
    assert pool.position[0, 1] > 0.15
    assert pool.position.norm().item() == pytest.approx(0.95, abs=1e-5)


@pytest.mark.parametrize(
    ("settings", "rewards", "ends"),
    [
        ({}, [0, 1, 0, 0, 0], []),
        ({"reward": "every_step"}, [0, 1, 1, 0, 1], []),
        ({"termination": "at_platform"}, [0, 1, 0, 0, 0], [1, 2, 4]),
    ],
)
def test_the_platform_pays_and_rises(settings: dict, rewards: list[int], ends: list[int]) -> None:
    pool = Watermaze(**SMALL, **settings, episode_steps=5).batch(np.array([3]), seed=0)
    goal = pool._goals[0].tolist()
    pool.reset()
    assert not pool.risen.any()
    for step, distance in enumerate((0.11, 0.09, 0.0, 0.2, 0.05)):
        at(pool, goal[0] + distance, goal[1])
        transition = pool.step(torch.tensor([ROTATE_LEFT]))
        assert transition.rewards.tolist() == [rewards[step]]
        assert pool.risen.tolist() == [step >= 1]
        assert transition.terminated.tolist() == [step in ends]
        assert transition.truncated.tolist() == [step == 4 and step not in ends]
    at(pool, goal[0], goal[1])
    assert (pool.frames() == 255).all(-1).any()
    pool.reset()
    assert not pool.risen.any() and not (pool.frames() == 255).all(-1).any()


def test_reset_and_assign_where_asked() -> None:
    tasks = Watermaze(**SMALL)
    pool = tasks.batch(np.array([0, 1, 2]), seed=0)
    pool.reset()
    for _ in range(3):
        before = pool.step(torch.full((3,), FORWARD)).observations
    where = torch.tensor([False, True, False])
    position, heading = pool.position, pool.heading
    pool.assign(torch.tensor([9, 9, 9]), where)
    after = pool.reset(where)
    assert pool.task_ids.tolist() == [0, 9, 2]
    np.testing.assert_array_equal(pool._goals, tasks.goals[[0, 9, 2]])
    assert torch.equal(pool.position[~where], position[~where]) and torch.equal(pool.heading[~where], heading[~where])
    assert torch.equal(after[~where], before[~where]) and pool.position[1].tolist() == [0.0, 0.0]
    assert pool._elapsed.tolist() == [3, 0, 3]


# Tasks


def test_what_an_agent_sees() -> None:
    tasks = Watermaze(**SMALL)
    assert TaskSpec.from_dict(tasks.spec.to_dict()) == tasks.spec
    assert tasks.spec.observation_width == 6 * 8 * 3 and tasks.spec.observation_dtype == torch.uint8
    assert tasks.spec.num_actions == 8 and tasks.spec.episode_steps == 50
    pool = tasks.batch(np.arange(5), seed=0)
    generator = torch_generator(0, "test")
    episode = play_episode(pool, lambda step, seen: random_actions(pool, generator))
    assert episode.observations.shape == (5, 50, 144) and episode.observations.dtype == torch.uint8
    assert torch.equal(pool.frames().flatten(1), pool.reset(torch.zeros(5, dtype=torch.bool)))


def test_goals_are_uniform_and_each_stays_its_own() -> None:
    few, many = Watermaze(**SMALL), Watermaze(num_tasks=20000)
    np.testing.assert_array_equal(few.goals, many.goals[: few.num_tasks])
    assert not np.array_equal(few.goals, Watermaze(**SMALL, split_seed=1).goals)
    radius = np.hypot(*many.goals.T)
    assert radius.max() <= 0.9 + 1e-6  # all of the platform lies in the pool
    np.testing.assert_allclose(np.quantile(radius, [0.25, 0.5, 0.75]), 0.9 * np.sqrt([0.25, 0.5, 0.75]), atol=0.01)
    np.testing.assert_allclose(many.goals.mean(0), 0.0, atol=0.01)
    splits = few.splits()
    assert [len(splits[split]) for split in SPLITS] == [20, 4, 6]
    assert sorted(np.concatenate(list(splits.values()))) == list(range(30))
    fewer = Watermaze(**SMALL, num_train=5).splits()
    assert len(fewer["train"]) == 5
    np.testing.assert_array_equal(fewer["held_out"], splits["held_out"])


def test_random_actions_earn_a_tenth() -> None:
    tasks = Watermaze(**{**SMALL, "num_tasks": 3000})
    pool, generator, earned = tasks.batch(np.arange(3000), seed=0), torch_generator(0, "test"), 0.0
    for _ in range(2):
        pool.place(pool._draw_headings())
        earned += sum(pool.advance(random_actions(pool, generator))[0].mean().item() for _ in range(50)) / 2
    assert earned == pytest.approx(0.10, abs=0.015)


def test_the_oracle_is_quick_from_everywhere() -> None:
    tasks = Watermaze(**{**SMALL, "num_tasks": 500})
    assert (tasks.oracle_returns() == 1.0).all()
    pool = tasks.batch(np.arange(500), seed=0)
    for place in (torch.zeros(500, 2), points(500, 0.95, 0)):
        pool.reset()
        pool.position = place.clone()
        distance = (place - pool._goals).norm(dim=1)
        fewest = ((distance - tasks.platform_radius).clamp(min=0) / tasks.step_length).ceil().clamp(min=1)
        arrived = torch.full((500,), 99)
        for step in range(50):
            rewards, _, _ = pool.advance(pool.oracle_actions())
            arrived = torch.where(rewards > 0, step + 1, arrived)
        assert (arrived >= fewest).all() and (arrived <= fewest + 5).all()
        assert (arrived - fewest).mean() < 1.1
        assert ((pool.position - pool._goals).norm(dim=1) < 0.05).all()  # and there it stays


def test_oracle_returns_of_other_laws() -> None:
    lasting = Watermaze(**SMALL, reward="every_step").oracle_returns()
    assert (lasting > 28).all() and (lasting <= 50).all() and len(lasting) == 30
    assert (Watermaze(**SMALL, termination="at_platform", reward="every_step").oracle_returns() == 1.0).all()
    assert (Watermaze(**SMALL, episode_steps=1, start=[0.9, 0.0]).oracle_returns() < 1.0).any()


def test_experts_are_told_from_the_record() -> None:
    tasks = Watermaze(height=18, width=24, num_tasks=140)
    ids = np.arange(40)
    pool, generator, best = tasks.batch(ids, seed=3), torch_generator(0, "test"), []

    def choose(step: int, observations: torch.Tensor) -> torch.Tensor:
        best.append(pool.oracle_actions())
        return random_actions(pool, generator)

    episode = play_episode(pool, choose)
    assert torch.equal(tasks.expert_actions(episode, ids), torch.stack(best, 1))
    with pytest.raises(ValueError, match="recorded with other settings"):
        Watermaze(height=18, width=24, field_of_view=80).expert_actions(episode, ids)


def test_the_same_seed_repeats() -> None:
    tasks = Watermaze(**SMALL)

    def headings(seed: int) -> torch.Tensor:
        pool = tasks.batch(np.arange(20), seed=seed)
        return torch.stack([(pool.reset(), pool.heading)[1] for _ in range(5)])

    assert torch.equal(headings(1), headings(1))
    assert not torch.equal(headings(1), headings(2))
    turns = headings(1) / math.radians(30)
    assert torch.allclose(turns, turns.round(), atol=1e-5) and len(turns.round().unique()) == 12


@pytest.mark.parametrize(
    "settings",
    [
        {"height": 255},
        {"width": 0},
        {"field_of_view": 180.0},
        {"pool_radius": 0.0},
        {"platform_radius": 0.01},
        {"platform_radius": 1.5},
        {"step_length": 0.11},
        {"step_length": 0.0},
        {"turn_angle": 0.0},
        {"start": "edge"},
        {"start": [0.9, 0.9]},
        {"heading": "north"},
        {"reward": "twice"},
        {"termination": "at_goal"},
        {"num_tasks": 0},
    ],
)
def test_bad_settings_are_named(settings: dict) -> None:
    ((name, value),) = settings.items()
    with pytest.raises(ValueError, match=name) as error:
        Watermaze(**settings)
    assert str(value) in str(error.value)


def test_unknown_tasks_are_refused() -> None:
    for ids in (np.array([], int), np.array([30]), np.array([-1]), np.array([0.5])):
        with pytest.raises(ValueError, match="task ids"):
            Watermaze(**SMALL).batch(ids, seed=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_pictures_on_a_gpu() -> None:
    tasks, ids = Watermaze(), np.arange(64)
    host, device = (tasks.batch(ids, seed=0, device=name) for name in ("cpu", "cuda"))
    for pool in (host, device):
        pool.place(ids % 12)
        for _ in range(12):
            pool.advance(pool.oracle_actions())
    assert (host.frames() != device.frames().cpu()).float().mean() < 1e-3
