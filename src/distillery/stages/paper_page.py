"""Committed results of studies become one page, published beside ours, and entries among the report's metrics."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distillery.core.files import whole_file
from distillery.papers.results import FOLDER as RESULTS
from distillery.papers.results import read_runs
from distillery.papers.statistics import DOES_NOT, HOLDS, IN_PART, NOT_RUN, SO_FAR, StudyNumbers
from distillery.papers.study import EXTRA, Study, Variant, load_study, study_names
from distillery.reports.page import render_page
from distillery.reports.study_figures import (
    AttentionPanel,
    CurveLine,
    SweepLine,
    SweepPoint,
    attention_figure,
    curves_figure,
    sweep_figure,
)
from distillery.reports.style import png_bytes
from distillery.reports.tables import DASH, rounded
from distillery.stages.study_units import is_current, told_runtimes

PAGE = Path("data", "reports", "paper.html")
_CLASSES = {HOLDS: "holds", SO_FAR: "holds", IN_PART: "part", DOES_NOT: "not", NOT_RUN: "unrun"}
_MARKS = {True: ("yes", "holds"), False: ("no", "not"), None: ("open", "unrun")}
_METRIC_NAMES = {"final": "return at the end", "gain": "gain over the first episode", "normalised": "normalised score"}
SPLIT_NAMES = {"held_out": "held-out", "train": "training", "seen": "seen kind", "uniform": "uniform"}
_NUM_WORST = 5


def numbers_of(study: Study, results: Path = RESULTS) -> StudyNumbers:
    """The runs there are of a study with its present settings; older ones tell nothing of it."""
    runs = read_runs(study.name, results)
    return StudyNumbers(study, [run for run, present in zip(runs, is_current(study, runs), strict=True) if present])


def shown_variants(numbers: StudyNumbers) -> list[Variant]:
    """Variants that have runs."""
    return [variant for variant in numbers.study.variants.values() if numbers.has(variant.name)]


def study_image(numbers: StudyNumbers) -> bytes | None:
    """The study's figure, or None while there is nothing to draw."""
    study, variants = numbers.study, shown_variants(numbers)
    if not variants:
        return None
    if study.metric.startswith(EXTRA):
        return png_bytes(attention_figure([_panel(numbers, variant) for variant in variants]))
    if study.axis is not None or study.metric == "normalised":
        lines = [
            SweepLine(SPLIT_NAMES.get(split, split), [_point(numbers, variant, split) for variant in variants])
            for split in study.splits
            if all(numbers.has(variant.name, split) for variant in variants)
        ]
        return png_bytes(
            sweep_figure(lines, xlabel=study.axis or "", ylabel=_METRIC_NAMES.get(study.metric, study.metric))
        )
    return png_bytes(curves_figure([_line(numbers, variant) for variant in variants], level=study.level))


def _panel(numbers: StudyNumbers, variant: Variant) -> AttentionPanel:
    extra = numbers.runs(variant.name)[0].extra
    return AttentionPanel(variant.label, extra["weights"], extra["rewarded"], extra["episode_starts"])


def _told_besides(numbers: StudyNumbers, variant: Variant) -> list[str]:
    """Names of the numbers that all runs of a variant hold beside their returns."""
    extras = [run.extra for run in numbers.runs(variant.name)]
    return [name for name in extras[0] if all(isinstance(extra.get(name), float) for extra in extras)]


def _extra_rows(numbers: StudyNumbers) -> list[dict[str, str]]:
    """One row per variant with every number of its runs that is no list."""
    rows = []
    for variant in shown_variants(numbers):
        names = _told_besides(numbers, variant)
        levels = {name.replace("_", " "): numbers.level(variant.name, metric=EXTRA + name).text() for name in names}
        rows.append({"variant": variant.label, **levels, "seeds": str(len(numbers.runs(variant.name)))})
    return rows


def _point(numbers: StudyNumbers, variant: Variant, split: str) -> SweepPoint:
    level = numbers.level(variant.name, split=split)
    return SweepPoint(variant.label, variant.x, level.value, level.low, level.high, variant.published)


def _line(numbers: StudyNumbers, variant: Variant) -> CurveLine:
    curves = numbers.curve(variant.name)
    return CurveLine(
        variant.label, variant.agent, curves.mean(0), curves.min(0), curves.max(0), variant.published_curve
    )


def study_rows(numbers: StudyNumbers) -> list[dict[str, str]]:
    """One row per variant, every cell a text."""
    study, rows = numbers.study, []
    if study.metric.startswith(EXTRA):
        return _extra_rows(numbers)
    for variant in shown_variants(numbers):
        row = {"variant": variant.label, "published": DASH if variant.published is None else f"{variant.published:g}"}
        for split in study.splits:
            if not numbers.has(variant.name, split):
                row[f"{SPLIT_NAMES.get(split, split)} (95 %)"] = DASH
                continue
            level = numbers.level(variant.name, split=split)
            row[f"{SPLIT_NAMES.get(split, split)} (95 %)"] = level.text()
        level = numbers.level(variant.name)
        row["IQM (95 %)"] = level.iqm_text()
        row["first episode"] = f"{numbers.level(variant.name, metric='first').value:.2f}"
        if study.level is not None:
            reached = numbers.episodes_to_level(variant.name)
            row[f"episodes to {study.level:g}"] = DASH if reached is None else str(reached)
        for name in _told_besides(numbers, variant):
            row[name.replace("_", " ")] = numbers.level(variant.name, metric=EXTRA + name).text()
        row["failed"] = f"{np.mean([failed for _, _, failed in numbers.failures(variant.name)]):.0%}"
        row["seeds, tasks"] = f"{level.num_seeds}, {level.num_tasks}"
        rows.append(row)
    columns = dict.fromkeys(column for row in rows for column in row)
    return [{column: row.get(column, DASH) for column in columns} for row in rows]


def study_values(study: Study, results: Path = RESULTS) -> tuple[dict[str, Any], bytes | None]:
    """What the page tells of one study, and its picture."""
    numbers = numbers_of(study, results)
    verdict = numbers.verdict()
    rows = study_rows(numbers)
    runs = [run for variant in study.variants for run in numbers.runs(variant)]
    checks = []
    for check in study.checks:
        met, text = numbers.check(check)
        mark, css = _MARKS[met]
        if met is not None and not numbers.is_complete(check):
            text += "; so far"
        checks.append({"text": check.text, "numbers": text, "mark": mark, "class": css})
    learned = [variant for variant in shown_variants(numbers) if variant.agent == "ad"]
    worst = None
    if learned:
        listed = numbers.failures(learned[0].name)[:_NUM_WORST]
        told = ", ".join(f"{task}: {final:.2f}, {failed:.0%}" for task, final, failed in listed)
        worst = {"label": learned[0].label, "text": told}
    values = {
        "name": study.name,
        "title": study.title,
        "claim": study.claim,
        "source": study.source,
        "note": study.note,
        "verdict": verdict,
        "verdict_class": _CLASSES[verdict],
        "num_runs": len(runs),
        "num_planned": sum(len(study.seeds(variant)) for variant in study.variants.values()),
        "checks": checks,
        "rows": rows,
        "columns": list(rows[0]) if rows else [],
        "worst": worst,
        "commits": ", ".join(sorted({run.commit for run in runs})),
        "minutes": f"{sum(run.minutes or 0 for run in runs):.0f}" if runs else "",
        "runtimes": told_runtimes(study, runs),
    }
    return values, study_image(numbers)


def write_page(page: Path = PAGE, results: Path = RESULTS) -> Path:
    """Writes the page from the committed results alone."""
    told, images = [], {}
    for study in map(load_study, study_names()):
        if study.on_request and not read_runs(study.name, results):
            continue
        values, image = study_values(study, results)
        told.append(values)
        if image is not None:
            images[f"{study.name}.png"] = image
    text = render_page(images, template="paper.html.j2", studies=told)
    with whole_file(page) as temporary:
        temporary.write_text(text)
    return page


def gathered(names: Sequence[str] | None = None, results: Path = RESULTS) -> dict[str, dict[str, dict[str, Any]]]:
    """Metrics of the studies that stand for an experiment: experiment to agent to split to numbers."""
    metrics: dict[str, dict[str, dict[str, Any]]] = {}
    for name in names or study_names():
        study = load_study(name)
        if study.gathered_as is None:
            continue
        numbers = numbers_of(study, results)
        by_agent = {
            variant.name: {
                split: rounded(split_metrics(numbers, variant.name, split))
                for split in study.splits
                if numbers.has(variant.name, split)
            }
            for variant in shown_variants(numbers)
        }
        if by_agent:
            metrics[study.gathered_as] = by_agent
    return metrics


def split_metrics(numbers: StudyNumbers, variant: str, split: str) -> Mapping[str, Any]:
    """The numbers of one variant on one split, named as the pipeline's own report names them."""
    study, curve = numbers.study, numbers.curve(variant, split).mean(0)
    level, returns = numbers.level(variant, split=split), numbers.level(variant, split=split, metric="final")
    oracle = float(np.mean(numbers.runs(variant)[0].splits[split].oracle))
    # A normalised score stands in the place of the return, as the published table has it.
    shown = level if study.metric == "normalised" else returns
    return {
        "final_return": shown.value,
        "final_return_ci95": [shown.low, shown.high],
        "final_return_iqm": shown.iqm,
        "final_return_iqm_ci95": [shown.iqm_low, shown.iqm_high],
        "is_normalised": study.metric == "normalised",
        "return_at": {str(e): float(curve[e - 1]) for e in (1, 10, 25, 50, 100, 160, 300, 1000) if e <= len(curve)},
        "nauc": float(curve.mean() / oracle),
        "oracle_return": oracle,
        "oracle_fraction": returns.value / oracle,
        "oracle_fraction_ci95": [returns.low / oracle, returns.high / oracle],
        "oracle_fraction_iqm": returns.iqm / oracle,
        "reference_fraction": None if study.level is None else study.level / oracle,
        "episodes_to_reference": numbers.episodes_to_level(variant, split),
        "failed_lifetimes": float(np.mean([failed for _, _, failed in numbers.failures(variant, split)])),
        "num_episodes": len(curve),
        "num_tasks": returns.num_tasks,
        "num_training_seeds": returns.num_seeds,
    }
