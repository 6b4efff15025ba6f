"""A pipeline's outputs as the report finds them: real baselines, and agents woven from them."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from distillery.core.files import write_json
from distillery.core.records import Lifetimes
from distillery.evaluation.baselines import run_oracle, run_random, run_source
from distillery.evaluation.storage import write_evaluation
from distillery.histories.format import Metadata, Shard
from distillery.sources.explorer import Explorer
from distillery.sources.q_learning import QLearning
from distillery.tasks.dark_room import DarkRoom

SOURCES = {
    "dark_room": ("q_learning", "QLearning", QLearning(num_episodes=200)),
    "dark_room_explorer": ("explorer", "Explorer", Explorer(num_episodes=20)),
}
SPLIT_SEEDS = {"held_out": 1, "train": 2}

ROOM = {
    "_target_": "distillery.tasks.dark_room.DarkRoom",
    "width": 9,
    "height": 9,
    "episode_steps": 20,
    "reward": "every_step",
    "start": "centre",
    "walls": "clip",
    "termination": "never",
}


def woven(poor: Lifetimes, good: Lifetimes, share: np.ndarray, seed: int) -> Lifetimes:
    """Lifetimes whose episode n is the good one with probability share[n], else the poor one."""
    pick = np.random.default_rng(seed).random(poor.returns.shape) < share
    return Lifetimes(
        poor.task_ids,
        poor.seeds,
        np.where(pick, good.returns, poor.returns),
        np.where(pick[:, :, None, None], good.observations, poor.observations),
        np.where(pick[:, :, None], good.actions, poor.actions),
        np.where(pick, good.num_steps, poor.num_steps),
    )


def agents_lifetimes(tasks: DarkRoom, source, *, num_episodes: int, num_seeds: int, speed: float) -> dict:
    """Agent to split to lifetimes."""
    lifetimes: dict[str, dict[str, Lifetimes]] = {agent: {} for agent in ("ad", "ed", "source", "random", "oracle")}
    size = {"num_episodes": num_episodes, "num_seeds": num_seeds}
    share = 0.97 / (1 + np.exp(-(np.arange(num_episodes) - speed) / (0.4 * speed)))
    for split, seed in SPLIT_SEEDS.items():
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


def write_pipeline(root: Path, *, num_episodes: int = 30, num_seeds: int = 2) -> dict:
    """Writes under `root` whatever the report reads; returns the lifetimes by experiment, agent and split."""
    tasks = DarkRoom()
    oracle = tasks.oracle_returns()
    splits = {split: ids.tolist() for split, ids in tasks.splits().items()}
    params = {"datasets": {}, "experiments": {}, "agents": ["ad", "ed"]}
    made = {}
    for number, (experiment, (module, name, source)) in enumerate(SOURCES.items()):
        dataset = f"dark_room-{module}"
        params["datasets"][dataset] = {"groups": {"experiment": experiment}, "set": {}}
        params["experiments"][experiment] = {"dataset": dataset, "groups": {}, "set": {}}
        settings = {
            "defaults": ["_self_"],
            "name": experiment,
            "dataset": dataset,
            "seed": 0,
            "runtime": {"device": "cpu"},
            "tasks": dict(ROOM),
            "sources": {"_target_": f"distillery.sources.{module}.{name}", "num_episodes": source.num_episodes},
        }
        path = root / "data/resolved/experiments" / f"{experiment}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(settings, sort_keys=False))
        made[experiment] = agents_lifetimes(
            tasks, source, num_episodes=num_episodes, num_seeds=num_seeds, speed=(8.0, 2.0)[number]
        )
        for agent, by_split in made[experiment].items():
            folder = root / "data/evaluations" / experiment / agent
            level = {"ad": 15.5, "ed": 1.0}.get(agent)
            told = None if level is None else training(number, level)
            write_evaluation(folder, by_split, oracle, agent=agent, weights=None, training=told)
        write_dataset(root, experiment, dataset, tasks, splits, source.num_episodes)
    (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    return made


def write_dataset(root: Path, experiment: str, dataset: str, tasks: DarkRoom, splits: dict, num_episodes: int) -> None:
    """Metadata and validation of histories that are not there."""
    selection = {"rule": "mean return of the last tenth >= 0.5 x the oracle's", "num_kept": 2270, "num_dropped": 10}
    folder = root / "data/histories" / dataset / "learning"
    folder.mkdir(parents=True, exist_ok=True)
    Metadata(
        kind="learning",
        spec=tasks.spec,
        tasks=ROOM,
        splits=splits,
        source={},
        seed=0,
        num_episodes=num_episodes,
        min_episodes=num_episodes,
        mean_tenths=[2.0, 16.5],
        selection=selection,
        mean_returns=list(np.linspace(0.4, 16.5, num_episodes)),
        shards=[Shard("shard-00000.parquet", 2270, 2270 * 20 * num_episodes, "0" * 64)],
        content_hash="ab12" * 16,
        generator={},
    ).write(folder)
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
