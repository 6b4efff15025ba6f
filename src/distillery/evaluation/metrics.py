"""What lifetimes amount to: curves with intervals, and the numbers that are reported.

Intervals are 95 % percentile bootstraps over tasks and seeds: tasks are resampled, then the seeds of each. An interval
of raw returns is wide because goals lie at different distances; the interval of the oracle's fraction, in which each
resample is divided by the oracle's return on the same tasks, says how sure the agent's level is. The interquartile
mean follows Agarwal et al., Deep RL at the Edge of the Statistical Precipice (2021), arXiv 2108.13264.

Letters: L lifetimes, K tasks, N episodes.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import stats

from distillery.core.lifetimes import FINAL_EPISODES, episodes_to
from distillery.core.records import Lifetimes

# End level of the published Dark Room curve as a part of the oracle: 14.1 of 16.54 (arXiv 2210.14215).
REFERENCE_FRACTION = 0.852
REPORTED_EPISODES = (1, 10, 25, 50, 100)
NUM_RESAMPLES = 2000


def bootstrap_means(values: np.ndarray, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Resampled means and the tasks they came from: tasks are drawn first, then seeds within each drawn task.

    Args:
        values: (K, seeds, ...), one row per task; every task has the same number of seeds.
        seed: of the draws.

    Returns:
        (`NUM_RESAMPLES`, ...) means over tasks and seeds, and (`NUM_RESAMPLES`, K) drawn rows.
    """
    generator = np.random.default_rng(seed)
    num_tasks, num_seeds = values.shape[:2]
    tasks = generator.integers(num_tasks, size=(NUM_RESAMPLES, num_tasks))
    seeds = generator.integers(num_seeds, size=(NUM_RESAMPLES, num_tasks, num_seeds))
    means = [values[drawn[:, None], own].mean((0, 1)) for drawn, own in zip(tasks, seeds, strict=True)]
    return np.stack(means), tasks


def interval(resampled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """95 % percentile interval over the first axis."""
    low, high = np.percentile(resampled, [2.5, 97.5], axis=0)
    return low, high


def by_task(lifetimes: Lifetimes) -> tuple[np.ndarray, np.ndarray]:
    """Task ids, (K,), and returns, (K, seeds, N)."""
    task_ids = np.unique(lifetimes.task_ids)
    return task_ids, np.stack([lifetimes.returns[lifetimes.task_ids == task] for task in task_ids]).astype(np.float64)


def summarise(
    lifetimes: Lifetimes, oracle_returns: np.ndarray, *, reference_fraction: float = REFERENCE_FRACTION
) -> dict[str, Any]:
    """The reported numbers of one agent on one split.

    Args:
        lifetimes: of one agent.
        oracle_returns: (all tasks,) oracle's return, indexed by task id.
        reference_fraction: of the oracle's return: the level whose first reaching is counted in episodes.
    """
    task_ids, returns = by_task(lifetimes)
    oracle = float(oracle_returns[task_ids].mean())
    curve = returns.mean((0, 1))
    final = returns[..., -FINAL_EPISODES:].mean(-1)  # (K, seeds)
    resampled, drawn = bootstrap_means(final)
    low, high = interval(resampled)
    low_fraction, high_fraction = interval(resampled / oracle_returns[task_ids][drawn].mean(1))
    all_final = lifetimes.returns[:, -FINAL_EPISODES:].mean(1) / oracle_returns[lifetimes.task_ids]  # (L,)
    return {
        "final_return": float(final.mean()),
        "final_return_ci95": [float(low), float(high)],
        "return_at": {str(e): float(curve[e - 1]) for e in REPORTED_EPISODES if e <= len(curve)},
        "nauc": float(curve.mean() / oracle),
        "oracle_return": oracle,
        "reference_fraction": reference_fraction,
        "oracle_fraction": float(final.mean() / oracle),
        "oracle_fraction_ci95": [float(low_fraction), float(high_fraction)],
        "oracle_fraction_iqm": float(stats.trim_mean(all_final, 0.25)),
        "episodes_to_reference": episodes_to(curve, reference_fraction * oracle),
        "failed_lifetimes": float((all_final < 0.5).mean()),
        "num_episodes": len(curve),
        "num_tasks": len(task_ids),
        "num_lifetimes": len(lifetimes.task_ids),
    }


def curve_rows(lifetimes: Lifetimes) -> list[dict[str, float]]:
    """Return per episode with its interval: one row per episode, counted from 1."""
    _, returns = by_task(lifetimes)
    low, high = interval(bootstrap_means(returns)[0])
    mean = returns.mean((0, 1))
    return [
        {"episode": e + 1, "return": float(mean[e]), "low": float(low[e]), "high": float(high[e])}
        for e in range(len(mean))
    ]


def task_rows(lifetimes: Lifetimes, oracle_returns: np.ndarray) -> list[dict[str, Any]]:
    """One row per task, worst first: final return, oracle's, fraction, share of failed lifetimes."""
    task_ids, returns = by_task(lifetimes)
    rows = []
    for task, lived in zip(task_ids, returns, strict=True):
        own = lived[:, -FINAL_EPISODES:].mean(1) / oracle_returns[task]
        final = float(lived[:, -FINAL_EPISODES:].mean())
        rows.append(
            {
                "task_id": int(task),
                "first_return": float(lived[:, 0].mean()),
                "final_return": final,
                "oracle_return": float(oracle_returns[task]),
                "oracle_fraction": final / float(oracle_returns[task]),
                "failed_lifetimes": float((own < 0.5).mean()),
            }
        )
    return sorted(rows, key=lambda row: row["oracle_fraction"])


def validation_score(lifetimes: Lifetimes, oracle_returns: np.ndarray) -> Mapping[str, float]:
    """What selects a checkpoint: area under the in-context curve as a part of the oracle's, and its end."""
    task_ids, returns = by_task(lifetimes)
    oracle = float(oracle_returns[task_ids].mean())
    return {
        "score": float(returns.mean()) / oracle,
        "final_return": float(returns[..., -FINAL_EPISODES:].mean()),
        "first_return": float(returns[..., 0].mean()),
    }
