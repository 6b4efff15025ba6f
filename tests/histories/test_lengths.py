"""Histories of different lengths, and histories that are one long episode."""

import json

import numpy as np
import polars as pl
import pytest
import torch

from distillery.core.files import sha256_file
from distillery.core.specs import TaskSpec
from distillery.histories.curves import LearningCurves
from distillery.histories.format import DatasetError, Metadata
from distillery.histories.reader import open_packed, validate_dataset
from distillery.histories.schema import validate_learning
from distillery.histories.writer import HistoryWriter, steps_frame
from tests.histories.conftest import SPLITS, random_episodes, real_steps, stored

SPEC = TaskSpec.of_sizes((4,), 3, 5)
UNEVEN = np.array([[5, 2, 5, 1], [3, 0, 0, 0], [5, 5, 4, 0], [1, 1, 0, 0]])  # (E, N) steps


def test_written_equals_read_and_its_means_are_over_those_who_play(tmp_path):
    episodes = random_episodes(SPEC, UNEVEN)
    metadata = stored(tmp_path / "data", SPEC, episodes)
    _, packed = open_packed(tmp_path / "data", tmp_path / "packed")
    assert (metadata.min_episodes, metadata.num_episodes) == (1, 4)
    np.testing.assert_array_equal(np.diff(packed.history_starts), [4, 1, 3, 2])
    np.testing.assert_array_equal(np.diff(packed.episode_starts), UNEVEN[UNEVEN > 0])
    np.testing.assert_array_equal(packed.steps["action"], real_steps(episodes, "actions"))
    np.testing.assert_array_equal(packed.task_ids, [0, 1, 2, 3])
    returns = np.stack([batch.returns.numpy() for batch in episodes], 1)
    np.testing.assert_allclose(metadata.mean_returns, returns.sum(0) / (UNEVEN > 0).sum(0), atol=1e-5)
    assert metadata.mean_step_rewards is None
    rules = validate_dataset(tmp_path / "data")[1]
    assert "a history has 1 to 4 episodes" in rules


def test_the_longest_history_counts_and_not_the_most_there_could_be(tmp_path):
    metadata = stored(tmp_path / "data", SPEC, random_episodes(SPEC, np.array([[5, 5, 5, 0, 0], [5, 1, 0, 0, 0]])))
    assert (metadata.min_episodes, metadata.num_episodes, len(metadata.mean_returns)) == (2, 3, 3)
    assert "a history has 2 to 3 episodes" in validate_dataset(tmp_path / "data")[1]


def test_equal_histories_stay_under_the_strict_rule(tmp_path):
    episodes = random_episodes(SPEC, np.full((4, 3), 5))
    metadata = stored(tmp_path / "data", SPEC, episodes)
    assert (metadata.min_episodes, metadata.num_episodes) == (3, 3)
    assert "a history has 3 episodes" in validate_dataset(tmp_path / "data")[1]
    (tmp_path / "short").mkdir()
    writer = HistoryWriter(tmp_path / "short", kind="learning", spec=SPEC, splits=SPLITS, num_episodes=4)
    with pytest.raises(DatasetError, match="rule 'a history has 4 episodes': 4 of 60 rows"):
        writer.append(episodes, np.arange(4))


def test_a_history_cut_short_on_disk_is_refused(tmp_path):
    stored(tmp_path / "data", SPEC, random_episodes(SPEC, UNEVEN[[0, 2, 0, 2]]), kind="expert")
    path = tmp_path / "data" / "shard-00001.parquet"
    pl.read_parquet(path).filter(pl.col("episode") < 2).write_parquet(path)
    values = json.loads((tmp_path / "data" / "metadata.json").read_text())
    values["shards"][1]["sha256"] = sha256_file(path)
    (tmp_path / "data" / "metadata.json").write_text(json.dumps(values))
    with pytest.raises(DatasetError, match="rule 'a history has 3 to 4 episodes': 2 of"):
        validate_dataset(tmp_path / "data")


def test_a_history_that_is_over_is_over_for_good():
    again = np.array([[5, 5, 5, 5], [5, 2, 0, 1]])
    with pytest.raises(DatasetError, match="learner 1 .* plays episode 3 although .* no steps in episode 2"):
        steps_frame(random_episodes(SPEC, again), np.arange(2), SPEC)
    with pytest.raises(DatasetError, match="learner 1 .* has no steps in its first episode"):
        steps_frame(random_episodes(SPEC, np.array([[5, 5], [0, 0]])), np.arange(2), SPEC)


# Learning


def curves_of(rewards: np.ndarray, num_steps: np.ndarray) -> LearningCurves:
    """Curves of histories with the given (E, N) rewards at every step."""
    episodes = random_episodes(SPEC, num_steps)
    for number, batch in enumerate(episodes):
        batch.rewards[:] = torch.from_numpy(rewards[:, number, None])
    curves = LearningCurves(rewards.shape[1], SPEC.episode_steps)
    for learner in range(len(rewards)):  # shard by shard
        part = [batch.select(slice(learner, learner + 1)) for batch in episodes]
        curves.add(steps_frame(part, np.zeros(1, dtype=np.int64), SPEC))
    return curves


def test_histories_without_learning_are_refused():
    rewards = np.repeat([[0.0] * 5 + [0.2] * 5], 3, axis=0)
    full = np.full((3, 10), 5)
    validate_learning(curves_of(rewards, full), where="x")
    np.testing.assert_allclose(curves_of(rewards, full).mean_tenths, (0.0, 1.0))
    with pytest.raises(DatasetError, match=r"x holds no learning.*0\.500.*1\.000.*sources\.num_episodes"):
        validate_learning(curves_of(0.1 + 0.1 * (rewards == 0), full), where="x")


def test_each_history_is_measured_by_its_own_first_and_last_episodes():
    """Learners that live long have few episodes: at the last numbers, only the worst are left."""
    num_steps = np.full((2, 20), 5)
    num_steps[0, 2:] = 0
    rewards = np.zeros((2, 20))
    rewards[0, :2], rewards[1] = [4.0, 8.0], np.arange(20) / 10
    curves = curves_of(rewards, num_steps)
    assert curves.mean_returns[-2:].mean() < curves.mean_returns[:2].mean()
    np.testing.assert_allclose(curves.mean_tenths, (5 * (4.0 + 0.05) / 2, 5 * (8.0 + 1.85) / 2), rtol=1e-6)
    validate_learning(curves, where="x")


# One long episode

LONG = TaskSpec.of_sizes((1,), 3, 100)


def test_a_single_long_episode_must_learn_along_its_steps(tmp_path):
    episodes = random_episodes(LONG, np.array([[100], [40], [80], [100]]))
    metadata = stored(tmp_path / "data", LONG, episodes)
    rewards, lengths = episodes[0].rewards.numpy(), episodes[0].num_steps.numpy()
    real = np.arange(100) < lengths[:, None]
    expected = (rewards * real).sum(0) / real.sum(0)
    assert metadata.mean_step_rewards is not None
    np.testing.assert_allclose(metadata.mean_step_rewards, expected, atol=1e-6)
    assert len(metadata.mean_returns) == 1
    tenths = [
        np.mean([length * row[part].mean() for row, length, part in zip(rewards, lengths, parts, strict=True)])
        for parts in ([slice(0, n // 10) for n in lengths], [slice(n - n // 10, n) for n in lengths])
    ]
    np.testing.assert_allclose(metadata.mean_tenths, tenths, rtol=1e-5)
    assert Metadata.read(tmp_path / "data") == metadata
    validate_dataset(tmp_path / "data")


def test_a_single_long_episode_without_learning_is_refused_by_writer_and_reader(tmp_path):
    episodes = random_episodes(LONG, np.full((4, 1), 100))
    episodes[0].rewards[:] = episodes[0].rewards.flip(1)
    with pytest.raises(DatasetError, match=r"the last tenth of its steps returns .* more steps"):
        stored(tmp_path / "data", LONG, episodes)
    expert = stored(tmp_path / "expert", LONG, episodes, kind="expert")
    values = {**json.loads((tmp_path / "expert" / "metadata.json").read_text()), "kind": "learning"}
    (tmp_path / "expert" / "metadata.json").write_text(json.dumps(values))
    with pytest.raises(DatasetError, match=r"the last tenth of its steps"):
        validate_dataset(tmp_path / "expert")
    assert expert.mean_tenths[0] > expert.mean_tenths[1]
