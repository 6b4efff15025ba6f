"""Dark Room against numbers worked by hand, every variant, and the split by task."""

import numpy as np
import pytest
import torch

from distillery.core.rollouts import play_episode, random_actions
from distillery.tasks.base import SPLITS
from distillery.tasks.dark_room import ACTION_NAMES, DarkRoom, action_permutations

LEFT, RIGHT, UP, DOWN, STAY = range(5)
HARD = {"width": 17, "height": 17, "reward": "once", "num_validation": 24, "num_held_out": 48}


def play(room: DarkRoom, task_ids, actions) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Plays (T,) actions in every environment; returns (T, E, 2) observations, then (T, E) of all else."""
    batch = room.batch(np.asarray(task_ids), seed=0)
    batch.reset()
    steps = [batch.step(torch.full((len(task_ids),), action)) for action in actions]
    names = ("observations", "rewards", "terminated", "truncated")
    return tuple(torch.stack([getattr(step, name) for step in steps]) for name in names)


def shortest_path_returns(room: DarkRoom, task_ids: np.ndarray) -> np.ndarray:
    """Returns of an agent that closes the distance along x, then along y, then stays."""
    batch = room.batch(task_ids, seed=0)
    goals = batch.observe(batch.task_ids)
    observations, total = batch.reset(), torch.zeros(len(task_ids))
    alive = torch.ones(len(task_ids), dtype=torch.bool)
    for _ in range(room.spec.episode_steps):
        dx, dy = (goals - observations).T
        action = torch.full_like(dx, STAY)
        action = torch.where(dy > 0, DOWN, torch.where(dy < 0, UP, action))
        action = torch.where(dx > 0, RIGHT, torch.where(dx < 0, LEFT, action))
        after = batch.step(action)
        total += after.rewards * alive
        alive &= ~after.terminated
        observations = after.observations
    return total.numpy()


def test_the_oracle_of_the_published_room_is_16_54() -> None:
    # A goal at distance d pays 21 - d; d = 1..4 has 4d goals, and d = 4 + k (k = 1..4) has 4 * (5 - k) of them. The
    # centre goal is first paid by the first step: 20. In all 20 + 80 * 21 - 360 = 1340 over 81 goals.
    oracle = DarkRoom().oracle_returns()
    assert oracle.shape == (81,)
    assert oracle.mean() == pytest.approx(1340 / 81)
    assert oracle.mean() == pytest.approx(16.5432, abs=1e-4)
    assert oracle.min() == oracle[0] == oracle[80] == 13
    assert oracle[40] == 20
    assert oracle[41] == 20
    assert oracle[42] == 19


def test_a_random_policy_earns_20_81sts() -> None:
    room = DarkRoom()
    num_envs = 81 * 600
    batch = room.batch(np.tile(np.arange(81), 600), seed=0)
    generator = torch.Generator().manual_seed(0)
    batch.reset()
    total = torch.zeros(num_envs)
    for _ in range(20):
        total += batch.advance(torch.randint(5, (num_envs,), generator=generator))[0]
    # Over all goals, every step ends on exactly one: 20 / 81, to the noise of 600 walks for each goal.
    assert total.mean().item() == pytest.approx(20 / 81, abs=4 * total.std().item() / num_envs**0.5)


def chance_of_touching(room: DarkRoom) -> np.ndarray:
    """(S,) exact chance that a uniformly random walk of one episode touches each goal."""
    num_cells = room.width * room.height
    moves = np.zeros((num_cells, num_cells))
    for leads_to in room.next_state.T:
        moves[np.arange(num_cells), leads_to] += 1 / 5
    walks = np.zeros((num_cells, num_cells))  # (goals, cells): where walks are that have not touched the goal
    walks[:, room.start_states] = 1 / len(room.start_states)
    for _ in range(room.spec.episode_steps):
        walks = walks @ moves
        np.fill_diagonal(walks, 0.0)
    return 1.0 - walks.sum(1)


def test_the_levels_of_the_hard_room() -> None:
    room = DarkRoom(**HARD)
    assert (room.oracle_returns() == 1.0).all()  # no cell is further than 16
    assert [len(ids) for ids in room.splits().values()] == [217, 24, 48]
    expected = chance_of_touching(room).mean()
    assert expected == pytest.approx(0.0373, abs=1e-4)
    batch, generator = room.batch(np.tile(np.arange(289), 100), seed=0), torch.Generator().manual_seed(0)
    returns = play_episode(batch, lambda step, observations: random_actions(batch, generator)).returns
    error = returns.std().item() / len(returns) ** 0.5
    assert returns.mean().item() == pytest.approx(expected, abs=4 * error)
    assert error < 0.0015
    oracle = play_episode(batch, lambda step, observations: batch.oracle_actions())
    assert (oracle.returns == 1.0).all()


def test_any_walk_earns_20_over_all_goals_together() -> None:
    _, rewards, _, _ = play(DarkRoom(), np.arange(81), [LEFT, UP, UP, STAY, RIGHT] * 4)
    assert rewards.sum() == 20


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"reward": "once"},
        {"termination": "at_goal"},
        {"start": [0, 8]},
        {"width": 5, "height": 3, "episode_steps": 4, "num_validation": 2, "num_held_out": 3},
    ],
)
def test_the_oracle_is_what_the_shortest_path_earns(settings: dict) -> None:
    room = DarkRoom(**settings)
    goals = np.arange(room.num_tasks)
    np.testing.assert_array_equal(shortest_path_returns(room, goals), room.oracle_returns())


@pytest.mark.parametrize("walls", ["clip", "wrap"])
@pytest.mark.parametrize("start", ["centre", "random"])
def test_oracle_actions_earn_the_oracle(walls: str, start: str) -> None:
    room = DarkRoom(walls=walls, start=start)
    batch = room.batch(np.repeat(np.arange(81), 200 if start == "random" else 1), seed=0)
    batch.reset()
    total = sum(batch.advance(batch.oracle_actions())[0] for _ in range(20))
    assert total.mean().item() == pytest.approx(room.oracle_returns().mean(), abs=0.05 if start == "random" else 1e-5)


@pytest.mark.parametrize(
    "settings", [{}, {"reward": "once"}, {"walls": "wrap", "start": "random"}, {"num_action_permutations": 7}]
)
def test_expert_actions_are_the_oracles(settings: dict) -> None:
    room = DarkRoom(**settings)
    task_ids = np.arange(room.num_tasks)
    batch, generator = room.batch(task_ids, seed=0), torch.Generator().manual_seed(0)
    wanted = []

    def choose(step: int, observations: torch.Tensor) -> torch.Tensor:
        wanted.append(batch.oracle_actions())
        return random_actions(batch, generator)

    episode = play_episode(batch, choose)
    assert torch.equal(room.expert_actions(episode, task_ids), torch.stack(wanted, 1))


# Permuted actions


def test_the_first_permutation_is_none_and_no_two_are_alike() -> None:
    every = action_permutations(120)
    assert every[0].tolist() == [0, 1, 2, 3, 4]
    assert len(np.unique(every, axis=0)) == 120
    assert (np.sort(every, 1) == np.arange(5)).all()
    np.testing.assert_array_equal(action_permutations(9), every[:9])


def test_actions_move_as_their_tasks_say() -> None:
    room = DarkRoom(num_action_permutations=3)
    assert room.num_tasks == 243
    goal = 5 + 9 * 4
    task_ids = goal + 81 * np.arange(3)
    for action in range(5):
        observations, rewards, _, _ = play(room, task_ids, [action])
        moves = room.permutations[:, action]
        reached = room.next_state[40, moves]
        assert observations[0].tolist() == [[cell % 9, cell // 9] for cell in reached]
        assert rewards[0].tolist() == (reached == goal).astype(float).tolist()


def test_permuted_tasks_are_as_hard_as_their_goals() -> None:
    room, plain = DarkRoom(num_action_permutations=4), DarkRoom()
    np.testing.assert_array_equal(room.oracle_returns().reshape(4, 81), np.tile(plain.oracle_returns(), (4, 1)))
    batch = room.batch(np.arange(324), seed=0)
    returns = play_episode(batch, lambda step, observations: batch.oracle_actions()).returns
    np.testing.assert_array_equal(returns.numpy(), room.oracle_returns())
    np.testing.assert_array_equal(room.draw(81 * 2 + 5, 7), plain.draw(5, 7))


def test_permuted_tasks_say_that_their_moves_differ() -> None:
    assert DarkRoom().batch(np.array([0]), seed=0).shares_dynamics
    assert not DarkRoom(num_action_permutations=2).batch(np.array([0]), seed=0).shares_dynamics


def test_permuted_tasks_can_be_reassigned() -> None:
    room = DarkRoom(num_action_permutations=2)
    batch = room.batch(np.array([40, 40]), seed=0)
    batch.assign(torch.tensor([41 + 81, 0]), torch.tensor([True, False]))
    batch.reset()
    action = int(np.flatnonzero(room.permutations[1] == RIGHT)[0])
    assert batch.advance(torch.tensor([action, STAY]))[0].tolist() == [1, 1]


def test_actions_move_as_named() -> None:
    assert ACTION_NAMES == ("left", "right", "up", "down", "no-op")
    observations, _, _, _ = play(DarkRoom(), [0], [LEFT, UP, RIGHT, RIGHT, DOWN, STAY])
    assert observations[:, 0].tolist() == [[3, 4], [3, 3], [4, 3], [5, 3], [5, 4], [5, 4]]


def test_a_task_is_its_goal_cell() -> None:
    room = DarkRoom()
    batch = room.batch(np.arange(81), seed=0)
    assert batch.observe(batch.task_ids).tolist() == [[x, y] for y in range(9) for x in range(9)]
    _, rewards, _, _ = play(room, [3 + 9 * 4], [LEFT, LEFT, RIGHT])
    assert rewards[:, 0].tolist() == [1, 0, 1]


def test_reward_every_step_or_once() -> None:
    actions, goal = [RIGHT, STAY, LEFT, RIGHT], [5 + 9 * 4]
    assert play(DarkRoom(reward="every_step"), goal, actions)[1][:, 0].tolist() == [1, 1, 0, 1]
    assert play(DarkRoom(reward="once"), goal, actions)[1][:, 0].tolist() == [1, 0, 0, 0]


def test_reward_once_is_once_per_episode() -> None:
    batch = DarkRoom(reward="once").batch(np.array([40, 40]), seed=0)
    batch.reset()
    stay = torch.full((2,), STAY)
    assert batch.advance(stay)[0].tolist() == [1, 1]
    batch.reset(torch.tensor([True, False]))
    assert batch.advance(stay)[0].tolist() == [1, 0]


def test_start_at_the_centre_at_a_cell_or_anywhere() -> None:
    def starts(start, num_envs: int = 2000) -> list[tuple[int, int]]:
        observations = DarkRoom(start=start).batch(np.zeros(num_envs, dtype=int), seed=3).reset()
        return [tuple(cell) for cell in observations.tolist()]

    assert set(starts("centre")) == {(4, 4)}
    assert set(starts([8, 0])) == {(8, 0)}
    assert len(set(starts("random"))) == 81
    assert starts("random") == starts("random")


def test_a_random_start_is_drawn_anew_each_episode() -> None:
    batch = DarkRoom(start="random").batch(np.zeros(50, dtype=int), seed=0)
    assert not torch.equal(batch.reset(), batch.reset())


def test_walls_clip_or_wrap() -> None:
    walk = [LEFT] * 6
    clipped, _, _, _ = play(DarkRoom(walls="clip"), [0], walk)
    wrapped, _, _, _ = play(DarkRoom(walls="wrap"), [0], walk)
    assert clipped[:, 0, 0].tolist() == [3, 2, 1, 0, 0, 0]
    assert wrapped[:, 0, 0].tolist() == [3, 2, 1, 0, 8, 7]
    assert wrapped[:, 0, 1].tolist() == [4] * 6


def test_a_torus_is_smaller() -> None:
    # From a corner of a 9x9 torus no cell is further than 4 + 4.
    distances = DarkRoom(walls="wrap", start=[0, 0]).distances()
    assert distances.max() == 8
    assert distances[0, 8] == 1
    assert distances[0, 80] == 2
    assert DarkRoom(walls="clip").distances()[0, 80] == 16


def test_termination_never_or_at_the_goal() -> None:
    actions, goals = [RIGHT] + [STAY] * 19, [5 + 9 * 4, 0]
    _, rewards, terminated, truncated = play(DarkRoom(termination="never"), goals, actions)
    assert not terminated.any()
    assert truncated[:, 0].tolist() == [False] * 19 + [True]
    assert rewards[:, 0].tolist() == [1] * 20
    room = DarkRoom(termination="at_goal")
    _, _, terminated, truncated = play(room, goals, actions)
    assert terminated[0].tolist() == [True, False]
    assert truncated[-1].tolist() == [False, True]
    assert not (terminated & truncated).any()
    assert room.batch(np.array([0]), seed=0).can_terminate
    assert not DarkRoom().batch(np.array([0]), seed=0).can_terminate


@pytest.mark.parametrize("episode_steps", [1, 7])
def test_the_horizon_truncates(episode_steps: int) -> None:
    room = DarkRoom(episode_steps=episode_steps)
    _, _, _, truncated = play(room, [0], [STAY] * episode_steps)
    assert truncated[:, 0].tolist() == [False] * (episode_steps - 1) + [True]
    assert room.oracle_returns()[0] == 0  # the corner is 8 steps away
    assert room.oracle_returns()[40] == episode_steps


def test_environments_are_reset_apart() -> None:
    batch = DarkRoom().batch(np.array([0, 1]), seed=0)
    batch.reset()
    for _ in range(19):
        batch.advance(torch.full((2,), LEFT))
    assert batch.reset(torch.tensor([False, True])).tolist() == [[0, 4], [4, 4]]
    assert batch.advance(torch.full((2,), STAY))[2].tolist() == [True, False]


def test_tasks_can_be_reassigned() -> None:
    batch = DarkRoom().batch(np.array([0, 1]), seed=0)
    where = torch.tensor([True, False])
    batch.assign(torch.tensor([40, 40]), where)
    batch.reset(where)
    assert batch.task_ids.tolist() == [40, 1]
    assert batch.advance(torch.full((2,), STAY))[0].tolist() == [1, 0]


def test_a_room_is_drawn() -> None:
    room = DarkRoom(width=3, height=2, num_validation=1, num_held_out=1)
    assert ["".join(row) for row in room.draw(task_id=5, state=1)] == [".A.", "..G"]
    assert ["".join(row) for row in room.draw(task_id=5, state=5)] == ["...", "..@"]


@pytest.mark.parametrize(
    ("settings", "shown"),
    [
        ({"reward": "twice"}, "'twice'"),
        ({"start": "corner"}, "'corner'"),
        ({"start": [9, 0]}, r"\[9, 0\]"),
        ({"start": [0, -1]}, r"\[0, -1\]"),
        ({"start": [1.5, 2]}, r"\[1.5, 2\]"),
        ({"start": [1, 2, 3]}, r"\[1, 2, 3\]"),
        ({"start": 40}, "40"),
        ({"walls": "bounce"}, "'bounce'"),
        ({"termination": "sometimes"}, "'sometimes'"),
        ({"width": 0}, "0 and 9"),
        ({"height": 257}, "9 and 257"),
        ({"episode_steps": 0}, "got 0"),
        ({"num_action_permutations": 0}, "num_action_permutations.*0"),
        ({"num_action_permutations": 121}, "num_action_permutations.*121"),
        ({"split": "thirds"}, "'thirds'"),
    ],
)
def test_bad_settings_are_named(settings: dict, shown: str) -> None:
    with pytest.raises(ValueError, match=shown):
        DarkRoom(**settings)


@pytest.mark.parametrize("task_ids", [[], [81], [-1], [0.5]])
def test_bad_task_ids_are_refused(task_ids: list) -> None:
    with pytest.raises(ValueError, match="task ids"):
        DarkRoom().batch(np.array(task_ids), seed=0)


def test_the_split_is_complete_and_disjoint() -> None:
    splits = DarkRoom().splits()
    assert tuple(splits) == SPLITS
    assert [len(splits[split]) for split in SPLITS] == [57, 8, 16]
    together = np.concatenate([splits[split] for split in SPLITS])
    assert sorted(together) == list(range(81))


def test_the_split_is_seeded() -> None:
    first, again, other = (DarkRoom(split_seed=seed).task_ids("held_out") for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("split_seed", range(5))
def test_every_split_is_as_hard_as_the_whole(split_seed: int) -> None:
    room = DarkRoom(split_seed=split_seed)
    for split in SPLITS:
        assert room.oracle_returns()[room.task_ids(split)].mean() == pytest.approx(1340 / 81, abs=0.2), split


@pytest.mark.parametrize(
    ("settings", "empty"),
    [
        ({"num_validation": 0}, "validation"),
        ({"num_held_out": 0}, "held_out"),
        ({"num_held_out": 73}, "train"),
        ({"num_validation": -3}, "validation"),
    ],
)
def test_an_empty_split_is_refused(settings: dict, empty: str) -> None:
    with pytest.raises(ValueError, match=f"'{empty}'.*{next(iter(settings.values()))}"):
        DarkRoom(**settings).splits()


def test_the_default_split_stays_what_it_was() -> None:
    splits = DarkRoom().splits()
    assert splits["validation"].tolist() == [4, 7, 43, 48, 61, 66, 70, 77]
    assert splits["held_out"].tolist() == [0, 5, 6, 12, 16, 17, 18, 19, 29, 31, 38, 50, 51, 53, 56, 60]


def test_some_goals_may_be_left_unused() -> None:
    few, all_left = DarkRoom(num_train=10).splits(), DarkRoom().splits()
    assert len(few["train"]) == 10
    assert set(few["train"]) < set(all_left["train"])
    np.testing.assert_array_equal(few["held_out"], all_left["held_out"])
    with pytest.raises(ValueError, match="num_train=58.*leave 57"):
        DarkRoom(num_train=58).splits()


def test_held_out_goals_may_lie_in_a_half_of_their_own() -> None:
    x = {split: ids % 9 for split, ids in DarkRoom(split="halves").splits().items()}
    assert [len(ids) for ids in x.values()] == [37, 8, 16]
    assert max(x["train"].max(), x["validation"].max()) == 4
    assert x["held_out"].min() == 5
    assert len(DarkRoom(split="halves", num_held_out=36).task_ids("held_out")) == 36
    with pytest.raises(ValueError, match="num_held_out=37.*36"):
        DarkRoom(split="halves", num_held_out=37).splits()
    with pytest.raises(ValueError, match="'train'.*36 of them held apart"):
        DarkRoom(split="halves", num_validation=45).splits()


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="'test'"):
        DarkRoom().task_ids("test")


def test_sampling_stays_in_its_split_and_repeats() -> None:
    room = DarkRoom()
    batch = room.sample("held_out", 500, seed=1)
    assert set(batch.task_ids.tolist()) == set(room.task_ids("held_out").tolist())
    assert torch.equal(batch.task_ids, room.sample("held_out", 500, seed=1).task_ids)
    assert not torch.equal(batch.task_ids, room.sample("held_out", 500, seed=2).task_ids)
