"""Packed histories as episodes again, and other actions for their steps."""

import numpy as np
import pytest
import torch
from torch import Tensor

from distillery.core.records import EpisodeBatch
from distillery.core.specs import TaskSpec
from distillery.histories.contexts import Contexts
from distillery.histories.episodes import episode_chunks, relabel
from tests.histories.conftest import ACTIONS, OBSERVATIONS, packed_histories

LENGTHS = np.array([[5, 2, 6], [3, 6, 0], [1, 0, 0]])


@pytest.mark.parametrize("chunk_steps", [1, 12, 1 << 18])
def test_chunks_hold_every_episode_once_and_in_order(tmp_path, chunk_steps):
    spec = TaskSpec(OBSERVATIONS["dictionary"], ACTIONS["box"], episode_steps=6)
    packed, episodes = packed_histories(tmp_path, spec, LENGTHS, np.array([4, 2, 4]))
    expected = [(e, n) for e in range(3) for n in range(3) if LENGTHS[e, n]]
    found = 0
    for chunk, task_ids in episode_chunks(packed, chunk_steps=chunk_steps):
        assert chunk.rewards.numel() <= max(chunk_steps, 6)
        assert chunk.rewards.shape[1] == chunk.num_steps.max()
        for number, task in enumerate(task_ids):
            learner, episode = expected[found]
            source, length = episodes[episode], LENGTHS[learner, episode]
            assert (chunk.num_steps[number], task) == (length, [4, 2, 4][learner])
            assert chunk.terminated[number] == source.terminated[learner]
            for name in ("observations", "actions", "rewards"):
                values = getattr(chunk, name)[number]
                assert torch.equal(values[:length], getattr(source, name)[learner, :length])
                assert not values[length:].any()
            found += 1
    assert found == len(expected)


def label(batch: EpisodeBatch, task_ids: np.ndarray) -> Tensor:
    """An action that shows which task and step it was given for; nonsense for padding."""
    steps = torch.arange(batch.rewards.shape[1])
    labels = (torch.from_numpy(task_ids)[:, None] + steps) % 3
    return torch.where(steps < batch.num_steps[:, None], labels, -7)


@pytest.mark.parametrize("chunk_steps", [1, 7, 1 << 18])
def test_labels_are_aligned_with_the_steps(tmp_path, chunk_steps):
    spec = TaskSpec.of_sizes((4,), 3, 6)
    packed, _ = packed_histories(tmp_path, spec, LENGTHS, np.array([4, 2, 4]))
    targets = relabel(packed, spec, label, chunk_steps=chunk_steps)
    within = np.concatenate([np.arange(length) for length in LENGTHS[LENGTHS > 0]])
    task = np.repeat([4, 2, 4], LENGTHS.sum(1))
    np.testing.assert_array_equal(targets, (task + within) % 3)
    assert targets.dtype == np.uint8


def test_labels_become_the_targets_of_contexts(tmp_path):
    spec = TaskSpec(OBSERVATIONS["vector"], ACTIONS["box"], 6)
    packed, _ = packed_histories(tmp_path, spec, np.full((3, 2), 6))
    targets = relabel(packed, spec, lambda batch, _: batch.actions / 2)
    batch = Contexts(packed, sequence_length=9, batch_size=8, start="random", targets=targets).batch(0)
    assert batch.targets is not None
    assert batch.targets.dtype == spec.action_dtype
    torch.testing.assert_close(batch.targets, batch.actions / 2)


def test_labels_that_are_no_actions_are_refused(tmp_path):
    spec = TaskSpec.of_sizes((4,), 3, 6)
    packed, _ = packed_histories(tmp_path, spec, LENGTHS)
    with pytest.raises(ValueError, match=r"labels must be actions of Discrete.*\(3,\).*got 3"):
        relabel(packed, spec, lambda batch, _: torch.full_like(batch.rewards, 3))
    with pytest.raises(ValueError, match="labels must be actions"):
        relabel(packed, spec, lambda batch, _: torch.full(batch.rewards.shape, -1))
    with pytest.raises(ValueError, match=r"labels must be of shape \(6, 6\), got \(6,\)"):
        relabel(packed, spec, lambda batch, _: batch.num_steps)
    with pytest.raises(ValueError, match="of other tasks than the labels: the action space"):
        relabel(packed, TaskSpec.of_sizes((4,), 4, 6), label)
