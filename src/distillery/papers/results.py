"""The committed result of a study: one small file that holds every run, so that sittings add up.

A run is one variant with one training seed: its return per episode, and for each task its first and last returns. Runs
are known by a hash of their settings; a run whose settings did not change is not run again.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import filelock

from distillery.core.files import read_json, whole_file

FOLDER = Path("data", "results")
FORMAT_VERSION = 1
REMEDY = "restore it from version control, or delete it and run the study again with `make paper`"
DECIMALS = 3


@dataclass(frozen=True)
class SplitResult:
    """One run on the tasks of one split.

    Attributes:
        curve: mean return of every episode.
        task_ids: of the tasks.
        first: each task's return in the first episode.
        final: each task's mean return in the last episodes.
        oracle: each task's best expected return.
        failed: each task's share of lifetimes that end below half of that.
    """

    curve: list[float]
    task_ids: list[int]
    first: list[float]
    final: list[float]
    oracle: list[float]
    failed: list[float]


@dataclass(frozen=True)
class Run:
    """One variant with one training seed.

    Attributes:
        variant: its name.
        seed: of the training and of the evaluation.
        settings: hash of everything that decides the result, but the code.
        commit: of the code that trained it, or ran it where nothing is trained.
        splits: by name.
        data: content hash of the histories, or None where none were read.
        updates: at which the checkpoint was selected, or None.
        minutes: it took: training and evaluation.
        extra: further numbers of this variant, such as attention shares.
        evaluation_commit: of the code that evaluated what may have been trained before; None was not recorded.
    """

    variant: str
    seed: int
    settings: str
    commit: str
    splits: dict[str, SplitResult]
    data: str | None = None
    updates: int | None = None
    minutes: float | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    evaluation_commit: str | None = None


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, DECIMALS)
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value


def _text(study: str, runs: Iterable[Run]) -> str:
    """JSON with lists of numbers on one line each; tasks, which most runs share, are listed once."""
    task_sets: list[dict[str, Any]] = []
    told = []
    for run in runs:
        values = asdict(run)
        for split in values["splits"].values():
            tasks = {"task_ids": split.pop("task_ids"), "oracle": _rounded(split.pop("oracle"))}
            if tasks not in task_sets:
                task_sets.append(tasks)
            split["tasks"] = task_sets.index(tasks)
        told.append(_rounded(values))
    whole = {"format_version": FORMAT_VERSION, "study": study, "task_sets": task_sets, "runs": told}
    text = json.dumps(whole, indent=1, allow_nan=False)
    return re.sub(r"\[[-+.,\seE\d]*\]", lambda found: re.sub(r"\s+", "", found[0]), text) + "\n"


def result_file(study: str, folder: Path = FOLDER) -> Path:
    """Where a study's result lies."""
    return folder / f"{study}.json"


def _split(split: dict[str, Any], values: Mapping[str, Any]) -> SplitResult:
    return SplitResult(**values["task_sets"][split.pop("tasks")], **split)


def read_runs(study: str, folder: Path = FOLDER) -> list[Run]:
    """The runs of a study so far; none where there is no file.

    Raises:
        ValueError: the file is broken.
    """
    path = result_file(study, folder)
    if not path.exists():
        return []
    values = read_json(path, remedy=REMEDY)
    try:
        if values["format_version"] != FORMAT_VERSION:
            raise KeyError(f"format version {values['format_version']}, this code reads {FORMAT_VERSION}")
        return [
            Run(**{**run, "splits": {name: _split(split, values) for name, split in run["splits"].items()}})
            for run in values["runs"]
        ]
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{path} lacks or misnames a field ({error}); {REMEDY}") from error


def all_runs(folder: Path = FOLDER) -> dict[str, Run]:
    """Every committed run of every study, by its settings."""
    return {run.settings: run for path in sorted(folder.glob("*.json")) for run in read_runs(path.stem, folder)}


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = Path(".scratch", "locks", f"{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(lock):
        yield


def withdraw_runs(settings: Collection[str], folder: Path = FOLDER) -> list[str]:
    """Takes runs of these settings out of every study's file; returns their names, ``study/variant/seed``."""
    withdrawn = []
    for path in sorted(folder.glob("*.json")):
        with _locked(path):
            runs = read_runs(path.stem, folder)
            gone = [run for run in runs if run.settings in settings]
            if gone:
                with whole_file(path) as temporary:
                    temporary.write_text(_text(path.stem, [run for run in runs if run not in gone]))
        withdrawn += [f"{path.stem}/{run.variant}/{run.seed}" for run in gone]
    return withdrawn


def add_run(study: str, run: Run, order: Iterable[str], folder: Path = FOLDER) -> None:
    """Puts a run into its study's file, in the place of an older one of the same variant and seed.

    Args:
        study: name of the study.
        run: what to add.
        order: names of the study's variants; runs of variants that are gone are dropped.
        folder: of results.
    """
    path = result_file(study, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    places = {name: number for number, name in enumerate(order)}
    with _locked(path):
        runs = [old for old in read_runs(study, folder) if (old.variant, old.seed) != (run.variant, run.seed)]
        kept = sorted(
            (each for each in [*runs, run] if each.variant in places),
            key=lambda each: (places[each.variant], each.seed),
        )
        with whole_file(path) as temporary:
            temporary.write_text(_text(study, kept))
