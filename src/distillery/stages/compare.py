"""Two results beside each other: levels with intervals, their difference, and a verdict.

python -m distillery.stages.compare dark_room/ad dark_room/ed                 two evaluations of the pipeline
python -m distillery.stages.compare context_size/c200 context_size/c20        two variants of a study
python -m distillery.stages.compare dark_room/ad study:dark_room/ad           where both have one of that name
"""

import argparse
import difflib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from rich.console import Console
from rich.table import Table

from distillery.core.lifetimes import BASELINES, FINAL_EPISODES
from distillery.evaluation.storage import LIFETIMES_FILE
from distillery.papers.intervals import difference, level
from distillery.papers.results import FOLDER as RESULTS
from distillery.papers.results import Run, read_runs
from distillery.papers.statistics import StudyNumbers, scores_of
from distillery.papers.study import load_study, study_names
from distillery.stages.study_units import is_current, told_runtimes

EVALUATIONS = Path("data", "evaluations")
STUDY = "study:"
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
        trained: whether it is a training's, which would come out otherwise with another seed.
    """

    name: str
    origin: str
    scores: dict[str, np.ndarray]
    task_ids: tuple[int, ...]
    trained: bool

    @property
    def is_one_training(self) -> bool:
        """Whether nothing tells how another training would have come out."""
        return self.trained and len(self.scores["final"]) == 1


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
    scores = {
        "first": returns[..., 0].mean(1)[None],
        "final": returns[..., -FINAL_EPISODES:].mean((1, 2))[None],
        "mean": returns.mean((1, 2))[None],
    }
    return Result(name, f"evaluation in {path.parent}", scores, tasks, trained=last not in BASELINES)


def _study_result(name: str, study: str, variant: str, split: str) -> Result:
    runs = [run for run in current_runs(study) if run.variant == variant]
    if not runs:
        known = _there_are()
        near = [other for other in known if other.partition("/")[0] == study]
        near = near or difflib.get_close_matches(name.removeprefix(STUDY), known) or known
        raise ValueError(f"there is no result '{name}'; there are {', '.join(near)}")
    evaluated = list(dict.fromkeys(other for run in runs for other in run.splits))
    runs = [run for run in runs if split in run.splits]
    if not runs:
        raise ValueError(
            f"'{name}' was not evaluated on the split '{split}', but on {', '.join(evaluated)}; choose --split"
        )
    scores = {measure: scores_of(runs, measure, split) for measure in ("final", "first")}
    if study in study_names():
        numbers = StudyNumbers(load_study(study), current_runs(study))
        metric = numbers.study.metric
        if metric in MEASURES and numbers.has(variant, split, metric):
            scores[metric] = numbers.scores(variant, metric=metric, split=split)
    if np.array_equal(scores["first"], scores["final"]):  # there is one episode
        del scores["first"]
    tasks, trained = tuple(runs[0].splits[split].task_ids), runs[0].updates is not None
    return Result(name, _origin(study, runs), scores, tasks, trained)


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
    if one.task_ids != other.task_ids:
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
        table.add_column(heading, no_wrap=True)
    for measure in MEASURES:
        if measure in one.scores and measure in other.scores:
            a, b = one.scores[measure], other.scores[measure]
            low, high = difference(a, b, paired=one.task_ids == other.task_ids, trained=(one.trained, other.trained))
            table.add_row(
                MEASURES[measure],
                level(a).text(3),
                level(b).text(3),
                f"{a.mean() - b.mean():+.3f} ({low:+.3f} to {high:+.3f})",
                verdict(one, other, low, high),
            )
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("one", help="study/variant or experiment/agent")
    parser.add_argument("other", help="the same")
    parser.add_argument("--split", default="held_out", help="of the tasks (default: held_out)")
    options = parser.parse_args(arguments)
    try:
        one, other = (read_result(name, options.split) for name in (options.one, options.other))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    Console(width=160, highlight=False).print(compare(one, other))
    for result in (one, other):
        num_seeds, num_tasks = result.scores["final"].shape
        print(
            f"{result.name} ({result.origin}): {num_seeds} training seed(s), {num_tasks} tasks of the split "
            f"{options.split}"
        )
    if one.task_ids != other.task_ids:
        print("note: the two were evaluated on different tasks, so part of the difference may be theirs")
    elif one.is_one_training or other.is_one_training:
        print("note: intervals of one training are over its tasks; another seed of the same recipe may differ by more")


if __name__ == "__main__":
    main()
