"""The whole pipeline through `dvc repro`, in a copy of this checkout, at toy size."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from distillery.stages.smoke import environment, smoke

ROOT = Path(__file__).parents[2]


def dvc(workspace: Path, *arguments: str) -> str:
    """Runs DVC in the copy; returns what it printed."""
    command = [sys.executable, "-m", "dvc", *arguments]
    result = subprocess.run(command, cwd=workspace, env=environment(workspace), capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def stages_run(output: str) -> set[str]:
    return set(re.findall(r"Running stage '([^']+)'", output))


def changed_stages(workspace: Path) -> set[str]:
    return set(json.loads(dvc(workspace, "status", "--json")))


TRAININGS = ("dark_room-ad", "dark_room-ed", "dark_room_explorer-ad", "dark_room_explorer-ed")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    """A copy in which everything has run once."""
    workspace = tmp_path_factory.mktemp("pipeline")
    smoke(ROOT, workspace)
    return workspace


def test_it_leaves_every_result(workspace):
    metrics = json.loads((workspace / "data" / "reports" / "metrics.json").read_text())
    for experiment in ("dark_room", "dark_room_explorer"):
        for agent in ("ad", "ed", "source", "random", "oracle"):
            assert {"held_out", "train"} == set(metrics[experiment][agent])
    assert (workspace / "data" / "reports" / "index.html").stat().st_size > 10_000


def test_nothing_changed_nothing_runs(workspace):
    assert stages_run(dvc(workspace, "repro")) == set()


def test_a_model_edit_trains_again_and_collects_nothing(workspace):
    conf = workspace / "src" / "distillery" / "conf" / "models" / "causal_transformer.yaml"
    before = conf.read_text()
    conf.write_text(before.replace("rotary_fraction: 0.5", "rotary_fraction: 0.75"))
    try:
        dvc(workspace, "repro", "resolve_experiment", "resolve_dataset")
        changed = changed_stages(workspace)
    finally:
        conf.write_text(before)
        dvc(workspace, "repro", "resolve_experiment", "resolve_dataset")
    assert {f"train@{name}" for name in TRAININGS} <= changed
    assert not {stage for stage in changed if stage.startswith("collect")}


def test_a_source_edit_of_one_dataset_leaves_the_other_alone(workspace):
    conf = workspace / "src" / "distillery" / "conf" / "sources" / "explorer.yaml"
    before = conf.read_text()
    conf.write_text(before.replace("optimism: 0.1", "optimism: 0.05"))
    try:
        dvc(workspace, "repro", "resolve_experiment", "resolve_dataset")
        changed = changed_stages(workspace)
    finally:
        conf.write_text(before)
        dvc(workspace, "repro", "resolve_experiment", "resolve_dataset")
    assert "collect@dark_room-explorer" in changed
    assert "collect@dark_room-q_learning" not in changed
    assert not {stage for stage in changed if stage.startswith(("train@dark_room-", "evaluate@dark_room-"))}


def test_a_failing_stage_keeps_committed_results_and_says_why(workspace):
    params = workspace / "params.yaml"
    before, report = params.read_text(), workspace / "data" / "reports" / "metrics.json"
    params.write_text(before.replace("num_updates: 4", "num_updates: 0"))
    kept = report.read_bytes()
    try:
        command = [sys.executable, "-m", "dvc", "repro"]
        result = subprocess.run(command, cwd=workspace, env=environment(workspace), capture_output=True, text=True)
    finally:
        params.write_text(before)
    assert result.returncode != 0
    assert "num_updates must be at least 1, got 0" in result.stdout + result.stderr
    assert report.read_bytes() == kept
    resolved = workspace / "data" / "resolved" / "experiments" / "dark_room.yaml"
    assert resolved.exists()


def test_a_dvc_remote_gives_a_fresh_clone_its_data(workspace, tmp_path):
    remote, clone = tmp_path / "remote", tmp_path / "clone"
    dvc(workspace, "push", "--quiet", "--remote", _add_remote(workspace, remote))
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@localhost"]
    subprocess.run([*git, "add", "--all"], cwd=workspace, check=True)
    subprocess.run([*git, "commit", "-qm", "results"], cwd=workspace, check=True)
    subprocess.run(["git", "clone", "-q", str(workspace), str(clone)], check=True)
    assert stages_run(dvc(clone, "repro", "--dry", "--allow-missing")) <= {"report", "cards"}
    dvc(clone, "pull", "--quiet", "--remote", _add_remote(clone, remote))
    assert stages_run(dvc(clone, "repro")) == set()
    for file in (workspace / "models").rglob("*.safetensors"):
        assert (clone / file.relative_to(workspace)).read_bytes() == file.read_bytes()


def _add_remote(workspace: Path, folder: Path) -> str:
    dvc(workspace, "remote", "add", "--force", "--local", "shelf", os.fspath(folder))
    return "shelf"
