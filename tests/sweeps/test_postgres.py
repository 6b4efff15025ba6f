"""Workers of several machines on one study, in a real PostgreSQL server."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from optuna.trial import TrialState

from distillery.sweeps.storage import open_study
from distillery.sweeps.study import FINISHED, Session

sys.path.insert(0, str(Path(__file__).parent))
from trials import DEFAULT, QUICK_HEARTBEAT, killing, parabola, run, settings

GRACE = timedelta(seconds=QUICK_HEARTBEAT["grace_seconds"])
PROGRAMS = ("initdb", "postgres")
PROGRAM = str(Path(__file__).with_name("trials.py"))


def where(name: str) -> str | None:
    """A program of the server; Debian keeps them out of PATH."""
    found = shutil.which(name)
    others = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return found or (str(others[-1]) if others else None)


def owner() -> dict:
    """Whom the server runs as, which refuses to be root."""
    if os.geteuid() != 0:
        return {}
    entry = pwd.getpwnam("postgres")
    return {"user": entry.pw_uid, "group": entry.pw_gid}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Address of a server of its own, whose study nobody else has."""
    pytest.importorskip("psycopg")
    if not all(where(name) for name in PROGRAMS):
        pytest.skip("no PostgreSQL server is installed")
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # short, since a socket lies in it
        account = owner()
        if account:
            os.chown(folder, account["user"], account["group"])
        data = f"{folder}/data"
        quiet = {"check": True, "capture_output": True, "cwd": folder, **account}
        subprocess.run([where("initdb"), "-D", data, "-U", "lab", "-A", "trust", "-E", "UTF8", "--no-sync"], **quiet)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        options = ["-D", data, "-p", str(port), "-k", folder, "-c", "fsync=off"]
        with open(f"{folder}/log", "wb") as log:
            process = subprocess.Popen([where("postgres"), *options], stdout=log, stderr=log, cwd=folder, **account)
        try:
            wait_until_it_answers(port, process, Path(folder, "log"))
            yield f"postgresql+psycopg://lab@127.0.0.1:{port}/postgres"
        finally:
            process.send_signal(signal.SIGINT)  # ends connections that are left
            process.wait(timeout=30)


def wait_until_it_answers(port: int, process: subprocess.Popen, log: Path) -> None:
    import psycopg

    deadline = time.monotonic() + 60
    while True:
        try:
            psycopg.connect(host="127.0.0.1", port=port, user="lab", dbname="postgres").close()
            return
        except psycopg.OperationalError:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)


def config(folder: Path, server: str, name: str, **changes):
    return settings(folder, storage=server, name=name, **QUICK_HEARTBEAT, **changes)


def slow_parabola(attempt) -> float:
    time.sleep(0.2)
    return parabola(attempt)


def test_workers_share_one_budget(tmp_path, server):
    study = config(tmp_path, server, "shared", num_trials=10)
    trials = run(study, slow_parabola, num_workers=3)
    finished = [trial for trial in trials if trial.state in FINISHED]
    # Workers that end within the same instant may all begin another one.
    assert 10 <= len(finished) <= 12
    assert len({trial.user_attrs["worker"] for trial in trials}) >= 2
    assert sum(trial.params == DEFAULT for trial in trials) == 1


def test_the_trial_of_a_dead_worker_is_tried_again_by_another(tmp_path, server):
    study = settings(tmp_path, storage=server, **QUICK_HEARTBEAT)
    worker = subprocess.Popen([sys.executable, PROGRAM, str(tmp_path), "1", server], stdout=subprocess.PIPE, text=True)
    assert worker.stdout.readline() == "hanging\n"
    worker.kill()
    worker.wait(timeout=20)
    abandoned = open_study(study).get_trials()[2]
    assert abandoned.state == TrialState.RUNNING
    time.sleep(QUICK_HEARTBEAT["grace_seconds"] + 1)
    trials = run(study)
    assert trials[2].state == TrialState.FAIL
    again = [trial for trial in trials[3:] if trial.params == abandoned.params]
    assert again
    assert again[0].state in FINISHED
    assert sum(trial.state in FINISHED for trial in trials) == 12


def test_a_killed_worker_of_a_session_is_replaced_and_its_trial_kept(tmp_path, server):
    study = config(tmp_path, server, "killed", num_trials=6)
    trials = run(study, killing, num_workers=2)
    (killed,) = [trial for trial in trials if trial.state == TrialState.FAIL]
    finished = [trial for trial in trials if trial.state in FINISHED]
    assert 6 <= len(finished) <= 7
    assert killed.params in [trial.params for trial in finished]


def test_a_trial_that_ends_all_its_workers_ends_the_sweep(tmp_path, server):
    study = config(tmp_path, server, "deadly", max_failed_trials=1)
    trials = run(study, deadly, num_workers=2)
    assert {trial.state for trial in trials} <= {TrialState.FAIL, TrialState.WAITING}


def deadly(attempt) -> float:
    os.kill(os.getpid(), signal.SIGKILL)
    return parabola(attempt)


def test_a_worker_that_is_alive_keeps_its_trial(tmp_path, server):
    """The other begins a trial every half second, and looks for dead ones each time."""
    study = config(tmp_path, server, "alive", num_trials=12)
    trials = run(study, longer_than_the_grace, num_workers=2)
    assert not [trial for trial in trials if trial.state == TrialState.FAIL]
    started_late = [t for t in trials[1:] if t.datetime_start > trials[0].datetime_start + GRACE]
    assert started_late
    assert started_late[0].datetime_start < trials[0].datetime_complete


def longer_than_the_grace(attempt) -> float:
    time.sleep(QUICK_HEARTBEAT["grace_seconds"] + 2 if attempt.number == 0 else 0.5)
    return parabola(attempt)


def test_an_unknown_database_is_named(tmp_path, server):
    elsewhere = server.replace("/postgres", "/nowhere").replace("lab@", "lab:secret@")
    with (
        pytest.raises(ValueError, match=r"cannot be opened in postgresql\+psycopg://127.0.0.1:\d+/nowhere") as told,
        Session(config(tmp_path, elsewhere, "none"), DEFAULT, {}),
    ):
        pass
    assert "secret" not in str(told.value)
