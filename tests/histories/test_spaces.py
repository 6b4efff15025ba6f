"""Every kind of space: what is written is what is read, and what leaves its space is refused."""

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import torch

from distillery.core.files import read_json, sha256_file, write_json
from distillery.core.specs import SOLE, Box, Discrete, TaskSpec
from distillery.histories.contexts import Contexts
from distillery.histories.format import DatasetError, Metadata, column_types
from distillery.histories.reader import open_packed, read_shard, validate_dataset
from distillery.histories.schema import validate_steps
from distillery.histories.writer import steps_frame
from tests.histories.conftest import ACTIONS, OBSERVATIONS, packed_histories, random_episodes, real_steps, stored

LENGTHS = np.array([[3, 6], [6, 1], [4, 4]])
CASES = [(observation, "discrete") for observation in OBSERVATIONS] + [("image", action) for action in ACTIONS]


def spec_of(observation: str, action: str = "discrete") -> TaskSpec:
    return TaskSpec(OBSERVATIONS[observation], ACTIONS[action], episode_steps=6)


@pytest.mark.parametrize(("observation", "action"), CASES)
def test_written_equals_read(tmp_path, observation, action):
    spec = spec_of(observation, action)
    packed, episodes = packed_histories(tmp_path, spec, LENGTHS)
    for name, field in (("actions", "action"), ("rewards", "reward"), ("observations", "observation")):
        expected = real_steps(episodes, name)
        np.testing.assert_array_equal(packed.steps[field], expected)
        assert packed.steps[field].dtype == expected.dtype
    np.testing.assert_array_equal(np.diff(packed.episode_starts), LENGTHS.ravel())
    np.testing.assert_array_equal(packed.terminated, torch.stack([e.terminated for e in episodes], 1).flatten())
    assert packed.spec == spec
    assert Metadata.read(tmp_path / "data").spec == spec


@pytest.mark.parametrize(("observation", "action"), CASES)
def test_contexts_are_of_the_types_that_models_read(tmp_path, observation, action):
    spec = spec_of(observation, action)
    packed, episodes = packed_histories(tmp_path, spec, np.full((2, 3), 6))
    context = Contexts(packed, sequence_length=18, batch_size=5).batch(0)
    assert (context.observations.dtype, context.actions.dtype) == (spec.observation_dtype, spec.action_dtype)
    assert context.observations.shape == (5, 18, spec.observation_width)
    assert context.actions.shape == (5, 18, *spec.action_shape)
    assert context.weights is None
    whole = torch.stack([batch.observations for batch in episodes], 1).flatten(1, 2)  # (E, 18, D)
    assert all(any(torch.equal(row, other) for other in whole.to(row.dtype)) for row in context.observations)


@pytest.mark.parametrize("observation", OBSERVATIONS)
def test_frames_survive_a_file(tmp_path, observation):
    spec = spec_of(observation)
    episodes = random_episodes(spec, LENGTHS)
    metadata = stored(tmp_path / "data", spec, episodes)
    frames = [read_shard(tmp_path / "data", shard, spec) for shard in metadata.shards]
    assert dict(frames[0].schema) == column_types(spec)
    assert pl.concat(frames).equals(steps_frame(episodes, np.arange(3), spec))


def test_columns_are_named_after_their_parts():
    names = list(column_types(spec_of("dictionary", "box")))
    observations = [name for name in names if name.startswith("observation")]
    position = ["observation_position_0", "observation_position_1"]
    assert observations == ["observation_image", *position, "observation_speed"]
    assert [name for name in names if name.startswith("action")] == ["action_0", "action_1"]
    types = column_types(spec_of("dictionary", "large_discrete"))
    assert types["observation_image"] == pl.Array(pl.UInt8, 12)
    assert types["observation_speed"] == pl.Array(pl.Float32, 3)
    assert (types["observation_position_0"], types["observation_position_1"]) == (pl.Int16, pl.Int16)
    assert types["action"] == pl.Int16
    assert column_types(spec_of("vector"))["observation"] == pl.Array(pl.Float32, 4)
    assert column_types(TaskSpec.of_sizes((3,), 2, 40_000))["step"] == pl.Int32


def test_parts_that_would_share_a_column_are_refused():
    spec = TaskSpec({"a": Discrete((2,)), "a_0": Box((3,), 0, 1)}, Discrete((2,)), 4)
    with pytest.raises(ValueError, match=r"share the column observation_a_0; rename 'a_0'"):
        column_types(spec)


def test_bytes_stay_bytes_in_a_file(tmp_path):
    spec = TaskSpec({SOLE: Box((18, 24, 3), 0, 255, "uint8")}, Discrete((5,)), episode_steps=10)
    stored(tmp_path / "data", spec, random_episodes(spec, np.full((4, 5), 10)))
    path = tmp_path / "data" / "shard-00000.parquet"
    column = pq.ParquetFile(path).metadata.row_group(0).column(4)
    assert (column.path_in_schema, column.physical_type) == ("observation", "FIXED_LEN_BYTE_ARRAY")
    raw = 100 * 18 * 24 * 3
    assert path.stat().st_size < 1.1 * raw  # random bytes, which nothing compresses


@pytest.mark.parametrize(
    ("observation", "action", "value", "rule"),
    [
        ("vector", "discrete", {"observations": float("nan")}, "observation is finite"),
        ("vector", "discrete", {"observations": float("inf")}, "observation is finite"),
        ("one_number", "discrete", {"observations": 0.8}, "observation is from -0.1 to 0.7"),
        ("one_number", "discrete", {"observations": float("nan")}, "observation is from -0.1 to 0.7"),
        ("dictionary", "discrete", {"observations": 250.0}, "observation_speed is from -0.1 to 0.7"),
        ("dictionary", "discrete", {"observations": 20.0}, "observation_position_0 is from 0 to 8"),
        ("dictionary_of_small_numbers", "discrete", {"observations": 201}, "observation_picture is from 0 to 200"),
        ("large_discrete", "discrete", {"observations": -1}, "observation_0 is from 0 to 999"),
        ("image", "box", {"actions": 0.4}, "action_0 is from -0.1 to 0.3"),
        ("image", "box", {"actions": float("nan")}, "action_1 is from -0.1 to 0.3"),
        ("image", "multi_discrete", {"actions": 2}, "action_1 is from 0 to 1"),
        ("image", "large_discrete", {"actions": -2}, "action is from 0 to 299"),
        ("image", "one_number", {"actions": -1.5}, "action is from -1 to 1"),
    ],
)
def test_what_leaves_its_space_is_refused_by_name(observation, action, value, rule):
    spec = spec_of(observation, action)
    episodes = random_episodes(spec, LENGTHS)
    for field, number in value.items():
        getattr(episodes[1], field)[1, 0] = number
    if observation == "dictionary":  # whole numbers beside: leave them whole, and within a byte
        episodes[1].observations[1, 0, :12] = 3
    frame = steps_frame(episodes, np.arange(3), spec)
    with pytest.raises(DatasetError, match=rf"rule '{rule}': 1 of 24 rows; first of them:\n.*'history': 1") as caught:
        validate_steps(frame, spec, range(10), 2, where="frame")
    assert len(str(caught.value)) < 3000


def test_every_row_may_break_a_rule_of_large_images():
    spec = TaskSpec({SOLE: Box((40, 40, 3), 10, 255, "uint8")}, Discrete((5,)), episode_steps=50)
    episodes = random_episodes(spec, np.full((2, 2), 50))
    for batch in episodes:
        batch.observations[:] = 9
    with pytest.raises(DatasetError, match=r"200 of 200 rows.*\n.*4800 numbers from 9 to 9") as caught:
        validate_steps(steps_frame(episodes, np.arange(2), spec), spec, range(10), 2, where="frame")
    assert len(str(caught.value)) < 5000


@pytest.mark.parametrize(("number", "shown"), [(2.5, "2.5"), (256.0, "256.0"), (float("nan"), "nan")])
def test_what_its_column_cannot_hold_is_refused(number, shown):
    spec = spec_of("dictionary")
    episodes = random_episodes(spec, LENGTHS)
    episodes[0].observations[0, 0, 0] = number
    with pytest.raises(DatasetError, match=rf"observation_image holds {shown}, which is no uint8 number"):
        steps_frame(episodes, np.arange(3), spec)


def test_what_is_broken_on_disk_is_refused(tmp_path):
    spec = spec_of("dictionary")
    metadata = stored(tmp_path / "data", spec, random_episodes(spec, LENGTHS))
    path = tmp_path / "data" / "shard-00000.parquet"
    frame = read_shard(tmp_path / "data", metadata.shards[0], spec)
    images = pl.Series([bytes(12)] * frame.height)
    fast = pl.Series(np.full((frame.height, 3), 8.0, np.float32))
    changes = {
        "observation_image that are not 12 bytes long": {"observation_image": pl.lit(bytes(11))},
        r"dtype.*Int32": {"observation_image": pl.lit(0)},
        "rule 'observation_speed is from -0.1 to 0.7': 9 of 9": {"observation_speed": fast},
        "rule 'observation_speed is from -0.1 to 0.7': 1 of 9": {"observation_speed": _with_null(frame)},
        "rule 'action is from 0 to 4': 9 of 9": {"action": pl.lit(9, pl.UInt8)},
    }
    for words, columns in changes.items():
        frame.with_columns(**{"observation_image": images, **columns}).write_parquet(path)
        _forge_checksum(tmp_path / "data")
        with pytest.raises(DatasetError, match=words):
            validate_dataset(tmp_path / "data")


def _with_null(frame: pl.DataFrame) -> pl.Series:
    values = frame["observation_speed"].to_list()
    values[3][1] = None
    return pl.Series(values, dtype=pl.Array(pl.Float32, 3))


def _forge_checksum(folder: Path) -> None:
    values = read_json(folder / "metadata.json", remedy="")
    values["shards"][0]["sha256"] = sha256_file(folder / values["shards"][0]["file"])
    write_json(folder / "metadata.json", values)


def test_an_expansion_of_another_spec_is_not_used(tmp_path):
    """Columns of the same names and bytes may be another space's."""
    small = TaskSpec({SOLE: Discrete((3,))}, Discrete((5,)), 6)
    wide = TaskSpec({"observation": Discrete((3,)), "x": Box((2,), 0, 1)}, Discrete((5,)), 6)
    packed, _ = packed_histories(tmp_path, small, LENGTHS)
    name = next((tmp_path / "packed").glob("v*-*/")).name
    other = stored(tmp_path / "other", wide, random_episodes(wide, LENGTHS))
    renamed = tmp_path / "packed" / name.replace(name.split("-")[1], other.content_hash)
    (tmp_path / "packed" / name).rename(renamed)
    again = open_packed(tmp_path / "other", tmp_path / "packed")[1]
    assert (packed.steps.dtype["observation"].shape, again.steps.dtype["observation"].shape) == ((1,), (3,))
