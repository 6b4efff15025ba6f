"""Trial functions that worker processes can import, and a program that is killed in the middle of a trial."""

import contextlib
import os
import signal
import sys
import time
from pathlib import Path

from optuna.trial import FrozenTrial

from distillery.sweeps.storage import StudySettings
from distillery.sweeps.study import Attempt, Session

SPACE = {
    "x": {"type": "float", "low": -2.0, "high": 2.0},
    "kind": {"type": "categorical", "choices": ["good", "bad"]},
}
QUICK_HEARTBEAT = {"heartbeat_seconds": 1, "grace_seconds": 3}
DEFAULT = {"x": 1.0, "kind": "good"}


def settings(folder: Path, **changes) -> StudySettings:
    values = {"name": "toy", "storage": str(folder / "toy.log"), "space": SPACE, "num_trials": 12}
    return StudySettings(**{**values, "num_startup_trials": 4, **changes})


def parabola(attempt: Attempt) -> float:
    """Highest at x = 0.5; the bad kind shows in every report."""
    score = -((attempt.values["x"] - 0.5) ** 2) - 10 * (attempt.values["kind"] == "bad")
    for step in (1, 2, 4):
        attempt.report(score - 1 / step, step)
    return score


def hanging(attempt: Attempt) -> float:
    """Hangs in its third trial, and says so."""
    if attempt.number == 2:
        print("hanging", flush=True)
        time.sleep(600)
    return parabola(attempt)


def run(config: StudySettings, function=parabola, facts=None, **options) -> list[FrozenTrial]:
    """All trials of the study, once its budget is spent."""
    with Session(config, DEFAULT, facts or {}) as session:
        session.run(function, **options)
        return session.study.get_trials()


def killing(attempt: Attempt) -> float:
    """Takes its worker down, once."""
    if attempt.number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.05)
    return parabola(attempt)


def deaf(attempt: Attempt) -> float:
    """Hangs in its third trial, and does not stop for a signal, as where Python drops the exception that it raises."""
    if attempt.number == 2:
        print("hanging", flush=True)
        until = time.monotonic() + 600
        while time.monotonic() < until:
            with contextlib.suppress(KeyboardInterrupt):
                time.sleep(600)
    return parabola(attempt)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would ignore it
    changes = {} if len(sys.argv) < 4 or sys.argv[3] == "deaf" else {"storage": sys.argv[3], **QUICK_HEARTBEAT}
    with Session(settings(Path(sys.argv[1]), **changes), DEFAULT, {}) as session:
        try:
            session.run(deaf if "deaf" in sys.argv else hanging, num_workers=int(sys.argv[2]))
        except KeyboardInterrupt:
            sys.exit(130)
