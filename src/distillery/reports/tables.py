"""Summaries in, table rows out; nothing here reads or writes a file."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import polars as pl

from distillery.reports.style import agent_style

DECIMALS = 4
DASH = "\N{EN DASH}"
SPLITS = {"held_out": "held-out", "train": "training"}
REPORTED_EPISODES = ("1", "10", "25", "50", "100")
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


def headline_rows(metrics: Mapping[str, Any], *, split: str) -> list[dict[str, Any]]:
    """One row per experiment and agent, every cell a text."""
    rows = []
    for experiment, by_agent in metrics.items():
        for agent, by_split in by_agent.items():
            values = by_split[split]
            low, high = values["final_return_ci95"]
            low_fraction, high_fraction = values["oracle_fraction_ci95"]
            rows.append(
                {
                    "experiment": experiment,
                    "agent": agent,
                    "label": agent_style(agent).short,
                    "colour": agent_style(agent, list(by_agent)).colour,
                    "final return": f"{values['final_return']:.2f}",
                    "95 % interval": f"{low:.2f}{DASH}{high:.2f}",
                    "of the oracle": f"{values['oracle_fraction']:.3f}",
                    "its interval": f"{low_fraction:.3f}{DASH}{high_fraction:.3f}",
                    "IQM": f"{values['oracle_fraction_iqm']:.3f}",
                    "NAUC": f"{values['nauc']:.3f}",
                    **{
                        f"ep. {episode}": f"{values['return_at'][episode]:.1f}"
                        if episode in values["return_at"]
                        else DASH
                        for episode in REPORTED_EPISODES
                    },
                    "to reference": _or_dash(values["episodes_to_reference"]),
                    "failed": f"{values['failed_lifetimes']:.1%}",
                }
            )
    return rows


def verdicts(metrics: Mapping[str, Any], titles: Mapping[str, str]) -> list[dict[str, str]]:
    """AD on held-out goals in four numbers per experiment."""
    rows = []
    for experiment, by_agent in metrics.items():
        ad = by_agent["ad"]["held_out"]
        ed = by_agent["ed"]["held_out"]["final_return"] if "ed" in by_agent else 0.0
        rows.append(
            {
                "title": titles[experiment],
                "fraction": f"{ad['oracle_fraction']:.1%}",
                "final_return": f"{ad['final_return']:.2f}",
                "oracle": f"{ad['oracle_return']:.2f}",
                "reference": _or_dash(ad["episodes_to_reference"]),
                "over_ed": f"{ad['final_return'] / ed:.1f} times" if ed > 0 else DASH,
            }
        )
    return rows


def task_table(tasks: pl.DataFrame, *, width: int) -> list[dict[str, str]]:
    """One row per held-out task, worst first.

    Args:
        tasks: columns split, task_id, first_return, final_return, oracle_return, oracle_fraction, failed_lifetimes.
        width: cells along x, which turns a task's number into its goal.
    """
    held_out = tasks.filter(pl.col("split") == "held_out").sort("oracle_fraction", "task_id")
    return [
        {
            "task": str(row["task_id"]),
            "goal": f"({row['task_id'] % width}, {row['task_id'] // width})",
            "first ep.": f"{row['first_return']:.1f}",
            "last ten": f"{row['final_return']:.2f}",
            "oracle": f"{row['oracle_return']:.0f}",
            "fraction": f"{row['oracle_fraction']:.3f}",
            "failed": f"{row['failed_lifetimes']:.0%}",
        }
        for row in held_out.iter_rows(named=True)
    ]


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
