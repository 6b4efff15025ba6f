"""Summaries in, table rows out; nothing here reads or writes a file."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import polars as pl

from distillery.core.lifetimes import FINAL_EPISODES
from distillery.reports.style import agent_style

DECIMALS = 4
DASH = "\N{EN DASH}"
SPLITS = {"held_out": "held-out", "train": "training"}
REPORTED_EPISODES = ("1", "10", "25", "50", "100")
# Rows of a table of tasks, at most.
NUM_WORST = 24
_FIRST_KEYS = (
    "final_return",
    "final_return_ci95",
    "return_at",
    "nauc",
    "oracle_fraction",
    "episodes_to_reference",
)
# Parts of a composed configuration that say how something ran or is called, not what was done.
_UNTOLD = ("defaults", "hydra", "runtime", "tracking", "name", "agent")


def rounded(value: Any) -> Any:
    """The same nest of containers with floats cut to a few decimals, so that a difference is a difference."""
    if isinstance(value, float):
        return round(value, DECIMALS)
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return value


def metrics_of(summaries: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """What ``metrics.json`` holds: experiment to agent to split to numbers.

    Args:
        summaries: by experiment and agent, each with `splits`.
    """

    def ordered(values: Mapping[str, Any]) -> dict[str, Any]:
        keys = [*_FIRST_KEYS, *(key for key in values if key not in _FIRST_KEYS)]
        return {key: rounded(values[key]) for key in keys}

    return {
        experiment: {
            agent: {split: ordered(values) for split, values in summary["splits"].items()}
            for agent, summary in by_agent.items()
        }
        for experiment, by_agent in summaries.items()
    }


def reported_splits(metrics: Mapping[str, Any]) -> list[str]:
    """Every split that any experiment reports; the usual ones first."""
    there = dict.fromkeys(split for by_agent in metrics.values() for values in by_agent.values() for split in values)
    return [split for split in SPLITS if split in there] + [split for split in there if split not in SPLITS]


def split_heading(split: str, noun: str) -> str:
    """What the tasks of a split are called, for a heading."""
    return f"{SPLITS[split].capitalize()} {noun}" if split in SPLITS else f"{noun.capitalize()} of the split '{split}'"


def headline_rows(metrics: Mapping[str, Any], *, split: str) -> list[dict[str, Any]]:
    """One row per experiment and agent that report the split, every cell a text."""
    told = [
        (experiment, agent, list(by_agent), by_split[split])
        for experiment, by_agent in metrics.items()
        for agent, by_split in by_agent.items()
        if split in by_split
    ]
    lived = {episode for *_, values in told for episode in values["return_at"]}
    return [_headline_row(*row, [episode for episode in REPORTED_EPISODES if episode in lived]) for row in told]


def _headline_row(
    experiment: str, agent: str, agents: Sequence[str], values: Mapping[str, Any], episodes: Sequence[str]
) -> dict[str, Any]:
    low, high = values["final_return_ci95"]
    low_fraction, high_fraction = values["oracle_fraction_ci95"]
    at, decimals = values["return_at"], return_decimals(values["oracle_return"])
    return {
        "experiment": experiment,
        "agent": agent,
        "label": agent_style(agent).short,
        "colour": agent_style(agent, agents).colour,
        "final return": f"{values['final_return']:.2f}",
        "95 % interval": f"{low:.2f}{DASH}{high:.2f}",
        "of the oracle": f"{values['oracle_fraction']:.3f}",
        "its interval": f"{low_fraction:.3f}{DASH}{high_fraction:.3f}",
        "IQM": f"{values['oracle_fraction_iqm']:.3f}",
        "NAUC": f"{values['nauc']:.3f}",
        **{f"ep. {e}": f"{at[e]:.{decimals}f}" if e in at else DASH for e in episodes},
        "to reference": _or_dash(values["episodes_to_reference"]),
        "failed": f"{values['failed_lifetimes']:.1%}",
    }


def return_decimals(oracle_return: float) -> int:
    """Digits after the point of a return in a narrow column."""
    return 1 if oracle_return >= 10 else 2


def ending(num_episodes: int) -> str:
    """The episodes whose mean is the final return: the last ten, or all of a shorter lifetime."""
    if num_episodes > FINAL_EPISODES:
        return "the last ten episodes"
    return "the only episode" if num_episodes == 1 else f"all {num_episodes} episodes"


def verdicts(metrics: Mapping[str, Any], titles: Mapping[str, str]) -> list[dict[str, str]]:
    """AD on held-out tasks in four numbers per experiment; an empty text where there is nothing to tell."""
    rows = []
    for experiment, by_agent in metrics.items():
        ad = by_agent["ad"]["held_out"]
        ed = by_agent["ed"]["held_out"]["final_return"] if "ed" in by_agent else 0.0
        reached = ad["episodes_to_reference"]
        reference = f"reached at episode {reached}" if reached is not None else "not reached"
        rows.append(
            {
                "experiment": experiment,
                "title": titles[experiment],
                "fraction": f"{ad['oracle_fraction']:.1%}",
                "final_return": f"{ad['final_return']:.2f}",
                "ending": ending(ad["num_episodes"]),
                "oracle": f"{ad['oracle_return']:.2f}",
                # A shorter lifetime has no ten episodes whose mean could reach a level.
                "reference": reference if ad["num_episodes"] >= FINAL_EPISODES else "",
                "over_ed": f"{ad['final_return'] / ed:.1f} times" if min(ed, ad["final_return"]) > 0 else "",
            }
        )
    return rows


def task_table(tasks: pl.DataFrame, *, num_episodes: int, width: int | None = None) -> list[dict[str, str]]:
    """One row per held-out task, worst first, as many as `NUM_WORST`.

    Args:
        tasks: columns split, task_id, first_return, final_return, oracle_return, oracle_fraction, failed_lifetimes.
        num_episodes: of a lifetime.
        width: cells along x of a room, which turns a task's number into its goal; None for other tasks.
    """
    held_out = tasks.filter(pl.col("split") == "held_out").sort("oracle_fraction", "task_id")
    oracle = held_out["oracle_return"].to_numpy()
    decimals = return_decimals(float(oracle.mean()))
    whole = bool((oracle == oracle.round()).all())
    last = "last ten" if num_episodes > FINAL_EPISODES else f"all {num_episodes}"
    rows = []
    for task in held_out.head(NUM_WORST).iter_rows(named=True):
        row = {"task": str(task["task_id"])}
        if width is not None:
            row["goal"] = f"({task['task_id'] % width}, {task['task_id'] // width})"
        if num_episodes > 1:
            row["first ep."] = f"{task['first_return']:.{decimals}f}"
        row["return" if num_episodes == 1 else last] = f"{task['final_return']:.2f}"
        row["oracle"] = f"{task['oracle_return']:.{0 if whole else 2}f}"
        row["fraction"] = f"{task['oracle_fraction']:.3f}"
        row["failed"] = f"{task['failed_lifetimes']:.0%}"
        rows.append(row)
    return rows


def dataset_rows(validations: Mapping[str, Mapping[str, Any]], *, kinds: Sequence[str]) -> list[dict[str, str]]:
    """One row per dataset and kind of history; experiments that share a dataset share its rows.

    Args:
        validations: by experiment; each names its `dataset` and holds what was checked, by kind.
        kinds: of histories, in order.
    """
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for validation in validations.values():
        for kind in (kind for kind in kinds if kind in validation):
            values = validation[kind]
            selection, levels = values["selection"], values["oracle_return"]
            rows[validation["dataset"], kind] = {
                "dataset": validation["dataset"],
                "kind": kind,
                "histories": _thousands(values["num_histories"]),
                "steps": _thousands(values["num_steps"]),
                "first tenth": f"{values['mean_return_first_tenth']:.2f}",
                "last tenth": f"{values['mean_return_last_tenth']:.2f}",
                "oracle by split": " / ".join(f"{levels[split]:.2f}" for split in ("train", "validation", "held_out")),
                "runs dropped": f"{selection['num_dropped']} of {selection['num_kept'] + selection['num_dropped']}",
                "kept if": selection["rule"],
                "content hash": values["content_hash"][:16],
            }
    return list(rows.values())


def training_rows(trainings: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[dict[str, str]]:
    """One row per trained model.

    Args:
        trainings: by experiment and agent, what the checkpoint says of its training.
    """
    return [
        {
            "experiment": experiment,
            "agent": agent_style(agent).short,
            "parameters": _thousands(training["num_parameters"]),
            "updates done": _thousands(training["updates_done"]),
            "selected at": _thousands(training["selected_update"]),
            "validation score": f"{training['validation_score']:.3f}",
            "weights": training["weights"][:16],
        }
        for experiment, by_agent in trainings.items()
        for agent, training in by_agent.items()
    ]


def differing_settings(settings: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Settings that are not the same in all experiments: the key, and the value in each (None where it is absent)."""
    flat = {experiment: dict(_flatten(values)) for experiment, values in settings.items()}
    keys = sorted({key for values in flat.values() for key in values})
    rows = []
    for key in keys:
        values = [values.get(key) for values in flat.values()]
        if any(value != values[0] for value in values):
            rows.append({"key": key, "values": [DASH if value is None else str(value) for value in values]})
    return rows


def wide_curves(curves: pl.DataFrame, *, split: str) -> pl.DataFrame:
    """One row per episode, one column `<experiment> <agent>` each: the shape that ``dvc plots`` draws."""
    chosen = curves.filter(pl.col("split") == split)
    series = chosen.select("episode", "return", series=pl.concat_str("experiment", "agent", separator=" "))
    return series.pivot(on="series", index="episode", values="return").sort("episode")


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        if not prefix and key in _UNTOLD:
            continue
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _thousands(count: int) -> str:
    return f"{count:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def _or_dash(value: int | None) -> str:
    return DASH if value is None else str(value)
