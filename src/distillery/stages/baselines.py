"""What learned agents are held against: the source learning from scratch, random and oracle, on the same tasks.

python -m distillery.stages.baselines -cd data/resolved/experiments -cn dark_room
"""

from typing import Any

from omegaconf import DictConfig

from distillery.core.protocols import Source, TaskDistribution, Tracker
from distillery.core.seeding import stream_seed
from distillery.evaluation.baselines import run_oracle, run_random, run_source
from distillery.evaluation.in_context import InContextEvaluation
from distillery.evaluation.storage import REPORTED_SPLITS, write_evaluation
from distillery.stages.entry import build, evaluation_folder, stage
from distillery.stages.tracked import track_evaluation


def baselines(config: DictConfig) -> None:
    """Writes ``data/evaluations/<experiment>/{source,random,oracle}``."""
    tracker: Tracker = build(config.tracking)
    tracker.check()
    tasks: TaskDistribution = build(config.tasks)
    source: Source = build(config.sources)
    lifetimes: dict[str, dict] = {"source": {}, "random": {}, "oracle": {}}
    for split in REPORTED_SPLITS:
        seeds = {} if split == "held_out" else {"num_seeds": config.evaluation.train_seeds}
        evaluation: InContextEvaluation = build(config.evaluation.lifetimes, **seeds)
        size: dict[str, Any] = {"num_episodes": evaluation.num_episodes, "num_seeds": evaluation.num_seeds}
        where = (tasks, tasks.task_ids(split))
        seed = stream_seed(config.seed, "evaluation", split)
        lifetimes["source"][split] = run_source(*where, source=source, seed=seed, **size)
        lifetimes["random"][split] = run_random(*where, seed=seed, **size)
        lifetimes["oracle"][split] = run_oracle(*where, seed=seed, **size)
    for agent, by_split in lifetimes.items():
        folder = evaluation_folder(config, agent)
        summary = write_evaluation(folder, by_split, tasks.oracle_returns(), agent=agent, weights=None)
        print(f"{config.name}/{agent}: held-out return {summary['splits']['held_out']['final_return']:.2f}")
        track_evaluation(tracker, config, agent, folder, checkpoint=None, dataset=None)


if __name__ == "__main__":
    stage(baselines)()
