"""The pandera schema that guards every dataset, when it is written and when it is read.

Rules look at rows and their neighbours, so they hold per shard: a history is never split over shards.
"""

from collections.abc import Callable, Collection, Mapping

import numpy as np
import pandera.polars as pa
import polars as pl

from distillery.core.specs import TaskSpec
from distillery.histories.format import DatasetError, column_types

SHOWN_ROWS = 5


def row_rules(spec: TaskSpec, task_ids: Collection[int], num_episodes: int) -> dict[str, pl.Expr]:
    """Name and boolean expression of every rule; an expression is true where a row obeys.

    Args:
        spec: bounds of observations, actions and episode length.
        task_ids: the tasks that may appear: those of the split the histories are for.
        num_episodes: episodes of every history.
    """
    history, episode, step = pl.col("history"), pl.col("episode"), pl.col("step")
    ends = pl.col("terminated") | pl.col("truncated")
    new_history = (history != history.shift(1)).fill_null(True)
    new_episode = (new_history | (episode != episode.shift(1))).fill_null(True)
    last_of_history = (history != history.shift(-1)).fill_null(True)
    last_of_episode = (last_of_history | (episode != episode.shift(-1))).fill_null(True)
    observations = {
        f"observation_{d} is from 0 to {size - 1}": pl.col(f"observation_{d}") < size
        for d, size in enumerate(spec.observation_sizes)
    }
    return {
        **observations,
        f"action is from 0 to {spec.num_actions - 1}": pl.col("action") < spec.num_actions,
        "reward is finite": pl.col("reward").is_finite().fill_null(False),
        f"step is from 0 to {spec.episode_steps - 1}": step.is_between(0, spec.episode_steps - 1),
        "histories follow one another": new_history | (history == history.shift(1)).fill_null(False),
        "history numbers go up by one": (history - history.shift(1)).fill_null(0).is_between(0, 1),
        "a history starts with episode 0": ~new_history | (episode == 0),
        "episodes are contiguous": new_history | (episode - episode.shift(1)).fill_null(0).is_between(0, 1),
        f"a history has {num_episodes} episodes": ~last_of_history | (episode == num_episodes - 1),
        "an episode starts with step 0": ~new_episode | (step == 0),
        "steps are contiguous": new_episode | ((step - step.shift(1)) == 1).fill_null(True),
        "an episode ends at its last step and only there": ends == last_of_episode,
        "terminated and truncated exclude each other": ~(pl.col("terminated") & pl.col("truncated")),
        "a history has one task": new_history | (pl.col("task_id") == pl.col("task_id").shift(1)),
        "the task belongs to the split": pl.col("task_id").is_in([int(task) for task in task_ids]),
    }


def validate_steps(
    frame: pl.DataFrame, spec: TaskSpec, task_ids: Collection[int], num_episodes: int, *, where: str
) -> dict[str, int]:
    """Checks one shard; returns the number of rows that each rule was checked on.

    Raises:
        DatasetError: naming every broken rule, how many rows break it, and the first of them.
    """
    rules = row_rules(spec, task_ids, num_episodes)
    schema = pa.DataFrameSchema(
        # Pandera counts NaN as null; a rule of our own says it more clearly.
        {name: pa.Column(dtype, nullable=name == "reward") for name, dtype in column_types(spec).items()},
        checks=[pa.Check(_obeys(rule), name=name) for name, rule in rules.items()],
        strict=True,
        ordered=True,
    )
    try:
        schema.validate(frame, lazy=True)
    except (pa.errors.SchemaErrors, pa.errors.SchemaError) as error:
        raise DatasetError(_report(frame, rules, error, where)) from None
    return dict.fromkeys(rules, frame.height)


def _obeys(rule: pl.Expr) -> Callable[[pa.PolarsData], pl.LazyFrame]:
    return lambda data: data.lazyframe.select(rule)


def _report(frame: pl.DataFrame, rules: Mapping[str, pl.Expr], error: Exception, where: str) -> str:
    """One text with counts per rule and first failing rows, never all of them."""
    lines = [f"{where} breaks the dataset's schema:"]
    missing = sorted({str(item) for item in _column_failures(error)})
    lines += [f"  - {item}" for item in missing]
    if not missing:
        for name, rule in rules.items():
            broken = frame.with_row_index("row").filter(~rule)
            if broken.height:
                lines.append(f"  - rule '{name}': {broken.height} of {frame.height} rows; first of them:")
                lines += [f"      {row}" for row in broken.head(SHOWN_ROWS).iter_rows(named=True)]
    lines.append(
        "  remedy: collect the histories again with `dvc repro -f collect`, or restore them with `dvc checkout`"
    )
    return "\n".join(lines)


def _column_failures(error: Exception) -> list[str]:
    cases = getattr(error, "failure_cases", None)
    if not isinstance(cases, pl.DataFrame):
        return [str(error)]
    columns = cases.filter(
        pl.col("check").str.contains("column_in|dtype|not_nullable|column_ordered")
        | (pl.col("schema_context") == "Column")
    )
    return [f"{row['check']}: {row['failure_case']}" for row in columns.head(SHOWN_ROWS).iter_rows(named=True)]


def validate_learning(mean_returns: Collection[float], *, where: str) -> tuple[float, float]:
    """The fact that distillation lives on: the last tenth of the episodes returns more than the first.

    Args:
        mean_returns: mean return of each episode number over all histories.
        where: name of the dataset.

    Returns:
        Mean return of the first and of the last tenth.

    Raises:
        DatasetError: it does not.
    """
    tenth = max(1, len(mean_returns) // 10)
    frame = pl.DataFrame(
        {
            "first_tenth": [float(np.mean(list(mean_returns)[:tenth]))],
            "last_tenth": [float(np.mean(list(mean_returns)[-tenth:]))],
        }
    )
    rule = pl.col("last_tenth") > pl.col("first_tenth")
    schema = pa.DataFrameSchema(
        {"first_tenth": pa.Column(pl.Float64), "last_tenth": pa.Column(pl.Float64)},
        checks=pa.Check(_obeys(rule), name="the last tenth of the episodes returns more than the first"),
    )
    first, last = frame.row(0)
    try:
        schema.validate(frame)
    except pa.errors.SchemaError:
        raise DatasetError(
            f"{where} holds no learning: the last tenth of its {len(mean_returns)} episodes returns {last:.3f} on "
            f"average, the first tenth {first:.3f}; a model could distil no improvement from it. Remedy: give the "
            "source more episodes (sources.num_episodes) or better settings"
        ) from None
    return first, last
