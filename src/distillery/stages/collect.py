"""Tasks and a source become histories: learning ones, and expert ones from the frozen converged source.

A collection that is stopped goes on behind the last shard that it finished.

python -m distillery.stages.collect experiment=dark_room dataset=try
"""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
from omegaconf import DictConfig
from tqdm.auto import tqdm

from distillery.core.protocols import Source, TaskDistribution
from distillery.core.records import EpisodeBatch
from distillery.histories.format import Metadata
from distillery.histories.selection import Selection
from distillery.histories.writer import HistoryWriter
from distillery.stages.entry import build, histories_folder, plain, stage
from distillery.stages.finished_shards import Finished, collection_under_way
from distillery.stages.shards import play_shards, shards_of

logger = logging.getLogger(__name__)

# The part of runs from which on it is told that a selection drops them.
_MANY_DROPPED = 0.25


def collect(config: DictConfig) -> None:
    """Writes ``data/histories/<dataset>/learning``, and ``expert`` unless it is not wanted."""
    tasks: TaskDistribution = build(config.tasks)
    source: Source = build(config.sources)
    collection = config.histories.collection
    selection: Selection = build(collection.selection)
    layout: dict[str, Any] = {"spec": tasks.spec, "splits": tasks.splits(), "num_episodes": source.num_episodes}
    kinds = ("learning", "expert") if collection.expert else ("learning",)
    shards = shards_of(config, tasks)
    bar = tqdm(
        total=len(shards) * len(kinds) * source.num_episodes,
        desc=f"collecting {config.dataset}",
        unit="episode",
        disable=not config.runtime.progress,
        mininterval=1.0,
    )

    def tell(episode: EpisodeBatch) -> None:
        bar.update()
        bar.set_postfix({"return": f"{float(episode.returns.mean()):.2f}"}, refresh=False)

    with collection_under_way(config, kinds) as under_way, bar:
        writers = {kind: HistoryWriter(under_way.folder / kind, kind=kind, **layout) for kind in kinds}
        finished = under_way.read()
        if finished:
            print(f"{config.dataset}: going on behind {len(finished)} of {len(shards)} shards, finished before")
        for earlier in finished:
            for kind, file in earlier.files.items():
                writers[kind].adopt(file)
        bar.update(len(finished) * len(kinds) * source.num_episodes)
        for played in play_shards(config, shards[len(finished) :], tell):
            if played.kind == "learning":
                written = Finished(played.task_ids, played.kept, {})
            if played.episodes:
                writers[played.kind].append(played.episodes, played.task_ids[played.kept])
                written.files[played.kind] = writers[played.kind].shards[-1]
            is_done = played.kind == kinds[-1] or not played.kept.any()
            del played  # before the next is played
            if is_done:
                under_way.add(len(finished), written)
                finished.append(written)
                bar.update(len(finished) * len(kinds) * source.num_episodes - bar.n)  # histories may end early
        described = {
            "tasks": plain(config.tasks),
            "source": plain(config.sources),
            "seed": config.seed,
            "selection": selection.report(
                np.concatenate([shard.kept for shard in finished]),
                np.concatenate([shard.task_ids for shard in finished]),
                one_episode=source.num_episodes == 1,
            ),
        }
        try:
            sealed = {kind: writer.seal(**described) for kind, writer in writers.items()}
        except ValueError:  # the same would come of these histories again
            under_way.discard()
            raise
        under_way.move_to(histories_folder(config, "learning").parent)
    print(summary(config.dataset, sealed["learning"]))
    warn_of_dropped(config.dataset, described["selection"])


def summary(dataset: str, metadata: Metadata) -> str:
    """What was collected, in a line."""
    fewest, most = metadata.min_episodes, metadata.num_episodes
    episodes = f"{fewest} to {most} episodes" if fewest < most else f"{most} episode{'s' if most > 1 else ''}"
    first, last = metadata.mean_tenths
    return (
        f"{dataset}: {metadata.num_histories} histories of {episodes}, {metadata.num_steps:,} steps; return "
        f"{first:.2f} in the first tenth, {last:.2f} in the last; {metadata.selection['num_dropped']} runs dropped "
        f"({metadata.selection['rule']})"
    )


def warn_of_dropped(dataset: str, selection: Mapping[str, Any]) -> None:
    """Many runs dropped leave histories of the luckiest, from which luck is learned."""
    kept, dropped = selection["num_kept"], selection["num_dropped"]
    if dropped > _MANY_DROPPED * (kept + dropped):
        logger.warning(
            "%s: the selection dropped %d of %d runs (%s); lengthen sources.num_episodes, or lower "
            "histories.collection.selection.min_final_fraction",
            dataset,
            dropped,
            kept + dropped,
            selection["rule"],
        )


if __name__ == "__main__":
    stage(collect)()
