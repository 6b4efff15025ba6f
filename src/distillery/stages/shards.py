"""Shards of learners are played where an engine puts them, and come back in order, whoever is done first.

`in_process` plays one after another and needs nothing. `ray` plays as many at once as a Ray cluster has processors, or
GPUs where the device is one; what a dead worker had in hand is played again, by another. What a shard's learners do
depends on its number and the seed alone, so both give the same histories: of tabular sources to the bit, of networks
as far as two processors, or two numbers of threads, add up alike.
"""

import os
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from distillery.core.protocols import Learners, Source, TaskDistribution
from distillery.core.records import EpisodeBatch
from distillery.core.seeding import stream_seed
from distillery.histories.selection import Selection
from distillery.stages.entry import build, code_hash, plain

# How often a shard is played again whose worker died.
MAX_RETRIES = 3
# The code that decides a shard's histories; a cluster's machines must have the same.
PLAYING_CODE = ("core", "histories", "layers", "sources", "tasks")


@dataclass(frozen=True)
class Shard:
    """Learners that are played together.

    Attributes:
        number: from 0.
        task_ids: (E,) int64, the task of each.
    """

    number: int
    task_ids: np.ndarray


@dataclass(frozen=True)
class Played:
    """Histories of one kind, of one shard.

    Attributes:
        kind: one of `distillery.histories.format.KINDS`.
        task_ids: (E,) int64, the tasks of all streams of the shard, those of dropped ones among them.
        kept: (E,) bool, which of them became histories.
        episodes: N batches of the kept ones, in learning order; none where all were dropped.
    """

    kind: str
    task_ids: np.ndarray
    kept: np.ndarray
    episodes: list[EpisodeBatch]


# Told of episodes as they come in: of every one that was played here, of those that became histories elsewhere.
OnEpisode = Callable[[EpisodeBatch], None]


def shards_of(config: DictConfig, tasks: TaskDistribution) -> list[Shard]:
    """Learners of all train tasks, as many together as one shard holds."""
    collection = config.histories.collection
    task_ids = np.repeat(tasks.task_ids("train"), collection.runs_per_task)
    firsts = range(0, len(task_ids), collection.learners_per_shard)
    return [
        Shard(number, task_ids[first : first + collection.learners_per_shard]) for number, first in enumerate(firsts)
    ]


class Players:
    """Tasks, source and rule of selection of a configuration, built once for all shards of a process.

    Args:
        config: composed.
    """

    def __init__(self, config: DictConfig) -> None:
        self._config = config
        self._tasks: TaskDistribution = build(config.tasks)
        self._source: Source = build(config.sources)
        self._selection: Selection = build(config.histories.collection.selection)
        self._oracle_returns = self._tasks.oracle_returns()

    def play(self, shard: Shard, on_episode: OnEpisode) -> Iterator[Played]:
        """Learning histories of fresh learners, then expert ones of the same, frozen, unless those are not wanted."""
        config, num_episodes = self._config, self._source.num_episodes
        seed = stream_seed(config.seed, "collect", shard.number)
        learners = self._source.start(self._tasks, shard.task_ids, seed=seed, device=config.runtime.device)
        episodes = list(_episodes(learners, num_episodes, on_episode, frozen=False))
        kept = self._selection.keep(episodes, self._oracle_returns[learners.task_ids])
        chosen = slice(None) if kept.all() else kept  # a slice copies nothing
        played = Played("learning", learners.task_ids, kept, _selected(episodes, chosen) if kept.any() else [])
        del episodes
        yield played
        del played  # one kind at a time is held in memory
        if config.histories.collection.expert and kept.any():
            frozen = _episodes(learners, num_episodes, on_episode, frozen=True)
            yield Played("expert", learners.task_ids, kept, _selected(frozen, chosen))


def _selected(episodes: Iterable[EpisodeBatch], chosen: slice | np.ndarray) -> list[EpisodeBatch]:
    return [episode.select(chosen) for episode in episodes]


def _episodes(learners: Learners, num_episodes: int, on_episode: OnEpisode, *, frozen: bool) -> Iterator[EpisodeBatch]:
    """Their episodes, until the last history is over; the batch in which nobody plays is the last."""
    for _ in range(num_episodes):
        episode = learners.episode(frozen=frozen)
        on_episode(episode)
        yield episode
        if not episode.num_steps.any():
            return


def play_in_process(config: DictConfig, shards: list[Shard], on_episode: OnEpisode) -> Iterator[Played]:
    """One shard after another, here."""
    players = Players(config)
    for shard in shards:
        yield from players.play(shard, on_episode)


def play_by_ray(config: DictConfig, shards: list[Shard], on_episode: OnEpisode) -> Iterator[Played]:
    """Many shards at once, on the machines of a Ray cluster, each of which has this package installed.

    No more than one shard for each worker, and one besides, are on their way, which bounds what is held in memory.

    Raises:
        ValueError: Ray is not installed, no GPU is there where one is asked for, or a worker has other code than this.
        OSError: no cluster is reached, or a shard's workers died again and again.
    """
    try:
        import ray
    except ImportError as error:
        raise ValueError(
            "runtime.collection=ray needs Ray; install it with pip install -e '.[cluster]', or choose in_process"
        ) from error
    on_gpu = str(config.runtime.device).startswith("cuda")
    address = config.runtime.ray_address or os.environ.get("RAY_ADDRESS") or "local"
    ray.init(address=address, log_to_driver=False)
    play = ray.remote(max_retries=MAX_RETRIES, num_cpus=1, num_gpus=int(on_gpu))(_play_remotely)
    code = code_hash(*PLAYING_CODE)
    settings, waiting, on_their_way = plain(config), deque(shards), deque[tuple[Shard, Any]]()
    try:
        num_workers = int(ray.cluster_resources().get("GPU" if on_gpu else "CPU", 0))
        if not num_workers:
            raise ValueError(
                f"runtime.device={config.runtime.device} needs a GPU, and the Ray cluster at {address} has none; "
                "choose runtime.device=cpu or another cluster"
            )
        while waiting or on_their_way:
            while waiting and len(on_their_way) <= num_workers:
                shard = waiting.popleft()
                on_their_way.append((shard, play.remote(settings, shard, code)))
            shard, answer = on_their_way.popleft()
            try:
                parts = ray.get(answer)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from error
            except ray.exceptions.RayError as error:
                raise OSError(
                    f"shard {shard.number} could not be played in {MAX_RETRIES + 1} tries: {error}"
                ) from error
            for part in parts:
                for episode in part.episodes:
                    on_episode(episode)
                yield part
            del parts, part  # before the next come
    finally:
        ray.shutdown()


def _play_remotely(settings: Mapping[str, Any], shard: Shard, code: str) -> list[Played]:
    """One shard, in a process of its own; what comes back is in ordinary memory.

    Raises:
        ValueError: the code here is not that of who asks.
    """
    if code_hash(*PLAYING_CODE) != code:
        raise ValueError(
            f"{socket.gethostname()} has another version of distillery than who collects; install the same"
        )
    config = OmegaConf.create(dict(settings))
    torch.set_num_threads(config.runtime.num_threads or 1)
    parts = Players(config).play(shard, lambda episode: None)
    return [
        Played(part.kind, part.task_ids, part.kept, [_in_memory(episode) for episode in part.episodes])
        for part in parts
    ]


def _in_memory(episode: EpisodeBatch) -> EpisodeBatch:
    return EpisodeBatch(**{name: value.cpu() for name, value in vars(episode).items()})


ENGINES = {"in_process": play_in_process, "ray": play_by_ray}


def play_shards(config: DictConfig, shards: list[Shard], on_episode: OnEpisode) -> Iterator[Played]:
    """All shards in order, by the engine that ``runtime.collection`` names.

    Raises:
        ValueError: there is no such engine.
    """
    engine = config.runtime.collection
    if engine not in ENGINES:
        raise ValueError(f"runtime.collection must be one of {', '.join(ENGINES)}, got {engine!r}")
    return ENGINES[engine](config, shards, on_episode)
