"""Contexts: stretches of histories that run on across episode borders, drawn by the batch.

Letters: B batch, T environment steps, K numbers of an action.
"""

import numpy as np
import torch

from distillery.core.records import Context
from distillery.core.seeding import numpy_generator
from distillery.histories.kept import (
    KeptSteps,
    best_of_each_task,
    cumulative_weights,
    improvements,
    kept_episodes,
    shuffled_episodes,
)
from distillery.histories.packed import PackedHistories

CHOICES = {
    "start": ("beginning", "random"),
    "episode_order": ("learning", "shuffled"),
    "history_weighting": ("none", "improvement"),
}


def check_context_settings(
    *,
    sequence_length: int,
    batch_size: int,
    keep_every_episode: int = 1,
    start: str = "beginning",
    episode_order: str = "learning",
    history_weighting: str = "none",
    keep_best_fraction: float = 1.0,
) -> None:
    """Refuses settings that no histories could fit.

    Raises:
        ValueError: naming the setting.
    """
    counts = {"sequence_length": sequence_length, "batch_size": batch_size, "keep_every_episode": keep_every_episode}
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"histories.contexts.{name} must be at least 1, got {value}")
    chosen = {"start": start, "episode_order": episode_order, "history_weighting": history_weighting}
    for name, choice in chosen.items():
        if choice not in CHOICES[name]:
            raise ValueError(f"histories.contexts.{name} must be {' or '.join(CHOICES[name])}, got {choice!r}")
    if not 0.0 < keep_best_fraction <= 1.0:
        raise ValueError(f"histories.contexts.keep_best_fraction must be above 0 and to 1, got {keep_best_fraction}")


def check_shuffling(episode_order: str, num_kept: int) -> None:
    """Refuses to shuffle histories of which one episode is kept, a control that would control nothing.

    Raises:
        ValueError: naming the setting.
    """
    if episode_order == "shuffled" and num_kept == 1:
        raise ValueError(
            "histories.contexts.episode_order=shuffled has nothing to shuffle: one episode of each history is kept; "
            "lower histories.contexts.keep_every_episode, collect longer histories, or keep the order"
        )


class Contexts:
    """Draws batches of contexts; the batch of a given update is always the same.

    A history shorter than a context is padded at its end with zeros, which `Context.weights` counts 0.

    Args:
        histories: what to draw from.
        sequence_length: T, environment steps per context.
        batch_size: B.
        keep_every_episode: k keeps episodes 0, k, 2k, ... of each history and drops the others whole.
        start: `beginning` of the history, or `random` (any step that leaves room for T).
        episode_order: `learning`, as they were played; `shuffled` puts the kept episodes of each history in one random
            order, the control in which no improvement is left to distil.
        history_weighting: `none` draws every history alike; `improvement` in proportion to the mean return of the last
            third of its kept episodes minus that of the first third.
        keep_best_fraction: of each task's histories, the part that improves most is drawn from.
        targets: (steps[, K]), other actions to predict than those taken, aligned with the histories' steps.
        seed: of the draws.

    Raises:
        ValueError: a setting is out of range, no history is as long as a context, or targets are of another shape.
    """

    def __init__(
        self,
        histories: PackedHistories,
        *,
        sequence_length: int,
        batch_size: int,
        keep_every_episode: int = 1,
        start: str = "beginning",
        episode_order: str = "learning",
        history_weighting: str = "none",
        keep_best_fraction: float = 1.0,
        targets: np.ndarray | None = None,
        seed: int = 0,
    ) -> None:
        check_context_settings(
            sequence_length=sequence_length,
            batch_size=batch_size,
            keep_every_episode=keep_every_episode,
            start=start,
            episode_order=episode_order,
            history_weighting=history_weighting,
            keep_best_fraction=keep_best_fraction,
        )
        shape = (len(histories.steps), *histories.spec.action_shape)
        if targets is not None and targets.shape != shape:
            raise ValueError(f"targets must be of shape {shape}, an action for every step, got {targets.shape}")
        self._steps, self._targets, self._start, self._seed = np.asarray(histories.steps), targets, start, seed
        self.sequence_length, self.batch_size = sequence_length, batch_size
        self._observation_type = _numpy_type(histories.spec.observation_dtype)
        self._action_type = _numpy_type(histories.spec.action_dtype)
        episodes, kept_starts = kept_episodes(histories, keep_every_episode)
        self._drawn: np.ndarray | None = None
        self._cumulative: np.ndarray | None = None
        if keep_best_fraction < 1.0 or history_weighting == "improvement":
            improvement = improvements(histories, episodes, kept_starts)
            if keep_best_fraction < 1.0:
                self._drawn = best_of_each_task(improvement, histories.task_ids, keep_best_fraction)
                if len(self._drawn) == len(histories.task_ids):
                    raise ValueError(
                        f"histories.contexts.keep_best_fraction={keep_best_fraction} keeps every history of every "
                        "task; lower it, or raise histories.collection.runs_per_task"
                    )
                improvement = improvement[self._drawn]
            if history_weighting == "improvement":
                self._cumulative = cumulative_weights(improvement)
        check_shuffling(episode_order, int(np.diff(kept_starts).max()))
        if episode_order == "shuffled":
            episodes = shuffled_episodes(episodes, kept_starts, numpy_generator(seed, "episode_order"))
        self._kept = KeptSteps(histories, episodes, kept_starts)
        lengths = np.diff(self._kept.history_starts)
        lengths = lengths if self._drawn is None else lengths[self._drawn]
        if lengths.max() < sequence_length:
            raise ValueError(
                f"a context of sequence_length={sequence_length} steps is longer than the longest history, which "
                f"has {lengths.max()} steps once every {keep_every_episode}-th episode is kept; lower "
                "sequence_length or keep_every_episode, or collect longer histories"
            )
        self._num_drawn, self._padded = len(lengths), bool(lengths.min() < sequence_length)

    def batch(self, update: int, *, rank: int = 0, count: int = 1) -> Context:
        """The contexts of one update; of several processes, those that are this one's to read.

        Args:
            update: its number.
            rank: of this process.
            count: of processes, which read B / `count` contexts each.
        """
        generator = numpy_generator(self._seed, "contexts", update)
        history = self._draw(generator)
        first, end = self._kept.history_starts[history], self._kept.history_starts[history + 1]
        if self._start == "random":
            room = np.maximum(end - first - self.sequence_length, 0)
            first = first + generator.integers(room + 1)
        first, end = first[rank::count], end[rank::count]
        kept = first[:, None] + np.arange(self.sequence_length)  # (B, T)
        real = kept < end[:, None] if self._padded else None
        rows = self._kept.rows(kept if real is None else np.where(real, kept, first[:, None]))
        # `take` copies a record as a whole, an index every field of it by itself.
        steps = _padded_with_zeros(self._steps.take(rows), real)
        targets = None if self._targets is None else _padded_with_zeros(self._targets[rows], real)
        return Context(
            torch.from_numpy(steps["observation"].astype(self._observation_type)),
            torch.from_numpy(steps["action"].astype(self._action_type)),
            torch.from_numpy(steps["reward"].copy()),
            targets=None if targets is None else torch.from_numpy(targets.astype(self._action_type)),
            weights=None if real is None else torch.from_numpy(real.astype(np.float32)),
        )

    def _draw(self, generator: np.random.Generator) -> np.ndarray:
        """(B,) numbers of histories."""
        if self._cumulative is None:
            chosen = generator.integers(self._num_drawn, size=self.batch_size)
        else:
            chosen = np.searchsorted(self._cumulative, generator.random(self.batch_size), side="right")
        return chosen if self._drawn is None else self._drawn[chosen]


def _numpy_type(dtype: torch.dtype) -> np.dtype:
    return torch.empty(0, dtype=dtype).numpy().dtype


def _padded_with_zeros(values: np.ndarray, real: np.ndarray | None) -> np.ndarray:
    """The gathered (B, T, ...) values, zero where they are not real."""
    if real is not None:
        values[~real] = np.zeros((), values.dtype)
    return values
