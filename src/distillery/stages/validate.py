"""Checks a stored dataset against its schema and against the experiment that is going to read it.

python -m distillery.stages.validate -cd data/resolved/experiments -cn dark_room
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from distillery.core.files import write_json
from distillery.core.protocols import TaskDistribution
from distillery.histories.format import Metadata
from distillery.histories.reader import validate_dataset
from distillery.stages.entry import build, histories_folder, plain, stage
from distillery.stages.resolve import check_window

# Settings of sources, models, agents and lifetimes that came later than histories and results that are kept, at the
# value under which all is as it was before.
_ADDED_SINCE = {"tie_break": "random", "replay": None, "num_key_heads": None, "keeps": "best", "bfloat16": False}


def settings_as_before(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of one of these, but for what came later and changes nothing; what is kept stays current."""
    return {key: value for key, value in settings.items() if key not in _ADDED_SINCE or value != _ADDED_SINCE[key]}


def require_same_tasks(config: DictConfig, stored: Mapping[str, Any], *, what: str) -> None:
    """Refuses what was made on other tasks, or with another split, than the experiment's.

    Args:
        config: the experiment's.
        stored: settings of the tasks it was made on.
        what: names it, for example ``dataset 'x' was collected``.

    Raises:
        ValueError: naming the settings that differ.
    """
    wanted = plain(config.tasks)
    differing = sorted(key for key in wanted.keys() | stored.keys() if wanted.get(key) != stored.get(key))
    if differing:
        shown = ", ".join(f"{key}: {stored.get(key)!r} stored, {wanted.get(key)!r} asked for" for key in differing)
        raise ValueError(
            f"{what} on other tasks than the experiment names ({shown}); make it again, or correct the experiment's "
            "tasks"
        )


def require_own_histories(config: DictConfig, metadata: Metadata, kind: str, tasks: TaskDistribution) -> None:
    """Refuses histories that are not what the experiment says it reads.

    Raises:
        ValueError: of other tasks, another split, another source or another kind.
    """
    require_same_tasks(config, metadata.tasks, what=f"dataset '{config.dataset}' was collected")
    splits = {split: [int(task) for task in ids] for split, ids in tasks.splits().items()}
    if metadata.splits != splits:
        raise ValueError(
            f"dataset '{config.dataset}' stores another split than its tasks' settings make; collect it again with "
            "`dvc repro -f collect`"
        )
    if metadata.kind != kind:
        raise ValueError(f"dataset '{config.dataset}/{kind}' says it is of kind {metadata.kind!r}; collect it again")
    if settings_as_before(metadata.source) != settings_as_before(plain(config.sources)):
        raise ValueError(
            f"dataset '{config.dataset}' was collected with other settings of the source than the experiment names; "
            "collect it again, or correct the experiment's sources"
        )


def kinds_read(config: DictConfig) -> list[str]:
    """Kinds of histories that an agent may read, and that were collected."""
    kinds = {agent.histories for agent in config.agents.values()} - {None}
    return sorted(kinds if config.histories.collection.expert else kinds - {"expert"})


def validate(config: DictConfig) -> None:
    """Writes ``data/validations/<experiment>.json``: what was checked, and the data's hash."""
    check_window(config)
    tasks: TaskDistribution = build(config.tasks)
    oracle = tasks.oracle_returns()
    report = {"dataset": config.dataset}
    for kind in kinds_read(config):
        metadata, checked = validate_dataset(histories_folder(config, kind))
        require_own_histories(config, metadata, kind, tasks)
        first, last = metadata.mean_tenths
        report[kind] = {
            "content_hash": metadata.content_hash,
            "num_histories": metadata.num_histories,
            "num_steps": metadata.num_steps,
            "mean_return_first_tenth": round(first, 4),
            "mean_return_last_tenth": round(last, 4),
            "selection": metadata.selection,
            "oracle_return": {split: float(oracle[ids].mean()) for split, ids in metadata.splits.items()},
            "rows_checked_per_rule": checked,
        }
        print(f"{config.dataset}/{kind}: {metadata.num_steps} rows obey {len(checked)} rules")
    write_json(Path("data", "validations", f"{config.name}.json"), report)


if __name__ == "__main__":
    stage(validate)()
