"""Evaluations, checkpoints and datasets become figures, tables and one page.

python -m distillery.stages.report
"""

import contextlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml

from distillery.core.files import read_json, whole_file
from distillery.core.lifetimes import BASELINES
from distillery.evaluation.storage import CURVES_FILE, STEPS_FILE, SUMMARY_FILE, TASKS_FILE, TRAINING_FILE
from distillery.reports.filmstrip import RoomLifetime, filmstrip, lifetime_gif, strip_text
from distillery.reports.goal_map import GoalValues, goal_map
from distillery.reports.learning_curves import (
    PUBLISHED_DARK_ROOM,
    PUBLISHED_SETTINGS,
    CurvePanel,
    PublishedCurve,
    learning_curves,
)
from distillery.reports.page import render_page
from distillery.reports.style import gif_bytes, png_bytes, sentence_figure
from distillery.reports.tables import (
    FINAL_EPISODES,
    dataset_rows,
    differing_settings,
    ending,
    headline_rows,
    metrics_of,
    reported_splits,
    split_heading,
    task_table,
    training_rows,
    verdicts,
    wide_curves,
)
from distillery.reports.training_curves import training_curves
from distillery.stages.paper_page import PAGE, gathered
from distillery.stages.resolve import load_params

FOLDER = Path("data", "reports")
REMEDY = "run `dvc repro` to make it, or `dvc pull` to fetch it"
LIFETIME_RULE = "it is the held-out one with the median area under the first {first}'s curve, first seed{other}"
OTHER_SIZE = "; in a room of another size, the one with the median there"
NO_ROOM = "No experiment of this report is a Dark Room whose tasks differ in their goals alone: nothing to draw."
DARK_ROOM = "distillery.tasks.dark_room.DarkRoom"
TRANSFORMER = "distillery.models.causal_transformer.CausalTransformer"
# Settings that say which tasks are reported, not what a return means.
_SPLIT_SETTINGS = (
    *("split", "split_seed", "num_tasks"),
    *("num_train", "num_validation", "num_held_out", "num_seen", "num_uniform"),
)
# Of a row, what the page shows in another way than by a column.
_ROW_KEYS = ("experiment", "agent", "label", "colour")


@dataclass(frozen=True)
class Results:
    """Everything the report tells of one experiment.

    Attributes:
        settings: its resolved configuration.
        validation: what was checked of its datasets.
        summaries: by agent.
        curves: of all agents: experiment, agent, split, episode, return, low, high.
        tasks: AD's row per task.
        steps: AD's recorded lifetimes, one per held-out task; None unless the tasks are a room.
        trainings: by learned agent, what its checkpoint says of its training.
    """

    settings: dict[str, Any]
    validation: dict[str, Any]
    summaries: dict[str, dict[str, Any]]
    curves: pl.DataFrame
    tasks: pl.DataFrame
    steps: dict[str, np.ndarray] | None
    trainings: dict[str, dict[str, Any]]

    @property
    def title(self) -> str:
        """The experiment's name and the source it distils."""
        return f"{self.settings['name']}: distils {self.settings['sources']['_target_'].split('.')[-2]}"

    @property
    def size(self) -> tuple[int, int] | None:
        """Cells of the room along x and y, where a task is a goal in a room and nothing else; otherwise None."""
        return room_size(self.settings["tasks"])

    @property
    def family(self) -> str:
        """Alike for experiments whose returns mean the same: whose tasks differ in their split at most."""
        tasks = {name: value for name, value in self.settings["tasks"].items() if name not in _SPLIT_SETTINGS}
        return json.dumps(tasks, sort_keys=True)

    @property
    def held_out(self) -> dict[str, Any]:
        """AD's numbers on held-out tasks."""
        values: dict[str, Any] = self.summaries["ad"]["splits"]["held_out"]
        return values

    @property
    def stays(self) -> bool:
        """Whether an agent in a room is paid for staying on the goal."""
        tasks = self.settings["tasks"]
        return tasks["reward"] == "every_step" and tasks["termination"] == "never"

    @property
    def published(self) -> PublishedCurve | None:
        """The paper's curve, if the tasks are the paper's Dark Room."""
        same = self.size is not None and PUBLISHED_SETTINGS.items() <= self.settings["tasks"].items()
        return PUBLISHED_DARK_ROOM if same else None


def room_size(tasks: Mapping[str, Any]) -> tuple[int, int] | None:
    """Cells along x and y of a Dark Room whose actions mean the same in every task; None for other tasks."""
    if tasks["_target_"] != DARK_ROOM or tasks.get("num_action_permutations", 1) != 1:
        return None
    return tasks["width"], tasks["height"]


def read_results(experiment: str, learned: list[str]) -> Results:
    """Reads one experiment.

    Raises:
        ValueError: a file is missing or broken; names it and the remedy.
    """
    folders = {agent: Path("data", "evaluations", experiment, agent) for agent in (*learned, *BASELINES)}
    settings = _read_yaml(Path("data", "resolved", "experiments", f"{experiment}.yaml"))
    splits = settings["evaluation"]["splits"]
    summaries = {agent: _read_summary(folder / SUMMARY_FILE, splits) for agent, folder in folders.items()}
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
        settings=settings,
        validation=read_json(Path("data", "validations", f"{experiment}.json"), remedy=REMEDY),
        summaries=summaries,
        curves=pl.concat(curves),
        tasks=_read_csv(folders["ad"] / TASKS_FILE),
        steps=_read_arrays(folders["ad"] / STEPS_FILE) if room_size(settings["tasks"]) else None,
        trainings={agent: read_json(folders[agent] / TRAINING_FILE, remedy=REMEDY) for agent in learned},
    )


def goal_maps(results: Mapping[str, Results]) -> dict[str, GoalValues]:
    """AD's final return over the oracle's, per goal of every room."""
    maps = {}
    for experiment, result in results.items():
        if result.size is None:
            continue
        fractions: dict[str, dict[int, float]] = {}
        for row in result.tasks.iter_rows(named=True):
            fractions.setdefault(row["split"], {})[row["task_id"]] = row["oracle_fraction"]
        validation = 0 if "validation" in fractions else result.settings["tasks"]["num_validation"]
        maps[experiment] = GoalValues(result.title, *result.size, fractions, validation)
    return maps


def typical_task(steps: Mapping[str, np.ndarray]) -> int:
    """The task with the median mean return over its recorded lifetime; the lower one of two."""
    order = np.argsort(steps["returns"].mean(1), kind="stable")
    return int(steps["task_ids"][order[(len(order) - 1) // 2]])


def lifetimes(results: Mapping[str, Results]) -> dict[str, RoomLifetime]:
    """The first lifetime of one goal in every room: the same goal, where a room is as large and holds it out too."""
    rooms = {name: result for name, result in results.items() if result.steps and "observations" in result.steps}
    chosen: dict[str, RoomLifetime] = {}
    first: tuple[tuple[int, int] | None, int] | None = None
    for experiment, result in rooms.items():
        steps, size = result.steps, result.size
        assert steps is not None and size is not None
        first = first or (size, typical_task(steps))
        same = first[0] == size and first[1] in steps["task_ids"]
        task = first[1] if same else typical_task(steps)
        at = int(np.flatnonzero(steps["task_ids"] == task)[0])
        chosen[experiment] = RoomLifetime(
            result.title, *size, task, steps["observations"][at], steps["num_steps"][at], steps["returns"][at]
        )
    return chosen


def pictures(
    results: Mapping[str, Results], maps: Mapping[str, GoalValues], lives: Mapping[str, RoomLifetime], *, noun: str
) -> dict[str, bytes]:
    """Every picture, name to content; where no experiment is a room, those of rooms say so."""
    curves = pl.concat([result.curves for result in results.values()])
    panels = {
        name: CurvePanel(result.title, result.family, result.held_out["oracle_return"], result.published)
        for name, result in results.items()
    }
    trainings = {experiment: result.trainings for experiment, result in results.items()}
    nothing = sentence_figure(NO_ROOM)
    return {
        "learning_curves.png": png_bytes(learning_curves(curves, panels, noun=noun)),
        "goal_map.png": png_bytes(goal_map(maps, ending=_ending(results, maps)) if maps else nothing),
        "filmstrip.png": png_bytes(filmstrip(lives) if lives else nothing),
        "lifetime.gif": lifetime_gif(lives) if lives else gif_bytes(nothing),
        "training.png": png_bytes(training_curves(trainings, one_family=of_one_family(results))),
    }


def _ending(results: Mapping[str, Results], names: Iterable[str]) -> str:
    endings = {ending(results[name].held_out["num_episodes"]) for name in names}
    return endings.pop() if len(endings) == 1 else "the final episodes"


def of_one_family(results: Mapping[str, Results]) -> bool:
    """Whether returns mean the same in all experiments."""
    return len({result.family for result in results.values()}) == 1


def wording(
    results: Mapping[str, Results], maps: Mapping[str, GoalValues], lives: Mapping[str, RoomLifetime]
) -> dict[str, Any]:
    """What the page's sentences depend on, so that they are true of whatever the experiments are."""
    lengths = [result.held_out["num_episodes"] for result in results.values()]
    prompts = [result.settings["evaluation"]["prompt"]["oracle_fraction"] for result in results.values()]
    in_rooms = [results[name] for name in lives]
    return {
        "noun": "goals" if len(maps) == len(results) else "tasks",
        "transformers": all(result.settings["models"]["_target_"] == TRANSFORMER for result in results.values()),
        "prompted": any(prompt is not None for prompt in prompts),
        "one_family": of_one_family(results),
        "distilled_expert": any("ed" in result.summaries for result in results.values()),
        "dotted": any(
            "train" in result.summaries["ad"]["splits"] and result.held_out["num_episodes"] > 1
            for result in results.values()
        ),
        "single_episodes": lengths.count(1),
        "shorter_lifetimes": min(lengths) < FINAL_EPISODES,
        "references": {name: result.held_out["reference_fraction"] for name, result in results.items()},
        "published": {name: result.published for name, result in results.items()},
        "rooms": list(maps),
        "numbered": all(values.numbered for values in maps.values()),
        "train_goals": any("train" in values.fractions for values in maps.values()),
        "hatched": {values.hatched for values in maps.values()} - {None},
        "lived_rooms": list(lives),
        "strip_episodes": strip_text(max([len(life.returns) for life in lives.values()], default=1)),
        "stays": all(result.stays for result in in_rooms),
        "lifetime_rule": LIFETIME_RULE.format(
            first="experiment" if list(lives)[:1] == list(results)[:1] else "room",
            other=OTHER_SIZE if len({result.size for result in in_rooms}) > 1 else "",
        ),
    }


def with_studies(metrics: Mapping[str, Any], studies: Mapping[str, Any]) -> dict[str, Any]:
    """The pipeline's metrics, each of one training, and those of studies for what the pipeline does not run.

    A study of an experiment that the pipeline runs as well stands whole beside it, as ``dark_room_study``.
    """
    for values in (values for agents in metrics.values() for splits in agents.values() for values in splits.values()):
        values |= {"num_training_seeds": 1, "is_normalised": False}
    merged = {name: {**studies.get(name, {}), **metrics.get(name, {})} for name in dict.fromkeys([*metrics, *studies])}
    return merged | {f"{name}_study": studies[name] for name in metrics if name in studies}


def make_report(
    results: Mapping[str, Results], studies: Mapping[str, Any], *, has_paper: bool = False
) -> dict[str, bytes]:
    """Every file of the report, name to content; writes nothing.

    Args:
        results: of the pipeline's experiments.
        studies: metrics of committed studies, see `distillery.stages.paper_page.gathered`.
        has_paper: whether the page of the studies lies beside the report.
    """
    titles = {experiment: result.title for experiment, result in results.items()}
    curves = pl.concat([result.curves for result in results.values()])
    metrics = metrics_of({experiment: result.summaries for experiment, result in results.items()})
    trainings = {experiment: result.trainings for experiment, result in results.items()}
    maps, lives = goal_maps(results), lifetimes(results)
    told = wording(results, maps, lives)
    images = pictures(results, maps, lives, noun=told["noun"])
    headline = {split: headline_rows(metrics, split=split) for split in reported_splits(metrics)}
    validations = {name: result.validation for name, result in results.items()}
    datasets = dataset_rows(validations, kinds=("learning", "expert"))
    page = render_page(
        images,
        **told,
        has_paper=has_paper,
        experiments=list(results),
        titles=titles,
        verdicts=verdicts(metrics, titles),
        headings={split: split_heading(split, told["noun"]) for split in headline},
        headline=headline,
        columns={split: [key for key in rows[0] if key not in _ROW_KEYS] for split, rows in headline.items()},
        tasks={
            name: task_table(
                result.tasks, num_episodes=result.held_out["num_episodes"], width=(result.size or [None])[0]
            )
            for name, result in results.items()
        },
        num_held_out={name: result.held_out["num_tasks"] for name, result in results.items()},
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
    for name, content in make_report(results, gathered(), has_paper=PAGE.is_file()).items():
        with whole_file(FOLDER / name) as temporary:
            temporary.write_bytes(content)
    print(f"report on {', '.join(results)}: {FOLDER / 'index.html'}")


def _read_summary(path: Path, splits: Sequence[str]) -> dict[str, Any]:
    summary = read_json(path, remedy=REMEDY)
    missing = [split for split in splits if split not in summary.get("splits", {})]
    if missing:
        raise ValueError(f"{path} lacks the splits {', '.join(missing)}; {REMEDY}")
    return summary


@contextlib.contextmanager
def _reading(path: Path, problem: str, broken: type[Exception] | tuple[type[Exception], ...]) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist; {REMEDY}") from error
    except broken as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"{path} {problem} ({reason}); {REMEDY}") from error


def _read_csv(path: Path) -> pl.DataFrame:
    with _reading(path, "is not a readable table", pl.exceptions.PolarsError):
        return pl.read_csv(path)


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    with _reading(path, "cannot be read", (ValueError, OSError, EOFError)), np.load(path) as arrays:
        return dict(arrays)


def _read_yaml(path: Path) -> dict[str, Any]:
    with _reading(path, "is not valid YAML", yaml.YAMLError):
        values: dict[str, Any] = yaml.safe_load(path.read_text())
        return values


if __name__ == "__main__":
    try:
        report()
    except (ValueError, OSError) as failure:
        sys.exit(f"error: {failure}")
