"""Where a run comes from: the commit, the pipeline it is part of, and the hash of the data it read."""

import hashlib
import json
import os
import socket
import subprocess
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import psutil
import yaml

# What a run depends on and DVC does not write itself; anything uncommitted here makes the commit a half-truth.
_SOURCES = ("src", "params.yaml", "dvc.yaml", "pyproject.toml")
# `exec-run` is the process in which DVC runs a queued or temporary experiment.
_PIPELINE_COMMANDS = (("repro",), ("exp", "run"), ("exp", "exec-run"), ("experiments", "run"))


@dataclass(frozen=True)
class Pipeline:
    """One invocation of DVC, whose stages are processes of their own.

    Attributes:
        key: same for all stages of the invocation; may come again once its process id is reused.
        started: seconds since the epoch; tells invocations of one key apart.
        name: for people.
    """

    key: str
    started: float
    name: str


def root() -> Path:
    """The repository's root: DVC names the real one even inside its temporary experiments."""
    return Path(os.environ.get("DVC_ROOT") or Path.cwd()).resolve()


def current_pipeline() -> Pipeline | None:
    """The DVC invocation this process is a stage of, found among its ancestors."""
    for process in psutil.Process().parents():
        try:
            command, started = process.cmdline(), process.create_time()
        except psutil.Error:
            continue
        words = _pipeline_command(command)
        if words:
            key = hashlib.sha256(f"{socket.gethostname()}/{process.pid}/{root()}".encode()).hexdigest()[:16]
            experiment = os.environ.get("DVC_EXP_NAME")
            when = datetime.fromtimestamp(started).strftime("%Y-%m-%d %H:%M")
            return Pipeline(key, started, " ".join(["dvc", *words, *([experiment] if experiment else []), when]))
    return None


def _pipeline_command(command: list[str]) -> tuple[str, ...] | None:
    for place, word in enumerate(command):
        if Path(word).name == "dvc":
            rest = f" {' '.join(command[place + 1 :])} "
            return next((words for words in _PIPELINE_COMMANDS if f" {' '.join(words)} " in rest), None)
    return None


def provenance_tags() -> dict[str, str]:
    """Tags for the commit, and whether sources differ from it, and for the DVC stage and experiment, where known."""
    tags = {"dvc.stage": os.environ.get("DVC_STAGE"), "dvc.exp": os.environ.get("DVC_EXP_NAME")}
    commit = _git("rev-parse", "HEAD")
    if commit:
        changes = _git("status", "--porcelain", "--", *_SOURCES)
        tags |= {"git.commit": commit, "git.dirty": str(bool(changes)).lower()}
    return {name: value for name, value in tags.items() if value}


def _git(*arguments: str) -> str | None:
    try:
        result = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()


def output_md5(folder: Path) -> str | None:
    """DVC's hash of a folder, if ``dvc.lock`` lists it as an output and what lies there now is what was hashed."""
    try:
        lock = yaml.load(Path("dvc.lock").read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, yaml.YAMLError):
        return None
    outputs = (output for stage in (lock or {}).get("stages", {}).values() for output in stage.get("outs", []))
    recorded = next((output.get("md5") for output in outputs if Path(output["path"]) == Path(folder)), None)
    return recorded if recorded is not None and recorded == folder_md5(folder) else None


def folder_md5(folder: Path) -> str:
    """A folder's hash as DVC counts it: MD5 of the sorted list of its files' MD5s."""
    files = sorted((path.relative_to(folder).as_posix(), path) for path in folder.rglob("*") if path.is_file())
    entries = []
    for name, path in files:
        with path.open("rb") as file:
            entries.append({"md5": hashlib.file_digest(file, "md5").hexdigest(), "relpath": name})
    return hashlib.md5(json.dumps(entries, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"
