"""What is written is what is read; what is damaged is refused with counts and rows."""

import json
import re
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
import torch

from distillery.core.files import sha256_file
from distillery.core.records import EpisodeBatch
from distillery.histories.format import DatasetError, Metadata
from distillery.histories.reader import open_packed, validate_dataset
from distillery.histories.schema import validate_steps
from distillery.histories.writer import HistoryWriter, steps_frame
from tests.conftest import write_dataset


def edit_shard(folder, change) -> None:
    """Changes a shard's rows and forges its checksum, so that the schema has to notice."""
    metadata = json.loads((folder / "metadata.json").read_text())
    path = folder / metadata["shards"][0]["file"]
    change(pl.read_parquet(path)).write_parquet(path)
    metadata["shards"][0]["sha256"] = sha256_file(path)
    (folder / "metadata.json").write_text(json.dumps(metadata))


def test_written_equals_read(dataset, tmp_path, room, learning_episodes):
    task_ids, episodes = learning_episodes
    metadata, packed = open_packed(dataset, tmp_path / "packed")
    shape = (len(task_ids), len(episodes), room.spec.episode_steps)
    steps = packed.steps.reshape(shape)
    for name, field in (("actions", "action"), ("rewards", "reward"), ("observations", "observation")):
        expected = torch.stack([getattr(batch, name) for batch in episodes], 1).numpy()
        np.testing.assert_array_equal(steps[field], expected)
    np.testing.assert_array_equal(packed.task_ids, task_ids)
    assert metadata.num_steps == np.prod(shape)
    assert metadata == Metadata.read(dataset)


def test_episodes_of_unequal_length_survive(tmp_path, room):
    lengths = torch.tensor([[3, 1], [2, 4], [4, 4]])  # (E, N)
    episodes = [
        EpisodeBatch(
            observations=torch.randint(5, (3, 8, 2), dtype=torch.uint8),
            actions=torch.randint(5, (3, 8), dtype=torch.uint8),
            rewards=torch.full((3, 8), float(n)),
            terminated=torch.tensor([True, False, True]),
            num_steps=lengths[:, n],
        )
        for n in range(2)
    ]
    folder = tmp_path / "data"
    folder.mkdir()
    writer = HistoryWriter(folder, kind="learning", spec=room.spec, splits=room.splits(), num_episodes=2)
    train = room.task_ids("train")[:3]
    writer.append(episodes, train)
    writer.seal(tasks={}, source={}, seed=0, selection={})
    _, packed = open_packed(folder, tmp_path / "packed")
    np.testing.assert_array_equal(np.diff(packed.episode_starts), lengths.numpy().ravel())
    np.testing.assert_array_equal(packed.steps["action"][:3], episodes[0].actions[0, :3])
    np.testing.assert_array_equal(packed.steps["action"][3:4], episodes[1].actions[0, :1])
    frame = pl.read_parquet(folder / "shard-00000.parquet")
    assert frame.filter(pl.col("terminated"))["history"].to_list() == [0, 0, 2, 2]
    assert frame.filter(pl.col("truncated"))["history"].to_list() == [1, 1]


def test_same_seed_same_bytes(tmp_path, room, learning_episodes):
    for name in ("a", "b"):
        write_dataset(tmp_path / name, room, *learning_episodes)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_the_content_hash_does_not_depend_on_the_shards(tmp_path, room, learning_episodes):
    task_ids, episodes = learning_episodes
    write_dataset(tmp_path / "two", room, task_ids, episodes)
    (tmp_path / "one").mkdir()
    writer = HistoryWriter(
        tmp_path / "one", kind="learning", spec=room.spec, splits=room.splits(), num_episodes=len(episodes)
    )
    writer.append(episodes, task_ids)
    one = writer.seal(tasks={}, source={}, seed=0, selection={})
    two = Metadata.read(tmp_path / "two")
    assert (len(one.shards), len(two.shards)) == (1, 2)
    assert one.content_hash == two.content_hash


def test_metadata_tell_neither_time_nor_commit(dataset):
    text = (dataset / "metadata.json").read_text()
    assert not re.search(r"20\d\d-|commit|[0-9a-f]{40}(?![0-9a-f])", re.sub(r"[0-9a-f]{64}", "", text))


def test_a_task_in_two_splits_is_refused(dataset):
    values = json.loads((dataset / "metadata.json").read_text())
    values["splits"]["train"] += values["splits"]["held_out"]
    (dataset / "metadata.json").write_text(json.dumps(values))
    with pytest.raises(DatasetError, match="in more than one split"):
        validate_dataset(dataset)


def test_metadata_without_a_field_are_refused(dataset):
    values = json.loads((dataset / "metadata.json").read_text())
    del values["splits"]["train"]
    (dataset / "metadata.json").write_text(json.dumps(values))
    with pytest.raises(DatasetError, match=r"metadata\.json lacks or misnames a field"):
        Metadata.read(dataset)


def test_a_damaged_expansion_is_made_again(dataset, tmp_path):
    _, packed = open_packed(dataset, tmp_path / "packed")
    expected = packed.steps.copy()
    file = next((tmp_path / "packed").glob("*/steps.npy"))
    content = file.read_bytes()
    file.chmod(0o644)
    for damaged in (content[: len(content) // 2], b"", content[:-6] + b"x" * 3):
        file.write_bytes(damaged)
        np.testing.assert_array_equal(open_packed(dataset, tmp_path / "packed")[1].steps, expected)


_EXPAND = """
import sys
from distillery.histories.reader import open_packed
print(len(open_packed(sys.argv[1], sys.argv[2])[1].steps))
"""


def test_several_processes_may_expand_at_once(dataset, tmp_path):
    command = [sys.executable, "-c", _EXPAND, str(dataset), str(tmp_path / "packed")]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert {process.communicate()[0].strip() for process in processes} == {str(36 * 30 * 8)}


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda f: f.with_columns(action=pl.lit(5, pl.UInt8)), "action is from 0 to 4"),
        (lambda f: f.with_columns(observation_1=pl.lit(9, pl.UInt8)), "observation_1 is from 0 to 4"),
        (lambda f: f.with_columns(reward=pl.lit(float("nan"), pl.Float32)), "reward is finite"),
        (lambda f: f.filter(pl.col("step") != 3), "steps are contiguous"),
        (lambda f: f.filter(pl.col("episode") != 3), "episodes are contiguous"),
        (lambda f: f.filter(pl.col("episode") != 29), "a history has 30 episodes"),
        (lambda f: f.filter(pl.col("episode") != 0), "a history starts with episode 0"),
        (lambda f: f.filter(pl.col("step") != 0), "an episode starts with step 0"),
        (lambda f: f.filter(pl.col("history") != 4), "history numbers go up by one"),
        (lambda f: f.with_columns(truncated=pl.lit(False)), "an episode ends at its last step and only there"),
        (lambda f: f.with_columns(terminated=pl.lit(True)), "terminated and truncated exclude each other"),
    ],
)
def test_a_broken_rule_is_named_with_its_count_and_first_rows(dataset, change, rule):
    edit_shard(dataset, change)
    with pytest.raises(DatasetError, match=rf"rule '{rule}': \d+ of \d+ rows") as caught:
        validate_dataset(dataset)
    assert "'history':" in str(caught.value)
    assert len(str(caught.value)) < 20_000


def test_a_task_of_another_split_is_refused(dataset, room):
    intruder = int(room.task_ids("held_out")[0])
    edit_shard(
        dataset,
        lambda f: f.with_columns(
            task_id=pl.when(pl.col("history") == 7).then(intruder).otherwise("task_id").cast(pl.Int32)
        ),
    )
    with pytest.raises(DatasetError, match=rf"the task belongs to the split.*\n.*'task_id': {intruder}"):
        validate_dataset(dataset)


def test_missing_and_mistyped_columns_are_named(dataset):
    edit_shard(dataset, lambda f: f.drop("reward"))
    with pytest.raises(DatasetError, match="reward"):
        validate_dataset(dataset)


def test_no_held_out_task_is_in_training_histories(dataset, tmp_path, room):
    _, packed = open_packed(dataset, tmp_path)
    for split in ("validation", "held_out"):
        assert not set(packed.task_ids) & set(room.task_ids(split))


def test_a_truncated_file_is_refused(dataset):
    path = dataset / "shard-00001.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DatasetError, match=r"shard-00001\.parquet was truncated or edited.*dvc"):
        validate_dataset(dataset)


def test_a_missing_shard_is_refused(dataset):
    (dataset / "shard-00001.parquet").unlink()
    with pytest.raises(DatasetError, match=r"shard-00001\.parquet .* does not exist.*dvc"):
        validate_dataset(dataset)


def test_content_that_differs_from_the_metadata_is_refused(dataset):
    edit_shard(dataset, lambda f: f.with_columns(action=(pl.col("action") + 1) % 5))
    with pytest.raises(DatasetError, match="content hash"):
        validate_dataset(dataset)


def test_another_format_version_is_refused(dataset):
    values = json.loads((dataset / "metadata.json").read_text())
    (dataset / "metadata.json").write_text(json.dumps({**values, "format_version": 99}))
    with pytest.raises(DatasetError, match="format version 99, this code reads 2"):
        Metadata.read(dataset)


def test_a_dataset_of_kind_learning_must_learn_and_an_expert_need_not(tmp_path, room, learning_episodes):
    task_ids, episodes = learning_episodes
    for kind in ("expert", "learning"):
        folder = tmp_path / kind
        folder.mkdir()
        writer = HistoryWriter(folder, kind=kind, spec=room.spec, splits=room.splits(), num_episodes=10)
        writer.append([episodes[-1]] * 10, task_ids)
        if kind == "expert":
            assert writer.seal(tasks={}, source={}, seed=0, selection={}).kind == "expert"
        else:
            with pytest.raises(DatasetError, match="holds no learning"):
                writer.seal(tasks={}, source={}, seed=0, selection={})


def test_steps_frame_obeys_the_schema(room, learning_episodes):
    task_ids, episodes = learning_episodes
    frame = steps_frame(episodes, task_ids, room.spec)
    counts = validate_steps(frame, room.spec, room.task_ids("train"), 30, where="frame")
    assert set(counts.values()) == {len(task_ids) * 30 * 8}
