"""The pages in docs/ tell the truth: their links lead somewhere, and their examples run as they are printed."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
# A file's path in backticks at the start of a paragraph that ends with a colon, then its content.
FILE = re.compile(r"^`([\w./-]+)`[^\n]*:\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMANDS = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[\w-]*)?\)")
# Runs module command lines one after another in one process: importing torch takes longer than the examples do.
DRIVER = """
import runpy, shlex, sys
for line in sys.argv[1:]:
    module, *arguments = shlex.split(line)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def files_of(page: str) -> dict[str, str]:
    return dict(FILE.findall((DOCS / page).read_text()))


def commands_of(page: str) -> list[str]:
    """Module and arguments of every command that a page shows."""
    lines = [line for block in COMMANDS.findall((DOCS / page).read_text()) for line in block.splitlines()]
    assert all(line.startswith("python -m ") for line in lines), lines
    return [line.removeprefix("python -m ") for line in lines]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the package to put examples into."""
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    return tmp_path


def run(commands: list[str], *, folder: Path) -> str:
    """Runs what the page shows in `folder`, with the package that lies there."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "MLFLOW_"))}
    environment = {**kept, "PYTHONPATH": str(folder / "src"), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", DRIVER, *commands],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def run_page(page: str, checkout: Path) -> str:
    """Does what a page says; returns what its commands print."""
    for name, content in files_of(page).items():
        path = checkout / name
        assert not path.exists(), f"{page} would overwrite {name}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return run(commands_of(page), folder=checkout)
