"""The only optimisation loop: draws contexts, updates, validates in context, keeps the best, resumes.

Training loss does not tell how well a model learns in context, so every `validate_every_updates` updates it acts on
validation tasks, and the weights with the best score become the checkpoint. What does not learn in context has scores
that differ by chance alone, and keeps its last weights.
"""

import contextlib
import copy
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm.auto import tqdm

from distillery.core.protocols import SequenceModel
from distillery.core.seeding import stream_seed
from distillery.training.checkpoints import load_training_state, save_training_state
from distillery.training.distributed import Workers

logger = logging.getLogger(__name__)


class Learner(Protocol):
    """Updates a model; `distillery.training.supervised` has the first. Processes that train together call alike.

    What is random in an update, it draws from torch's own generators, which are seeded anew for each.
    """

    def update(self, batch: Any, update: int, /) -> dict[str, Tensor]:
        """One update; returns what is reported of it."""

    def whole_model(self) -> SequenceModel:
        """The model as it is now, which acts without the other processes."""

    def state_dict(self) -> dict[str, Any]:
        """Weights and all else that an exact resume needs, whole."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""


@dataclass(frozen=True)
class Schedule:
    """How long to train and when to look.

    Attributes:
        num_updates: at most this many.
        validate_every_updates: between two validations; the last update is always validated.
        patience_validations: stop after this many validations without a better score; None never stops early.
        keeps: `best`, the weights with the best score, or `last`, those after the last update.
        log_every_updates: between two reported training metrics.
    """

    num_updates: int
    validate_every_updates: int
    patience_validations: int | None = None
    keeps: str = "best"
    log_every_updates: int = 10

    def __post_init__(self) -> None:
        for name in ("num_updates", "validate_every_updates", "log_every_updates"):
            if getattr(self, name) < 1:
                raise ValueError(f"training {name} must be at least 1, got {getattr(self, name)}")
        if self.patience_validations is not None and self.patience_validations < 1:
            raise ValueError(
                f"training patience_validations must be at least 1 or null, got {self.patience_validations}"
            )
        if self.keeps not in ("best", "last"):
            raise ValueError(f"training keeps must be best or last, got {self.keeps!r}")
        if self.keeps == "last" and self.patience_validations is not None:
            raise ValueError(
                f"training keeps the last weights, so that no score may stop it, but patience_validations is "
                f"{self.patience_validations}; set it to null, or keeps to best"
            )

    def validates_after(self, update: int) -> bool:
        """Whether the given update, counted from 1, is followed by a validation."""
        return update % self.validate_every_updates == 0 or update == self.num_updates


@dataclass
class Progress:
    """What training has come to; part of the training state.

    Attributes:
        update: updates done.
        best_score: validation score of what is kept: the best so far, or the last; None before any.
        best_update: the update it was reached at.
        best_weights: the model's state there.
        validations_without_gain: since then.
        curves: name to list of (update, value).
    """

    update: int = 0
    best_score: float | None = None
    best_update: int | None = None
    best_weights: dict[str, Tensor] | None = None
    validations_without_gain: int = 0
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)

    def record(self, name: str, value: float) -> None:
        """Adds a point at the current update."""
        self.curves.setdefault(name, []).append((self.update, value))


def fit(
    learner: Learner,
    draw: Callable[[int], Any],
    schedule: Schedule,
    validate: Callable[[SequenceModel], dict[str, float]],
    *,
    state_file: Path | None = None,
    fingerprint: str = "",
    on_metrics: Callable[[dict[str, float], int], None] = lambda metrics, update: None,
    description: str = "training",
    show_progress: bool = True,
    seed: int = 0,
    workers: Workers | None = None,
) -> Progress:
    """Trains, and leaves the weights to be kept in `Progress.best_weights`.

    Args:
        learner: updates the model.
        draw: the batch of a given update, counted from 0: contexts, or whatever else the learner learns from.
        schedule: how long, and when to validate.
        validate: scores the model in context; the entry ``score`` is what selects.
        state_file: where the training state is kept after every validation; None keeps none.
        fingerprint: of everything that decides the result; a state with another fingerprint is not resumed.
        on_metrics: called with training metrics and validation scores; may raise to stop the trial.
        description: of the progress bar.
        show_progress: whether to draw it.
        seed: of what is random in updates; those of an update depend on its number and the process alone.
        workers: the processes that train together; only the first validates, reports and keeps states.
    """
    workers = workers or Workers()
    first = workers.rank == 0
    progress = _resume(learner, state_file, fingerprint, workers)
    bar = tqdm(
        total=schedule.num_updates,
        initial=progress.update,
        desc=description,
        unit="update",
        disable=not (show_progress and first),
        mininterval=1.0,
    )
    with contextlib.closing(bar):
        while progress.update < schedule.num_updates and not _plateaued(progress, schedule):
            batch = draw(progress.update)
            torch.manual_seed(stream_seed(seed, "update", progress.update, workers.rank))
            metrics = learner.update(batch, progress.update)
            progress.update += 1
            bar.update()
            if progress.update % schedule.log_every_updates == 0:
                values = {name: float(value) for name, value in metrics.items()}
                _require_finite(values, progress.update)
                for name, value in values.items():
                    progress.record(name, value)
                if first:
                    on_metrics(values, progress.update)
                bar.set_postfix(_postfix(progress), refresh=False)
            if schedule.validates_after(progress.update):
                model = learner.whole_model()
                scores = workers.from_first(validate(model) if first else None)
                _note_scores(model, scores, progress, schedule)
                if first:
                    on_metrics({f"validation_{name}": value for name, value in scores.items()}, progress.update)
                bar.set_postfix(_postfix(progress))
                if state_file is not None:
                    state = learner.state_dict()
                    if first:
                        _save(state, progress, state_file, fingerprint)
    return progress


def _note_scores(model: SequenceModel, scores: dict[str, float], progress: Progress, schedule: Schedule) -> None:
    for name, value in scores.items():
        progress.record(f"validation_{name}", value)
    if progress.best_score is None or schedule.keeps == "last" or scores["score"] > progress.best_score:
        progress.best_score, progress.best_update = scores["score"], progress.update
        progress.best_weights = copy.deepcopy(model.state_dict())
        progress.validations_without_gain = 0
    else:
        progress.validations_without_gain += 1


def _plateaued(progress: Progress, schedule: Schedule) -> bool:
    patience = schedule.patience_validations
    return patience is not None and progress.validations_without_gain >= patience


def _postfix(progress: Progress) -> dict[str, str]:
    last = {name: points[-1][1] for name, points in progress.curves.items()}
    shown = {"loss": last.get("loss"), "in-context return": last.get("validation_final_return")}
    return {name: f"{value:.3f}" for name, value in shown.items() if value is not None}


def _require_finite(values: dict[str, float], update: int) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            raise FloatingPointError(
                f"training diverged: {name} is {value} at update {update}; lower training.learner.learning_rate, and "
                "training.learner.muon_learning_rate where there is one"
            )


def _save(learner_state: dict[str, Any], progress: Progress, state_file: Path, fingerprint: str) -> None:
    state = {
        "fingerprint": fingerprint,
        "progress": dict(vars(progress)),
        "learner": learner_state,
    }
    try:
        save_training_state(state_file, state)
    except OSError as error:  # training goes on; a kill would cost what came since the state before
        logger.warning("the training state was not saved: %s", error)


def _resume(learner: Learner, state_file: Path | None, fingerprint: str, workers: Workers) -> Progress:
    """What the first process finds, who alone keeps states, whatever other disks hold."""
    state = _kept_state(state_file, fingerprint) if workers.rank == 0 and state_file is not None else None
    state = workers.from_first(state)
    if state is None:
        return Progress()
    learner.load_state_dict(state["learner"])
    progress = Progress(**state["progress"])
    logger.info("resuming after update %d from %s", progress.update, state_file)
    return progress


def _kept_state(state_file: Path, fingerprint: str) -> dict[str, Any] | None:
    state = load_training_state(state_file)
    if state is None or state["fingerprint"] == fingerprint:
        return state
    logger.warning("%s was left by another configuration and is not resumed", state_file)
    return None
