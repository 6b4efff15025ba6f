"""From empty folders to a model that learns Dark Room in context: what each stage costs, and what the model returns.

The stages' own functions run with the pipeline's settings, from first to last, in a process of its own and a temporary
folder. The return on held-out goals stands beside 14.1, the level published for Dark Room (arXiv 2210.14215).

The shortest way to that level stands beside what it took before the lab was made faster: the commands of an older
commit, whose files git still has, run in the same hour on the same machine.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.cases import Case, Conditions, Row
from benchmarks.machine import in_fresh_process
from benchmarks.memory import PACKAGES
from benchmarks.timing import Figure, stopwatch

PUBLISHED_RETURN = 14.1
EXPERIMENTS = ("dark_room", "dark_room_explorer")
STAGES = ("collect", "train", "evaluate")
# The last commit before speed was worked on.
BEFORE = "ce833d57edf0b19a434a0829f618c3da28c3e240"
# What conf/experiment/dark_room_quick.yaml changes of dark_room_explorer.yaml, which is all that the older code has.
QUICK_PRESET = [
    "histories.collection.expert=false",
    "training.schedule.num_updates=150",
    "training.schedule.validate_every_updates=75",
    "training.validation.num_episodes=25",
    "training.validation.num_seeds=2",
    "evaluation.lifetimes.num_episodes=50",
    "evaluation.lifetimes.num_seeds=4",
    "evaluation.splits=[held_out]",
]
OLDER_PRESET, THIS_PRESET = "older code, its preset", "older code, this preset"
KEYS = {OLDER_PRESET: "end_to_end_vs_before", THIS_PRESET: "end_to_end_vs_same_before"}
TOY: dict[str, Any] = {
    "sources": {"num_episodes": 30},
    "histories": {
        "collection": {"runs_per_task": 2, "selection": {"min_final_fraction": None}},
        "contexts": {"sequence_length": 40, "batch_size": 4, "keep_every_episode": 1},
    },
    "models": {"context_length": 40, "width": 16, "num_layers": 1, "num_heads": 2, "feedforward_width": 32},
    "training": {
        "schedule": {"num_updates": 4, "validate_every_updates": 2},
        "validation": {"num_episodes": 2, "num_seeds": 1},
    },
    "evaluation": {"lifetimes": {"num_episodes": 12, "num_seeds": 2}, "train_seeds": 1},
}


def as_overrides(changes: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Nested changes as a command line says them."""
    parts = []
    for name, value in changes.items():
        path = f"{prefix}{name}"
        parts += as_overrides(value, f"{path}.") if isinstance(value, Mapping) else [f"{path}={json.dumps(value)}"]
    return parts


def run_stages(experiment: str, folder: Path, changes: dict[str, Any], num_threads: int) -> dict[str, Any]:
    """Seconds of each stage by wall and by CPU time, and the held-out return; to be run in a process of its own."""
    from distillery.stages.collect import collect
    from distillery.stages.evaluate import evaluate
    from distillery.stages.resolve import compose_entry
    from distillery.stages.train import train

    torch.set_num_threads(num_threads)
    os.chdir(folder)
    os.environ["DVC_ROOT"] = str(folder)
    groups = {"experiment": experiment, "tracking": "none"}
    params = {
        "datasets": {experiment: {"groups": groups, "set": changes}},
        "experiments": {experiment: {"dataset": experiment, "groups": {}, "set": {}}},
    }
    config = compose_entry(params, "experiments", experiment)
    seconds = {}
    for name, stage in zip(STAGES, (collect, train, evaluate), strict=True):
        with stopwatch(config.runtime.device) as watch:
            stage(config)
        seconds[name] = {"wall": watch.wall, "cpu": watch.cpu}
    summary = json.loads((folder / "data" / "evaluations" / experiment / "ad" / "summary.json").read_text())
    return {"seconds": seconds, "held_out_return": summary["splits"]["held_out"]["final_return"]}


def run_commands(source: Path, experiment: str, folder: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """The same by the command line of a checkout: seconds of each stage, start of Python included.

    Args:
        source: the checkout.
        experiment: its name.
        folder: an empty one.
        overrides: of its settings.

    Raises:
        RuntimeError: a command failed.
    """
    named = [f"experiment={experiment}", "dataset=short", "name=short", "tracking=none", "runtime.progress=false"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DVC_")}
    seconds = {}
    for stage in STAGES:
        begin, begin_cpu = time.perf_counter(), _children_cpu()
        done = subprocess.run(
            [sys.executable, "-m", f"distillery.stages.{stage}", *named, *overrides],
            cwd=folder,
            env={**environment, "PYTHONPATH": str(source / "src")},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"{stage} of {source} failed: {done.stderr[-2000:]}")
        seconds[stage] = {"wall": time.perf_counter() - begin, "cpu": _children_cpu() - begin_cpu}
    summary = json.loads((folder / "data" / "evaluations" / "short" / "ad" / "summary.json").read_text())
    return {"seconds": seconds, "held_out_return": summary["splits"]["held_out"]["final_return"]}


def _children_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@contextmanager
def older_checkout() -> Iterator[Path]:
    """The files of the commit `BEFORE`, in a temporary folder.

    Raises:
        RuntimeError: git has no such commit here, as in a shallow clone.
    """
    with tempfile.TemporaryDirectory() as name:
        root = Path(__file__).parents[1]
        archive = subprocess.run(["git", "-C", str(root), "archive", BEFORE, "src"], capture_output=True)
        if archive.returncode:
            raise RuntimeError(
                f"git has no commit {BEFORE} here, in which the older code lies; clone the whole history"
            )
        subprocess.run(["tar", "-x", "-C", name], input=archive.stdout, check=True)
        yield Path(name)


def shortest_way(conditions: Conditions) -> list[Row]:
    """Seconds to the published level by stage and in all, now and before, with the preset of then and with this."""
    runtime = [f"runtime.device={conditions.device}", f"runtime.num_threads={conditions.threads}"]
    common = [*runtime, *(as_overrides(TOY) if conditions.quick else [])]
    with tempfile.TemporaryDirectory() as name, older_checkout() as older:
        folders = [Path(name, side) for side in ("now", "before", "same")]
        for folder in folders:
            folder.mkdir()
        now = run_commands(
            Path(__file__).parents[1], "dark_room_quick", folders[0], ["runtime.bfloat16=true", *common]
        )
        rivals = {
            OLDER_PRESET: run_commands(older, "dark_room_explorer", folders[1], common),
            THIS_PRESET: run_commands(older, "dark_room_explorer", folders[2], [*QUICK_PRESET, *common]),
        }
    reached = all(run["held_out_return"] >= PUBLISHED_RETURN for run in (now, *rivals.values()))
    rows = []
    for beside, before in rivals.items():
        for what in (*STAGES, "all"):
            own, old = (_seconds(run, what) for run in (now, before))
            key = KEYS[beside] if what == "all" and reached else None
            rows.append(
                Row(
                    f"the shortest way to the published level: {what}",
                    "s",
                    ours=Figure("now", *own, settings={"precision": "bfloat16", "return": _told_return(now)}),
                    rival=Figure(beside, *old, settings={"precision": "float32", "return": _told_return(before)}),
                    beside=beside,
                    key=key,
                )
            )
    return rows


def _seconds(run: Mapping[str, Any], what: str) -> tuple[float, float]:
    """By wall and by CPU time."""
    spent = [run["seconds"][stage] for stage in (STAGES if what == "all" else (what,))]
    return sum(one["wall"] for one in spent), sum(one["cpu"] for one in spent)


def _told_return(run: Mapping[str, Any]) -> str:
    return f"{run['held_out_return']:.2f}"


def end_to_end(experiment: str, conditions: Conditions) -> list[Row]:
    """A row for each stage, and one for all."""
    runtime = {"progress": False, "device": conditions.device, "bfloat16": conditions.device != "cpu"}
    changes = (TOY if conditions.quick else {}) | {"runtime": runtime}
    with tempfile.TemporaryDirectory() as name:
        run = in_fresh_process(run_stages, experiment, Path(name), changes, conditions.threads)
    seconds, reached = run["seconds"], run["held_out_return"]
    settings = {"device": conditions.device, "threads": conditions.threads, "agent": "ad"}

    def row(what: str, wall: float, cpu: float) -> Row:
        return Row(
            f"{experiment}: {what}",
            "s",
            ours=Figure("wall time", wall, settings=settings),
            rival=Figure("CPU time", cpu, settings=settings),
            beside="CPU time",
            more={"held_out_return": reached, "published_return": PUBLISHED_RETURN},
        )

    verdict = "" if reached >= PUBLISHED_RETURN else f", short of {PUBLISHED_RETURN}"
    total = [sum(stage[clock] for stage in seconds.values()) for clock in ("wall", "cpu")]
    return [
        *(row(name, stage["wall"], stage["cpu"]) for name, stage in seconds.items()),
        row(f"from empty folders to a held-out return of {reached:.2f}{verdict}", *total),
    ]


CASES = [
    Case(f"end_to_end/{name}", f"{name}: from empty folders to a trained model", partial(end_to_end, name), PACKAGES)
    for name in EXPERIMENTS
] + [Case("end_to_end/shortest", "from empty folders to 14.1 in Dark Room, now and before", shortest_way, PACKAGES)]
