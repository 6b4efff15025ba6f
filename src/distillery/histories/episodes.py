"""Packed histories as padded episodes again, so that what plays or judges episodes can judge recorded ones.

Letters: E episodes, T environment steps, K numbers of an action.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from distillery.core.records import EpisodeBatch
from distillery.core.specs import Box, Space, TaskSpec
from distillery.histories.packed import PackedHistories

# What one chunk may hold, padding included: whichever is less.
CHUNK_STEPS = 1 << 18
CHUNK_BYTES = 1 << 26

Label = Callable[[EpisodeBatch, np.ndarray], Tensor]


def episode_chunks(
    histories: PackedHistories, *, chunk_steps: int = CHUNK_STEPS
) -> Iterator[tuple[EpisodeBatch, np.ndarray]]:
    """All episodes of all histories in order, many at a time, with their (E,) task ids.

    A chunk's T is its longest episode. Chunks are bounded in memory, whatever the size of the dataset.
    """
    lengths = np.diff(histories.episode_starts)
    task_ids = np.repeat(histories.task_ids, np.diff(histories.history_starts))
    most_steps = min(chunk_steps, CHUNK_BYTES // histories.steps.dtype.itemsize)
    per_chunk = max(1, most_steps // int(lengths.max()))
    for first in range(0, len(lengths), per_chunk):
        chunk = slice(first, first + per_chunk)
        start, num_steps = histories.episode_starts[first], lengths[chunk]
        steps = histories.steps[start : start + num_steps.sum()]
        padded = np.zeros((len(num_steps), num_steps.max()), steps.dtype)  # (E, T)
        padded[np.arange(num_steps.max()) < num_steps[:, None]] = steps
        batch = EpisodeBatch(
            observations=torch.from_numpy(padded["observation"].copy()),
            actions=torch.from_numpy(padded["action"].copy()),
            rewards=torch.from_numpy(padded["reward"].copy()),
            terminated=torch.from_numpy(np.array(histories.terminated[chunk])),
            num_steps=torch.from_numpy(num_steps),
        )
        yield batch, task_ids[chunk]


def relabel(histories: PackedHistories, spec: TaskSpec, label: Label, *, chunk_steps: int = CHUNK_STEPS) -> np.ndarray:
    """(steps[, K]) another action for every step, aligned with ``histories.steps``, in the action's `stored_dtype`.

    Args:
        histories: whose steps are labelled.
        spec: of the tasks that the labels are actions in; the histories must be of the same.
        label: from a batch of E episodes and their (E,) task ids to (E, T[, K]) actions, for example
            `TaskDistribution.expert_actions`; what it says of padding is dropped.
        chunk_steps: most steps of one batch, padding included.

    Raises:
        ValueError: the histories are of another spec, or a label is no action of it.
    """
    difference = histories.spec.difference(spec)
    if difference is not None:
        raise ValueError(f"the histories are of other tasks than the labels: {difference}")
    targets = np.empty((len(histories.steps), *spec.action_shape), spec.action.stored_dtype)
    first = 0
    for batch, task_ids in episode_chunks(histories, chunk_steps=chunk_steps):
        labels = label(batch, task_ids).cpu()
        if labels.shape != batch.actions.shape:
            raise ValueError(f"labels must be of shape {tuple(batch.actions.shape)}, got {tuple(labels.shape)}")
        real = torch.arange(batch.rewards.shape[1]) < batch.num_steps[:, None]
        rows = labels[real].numpy()
        _require_actions(rows, spec.action)
        targets[first : first + len(rows)] = rows
        first += len(rows)
    return targets


def _require_actions(rows: np.ndarray, space: Space) -> None:
    low, high = (space.low, space.high) if isinstance(space, Box) else (0, np.array(space.sizes) - 1)
    obeys = (rows.reshape(len(rows), -1) >= low) & (rows.reshape(len(rows), -1) <= high)
    if not obeys.all():
        worst = rows.reshape(len(rows), -1)[~obeys][0]
        raise ValueError(f"labels must be actions of {space}, got {worst}")
