"""Optuna around any trial function: one study, many workers, one budget, and nothing lost when a worker dies.

A study lives in a journal file, or behind a database URL when several machines without a common disk share it. Any
process that names the same study and storage joins it.

Dead workers. A journal has no heartbeat, so every process holds a shared lock on a file beside it, which the kernel
gives back however the process ends. Who finds himself alone knows that every running trial has been abandoned: it is
marked failed and queued again. With a URL, Optuna's heartbeat does the same once a trial's worker has been silent for
`StudySettings.grace_seconds`.

Trial functions are expected to be deterministic: a suggestion that was tried before gets the earlier answer.
"""

import json
import logging
import math
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing import connection
from types import FrameType, TracebackType
from typing import Any, NoReturn

import optuna
from optuna.trial import FrozenTrial, TrialState

from distillery.sweeps.presence import Presence, repair
from distillery.sweeps.space import Space, contains, distributions, suggest
from distillery.sweeps.storage import MAX_RETRIES, StudySettings, open_study, shown

logger = logging.getLogger(__name__)

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
# Workers that were told to stop have so long to do it.
STOP_SECONDS = 10.0
# An exception raised by a signal can land where Python drops it, in a finaliser for one; this does not get lost.
_stopping = threading.Event()


class Attempt:
    """What a trial function is given.

    Attributes:
        number: of the trial.
        values: what to try, by path.
    """

    def __init__(self, trial: optuna.Trial, values: Mapping[str, Any]) -> None:
        self._trial, self.number, self.values = trial, trial.number, dict(values)

    def report(self, score: float, step: int) -> None:
        """Tells how it goes; raises if the trial is not worth going on with, which the function must let pass."""
        if _stopping.is_set():
            raise KeyboardInterrupt
        self._trial.report(score, step)
        # The default is what others are held against, so it is always followed to its end.
        if not self._trial.user_attrs.get("default") and self._trial.should_prune():
            raise optuna.TrialPruned(f"score {score:.4g} at step {step}")

    def note(self, name: str, value: Any) -> None:
        """Stores plain data with the trial."""
        self._trial.set_user_attr(name, value)

    def refuse(self, reason: str) -> NoReturn:
        """Ends the trial because its values do not go together; the reason is stored."""
        self.note("refused", reason)
        raise optuna.TrialPruned(reason)


TrialFunction = Callable[[Attempt], float]
OnFinished = Callable[[optuna.Study, FrozenTrial], None]


def spent(study: optuna.Study, settings: StudySettings) -> bool:
    """Whether no worker should start another trial.

    Running trials count, so that workers do not overshoot; only when two of them finish within the same instant can
    both start one. A running trial that fails is made up for by its own worker.
    """
    trials = study.get_trials(deepcopy=False)
    taken = sum(trial.state in (*FINISHED, TrialState.RUNNING) for trial in trials)
    return taken >= settings.num_trials or num_errors(study) >= settings.max_failed_trials


def num_errors(study: optuna.Study) -> int:
    """How many trials failed by themselves, or with their worker more often than they are tried again."""
    failed = study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
    return sum("error" in trial.user_attrs or _times_failed(trial) > MAX_RETRIES for trial in failed)


def _times_failed(trial: FrozenTrial) -> int:
    """With its worker, this time included; Optuna keeps a list where a heartbeat told."""
    return 1 + max(trial.user_attrs.get("retries", 0), len(trial.system_attrs.get("retry_history", [])))


def recover(study: optuna.Study) -> list[int]:
    """Marks running trials failed and queues them again; only for who knows that no other worker is alive."""
    numbers = []
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
        numbers.append(trial.number)
        retries = trial.user_attrs.get("retries", 0)
        if retries < MAX_RETRIES:
            # A worker that died before it asked leaves the values it was queued with, or none.
            values = trial.params or trial.system_attrs.get("fixed_params", {})
            _queue_again(study, trial, values, retries + 1)
        else:
            logger.warning("trial %d has now ended %d workers and is given up", trial.number, retries + 1)
    return numbers


def _queue_again(
    study: optuna.Study, trial: FrozenTrial | optuna.Trial, values: Mapping[str, Any], retries: int
) -> None:
    if values:
        notes = {"retry_of": trial.number, "retries": retries}
        notes |= {name: note for name, note in trial.user_attrs.items() if name == "default"}
        study.enqueue_trial(dict(values), user_attrs=notes)


@dataclass(frozen=True)
class _Objective:
    """A trial function as Optuna calls it."""

    function: TrialFunction
    space: Space

    def __call__(self, trial: optuna.Trial) -> float:
        values = {path: suggest(trial, path, ranges) for path, ranges in distributions(self.space).items()}
        trial.set_user_attr("worker", f"{socket.gethostname()}:{os.getpid()}")
        for earlier in trial.study.get_trials(deepcopy=False, states=FINISHED):
            if earlier.params == trial.params:
                return self._answer_of(earlier, trial)
        try:
            score = float(self.function(Attempt(trial, values)))
            if not math.isfinite(score):
                raise FloatingPointError(f"the score is {score}")
        except KeyboardInterrupt:
            trial.set_user_attr("interrupted", True)
            _queue_again(trial.study, trial, values, trial.user_attrs.get("retries", 0))
            raise
        except optuna.TrialPruned:
            raise
        except Exception as error:
            trial.set_user_attr("error", f"{type(error).__name__}: {error}"[:500])
            logger.warning("trial %d failed", trial.number, exc_info=True)
            raise
        return score

    @staticmethod
    def _answer_of(earlier: FrozenTrial, trial: optuna.Trial) -> float:
        for name in ("refused", "overrides"):
            if name in earlier.user_attrs:
                trial.set_user_attr(name, earlier.user_attrs[name])
        trial.set_user_attr("same_as", earlier.number)
        if earlier.state == TrialState.PRUNED:
            raise optuna.TrialPruned(f"as trial {earlier.number}")
        assert earlier.value is not None
        return earlier.value


def work(settings: StudySettings, function: TrialFunction, on_finished: OnFinished | None, *stream: str | int) -> None:
    """One worker: tries until the budget is spent. Errors of a trial fail the trial, mistakes end the worker."""
    study = open_study(settings, *stream)

    def stop_when_spent(study: optuna.Study, trial: FrozenTrial) -> None:
        parent = multiprocessing.parent_process()
        if _stopping.is_set() or spent(study, settings) or (parent is not None and not parent.is_alive()):
            study.stop()

    if not spent(study, settings):
        study.optimize(
            _Objective(function, settings.space),
            catch=(RuntimeError, FloatingPointError),
            callbacks=[*([on_finished] if on_finished else []), stop_when_spent],
        )


@dataclass
class Session:
    """This process's share in a study, from joining to leaving; a context manager.

    Attributes:
        settings: of the study.
        default: the values to try first; this trial is never pruned.
        facts: flat plain data of everything else that decides a score. All sessions of a study must agree on it.
        study: the study.
    """

    settings: StudySettings
    default: Mapping[str, Any]
    facts: Mapping[str, Any]
    study: optuna.Study = field(init=False)

    def __post_init__(self) -> None:
        journal = self.settings.journal
        self._presence = None if journal is None else Presence(journal)
        self._stream: tuple[str | int, ...] = ()

    def __enter__(self) -> "Session":
        self._handlers = stop_on_signals(signal.SIGINT, signal.SIGTERM)
        if self._presence is not None:
            self._presence.__enter__()
        try:
            self._join()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._presence is not None:
            self._presence.__exit__()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _join(self) -> None:
        alone = self._presence is not None and self._presence.alone()
        if alone:
            assert self.settings.journal is not None
            repair(self.settings.journal)
        else:
            # Two that begin in the same second must not propose the same.
            self._stream = (socket.gethostname(), os.getpid())
        self.study = open_study(self.settings, *self._stream)
        self._require_same_facts()
        self._queue_default()
        self._recover(alone)

    def _recover(self, alone: bool) -> list[int]:
        abandoned: list[int] = []
        if alone:
            assert self._presence is not None
            abandoned = recover(self.study)
            self._presence.share()
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                optuna.storages.fail_stale_trials(self.study)  # by their heartbeat; a journal has none
        for number in abandoned:
            logger.warning("trial %d was abandoned by a worker that is no more; it is queued again", number)
        return abandoned

    def _require_same_facts(self) -> None:
        facts = {"space": {path: dict(entry) for path, entry in self.settings.space.items()}, **self.facts}
        facts = json.loads(json.dumps(facts))
        known = self.study.user_attrs.get("facts")
        if known is None:
            self.study.set_user_attr("facts", facts)
            return
        differing = [key for key in {**facts, **known} if facts.get(key) != known.get(key)]
        if differing:
            listed = ", ".join(f"{key}: {known.get(key)!r} then, {facts.get(key)!r} now" for key in differing[:4])
            raise ValueError(
                f"the study '{self.settings.name}' was begun with other settings ({listed}), so its scores do not "
                f"compare; choose another name, or remove it from {shown(self.settings.storage)}"
            )

    def _queue_default(self) -> None:
        if self.study.get_trials(deepcopy=False):
            return
        outside = [
            f"{path}={self.default[path]!r}"
            for path, ranges in distributions(self.settings.space).items()
            if not contains(ranges, self.default[path])
        ]
        if outside:
            logger.warning("the default is not tried first: %s lies outside the search space", ", ".join(outside))
        else:
            self.study.enqueue_trial(dict(self.default), user_attrs={"default": True}, skip_if_exists=True)

    def alone(self) -> bool:
        """Whether nobody else works on the study; never known of a database."""
        if self._presence is None or not self._presence.alone():
            return False
        self._presence.share()
        return True

    def run(self, function: TrialFunction, *, num_workers: int = 1, on_finished: OnFinished | None = None) -> None:
        """Tries until the budget is spent. With several workers, function and on_finished must be picklable.

        Raises:
            ValueError: num_workers is not positive.
            ChildProcessError: a worker ended by a mistake in its trial function.
        """
        if num_workers < 1:
            raise ValueError(f"num_workers of a sweep must be at least 1, got {num_workers}")
        if num_workers == 1:
            work(self.settings, function, on_finished, *self._stream)
            return
        while not spent(self.study, self.settings):
            left = self.settings.num_trials - len(self.study.get_trials(deepcopy=False, states=FINISHED))
            codes = self._run_workers(function, on_finished, min(num_workers, left))
            if any(code > 0 for code in codes):
                raise ChildProcessError("a worker ended by an error, told above; what was finished is kept")
            if not any(codes):
                return
            logger.warning("a worker was killed (exit codes %s)", ", ".join(map(str, codes)))
            if self._presence is not None:
                if not self._presence.alone():
                    return
                self._recover(alone=True)
            else:
                # Whose worker is dead, a database shows by its silence alone.
                _stopping.wait(self.settings.grace_seconds + 1)
                if _stopping.is_set():
                    raise KeyboardInterrupt
                self._recover(alone=False)

    def _run_workers(self, function: TrialFunction, on_finished: OnFinished | None, num_workers: int) -> list[int]:
        # Spawned, since a fork would copy torch's and the storage's threads and locks.
        spawn = multiprocessing.get_context("spawn")
        workers = [
            spawn.Process(target=_worker, args=(self.settings, function, on_finished, (*self._stream, number)))
            for number in range(num_workers)
        ]
        try:
            for worker in workers:
                worker.start()
            # Waiting in short naps, since a signal that another thread takes does not end an endless wait.
            while any(worker.is_alive() for worker in workers):
                if _stopping.is_set():
                    raise KeyboardInterrupt
                connection.wait([worker.sentinel for worker in workers if worker.is_alive()], timeout=0.5)
        except KeyboardInterrupt:
            started = [worker for worker in workers if worker.pid is not None]
            for worker in started:
                worker.terminate()
            deadline = time.monotonic() + STOP_SECONDS
            for worker in started:
                worker.join(max(0.0, deadline - time.monotonic()))
                if worker.is_alive():  # its trial is abandoned, and tried again like that of any dead worker
                    worker.kill()
                    worker.join()
            raise
        return [worker.exitcode or 0 for worker in workers]


def _worker(
    settings: StudySettings, function: TrialFunction, on_finished: OnFinished | None, stream: tuple[str | int, ...]
) -> None:
    # A terminal sends Ctrl-C to all its processes; workers leave it to their parent, which terminates them once.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stop_on_signals(signal.SIGTERM)
    journal = settings.journal
    presence = None if journal is None else Presence(journal).__enter__()
    try:
        work(settings, function, on_finished, *stream)
    except KeyboardInterrupt:
        sys.exit(0)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(1)
    finally:
        if presence is not None:
            presence.__exit__()


def stop_on_signals(*signals: signal.Signals) -> dict[signal.Signals, Any]:
    """Makes signals stop a trial, once; returns the handlers before, none off the main thread."""

    def stop(number: int, frame: FrameType | None) -> None:
        if not _stopping.is_set():
            _stopping.set()
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        return {}
    _stopping.clear()
    return {number: signal.signal(number, stop) for number in signals}
