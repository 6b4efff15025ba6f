"""What learned agents are held against: the source learning from scratch, random and oracle, on the same tasks.

python -m distillery.stages.baselines -cd data/resolved/experiments -cn dark_room
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from omegaconf import DictConfig

from distillery.core.lifetimes import BASELINES
from distillery.core.protocols import TaskDistribution, Tracker
from distillery.core.records import Lifetimes
from distillery.core.seeding import stream_seed
from distillery.evaluation.baselines import run_oracle, run_random, run_source
from distillery.evaluation.storage import write_evaluation
from distillery.stages.entry import build, evaluation_folder, stage
from distillery.stages.evaluated import evaluated_settings, evaluated_tasks, lifetimes_of
from distillery.stages.tracked import track_evaluation


def baseline_lifetimes(config: DictConfig, agent: str, tasks: TaskDistribution) -> dict[str, Lifetimes]:
    """The lifetimes of one of `BASELINES` on every evaluated split."""
    runners: dict[str, Callable[..., Lifetimes]] = {
        "source": partial(run_source, source=build(config.sources)),
        "random": run_random,
        "oracle": run_oracle,
    }
    lifetimes = {}
    for split in config.evaluation.splits:
        evaluation = lifetimes_of(config, split)
        size: dict[str, Any] = {"num_episodes": evaluation.num_episodes, "num_seeds": evaluation.num_seeds}
        size["device"] = config.runtime.device
        seed = stream_seed(config.seed, "evaluation", split)
        lifetimes[split] = runners[agent](tasks, evaluated_tasks(config, tasks, split), seed=seed, **size)
    return lifetimes


def write_baselines(config: DictConfig, agents: Sequence[str]) -> None:
    """Writes ``data/evaluations/<experiment>/<agent>`` for some of `BASELINES`."""
    tracker: Tracker = build(config.tracking)
    tracker.check()
    tasks: TaskDistribution = build(config.tasks)
    for agent in agents:
        folder = evaluation_folder(config, agent)
        summary = write_evaluation(
            folder,
            baseline_lifetimes(config, agent, tasks),
            tasks.oracle_returns(),
            agent=agent,
            weights=None,
            reference_fraction=config.evaluation.reference_fraction,
            settings=evaluated_settings(config),
        )
        print(f"{config.name}/{agent}: held-out return {summary['splits']['held_out']['final_return']:.2f}")
        track_evaluation(tracker, config, agent, folder, checkpoint=None, dataset=None)


def baselines(config: DictConfig) -> None:
    """Writes ``data/evaluations/<experiment>/{source,random,oracle}``."""
    write_baselines(config, BASELINES)


if __name__ == "__main__":
    stage(baselines)()
