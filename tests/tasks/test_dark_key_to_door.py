"""Dark Key-to-Door against a plain loop, against numbers worked out exactly, and its split of some tasks among all."""

import numpy as np
import pytest
import torch

from distillery.core.records import EpisodeBatch
from distillery.core.rollouts import play_episode, random_actions
from distillery.tasks.base import SPLITS
from distillery.tasks.dark_key_to_door import DarkKeyToDoor

LEFT, RIGHT, UP, DOWN, STAY = range(5)
ROOM = {"width": 4, "height": 3, "episode_steps": 12, "num_train": 40, "num_validation": 5, "num_held_out": 7}


def task(room: DarkKeyToDoor, key: tuple[int, int], door: tuple[int, int]) -> int:
    (key_x, key_y), (door_x, door_y) = key, door
    return key_x + room.width * key_y + room.width * room.height * (door_x + room.width * door_y)


def play(room: DarkKeyToDoor, task_id: int, actions: list[int]) -> list[tuple[list[int], float, bool, bool, int]]:
    """Per step: observation, reward, terminated, truncated, and what has been touched."""
    batch = room.batch(np.array([task_id]), seed=0)
    batch.reset()
    steps = []
    for action in actions:
        after = batch.step(torch.tensor([action]))
        done = int(batch.state[0]) // (room.width * room.height)
        steps.append(
            (
                after.observations[0].tolist(),
                *(x.item() for x in (after.rewards, after.terminated, after.truncated)),
                done,
            )
        )
    return steps


def random_episode(room: DarkKeyToDoor, task_ids: np.ndarray, seed: int = 0) -> EpisodeBatch:
    batch, generator = room.batch(task_ids, seed=seed), torch.Generator().manual_seed(seed)
    return play_episode(batch, lambda step, observations: random_actions(batch, generator))


def test_key_then_door_by_hand() -> None:
    room = DarkKeyToDoor(start="centre")
    steps = play(
        room, task(room, key=(5, 4), door=(4, 3)), [UP, DOWN, RIGHT, LEFT, RIGHT, UP, LEFT, STAY, DOWN, RIGHT]
    )
    assert [step[0] for step in steps] == [
        [4, 3],  # the door pays nothing without the key
        [4, 4],
        [5, 4],  # the key
        [4, 4],
        [5, 4],  # where the key was
        [5, 3],
        [4, 3],  # the door
        [4, 3],
        [4, 4],
        [5, 4],
    ]
    assert [step[1] for step in steps] == [0, 0, 1, 0, 0, 0, 1, 0, 0, 0]
    assert [step[4] for step in steps] == [0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
    assert not any(step[2] or step[3] for step in steps)


def test_the_open_door_may_end_the_episode() -> None:
    room = DarkKeyToDoor(start="centre", termination="at_door", episode_steps=3)
    task_id = task(room, key=(5, 4), door=(4, 4))
    assert [step[1:4] for step in play(room, task_id, [RIGHT, LEFT])] == [(1, False, False), (1, True, False)]
    assert [step[1:4] for step in play(room, task_id, [STAY, RIGHT, LEFT])][-1] == (1, True, False)
    assert [step[1:4] for step in play(room, task_id, [RIGHT, STAY, STAY])][-1] == (0, False, True)
    assert room.batch(np.array([0]), seed=0).can_terminate
    assert not DarkKeyToDoor().batch(np.array([0]), seed=0).can_terminate


def test_starting_on_the_key_touches_nothing_but_a_no_op_does() -> None:
    room = DarkKeyToDoor(start=[2, 3])
    batch = room.batch(np.array([task(room, key=(2, 3), door=(0, 0))]), seed=0)
    batch.reset()
    assert batch.state.item() == 2 + 9 * 3
    assert batch.advance(torch.tensor([STAY]))[0].item() == 1
    assert batch.state.item() == 2 + 9 * 3 + 81


def test_key_and_door_in_one_cell_take_two_steps() -> None:
    room = DarkKeyToDoor(start="centre")
    steps = play(room, task(room, key=(5, 4), door=(5, 4)), [RIGHT, STAY, STAY])
    assert [step[1] for step in steps] == [1, 1, 0]
    steps = play(room, task(room, key=(5, 4), door=(5, 4)), [RIGHT, LEFT, RIGHT])
    assert [step[1] for step in steps] == [1, 0, 1]


def test_the_key_is_not_observed() -> None:
    room = DarkKeyToDoor(**ROOM)
    batch = room.batch(np.array([0]), seed=0)
    states = torch.arange(36)
    cells = [[x, y] for y in range(3) for x in range(4)]
    assert batch.observe(states).tolist() == cells * 3
    assert batch.observe(states.view(3, 12)).shape == (3, 12, 2)
    assert room.spec.observation_sizes == (4, 3)


def test_moves_keep_what_was_touched() -> None:
    next_state = DarkKeyToDoor().batch(np.array([0]), seed=0).next_state
    assert next_state.shape == (243, 5)
    assert torch.equal(next_state[81:162], next_state[:81] + 81)
    assert torch.equal(next_state[162:], next_state[:81] + 162)
    assert next_state[40].tolist() == [39, 41, 31, 49, 40]


@pytest.mark.parametrize("walls", ["clip", "wrap"])
@pytest.mark.parametrize("termination", ["never", "at_door"])
def test_the_batch_does_what_a_plain_loop_does(walls: str, termination: str) -> None:
    room = DarkKeyToDoor(**ROOM, walls=walls, termination=termination)
    task_ids = np.arange(144)
    episode = random_episode(room, task_ids, seed=3)
    num_ended = 0
    for env, task_id in enumerate(task_ids):
        key, door = divmod(int(task_id) % 12, 4)[::-1], divmod(int(task_id) // 12, 4)[::-1]
        cell, touched = tuple(episode.observations[env, 0].tolist()), 0
        for step in range(int(episode.num_steps[env])):
            assert tuple(episode.observations[env, step].tolist()) == cell
            x, y = np.add(cell, [(-1, 0), (1, 0), (0, -1), (0, 1), (0, 0)][int(episode.actions[env, step])])
            cell = (x % 4, y % 3) if walls == "wrap" else (min(max(x, 0), 3), min(max(y, 0), 2))
            reward = int((touched == 0 and cell == key) or (touched == 1 and cell == door))
            assert episode.rewards[env, step] == reward
            touched += reward
        ended = termination == "at_door" and touched == 2
        assert episode.terminated[env] == ended
        assert ended or episode.num_steps[env] == 12
        num_ended += ended
    assert (num_ended > 10) == (termination == "at_door")


# Levels of the published room


def first_touch_chances(room: DarkKeyToDoor) -> np.ndarray:
    """(T + 1, S, S): chance that a random walk from one cell first touches another at each step."""
    num_cells = room.grid.num_cells
    moves = np.zeros((num_cells, num_cells))
    for leads_to in room.grid.next_state.T:
        moves[np.arange(num_cells), leads_to] += 1 / 5
    chances = np.zeros((room.spec.episode_steps + 1, num_cells, num_cells))
    chances[1] = moves
    for step in range(2, len(chances)):
        chances[step] = moves @ (chances[step - 1] * ~np.eye(num_cells, dtype=bool))
    return chances


def exact_random_return(room: DarkKeyToDoor) -> float:
    """Expected return of uniformly random actions over all tasks and starts."""
    at_step = first_touch_chances(room)
    within = at_step.cumsum(0)
    key_at = at_step.mean(1)  # (T + 1, S): over starts
    horizon = room.spec.episode_steps
    door = sum((key_at[step][:, None] * within[horizon - step]).sum() for step in range(horizon + 1))
    return float(within[horizon].mean() + door / room.num_tasks)


@pytest.mark.parametrize("termination", ["never", "at_door"])
def test_a_random_policy_earns_a_quarter(termination: str) -> None:
    room = DarkKeyToDoor(termination=termination)
    assert exact_random_return(room) == pytest.approx(0.2513, abs=1e-4)
    returns = torch.cat([random_episode(room, np.arange(6561), seed).returns for seed in range(4)])
    assert returns.max() <= 2
    error = returns.std().item() / len(returns) ** 0.5
    assert returns.mean().item() == pytest.approx(exact_random_return(room), abs=4 * error)
    assert error < 0.005


@pytest.mark.parametrize(
    "settings",
    [{}, {"termination": "at_door"}, {"walls": "wrap"}, {"start": "centre", "episode_steps": 50}],
)
def test_the_oracle_of_the_published_room_earns_2(settings: dict) -> None:
    room = DarkKeyToDoor(**settings)
    assert room.oracle_returns().shape == (6561,)
    assert (room.oracle_returns() == 2.0).all()
    batch = room.batch(np.arange(6561), seed=0)
    episode = play_episode(batch, lambda step, observations: batch.oracle_actions())
    assert (episode.returns == 2.0).all()


@pytest.mark.parametrize("episode_steps", [1, 2, 5, 8])
@pytest.mark.parametrize("start", ["random", "centre", [3, 0]])
def test_the_oracle_where_steps_are_short(episode_steps: int, start) -> None:
    room = DarkKeyToDoor(**ROOM | {"episode_steps": episode_steps}, start=start)
    # Every start of every task once: 12 environments of each that were moved to their start by hand.
    starts = np.arange(12) if start == "random" else np.repeat(room.start_states, 12)
    batch = room.batch(np.arange(144).repeat(12), seed=0)
    batch.reset()
    batch.state = torch.as_tensor(np.tile(starts, 144))
    total = sum(batch.advance(batch.oracle_actions())[0] for _ in range(episode_steps))
    np.testing.assert_allclose(total.view(144, 12).mean(1), room.oracle_returns(), atol=1e-6)


def test_expert_actions_are_the_oracles() -> None:
    room = DarkKeyToDoor(**ROOM | {"episode_steps": 40})
    task_ids = np.arange(144)
    batch, generator = room.batch(task_ids, seed=0), torch.Generator().manual_seed(0)
    wanted = []

    def choose(step: int, observations: torch.Tensor) -> torch.Tensor:
        wanted.append(batch.oracle_actions())
        return random_actions(batch, generator)

    episode = play_episode(batch, choose)
    assert (episode.returns == 2).sum() > 50
    assert torch.equal(room.expert_actions(episode, task_ids), torch.stack(wanted, 1))


def test_a_start_is_drawn_anew_everywhere() -> None:
    batch = DarkKeyToDoor().batch(np.zeros(2000, dtype=int), seed=0)
    first, second = batch.reset(), batch.reset()
    assert len({tuple(cell) for cell in first.tolist()}) == 81
    assert not torch.equal(first, second)
    assert torch.equal(first, DarkKeyToDoor().batch(np.zeros(2000, dtype=int), seed=0).reset())


def test_environments_are_reset_apart_and_reassigned() -> None:
    room = DarkKeyToDoor(start="centre", episode_steps=3)
    batch = room.batch(np.array([task(room, (5, 4), (4, 4))] * 2), seed=0)
    batch.reset()
    batch.advance(torch.tensor([RIGHT, RIGHT]))
    where = torch.tensor([True, False])
    batch.assign(torch.tensor([task(room, (3, 4), (4, 4))] * 2), where)
    assert batch.reset(where).tolist() == [[4, 4], [5, 4]]
    assert batch.state.tolist() == [40, 41 + 81]
    assert batch.advance(torch.tensor([LEFT, STAY]))[0].tolist() == [1, 0]
    assert batch.advance(torch.tensor([RIGHT, LEFT]))[2].tolist() == [False, True]


def test_a_room_is_drawn() -> None:
    room = DarkKeyToDoor(**ROOM)
    task_id = task(room, key=(1, 0), door=(3, 2))

    def drawn(state: int, of: int = task_id) -> list[str]:
        return ["".join(row) for row in room.draw(of, state)]

    assert drawn(0) == ["AK..", "....", "...D"]
    assert drawn(1) == [".@..", "....", "...D"]
    assert drawn(12 + 1) == [".A..", "....", "...D"]
    assert drawn(12 + 11) == ["....", "....", "...@"]
    both = task(room, key=(1, 0), door=(1, 0))
    assert drawn(0, both)[0] == "AK.."
    assert drawn(12, both)[0] == "AD.."


# The split


def test_some_tasks_are_used() -> None:
    room = DarkKeyToDoor()
    splits = room.splits()
    assert tuple(splits) == SPLITS
    assert [len(splits[split]) for split in SPLITS] == [2424, 48, 96]
    together = np.concatenate(list(splits.values()))
    assert len(np.unique(together)) == 2568
    assert 0 <= together.min() <= together.max() < 6561
    for ids in splits.values():
        assert room.difficulty()[ids].mean() == pytest.approx(room.difficulty().mean(), abs=0.05)


def test_all_that_are_left_are_trained_on_without_a_number() -> None:
    assert len(DarkKeyToDoor(num_train=None).task_ids("train")) == 6561 - 144


def test_how_many_are_trained_on_changes_no_other_split() -> None:
    few, many = DarkKeyToDoor(num_train=18).splits(), DarkKeyToDoor(num_train=None).splits()
    assert len(few["train"]) == 18
    assert set(few["train"]) <= set(many["train"])
    for split in ("validation", "held_out"):
        np.testing.assert_array_equal(few[split], many[split])


@pytest.mark.parametrize(("num_train", "shown"), [(6418, "num_train=6418.*leave 6417"), (0, "'train' would have 0")])
def test_a_wrong_number_of_training_tasks_is_refused(num_train: int, shown: str) -> None:
    with pytest.raises(ValueError, match=shown):
        DarkKeyToDoor(num_train=num_train).splits()


@pytest.mark.parametrize(
    ("settings", "shown"),
    [
        ({"start": "corner"}, "dark_key_to_door start.*'corner'"),
        ({"walls": "bounce"}, "dark_key_to_door walls.*'bounce'"),
        ({"termination": "at_goal"}, "dark_key_to_door termination.*'at_goal'"),
        ({"width": 33}, "dark_key_to_door.*33 and 9"),
        ({"episode_steps": 0}, "got 0"),
    ],
)
def test_bad_settings_are_named(settings: dict, shown: str) -> None:
    with pytest.raises(ValueError, match=shown):
        DarkKeyToDoor(**settings)


@pytest.mark.parametrize("task_ids", [[], [6561], [-1], [0.5]])
def test_bad_task_ids_are_refused(task_ids: list) -> None:
    with pytest.raises(ValueError, match="task ids"):
        DarkKeyToDoor().batch(np.array(task_ids), seed=0)
