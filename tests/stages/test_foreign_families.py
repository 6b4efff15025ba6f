"""Families of environments that this library did not write: each can be played, one goes the whole way."""

import contextlib
import importlib
import json

import numpy as np
import polars as pl
import pytest
import torch
from hydra import compose, initialize_config_module

from distillery.core.protocols import TaskDistribution
from distillery.core.rollouts import play_episode, random_actions
from distillery.core.seeding import torch_generator
from distillery.stages.entry import build
from distillery.tasks.gymnasium_family import GymnasiumBatch

# Poles and carts of other sizes, some of which answer to swapped actions; an episode ends when the pole falls.
CARTPOLE = [
    "experiment=cartpole",
    "tasks.episode_steps=60",
    "tasks.best_return=60",
    "tasks.num_train=4",
    "tasks.num_validation=1",
    "tasks.num_held_out=2",
    "sources.num_episodes=40",
    "sources.num_actors=4",
    "dataset=cartpole",
    "tracking=none",
    "runtime.progress=false",
    "histories.collection.selection.min_final_fraction=null",
    "histories.contexts.sequence_length=60",
    "histories.contexts.batch_size=4",
    "histories.contexts.keep_every_episode=1",
    "models.context_length=60",
    "models.width=16",
    "models.num_layers=1",
    "models.num_heads=2",
    "models.feedforward_width=32",
    "training.schedule.num_updates=20",
    "training.schedule.validate_every_updates=10",
    "training.validation.num_episodes=2",
    "training.validation.num_seeds=1",
    "evaluation.lifetimes.num_episodes=12",
    "evaluation.lifetimes.num_seeds=2",
]


@pytest.mark.slow
def test_cartpole_of_varied_physics_goes_the_whole_way(tmp_path):
    with contextlib.chdir(tmp_path), initialize_config_module("distillery.conf", version_base="1.3"):
        config = compose("config", CARTPOLE)
        for stage in ("collect", "validate", "train", "evaluate", "baselines"):
            getattr(importlib.import_module(f"distillery.stages.{stage}"), stage)(config)
    histories = pl.read_parquet(sorted((tmp_path / "data" / "histories" / "cartpole" / "learning").glob("*.parquet")))
    # The source learned, and no step of one episode stands in another: each begins anew, near the upright pole.
    episodes = histories.group_by("history", "episode").agg(pl.col("reward").sum(), pl.col("observation").first())
    early, late = (
        episodes.filter(part)["reward"].mean() for part in (pl.col("episode") < 10, pl.col("episode") >= 30)
    )
    assert late > early + 5
    assert np.abs(np.stack(episodes["observation"].to_list())).max() <= 0.05
    summaries = {
        agent: json.loads((tmp_path / "data" / "evaluations" / "cartpole" / agent / "summary.json").read_text())
        for agent in ("ad", "source", "random")
    }
    held_out = {agent: summary["splits"]["held_out"] for agent, summary in summaries.items()}
    assert {values["num_episodes"] for values in held_out.values()} == {12}
    assert 5 < held_out["random"]["final_return"] < 40
    assert 5 < held_out["ad"]["final_return"] <= 60


@pytest.mark.parametrize(
    "variant", ["gymnasium_family_acrobot", "gymnasium_family_cartpole", "gymnasium_family_pendulum"]
)
def test_what_is_offered_leaves_something_to_learn(variant: str):
    with initialize_config_module("distillery.conf", version_base="1.3"):
        tasks: TaskDistribution = build(compose("config", [f"tasks={variant}"]).tasks)
    batch = tasks.batch(tasks.task_ids("held_out"), seed=0)
    generator = torch_generator(0, "random")
    returns = play_episode(batch, lambda step, seen: random_actions(batch, generator)).returns.numpy()
    best = tasks.oracle_returns()[0]
    # At random a score is near 0, and costs do not make it fall far below.
    assert -0.5 * best < returns.mean() < 0.5 * best
    assert returns.max() < best


def test_acrobot_is_paid_for_the_steps_that_are_left():
    with initialize_config_module("distillery.conf", version_base="1.3"):
        tasks: TaskDistribution = build(compose("config", ["tasks=gymnasium_family_acrobot"]).tasks)
    batch = tasks.batch(tasks.task_ids("held_out")[:2], seed=0)
    assert isinstance(batch, GymnasiumBatch)
    batch.reset()
    assert batch.step(torch.tensor([1, 1])).rewards.tolist() == [0.0, 0.0]
    batch.envs[0].unwrapped.state = np.array([np.pi, 0.0, 0.0, 0.0])  # upright
    after = batch.step(torch.tensor([1, 1]))
    assert after.terminated.tolist() == [True, False]
    assert after.rewards.tolist() == pytest.approx([0.01 * (501 - 2), 0.0])
