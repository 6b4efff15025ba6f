"""Tracks runs in MLflow: a database beside the repository by default, any server on request.

A stage's run is nested under one run for the whole pipeline, which the stages, being processes of their own, find by
the DVC process they descend from. Nothing that was computed depends on the store: `check` refuses early, before any
work; a store that fails later costs the tracking and a warning.
"""

import contextlib
import importlib.metadata
import json
import logging
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import filelock
import yaml

from distillery.core.protocols import ServedModel
from distillery.tracking.colors import line_color
from distillery.tracking.provenance import Pipeline, current_pipeline, output_md5, provenance_tags, root

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

FLUSH_SECONDS = 5.0
CHECK_SECONDS = 5
# Databases that are reached over a network, and whose drivers take a time limit.
DATABASE_SERVERS = ("postgresql", "mysql")
# A database that another process is migrating on a busy machine.
LOCK_SECONDS = 120
MAX_METRICS_PER_CALL = 1000
MAX_PARAMS_PER_CALL = 100
MAX_PARAM_LENGTH = 500
MAX_DIGEST_LENGTH = 36
_METRIC_NAME = re.compile(r"[\w\-. :/]{1,250}")
# What a served checkpoint imports beside distillery itself.
_SERVED_WITH = ("mlflow", "numpy", "torch", "safetensors", "hydra-core", "omegaconf")


def _prepare_environment() -> None:
    """Before MLflow is imported: no telemetry, no chatter, and minutes of retries cut to seconds."""
    for name, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
        # The commit is looked up through a library that complains at length where git is not installed.
        "GIT_PYTHON_REFRESH": "quiet",
    }.items():
        os.environ.setdefault(name, value)
    logging.getLogger("alembic").setLevel(logging.WARNING)


def _store_errors() -> tuple[type[Exception], ...]:
    """What a failing store raises; everything else is a mistake in the program."""
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    return MlflowException, RequestException, SQLAlchemyError, OSError


@contextlib.contextmanager
def _impatient() -> Iterator[None]:
    """One attempt and a short wait for a server that may not be there."""
    wanted = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": str(CHECK_SECONDS)}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted names and short texts; a list is one value."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value)
            flat[name] = text if len(text) <= MAX_PARAM_LENGTH else text[: MAX_PARAM_LENGTH - 1] + "…"
    return flat


class MlflowTracker:
    """See `distillery.core.protocols.Tracker`.

    Args:
        uri: of the store; None takes MLFLOW_TRACKING_URI, or else ``mlflow.db`` in the repository's root.
        experiment: MLflow experiment that all runs go to.
    """

    def __init__(self, uri: str | None, experiment: str) -> None:
        _prepare_environment()
        self.uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root() / 'mlflow.db'}"
        self.experiment = experiment
        self._experiment_id: str | None = None

    def check(self) -> None:
        """See `Tracker.check`.

        Raises:
            ValueError: the store cannot be reached or cannot be used.
        """
        # A database whose driver is not installed is found out on import.
        errors: tuple[type[Exception], ...] = (*_store_errors(), ImportError)
        try:
            self._reach_database()
            with _impatient():
                self.open()
        except errors as error:
            raise ValueError(
                f"runs cannot be tracked in {self.uri}: {_first_line(error)}; start the MLflow server or correct the "
                "address, or unset MLFLOW_TRACKING_URI to use the local database, or track nothing with "
                "`tracking=none`"
            ) from error

    def _reach_database(self) -> None:
        """One attempt at a database server, which MLflow would go on trying to reach for minutes."""
        import sqlalchemy

        if self.uri.partition("://")[0].partition("+")[0] in DATABASE_SERVERS:
            timeout = {"connect_timeout": CHECK_SECONDS}
            engine = sqlalchemy.create_engine(self.uri, poolclass=sqlalchemy.NullPool, connect_args=timeout)
            engine.connect().close()

    def open(self) -> tuple[Any, str]:
        """The client and the experiment's id; the first use of a store creates what is missing in it."""
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        if self._experiment_id is not None:
            return MlflowClient(self.uri), self._experiment_id
        # Two processes that migrate a fresh database at the same time break it.
        with self.lock():
            client = MlflowClient(self.uri)
            found = client.get_experiment_by_name(self.experiment)
            if found is None:
                self._experiment_id = client.create_experiment(self.experiment, self._artifact_location())
            elif found.lifecycle_stage == "active":
                self._experiment_id = found.experiment_id
            else:
                raise MlflowException(
                    f"experiment {self.experiment!r} was deleted there; restore it with `mlflow experiments restore "
                    f"--experiment-id {found.experiment_id}` or choose another `tracking.experiment`"
                )
        return client, self._experiment_id

    def lock(self) -> filelock.BaseFileLock:
        """Held while something is created that may exist only once."""
        database = self._database()
        path = database.with_name(f"{database.name}.lock") if database else root() / ".scratch" / "mlflow.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        return filelock.FileLock(path, timeout=LOCK_SECONDS)

    def _database(self) -> Path | None:
        path = self.uri.removeprefix("sqlite:///")
        return Path(path).absolute() if path != self.uri and path else None

    def _artifact_location(self) -> str | None:
        """Beside a local database; a server decides for itself."""
        database = self._database()
        return (database.parent / "mlartifacts" / self.experiment).as_uri() if database else None

    @contextlib.contextmanager
    def start(
        self,
        kind: str,
        name: str,
        *,
        config: Mapping[str, Any],
        tags: Mapping[str, str] | None = None,
        parent: str | None = None,
        description: str | None = None,
    ) -> Iterator["MlflowRun"]:
        """See `Tracker.start`."""
        run = MlflowRun(self)
        status = "FAILED"
        try:
            # Evaluations are what is compared: theirs are the plain names.
            shown = name if kind == "evaluate" else f"{name} ({kind})"
            run.begin(shown, {"kind": kind, **(tags or {}), **provenance_tags()}, parent, description)
            run.log_config(config)
            yield run
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            run.end(status)


class MlflowRun:
    """See `distillery.core.protocols.TrackedRun`. After the store's first failure it keeps nothing more."""

    def __init__(self, tracker: MlflowTracker) -> None:
        self.id = ""
        self._tracker = tracker
        self._client: Any = None
        self._pipeline: PipelineRun | None = None
        self._metrics: list[Any] = []
        self._last_flush = time.monotonic()
        self._broken = False

    def begin(self, name: str, tags: Mapping[str, str], parent: str | None, description: str | None) -> None:
        """Creates the run in the store."""

        def create() -> None:
            from mlflow.tracking.context.registry import resolve_tags

            self._client, experiment_id = self._tracker.open()
            pipeline = current_pipeline() if parent is None else None
            if pipeline is not None:
                self._pipeline = PipelineRun(self._tracker, pipeline)
                self._pipeline.begin(tags)
            above = self._pipeline.id if self._pipeline else parent
            color = line_color(tags["experiment"], tags["agent"]) if {"experiment", "agent"} <= set(tags) else None
            own = {"mlflow.parentRunId": above, "mlflow.note.content": description, "mlflow.runColor": color}
            given = resolve_tags({**tags, **{key: value for key, value in own.items() if value}})
            self.id = self._client.create_run(experiment_id, tags=given, run_name=name).info.run_id

        self._attempt(create)

    def log_config(self, config: Mapping[str, Any]) -> None:
        """The composed configuration: searchable as parameters, whole as a file."""
        from mlflow.entities import Param

        params = [Param(name, value) for name, value in flatten(config).items()]

        def send() -> None:
            for first in range(0, len(params), MAX_PARAMS_PER_CALL):
                self._client.log_batch(self.id, params=params[first : first + MAX_PARAMS_PER_CALL])
            self._client.log_text(self.id, yaml.safe_dump(dict(config), sort_keys=False), "config.yaml")

        self._attempt(send)

    def log(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """See `TrackedRun.log`; sent in batches."""
        from mlflow.entities import Metric

        now = time.time_ns() // 1_000_000
        for name, value in metrics.items():
            assert _METRIC_NAME.fullmatch(name), f"{name!r} is no name for a metric"
            self._metrics.append(Metric(name, float(value), now, step or 0))
        full = len(self._metrics) >= MAX_METRICS_PER_CALL
        if full or time.monotonic() - self._last_flush >= FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Sends what was logged."""
        metrics, self._metrics = self._metrics, []
        for first in range(0, len(metrics), MAX_METRICS_PER_CALL):
            self._attempt(partial(self._send_metrics, metrics[first : first + MAX_METRICS_PER_CALL]))
        self._last_flush = time.monotonic()

    def _send_metrics(self, metrics: list[Any]) -> None:
        self._client.log_batch(self.id, metrics=metrics)

    def log_dataset(self, folder: Path, *, context: str) -> None:
        """See `TrackedRun.log_dataset`."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        metadata = json.loads((Path(folder) / "metadata.json").read_text())
        md5, content_hash = output_md5(folder), metadata["content_hash"]
        name = "/".join(Path(folder).parts[-2:])
        sizes = {key: value for key, value in metadata.items() if key.startswith("num_") or key == "kind"}
        dataset = Dataset(
            name,
            (md5 or content_hash)[:MAX_DIGEST_LENGTH],
            "local",
            json.dumps({"uri": Path(folder).as_posix()}),
            profile=json.dumps({**sizes, "content_hash": content_hash, "dvc_md5": md5}),
        )
        tags = [InputTag("mlflow.data.context", context), InputTag("content_hash", content_hash)]
        if md5:
            tags.append(InputTag("dvc.md5", md5))

        def send() -> None:
            self._client.log_inputs(self.id, [DatasetInput(dataset, tags)])
            self._client.set_tag(self.id, "data.content_hash", content_hash)
            if md5:
                self._client.set_tag(self.id, "dvc.data.md5", md5)

        self._attempt(send)

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """See `TrackedRun.log_file`."""
        assert Path(path).is_file(), f"{path} is to be tracked and does not exist"
        self._attempt(lambda: self._client.log_artifact(self.id, str(path), folder))

    def log_model(self, checkpoint: Path, *, loader: Callable[[Path], ServedModel]) -> None:
        """See `TrackedRun.log_model`; ``mlflow.pyfunc.load_model("runs:/<id>/model")`` loads it."""
        if not self._broken:
            with tempfile.TemporaryDirectory() as temporary:
                self._log_model(checkpoint, loader, Path(temporary, "model"))

    def _log_model(self, checkpoint: Path, loader: Callable[[Path], ServedModel], folder: Path) -> None:
        import mlflow.pyfunc
        from mlflow.entities import LoggedModelOutput
        from mlflow.models import Model

        served = loader(checkpoint)
        example = served.example()

        def send() -> None:
            _, experiment_id = self._tracker.open()
            model = self._client.create_logged_model(experiment_id, "model", source_run_id=self.id)
            mlflow.pyfunc.save_model(
                folder,
                mlflow_model=Model(model.artifact_location, self.id, model_id=model.model_id),
                python_model=str(Path(__file__).with_name("pyfunc.py")),
                artifacts={"checkpoint": str(Path(checkpoint).absolute())},
                model_config={"loader": f"{loader.__module__}.{loader.__qualname__}"},
                signature=_signature(example, served(**example)),
                input_example=example,
                pip_requirements=_requirements(),
            )
            self._client.log_model_artifacts(model.model_id, str(folder))
            self._client.finalize_logged_model(model.model_id, "READY")
            self._client.log_outputs(self.id, [LoggedModelOutput(model.model_id, step=0)])

        self._attempt(send)

    def end(self, status: str) -> None:
        """Sends the rest and closes the run."""
        self.flush()
        if self.id:
            self._attempt(lambda: self._client.set_terminated(self.id, status))
        if self._pipeline is not None:
            self._attempt(partial(self._pipeline.end, status))

    def _attempt(self, action: Callable[[], Result]) -> Result | None:
        if self._broken:
            return None
        try:
            return action()
        except _store_errors() as error:
            self._broken = True
            stage = os.environ.get("DVC_STAGE")
            again = f"`dvc repro -f -s {stage}` tracks it again" if stage else "run the stage again to track it"
            logger.warning(
                "tracking stopped: %s failed (%s). What the stage computed is kept; once the store works, %s",
                self._tracker.uri,
                _first_line(error),
                again,
            )
            return None


class PipelineRun:
    """The run above all stages of one DVC invocation: created by the first, closed anew by each."""

    def __init__(self, tracker: MlflowTracker, pipeline: Pipeline) -> None:
        self._tracker, self._pipeline = tracker, pipeline
        self.id = ""

    def begin(self, tags: Mapping[str, str]) -> None:
        """Finds or creates the run."""
        client, experiment_id = self._tracker.open()
        with self._tracker.lock():
            self.id = self._find() or self._create(client, experiment_id, tags)
        if client.get_run(self.id).info.status != "FAILED":
            client.update_run(self.id, "RUNNING")

    def _find(self) -> str | None:
        client, experiment_id = self._tracker.open()
        same_key = client.search_runs([experiment_id], f"tags.`pipeline.key` = '{self._pipeline.key}'")
        for run in same_key:
            # A process's start is computed from the clock, which may have been set since.
            if abs(float(run.data.tags["pipeline.started"]) - self._pipeline.started) < 5:
                return str(run.info.run_id)
        return None

    def _create(self, client: Any, experiment_id: str, tags: Mapping[str, str]) -> str:
        own = {name: tags[name] for name in ("git.commit", "git.dirty", "dvc.exp") if name in tags}
        own |= {"kind": "pipeline", "pipeline.key": self._pipeline.key}
        own["pipeline.started"] = str(self._pipeline.started)
        started = int(self._pipeline.started * 1000)
        run = client.create_run(experiment_id, start_time=started, tags=own, run_name=self._pipeline.name)
        return str(run.info.run_id)

    def end(self, status: str) -> None:
        """Closes the run until the next stage starts; it stays failed once a stage has failed."""
        client, _ = self._tracker.open()
        if client.get_run(self.id).info.status != "FAILED":
            client.set_terminated(self.id, "FINISHED" if status == "FINISHED" else "FAILED")


def _signature(inputs: Mapping[str, Any], output: Any) -> Any:
    """Names, types and shapes; the first axes, batch and steps, may have any length."""
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    given: list[Any] = [TensorSpec(array.dtype, (-1, -1, *array.shape[2:]), name) for name, array in inputs.items()]
    return ModelSignature(Schema(given), Schema([TensorSpec(output.dtype, (-1, *output.shape[1:]))]))


def _requirements() -> list[str]:
    """Versions of this environment, without the mark of a build, which no registry carries."""
    return [f"{name}=={importlib.metadata.version(name).partition('+')[0]}" for name in _SERVED_WITH]


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]
