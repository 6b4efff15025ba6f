"""Checks a stored dataset against its schema and against the experiment that is going to read it.

python -m distillery.stages.validate -cd data/resolved/experiments -cn dark_room
"""

from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from distillery.core.files import write_json
from distillery.histories.format import Metadata
from distillery.histories.reader import validate_dataset
from distillery.stages.entry import build, histories_folder, plain, stage
from distillery.stages.resolve import check_window


def require_same_tasks(config: DictConfig, metadata: Metadata) -> None:
    """Refuses histories of other tasks, or of another split, than the experiment's.

    Raises:
        ValueError: naming the settings that differ.
    """
    wanted, stored = plain(config.tasks), dict(metadata.tasks)
    differing = sorted(key for key in wanted.keys() | stored.keys() if wanted.get(key) != stored.get(key))
    if differing:
        shown = ", ".join(f"{key}: {stored.get(key)!r} stored, {wanted.get(key)!r} asked for" for key in differing)
        raise ValueError(
            f"dataset '{config.dataset}' was collected on other tasks than the experiment names ({shown}); collect "
            "it again, or correct the experiment's tasks"
        )


def validate(config: DictConfig) -> None:
    """Writes ``data/validations/<experiment>.json``: what was checked, and the data's hash."""
    check_window(config)
    tasks = build(config.tasks)
    oracle = tasks.oracle_returns()
    report = {"dataset": config.dataset}
    for kind in sorted({agent.histories for agent in config.agents.values()}):
        metadata, checked = validate_dataset(histories_folder(config, kind))
        require_same_tasks(config, metadata)
        tenth = max(1, metadata.num_episodes // 10)
        report[kind] = {
            "content_hash": metadata.content_hash,
            "num_histories": metadata.num_histories,
            "num_steps": metadata.num_steps,
            "mean_return_first_tenth": round(float(np.mean(metadata.mean_returns[:tenth])), 4),
            "mean_return_last_tenth": round(float(np.mean(metadata.mean_returns[-tenth:])), 4),
            "selection": metadata.selection,
            "oracle_return": {split: float(oracle[ids].mean()) for split, ids in metadata.splits.items()},
            "rows_checked_per_rule": checked,
        }
        print(f"{config.dataset}/{kind}: {metadata.num_steps} rows obey {len(checked)} rules")
    write_json(Path("data", "validations", f"{config.name}.json"), report)


if __name__ == "__main__":
    stage(validate)()
