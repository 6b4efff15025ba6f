"""What one trial of a sweep is: the experiment with searched values, trained and scored on validation tasks."""

import difflib
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from distillery.core.protocols import Source
from distillery.stages.entry import build
from distillery.stages.resolve import check
from distillery.stages.train import train_model
from distillery.sweeps.study import Attempt

CONTEXTS = "histories.contexts"
# What a trial may change: the data, the tasks and the yardstick stay.
SEARCHABLE = ("models.", "training.schedule.", "training.learner.", f"{CONTEXTS}.")


def flatten(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping by dotted path."""
    flat: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def with_overrides(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> DictConfig:
    """The configuration with values changed by dotted path."""
    changed = OmegaConf.create(dict(config))
    OmegaConf.set_struct(changed, True)
    for path, value in overrides.items():
        OmegaConf.update(changed, path, value)
    return changed


def drives_contexts(config: Mapping[str, Any], searched: Container[str]) -> bool:
    """Whether sequence and batch have to follow what is searched."""
    absolute = config["models"].get("positions") == "absolute" or "models.positions" in searched
    return (
        f"{CONTEXTS}.keep_every_episode" in searched
        or f"{CONTEXTS}.sequence_length" in searched
        or (absolute and "models.context_length" in searched)
    )


def fitting_contexts(config: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Sequence and batch that go with searched values, so that trials differ in nothing else.

    A training sequence covers the same stretch of the source's learning whichever episodes are kept; with absolute
    positions it is the window; a batch holds as many environment steps as the experiment's. What is searched itself
    is left alone.
    """
    if not drives_contexts(config, values):
        return {}
    changed = with_overrides(config, values)
    before, contexts = config["histories"]["contexts"], changed.histories.contexts
    source: Source = build(changed.sources)
    kept_before = -(-source.num_episodes // before["keep_every_episode"])
    kept = -(-source.num_episodes // contexts.keep_every_episode)
    fitting: dict[str, Any] = {}
    if f"{CONTEXTS}.sequence_length" not in values:
        absolute = changed.models.get("positions") == "absolute"
        stretch = before["sequence_length"] * kept // kept_before
        fitting[f"{CONTEXTS}.sequence_length"] = changed.models.context_length if absolute else stretch
    if f"{CONTEXTS}.batch_size" not in values:
        length = fitting.get(f"{CONTEXTS}.sequence_length", contexts.sequence_length)
        fitting[f"{CONTEXTS}.batch_size"] = max(1, before["sequence_length"] * before["batch_size"] // length)
    return fitting


@dataclass(frozen=True)
class TrainTrial:
    """A trial: trains the experiment's agent with searched values, scored on validation tasks.

    Attributes:
        config: of the experiment, plain.
        num_threads: of this worker; None leaves it as it is.
    """

    config: dict[str, Any]
    num_threads: int | None

    def __call__(self, attempt: Attempt) -> float:
        if self.num_threads is not None:
            torch.set_num_threads(self.num_threads)
        overrides = attempt.values | fitting_contexts(self.config, attempt.values)
        attempt.note("overrides", overrides)
        config = with_overrides(self.config, overrides)
        try:
            check(config)
        except ValueError as error:
            attempt.refuse(str(error))
        curves: dict[str, list[tuple[int, float]]] = {}

        def report(metrics: dict[str, float], update: int) -> None:
            for name, value in metrics.items():
                curves.setdefault(name, []).append((update, value))
            if "validation_score" in metrics:
                attempt.report(metrics["validation_score"], update)

        try:
            _, progress, _ = train_model(config, on_metrics=report)
        finally:
            attempt.note("curves", curves)
        attempt.note("selected_update", progress.best_update)
        assert progress.best_score is not None
        return progress.best_score


def searched_space(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The entries of the space that are switched on.

    Raises:
        ValueError: an entry names nothing that could be searched.
    """
    space = {path: entry for path, entry in config["sweeps"]["space"].items() if entry is not None}
    known = flatten(config)
    for path in config["sweeps"]["space"]:
        if path not in known:
            close = difflib.get_close_matches(path, known, 1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ValueError(f"sweeps.space names '{path}', which is no value of the composed configuration{hint}")
        if not path.startswith(SEARCHABLE):
            raise ValueError(
                f"sweeps.space names '{path}', which would change what trials are scored on; only values under "
                f"{', '.join(prefix.rstrip('.') for prefix in SEARCHABLE)} can be searched"
            )
    return space


def deciding_facts(config: Mapping[str, Any], space: Mapping[str, Any], content_hash: str) -> dict[str, Any]:
    """Everything beside the searched values that decides a trial's score."""
    parts = {key: config[key] for key in ("tasks", "models", "training", "seed")}
    parts |= {"histories": {"contexts": config["histories"]["contexts"]}, "agent": config["agents"][config["agent"]]}
    left_out = set(space)
    if drives_contexts(config, space):
        # Both follow what is searched, and promoting a winner changes them; the study must stay resumable after that.
        left_out |= {f"{CONTEXTS}.sequence_length", f"{CONTEXTS}.batch_size"}
    facts = {path: value for path, value in flatten(parts).items() if path not in left_out}
    return {**facts, "content_hash": content_hash}
