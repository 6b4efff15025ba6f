"""Tracks nothing: for tests, and for a quick try."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from distillery.core.protocols import ServedModel


class NullRun:
    """Takes everything and keeps nothing."""

    id = ""

    def log(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """See `TrackedRun.log`."""

    def log_dataset(self, folder: Path, *, context: str) -> None:
        """See `TrackedRun.log_dataset`."""

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """See `TrackedRun.log_file`."""

    def log_model(self, checkpoint: Path, *, loader: Callable[[Path], ServedModel]) -> None:
        """See `TrackedRun.log_model`."""


class NullTracker:
    """See `distillery.core.protocols.Tracker`."""

    def check(self) -> None:
        """Nothing can go wrong."""

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
    ) -> Iterator[NullRun]:
        """See `Tracker.start`."""
        yield NullRun()
