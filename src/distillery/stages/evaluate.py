"""A checkpoint acts, weights frozen, on held-out and on training tasks.

python -m distillery.stages.evaluate -cd data/resolved/experiments -cn dark_room agent=ad
"""

from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from distillery.core.lifetimes import FINAL_EPISODES
from distillery.core.protocols import SequenceModel, Source, TaskDistribution, Tracker
from distillery.core.seeding import stream_seed
from distillery.evaluation.in_context import weights_checksum
from distillery.evaluation.prompting import Prompt, prompt_at_fraction
from distillery.evaluation.storage import write_evaluation
from distillery.stages.entry import (
    agent_settings,
    build,
    checkpoint_folder,
    evaluation_folder,
    histories_folder,
    stage,
)
from distillery.stages.evaluated import evaluated_settings, evaluated_tasks, lifetimes_of
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


def prompt_of(
    config: DictConfig, tasks: TaskDistribution, task_ids: np.ndarray, num_seeds: int, num_steps: int
) -> Prompt | None:
    """What the contexts hold before the first episode, if anything: steps of the source on the same tasks."""
    prompt = config.evaluation.prompt
    if prompt.oracle_fraction is None:
        return None
    source: Source = build(config.sources)
    ids = np.repeat(task_ids, prompt.num_streams)
    learners = source.start(tasks, ids, seed=stream_seed(config.seed, "prompt"), device=config.runtime.device)
    return prompt_at_fraction(
        [learners.episode() for _ in range(source.num_episodes)],
        learners.task_ids,
        tasks.spec,
        task_ids=task_ids,
        num_seeds=num_seeds,
        oracle_returns=tasks.oracle_returns(),
        fraction=prompt.oracle_fraction,
        num_steps=num_steps,
    )


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
    lifetimes, prompt_levels, oracle = {}, {}, tasks.oracle_returns()
    for split in config.evaluation.splits:
        evaluation, task_ids = lifetimes_of(config, split), evaluated_tasks(config, tasks, split)
        prompt = prompt_of(config, tasks, task_ids, evaluation.num_seeds, model.context_length)
        if prompt is not None and prompt.mean_returns is not None:
            prompt_levels[split] = prompt.mean_returns / np.repeat(oracle[task_ids], evaluation.num_seeds)
        lifetimes[split] = evaluation.run(
            model,
            tasks,
            task_ids,
            seed=stream_seed(config.seed, "evaluation", split),
            device=config.runtime.device,
            prompt=prompt,
        )
    folder = evaluation_folder(config, config.agent)
    summary = write_evaluation(
        folder,
        lifetimes,
        oracle,
        agent=config.agent,
        weights=weights_checksum(model),
        training=training,
        reference_fraction=config.evaluation.reference_fraction,
        prompt_levels=prompt_levels,
        settings=evaluated_settings(config),
    )
    held_out = summary["splits"]["held_out"]
    reached, last = held_out["episodes_to_reference"], min(FINAL_EPISODES, held_out["num_episodes"])
    told = "never reached" if reached is None else f"reached at episode {reached}"
    level = f"; the reference level of {held_out['reference_fraction']:g} of it is {told}"
    print(
        f"{config.name}/{config.agent}: held-out return {held_out['final_return']:.2f} in the last "
        f"{f'{last} episodes' if last > 1 else 'episode'}, {held_out['oracle_fraction']:.3f} of the oracle"
        f"{level if last == FINAL_EPISODES else ''}"  # of shorter lifetimes it cannot be told
    )
    dataset = None if agent.histories is None else histories_folder(config, agent.histories)
    track_evaluation(tracker, config, config.agent, folder, checkpoint=checkpoint, dataset=dataset)


if __name__ == "__main__":
    stage(evaluate)()
