"""Which runs of a source become histories: an explicit rule, applied before anything is written, and reported.

Letters: E learners, N episodes, T environment steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from distillery.core.records import EpisodeBatch


@dataclass(frozen=True)
class Selection:
    """Drops runs that did not learn their task.

    A run that is one long episode is judged by the last tenth of its steps, whose mean reward stands for that of the
    whole episode: the part of the oracle's return that the run would have had, had it known from the first step what
    it knew in the end.

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
        final = _final_return_of_one(episodes[0]) if len(episodes) == 1 else _final_returns(episodes)
        return final >= self.min_final_fraction * oracle_returns

    def report(self, kept: np.ndarray, task_ids: np.ndarray, *, one_episode: bool = False) -> dict[str, Any]:
        """The rule, and how many runs it kept and dropped, in all and per task.

        Args:
            kept: (E,) bool, from `keep`.
            task_ids: (E,), of the runs.
            one_episode: whether a run is one long episode.
        """
        dropped = {int(task): int((~kept)[task_ids == task].sum()) for task in np.unique(task_ids)}
        tenth = "the last tenth of steps, scaled to a whole episode," if one_episode else "the last tenth of episodes"
        return {
            "rule": "all runs are kept"
            if self.min_final_fraction is None
            else f"mean return of {tenth} >= {self.min_final_fraction} x the oracle's",
            "num_kept": int(kept.sum()),
            "num_dropped": int((~kept).sum()),
            "dropped_per_task": {str(task): count for task, count in dropped.items() if count},
        }


def _final_returns(episodes: Sequence[EpisodeBatch]) -> np.ndarray:
    """(E,) mean return of the last tenth of each run's own episodes."""
    returns = np.stack([batch.returns.cpu().numpy() for batch in episodes], 1)  # (E, N)
    played = np.stack([batch.num_steps.cpu().numpy() > 0 for batch in episodes], 1)
    return _mean_of_last_tenth(returns, played.sum(1))


def _final_return_of_one(episode: EpisodeBatch) -> np.ndarray:
    """(E,) mean reward of the last tenth of each run's steps, times their number."""
    num_steps = episode.num_steps.cpu().numpy()
    return _mean_of_last_tenth(episode.rewards.cpu().numpy(), num_steps) * num_steps


def _mean_of_last_tenth(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(E,) mean over the last tenth of the first (E,) `counts` of (E, M) values."""
    tenth = np.maximum(1, counts // 10)
    number = np.arange(values.shape[1])
    last = (number < counts[:, None]) & (number >= (counts - tenth)[:, None])
    means: np.ndarray = np.where(last, values, 0.0).sum(1, dtype=np.float64) / tenth
    return means
