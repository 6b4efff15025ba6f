"""Two results beside each other: levels with intervals, their difference, and a verdict.

python -m distillery.stages.compare dark_room/ad dark_room/ed                 two evaluations of the pipeline
python -m distillery.stages.compare context_size/c200 context_size/c20        two variants of a study
python -m distillery.stages.compare dark_room/ad study:dark_room/ad           where both have one of that name
python -m distillery.stages.compare try_0/ad,try_1/ad dark_room/ad            several trainings of yours as one
"""

import argparse
import difflib
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from rich.console import Console
from rich.table import Table

from distillery.core.files import read_json
from distillery.core.lifetimes import BASELINES, FINAL_EPISODES
from distillery.evaluation.storage import LIFETIMES_FILE, SUMMARY_FILE, TASKS_FILE, TRAINING_FILE
from distillery.papers.intervals import difference, level
from distillery.papers.results import FOLDER as RESULTS
from distillery.papers.results import Run, read_runs
from distillery.papers.statistics import StudyNumbers, scores_of
from distillery.papers.study import load_study, study_names
from distillery.stages.study_units import is_current, told_runtimes, unit_of
from distillery.stages.sweep_trial import flatten

EVALUATIONS = Path("data", "evaluations")
# Settings that change no score of a task: how many there are, or how often and how far something else is played.
_CHANGE_NOTHING = {
    "tasks": ("num_train", "num_validation", "num_held_out"),
    "evaluation": ("train_seeds", "max_tasks", "splits", "reference_fraction", "lifetimes.batch_lifetimes"),
    "training": (),
}
_ROUNDING = 1e-3  # studies keep three decimals
STUDY = "study:"
_MOST_LISTED = 30
MEASURES = {
    "normalised": "normalised score",
    "oracle_fraction": "part of the oracle's return",
    "final": "return at the end",
    "first": "return in the first episode",
    "gain": "gain over the first episode",
    "mean": "mean over the lifetime",
}


@dataclass(frozen=True)
class Result:
    """What is compared.

    Attributes:
        name: as given.
        origin: where it was found.
        scores: by measure, (S, K): training seeds by tasks.
        task_ids: (K,) of the tasks.
        oracle: (K,) the oracle's return on each, by which tasks of one number are told apart.
        trained: whether it is a training's, which would come out otherwise with another seed.
        settings: of the `tasks`, the `evaluation` and the `training` (agent, histories, size), nested, as far as they
            were kept.
        weights: what names each training.
    """

    name: str
    origin: str
    scores: dict[str, np.ndarray]
    task_ids: tuple[int, ...]
    oracle: tuple[float, ...]
    trained: bool
    settings: Mapping[str, Any] = field(default_factory=dict)
    weights: tuple[str, ...] = ()

    @property
    def is_one_training(self) -> bool:
        """Whether nothing tells how another training would have come out."""
        return self.trained and len(self.scores["final"]) == 1

    def on(self, task_ids: Collection[int]) -> "Result":
        """The same on some of its tasks; scores that all of a study's tasks scale are left out."""
        chosen = [number for number, task in enumerate(self.task_ids) if task in task_ids]
        scores = {name: values[:, chosen] for name, values in self.scores.items() if name != "normalised"}
        task_ids = tuple(self.task_ids[number] for number in chosen)
        oracle = tuple(self.oracle[number] for number in chosen)
        return replace(self, scores=scores, task_ids=task_ids, oracle=oracle)

    def differing(self, other: "Result", group: str) -> list[str]:
        """Names of the settings of a group that are not the same, where both have kept theirs."""
        if group not in self.settings or group not in other.settings:
            return []
        one, two = (flatten(result.settings[group]) for result in (self, other))
        names = (one.keys() | two.keys()) - set(_CHANGE_NOTHING[group])
        return sorted(name for name in names if one.get(name) != two.get(name))

    def has_tasks_of(self, other: "Result") -> bool:
        """Whether both are of the same tasks, under the same rules."""
        alike = self.task_ids == other.task_ids and np.allclose(self.oracle, other.oracle, atol=_ROUNDING)
        return alike and not self.differing(other, "tasks")


def read_results(names: str, split: str) -> Result:
    """One result, or several trainings of the same tasks as one, their names parted by commas.

    Raises:
        ValueError: see `read_result`; or they are no trainings, of other tasks, trained or evaluated otherwise, or the
            same.
    """
    first, *others = (read_result(name, split) for name in names.split(","))
    if not others:
        return first
    for other in others:
        if not (first.trained and other.trained):
            raise ValueError(f"'{names}': only trainings are taken together, and a baseline is none")
        if not first.has_tasks_of(other):
            raise ValueError(f"'{names}': '{other.name}' was evaluated on other tasks than '{first.name}'")
        for group, told in (("training", "trained"), ("evaluation", "evaluated")):
            if differing := first.differing(other, group):
                raise ValueError(f"'{names}': they were {told} otherwise, in {', '.join(differing)}")
    weights = tuple(one for result in (first, *others) for one in result.weights)
    if len(set(weights)) < len(weights) or len({first.name, *(other.name for other in others)}) <= len(others):
        raise ValueError(f"'{names}': one training is named twice, which would count as two")
    shared = [measure for measure in first.scores if all(measure in other.scores for other in others)]
    scores = {measure: np.concatenate([one.scores[measure] for one in (first, *others)]) for measure in shared}
    settings = {name: first.settings[name] for name in first.settings if all(name in one.settings for one in others)}
    origin = f"{first.origin}, ..."
    return replace(first, name=names, origin=origin, scores=scores, settings=settings, weights=weights)


def read_result(name: str, split: str) -> Result:
    """An evaluation of the pipeline, ``experiment/agent``, or else a variant of a study, ``study/variant``.

    ``study:`` before a name asks for the study's, where both have one of that name.

    Raises:
        ValueError: there is neither.
    """
    first, _, last = name.removeprefix(STUDY).partition("/")
    path = EVALUATIONS / first / last / LIFETIMES_FILE
    evaluated = bool(last) and path.is_file() and not name.startswith(STUDY)
    if not evaluated:
        return _study_result(name, first, last, split)
    rows = pl.read_parquet(path).filter(pl.col("split") == split).sort("task_id", "seed", "episode")
    if rows.is_empty():
        raise ValueError(f"'{name}' was not evaluated on the split '{split}'; choose another --split")
    tasks = tuple(rows["task_id"].unique(maintain_order=True).to_list())
    returns = rows["return"].to_numpy().reshape(len(tasks), -1, rows["episode"].n_unique())
    by_task = pl.read_csv(path.with_name(TASKS_FILE)).filter(pl.col("split") == split).sort("task_id")
    scores = {
        "first": returns[..., 0].mean(1)[None],
        "final": returns[..., -FINAL_EPISODES:].mean((1, 2))[None],
        "mean": returns.mean((1, 2))[None],
    }
    oracle = by_task["oracle_return"].to_numpy()
    scores["oracle_fraction"] = scores["final"] / oracle
    kept = read_json(path.with_name(SUMMARY_FILE), remedy="evaluate again")
    settings = {group: kept[group] for group in ("tasks", "evaluation") if group in kept}
    trained, origin = last not in BASELINES, f"evaluation in {path.parent}"
    weights = (kept["weights"],) if trained else ()
    if trained:
        training = read_json(path.with_name(TRAINING_FILE), remedy="evaluate again")
        settings["training"] = {
            "agent": last,
            "histories": training["content_hash"],
            "num_parameters": training["num_parameters"],
        }
    return Result(name, origin, scores, tasks, tuple(oracle), trained, settings, weights)


def _study_result(name: str, study: str, variant: str, split: str) -> Result:
    all_runs = current_runs(study)
    runs = [run for run in all_runs if run.variant == variant]
    if not runs:
        known = _there_are()
        near = [other for other in known if other.partition("/")[0] == study]
        near = near or difflib.get_close_matches(name.removeprefix(STUDY), known) or known
        listed = ", ".join(near[:_MOST_LISTED]) + (", ..." if len(near) > _MOST_LISTED else "")
        raise ValueError(f"there is no result '{name}'; there are {listed}")
    evaluated = list(dict.fromkeys(other for run in runs for other in run.splits))
    runs = [run for run in runs if split in run.splits]
    if not runs:
        raise ValueError(
            f"'{name}' was not evaluated on the split '{split}', but on {', '.join(evaluated)}; choose --split"
        )
    scores = {measure: scores_of(runs, measure, split) for measure in ("final", "first")}
    settings: dict[str, Any] = {}
    if study in study_names():
        loaded = load_study(study)
        composed = unit_of(loaded, loaded.variants[variant], 0).config
        settings = {group: composed[group] for group in ("tasks", "evaluation")}
        numbers = StudyNumbers(loaded, all_runs)
        metric = numbers.study.metric
        if metric in MEASURES and numbers.has(variant, split, metric):
            scores[metric] = numbers.scores(variant, metric=metric, split=split)
    if np.array_equal(scores["first"], scores["final"]):  # there is one episode
        del scores["first"]
    result, trained = runs[0].splits[split], runs[0].updates is not None
    # The hash of its settings stands for how a variant is trained, and with the seed for the training.
    weights = tuple(f"{run.settings}/{run.seed}" for run in runs) if trained else ()
    if trained and settings:
        settings["training"] = {"recipe": runs[0].settings}
    origin = _origin(study, runs)
    return Result(name, origin, scores, tuple(result.task_ids), tuple(result.oracle), trained, settings, weights)


def current_runs(study: str) -> list[Run]:
    """A study's runs that have its present settings; all of them where there is no such study any more."""
    runs = read_runs(study)
    if study not in study_names():
        return runs
    return [run for run, is_so in zip(runs, is_current(load_study(study), runs), strict=True) if is_so]


def _origin(study: str, runs: list[Run]) -> str:
    """The study, and how many of the runs were made otherwise than with the default runtime."""
    others = told_runtimes(load_study(study), runs) if study in study_names() else ""
    return f"study {study}" + (f", {others}" if others else "")


def _there_are() -> list[str]:
    folders = sorted(file.parent for file in EVALUATIONS.glob(f"*/*/{LIFETIMES_FILE}"))
    names = [f"{folder.parent.name}/{folder.name}" for folder in folders]
    names += [
        f"{file.stem}/{run.variant}" for file in sorted(RESULTS.glob("*.json")) for run in current_runs(file.stem)
    ]
    return list(dict.fromkeys(names)) or ["none yet: run `make repro` or `make paper` first"]


def verdict(one: Result, other: Result, low: float, high: float) -> str:
    """Who is better, as far as the interval of the difference tells; a single training tells only of itself."""
    if not one.has_tasks_of(other):
        return "not judged: other tasks"
    if low <= 0 <= high:
        return "no difference shown"
    name = one.name if low > 0 else other.name
    alone = one.is_one_training or other.is_one_training
    return f"{name} is higher, by one training" if alone else f"{name} is better"


def compare(one: Result, other: Result) -> Table:
    """One row per measure that both have."""
    table = Table(box=None)
    for heading in ("measure", one.name, other.name, "difference (95 %)", "verdict"):
        table.add_column(heading, overflow="fold")
    alike = one.has_tasks_of(other)
    for measure in MEASURES:
        if measure in one.scores and measure in other.scores:
            a, b = one.scores[measure], other.scores[measure]
            low, high = difference(a, b, trained=(one.trained, other.trained)) if alike else (-np.inf, np.inf)
            told = f"{a.mean() - b.mean():+.3f} ({low:+.3f} to {high:+.3f})" if alike else "-"
            table.add_row(MEASURES[measure], level(a).text(3), level(b).text(3), told, verdict(one, other, low, high))
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("one", help="study/variant or experiment/agent; several trainings parted by commas")
    parser.add_argument("other", help="the same")
    parser.add_argument("--split", default="held_out", help="of the tasks (default: held_out)")
    options = parser.parse_args(arguments)
    try:
        one, other = (read_results(name, options.split) for name in (options.one, options.other))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    one, other, narrowed = on_common_tasks(one, other)
    Console(width=160, highlight=False).print(compare(one, other))
    for result in (one, other):
        num_seeds, num_tasks = result.scores["final"].shape
        trainings = f"{num_seeds} training{'s' if num_seeds > 1 else ''}" if result.trained else "trains nothing"
        print(f"{result.name} ({result.origin}): {trainings}, {num_tasks} tasks of the split {options.split}")
    for note in [*narrowed, *notes(one, other)]:
        print(f"note: {note}")


def on_common_tasks(one: Result, other: Result) -> tuple[Result, Result, list[str]]:
    """Both on the tasks of the one that has fewer, where the other has all of these, too; and what to say of it."""
    tasks = set(one.task_ids), set(other.task_ids)
    fewer = min(tasks, key=len)
    if tasks[0] == tasks[1] or fewer != tasks[0] & tasks[1]:
        return one, other, []
    narrow = one.on(fewer), other.on(fewer)
    if not narrow[0].has_tasks_of(narrow[1]):
        return one, other, []
    return *narrow, [f"held against each other on the {len(fewer)} tasks that both were evaluated on"]


def notes(one: Result, other: Result) -> Iterator[str]:
    """What must be known to read the comparison."""
    if not one.has_tasks_of(other):
        differing = one.differing(other, "tasks")
        told = f": {', '.join(differing)}" if differing else ""
        yield f"the two were evaluated on different tasks{told}, so that no difference between them is told"
    elif one.is_one_training or other.is_one_training:
        yield "intervals of one training are over its tasks; another seed of the same recipe may differ by more"
    for result in (one, other):
        if not {"tasks", "evaluation"} <= result.settings.keys():
            yield f"{result.name} did not keep its settings, so that other rules would go unnoticed; evaluate it again"
    if differing := one.differing(other, "evaluation"):
        yield f"they were evaluated otherwise: {', '.join(differing)}"


if __name__ == "__main__":
    main()
