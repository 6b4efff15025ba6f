"""Writes the README's tables from committed results: the pipeline's, the paper's claims, the environments.

``python -m distillery.stages.readme``; with ``--check`` it writes nothing, and fails where another table would be
written. Each lies between two lines that name it; what stands around them is left alone.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from distillery.core.files import whole_file
from distillery.core.lifetimes import BASELINES
from distillery.papers.results import FOLDER as RESULTS
from distillery.papers.statistics import StudyNumbers
from distillery.papers.study import Study, load_study, study_names
from distillery.reports.style import agent_style
from distillery.reports.tables import DASH, return_decimals
from distillery.stages.paper_page import claim_rows, numbers_of

README, METRICS, PARAMS = Path("README.md"), Path("data", "reports", "metrics.json"), Path("params.yaml")
EPISODES = ("1", "10", "25", "50", "100")
# Of studies of an environment: what stands in a row beside the published numbers, and over it.
AD_VARIANTS = {
    "ad": "AD of a plain source",
    "ad_explorer": "AD of an explorer",
    "ad_a2c_long": "AD of A2C, episode 1000",
}
OTHER_VARIANTS = {"ed": "ED", "rl2": "RL²"}


def begin(part: str) -> str:
    """The line above a part."""
    return f"<!-- begin: {part}, written by `python -m distillery.stages.readme` -->"


def end(part: str) -> str:
    """The line below a part."""
    return f"<!-- end: {part} -->"


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Markdown; the first row's keys are the heading."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def pipeline_rows(metrics: Mapping[str, Any], params: Mapping[str, Any]) -> list[dict[str, str]]:
    """A row for each agent of the pipeline's experiments, on held-out tasks."""
    return [
        _pipeline_row(experiment, agent, metrics[experiment][agent]["held_out"])
        for experiment in params["experiments"]
        for agent in (*params["agents"], *BASELINES)
    ]


def _pipeline_row(experiment: str, agent: str, values: Mapping[str, Any]) -> dict[str, str]:
    low, high = values["oracle_fraction_ci95"]
    decimals, reached = return_decimals(values["oracle_return"]), values["episodes_to_reference"]
    label = agent_style(agent).short
    return {
        "experiment": f"`{experiment}`",
        "agent": f"**{label}**" if agent == "ad" else label,
        **{
            (
                f"episode {episode}" if episode == EPISODES[0] else episode
            ): f"{values['return_at'][episode]:.{decimals}f}"
            for episode in EPISODES
        },
        f"episodes 91{DASH}100": f"{values['final_return']:.2f}",
        "of the oracle (95 % interval)": f"{values['oracle_fraction']:.3f} ({low:.3f} to {high:.3f})",
        "NAUC": f"{values['nauc']:.3f}",
        "reference reached at": DASH if reached is None else str(reached),
    }


def environment_row(numbers: StudyNumbers) -> dict[str, str]:
    """A row for one environment: ends on held-out tasks, and episodes until the published one was reached."""
    study = numbers.study
    row = {"environment": study.title, "best": _end(numbers, "oracle"), "AD, published": _published(study, "ad")}
    for name, label in AD_VARIANTS.items():
        row[label] = _end(numbers, name)
        reached = numbers.episodes_to_level(name) if numbers.study.level is not None and _has(numbers, name) else None
        if reached is not None:
            row[label] += f", from {reached}"
    for name, label in OTHER_VARIANTS.items():
        row |= {f"{label}, published": _published(study, name), label: _end(numbers, name)}
    return row


def _has(numbers: StudyNumbers, variant: str) -> bool:
    return variant in numbers.study.variants and numbers.has(variant)


def _end(numbers: StudyNumbers, variant: str) -> str:
    return f"{numbers.level(variant).value:.2f}" if _has(numbers, variant) else DASH


def _published(study: Study, variant: str) -> str:
    value = study.variants[variant].published if variant in study.variants else None
    return DASH if value is None else f"{value:g}"


def claims(studies: Sequence[Study], results: Path = RESULTS) -> list[dict[str, str]]:
    """A row for each numbered claim."""
    return [
        {"": str(row["number"]), "the paper's claim": row["text"], "here it": row["verdict"], "checks": row["counts"]}
        for row in claim_rows(studies, results)
    ]


def parts(metrics: Mapping[str, Any], params: Mapping[str, Any], results: Path = RESULTS) -> dict[str, str]:
    """Every part by its name."""
    studies = [study for study in map(load_study, study_names()) if not study.on_request]
    environments = [study for study in studies if study.gathered_as is not None]
    return {
        "pipeline": table(pipeline_rows(metrics, params)),
        "claims": table(claims(studies, results)),
        "environments": table([environment_row(numbers_of(study, results)) for study in environments]),
    }


def with_parts(text: str, written: Mapping[str, str]) -> str:
    """The text with every part in its place.

    Raises:
        ValueError: a line that marks one is missing.
    """
    for part, content in written.items():
        before, first, rest = text.partition(begin(part))
        _, last, after = rest.partition(end(part))
        if not first or not last:
            raise ValueError(f"the README lacks the line '{begin(part)}' or '{end(part)}'; put them where it belongs")
        text = f"{before}{first}\n\n{content}\n\n{last}{after}"
    return text


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m distillery.stages.readme")
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the tables are not up to date")
    options = parser.parse_args(arguments)
    try:
        params = yaml.safe_load(PARAMS.read_text())
        metrics = json.loads(METRICS.read_text())
        present = README.read_text()
        text = with_parts(present, parts(metrics, params))
    except FileNotFoundError as error:
        sys.exit(f"error: {error.filename} is missing; run this in the repository")
    except ValueError as error:
        sys.exit(f"error: {error}")
    if text == present:
        return
    if options.check:
        sys.exit("error: the README's tables are not those of the committed results; run make readme")
    with whole_file(README) as temporary:
        temporary.write_text(text)


if __name__ == "__main__":
    main()
