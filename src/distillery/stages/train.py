"""Histories and a model become a checkpoint, selected by in-context return on validation tasks.

python -m distillery.stages.train -cd data/resolved/experiments -cn dark_room agent=ed
"""

import contextlib
import hashlib
import json
import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from distillery.core.protocols import SequenceModel, TaskDistribution, Tracker
from distillery.core.seeding import stream_seed
from distillery.evaluation.in_context import InContextEvaluation, weights_checksum
from distillery.evaluation.metrics import validation_score
from distillery.histories.contexts import Contexts
from distillery.histories.episodes import relabel
from distillery.histories.reader import open_packed
from distillery.layers.precision import slow_bfloat16
from distillery.stages.entry import (
    agent_settings,
    build,
    checkpoint_folder,
    code_hash,
    histories_folder,
    plain,
    scratch,
    stage,
)
from distillery.stages.resolve import check_agent, check_window
from distillery.stages.validate import require_own_histories
from distillery.training.checkpoints import CheckpointInfo, save_checkpoint
from distillery.training.distributed import Workers, join_workers, leave_workers
from distillery.training.loop import Progress, Schedule, fit

logger = logging.getLogger(__name__)

# Of the runtime, what a training does not go on with another of: its rounding would show in every number.
_ROUNDING = ("device", "num_threads", "bfloat16", "compile", "fused")
# What a training's result depends on beside its configuration and data.
_CODE = ("core", "evaluation", "histories", "layers", "models", "tasks", "training")


def fingerprint(config: DictConfig, content_hash: str | None, num_processes: int = 1) -> str:
    """Hex SHA-256 of everything that decides a training's result: settings, data, seed and code.

    Among as many processes as there are, what is learned from histories is divided, and what a learner plays is not.
    """
    digest = hashlib.sha256()
    settings: dict[str, Any] = {key: plain(config[key]) for key in ("tasks", "models", "training")}
    settings |= {"contexts": plain(config.histories.contexts), "seed": config.seed, "data": content_hash}
    settings["runtime"] = {name: config.runtime[name] for name in _ROUNDING}
    settings["players"] = num_processes if content_hash is None else None
    settings |= {"agent": plain(agent_settings(config)), "torch": str(torch.__version__)}
    digest.update(json.dumps(settings, sort_keys=True).encode())
    digest.update(code_hash(*_CODE).encode())
    digest.update(Path(__file__).read_bytes())
    return digest.hexdigest()


def validation(
    config: DictConfig, tasks: TaskDistribution, device: str
) -> Callable[[SequenceModel], dict[str, float]]:
    """Scores a model on validation tasks, the same lifetimes' seeds each time."""
    lifetimes: InContextEvaluation = build(config.training.validation)
    seed = stream_seed(config.seed, "validation")
    task_ids, oracle = tasks.task_ids("validation"), tasks.oracle_returns()

    def validate(model: SequenceModel) -> dict[str, float]:
        result = lifetimes.run(model, tasks, task_ids, seed=seed, device=device)
        return dict(validation_score(result, oracle))

    return validate


def history_contexts(config: DictConfig, tasks: TaskDistribution) -> tuple[Contexts, str]:
    """What an agent that reads histories is trained on, and its content hash."""
    agent = agent_settings(config)
    metadata, histories = open_packed(histories_folder(config, agent.histories), scratch("packed"))
    require_own_histories(config, metadata, agent.histories, tasks)
    targets = relabel(histories, metadata.spec, tasks.expert_actions) if agent.targets == "expert" else None
    settings = plain(config.histories.contexts)
    seed = stream_seed(config.seed, "contexts")
    return Contexts(histories, **settings, targets=targets, seed=seed), metadata.content_hash


def train_model(
    config: DictConfig,
    *,
    states: Path | None = None,
    on_metrics: Callable[[dict[str, float], int], None] = lambda metrics, update: None,
    workers: Workers | None = None,
) -> tuple[SequenceModel, Progress, str | None]:
    """Trains one agent; returns the model with its best weights, the progress, and the data's content hash, if any.

    Args:
        config: the experiment's.
        states: folder of training states, a file per fingerprint; None keeps none.
        on_metrics: see `distillery.training.loop.fit`.
        workers: the processes that train together.
    """
    check_agent(config)
    check_window(config)
    runtime, workers = config.runtime, workers or Workers()
    agent = agent_settings(config)
    if agent.histories is not None:
        workers.check_batch_size(config.histories.contexts.batch_size)
    tasks: TaskDistribution = build(config.tasks)
    contexts, content_hash = (None, None) if agent.histories is None else history_contexts(config, tasks)
    torch.manual_seed(stream_seed(config.seed, "model"))
    model: SequenceModel = build(config.models, spec=tasks.spec)
    device = workers.device(runtime.device)
    schedule: Schedule = build(
        config.training.schedule, patience_validations=agent.patience_validations, keeps=agent.keeps
    )
    # A learner without histories makes its own experience on training tasks.
    plays = {} if contexts is not None else {"tasks": tasks, "seed": stream_seed(config.seed, "play")}
    learner = build(
        config.training.learner,
        model=model,
        num_updates=schedule.num_updates,
        device=device,
        workers=workers,
        bfloat16=runtime.bfloat16,
        compile=runtime.compile,
        fused=runtime.fused,
        activation_checkpointing=runtime.activation_checkpointing,
        fsdp=runtime.fsdp,
        **plays,
    )
    identity = fingerprint(config, content_hash, workers.count)
    progress = fit(
        learner,
        learner.play if contexts is None else partial(contexts.batch, rank=workers.rank, count=workers.count),
        schedule,
        validation(config, tasks, device),
        state_file=None if states is None else states / f"{identity[:16]}.pt",
        fingerprint=identity,
        on_metrics=on_metrics,
        description=f"training {config.name}/{config.agent}",
        show_progress=runtime.progress,
        seed=config.seed,
        workers=workers,
    )
    assert progress.best_weights is not None  # the last update is always validated
    model = learner.whole_model()
    model.load_state_dict(progress.best_weights)
    return model, progress, content_hash


def forget_states(states: Path, *, days: float = 14.0) -> None:
    """Deletes training states that were not touched for some days."""
    for file in states.glob("*.pt"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - file.stat().st_mtime > days * 86400:
                file.unlink()


def train(config: DictConfig) -> None:
    """Writes ``models/<experiment>/<agent>``."""
    tracker: Tracker = build(config.tracking)
    workers = join_workers(config.runtime.device)
    if workers.rank == 0:
        tracker.check()
        if warning := slow_bfloat16(config.runtime.device, enabled=config.runtime.bfloat16):
            logger.warning(warning)
    folder = checkpoint_folder(config, config.agent)
    states = scratch("training")
    model, progress, content_hash = train_model(config, states=states, workers=workers)
    leave_workers(workers)
    if workers.rank > 0:
        return
    summary: dict[str, Any] = {
        "experiment": config.name,
        "agent": config.agent,
        "dataset": config.dataset,
        "tasks": plain(config.tasks),
        "content_hash": content_hash,
        "seed": config.seed,
        "weights": weights_checksum(model),
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "updates_done": progress.update,
        "selected_update": progress.best_update,
        "validation_score": progress.best_score,
        "runtime": plain(config.runtime),
        "curves": progress.curves,
    }
    save_checkpoint(folder, model, CheckpointInfo(plain(config.models), model.spec, summary))
    # The finished state stays for a while: should the stage be stopped before its output is in DVC's cache, the next
    # attempt finds the training done.
    forget_states(states)
    print(
        f"{config.name}/{config.agent}: {progress.update} updates, selected {progress.best_update} "
        f"(validation {progress.best_score:.3f})"
    )
    with tracker.start(
        "train",
        f"{config.name}/{config.agent}",
        config=plain(config),
        tags={"experiment": config.name, "agent": config.agent},
    ) as run:
        if agent_settings(config).histories is not None:
            run.log_dataset(histories_folder(config, agent_settings(config).histories), context="training")
        for name, points in progress.curves.items():
            for update, value in points:
                run.log({f"train/{name}": value}, step=update)
        run.log_file(folder / "model.json")


if __name__ == "__main__":
    stage(train)()
