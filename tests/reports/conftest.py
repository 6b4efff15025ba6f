"""A pipeline's outputs as the report finds them: real baselines, and agents woven from them."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from distillery.core.files import write_json
from distillery.core.protocols import TaskDistribution
from distillery.core.records import Lifetimes
from distillery.evaluation.baselines import run_oracle, run_random, run_source
from distillery.evaluation.metrics import REFERENCE_FRACTION
from distillery.evaluation.storage import write_evaluation
from distillery.sources.explorer import Explorer
from distillery.sources.q_learning import QLearning
from distillery.tasks.dark_room import DarkRoom

SOURCES = {"dark_room": QLearning(num_episodes=200), "dark_room_explorer": Explorer(num_episodes=20)}

ROOM = {
    "_target_": "distillery.tasks.dark_room.DarkRoom",
    "width": 9,
    "height": 9,
    "episode_steps": 20,
    "reward": "every_step",
    "start": "centre",
    "walls": "clip",
    "termination": "never",
    "num_action_permutations": 1,
    "num_validation": 8,
}


def woven(poor: Lifetimes, good: Lifetimes, share: np.ndarray, seed: int) -> Lifetimes:
    """Lifetimes whose episode n is the good one with probability share[n], else the poor one."""
    pick = np.random.default_rng(seed).random(poor.returns.shape) < share
    return Lifetimes(
        poor.task_ids,
        poor.seeds,
        np.where(pick, good.returns, poor.returns),
        None if poor.observations is None else np.where(pick[:, :, None, None], good.observations, poor.observations),
        np.where(pick[:, :, None], good.actions, poor.actions),
        np.where(pick, good.num_steps, poor.num_steps),
    )


def agents_lifetimes(
    tasks: TaskDistribution,
    source,
    *,
    num_episodes: int,
    num_seeds: int,
    speed: float,
    splits: tuple[str, ...] = ("held_out", "train"),
) -> dict:
    """Agent to split to lifetimes."""
    lifetimes: dict[str, dict[str, Lifetimes]] = {agent: {} for agent in ("ad", "ed", "source", "random", "oracle")}
    size = {"num_episodes": num_episodes, "num_seeds": num_seeds}
    share = 0.97 / (1 + np.exp(-(np.arange(num_episodes) - speed) / (0.4 * speed)))
    for seed, split in enumerate(splits, start=1):
        ids = tasks.task_ids(split)
        random, oracle = run_random(tasks, ids, seed=seed, **size), run_oracle(tasks, ids, seed=seed, **size)
        lifetimes["random"][split], lifetimes["oracle"][split] = random, oracle
        lifetimes["source"][split] = run_source(tasks, ids, source=source, seed=seed, **size)
        lifetimes["ad"][split] = woven(random, oracle, share, seed)
        lifetimes["ed"][split] = woven(random, oracle, np.full(num_episodes, 0.04), seed)
    return lifetimes


def training(seed: int, level: float) -> dict:
    """What a checkpoint says of its training."""
    noise = np.random.default_rng(seed)
    updates = range(10, 601, 10)
    loss = [[u, float(0.35 + 1.2 * np.exp(-u / 120) + 0.02 * noise.random())] for u in updates]
    validations = range(100, 601, 100)
    final = [[u, float(level * (1 - np.exp(-u / 150)) + 0.3 * noise.random())] for u in validations]
    return {
        "content_hash": "0" * 64,
        "weights": f"{seed:064x}",
        "num_parameters": 201_221,
        "updates_done": 600,
        "selected_update": 500,
        "validation_score": 0.91,
        "curves": {"loss": loss, "validation_final_return": final, "validation_score": final},
    }


def write_experiment(
    root: Path,
    experiment: str,
    *,
    tasks: TaskDistribution,
    settings: dict,
    source,
    number: int = 0,
    num_episodes: int = 30,
    num_seeds: int = 2,
    speed: float = 8.0,
    splits: tuple[str, ...] = ("held_out", "train"),
    reference_fraction: float = REFERENCE_FRACTION,
) -> dict:
    """Writes under `root` whatever the report reads of one experiment; returns its lifetimes by agent and split."""
    module = type(source).__module__.rpartition(".")[2]
    family = settings["_target_"].split(".")[-2]
    dataset, oracle = f"{family}-{module}", tasks.oracle_returns()
    resolved = {
        "defaults": ["_self_"],
        "name": experiment,
        "dataset": dataset,
        "seed": 0,
        "runtime": {"device": "cpu"},
        "tasks": dict(settings),
        "sources": {
            "_target_": f"distillery.sources.{module}.{type(source).__name__}",
            "num_episodes": source.num_episodes,
        },
        "models": {"_target_": "distillery.models.causal_transformer.CausalTransformer"},
        "evaluation": {
            "splits": list(splits),
            "prompt": {"oracle_fraction": None},
            "reference_fraction": reference_fraction,
        },
    }
    path = root / "data/resolved/experiments" / f"{experiment}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(resolved, sort_keys=False))
    lived = agents_lifetimes(tasks, source, num_episodes=num_episodes, num_seeds=num_seeds, speed=speed, splits=splits)
    for agent, by_split in lived.items():
        folder = root / "data/evaluations" / experiment / agent
        level = {"ad": 15.5, "ed": 1.0}.get(agent)
        told = None if level is None else training(number, level)
        write_evaluation(
            folder,
            by_split,
            oracle,
            agent=agent,
            weights=None,
            training=told,
            reference_fraction=reference_fraction,
        )
    write_dataset(root, experiment, dataset, tasks, source.num_episodes)
    return lived


def write_params(root: Path, experiments: list[str]) -> None:
    """Writes what the report reads of params.yaml."""
    params = {
        "datasets": {},
        "experiments": {name: {"dataset": name, "groups": {}, "set": {}} for name in experiments},
        "agents": ["ad", "ed"],
    }
    (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


def write_pipeline(root: Path, *, num_episodes: int = 30, num_seeds: int = 2) -> dict:
    """Writes under `root` whatever the report reads; returns the lifetimes by experiment, agent and split."""
    made = {}
    for number, (experiment, source) in enumerate(SOURCES.items()):
        made[experiment] = write_experiment(
            root,
            experiment,
            tasks=DarkRoom(),
            settings=ROOM,
            source=source,
            number=number,
            num_episodes=num_episodes,
            num_seeds=num_seeds,
            speed=(8.0, 2.0)[number],
        )
    write_params(root, list(SOURCES))
    return made


def write_dataset(root: Path, experiment: str, dataset: str, tasks: TaskDistribution, num_episodes: int) -> None:
    """Validation of histories that are not there."""
    splits = tasks.splits()
    selection = {"rule": "mean return of the last tenth >= 0.5 x the oracle's", "num_kept": 2270, "num_dropped": 10}
    oracle = tasks.oracle_returns()
    checked = {
        "content_hash": "ab12" * 16,
        "num_histories": 2270,
        "num_steps": 2270 * 20 * num_episodes,
        "mean_return_first_tenth": 2.0,
        "mean_return_last_tenth": 16.5,
        "selection": selection,
        "oracle_return": {split: float(oracle[ids].mean()) for split, ids in splits.items()},
    }
    report = {"dataset": dataset, "learning": checked, "expert": {**checked, "mean_return_first_tenth": 16.5}}
    write_json(root / "data/validations" / f"{experiment}.json", report)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory) -> tuple[Path, dict]:
    """A folder with a pipeline's outputs and a report, for tests that only read."""
    root = tmp_path_factory.mktemp("pipeline")
    return root, write_pipeline(root)
