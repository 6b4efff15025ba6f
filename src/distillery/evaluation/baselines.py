"""Agents without a context: the source learning from scratch, a random one, and one that knows the task.

Letters: E environments (a lifetime each), N episodes.
"""

import numpy as np
import torch

from distillery.core.protocols import Source, TaskDistribution
from distillery.core.records import EpisodeBatch, Lifetimes
from distillery.core.rollouts import play_episode, random_actions
from distillery.core.seeding import stream_seed, torch_generator


def _lifetimes(task_ids: np.ndarray, num_seeds: int, episodes: list[EpisodeBatch]) -> Lifetimes:
    def stack(name: str) -> np.ndarray:
        return torch.stack([getattr(batch, name) for batch in episodes], 1).cpu().numpy()

    return Lifetimes(
        task_ids=np.repeat(np.asarray(task_ids), num_seeds),
        seeds=np.tile(np.arange(num_seeds), len(task_ids)),
        returns=stack("returns"),
        observations=stack("observations"),
        actions=stack("actions"),
        num_steps=stack("num_steps"),
    )


def run_source(
    tasks: TaskDistribution, task_ids: np.ndarray, *, source: Source, num_episodes: int, num_seeds: int, seed: int
) -> Lifetimes:
    """The source from scratch on each task; once its own schedule is over it goes on with its last settings.

    Of a source with several actors, each lifetime is one learner's first actor.
    """
    ids = np.repeat(np.asarray(task_ids), num_seeds)
    learners = source.start(tasks, ids, seed=stream_seed(seed, "source"))
    stride = len(learners.task_ids) // len(ids)
    episodes = []
    for _ in range(num_episodes):
        batch = learners.episode()
        episodes.append(batch.select(slice(None, None, stride)))
    return _lifetimes(task_ids, num_seeds, episodes)


def run_random(
    tasks: TaskDistribution, task_ids: np.ndarray, *, num_episodes: int, num_seeds: int, seed: int
) -> Lifetimes:
    """Uniformly random actions."""
    ids = np.repeat(np.asarray(task_ids), num_seeds)
    batch = tasks.batch(ids, seed=stream_seed(seed, "random"))
    generator = torch_generator(seed, "random actions")

    def choose(step: int, observations: torch.Tensor) -> torch.Tensor:
        return random_actions(batch, generator)

    return _lifetimes(task_ids, num_seeds, [play_episode(batch, choose) for _ in range(num_episodes)])


def run_oracle(
    tasks: TaskDistribution, task_ids: np.ndarray, *, num_episodes: int, num_seeds: int, seed: int
) -> Lifetimes:
    """The best actions for a task that is known.

    Raises:
        ValueError: the family knows of none.
    """
    ids = np.repeat(np.asarray(task_ids), num_seeds)
    batch = tasks.batch(ids, seed=stream_seed(seed, "oracle"))
    episodes = [play_episode(batch, lambda step, observations: batch.oracle_actions()) for _ in range(num_episodes)]
    return _lifetimes(task_ids, num_seeds, episodes)
