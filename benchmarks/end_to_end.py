"""From empty folders to a model that learns Dark Room in context: what each stage costs, and what the model returns.

The stages' own functions run with the pipeline's settings, from first to last, in a process of its own and a temporary
folder. The return on held-out goals stands beside 14.1, the level published for Dark Room (arXiv 2210.14215).
"""

import json
import os
import tempfile
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
]
