"""Contracts that more than one wing relies on."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol


class TrackedRun(Protocol):
    """One run that is being tracked: a training, the evaluation of one agent, a sweep's trial.

    Attributes:
        id: names the run in its store, so that other processes can nest runs under it.
    """

    id: str

    def log(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Logs metrics at a step (an update, or an episode counted from 1)."""

    def log_dataset(self, folder: Path, *, context: str) -> None:
        """Names the dataset that was read, with its DVC hash and content hash; context says what for."""

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Attaches a file, optionally under a folder."""

    def log_model(self, checkpoint: Path) -> None:
        """Attaches a checkpoint so that it can be loaded and called from the tracking store."""


class Tracker(Protocol):
    """Where runs are tracked."""

    def check(self) -> None:
        """Raises ValueError with a remedy if runs could not be tracked; called before any work."""

    def start(
        self,
        kind: str,
        name: str,
        *,
        config: Mapping[str, Any],
        tags: Mapping[str, str] | None = None,
        parent: str | None = None,
    ) -> AbstractContextManager[TrackedRun]:
        """Opens a run.

        Args:
            kind: `train`, `evaluate` or `sweep`.
            name: shown in lists, for example ``dark_room/ad``.
            config: the composed configuration.
            tags: searchable marks, for example the experiment and the agent.
            parent: id of the run to nest under; None nests it under the current pipeline run, if there is one.
        """
