"""Cards: a page of Markdown for every dataset and checkpoint that is shipped, made from small committed files alone.

python -m distillery.stages.cards

Reads params.yaml, dvc.lock, ``data/resolved``, ``data/validations``, ``data/reports/metrics.json`` and the packaged
checkpoint's ``model.json``; writes ``docs/cards`` as a whole, so that no card outlives what it is of.
"""

import argparse
import ast
import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import jinja2
import yaml

from distillery.core.files import read_json, whole_folder
from distillery.core.protocols import SequenceModel, TaskDistribution
from distillery.core.specs import TaskSpec
from distillery.histories.format import column_types
from distillery.stages.entry import build
from distillery.stages.resolve import load_params

FOLDER = Path("docs", "cards")
DEMO = Path("src", "distillery", "demo_checkpoint", "model.json")
REMEDY = "restore it from version control, or run `dvc repro` to make it"
KINDS = {
    "learning": "every episode of independent learners, from the first to the last, in the order they were played",
    "expert": "as many further episodes of the same learners, frozen at their end; they hold no improvement",
}
SPLITS = {
    "train": "trained on",
    "validation": "select checkpoints and settings",
    "held_out": "reported; trained on and selected by nothing",
}
METHODS = {
    "ad": "Algorithm Distillation",
    "ed": "Expert Distillation, the baseline whose histories hold no improvement",
    "dpt": "a Decision-Pretrained Transformer",
    "rl2": "RL²",
}
_EPISODES = ("1", "10", "25", "50", "100")


@dataclass(frozen=True)
class Committed:
    """The small files that cards are made from.

    Attributes:
        params: of params.yaml.
        outputs: of dvc.lock, by path: each with md5, size in bytes, and nfiles where it is a folder.
        datasets: composed configurations by name.
        experiments: the same.
        validations: what was checked of the histories, by experiment.
        metrics: experiment to agent to split to numbers.
        demo: ``model.json`` of the packaged checkpoint.
    """

    params: dict[str, Any]
    outputs: dict[str, dict[str, Any]]
    datasets: dict[str, dict[str, Any]]
    experiments: dict[str, dict[str, Any]]
    validations: dict[str, dict[str, Any]]
    metrics: dict[str, Any]
    demo: dict[str, Any]

    def output(self, path: str) -> dict[str, Any]:
        """One output of the pipeline.

        Raises:
            ValueError: dvc.lock does not list it.
        """
        if path not in self.outputs:
            raise ValueError(f"dvc.lock lists no {path}; run `dvc repro` to make it, and commit dvc.lock")
        return self.outputs[path]

    def validation(self, dataset: str) -> dict[str, Any]:
        """What was checked of a dataset, for the first experiment that reads it; nothing where none does."""
        for name, experiment in self.params["experiments"].items():
            if experiment["dataset"] == dataset:
                return self.validations[name]
        return {}


def _read_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text())
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist; {REMEDY}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML; {REMEDY}") from error


def read_committed() -> Committed:
    """Reads what cards are made from.

    Raises:
        ValueError: a file is missing or broken; names it and the remedy.
    """
    params, data = load_params(), Path("data")
    stages = (_read_yaml(Path("dvc.lock")) or {}).get("stages", {})
    return Committed(
        params=params,
        outputs={out["path"]: out for stage in stages.values() for out in stage.get("outs", ())},
        datasets={name: _read_yaml(data / "resolved" / "datasets" / f"{name}.yaml") for name in params["datasets"]},
        experiments={
            name: _read_yaml(data / "resolved" / "experiments" / f"{name}.yaml") for name in params["experiments"]
        },
        validations={
            name: read_json(data / "validations" / f"{name}.json", remedy=REMEDY) for name in params["experiments"]
        },
        metrics=read_json(data / "reports" / "metrics.json", remedy=REMEDY),
        demo=read_json(DEMO, remedy=REMEDY),
    )


# Words


def told(settings: Mapping[str, Any]) -> dict[str, str]:
    """The file a configured class lies in, and the first sentence of that file."""
    path = Path("src", *settings["_target_"].split(".")[:-1]).with_suffix(".py")
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    return {"file": path.as_posix(), "name": path.stem, "text": " ".join(text.partition("\n\n")[0].split())}


def with_interval(value: float, interval: Sequence[float], decimals: int) -> str:
    """A number and its interval in words."""
    low, high = interval
    return f"{value:.{decimals}f} ({low:.{decimals}f} to {high:.{decimals}f})"


def settings_text(settings: Mapping[str, Any]) -> str:
    """A sub-tree of a configuration as YAML."""
    return yaml.safe_dump(dict(settings), sort_keys=False, width=100).rstrip()


# Cards


def split_rows(tasks: TaskDistribution, oracle: Mapping[str, float]) -> list[dict[str, str]]:
    """One row per split; the oracle's return where it was recorded."""
    return [
        {
            "split": split,
            "tasks": str(len(ids)),
            "purpose": SPLITS.get(split, "reported beside them"),
            "oracle": f"{oracle[split]:.2f}" if split in oracle else "",
        }
        for split, ids in tasks.splits().items()
    ]


def kind_row(kind: str, out: Mapping[str, Any], validation: Mapping[str, Any]) -> dict[str, Any]:
    """What a dataset's card tells of one kind of histories; numbers only where they were checked."""
    checked = validation.get(kind)
    return {
        "kind": kind,
        "text": KINDS[kind],
        "out": out,
        "content_hash": checked and checked["content_hash"],
        "numbers": checked
        and [
            f"{checked['num_histories']:,}",
            f"{checked['num_steps']:,}",
            f"{checked['mean_return_first_tenth']:.2f}",
            f"{checked['mean_return_last_tenth']:.2f}",
        ],
    }


def dataset_card(committed: Committed, dataset: str) -> dict[str, Any]:
    """What a dataset's card tells."""
    config, validation = committed.datasets[dataset], committed.validation(dataset)
    tasks: TaskDistribution = build(config["tasks"])
    collection = config["histories"]["collection"]
    kinds = [kind for kind in KINDS if kind == "learning" or f"data/histories/{dataset}/{kind}" in committed.outputs]
    oracle = validation.get("learning", {}).get("oracle_return", {})
    return {
        "dataset": dataset,
        "kinds": [kind_row(kind, committed.output(f"data/histories/{dataset}/{kind}"), validation) for kind in kinds],
        "selection": validation.get("learning", {}).get("selection"),
        "task": told(config["tasks"]),
        "source": told(config["sources"]),
        "num_episodes": config["sources"]["num_episodes"],
        "runs_per_task": collection["runs_per_task"],
        "seed": config["seed"],
        "settings": settings_text(
            {"tasks": config["tasks"], "sources": config["sources"], "histories": {"collection": collection}}
        ),
        "splits": split_rows(tasks, oracle),
        "columns": [(name, str(kind)) for name, kind in column_types(tasks.spec).items()],
        "spec": tasks.spec,
        "readers": [name for name, value in committed.params["experiments"].items() if value["dataset"] == dataset],
    }


def metric_rows(numbers: Mapping[str, Mapping[str, Any]]) -> list[dict[str, str]]:
    """One row per evaluated split."""
    return [
        {
            "split": split,
            "tasks": str(values["num_tasks"]),
            "lifetimes": str(values["num_lifetimes"]),
            **{f"episode {e}": f"{values['return_at'][e]:.2f}" for e in _EPISODES if e in values["return_at"]},
            "last ten episodes (95 %)": with_interval(values["final_return"], values["final_return_ci95"], 2),
            "of the oracle's (95 %)": with_interval(values["oracle_fraction"], values["oracle_fraction_ci95"], 3),
            "failed": f"{values['failed_lifetimes']:.1%}",
        }
        for split, values in numbers.items()
    ]


def checkpoint_card(committed: Committed, experiment: str, agent: str) -> dict[str, Any]:
    """What the card of one of the pipeline's checkpoints tells."""
    config = committed.experiments[experiment]
    folder = f"models/{experiment}/{agent}"
    tasks: TaskDistribution = build(config["tasks"])
    model: SequenceModel = build(config["models"], spec=tasks.spec)
    numbers = committed.metrics[experiment][agent]
    agent_settings = config["agents"][agent]
    kind = agent_settings["histories"]
    return {
        **_model_facts(folder, agent, config["models"], config["tasks"], tasks.spec),
        "kind": kind,
        "targets": agent_settings.get("targets", "taken"),
        "dataset": config["dataset"],
        "content_hash": None if kind is None else committed.validations[experiment][kind]["content_hash"],
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "num_updates": config["training"]["schedule"]["num_updates"],
        "keeps": agent_settings["keeps"],
        "seed": config["seed"],
        "settings": settings_text(
            {
                "tasks": config["tasks"],
                "models": config["models"],
                "training": config["training"],
                "histories": {"contexts": config["histories"]["contexts"]},
                "agents": {agent: agent_settings},
            }
        ),
        "out": committed.output(folder),
        "experiment": experiment,
        "metrics": metric_rows(numbers),
        "num_episodes": max(values["num_episodes"] for values in numbers.values()),
        "failed": numbers["held_out"]["failed_lifetimes"],
        "splits": split_rows(tasks, {split: values["oracle_return"] for split, values in numbers.items()}),
    }


def _model_facts(
    folder: str, agent: str, models: Mapping[str, Any], tasks: Mapping[str, Any], spec: TaskSpec
) -> dict[str, Any]:
    """What every checkpoint's card tells."""
    return {
        "folder": folder,
        "agent": agent,
        "demo": None,
        "method": METHODS.get(agent, f"the agent `{agent}`"),
        "model": told(models),
        "task": told(tasks),
        "context_length": models["context_length"],
        "spec": spec,
    }


def demo_card(committed: Committed) -> dict[str, Any]:
    """What the card of the packaged checkpoint tells, from its own ``model.json``."""
    demo, training = committed.demo, committed.demo["training"]
    experiment, agent = training["experiment"], training["agent"]
    tasks: TaskDistribution = build(training["tasks"])
    # A packaged checkpoint may be older than the pipeline's data.
    current = [
        checked["content_hash"]
        for validation in committed.validations.values()
        for checked in validation.values()
        if isinstance(checked, Mapping)
    ]
    ended = {name: dict(map(tuple, points)) for name, points in training["curves"].items()}
    own = f"models/{experiment}/{agent}"
    return {
        **_model_facts(DEMO.parent.as_posix(), agent, demo["architecture"], training["tasks"], tasks.spec),
        "demo": training,
        "experiment": experiment,
        "num_parameters": training["num_parameters"],
        "settings": settings_text({"tasks": training["tasks"], "models": demo["architecture"]}),
        "splits": split_rows(tasks, {}),
        "first": ended["validation_first_return"][training["selected_update"]],
        "final": ended["validation_final_return"][training["selected_update"]],
        "data_is_current": training["content_hash"] in current,
        "pipeline": card_name(own) if own in committed.outputs else None,
    }


def card_name(folder: str) -> str:
    """The card's file of a checkpoint: ``checkpoint_dark_room_ad.md`` for ``models/dark_room/ad``."""
    _, experiment, agent = PurePosixPath(folder).parts
    return f"checkpoint_{experiment}_{agent}.md"


def render(template: str, **values: Any) -> str:
    """Fills a Markdown template of `distillery.reports`; nothing is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("distillery.reports", "."),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(**values)


@contextlib.contextmanager
def _naming(name: str, *files: str | Path) -> Iterator[None]:
    """Turns a missing field into an error that names the card and the files it is made from."""
    try:
        yield
    except KeyError as error:
        raise ValueError(
            f"the card of {name} needs {error}, which is in none of {', '.join(map(str, files))}; {REMEDY}"
        ) from error


def make_cards(committed: Committed) -> dict[str, str]:
    """Every card, file name to content, and an index of them; writes nothing.

    Raises:
        ValueError: what is shipped and what is committed do not fit.
    """
    cards, rows = {}, []

    def add(card: str, template: str, name: str, text: str, values: Mapping[str, Any]) -> None:
        cards[card] = render(template, **values)
        rows.append({"file": card, "name": name, "text": text})

    for dataset in committed.params["datasets"]:
        name = f"data/histories/{dataset}"
        with _naming(name, "data/resolved", "data/validations"):
            values = dataset_card(committed, dataset)
            add(f"dataset_{dataset}.md", "card_dataset.md.j2", name, values["source"]["text"], values)
    for experiment in committed.params["experiments"]:
        for agent in committed.params["agents"]:
            name = f"models/{experiment}/{agent}"
            with _naming(name, "data/resolved", "data/validations", "data/reports/metrics.json"):
                values = checkpoint_card(committed, experiment, agent)
                add(card_name(name), "card_checkpoint.md.j2", name, f"{values['method']}.", values)
    with _naming(DEMO.parent.as_posix(), DEMO):
        values = demo_card(committed)
        add("checkpoint_demo.md", "card_checkpoint.md.j2", values["folder"], "What `make demo` plays.", values)
    return {**cards, "index.md": render("card_index.md.j2", rows=rows)}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args(arguments)
    try:
        cards = make_cards(read_committed())
        with whole_folder(FOLDER) as folder:
            for name, text in cards.items():
                (folder / name).write_text(text)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{len(cards)} files in {FOLDER}")


if __name__ == "__main__":
    main()
