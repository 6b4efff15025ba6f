"""Stores to track in: a database migrated once, and a server over a copy of it."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from distillery.core.specs import TaskSpec
from distillery.models.causal_transformer import CausalTransformer
from distillery.tracking.mlflow import MlflowTracker
from distillery.training.checkpoints import CheckpointInfo, save_checkpoint

SPEC = TaskSpec.of_sizes((5, 5), 5, 8)
SETTINGS = {"context_length": 4, "width": 16, "num_layers": 2, "num_heads": 2, "feedforward_width": 16}
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "OMP_NUM_THREADS": "1",
}


@dataclass
class Server:
    """A running MLflow server, in a process group of its own."""

    uri: str
    process: subprocess.Popen

    def stop(self) -> None:
        """Ends the server and the workers it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@pytest.fixture(autouse=True)
def outside_dvc(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the tests themselves are run from, no run belongs to a pipeline unless a test says so."""
    for name in ("MLFLOW_TRACKING_URI", "DVC_ROOT", "DVC_STAGE", "DVC_EXP_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("distillery.tracking.mlflow.current_pipeline", lambda: None)


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database with MLflow's tables, which take seconds to make."""
    path = tmp_path_factory.mktemp("migrated") / "mlflow.db"
    tracker = MlflowTracker(f"sqlite:///{path}", "unused")
    tracker.check()
    return path


@pytest.fixture
def database(migrated: Path, tmp_path: Path) -> str:
    """URI of a database of the test's own."""
    shutil.copy(migrated, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


def start_server(folder: Path, migrated: Path) -> Server:
    """An MLflow server on a free port, with one worker and a store in the folder."""
    shutil.copy(migrated, folder / "mlflow.db")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
    command += ["--artifacts-destination", (folder / "artifacts").as_uri()]
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=os.environ | ENVIRONMENT, stdout=log, stderr=log, start_new_session=True
        )
    server = Server(f"http://127.0.0.1:{port}", process)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(urllib.error.URLError, OSError), urllib.request.urlopen(f"{server.uri}/health"):
            return server
        time.sleep(0.2)
    server.stop()
    raise RuntimeError(f"the MLflow server did not start:\n{(folder / 'server.log').read_text()}")


@pytest.fixture(scope="session")
def server(migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that all tests share."""
    started = start_server(tmp_path_factory.mktemp("server"), migrated)
    yield started
    started.stop()


@pytest.fixture
def mortal_server(migrated: Path, tmp_path: Path) -> Iterator[Server]:
    """A server that a test may stop."""
    started = start_server(tmp_path, migrated)
    yield started
    started.stop()


@pytest.fixture
def checkpoint(tmp_path: Path) -> tuple[Path, CausalTransformer]:
    """A tiny model with random weights, and where it is stored."""
    torch.manual_seed(0)
    model = CausalTransformer(SPEC, **SETTINGS).eval()
    architecture = {"_target_": "distillery.models.causal_transformer.CausalTransformer", **SETTINGS}
    save_checkpoint(tmp_path / "models" / "ad", model, CheckpointInfo(architecture, SPEC, {}))
    return tmp_path / "models" / "ad", model


@pytest.fixture
def config() -> dict[str, Any]:
    """A configuration with all that is awkward in one."""
    return {"seed": 3, "models": {"width": 16, "betas": [0.9, 0.99]}, "note": "x" * 9000, "empty": None}


@pytest.fixture
def histories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a dataset's folder looks like from outside, in a working folder of its own."""
    monkeypatch.chdir(tmp_path)
    folder = Path("data", "histories", "room", "learning")
    folder.mkdir(parents=True)
    (folder / "metadata.json").write_text(
        json.dumps({"kind": "learning", "num_episodes": 3, "content_hash": "c" * 64, "shards": []})
    )
    (folder / "shard-0.parquet").write_bytes(b"steps")
    return folder
