"""An evaluation on disk: every return, the curves, the summary, and one lifetime's steps per held-out task."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from distillery.core.files import whole_folder, write_json
from distillery.core.records import Lifetimes
from distillery.evaluation.metrics import REFERENCE_FRACTION, curve_rows, summarise, task_rows

# What is reported; validation tasks select, and are not.
REPORTED_SPLITS = ("held_out", "train")

LIFETIMES_FILE = "lifetimes.parquet"
CURVES_FILE = "curves.csv"
TASKS_FILE = "tasks.csv"
STEPS_FILE = "steps.npz"
SUMMARY_FILE = "summary.json"
TRAINING_FILE = "training.json"


def lifetimes_frame(split: str, lifetimes: Lifetimes) -> pl.DataFrame:
    """One row per lifetime and episode."""
    num_lifetimes, num_episodes = lifetimes.returns.shape
    return pl.DataFrame(
        {
            "split": [split] * lifetimes.returns.size,
            "task_id": np.repeat(lifetimes.task_ids, num_episodes),
            "seed": np.repeat(lifetimes.seeds, num_episodes),
            "episode": np.tile(np.arange(1, num_episodes + 1), num_lifetimes),
            "return": lifetimes.returns.ravel(),
        }
    )


def write_evaluation(
    folder: Path | str,
    lifetimes: Mapping[str, Lifetimes],
    oracle_returns: np.ndarray,
    *,
    agent: str,
    weights: str | None,
    training: Mapping[str, Any] | None = None,
    reference_fraction: float = REFERENCE_FRACTION,
    prompt_levels: Mapping[str, np.ndarray] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes one agent's evaluation, whole or not at all; returns the summary.

    Args:
        folder: of the evaluation.
        lifetimes: by split.
        oracle_returns: (all tasks,), indexed by task id.
        agent: name of the agent.
        weights: checksum of the frozen weights, or None for an agent without.
        training: what the checkpoint says of its training, kept beside the results for the report.
        reference_fraction: see `distillery.evaluation.metrics.summarise`.
        prompt_levels: by split, (L,) what each lifetime's prompt came to, as a part of the oracle's return.
        settings: of the tasks and of the evaluation, kept in the summary, by which evaluations are told apart.
    """
    summary: dict[str, Any] = {
        "agent": agent,
        "weights": weights,
        **(settings or {}),
        "splits": {
            split: summarise(runs, oracle_returns, reference_fraction=reference_fraction)
            for split, runs in lifetimes.items()
        },
    }
    for split, levels in (prompt_levels or {}).items():
        mean = float(levels.mean())
        furthest = float(levels[np.abs(levels - mean).argmax()])
        summary["splits"][split]["prompt"] = {"mean": mean, "furthest": furthest}
    curves = [{"split": split, **row} for split, runs in lifetimes.items() for row in curve_rows(runs)]
    tasks = [{"split": split, **row} for split, runs in lifetimes.items() for row in task_rows(runs, oracle_returns)]
    with whole_folder(folder) as temporary:
        pl.concat([lifetimes_frame(*item) for item in lifetimes.items()]).write_parquet(temporary / LIFETIMES_FILE)
        pl.DataFrame(curves).write_csv(temporary / CURVES_FILE)
        pl.DataFrame(tasks).write_csv(temporary / TASKS_FILE)
        _write_steps(temporary / STEPS_FILE, lifetimes["held_out"])
        write_json(temporary / SUMMARY_FILE, summary)
        if training is not None:
            write_json(temporary / TRAINING_FILE, training)
    return summary


def _write_steps(path: Path, lifetimes: Lifetimes) -> None:
    """Of each task's first seed: task ids (K,), returns (K, N), and what else was kept of these.

    Numbers of steps, `num_steps` (K, N), actions (K, N, T, ...) and observations (K, N, T, D).
    """
    first = lifetimes.seeds == 0
    arrays = {"task_ids": lifetimes.task_ids[first], "returns": lifetimes.returns[first]}
    for name in ("observations", "actions", "num_steps"):
        values = getattr(lifetimes, name)
        if values is not None:
            arrays[name] = values[first]
    np.savez_compressed(path, **arrays)
