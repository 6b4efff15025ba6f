"""Stages are processes of their own; the run above them is found by the DVC process they descend from."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from distillery.tracking.mlflow import MlflowTracker
from distillery.tracking.provenance import _pipeline_command, folder_md5

STAGE = """
import sys
from distillery.tracking.mlflow import MlflowTracker
tracker = MlflowTracker(None, "distillery")
tracker.check()
with tracker.start("train", sys.argv[1], config={"seed": 0}) as run:
    run.log({"train/loss": 1.0}, step=1)
    assert sys.argv[1] != "fails", "a stage of this name fails"
"""
# Does what DVC does: starts its stages through a shell, here all at the same time.
DVC = """
import subprocess, sys
stages = [subprocess.Popen(f"{sys.executable} stage.py {name}", shell=True) for name in sys.argv[2:]]
sys.exit(any([stage.wait() for stage in stages]))
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    (tmp_path / "stage.py").write_text(STAGE)
    (tmp_path / "dvc").write_text(DVC)
    return tmp_path


def repro(repository: Path, *stages: str) -> int:
    environment = os.environ | {"DVC_ROOT": str(repository), "OMP_NUM_THREADS": "1"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    return subprocess.run([sys.executable, "dvc", "repro", *stages], cwd=repository, env=environment).returncode


def runs(repository: Path):
    client, experiment_id = MlflowTracker(f"sqlite:///{repository / 'mlflow.db'}", "distillery").open()
    return list(client.search_runs([experiment_id], order_by=["attributes.start_time"]))


def test_stages_share_one_parent_even_on_a_fresh_database(repository: Path):
    assert repro(repository, "one", "two") == 0
    assert repro(repository, "three") == 0
    # Trainings carry their kind in their names.
    found = {run.info.run_name.removesuffix(" (train)"): run for run in runs(repository)}
    above = {name: found[name].data.tags["mlflow.parentRunId"] for name in ("one", "two", "three")}
    assert above["one"] == above["two"] != above["three"]
    assert len(runs(repository)) == 5
    assert {run.info.status for run in runs(repository)} == {"FINISHED"}
    parents = [run for run in runs(repository) if run.data.tags["kind"] == "pipeline"]
    assert {run.info.run_id for run in parents} == set(above.values())
    assert all(run.info.run_name.startswith("dvc repro 20") for run in parents)


def test_a_failing_stage_fails_the_pipeline(repository: Path):
    assert repro(repository, "fails") != 0
    assert {run.info.status for run in runs(repository)} == {"FAILED"}


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("/usr/bin/python /venv/bin/dvc repro -f", "repro"),
        ("python -m dvc repro", "repro"),
        ("dvc -v --cd elsewhere repro train", "repro"),
        ("/venv/bin/dvc exp run -S seed=1", "exp run"),
        ("dvc exp exec-run --infofile x", "exp exec-run"),
        ("dvc status", None),
        ("make repro", None),
    ],
)
def test_pipelines_are_told_by_their_command(command: str, words: str | None):
    found = _pipeline_command(command.split())
    assert (" ".join(found) if found else None) == words


def test_a_shell_that_runs_dvc_is_not_dvc():
    assert _pipeline_command(["/bin/sh", "-c", "dvc repro && true"]) is None


def test_a_folder_is_hashed_as_dvc_hashes_it(tmp_path: Path):
    """The reference was made by `dvc add` of these two files."""
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    (folder / "b.txt").write_text("b")
    (folder / "deep" / "a.txt").write_text("a")
    assert folder_md5(folder) == "4e58b00c567a5d5b9c15ce097fcb0921.dir"
