"""Agents without a context: the source learning from scratch, a random one, and one that knows the task.

Each plays on the device that it is told; a source that learns networks needs a GPU where the model does.

Letters: E environments (a lifetime each), N episodes.
"""

from dataclasses import replace

import numpy as np
import torch

from distillery.core.protocols import Source, TaskDistribution
from distillery.core.records import EpisodeBatch, Lifetimes
from distillery.core.rollouts import play_episode, random_actions
from distillery.core.seeding import stream_seed, torch_generator
from distillery.core.specs import TaskSpec
from distillery.evaluation.in_context import keeps_observations


def _lifetimes(task_ids: np.ndarray, num_seeds: int, episodes: list[EpisodeBatch], spec: TaskSpec) -> Lifetimes:
    def stack(name: str) -> np.ndarray:
        return torch.stack([getattr(batch, name) for batch in episodes], 1).cpu().numpy()

    return Lifetimes(
        task_ids=np.repeat(np.asarray(task_ids), num_seeds),
        seeds=np.tile(np.arange(num_seeds), len(task_ids)),
        returns=stack("returns"),
        observations=stack("observations") if keeps_observations(spec) else None,
        actions=stack("actions"),
        num_steps=stack("num_steps"),
    )


def _kept(episode: EpisodeBatch, spec: TaskSpec) -> EpisodeBatch:
    """The episode, without observations that no lifetime holds: those of images would fill the memory."""
    return episode if keeps_observations(spec) else replace(episode, observations=episode.observations[..., :0])


def run_source(
    tasks: TaskDistribution,
    task_ids: np.ndarray,
    *,
    source: Source,
    num_episodes: int,
    num_seeds: int,
    seed: int,
    device: torch.device | str = "cpu",
) -> Lifetimes:
    """The source from scratch on each task; once its own schedule is over it goes on with its last settings.

    Of a source with several actors, each lifetime is one learner's first actor.
    """
    ids = np.repeat(np.asarray(task_ids), num_seeds)
    learners = source.start(tasks, ids, seed=stream_seed(seed, "source"), device=device)
    stride = len(learners.task_ids) // len(ids)
    episodes = []
    for _ in range(num_episodes):
        batch = learners.episode()
        episodes.append(_kept(batch.select(slice(None, None, stride)), tasks.spec))
    return _lifetimes(task_ids, num_seeds, episodes, tasks.spec)


def run_random(
    tasks: TaskDistribution,
    task_ids: np.ndarray,
    *,
    num_episodes: int,
    num_seeds: int,
    seed: int,
    device: torch.device | str = "cpu",
) -> Lifetimes:
    """Uniformly random actions."""
    ids = np.repeat(np.asarray(task_ids), num_seeds)
    batch = tasks.batch(ids, seed=stream_seed(seed, "random"), device=device)
    generator = torch_generator(seed, "random actions", device=device)

    def choose(step: int, observations: torch.Tensor) -> torch.Tensor:
        return random_actions(batch, generator)

    episodes = [_kept(play_episode(batch, choose), tasks.spec) for _ in range(num_episodes)]
    return _lifetimes(task_ids, num_seeds, episodes, tasks.spec)


def _knows_best_actions(tasks: TaskDistribution, task_ids: np.ndarray) -> bool:
    """Tried on a batch of its own, so that no draw of another changes."""
    batch = tasks.batch(task_ids, seed=0)
    batch.reset()
    try:
        batch.oracle_actions()
    except ValueError:
        return False
    return True


def run_oracle(
    tasks: TaskDistribution,
    task_ids: np.ndarray,
    *,
    num_episodes: int,
    num_seeds: int,
    seed: int,
    device: torch.device | str = "cpu",
) -> Lifetimes:
    """The best actions for a task that is known; of a family that knows none, the returns it says are best."""
    ids = np.repeat(np.asarray(task_ids), num_seeds)
    if not _knows_best_actions(tasks, ids[:1]):
        levels = tasks.oracle_returns()[ids].astype(np.float32)
        seeds = np.tile(np.arange(num_seeds), len(task_ids))
        return Lifetimes(ids, seeds, np.repeat(levels[:, None], num_episodes, 1))
    batch = tasks.batch(ids, seed=stream_seed(seed, "oracle"), device=device)
    episodes = [
        _kept(play_episode(batch, lambda step, observations: batch.oracle_actions()), tasks.spec)
        for _ in range(num_episodes)
    ]
    return _lifetimes(task_ids, num_seeds, episodes, tasks.spec)
