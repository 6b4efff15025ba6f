"""A checkpoint acts, weights frozen, on held-out and on training tasks.

python -m distillery.stages.evaluate -cd data/resolved/experiments -cn dark_room agent=ad
"""

from pathlib import Path

from omegaconf import DictConfig

from distillery.core.protocols import SequenceModel, TaskDistribution, Tracker
from distillery.core.records import Lifetimes
from distillery.core.seeding import stream_seed
from distillery.evaluation.in_context import InContextEvaluation, weights_checksum
from distillery.evaluation.storage import REPORTED_SPLITS, write_evaluation
from distillery.stages.entry import (
    agent_settings,
    build,
    checkpoint_folder,
    evaluation_folder,
    histories_folder,
    stage,
)
from distillery.stages.tracked import track_evaluation
from distillery.stages.validate import require_same_tasks
from distillery.training.checkpoints import load_weights, read_checkpoint_info


def load_model(folder: Path, tasks: TaskDistribution) -> SequenceModel:
    """Builds the model a checkpoint describes and loads its weights.

    Raises:
        ValueError: the checkpoint is of tasks of another shape, or damaged.
    """
    info = read_checkpoint_info(folder)
    if info.spec != tasks.spec:
        raise ValueError(
            f"{folder} was trained for {info.spec} and the experiment's tasks are {tasks.spec}; train it again"
        )
    model: SequenceModel = build(info.architecture, spec=info.spec)
    load_weights(folder, model)
    return model


def evaluate(config: DictConfig) -> None:
    """Writes ``data/evaluations/<experiment>/<agent>``."""
    agent = agent_settings(config)
    tracker: Tracker = build(config.tracking)
    tracker.check()
    tasks: TaskDistribution = build(config.tasks)
    checkpoint = checkpoint_folder(config, config.agent)
    # Another split would report goals as held out that the checkpoint was trained on.
    training = read_checkpoint_info(checkpoint).training
    require_same_tasks(config, training["tasks"], what=f"{checkpoint} was trained")
    model = load_model(checkpoint, tasks).to(config.runtime.device)
    lifetimes: dict[str, Lifetimes] = {}
    for split in REPORTED_SPLITS:
        seeds = {} if split == "held_out" else {"num_seeds": config.evaluation.train_seeds}
        evaluation: InContextEvaluation = build(config.evaluation.lifetimes, **seeds)
        lifetimes[split] = evaluation.run(
            model,
            tasks,
            tasks.task_ids(split),
            seed=stream_seed(config.seed, "evaluation", split),
            device=config.runtime.device,
        )
    folder = evaluation_folder(config, config.agent)
    summary = write_evaluation(
        folder,
        lifetimes,
        tasks.oracle_returns(),
        agent=config.agent,
        weights=weights_checksum(model),
        training=training,
    )
    held_out = summary["splits"]["held_out"]
    print(
        f"{config.name}/{config.agent}: held-out return {held_out['final_return']:.2f} in the last ten episodes, "
        f"{held_out['oracle_fraction']:.3f} of the oracle; reference reached at {held_out['episodes_to_reference']}"
    )
    track_evaluation(
        tracker,
        config,
        config.agent,
        folder,
        checkpoint=checkpoint,
        dataset=histories_folder(config, agent.histories),
    )


if __name__ == "__main__":
    stage(evaluate)()
