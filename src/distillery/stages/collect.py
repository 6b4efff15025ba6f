"""Tasks and a source become histories: learning ones, and expert ones from the frozen converged source.

python -m distillery.stages.collect experiment=dark_room dataset=try
"""

from typing import Any

import numpy as np
from omegaconf import DictConfig
from tqdm.auto import tqdm

from distillery.core.files import whole_folder
from distillery.core.protocols import Source, TaskDistribution
from distillery.core.records import EpisodeBatch
from distillery.histories.format import Metadata
from distillery.histories.selection import Selection
from distillery.histories.writer import HistoryWriter
from distillery.stages.entry import build, histories_folder, plain, stage
from distillery.stages.shards import play_shards, shards_of


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

    all_kept, all_ids, num_parts = [], [], 0
    with whole_folder(histories_folder(config, "learning").parent) as folder, bar:
        for kind in kinds:
            (folder / kind).mkdir()
        writers = {kind: HistoryWriter(folder / kind, kind=kind, **layout) for kind in kinds}
        for played in play_shards(config, shards, tell):
            if played.kind == "learning":
                all_kept.append(played.kept)
                all_ids.append(played.task_ids)
            if played.episodes:
                writers[played.kind].append(played.episodes, played.task_ids[played.kept])
            del played  # before the next is played
            num_parts += 1
            bar.update(num_parts * source.num_episodes - bar.n)  # histories may end early
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
