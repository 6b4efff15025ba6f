"""Which runs of a source become histories: an explicit rule, applied before anything is written, and reported.

Letters: E learners, N episodes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from distillery.core.records import EpisodeBatch


@dataclass(frozen=True)
class Selection:
    """Drops runs that did not learn their task.

    Attributes:
        min_final_fraction: a run is kept if the last tenth of its episodes returns on average at least this part of
            the oracle's return on its task; None keeps every run.
    """

    min_final_fraction: float | None = None

    def __post_init__(self) -> None:
        if self.min_final_fraction is not None and not 0.0 <= self.min_final_fraction <= 1.0:
            raise ValueError(
                f"selection min_final_fraction must be from 0 to 1 or null, got {self.min_final_fraction}"
            )

    def keep(self, episodes: Sequence[EpisodeBatch], oracle_returns: np.ndarray) -> np.ndarray:
        """(E,) bool: which of E runs of N episodes are kept; `oracle_returns` is (E,)."""
        if self.min_final_fraction is None:
            return np.ones(len(oracle_returns), dtype=bool)
        tenth = max(1, len(episodes) // 10)
        final = np.mean([batch.returns.cpu().numpy() for batch in episodes[-tenth:]], axis=0)
        return final >= self.min_final_fraction * oracle_returns

    def report(self, kept: np.ndarray, task_ids: np.ndarray) -> dict[str, Any]:
        """The rule, and how many runs it kept and dropped, in all and per task."""
        dropped = {int(task): int((~kept)[task_ids == task].sum()) for task in np.unique(task_ids)}
        return {
            "rule": "all runs are kept"
            if self.min_final_fraction is None
            else f"mean return of the last tenth of episodes >= {self.min_final_fraction} x the oracle's",
            "num_kept": int(kept.sum()),
            "num_dropped": int((~kept).sum()),
            "dropped_per_task": {str(task): count for task, count in dropped.items() if count},
        }


def select_learners(episodes: Sequence[EpisodeBatch], kept: np.ndarray) -> list[EpisodeBatch]:
    """The episodes of the kept learners only."""
    return [
        EpisodeBatch(
            batch.observations[kept],
            batch.actions[kept],
            batch.rewards[kept],
            batch.terminated[kept],
            batch.num_steps[kept],
        )
        for batch in episodes
    ]
