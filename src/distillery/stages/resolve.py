"""Composes params.yaml with conf/ into data/resolved/, and refuses what could not run, before any work is done.

python -m distillery.stages.resolve datasets dark_room-q_learning
python -m distillery.stages.resolve experiments dark_room
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from distillery.core.files import whole_file
from distillery.core.protocols import TaskDistribution
from distillery.core.seeding import stream_seed
from distillery.histories.contexts import check_context_settings, check_shuffling
from distillery.histories.format import KINDS
from distillery.stages.entry import agent_settings, build, class_of, plain

# How a resolved file behaves as a Hydra primary configuration: no folders of its own, logs to the terminal.
HYDRA_DEFAULTS = [{"override hydra/job_logging": "stdout"}, "_self_"]
HYDRA_NODE = {"run": {"dir": "."}, "output_subdir": None}


def load_params(path: Path = Path("params.yaml")) -> dict[str, Any]:
    """Reads params.yaml.

    Raises:
        ValueError: missing or not the expected mapping.
    """
    try:
        # YAML 1.2, in which 1e-05, as DVC writes it, is a number.
        params = YAML(typ="safe").load(path.read_text())
    except (FileNotFoundError, YAMLError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    for section in ("datasets", "experiments"):
        if not isinstance(params, dict) or not isinstance(params.get(section), dict):
            raise ValueError(f"{path} must hold a mapping '{section}' from names to groups and set")
    return params


def compose_entry(params: dict[str, Any], section: str, name: str) -> DictConfig:
    """Composes one dataset or experiment.

    Args:
        params: the content of params.yaml.
        section: `datasets` or `experiments`.
        name: of the entry.

    Raises:
        ValueError: unknown entry, unknown group choice, or a changed key that does not exist.
    """
    entries = params[section]
    if name not in entries:
        raise ValueError(f"params.yaml has no {section} entry '{name}'; it has {', '.join(entries)}")
    layers = [entries[name] or {}]
    dataset = name
    if section == "experiments":
        dataset = str(layers[0].get("dataset"))
        if dataset not in params["datasets"]:
            raise ValueError(
                f"experiment '{name}' names the dataset '{dataset}', which params.yaml does not define; it defines "
                f"{', '.join(params['datasets'])}"
            )
        layers.insert(0, params["datasets"][dataset] or {})
    unknown = {key for layer in layers for key in layer} - {"dataset", "groups", "set"}
    if unknown:
        raise ValueError(
            f"{section} '{name}' in params.yaml has unknown keys {sorted(unknown)}; use dataset, groups, set"
        )
    groups: dict[str, Any] = {}
    for layer in layers:
        groups.update(layer.get("groups") or {})
    try:
        GlobalHydra.instance().clear()
        with initialize_config_module("distillery.conf", version_base="1.3"):
            config = compose("config", [f"{group}={choice}" for group, choice in groups.items()])
        OmegaConf.set_struct(config, True)
        for layer in layers:
            config.merge_with(layer.get("set") or {})
        config.merge_with({"dataset": dataset, "name": name})
        OmegaConf.resolve(config)
    except (HydraException, OmegaConfBaseException) as error:
        text = str(error).strip().splitlines()[0]
        raise ValueError(f"{section} '{name}' in params.yaml cannot be composed: {text}") from error
    if section == "experiments":
        _require_its_dataset(config, compose_entry(params, "datasets", dataset))
    return config


def _require_its_dataset(experiment: DictConfig, dataset: DictConfig) -> None:
    """Refuses an experiment that changes what its histories were collected with.

    Raises:
        ValueError: naming the sub-trees that differ.
    """
    for path in ("tasks", "sources", "histories.collection"):
        if OmegaConf.select(experiment, path) != OmegaConf.select(dataset, path):
            raise ValueError(
                f"experiment '{experiment.name}' changes '{path}', which its dataset '{dataset.dataset}' was "
                "collected with; change it under datasets in params.yaml, or define a dataset of its own"
            )


def check(config: DictConfig) -> None:
    """Builds everything that is cheap to build, so that a bad value is refused before any work.

    Raises:
        ValueError: naming the value and the remedy.
    """
    tasks, source = build(config.tasks), build(config.sources)
    check_oracle(tasks)
    build(config.histories.collection.selection)
    for name, agent in config.agents.items():
        if agent.histories is not None and agent.histories not in KINDS:
            raise ValueError(
                f"agents.{name}.histories must be null or one of {', '.join(KINDS)}, got {agent.histories!r}"
            )
        build(config.training.schedule, patience_validations=agent.patience_validations, keeps=agent.keeps)
    for name in ("runs_per_task", "learners_per_shard"):
        count = config.histories.collection[name]
        if count < 1:
            raise ValueError(f"histories.collection.{name} must be at least 1, got {count}")
    build(config.training.validation)
    build(config.evaluation.lifetimes)
    check_learner(config, tasks)
    stream_seed(config.seed)
    agent_settings(config)
    try:
        torch.device(config.runtime.device)
    except RuntimeError as error:
        raise ValueError(f"runtime.device={config.runtime.device}: {str(error).splitlines()[0]}") from error
    contexts = config.histories.contexts
    check_context_settings(**plain(contexts))
    kept_episodes = -(-source.num_episodes // contexts.keep_every_episode)
    check_shuffling(contexts.episode_order, kept_episodes)
    longest = kept_episodes * tasks.spec.episode_steps
    if contexts.sequence_length > longest:
        raise ValueError(
            f"histories.contexts.sequence_length={contexts.sequence_length} is longer than a history: "
            f"{source.num_episodes} episodes of {tasks.spec.episode_steps} steps, every "
            f"{contexts.keep_every_episode}-th kept, are {longest} steps; lower sequence_length or "
            "keep_every_episode, or raise sources.num_episodes"
        )
    check_window(config)
    check_evaluation(config, tasks)


def check_oracle(tasks: TaskDistribution) -> None:
    """Refuses tasks of which nothing can be gained, whose scores would be no numbers.

    Raises:
        ValueError: naming some of them.
    """
    oracle = tasks.oracle_returns()
    hopeless = [int(task) for ids in tasks.splits().values() for task in ids if not oracle[task] > 0]
    if hopeless:
        raise ValueError(
            f"the oracle gains nothing in {len(hopeless)} tasks, so that no return can be held against it: task_id "
            f"{', '.join(map(str, hopeless[:5]))}{', ...' if len(hopeless) > 5 else ''}; raise tasks.episode_steps"
        )


def check_evaluation(config: DictConfig, tasks: TaskDistribution) -> None:
    """Refuses splits, counts and levels that no evaluation could have.

    Raises:
        ValueError: naming the value.
    """
    evaluation = config.evaluation
    for name in ("train_seeds", "max_tasks"):
        if evaluation[name] is not None and evaluation[name] < 1:
            raise ValueError(f"evaluation.{name} must be at least 1, got {evaluation[name]}")
    if not 0.0 < evaluation.reference_fraction <= 1.0:
        raise ValueError(
            f"evaluation.reference_fraction must be above 0 and at most 1, got {evaluation.reference_fraction}"
        )
    known = tasks.splits()
    for split in evaluation.splits:
        if split not in known:
            raise ValueError(f"evaluation.splits names '{split}'; the tasks have {', '.join(known)}")
    if "held_out" not in evaluation.splits:
        raise ValueError(f"evaluation.splits must hold held_out, which is what is reported; got {evaluation.splits}")


def check_learner(config: DictConfig, tasks: TaskDistribution) -> None:
    """Builds the model and its learner, and refuses a learner that does not fit the agent.

    Raises:
        ValueError: see `check_agent`; or a setting is out of range.
    """
    plays = check_agent(config)
    model = build(config.models, spec=tasks.spec)
    settings = {"tasks": tasks, "seed": 0} if plays else {}
    build(config.training.learner, model=model, num_updates=config.training.schedule.num_updates, **settings)


def check_agent(config: DictConfig) -> bool:
    """Refuses a learner that does not fit the agent; returns whether it plays for itself.

    Raises:
        ValueError: the agent reads histories and the learner plays, or the other way round.
    """
    plays: bool = getattr(class_of(config.training.learner), "plays", False)
    reads = agent_settings(config).histories is not None
    if agent_settings(config).histories == "expert" and not config.histories.collection.expert:
        raise ValueError(
            f"agent '{config.agent}' reads expert histories, which histories.collection.expert=false does not collect"
        )
    if plays == reads:
        raise ValueError(
            f"agent '{config.agent}' {'reads' if reads else 'reads no'} histories, but training.learner "
            f"{config.training.learner._target_} {'plays for itself' if plays else 'needs some'}; choose "
            f"training={'supervised' if reads else 'rl2'}, or another agent"
        )
    return plays


def check_window(config: DictConfig) -> None:
    """Refuses an attention window that training never fills.

    Raises:
        ValueError: the window and the training sequences do not fit.
    """
    if agent_settings(config).histories is None or not class_of(config.models).has_window:
        return
    window, sequence = config.models.context_length, config.histories.contexts.sequence_length
    if window > sequence:
        raise ValueError(
            f"models.context_length={window} is longer than the training sequences "
            f"(histories.contexts.sequence_length={sequence}), so distances beyond them would never be trained; "
            "raise sequence_length or lower context_length"
        )
    if config.models.get("positions") == "absolute" and window != sequence:
        raise ValueError(
            f"absolute positions are trained for one window only: models.context_length={window} must equal "
            f"histories.contexts.sequence_length={sequence}, or choose models.positions=rotary"
        )


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("section", choices=["datasets", "experiments"])
    parser.add_argument("name")
    options = parser.parse_args(arguments)
    try:
        config = compose_entry(load_params(), options.section, options.name)
        check(config)
    except ValueError as error:
        sys.exit(f"error: {error}")
    path = Path("data", "resolved", options.section, f"{options.name}.yaml")
    settings = plain(config)
    if settings["checkpoint"] == settings["name"]:
        # Who gives the experiment another name on a command line trains another checkpoint.
        settings["checkpoint"] = "${name}"
    text = yaml.safe_dump({"defaults": HYDRA_DEFAULTS, "hydra": HYDRA_NODE, **settings}, sort_keys=False, width=119)
    with whole_file(path) as temporary:
        temporary.write_text(
            f"# Written by distillery.stages.resolve from params.yaml and conf/; change those instead.\n{text}"
        )


if __name__ == "__main__":
    main()
