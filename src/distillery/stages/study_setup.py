"""How a study's results were made, in words, from the configuration that made them."""

from collections.abc import Mapping
from typing import Any

_WINDOWED = "CausalTransformer"


def setup_sentences(config: Mapping[str, Any]) -> list[str]:
    """Model, training, histories and evaluation of one composed run.

    Args:
        config: of an agent that trains, as `distillery.stages.study_units.compose_variant` composes it.
    """
    agent = config["agents"][config["agent"]]
    parts = [_model(config), _training(config)]
    if agent["histories"] is not None:
        parts.append(_histories(config))
    return [*parts, _evaluation(config)]


def _class_name(node: Mapping[str, Any]) -> str:
    return str(node["_target_"]).rpartition(".")[2]


def _episode_steps(config: Mapping[str, Any]) -> int | None:
    tasks = config["tasks"]
    return tasks.get("episode_steps") or tasks.get("num_pulls")


def _in_episodes(config: Mapping[str, Any], num_steps: int) -> str:
    """A number of steps, and how many episodes that is."""
    steps = _episode_steps(config)
    if steps is None or steps > num_steps:
        return f"{num_steps} steps"
    return f"{num_steps} steps ({num_steps / steps:.3g} episode{'s' if num_steps != steps else ''})"


def _model(config: Mapping[str, Any]) -> str:
    model = config["models"]
    told = f"Model: {_class_name(model)}, {model['num_layers']} layer{'s' if model['num_layers'] > 1 else ''}"
    told += f" of width {model['width'] if 'width' in model else model['hidden_size']}"
    if _class_name(model) == _WINDOWED and model["positions"] == "absolute":
        told += f"; every action is computed afresh from the last {_in_episodes(config, model['context_length'])}"
    elif _class_name(model) == _WINDOWED:
        window, layers = model["context_length"], model["num_layers"]
        # A layer's window holds the step itself and what came before.
        reach = layers * (window - 1) + 1
        told += f"; each layer sees {_in_episodes(config, window)}"
        if layers > 1:
            told += f", so what comes through all of them is at most {_in_episodes(config, reach)} old"
    return told + "."


def _training(config: Mapping[str, Any]) -> str:
    schedule, learner = config["training"]["schedule"], config["training"]["learner"]
    if "batch_tasks" in learner:
        episodes = learner["episodes_per_trial"]
        steps = _episode_steps(config)
        told = f"{schedule['num_updates']} updates of {learner['batch_tasks']} trials of {episodes} episode"
        told += "s" if episodes > 1 else ""
        if steps is not None:
            total = schedule["num_updates"] * learner["batch_tasks"] * episodes * steps
            told += f", {_in_millions(total)} steps"
        return f"Training: {told}."
    contexts = config["histories"]["contexts"]
    total = schedule["num_updates"] * contexts["batch_size"] * contexts["sequence_length"]
    return (
        f"Training: {schedule['num_updates']} updates of {contexts['batch_size']} sequences of "
        f"{_in_episodes(config, contexts['sequence_length'])}, {_in_millions(total)} steps; of the checkpoints at "
        f"every {schedule['validate_every_updates']} updates the one that does best in context on validation tasks."
    )


def _in_millions(number: int) -> str:
    return f"{number / 1e6:.3g} million"


def _histories(config: Mapping[str, Any]) -> str:
    collection, contexts = config["histories"]["collection"], config["histories"]["contexts"]
    told = f"Histories: {_class_name(config['sources'])}, {collection['runs_per_task']} run"
    told += f"{'s' if collection['runs_per_task'] > 1 else ''} a training task"
    every = contexts["keep_every_episode"]
    if every > 1:
        told += f", every {every}th episode kept"
    least = collection["selection"]["min_final_fraction"]
    if least is not None:
        told += f"; runs that end below {least:g} of the oracle are left out, which the paper does not say of its own"
    return f"{told}."


def _evaluation(config: Mapping[str, Any]) -> str:
    lifetimes, tasks = config["evaluation"]["lifetimes"], config["tasks"]
    chosen = "most probable" if lifetimes["greedy"] else "sampled"
    lived = f"{lifetimes['num_seeds']} lifetime{'s' if lifetimes['num_seeds'] > 1 else ''}"
    return (
        f"Evaluation: {lived} of {lifetimes['num_episodes']} episode{'s' if lifetimes['num_episodes'] > 1 else ''} on "
        f"each of {tasks['num_held_out']} held-out tasks, {chosen} actions, weights frozen."
    )
