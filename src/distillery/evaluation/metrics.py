"""What lifetimes amount to: curves with intervals, and the numbers that are reported.

Returns are averaged over the seeds of each task first; intervals are 95 % percentile bootstraps over tasks (each
resampled task brings all its seeds), since tasks differ more than seeds do. The interquartile mean follows Agarwal
et al., Deep RL at the Edge of the Statistical Precipice (2021), arXiv 2108.13264.

Letters: L lifetimes, K tasks, N episodes.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import stats

from distillery.core.records import Lifetimes

# End level of the published Dark Room curve as a part of the oracle: 14.1 of 16.54 (arXiv 2210.14215, figure 4).
REFERENCE_FRACTION = 0.852
FINAL_EPISODES = 10
REPORTED_EPISODES = (1, 10, 25, 50, 100)
NUM_RESAMPLES = 2000


def task_curves(lifetimes: Lifetimes) -> tuple[np.ndarray, np.ndarray]:
    """Task ids, (K,), and the return per episode of each, (K, N), averaged over seeds."""
    task_ids = np.unique(lifetimes.task_ids)
    curves = [lifetimes.returns[lifetimes.task_ids == task].mean(0, dtype=np.float64) for task in task_ids]
    return task_ids, np.stack(curves)


def bootstrap_interval(per_task: np.ndarray, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """95 % interval of the mean over the first axis, (K, ...) to two of (...)."""
    if len(per_task) < 2:
        return per_task[0], per_task[0]
    result = stats.bootstrap(
        (per_task,),
        np.mean,
        axis=0,
        n_resamples=NUM_RESAMPLES,
        method="percentile",
        vectorized=True,
        random_state=np.random.default_rng(seed),
    )
    return result.confidence_interval.low, result.confidence_interval.high


def episodes_to_reference(curve: np.ndarray, oracle: float) -> int | None:
    """First episode e, counted from 1, whose episodes e to e + 9 average `REFERENCE_FRACTION` of the oracle."""
    if len(curve) < FINAL_EPISODES:
        return None
    averages = np.convolve(curve, np.full(FINAL_EPISODES, 1 / FINAL_EPISODES), "valid")
    reached = np.flatnonzero(averages >= REFERENCE_FRACTION * oracle - 1e-9)
    return int(reached[0]) + 1 if len(reached) else None


def summarise(lifetimes: Lifetimes, oracle_returns: np.ndarray) -> dict[str, Any]:
    """The reported numbers of one agent on one split.

    Args:
        lifetimes: of one agent.
        oracle_returns: (all tasks,) oracle's return, indexed by task id.
    """
    task_ids, curves = task_curves(lifetimes)
    oracle = float(oracle_returns[task_ids].mean())
    curve = curves.mean(0)
    final = curves[:, -FINAL_EPISODES:].mean(1)  # (K,)
    low, high = bootstrap_interval(final)
    all_final = lifetimes.returns[:, -FINAL_EPISODES:].mean(1) / oracle_returns[lifetimes.task_ids]  # (L,)
    return {
        "final_return": float(final.mean()),
        "final_return_ci95": [float(low), float(high)],
        "return_at": {str(e): float(curve[e - 1]) for e in REPORTED_EPISODES if e <= len(curve)},
        "nauc": float(curve.mean() / oracle),
        "oracle_return": oracle,
        "oracle_fraction": float(final.mean() / oracle),
        "oracle_fraction_iqm": float(stats.trim_mean(all_final, 0.25)),
        "episodes_to_reference": episodes_to_reference(curve, oracle),
        "failed_lifetimes": float((all_final < 0.5).mean()),
        "num_tasks": len(task_ids),
        "num_lifetimes": len(lifetimes.task_ids),
    }


def curve_rows(lifetimes: Lifetimes) -> list[dict[str, float]]:
    """Return per episode with its interval: one row per episode, counted from 1."""
    _, curves = task_curves(lifetimes)
    low, high = bootstrap_interval(curves)
    mean = curves.mean(0)
    return [
        {"episode": e + 1, "return": float(mean[e]), "low": float(low[e]), "high": float(high[e])}
        for e in range(len(mean))
    ]


def task_rows(lifetimes: Lifetimes, oracle_returns: np.ndarray) -> list[dict[str, Any]]:
    """One row per task, worst first: final return, oracle's, fraction, share of failed lifetimes."""
    task_ids, curves = task_curves(lifetimes)
    rows = []
    for task, curve in zip(task_ids, curves, strict=True):
        own = lifetimes.returns[lifetimes.task_ids == task][:, -FINAL_EPISODES:].mean(1) / oracle_returns[task]
        final = float(curve[-FINAL_EPISODES:].mean())
        rows.append(
            {
                "task_id": int(task),
                "first_return": float(curve[0]),
                "final_return": final,
                "oracle_return": float(oracle_returns[task]),
                "oracle_fraction": final / float(oracle_returns[task]),
                "failed_lifetimes": float((own < 0.5).mean()),
            }
        )
    return sorted(rows, key=lambda row: row["oracle_fraction"])


def validation_score(lifetimes: Lifetimes, oracle_returns: np.ndarray) -> Mapping[str, float]:
    """What selects a checkpoint: area under the in-context curve as a part of the oracle's, and its end."""
    task_ids, curves = task_curves(lifetimes)
    oracle = float(oracle_returns[task_ids].mean())
    final = float(curves[:, -FINAL_EPISODES:].mean())
    return {"score": float(curves.mean()) / oracle, "final_return": final, "first_return": float(curves[:, 0].mean())}
