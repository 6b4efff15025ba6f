"""What a study is, and where it lives: a journal file, or a database that several machines share."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages.journal import JournalFileBackend

from distillery.core.seeding import stream_seed
from distillery.sweeps.space import Space, distributions

# A trial that takes its worker down is tried this often again.
MAX_RETRIES = 2


@dataclass(frozen=True)
class StudySettings:
    """One study, and how it is searched; scores are maximised.

    Attributes:
        name: of the study within its storage.
        storage: a database URL (it has a ``://``), or the path of a journal file.
        space: see `distillery.sweeps.space`.
        num_trials: the budget of completed and pruned trials, all workers and sessions together.
        max_failed_trials: how many errors to put up with.
        num_startup_trials: drawn at random before the sampler models anything.
        first_rung_step: successive halving compares trials at this step first.
        reduction_factor: then at this times the step, and so on; each time one in so many may go on.
        heartbeat_seconds: between two signs of life of a worker, where the storage is a database.
        grace_seconds: after so long without one its trial is given to another.
        seed: of the sampler. A sole worker proposes the same trials again; several race.
    """

    name: str
    storage: str
    space: Space
    num_trials: int
    max_failed_trials: int = 5
    num_startup_trials: int = 5
    first_rung_step: int = 1
    reduction_factor: int = 2
    heartbeat_seconds: int = 30
    grace_seconds: int = 120
    seed: int = 0

    def __post_init__(self) -> None:
        distributions(self.space)
        lowest = {"num_trials": 1, "max_failed_trials": 1, "num_startup_trials": 1, "first_rung_step": 1}
        lowest |= {"reduction_factor": 2, "heartbeat_seconds": 1, "grace_seconds": self.heartbeat_seconds + 1}
        for name, least in lowest.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} of a sweep must be at least {least}, got {getattr(self, name)}")

    @property
    def journal(self) -> Path | None:
        """Path of the journal file, if that is the storage."""
        return None if "://" in self.storage else Path(self.storage)


def open_study(settings: StudySettings, *stream: str | int) -> optuna.Study:
    """Creates or loads the study; `stream` names the sampler's random stream.

    Raises:
        ValueError: the storage cannot be opened.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # failures are told below, interruptions need no traceback
    try:
        study = optuna.create_study(
            study_name=settings.name, storage=_storage(settings), direction="maximize", load_if_exists=True
        )
    except Exception as error:  # every database driver has errors of its own
        reason = str(error).strip().splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"the study '{settings.name}' cannot be opened in {shown(settings.storage)}: {reason}; check the "
            "storage's address and that its driver is installed"
        ) from error
    # Of the trials so far, so that a resumed study goes on instead of repeating itself.
    seed = stream_seed(settings.seed, "sampler", len(study.get_trials(deepcopy=False)), *stream) % 2**32
    study.sampler = TPESampler(seed=seed, n_startup_trials=settings.num_startup_trials)
    study.pruner = optuna.pruners.SuccessiveHalvingPruner(
        min_resource=settings.first_rung_step, reduction_factor=settings.reduction_factor
    )
    return study


def shown(storage: str) -> str:
    """A storage's address without user and password."""
    scheme, separator, rest = storage.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}" if separator else storage


def _storage(settings: StudySettings) -> JournalStorage | RDBStorage:
    if settings.journal is None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return RDBStorage(
                settings.storage,
                heartbeat_interval=settings.heartbeat_seconds,
                grace_period=settings.grace_seconds,
                heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(max_retry=MAX_RETRIES),
            )
    settings.journal.parent.mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFileBackend(str(settings.journal)))
