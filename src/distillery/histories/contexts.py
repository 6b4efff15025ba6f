"""Contexts: stretches of histories that run on across episode borders, drawn by the batch.

Letters: B batch, T environment steps, D observation dimensions.
"""

from dataclasses import dataclass

import numpy as np
import torch

from distillery.core.records import Context
from distillery.core.seeding import numpy_generator


def step_dtype(num_dimensions: int) -> np.dtype:
    """The record of one step as it lies in the packed memory-map; 4 + 1 + D bytes."""
    return np.dtype([("reward", "f4"), ("action", "u1"), ("observation", "u1", (num_dimensions,))])


@dataclass(frozen=True)
class PackedHistories:
    """Histories laid end to end.

    Attributes:
        steps: (steps,) of `step_dtype`, usually a read-only memory-map.
        episode_starts: (episodes + 1,) int64, first step of each episode, and the end.
        history_starts: (histories + 1,) int64, first episode of each history, and the end.
        task_ids: (histories,) int64.
    """

    steps: np.ndarray
    episode_starts: np.ndarray
    history_starts: np.ndarray
    task_ids: np.ndarray


def check_context_settings(*, sequence_length: int, batch_size: int, keep_every_episode: int, start: str) -> None:
    """Refuses settings that no histories could fit.

    Raises:
        ValueError: naming the setting.
    """
    counts = {"sequence_length": sequence_length, "batch_size": batch_size, "keep_every_episode": keep_every_episode}
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"histories.contexts.{name} must be at least 1, got {value}")
    if start not in ("beginning", "random"):
        raise ValueError(f"histories.contexts.start must be beginning or random, got {start!r}")


class Contexts:
    """Draws batches of contexts; the batch of a given update is always the same.

    Args:
        histories: what to draw from.
        sequence_length: T, environment steps per context.
        batch_size: B.
        keep_every_episode: k keeps episodes 0, k, 2k, ... of each history and drops the others whole.
        start: `beginning` of the history, or `random` (any step that leaves room for T).
        seed: of the draws.

    Raises:
        ValueError: a setting is out of range, or a history is shorter than a context.
    """

    def __init__(
        self,
        histories: PackedHistories,
        *,
        sequence_length: int,
        batch_size: int,
        keep_every_episode: int = 1,
        start: str = "beginning",
        seed: int = 0,
    ) -> None:
        check_context_settings(
            sequence_length=sequence_length, batch_size=batch_size, keep_every_episode=keep_every_episode, start=start
        )
        self._steps, self._start, self._seed = histories.steps, start, seed
        self.sequence_length, self.batch_size = sequence_length, batch_size
        self._rows, self._history_rows = kept_rows(histories, keep_every_episode)
        lengths = np.diff(self._history_rows)
        if lengths.min() < sequence_length:
            raise ValueError(
                f"a context of sequence_length={sequence_length} steps is longer than the shortest history, which "
                f"has {lengths.min()} steps once every {keep_every_episode}-th episode is kept; lower "
                "sequence_length or keep_every_episode, or collect longer histories"
            )

    def batch(self, update: int, rank: int = 0) -> Context:
        """The contexts of one update of one worker."""
        generator = numpy_generator(self._seed, "contexts", update, rank)
        history = generator.integers(len(self._history_rows) - 1, size=self.batch_size)
        first = self._history_rows[history]
        if self._start == "random":
            room = self._history_rows[history + 1] - first - self.sequence_length
            first = first + generator.integers(room + 1)
        steps = self._steps[self._rows[first[:, None] + np.arange(self.sequence_length)]]  # (B, T)
        return Context(
            torch.from_numpy(steps["observation"].astype(np.int64)),
            torch.from_numpy(steps["action"].astype(np.int64)),
            torch.from_numpy(steps["reward"].copy()),
        )


def kept_rows(histories: PackedHistories, keep_every_episode: int) -> tuple[np.ndarray, np.ndarray]:
    """Step numbers of the kept episodes, in order, and where each history starts among them, with the end."""
    counts = np.diff(histories.history_starts)
    kept_counts = -(-counts // keep_every_episode)
    kept_starts = np.concatenate([[0], np.cumsum(kept_counts)])
    within = np.arange(kept_starts[-1]) - np.repeat(kept_starts[:-1], kept_counts)
    episodes = np.repeat(histories.history_starts[:-1], kept_counts) + within * keep_every_episode
    lengths = np.diff(histories.episode_starts)[episodes]
    row_starts = np.concatenate([[0], np.cumsum(lengths)])
    offsets = histories.episode_starts[episodes] - row_starts[:-1]
    rows = np.arange(row_starts[-1]) + np.repeat(offsets, lengths)
    return rows, row_starts[kept_starts]
