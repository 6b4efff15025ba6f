"""Carries a sweep's winner into params.yaml: as a command, as lines to paste, or written at once."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distillery.core.files import whole_file


def nested(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted paths as nested mappings."""
    tree: dict[str, Any] = {}
    for path, value in overrides.items():
        *parents, leaf = path.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def command(experiment: str, overrides: Mapping[str, Any]) -> str:
    """The shell command that runs the pipeline with the overrides and keeps them in params.yaml."""
    # Two plus signs, since a path is new to params.yaml the first time and known the next.
    changes = (f"++experiments.{experiment}.set.{path}={json.dumps(value)}" for path, value in overrides.items())
    return " ".join(["dvc exp run", *(f"-S {shlex.quote(change)}" for change in changes)])


def lines(experiment: str, overrides: Mapping[str, Any]) -> str:
    """The same as lines of params.yaml."""
    import yaml

    return yaml.safe_dump({"experiments": {experiment: {"set": nested(overrides)}}}, sort_keys=False)


def write(path: Path, experiment: str, overrides: Mapping[str, Any]) -> None:
    """Writes the overrides into params.yaml and keeps everything else in it, comments too.

    Raises:
        ValueError: the file does not define the experiment.
    """
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 119
    yaml.indent(mapping=2, sequence=4, offset=2)
    # Without the point, YAML 1.1 reads 1e-05 as a word.
    yaml.representer.add_representer(float, _float)
    params = yaml.load(path.read_text())
    if experiment not in (params.get("experiments") or {}):
        raise ValueError(f"{path} does not define the experiment '{experiment}', so nothing can be promoted into it")
    entry = params["experiments"][experiment]
    if not entry.get("set"):
        entry["set"] = {}
    _merge(entry["set"], nested(overrides))
    with whole_file(path) as temporary, temporary.open("w") as file:
        yaml.dump(params, file)


def _float(representer: Any, value: float) -> Any:
    text = repr(value)
    text = text.replace("e", ".0e", 1) if "." not in text else text
    return representer.represent_scalar("tag:yaml.org,2002:float", text)


def _merge(target: Any, changes: Mapping[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(target.get(key), Mapping):
            _merge(target[key], value)
        else:
            target[key] = value
