"""The repository keeps its own rules: what is written twice agrees, and nothing a result depends on is left out."""

import ast
import importlib
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from distillery.stages.entry import plain
from distillery.stages.resolve import compose_entry, load_params

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src"
CONF = SOURCE / "distillery" / "conf"

# Hydra reads the choice `null` as none at all, so this file is called otherwise than its module.
NAMED_OTHERWISE = {"tracking/none": "distillery.tracking.null"}

# Modules that stages import and that decide no result; the walk over imports ends at them.
DECIDE_NO_RESULT = {
    "distillery": "its version only, recorded with what it wrote; a release makes no history wrong",
    "distillery.stages.entry": "the command line: reads the configuration, names the folders, turns errors into text",
    "distillery.stages.tracked": "sends finished results to the tracking store",
    "distillery.tracking": "stores copies of results, outside the pipeline's outputs",
    "distillery.stages.resolve": "here a check that refuses a configuration, or the reading of params.yaml",
    "distillery.stages.validate": "here a check that refuses a dataset",
}
# The stage that composes builds everything once to refuse bad values early; what it writes is conf/ and params.yaml.
# The stage that validates compares the source's settings and runs no source.
ONLY_CHECKED_BY = {
    "resolve": ("distillery.core", "distillery.histories"),
    "validate": ("distillery.sources",),
}


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def targets(node: Any) -> Iterator[str]:
    """Every `_target_` at any depth."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "_target_":
                yield value
            else:
                yield from targets(value)
    elif isinstance(node, list):
        for value in node:
            yield from targets(value)


def at(tree: Any, dotted: str) -> Any:
    """The sub-tree at a dotted path; KeyError if there is none."""
    for key in dotted.split("."):
        tree = tree[key]
    return tree


# Makefile


def phony_targets() -> list[str]:
    lines = re.findall(r"^\.PHONY:(.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return [name for line in lines for name in line.split()]


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_help_lists_every_target():
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    listed = set(re.findall(r"^  ([a-z]+) ", shown, re.MULTILINE))
    assert {"help", "repro", "test", "demo", "smoke", "ui", "sweep", "bench", "lint"} <= listed
    assert listed == set(phony_targets())


def test_make_runs_modules_that_exist():
    text = (ROOT / "Makefile").read_text()
    modules = re.findall(r"-m (distillery\.\S+)", text)
    missing = [name for name in modules if not SOURCE.joinpath(*name.split(".")).with_suffix(".py").exists()]
    assert not missing
    assert "-m benchmarks" in text
    assert (ROOT / "benchmarks" / "__main__.py").exists()


# README


@pytest.mark.parametrize("command", ["make repro", "make test", "make demo"])
def test_readme_shows_the_command(command: str):
    assert command in (ROOT / "README.md").read_text()


# Configuration


def configuration_files() -> list[str]:
    files = (path.relative_to(CONF).with_suffix("").as_posix() for path in CONF.rglob("*.yaml"))
    return sorted(file for file in files if "/" in file)


@pytest.mark.parametrize("name", configuration_files())
def test_configuration_names_classes_at_its_own_path(name: str):
    values = load(CONF / f"{name}.yaml") or {}
    for target in targets(values):
        module, _, cls = target.rpartition(".")
        assert isinstance(getattr(importlib.import_module(module), cls, None), type), f"{target} is no class"
    if "_target_" in values:
        own = NAMED_OTHERWISE.get(name, f"distillery.{name.replace('/', '.')}")
        assert values["_target_"].rpartition(".")[0] == own


def entries() -> list[tuple[str, str]]:
    params = load_params(ROOT / "params.yaml")
    return [(section, name) for section in ("datasets", "experiments") for name in params[section]]


@pytest.mark.parametrize(("section", "name"), entries())
def test_committed_composition_is_fresh(section: str, name: str):
    committed = load(ROOT / "data" / "resolved" / section / f"{name}.yaml")
    fresh = plain(compose_entry(load_params(ROOT / "params.yaml"), section, name))
    assert committed["checkpoint"] == "${name}", "another name must train another checkpoint"
    stored = {key: value for key, value in committed.items() if key not in ("defaults", "hydra")} | {
        "checkpoint": name
    }
    assert stored == fresh, "run `dvc repro` and commit data/resolved"


def test_no_composition_is_left_over():
    files = {(path.parent.name, path.stem) for path in (ROOT / "data" / "resolved").rglob("*.yaml")}
    assert files == set(entries())


# dvc.yaml


@cache
def pipeline() -> dict[str, dict[str, Any]]:
    """Stages by full name, as DVC itself reads dvc.yaml: module, dependencies, and sub-trees read by file."""
    from dvc.dependency.param import ParamsDependency
    from dvc.repo import Repo

    stages = {}
    with Repo(str(ROOT)) as repo:
        for stage in repo.index.stages:
            params = {d.fs_path: list(d.params) for d in stage.deps if isinstance(d, ParamsDependency)}
            deps = [Path(d.fs_path) for d in stage.deps if not isinstance(d, ParamsDependency)]
            module = re.search(r"-m (distillery\.\S+)", stage.cmd)
            assert module, f"{stage.name} runs no module of this package: {stage.cmd}"
            stages[stage.name] = {"module": module[1], "deps": deps, "params": params}
    return stages


def resolved_params(stage: dict[str, Any]) -> Iterator[tuple[Any, str]]:
    """The resolved file's content and the path of every sub-tree a stage reads of it."""
    for file, paths in stage["params"].items():
        if "resolved" in Path(file).parts:
            content = load(Path(file))
            yield from ((content, path) for path in paths)


def test_stages_read_subtrees_that_exist():
    read = [(name, content, path) for name, stage in pipeline().items() for content, path in resolved_params(stage)]
    assert read
    for name, content, path in read:
        try:
            at(content, path)
        except (KeyError, TypeError):
            pytest.fail(f"{name} reads '{path}', which its resolved file does not have")


@pytest.mark.parametrize("name", sorted(path.stem for path in (SOURCE / "distillery/conf/models").glob("*.yaml")))
def test_stages_read_what_every_model_has(name: str):
    """A sub-tree that one kind of model alone has would keep the others out of the pipeline."""
    with initialize_config_module("distillery.conf", version_base="1.3"):
        composed = OmegaConf.to_container(compose("config", ["experiment=dark_room", f"models={name}"]))
    paths = {path for stage in pipeline().values() for _, path in resolved_params(stage)}
    assert "models" in paths
    for path in paths:
        at(composed, path)


def module_file(module: str) -> Path | None:
    path = SOURCE.joinpath(*module.split("."))
    if (path / "__init__.py").exists():
        return path / "__init__.py"
    return path.with_suffix(".py") if path.with_suffix(".py").exists() else None


def with_packages(module: str) -> list[str]:
    """A module and the packages that importing it runs."""
    parts = module.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


@cache
def imported(module: str) -> frozenset[str]:
    """The package's modules that one module imports, wherever in its text."""
    file = module_file(module)
    assert file is not None, module
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module} imports relatively; write the whole path"
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    mine = (name for name in names if name.split(".")[0] == "distillery" and module_file(name) is not None)
    return frozenset(whole for name in mine for whole in with_packages(name))


def ignored(module: str) -> bool:
    return module in DECIDE_NO_RESULT or module.startswith("distillery.tracking.")


@cache
def holds_code(module: str) -> bool:
    """Whether a module is more than its docstring."""
    file = module_file(module)
    assert file is not None, module
    return any(not isinstance(node, ast.Expr) for node in ast.parse(file.read_text()).body)


def reached(start: set[str], beyond: tuple[str, ...]) -> set[str]:
    """Modules reached by imports, not walking into those that decide no result nor `beyond`."""
    seen: set[str] = set()
    todo = list(start)
    while todo:
        module = todo.pop()
        if module not in seen:
            seen.add(module)
            todo += [name for name in imported(module) if not ignored(name) and not name.startswith(beyond)]
    return seen


def test_every_stage_depends_on_the_code_it_runs():
    problems = []
    for name, stage in pipeline().items():
        kind = stage["module"].rpartition(".")[2]
        beyond = ONLY_CHECKED_BY.get(kind, ())
        start = {stage["module"]}
        for content, path in resolved_params(stage):
            for target in targets({"tree": at(content, path)}):
                modules = with_packages(target.rpartition(".")[0])
                start |= {module for module in modules if not (ignored(module) or module.startswith(beyond))}
        for module in sorted(filter(holds_code, reached(start, beyond))):
            file = module_file(module)
            assert file is not None, module
            if not any(file == dep or dep in file.parents for dep in stage["deps"]):
                problems.append(f"{name}: {file.relative_to(ROOT)}")
    assert not problems, "dvc.yaml lacks dependencies:\n" + "\n".join(problems)


def test_excluded_modules_exist():
    assert all(module_file(module) is not None for module in DECIDE_NO_RESULT)


# Git


def test_ignored_folders_are_anchored():
    """`models/` without a leading slash would hide the source package of that name."""
    lines = (ROOT / ".gitignore").read_text().split()
    assert not [line for line in lines if re.match(r"(models|data|histories|evaluations|reports)\b", line)]


def test_lock_holds_no_build_suffix_and_meets_the_project():
    pins = dict(
        line.split(" ")[0].split("==") for line in (ROOT / ".constraints.txt").read_text().splitlines() if "==" in line
    )
    assert pins["torch"] == "2.13.0"
    assert not [name for name, version in pins.items() if "+" in version or name.startswith("nvidia-cu")]
