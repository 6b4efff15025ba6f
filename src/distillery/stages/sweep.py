"""Many trainings look for better settings; the winner comes with the line that promotes it into params.yaml.

python -m distillery.stages.sweep -cd data/resolved/experiments -cn dark_room sweeps.num_trials=12

The same command resumes a study that was interrupted, joins one that is running, and extends a finished one by a
larger num_trials. Every trial becomes a tracked run when it ends, under one run for the whole study.
"""

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from omegaconf import DictConfig
from optuna.trial import FrozenTrial, TrialState

from distillery.core.files import whole_file, write_json
from distillery.core.protocols import TrackedRun, Tracker
from distillery.histories.reader import open_packed
from distillery.layers.precision import slow_bfloat16
from distillery.stages.entry import build, histories_folder, plain, scratch, stage
from distillery.stages.resolve import check
from distillery.stages.sweep_trial import TrainTrial, deciding_facts, flatten, searched_space, with_overrides
from distillery.stages.validate import require_own_histories
from distillery.sweeps import promotion
from distillery.sweeps.page import page, remark, score_of, short
from distillery.sweeps.storage import StudySettings, shown
from distillery.sweeps.study import FINISHED, Session, num_errors


@dataclass(frozen=True)
class Recorder:
    """Tells of every trial that ends: a line in the terminal, a run in the tracking store.

    Attributes:
        config: of the experiment, plain.
        parent: id of the study's run; None where nothing is tracked.
    """

    config: dict[str, Any]
    parent: str | None

    def __call__(self, study: optuna.Study, trial: FrozenTrial) -> None:
        print(self._line(study, trial), flush=True)
        self.track(study, trial)

    def _line(self, study: optuna.Study, trial: FrozenTrial) -> str:
        trials = study.get_trials(deepcopy=False)
        done = sum(other.state in FINISHED for other in trials)
        scores = [other.value for other in trials if other.state == TrialState.COMPLETE]
        score, best = score_of(trial), max(scores, default=None)  # type: ignore[type-var]
        parts = [
            f"trial {trial.number:>3} {'failed' if trial.state == TrialState.FAIL else trial.state.name.lower():8}",
            f"score {short(score) or '-':6}",
            f"best {short(best) or '-':6}",
            f"{done}/{self.config['sweeps']['num_trials']}",
            " ".join(f"{path.rpartition('.')[2]}={short(value)}" for path, value in trial.params.items()),
            f"{trial.duration.total_seconds():.0f} s" if trial.duration else "",
            remark(trial),
        ]
        return "  ".join(part for part in parts if part)

    def track(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Makes the trial a run below the study's."""
        if self.parent is None:
            return
        overrides = trial.user_attrs.get("overrides", trial.params)
        tags = {
            **_tags(self.config),
            "trial": str(trial.number),
            "state": trial.state.name.lower(),
            **{f"param.{path}": str(value) for path, value in overrides.items()},
            **({"remark": remark(trial)} if remark(trial) else {}),
        }
        tracker: Tracker = build(self.config["tracking"])
        with tracker.start(
            "sweep",
            f"{study.study_name}/{trial.number:03d}",
            config=plain(with_overrides(self.config, overrides)),
            tags=tags,
            parent=self.parent,
        ) as run:
            for name, points in trial.user_attrs.get("curves", {}).items():
                for update, value in points:
                    run.log({f"sweep/{name}": value}, step=update)
            score = score_of(trial)
            if score is not None:
                run.log({"sweep/score": score})
            if trial.duration is not None:
                run.log({"sweep/seconds": trial.duration.total_seconds()})
        study.set_user_attr(f"run of trial {trial.number}", run.id)

    def catch_up(self, study: optuna.Study) -> None:
        """Tracks the trials whose worker ended before it could."""
        for trial in study.get_trials(deepcopy=False, states=(*FINISHED, TrialState.FAIL)):
            if not study.user_attrs.get(f"run of trial {trial.number}"):
                self.track(study, trial)


def _tags(config: Mapping[str, Any]) -> dict[str, str]:
    return {"experiment": config["name"], "agent": config["agent"], "study": config["sweeps"]["study"]}


def study_settings(config: Mapping[str, Any]) -> StudySettings:
    """The study that the configuration asks for.

    Raises:
        ValueError: a setting makes no sense.
    """
    sweeps, schedule = config["sweeps"], config["training"]["schedule"]
    if "/" in sweeps["study"] or sweeps["study"].startswith("."):
        raise ValueError(f"sweeps.study becomes a file's name, got {sweeps['study']!r}; leave out slashes and dots")
    journal = scratch("sweeps", f"{sweeps['study']}.log")
    return StudySettings(
        name=sweeps["study"],
        storage=sweeps["storage"] or os.environ.get("OPTUNA_STORAGE") or str(journal),
        space=searched_space(config),
        num_trials=sweeps["num_trials"],
        max_failed_trials=sweeps["max_failed_trials"],
        num_startup_trials=sweeps["sampler"]["num_startup_trials"],
        first_rung_step=sweeps["pruner"]["first_rung_validations"] * schedule["validate_every_updates"],
        reduction_factor=sweeps["pruner"]["reduction_factor"],
        heartbeat_seconds=sweeps["heartbeat_seconds"],
        grace_seconds=sweeps["grace_seconds"],
        seed=config["seed"],
    )


def require_histories(config: DictConfig) -> str:
    """The content hash of the histories that trials read, unpacked once before workers compete for it.

    Raises:
        ValueError: there are none, or they belong to other tasks.
    """
    folder = histories_folder(config, config.agents[config.agent].histories)
    if not (folder / "metadata.json").is_file():
        raise ValueError(
            f"{folder} holds no histories yet; collect them with `dvc repro collect@{config.dataset}`, or those of no "
            "pipeline by `python -m distillery.stages.collect` with the same experiment and dataset"
        )
    metadata, _ = open_packed(folder, scratch("packed"))
    require_own_histories(config, metadata, config.agents[config.agent].histories, build(config.tasks))
    return metadata.content_hash


@contextlib.contextmanager
def study_run(
    tracker: Tracker, study: optuna.Study, config: dict[str, Any]
) -> Iterator[tuple[str | None, TrackedRun | None]]:
    """The run above all trials: its id, and itself for the session that creates it.

    The id is stored with the study, so that all workers and later sessions put their trials under the same run. It is
    None where nothing is tracked.
    """
    known = study.user_attrs.get("run")
    if known:
        yield known, None
        return
    with tracker.start("sweep", study.study_name, config=config, tags=_tags(config)) as run:
        study.set_user_attr("run", run.id)
        yield run.id or None, run


def summarise(study: optuna.Study, config: Mapping[str, Any]) -> dict[str, Any]:
    """What ``summary.json`` holds.

    Raises:
        ValueError: no trial was completed.
    """
    trials = study.get_trials(deepcopy=False)
    failed = {trial.number: remark(trial) for trial in trials if trial.state == TrialState.FAIL}
    if not any(trial.state == TrialState.COMPLETE for trial in trials):
        reasons = "; ".join(f"trial {number}: {reason}" for number, reason in failed.items()) or "none was run"
        raise ValueError(f"no trial of the study '{study.study_name}' was completed ({reasons})")
    best, own = study.best_trial, flatten(config)
    completed = (trial for trial in trials if trial.state == TrialState.COMPLETE)
    default = [trial.value for trial in completed if trial.params == {path: own[path] for path in trial.params}]
    return {
        "study": study.study_name,
        "experiment": config["name"],
        "agent": config["agent"],
        "dataset": config["dataset"],
        "content_hash": study.user_attrs["facts"]["content_hash"],
        "states": {state.name.lower(): sum(trial.state == state for trial in trials) for state in TrialState},
        "refused": {t.number: t.user_attrs["refused"] for t in trials if "refused" in t.user_attrs},
        "failed": failed,
        "best": {
            "number": best.number,
            "score": best.value,
            "params": best.params,
            "overrides": best.user_attrs["overrides"],
            "selected_update": best.user_attrs.get("selected_update"),
        },
        "default_score": default[0] if default else None,
    }


def sweep(config: DictConfig) -> None:
    """Writes ``data/sweeps/<study>``: ``summary.json`` and ``index.html``."""
    settings_of = plain(config)
    settings = study_settings(settings_of)
    check(config)
    content_hash = require_histories(config)
    tracker: Tracker = build(config.tracking)
    tracker.check()
    if warning := slow_bfloat16(config.runtime.device, enabled=config.runtime.bfloat16):
        print(f"warning: {warning}", file=sys.stderr)
    num_workers = config.sweeps.num_workers
    num_threads = config.runtime.num_threads or (1 if num_workers > 1 else None)
    settings_of["runtime"]["progress"] = config.runtime.progress and num_workers == 1
    settings_of["sweeps"]["storage"] = shown(settings.storage)
    own = flatten(settings_of)
    facts = deciding_facts(settings_of, settings.space, content_hash)
    with Session(settings, {path: own[path] for path in settings.space}, facts) as session:
        print(f"study {settings.name} in {shown(settings.storage)}: up to {settings.num_trials} trials", flush=True)
        try:
            with study_run(tracker, session.study, settings_of) as (parent, run):
                recorder = Recorder(settings_of, parent)
                session.run(TrainTrial(settings_of, num_threads), num_workers=num_workers, on_finished=recorder)
                if session.alone():
                    recorder.catch_up(session.study)
                report(session.study, settings_of)
                track_summary(tracker, session.study, settings_of, parent, run)
        except KeyboardInterrupt:
            print(f"interrupted; the same command resumes {settings.name}", file=sys.stderr)
            sys.exit(130)
        if num_errors(session.study) >= settings.max_failed_trials:
            raise ValueError(
                f"{num_errors(session.study)} trials failed, which is sweeps.max_failed_trials; their errors are in "
                "the summary. What was finished is kept: raise max_failed_trials to go on"
            )


def track_summary(
    tracker: Tracker, study: optuna.Study, config: dict[str, Any], parent: str | None, run: TrackedRun | None
) -> None:
    """Attaches what was found to the study's run, or, in a later session, to a run below it."""
    with contextlib.ExitStack() as stack:
        if run is None:
            started = tracker.start(
                "sweep", f"{study.study_name}/summary", config=config, tags=_tags(config), parent=parent
            )
            run = stack.enter_context(started)
        run.log({"sweep/best_score": study.best_value})
        for file in ("summary.json", "index.html"):
            run.log_file(results_folder(study) / file)


def results_folder(study: optuna.Study) -> Path:
    """Where the summary and the page of a study lie."""
    return Path("data", "sweeps", study.study_name)


def report(study: optuna.Study, config: dict[str, Any]) -> None:
    """Writes what was found, prints how to promote the winner, and promotes it if asked to."""
    summary = summarise(study, config)
    best, name = summary["best"], config["name"]
    command = promotion.command(name, best["overrides"])
    lines = promotion.lines(name, best["overrides"])
    how = f"{command}\n\n# or in params.yaml, followed by `dvc repro`:\n{lines}"
    folder = Path("data", "sweeps", study.study_name)
    write_json(folder / "summary.json", {**summary, "promotion": command})
    with whole_file(folder / "index.html") as temporary:
        temporary.write_text(page(study, summary, how))
    print(f"best: trial {best['number']}, validation score {best['score']:.4f}; see {folder / 'index.html'}\n\n{how}")
    if config["sweeps"]["promote"]:
        promotion.write(Path("params.yaml"), name, best["overrides"])
        print(f"params.yaml: experiment {name} now has the winner's values; `dvc repro` runs it")


if __name__ == "__main__":
    stage(sweep)()
