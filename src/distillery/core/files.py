"""Files and folders that appear whole or not at all."""

import contextlib
import errno
import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

PARTIAL_PREFIX = ".partial-"
_SCARCE_BYTES = 1 << 16


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextlib.contextmanager
def _told_when_full(path: Path) -> Iterator[None]:
    """Libraries report a full disk in words of their own; this says which file it was and what to do."""
    try:
        yield
    except Exception as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or shutil.disk_usage(path.parent).free < _SCARCE_BYTES:
            raise OSError(
                errno.ENOSPC, f"{path} could not be written, the disk is full; free some space and run the stage again"
            ) from error
        raise


def _partial_name(path: Path) -> str:
    # Version control ignores this prefix, so that what a killed process leaves behind enters nothing.
    return f"{PARTIAL_PREFIX}{path.name}-{os.getpid()}-"


def _remove_abandoned(path: Path) -> None:
    """Deletes what killed processes left of earlier attempts to write `path`."""
    for left in path.parent.glob(f"{PARTIAL_PREFIX}{glob.escape(path.name)}-*"):
        pid = left.name.removeprefix(f"{PARTIAL_PREFIX}{path.name}-").split("-")[0]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_file(path: Path | str) -> Iterator[Path]:
    """Yields a temporary path beside `path`; renames it onto `path` only if the block succeeds.

    Raises:
        OSError: the disk is full; names the file and the remedy.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path)
    # The suffix is kept, since several libraries choose the format by it.
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=_partial_name(path), suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        with _told_when_full(path):
            yield temporary
            _flush(temporary)
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(path: Path | str) -> Iterator[Path]:
    """Yields a temporary folder; it takes the place of `path` only if the block succeeds.

    Raises:
        OSError: the disk is full; names the folder and the remedy.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path)
    temporary, old = (Path(tempfile.mkdtemp(dir=path.parent, prefix=_partial_name(path))) for _ in range(2))
    temporary.chmod(0o755)
    try:
        with _told_when_full(path):
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    _flush(file)
        # A folder cannot be renamed onto a full one: the old one steps aside, and comes back if the new one fails.
        if path.exists():
            os.replace(path, old / path.name)
        try:
            os.replace(temporary, path)
        except OSError:
            if (old / path.name).exists():
                os.replace(old / path.name, path)
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def write_json(path: Path | str, values: Any) -> None:
    """Writes `values` as indented JSON, whole or not at all; NaN is refused."""
    text = json.dumps(values, indent=2, allow_nan=False) + "\n"
    with whole_file(path) as temporary:
        temporary.write_text(text)


def read_json(path: Path | str, *, remedy: str) -> Any:
    """Reads JSON, naming the file and the `remedy` where it is missing or broken.

    Raises:
        ValueError: the file is missing or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist; {remedy}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); {remedy}") from error


def sha256_file(path: Path | str) -> str:
    """Hex SHA-256 of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
