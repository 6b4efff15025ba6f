"""Evaluations, checkpoints and datasets become figures, tables and one page.

python -m distillery.stages.report
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml

from distillery.core.files import read_json, whole_file
from distillery.evaluation.metrics import REFERENCE_FRACTION
from distillery.evaluation.storage import CURVES_FILE, STEPS_FILE, SUMMARY_FILE, TASKS_FILE, TRAINING_FILE
from distillery.reports.filmstrip import RoomLifetime, filmstrip, lifetime_gif
from distillery.reports.goal_map import GoalValues, goal_map
from distillery.reports.learning_curves import PUBLISHED_DARK_ROOM, PublishedCurve, learning_curves
from distillery.reports.page import render_page
from distillery.reports.style import png_bytes
from distillery.reports.tables import (
    SPLITS,
    dataset_rows,
    differing_settings,
    headline_rows,
    metrics_of,
    task_table,
    training_rows,
    verdicts,
    wide_curves,
)
from distillery.reports.training_curves import training_curves
from distillery.stages.paper_page import gathered
from distillery.stages.resolve import load_params

FOLDER = Path("data", "reports")
BASELINES = ("source", "random", "oracle")
REMEDY = "run `dvc repro` to make it, or `dvc pull` to fetch it"
LIFETIME_RULE = "it is the held-out one with the median area under the first experiment's curve, first seed"


@dataclass(frozen=True)
class Results:
    """Everything the report tells of one experiment.

    Attributes:
        settings: its resolved configuration.
        validation: what was checked of its datasets.
        summaries: by agent.
        curves: of all agents: experiment, agent, split, episode, return, low, high.
        tasks: AD's row per task.
        steps: AD's recorded lifetimes, one per held-out task.
        trainings: by learned agent, what its checkpoint says of its training.
    """

    settings: dict[str, Any]
    validation: dict[str, Any]
    summaries: dict[str, dict[str, Any]]
    curves: pl.DataFrame
    tasks: pl.DataFrame
    steps: dict[str, np.ndarray]
    trainings: dict[str, dict[str, Any]]

    @property
    def title(self) -> str:
        """The experiment's name and the source it distils."""
        return f"{self.settings['name']}: distils {self.settings['sources']['_target_'].split('.')[-2]}"

    @property
    def size(self) -> tuple[int, int]:
        """Cells of the room along x and y."""
        return self.settings["tasks"]["width"], self.settings["tasks"]["height"]


def read_results(experiment: str, learned: list[str]) -> Results:
    """Reads one experiment.

    Raises:
        ValueError: a file is missing or broken; names it and the remedy.
    """
    folders = {agent: Path("data", "evaluations", experiment, agent) for agent in (*learned, *BASELINES)}
    summaries = {agent: _read_summary(folder / SUMMARY_FILE) for agent, folder in folders.items()}
    curves = [
        _read_csv(folder / CURVES_FILE).select(
            pl.lit(experiment).alias("experiment"),
            pl.lit(agent).alias("agent"),
            "split",
            pl.col("episode").cast(pl.Int64),
            pl.col("return", "low", "high").cast(pl.Float64).round(4),
        )
        for agent, folder in folders.items()
    ]
    return Results(
        settings=_read_yaml(Path("data", "resolved", "experiments", f"{experiment}.yaml")),
        validation=read_json(Path("data", "validations", f"{experiment}.json"), remedy=REMEDY),
        summaries=summaries,
        curves=pl.concat(curves),
        tasks=_read_csv(folders["ad"] / TASKS_FILE),
        steps=_read_arrays(folders["ad"] / STEPS_FILE),
        trainings={agent: read_json(folders[agent] / TRAINING_FILE, remedy=REMEDY) for agent in learned},
    )


def published_curve(results: Mapping[str, Results]) -> PublishedCurve | None:
    """The paper's curve, if every experiment runs the paper's Dark Room; otherwise None."""
    paper = {
        "_target_": "distillery.tasks.dark_room.DarkRoom",
        "width": 9,
        "height": 9,
        "episode_steps": 20,
        "reward": "every_step",
        "start": "centre",
        "walls": "clip",
        "termination": "never",
    }
    same = all(paper.items() <= result.settings["tasks"].items() for result in results.values())
    return PUBLISHED_DARK_ROOM if same else None


def goal_values(result: Results) -> GoalValues:
    """AD's final return over the oracle's, per goal."""
    fractions: dict[str, dict[int, float]] = {split: {} for split in SPLITS}
    for row in result.tasks.iter_rows(named=True):
        fractions[row["split"]][row["task_id"]] = row["oracle_fraction"]
    return GoalValues(result.title, *result.size, fractions)


def typical_task(steps: Mapping[str, np.ndarray]) -> int:
    """The task with the median mean return over its recorded lifetime; the lower one of two."""
    order = np.argsort(steps["returns"].mean(1), kind="stable")
    return int(steps["task_ids"][order[(len(order) - 1) // 2]])


def lifetimes(results: Mapping[str, Results]) -> dict[str, RoomLifetime]:
    """The same task's first lifetime in every experiment, where it is held out there."""
    wanted = typical_task(next(iter(results.values())).steps)
    chosen = {}
    for experiment, result in results.items():
        steps = result.steps
        task = wanted if wanted in steps["task_ids"] else typical_task(steps)
        at = int(np.flatnonzero(steps["task_ids"] == task)[0])
        chosen[experiment] = RoomLifetime(
            result.title, *result.size, task, steps["observations"][at], steps["num_steps"][at], steps["returns"][at]
        )
    return chosen


def with_studies(metrics: Mapping[str, Any], studies: Mapping[str, Any]) -> dict[str, Any]:
    """The pipeline's metrics, and those of studies for experiments and agents that the pipeline does not run."""
    return {name: {**studies.get(name, {}), **metrics.get(name, {})} for name in dict.fromkeys([*metrics, *studies])}


def make_report(results: Mapping[str, Results], studies: Mapping[str, Any]) -> dict[str, bytes]:
    """Every file of the report, name to content; writes nothing.

    Args:
        results: of the pipeline's experiments.
        studies: metrics of committed studies, see `distillery.stages.paper_page.gathered`.
    """
    titles = {experiment: result.title for experiment, result in results.items()}
    curves = pl.concat([result.curves for result in results.values()])
    metrics = metrics_of({experiment: result.summaries for experiment, result in results.items()})
    trainings = {experiment: result.trainings for experiment, result in results.items()}
    published, lives = published_curve(results), lifetimes(results)
    images = {
        "learning_curves.png": png_bytes(learning_curves(curves, titles, published=published)),
        "goal_map.png": png_bytes(goal_map({name: goal_values(result) for name, result in results.items()})),
        "filmstrip.png": png_bytes(filmstrip(lives)),
        "lifetime.gif": lifetime_gif(lives),
        "training.png": png_bytes(training_curves(trainings)),
    }
    headline = {split: headline_rows(metrics, split=split) for split in SPLITS}
    validations = {name: result.validation for name, result in results.items()}
    datasets = dataset_rows(validations, kinds=("learning", "expert"))
    page = render_page(
        images,
        experiments=list(results),
        titles=titles,
        verdicts=verdicts(metrics, titles),
        published=published,
        splits=SPLITS,
        headline=headline,
        columns=[key for key in headline["held_out"][0] if key not in ("experiment", "agent", "label", "colour")],
        reference_fraction=REFERENCE_FRACTION,
        tasks={name: task_table(result.tasks, width=result.size[0]) for name, result in results.items()},
        lifetime_rule=LIFETIME_RULE,
        trainings=training_rows(trainings),
        datasets=datasets,
        rules={row["dataset"]: row["kept if"] for row in datasets if row["kind"] == "learning"},
        settings=differing_settings({name: result.settings for name, result in results.items()}),
    )
    return images | {
        "metrics.json": (json.dumps(with_studies(metrics, studies), indent=2, allow_nan=False) + "\n").encode(),
        "curves.csv": curves.write_csv().encode(),
        "in_context.csv": wide_curves(curves, split="held_out").write_csv().encode(),
        "index.html": page.encode(),
    }


def report() -> None:
    """Writes ``data/reports``; what lies there is replaced only once everything new is made."""
    params = load_params()
    if "ad" not in params.get("agents", []):
        listed = params.get("agents")
        raise ValueError(f"params.yaml must list the agent 'ad', which is what is reported; it lists {listed}")
    results = {experiment: read_results(experiment, list(params["agents"])) for experiment in params["experiments"]}
    for name, content in make_report(results, gathered()).items():
        with whole_file(FOLDER / name) as temporary:
            temporary.write_bytes(content)
    print(f"report on {', '.join(results)}: {FOLDER / 'index.html'}")


def _read_summary(path: Path) -> dict[str, Any]:
    summary = read_json(path, remedy=REMEDY)
    missing = [split for split in SPLITS if split not in summary.get("splits", {})]
    if missing:
        raise ValueError(f"{path} lacks the splits {', '.join(missing)}; {REMEDY}")
    return summary


def _read_csv(path: Path) -> pl.DataFrame:
    try:
        return pl.read_csv(path)
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist; {REMEDY}") from error
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"{path} is not a readable table ({error}); {REMEDY}") from error


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path) as arrays:
            return dict(arrays)
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist; {REMEDY}") from error
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path} cannot be read ({error}); {REMEDY}") from error


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        return yaml.safe_load(path.read_text())
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist; {REMEDY}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML; {REMEDY}") from error


if __name__ == "__main__":
    try:
        report()
    except (ValueError, OSError) as failure:
        sys.exit(f"error: {failure}")
