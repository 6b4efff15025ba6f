"""Which tasks of a split an evaluation takes, and how its lifetimes are run."""

from typing import Any

import numpy as np
from omegaconf import DictConfig

from distillery.core.protocols import TaskDistribution
from distillery.evaluation.in_context import InContextEvaluation
from distillery.stages.entry import build, plain


def evaluated_settings(config: DictConfig) -> dict[str, Any]:
    """What an evaluation keeps of its settings beside the results."""
    return {group: plain(config[group]) for group in ("tasks", "evaluation")}


def lifetimes_of(config: DictConfig, split: str) -> InContextEvaluation:
    """How the lifetimes of a split are run: fewer of each training task, of which there are many."""
    seeds = {"num_seeds": config.evaluation.train_seeds} if split == "train" else {}
    evaluation: InContextEvaluation = build(config.evaluation.lifetimes, **seeds)
    return evaluation


def evaluated_tasks(config: DictConfig, tasks: TaskDistribution, split: str) -> np.ndarray:
    """Task ids of a split, or as many as are asked for, evenly spread over it."""
    ids, most = tasks.task_ids(split), config.evaluation.max_tasks
    return ids if most is None or most >= len(ids) else ids[np.arange(most) * len(ids) // most]
