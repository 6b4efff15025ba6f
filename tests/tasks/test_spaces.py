"""Gymnasium's spaces as rows of numbers and back."""

import math

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from distillery.core.specs import Box, Discrete, TaskSpec
from distillery.tasks.spaces import (
    ActionRows,
    ObservationRows,
    action_space,
    observation_space,
    observations_of_rows,
)

NESTED = spaces.Dict(
    {
        "camera": spaces.Box(0, 255, (2, 3, 3), np.uint8),
        "arm": spaces.Dict(
            {
                "joints": spaces.Box(np.array([-1.0, -2.0]), np.array([1.0, 3.0]), dtype=np.float64),
                "grip": spaces.Discrete(3, start=-1),
            }
        ),
        "said": spaces.Text(5),
    }
)


def row_of(space: spaces.Space, observation, dtype=np.float64) -> list[float]:
    rows = ObservationRows(space)
    row = np.zeros(sum(part.width for part in rows.spaces.values()), dtype)
    rows.write(observation, row)
    return row.tolist()


@pytest.mark.parametrize(
    ("space", "ours", "observation", "row"),
    [
        (spaces.Discrete(5), Discrete((5,)), 3, [3]),
        (spaces.Discrete(5, start=-2), Discrete((5,)), np.int64(-2), [0]),
        (spaces.MultiDiscrete([2, 4]), Discrete((2, 4)), np.array([1, 3]), [1, 3]),
        (spaces.MultiDiscrete([[2], [4]], start=[[1], [5]]), Discrete((2, 4)), np.array([[2], [5]]), [1, 0]),
        (spaces.MultiBinary([2, 2]), Discrete((2, 2, 2, 2)), np.eye(2, dtype=np.int8), [1, 0, 0, 1]),
        (spaces.Box(-1, 2, (2,), np.float64), Box((2,), -1, 2), np.array([0.5, 2.0]), [0.5, 2.0]),
        (spaces.Box(0, 9, (), np.float32), Box((1,), 0, 9), np.float32(4), [4]),
        (spaces.Box(-np.inf, 9, (1,), np.float32), Box((1,), -math.inf, 9), np.array([4.0]), [4]),
        (spaces.Box(-3.4e38, 3.4e38, (1,), np.float32), Box((1,), -math.inf, math.inf), np.array([4.0]), [4]),
        (spaces.Box(-4, 9, (2,), np.int64), Box((2,), -4, 9), np.array([-4, 9]), [-4, 9]),
        (spaces.Box(0, 255, (1, 2, 1), np.uint8), Box((1, 2, 1), 0, 255, "uint8"), np.array([[[7], [8]]]), [7, 8]),
    ],
    ids=str,
)
def test_one_part(space: spaces.Space, ours, observation, row: list[float]) -> None:
    assert ObservationRows(space).spaces == {"observation": ours}
    assert row_of(space, observation) == row


def test_a_dictionary_is_flattened() -> None:
    rows = ObservationRows(NESTED, drop=["said"])
    assert rows.spaces == {
        "arm/grip": Discrete((3,)),
        "arm/joints": Box((2,), -2.0, 3.0),
        "camera": Box((2, 3, 3), 0.0, 255.0, "uint8"),
    }
    row = np.zeros(21, np.float32)
    observation = NESTED.sample()
    rows.write(observation, row)
    arm = observation["arm"]
    expected = [[arm["grip"] + 1], arm["joints"], observation["camera"].ravel()]
    np.testing.assert_array_equal(row, np.concatenate(expected).astype(np.float32))


@pytest.mark.parametrize(
    ("space", "drop", "shown"),
    [
        (spaces.Tuple([spaces.Discrete(2)]), (), "'observation' is a Tuple"),
        (spaces.Dict({"a": spaces.Tuple([spaces.Discrete(2)])}), (), "'a' is a Tuple"),
        (NESTED, (), "'said' is Text.*drop_observation_parts"),
        (NESTED, ("arm",), "names arm; .*arm/grip, arm/joints, camera, said"),
        (spaces.Discrete(2), ("observation",), "nothing to observe"),
        (spaces.Box(-(2**40), 2**40, (1,), np.int64), (), "float32 cannot tell apart"),
    ],
)
def test_what_is_no_row_is_refused(space: spaces.Space, drop: tuple[str, ...], shown: str) -> None:
    with pytest.raises(ValueError, match=shown):
        ObservationRows(space, drop)


@pytest.mark.parametrize(
    ("space", "ours", "action", "theirs"),
    [
        (spaces.Discrete(3), Discrete((3,)), np.int64(2), 2),
        (spaces.Discrete(3, start=5), Discrete((3,)), np.int64(2), 7),
        (spaces.MultiDiscrete([3, 2], start=[1, 0]), Discrete((3, 2)), np.array([2, 1]), [3, 1]),
        (spaces.MultiDiscrete([4]), Discrete((4,)), np.int64(3), [3]),
        (spaces.MultiBinary(2), Discrete((2, 2)), np.array([0, 1]), [0, 1]),
        (spaces.Box(-2, 2, (2,), np.float32), Box((2,), -2, 2), np.array([0.5, 7.0]), [0.5, 2.0]),
        (spaces.Box(-2, 2, (1, 2), np.float64), Box((2,), -2, 2), np.array([0.5, -7.0]), [[0.5, -2.0]]),
        (spaces.Box(np.float32([0, -4]), np.float32([1, 4])), Box((2,), -1, 1), np.array([0.0, 0.5]), [0.5, 2.0]),
    ],
    ids=str,
)
def test_actions(space: spaces.Space, ours, action: np.ndarray, theirs) -> None:
    rows = ActionRows(space)
    assert rows.space == ours
    given = rows.theirs(np.asarray(action))
    assert given in space
    np.testing.assert_array_equal(given, theirs)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-np.inf, 1, (1,)),
        spaces.Box(0, 5, (1,), np.int64),
        spaces.Tuple([spaces.Discrete(2)]),
        spaces.Dict({"a": spaces.Discrete(2)}),
    ],
    ids=str,
)
def test_other_actions_are_refused(space: spaces.Space) -> None:
    with pytest.raises(ValueError, match="the action space is .*wrap the environment"):
        ActionRows(space)


@pytest.mark.parametrize("space", [NESTED, spaces.Box(-1, 1, (2, 2)), spaces.MultiDiscrete([3, 2])], ids=str)
def test_rows_become_observations_again(space: spaces.Space) -> None:
    rows = ObservationRows(space, drop=["said"] if isinstance(space, spaces.Dict) else [])
    spec = TaskSpec(rows.spaces, Discrete((2,)), 5)
    back = observation_space(spec)
    space.seed(0)
    table = np.zeros((3, spec.observation_width), np.float32)
    for row in table:
        rows.write(space.sample(), row)
    assert observations_of_rows(spec, table) in gymnasium.vector.utils.batch_space(back, 3)
    again = np.zeros_like(table)
    for number, row in enumerate(again):
        ObservationRows(back).write(observations_of_rows(spec, table[number]), row)
    np.testing.assert_array_equal(again, table)


def test_action_spaces() -> None:
    parts = {"observation": Discrete((2,))}
    for ours, theirs in (
        (Discrete((4,)), spaces.Discrete(4)),
        (Discrete((4, 2)), spaces.MultiDiscrete([4, 2])),
        (Box((2,), -1, 2), spaces.Box(-1, 2, (2,))),
    ):
        assert action_space(TaskSpec(parts, ours, 5)) == theirs


def test_numbers_that_float32_would_round_are_refused_beside_it():
    wide, image = Discrete((1 << 25,)), Box((2,), 0.0, 1.0, "float32")
    action = Discrete((2,))
    TaskSpec({"number": wide}, action, 5)
    TaskSpec({"number": Discrete((1 << 24,)), "image": image}, action, 5)
    with pytest.raises(ValueError, match="the observation's part 'number' counts up to 33554432.*float32"):
        TaskSpec({"number": wide, "image": image}, action, 5)
