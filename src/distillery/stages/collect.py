"""Tasks and a source become histories: learning ones, and expert ones from the frozen converged source.

python -m distillery.stages.collect experiment=dark_room dataset=try
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from omegaconf import DictConfig
from tqdm.auto import tqdm

from distillery.core.files import whole_folder
from distillery.core.protocols import Source, TaskDistribution
from distillery.core.records import EpisodeBatch
from distillery.core.seeding import stream_seed
from distillery.histories.selection import Selection, select_learners
from distillery.histories.writer import HistoryWriter
from distillery.stages.entry import build, histories_folder, plain, stage

Runs = tuple[np.ndarray, list[EpisodeBatch], list[EpisodeBatch]]


def run_source(tasks: TaskDistribution, source: Source, config: DictConfig) -> Iterator[Runs]:
    """Runs the source shard by shard; yields task ids, learning episodes and expert episodes of each."""
    collection = config.histories.collection
    task_ids = np.repeat(tasks.task_ids("train"), collection.runs_per_task)
    shards = range(0, len(task_ids), collection.learners_per_shard)
    bar = tqdm(
        total=len(shards) * 2 * source.num_episodes,
        desc=f"collecting {config.dataset}",
        unit="episode",
        disable=not config.runtime.progress,
        mininterval=1.0,
    )
    with bar:
        for number, first in enumerate(shards):
            learners = source.start(
                tasks,
                task_ids[first : first + collection.learners_per_shard],
                seed=stream_seed(config.seed, "collect", number),
                device=config.runtime.device,
            )
            episodes: dict[bool, list[EpisodeBatch]] = {False: [], True: []}
            for frozen in (False, True):
                for _ in range(source.num_episodes):
                    episodes[frozen].append(learners.episode(frozen=frozen))
                    bar.update()
                    bar.set_postfix({"return": f"{float(episodes[frozen][-1].returns.mean()):.2f}"}, refresh=False)
            yield learners.task_ids, episodes[False], episodes[True]


def collect(config: DictConfig) -> None:
    """Writes ``data/histories/<dataset>/{learning,expert}``."""
    tasks: TaskDistribution = build(config.tasks)
    source: Source = build(config.sources)
    selection: Selection = build(config.histories.collection.selection)
    splits, oracle = tasks.splits(), tasks.oracle_returns()
    layout: dict[str, Any] = {"spec": tasks.spec, "splits": splits, "num_episodes": source.num_episodes}
    all_kept, all_ids = [], []
    with whole_folder(histories_folder(config, "learning").parent) as folder:
        for kind in ("learning", "expert"):
            (folder / kind).mkdir()
        learning = HistoryWriter(folder / "learning", kind="learning", **layout)
        expert = HistoryWriter(folder / "expert", kind="expert", **layout)
        for task_ids, learning_episodes, expert_episodes in run_source(tasks, source, config):
            kept = selection.keep(learning_episodes, oracle[task_ids])
            all_kept.append(kept)
            all_ids.append(task_ids)
            if kept.any():
                learning.append(select_learners(learning_episodes, kept), task_ids[kept])
                expert.append(select_learners(expert_episodes, kept), task_ids[kept])
        described = {
            "tasks": plain(config.tasks),
            "source": plain(config.sources),
            "seed": config.seed,
            "selection": selection.report(np.concatenate(all_kept), np.concatenate(all_ids)),
        }
        metadata = learning.seal(**described)
        expert.seal(**described)
    tenth = max(1, metadata.num_episodes // 10)
    print(
        f"{config.dataset}: {metadata.num_histories} histories of {metadata.num_episodes} episodes, "
        f"{metadata.num_steps / 1e6:.1f} M steps; return {np.mean(metadata.mean_returns[:tenth]):.2f} in the first "
        f"tenth, {np.mean(metadata.mean_returns[-tenth:]):.2f} in the last; "
        f"{metadata.selection['num_dropped']} runs dropped ({metadata.selection['rule']})"
    )


if __name__ == "__main__":
    stage(collect)()
