"""The pages in docs/ tell the truth: their links lead somewhere, and their examples run as they are printed."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from distillery.stages.entry import build
from distillery.stages.resolve import check

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
EXAMPLES = ("add_a_task.md", "add_a_source.md", "add_a_model.md", "add_a_study.md")
# A file's path in backticks at the start of a paragraph that ends with a colon, then its content.
FILE = re.compile(r"^`([\w./-]+)`[^\n]*:\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMANDS = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[\w-]*)?\)")
PATH = re.compile(r"`((?:src|tests|core|tasks|sources|layers|conf)/[\w./-]+\.(?:py|yaml))`")
# Runs command lines of modules one after another in one process: importing torch takes longer than the examples do.
DRIVER = """
import runpy, shlex, sys

if __name__ == "__main__":
    for line in sys.argv[1:]:
        module, *arguments = shlex.split(line)
        sys.argv = [module, *arguments]
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            if end.code:
                raise
"""


def files_of(page: str) -> dict[str, str]:
    return dict(FILE.findall((DOCS / page).read_text()))


def commands_of(page: str) -> list[str]:
    """Module and arguments of every command that a page shows."""
    lines = [line for block in COMMANDS.findall((DOCS / page).read_text()) for line in block.splitlines()]
    assert all(line.startswith("python -m ") for line in lines), lines
    return [line.removeprefix("python -m ") for line in lines]


def write_files(page: str, folder: Path) -> list[Path]:
    """Puts a page's files where it says."""
    paths = []
    for name, content in files_of(page).items():
        path = folder / name
        assert not path.exists(), f"{page} would overwrite {name}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        paths.append(path)
    return paths


def run_page(page: str, checkout: Path) -> str:
    """Does what a page says; returns what its commands print."""
    write_files(page, checkout)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "MLFLOW_", "PYTEST_"))}
    result = subprocess.run(
        [sys.executable, "-c", DRIVER, *commands_of(page)],
        cwd=checkout,
        env={**kept, "PYTHONPATH": str(checkout / "src"), "OMP_NUM_THREADS": "1", "COLUMNS": "160"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def evaluation(checkout: Path, name: str) -> dict[str, float]:
    """Held-out numbers of an evaluation."""
    path = checkout / "data" / "evaluations" / name / "summary.json"
    numbers: dict[str, float] = json.loads(path.read_text())["splits"]["held_out"]
    return numbers


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the package and its tests to put examples into."""
    for name in ("src", "tests"):
        shutil.copytree(
            ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "docs")
        )
    shutil.copyfile(ROOT / "pyproject.toml", tmp_path / "pyproject.toml")
    return tmp_path


# Pages


def pages() -> list[str]:
    return sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


@pytest.mark.parametrize("page", pages())
def test_links_lead_somewhere(page: str) -> None:
    path = DOCS / page
    links = [link for link in LINK.findall(path.read_text()) if "://" not in link]
    assert not [link for link in links if not (path.parent / link).exists()]


def test_every_page_is_linked_from_the_index() -> None:
    linked = set(LINK.findall((DOCS / "index.md").read_text()))
    assert {path.name for path in DOCS.glob("*.md")} - {"index.md"} <= linked
    assert "cards/index.md" in linked
    cards = set(LINK.findall((DOCS / "cards" / "index.md").read_text()))
    assert cards == {path.name for path in (DOCS / "cards").glob("*.md")} - {"index.md"}


@pytest.mark.parametrize("page", EXAMPLES)
def test_named_files_exist(page: str) -> None:
    own = set(files_of(page)) | {"tests/tasks/test_line_world.py"}  # the second is the reader's to write
    named = [name for name in PATH.findall((DOCS / page).read_text()) if name not in own]
    missing = [
        name for name in named if not (ROOT / name).exists() and not (ROOT / "src" / "distillery" / name).exists()
    ]
    assert not missing


@pytest.mark.parametrize("page", EXAMPLES)
def test_examples_obey_the_linter(page: str, checkout: Path) -> None:
    modules = [str(path) for path in write_files(page, checkout) if path.suffix == ".py"]
    for command in (["check", "--no-cache"], ["format", "--check", "--no-cache"]) if modules else ():
        result = subprocess.run(
            [sys.executable, "-m", "ruff", *command, *modules], cwd=checkout, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stdout + result.stderr


# Examples


@pytest.mark.slow
def test_the_task_of_the_page_is_collected_learned_and_evaluated(checkout: Path) -> None:
    run_page("add_a_task.md", checkout)
    assert evaluation(checkout, "try_line_world/oracle")["oracle_fraction"] == 1.0
    assert evaluation(checkout, "try_line_world/random")["oracle_fraction"] < 0.5
    assert evaluation(checkout, "try_line_world/ad")["num_tasks"] == 5


@pytest.mark.slow
def test_the_source_of_the_page_learns_and_passes_the_battery(checkout: Path) -> None:
    printed = run_page("add_a_source.md", checkout)
    metadata = json.loads((checkout / "data" / "histories" / "try_sarsa" / "learning" / "metadata.json").read_text())
    first, last = metadata["mean_tenths"]
    assert last > 5 * first
    assert evaluation(checkout, "try_sarsa/ad")["num_tasks"] == 4
    assert re.search(r"\d+ passed", printed)


@pytest.mark.slow
def test_the_model_of_the_page_trains_and_acts(checkout: Path) -> None:
    printed = run_page("add_a_model.md", checkout)
    model = json.loads((checkout / "models" / "try_gru" / "ad" / "model.json").read_text())
    assert model["architecture"]["_target_"] == "distillery.models.gru.GRUModel"
    assert evaluation(checkout, "try_gru/ad")["num_tasks"] == 4
    assert "1 passed" in printed


@pytest.mark.slow
def test_the_study_of_the_page_runs_and_is_compared(checkout: Path) -> None:
    printed = run_page("add_a_study.md", checkout)
    runs = json.loads((checkout / "data" / "results" / "small_room.json").read_text())["runs"]
    names = [(run["variant"], run["seed"]) for run in runs]
    assert names == [("long", 0), ("long", 1), ("short", 0), ("short", 1), ("random", 0)]
    assert len({run["data"] for run in runs} - {None}) == 1, "variants share their histories"
    assert "Memory in a small room" in (checkout / "data" / "reports" / "paper.html").read_text()
    assert "small_room/short (study small_room): 2 trainings, 4 tasks of the split held_out" in printed


def test_commands_of_the_scaling_page_would_start():
    lines = [line for block in COMMANDS.findall((DOCS / "scaling.md").read_text()) for line in block.splitlines()]
    modules = re.compile(r"-m distillery\.stages\.(\w+) (.*)$")
    commands = [found.groups() for line in lines if (found := modules.search(line))]
    assert [stage for stage, _ in commands] == ["collect", "train", "sweep", "evaluate"]
    for stage, arguments in commands:
        # Of the billion weights a thirtieth; on the CPU, for a GPU is asked for where there is one.
        overrides = [*arguments.split(), "models.num_layers=1", "runtime.device=cpu"]
        with initialize_config_module("distillery.conf", version_base="1.3"):
            config = compose("config", overrides)
        OmegaConf.resolve(config)
        check(config)
        model, runs = config.models, config.histories.collection.runs_per_task
        with initialize_config_module("distillery.conf", version_base="1.3"):
            num_layers = compose("config", arguments.split()).models.num_layers
        heads = model.num_heads + 2 * model.num_key_heads
        layer = model.width * (heads * model.width // model.num_heads + model.width + 2 * model.feedforward_width)
        tasks = build(config.tasks)
        steps = len(tasks.task_ids("train")) * config.sources.num_episodes * tasks.spec.episode_steps
        assert runs * steps == pytest.approx(1e11, rel=1e-3)
        if stage == "sweep":
            rates = {"training.learner.learning_rate", "training.learner.weight_decay"}
            assert {path for path, entry in config.sweeps.space.items() if entry} == rates
            assert (config.sweeps.num_trials, config.models.context_length) == (100, 4096)
        assert num_layers * layer == pytest.approx(8.6e6 if stage == "sweep" else 0.99e9, rel=0.01)
