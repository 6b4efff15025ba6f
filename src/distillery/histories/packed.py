"""Histories laid end to end in memory, usually as a read-only memory-map.

Letters: D numbers of an observation, K numbers of an action.
"""

from dataclasses import dataclass

import numpy as np

from distillery.core.specs import TaskSpec


def step_dtype(spec: TaskSpec) -> np.dtype:
    """The record of one step: reward, action and observation; 4 + K + D bytes where all numbers are small."""
    return np.dtype(
        [
            ("reward", "f4"),
            ("action", spec.action.stored_dtype, spec.action_shape),
            ("observation", spec.stored_dtype, (spec.observation_width,)),
        ]
    )


@dataclass(frozen=True)
class PackedHistories:
    """Histories laid end to end.

    Attributes:
        spec: shape of the tasks.
        steps: (steps,) of `step_dtype`, usually a read-only memory-map.
        episode_starts: (episodes + 1,) int64, first step of each episode, and the end.
        history_starts: (histories + 1,) int64, first episode of each history, and the end.
        task_ids: (histories,) int64.
        terminated: (episodes,) bool, whether the task ended the episode.
    """

    spec: TaskSpec
    steps: np.ndarray
    episode_starts: np.ndarray
    history_starts: np.ndarray
    task_ids: np.ndarray
    terminated: np.ndarray
