"""Tasks and a source become histories: learning ones, and expert ones from the frozen converged source.

python -m distillery.stages.collect experiment=dark_room dataset=try
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from omegaconf import DictConfig
from tqdm.auto import tqdm

from distillery.core.files import whole_folder
from distillery.core.protocols import Learners, Source, TaskDistribution
from distillery.core.records import EpisodeBatch
from distillery.core.seeding import stream_seed
from distillery.histories.format import Metadata
from distillery.histories.selection import Selection
from distillery.histories.writer import HistoryWriter
from distillery.stages.entry import build, histories_folder, plain, stage


def shards_of_learners(tasks: TaskDistribution, source: Source, config: DictConfig) -> Iterator[Learners]:
    """Fresh learners of the train tasks, as many at a time as one shard holds."""
    collection = config.histories.collection
    task_ids = np.repeat(tasks.task_ids("train"), collection.runs_per_task)
    for number, first in enumerate(range(0, len(task_ids), collection.learners_per_shard)):
        yield source.start(
            tasks,
            task_ids[first : first + collection.learners_per_shard],
            seed=stream_seed(config.seed, "collect", number),
            device=config.runtime.device,
        )


def play(learners: Learners, num_episodes: int, bar: tqdm, *, frozen: bool) -> Iterator[EpisodeBatch]:
    """Their episodes, until the last history is over; the batch in which nobody plays is the last."""
    for number in range(num_episodes):
        episode = learners.episode(frozen=frozen)
        bar.update()
        bar.set_postfix({"return": f"{float(episode.returns.mean()):.2f}"}, refresh=False)
        yield episode
        if not episode.num_steps.any():
            bar.update(num_episodes - number - 1)
            return


def collect(config: DictConfig) -> None:
    """Writes ``data/histories/<dataset>/learning``, and ``expert`` unless it is not wanted."""
    tasks: TaskDistribution = build(config.tasks)
    source: Source = build(config.sources)
    collection = config.histories.collection
    selection: Selection = build(collection.selection)
    splits, oracle = tasks.splits(), tasks.oracle_returns()
    layout: dict[str, Any] = {"spec": tasks.spec, "splits": splits, "num_episodes": source.num_episodes}
    kinds = ("learning", "expert") if collection.expert else ("learning",)
    num_runs = len(splits["train"]) * collection.runs_per_task
    bar = tqdm(
        total=-(-num_runs // collection.learners_per_shard) * len(kinds) * source.num_episodes,
        desc=f"collecting {config.dataset}",
        unit="episode",
        disable=not config.runtime.progress,
        mininterval=1.0,
    )
    all_kept, all_ids = [], []
    with whole_folder(histories_folder(config, "learning").parent) as folder, bar:
        for kind in kinds:
            (folder / kind).mkdir()
        writers = {kind: HistoryWriter(folder / kind, kind=kind, **layout) for kind in kinds}
        for learners in shards_of_learners(tasks, source, config):
            task_ids = learners.task_ids
            # One kind at a time is held in memory.
            episodes = list(play(learners, source.num_episodes, bar, frozen=False))
            kept = selection.keep(episodes, oracle[task_ids])
            all_kept.append(kept)
            all_ids.append(task_ids)
            if not kept.any():
                continue
            # A slice copies nothing.
            chosen = slice(None) if kept.all() else kept
            writers["learning"].append([episode.select(chosen) for episode in episodes], task_ids[chosen])
            del episodes
            if collection.expert:
                frozen = play(learners, source.num_episodes, bar, frozen=True)
                writers["expert"].append([episode.select(chosen) for episode in frozen], task_ids[chosen])
        kept, ids = np.concatenate(all_kept), np.concatenate(all_ids)
        described = {
            "tasks": plain(config.tasks),
            "source": plain(config.sources),
            "seed": config.seed,
            "selection": selection.report(kept, ids, one_episode=source.num_episodes == 1),
        }
        sealed = {kind: writer.seal(**described) for kind, writer in writers.items()}
    print(summary(config.dataset, sealed["learning"]))


def summary(dataset: str, metadata: Metadata) -> str:
    """What was collected, in a line."""
    fewest, most = metadata.min_episodes, metadata.num_episodes
    episodes = f"{fewest} to {most} episodes" if fewest < most else f"{most} episode{'s' if most > 1 else ''}"
    first, last = metadata.mean_tenths
    return (
        f"{dataset}: {metadata.num_histories} histories of {episodes}, {metadata.num_steps / 1e6:.1f} M steps; return "
        f"{first:.2f} in the first tenth, {last:.2f} in the last; {metadata.selection['num_dropped']} runs dropped "
        f"({metadata.selection['rule']})"
    )


if __name__ == "__main__":
    stage(collect)()
