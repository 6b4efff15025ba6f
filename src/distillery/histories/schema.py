"""The pandera schema that guards every dataset, when it is written and when it is read.

Rules look at rows and their neighbours, so they hold per shard: a history is never split over shards.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pandera.polars as pa
import polars as pl

from distillery.core.specs import Box, Discrete, TaskSpec
from distillery.histories.curves import LearningCurves
from distillery.histories.format import DatasetError, action_columns, column_types, observation_columns

SHOWN_ROWS = 5


def row_rules(
    spec: TaskSpec, task_ids: Collection[int], num_episodes: int, min_episodes: int | None = None
) -> dict[str, pl.Expr]:
    """Name and boolean expression of every rule; an expression is true where a row obeys.

    Args:
        spec: bounds of observations, actions and episode length.
        task_ids: the tasks that may appear: those of the split the histories are for.
        num_episodes: episodes of the longest history.
        min_episodes: episodes of the shortest; None says that all are equally long.
    """
    history, episode, step = pl.col("history"), pl.col("episode"), pl.col("step")
    ends = pl.col("terminated") | pl.col("truncated")
    new_history = (history != history.shift(1)).fill_null(True)
    new_episode = (new_history | (episode != episode.shift(1))).fill_null(True)
    last_of_history = (history != history.shift(-1)).fill_null(True)
    last_of_episode = (last_of_history | (episode != episode.shift(-1))).fill_null(True)
    fewest = num_episodes if min_episodes is None else min_episodes
    counts = f"{num_episodes}" if fewest == num_episodes else f"{fewest} to {num_episodes}"
    return {
        **_space_rules(spec),
        "reward is finite": pl.col("reward").is_finite().fill_null(False),
        f"step is from 0 to {spec.episode_steps - 1}": step.is_between(0, spec.episode_steps - 1),
        "histories follow one another": new_history | (history == history.shift(1)).fill_null(False),
        "history numbers go up by one": (history - history.shift(1)).fill_null(0).is_between(0, 1),
        "a history starts with episode 0": ~new_history | (episode == 0),
        "episodes are contiguous": new_history | (episode - episode.shift(1)).fill_null(0).is_between(0, 1),
        f"a history has {counts} episodes": ~last_of_history | episode.is_between(fewest - 1, num_episodes - 1),
        "an episode starts with step 0": ~new_episode | (step == 0),
        "steps are contiguous": new_episode | ((step - step.shift(1)) == 1).fill_null(True),
        "an episode ends at its last step and only there": ends == last_of_episode,
        "terminated and truncated exclude each other": ~(pl.col("terminated") & pl.col("truncated")),
        "a history has one task": new_history | (pl.col("task_id") == pl.col("task_id").shift(1)),
        "the task belongs to the split": pl.col("task_id").is_in([int(task) for task in task_ids]),
    }


def _space_rules(spec: TaskSpec) -> dict[str, pl.Expr]:
    """Observations and actions lie within their spaces."""
    rules: dict[str, pl.Expr] = {}
    for part, names in observation_columns(spec).items():
        space = spec.observation[part]
        rules |= dict([_box_rule(names[0], space)] if isinstance(space, Box) else _discrete_rules(names, space))
    names = action_columns(spec)
    if isinstance(spec.action, Discrete):
        return rules | dict(_discrete_rules(names, spec.action))
    low, high = (pl.lit(bound, pl.Float32) for bound in (spec.action.low, spec.action.high))
    # NaN lies above everything, and so outside.
    within = {name: pl.col(name).is_between(low, high).fill_null(False) for name in names}
    return rules | {f"{name} is {_bounds(spec.action)}": rule for name, rule in within.items()}


def _discrete_rules(names: list[str], space: Discrete) -> list[tuple[str, pl.Expr]]:
    return [
        (f"{name} is from 0 to {size - 1}", pl.col(name).is_between(0, size - 1))
        for name, size in zip(names, space.sizes, strict=True)
    ]


def _box_rule(name: str, space: Box) -> tuple[str, pl.Expr]:
    """All numbers of a list are finite and within the bounds, looked at as one array."""
    low, high = space.low, space.high
    if space.dtype == "float32":
        largest = float(np.finfo(np.float32).max)
        low, high = max(low, -largest), min(high, largest)

    def within(column: pl.Series) -> pl.Series:
        values = column.to_numpy()
        # The smallest and the largest of a row with NaN are NaN, which compares with nothing.
        return pl.Series((values.min(1) >= low) & (values.max(1) <= high))

    return f"{name} is {_bounds(space)}", pl.col(name).map_batches(within, return_dtype=pl.Boolean)


def _bounds(space: Box) -> str:
    if math.isfinite(space.low) and math.isfinite(space.high):
        return f"from {space.low:g} to {space.high:g}"
    if math.isfinite(space.low):
        return f"finite and at least {space.low:g}"
    return f"finite and at most {space.high:g}" if math.isfinite(space.high) else "finite"


def validate_steps(
    frame: pl.DataFrame,
    spec: TaskSpec,
    task_ids: Collection[int],
    num_episodes: int,
    min_episodes: int | None = None,
    *,
    where: str,
) -> dict[str, int]:
    """Checks one shard; returns the number of rows that each rule was checked on.

    Raises:
        DatasetError: naming every broken rule, how many rows break it, and the first of them.
    """
    columns = pa.DataFrameSchema(
        # Pandera counts NaN as null; a rule of our own says it more clearly.
        {name: pa.Column(dtype, nullable=dtype == pl.Float32) for name, dtype in column_types(spec).items()},
        strict=True,
        ordered=True,
    )
    try:
        columns.validate(frame, lazy=True)
    except (pa.errors.SchemaErrors, pa.errors.SchemaError) as error:
        raise DatasetError(_report([f"  - {item}" for item in _column_failures(error)], where)) from None
    rules = row_rules(spec, task_ids, num_episodes, min_episodes)
    # Pandera sees whether rows obey rather than the rows, since it makes a text of every row that does not.
    obeyed = pa.DataFrameSchema({name: pa.Column(pl.Boolean, pa.Check(_obeys), nullable=True) for name in rules})
    try:
        obeyed.validate(frame.select(**rules), lazy=True)
    except (pa.errors.SchemaErrors, pa.errors.SchemaError):
        raise DatasetError(_report(_broken(frame, rules), where)) from None
    return dict.fromkeys(rules, frame.height)


def _obeys(data: pa.PolarsData) -> pl.LazyFrame:
    return data.lazyframe.select(data.key)


def _broken(frame: pl.DataFrame, rules: Mapping[str, pl.Expr]) -> Iterator[str]:
    """Each broken rule with its count and the first rows that break it, never all of them."""
    for name, rule in rules.items():
        broken = frame.with_row_index("row").filter(~rule)
        if broken.height:
            yield f"  - rule '{name}': {broken.height} of {frame.height} rows; first of them:"
            yield from (f"      {_shown(row)}" for row in broken.head(SHOWN_ROWS).iter_rows(named=True))


def _report(lines: Iterable[str], where: str) -> str:
    remedy = "  remedy: collect the histories again with `dvc repro -f collect`, or restore them with `dvc checkout`"
    return "\n".join([f"{where} breaks the dataset's schema:", *lines, remedy])


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    """A row with its long lists cut short."""
    return {
        name: f"{len(value)} numbers from {min(value)} to {max(value)}, first {value[:SHOWN_ROWS]}"
        if isinstance(value, list) and len(value) > 2 * SHOWN_ROWS
        else value
        for name, value in row.items()
    }


def _column_failures(error: Exception) -> list[str]:
    """What is wrong with the columns themselves: their names, order, types, or nulls."""
    cases = getattr(error, "failure_cases", None)
    if not isinstance(cases, pl.DataFrame):
        return [str(error)]
    shown = cases.select("check", "failure_case").unique(maintain_order=True).head(SHOWN_ROWS)
    return [f"{check}: {case}" for check, case in shown.iter_rows()]


def validate_learning(curves: LearningCurves, *, where: str) -> None:
    """The fact that distillation lives on: the last tenth of the episodes returns more than the first.

    Where every history is a single episode, its steps take the place of episodes.

    Args:
        curves: of all histories.
        where: name of the dataset.

    Raises:
        DatasetError: it does not.
    """
    first, last = curves.mean_tenths
    unit, setting = ("steps", "tasks.episode_steps") if curves.num_episodes == 1 else _EPISODES
    schema = pa.DataFrameSchema(
        {"first_tenth": pa.Column(pl.Float64), "last_tenth": pa.Column(pl.Float64)},
        checks=pa.Check(_rises, name=f"the last tenth of the {unit} returns more than the first"),
    )
    try:
        schema.validate(pl.DataFrame({"first_tenth": [first], "last_tenth": [last]}))
    except pa.errors.SchemaError:
        raise DatasetError(
            f"{where} holds no learning: the last tenth of its {unit} returns {last:.3f} on average, the first tenth "
            f"{first:.3f}; a model could distil no improvement from it. Remedy: give the source more {unit} "
            f"({setting}) or better settings"
        ) from None


_EPISODES = ("episodes", "sources.num_episodes")


def _rises(data: pa.PolarsData) -> pl.LazyFrame:
    return data.lazyframe.select(pl.col("last_tenth") > pl.col("first_tenth"))
