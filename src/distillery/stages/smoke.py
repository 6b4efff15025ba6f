"""The whole pipeline at toy size, in a copy of this checkout: does every stage still run, from params.yaml to report?

    python -m distillery.stages.smoke --keep

The figures it makes mean nothing; the committed ones are left alone.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from distillery.stages.entry import plain
from distillery.stages.resolve import compose_entry, load_params

# Laid over the `set` of every dataset and experiment, as far as it has such settings and larger ones.
TOY: dict[str, Any] = {
    "tasks": {"num_train": 64},
    "sources": {"num_episodes": 30},
    "histories": {
        "collection": {"runs_per_task": 2, "selection": {"min_final_fraction": None}},
        "contexts": {"sequence_length": 40, "batch_size": 4, "keep_every_episode": 1},
    },
    "models": {"context_length": 40, "width": 16, "num_layers": 1, "num_heads": 2, "feedforward_width": 32},
    "training": {
        "schedule": {"num_updates": 4, "validate_every_updates": 2, "log_every_updates": 1},
        "validation": {"num_episodes": 2, "num_seeds": 1},
    },
    "evaluation": {"lifetimes": {"num_episodes": 12, "num_seeds": 2}, "train_seeds": 1, "max_tasks": 64},
    "runtime": {"progress": False},
}
# Results of the full size; a missing one must not be taken for a made one. Those of studies are what the report reads.
RESULTS = ("data/", "models/", "dvc.lock")
READ = ("data/results/",)


class SmokeError(Exception):
    """The toy pipeline failed, or left less than it should."""


def overlay(below: dict[str, Any] | None, above: dict[str, Any]) -> dict[str, Any]:
    """A copy of `below` with the leaves of `above` laid over it."""
    merged = dict(below or {})
    for key, value in above.items():
        merged[key] = overlay(merged.get(key), value) if isinstance(value, dict) else value
    return merged


def smaller(own: dict[str, Any], toy: dict[str, Any]) -> dict[str, Any]:
    """The leaves of `toy` that `own` has too: no number is above its own, and none is put where there was none."""
    kept: dict[str, Any] = {}
    for key, value in toy.items():
        if isinstance(value, dict):
            kept[key] = smaller(own.get(key) or {}, value)
        elif isinstance(own.get(key), int | float) and value is not None:
            kept[key] = min(own[key], value)
        elif own.get(key) is not None:
            kept[key] = value
    return {key: value for key, value in kept.items() if value != {}}


def toy_params(params: dict[str, Any]) -> dict[str, Any]:
    """params.yaml with every dataset and experiment made small; names, groups and the rest stay.

    Raises:
        ValueError: an entry cannot be composed.
    """
    toy = dict(params)
    for section in ("datasets", "experiments"):
        toy[section] = {}
        for name, entry in params[section].items():
            changes = smaller(plain(compose_entry(params, section, name)), TOY)
            toy[section][name] = {**(entry or {}), "set": overlay((entry or {}).get("set"), changes)}
    return toy


def environment(workspace: Path) -> dict[str, str]:
    """Runs the copy's own code by this interpreter, away from the user's tracking server and Git variables."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("GIT_", "DVC_", "MLFLOW_"))}
    binaries = str(Path(sys.executable).parent)
    return {
        "OMP_NUM_THREADS": "1",
        **kept,
        "PATH": os.pathsep.join((binaries, kept.get("PATH", ""))),
        "PYTHONPATH": str(workspace / "src"),
        "DVC_NO_ANALYTICS": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }


def _call(*command: str, workspace: Path) -> None:
    result = subprocess.run(command, cwd=workspace, env=environment(workspace))
    if result.returncode:
        raise SmokeError(f"`{' '.join(command)}` failed in {workspace} with exit status {result.returncode}")


def copy_checkout(root: Path, workspace: Path) -> None:
    """Copies what Git tracks or would track, without the pipeline's results, into a repository of its own.

    Raises:
        SmokeError: `root` is not the top of a Git checkout.
    """
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=root, capture_output=True
    )
    if listing.returncode or not (root / "dvc.yaml").exists():
        raise SmokeError(f"{root} is not the top of a Git checkout with a dvc.yaml; run this from there")
    for name in listing.stdout.decode().split("\0"):
        kept = name.startswith(READ) or not name.startswith(RESULTS)
        if name and kept and (root / name).is_file():
            target = workspace / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / name, target)
    git = ("git", "-c", "user.name=smoke", "-c", "user.email=smoke@localhost", "-c", "commit.gpgsign=false")
    _call("git", "init", "--quiet", workspace=workspace)
    _call("git", "add", "--all", workspace=workspace)
    _call(*git, "commit", "--quiet", "--no-verify", "--message", "a copy", workspace=workspace)


def check_results(workspace: Path) -> list[Path]:
    """The committed results that dvc.yaml names outright, all of which must exist; metrics must hold numbers.

    Raises:
        SmokeError: one is missing or empty.
    """
    stages = yaml.safe_load((workspace / "dvc.yaml").read_text())["stages"]
    found = []
    for stage in stages.values():
        for out in [*stage.get("outs", []), *stage.get("metrics", [])]:
            name = next(iter(out)) if isinstance(out, dict) else out
            if "${" in name:
                continue
            path = workspace / name
            if not path.exists() or (path.is_file() and not path.stat().st_size):
                raise SmokeError(f"the pipeline ended well, but left no {path}")
            found.append(path)
    metrics = workspace / "data/reports/metrics.json"
    if metrics in found:
        params = yaml.safe_load((workspace / "params.yaml").read_text())
        values = json.loads(metrics.read_text())
        missing = [f"{e}/{a}" for e in params["experiments"] for a in params["agents"] if a not in values.get(e, {})]
        if missing:
            raise SmokeError(f"{metrics} has no entry for {', '.join(missing)}")
    return found


def smoke(root: Path, workspace: Path) -> list[Path]:
    """Copies the checkout at `root` into the empty folder `workspace` and runs its pipeline there at toy size.

    Returns:
        The committed results it made.

    Raises:
        SmokeError: params.yaml cannot be composed, a stage failed, or a result is missing.
    """
    workspace.mkdir(parents=True, exist_ok=True)
    copy_checkout(root, workspace)
    params = workspace / "params.yaml"
    try:
        toy = toy_params(load_params(params))
    except ValueError as error:
        raise SmokeError(str(error)) from error
    params.write_text(yaml.safe_dump(toy, sort_keys=False))
    _call(sys.executable, "-m", "dvc", "repro", workspace=workspace)
    return check_results(workspace)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", action="store_true", help="keep the copy, to look at its report")
    options = parser.parse_args(arguments)
    workspace = Path(tempfile.mkdtemp(prefix="distillery-smoke-"))
    start = time.perf_counter()
    try:
        found = smoke(Path.cwd(), workspace)
    except SmokeError as error:
        sys.exit(f"error: {error}; the copy is kept")
    print(f"the pipeline ran at toy size in {time.perf_counter() - start:.0f} s and left {len(found)} results")
    if options.keep:
        for path in found:
            print(f"  {path}")
    else:
        shutil.rmtree(workspace)


if __name__ == "__main__":
    main()
