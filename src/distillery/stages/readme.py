"""Writes the README's tables from committed results: the pipeline's, the paper's claims, the environments.

``python -m distillery.stages.readme``; with ``--check`` it writes nothing, and fails where another table would be
written. Each lies between two lines that name it; what stands around them is left alone.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from distillery.core.files import read_json, whole_file
from distillery.core.lifetimes import BASELINES, FINAL_EPISODES
from distillery.papers.results import FOLDER as RESULTS
from distillery.papers.statistics import StudyNumbers
from distillery.papers.study import Study, Variant, load_study, study_names
from distillery.reports.marked import with_part
from distillery.reports.tables import DASH, REPORTED_EPISODES, headline_rows
from distillery.stages.paper_page import claim_rows, numbers_of

README, METRICS, PARAMS = Path("README.md"), Path("data", "reports", "metrics.json"), Path("params.yaml")
# Cells of the report's table, and what they are called here.
PIPELINE_COLUMNS = {
    "experiment": "experiment",
    "label": "agent",
    **{f"ep. {episode}": f"episode {episode}" for episode in REPORTED_EPISODES},
    "final return": "last ten",
    "of the oracle": "of the oracle",
    "its interval": "95 % interval",
    "NAUC": "NAUC",
    "to reference": "published level from episode",
}
PIPELINE, CLAIMS, ENVIRONMENTS = TABLES = ("pipeline", "claims", "environments")


def begin_line(name: str) -> str:
    """The line above a table."""
    return f"<!-- begin: {name}, written by `python -m distillery.stages.readme` -->"


def end_line(name: str) -> str:
    """The line below a table."""
    return f"<!-- end: {name} -->"


def markdown_table(rows: Sequence[Mapping[str, str]]) -> str:
    """The rows under the first one's keys; no rows are no table."""
    if not rows:
        return ""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def pipeline_rows(metrics: Mapping[str, Any], params: Mapping[str, Any]) -> list[dict[str, str]]:
    """A row for each agent of the pipeline's experiments, on held-out tasks.

    Raises:
        ValueError: the metrics lack one of them.
    """
    asked = (*params["agents"], *BASELINES)
    missing = [name for name in params["experiments"] if not set(asked) <= set(metrics.get(name, ()))]
    if missing:
        raise ValueError(f"{METRICS} lacks {', '.join(missing)}, which {PARAMS} names; run `dvc repro` first")
    # A study of the same name adds agents to an experiment.
    told = {name: {agent: metrics[name][agent] for agent in asked} for name in params["experiments"]}
    return [
        {heading: row[cell] for cell, heading in PIPELINE_COLUMNS.items() if cell in row}
        for row in headline_rows(told, split="held_out")
    ]


def environment_rows(numbers: StudyNumbers) -> list[dict[str, str]]:
    """A row for each agent of a study of an environment that trains, on the first of its splits."""
    trained = [variant for variant in numbers.study.variants.values() if variant.trains]
    rows = [_environment_row(numbers, variant) for variant in trained]
    return [{"environment": numbers.study.title if row is rows[0] else "", **row} for row in rows]


def _environment_row(numbers: StudyNumbers, variant: Variant) -> dict[str, str]:
    row = {
        "agent": variant.label,
        "published": DASH if variant.published is None else f"{variant.published:.2f}",
        "held-out (95 %)": "not run",
        "trainings": f"0 of {len(numbers.study.seeds(variant))}",
        "published AD reached from": DASH,
        "failed": DASH,
    }
    if not numbers.has(variant.name):
        return row
    level, failures = numbers.level(variant.name), numbers.failures(variant.name)
    row["held-out (95 %)"] = level.text()
    row["trainings"] = f"{level.num_seeds} of {len(numbers.study.seeds(variant))}"
    if numbers.study.level is not None and numbers.curve(variant.name).shape[1] >= FINAL_EPISODES:
        reached = numbers.episodes_to_level(variant.name)
        row["published AD reached from"] = "never" if reached is None else f"episode {reached}"
    row["failed"] = f"{sum(failed for *_, failed in failures) / len(failures):.0%}"
    return row


def claims_table(studies: Sequence[Study], results: Path = RESULTS) -> list[dict[str, str]]:
    """A row for each numbered claim."""
    return [
        {
            "": str(row["number"]),
            "the paper's claim": row["text"],
            "here it": row["verdict"],
            "its checks": row["counts"],
            "trainings a check": row["trainings"],
        }
        for row in claim_rows(studies, results)
    ]


def pipeline_table() -> dict[str, str]:
    """What the pipeline of the working folder came to, by the table's name.

    Raises:
        ValueError: the metrics are missing, or lack an experiment of the pipeline.
    """
    metrics, params = read_json(METRICS, remedy="run `dvc repro` first"), yaml.safe_load(PARAMS.read_text())
    return {PIPELINE: markdown_table(pipeline_rows(metrics, params))}


def study_tables(results: Path = RESULTS) -> dict[str, str]:
    """What the studies came to, by the tables' names."""
    studies = [study for study in map(load_study, study_names()) if not study.on_request]
    environments = [numbers_of(study, results) for study in studies if study.gathered_as is not None]
    return {
        CLAIMS: markdown_table(claims_table(studies, results)),
        ENVIRONMENTS: markdown_table([row for numbers in environments for row in environment_rows(numbers)]),
    }


def update_readme(tables: Mapping[str, str], *, check: bool = False) -> None:
    """Writes tables into the README of the working folder, if they are others than those there.

    Args:
        tables: by their names; others stay as they are.
        check: write nothing, and fail where it would.

    Raises:
        ValueError: a line that marks a table is missing, or something is not up to date and only checked.
    """
    text = present = README.read_text()
    for name, content in tables.items():
        try:
            text = with_part(text, begin_line(name), end_line(name), content)
        except ValueError as error:
            raise ValueError(f"{README} {error}") from error
    if text == present:
        return
    if check:
        raise ValueError(f"the tables of {README} are not those of the results; run `make readme`, and commit it")
    with whole_file(README) as temporary:
        temporary.write_text(text)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m distillery.stages.readme")
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the tables are not up to date")
    options = parser.parse_args(arguments)
    try:
        README.stat()  # before the minute that the tables take
        update_readme(pipeline_table() | study_tables(), check=options.check)
    except FileNotFoundError as error:
        sys.exit(f"error: {error.filename} is missing; run this in the repository")
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
