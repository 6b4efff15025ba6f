"""Committed results of studies become one page, published beside ours, and entries among the report's metrics."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distillery.core.files import whole_file
from distillery.papers.results import FOLDER as RESULTS
from distillery.papers.results import read_runs
from distillery.papers.statistics import StudyNumbers
from distillery.papers.study import EXTRA, Check, Study, Variant, load_claims, load_study, study_names
from distillery.papers.verdicts import (
    AT_MOST_PART,
    DOES_NOT,
    HOLDS,
    IN_PART,
    MET,
    NOT_RUN,
    OPEN,
    REFUTED,
    UNDECIDED,
    UNRUN,
    Outcome,
    Verdict,
    verdict_of,
)
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
from distillery.reports.style import webp_bytes
from distillery.reports.tables import DASH, rounded
from distillery.stages.study_setup import setup_sentences
from distillery.stages.study_units import is_current, told_runtimes, unit_of

PAGE = Path("data", "reports", "paper.html")
_CLASSES = {
    HOLDS: "holds",
    IN_PART: "part",
    AT_MOST_PART: "part",
    DOES_NOT: "not",
    OPEN: "unrun",
    NOT_RUN: "unrun",
}
_STATUS_CLASSES = {MET: "holds", REFUTED: "not", UNDECIDED: "unrun", UNRUN: "unrun"}
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
        return webp_bytes(attention_figure([_panel(numbers, variant) for variant in variants]))
    if study.axis is not None or study.metric == "normalised":
        ylabel = _METRIC_NAMES.get(study.metric, study.metric)
        lines = _sweep_lines(numbers, variants)
        return webp_bytes(sweep_figure(lines, xlabel=study.axis or "", ylabel=ylabel, besides=study.published_besides))
    lines_of_curves = [_line(numbers, variant) for variant in variants]
    return webp_bytes(curves_figure(lines_of_curves, level=study.level, level_label=study.level_label))


def _caption(study: Study) -> str:
    """What the study's figure shows."""
    if study.metric.startswith(EXTRA):
        return "One lifetime of the first training; weights are means over layers and heads."
    if study.axis is not None or study.metric == "normalised":
        return (
            "Means with 95 % intervals; small dots are single trainings, rings as published. Intervals of few "
            "trainings are wide, and cut off at the edge."
        )
    return (
        "Mean return of each episode on held-out tasks; bands reach from the lowest training to the highest. Dots are "
        "as published, those at the right edge where only an end was."
    )


def _sweep_lines(numbers: StudyNumbers, variants: Sequence[Variant]) -> list[SweepLine]:
    """A line for each of the variants' lines, or else for each split."""
    names = dict.fromkeys(variant.line for variant in variants if variant.line is not None)
    if names:
        split = numbers.study.splits[0]
        return [
            SweepLine(name, [_point(numbers, variant, split) for variant in variants if variant.line == name])
            for name in names
        ]
    return [
        SweepLine(SPLIT_NAMES.get(split, split), [_point(numbers, variant, split) for variant in variants])
        for split in numbers.study.splits
        if all(numbers.has(variant.name, split) for variant in variants)
    ]


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
    found, scores = numbers.level(variant.name, split=split), numbers.scores(variant.name, split=split)
    trainings = scores.mean(1).tolist() if len(scores) > 1 else []
    low, high = (found.value, found.value) if found.is_fixed else (found.low, found.high)
    published = _published(numbers.study, variant, split)
    return SweepPoint(variant.label, variant.x, found.value, low, high, published, trainings)


def _published(study: Study, variant: Variant, split: str) -> float | None:
    return variant.published if split == study.splits[0] else variant.published_splits.get(split)


def _line(numbers: StudyNumbers, variant: Variant) -> CurveLine:
    curves = numbers.curve(variant.name)
    return CurveLine(
        variant.label,
        variant.agent,
        curves.mean(0),
        curves.min(0),
        curves.max(0),
        variant.published_curve,
        variant.published,
        setting=(*variant.overrides, *filter(None, [variant.experiment])),
    )


def study_rows(numbers: StudyNumbers) -> list[dict[str, str]]:
    """One row per variant, every cell a text."""
    study, rows = numbers.study, []
    if study.metric.startswith(EXTRA):
        return _extra_rows(numbers)
    for variant in shown_variants(numbers):
        row = {"variant": variant.label}
        for split in study.splits:
            name = SPLIT_NAMES.get(split, split)
            published = _published(study, variant, split)
            if split == study.splits[0] or any(other.published_splits.get(split) for other in study.variants.values()):
                row[f"published, {name}"] = DASH if published is None else f"{published:g}"
            has = numbers.has(variant.name, split)
            row[f"{name} (95 %)"] = numbers.level(variant.name, split=split).text() if has else DASH
        row |= _further_cells(numbers, variant)
        rows.append(row)
    columns = dict.fromkeys(column for row in rows for column in row)
    return [{column: row.get(column, DASH) for column in columns} for row in rows]


def _further_cells(numbers: StudyNumbers, variant: Variant) -> dict[str, str]:
    """What a row tells beside the levels."""
    study, runs = numbers.study, numbers.runs(variant.name)
    level, cells = numbers.level(variant.name), dict[str, str]()
    if study.metric == "normalised":
        cells["IQM (95 %)"] = level.iqm_text()
    else:
        cells["of the oracle, IQM (95 %)"] = numbers.level(variant.name, metric="oracle_fraction").iqm_text()
    cells["first episode"] = f"{numbers.level(variant.name, metric='first').value:.2f}"
    if study.level is not None:
        reached = numbers.episodes_to_level(variant.name)
        cells[f"{study.level:g} from episode"] = DASH if reached is None else str(reached)
    for name in _told_besides(numbers, variant):
        cells[name.replace("_", " ")] = _told_extra(numbers, variant, name)
    cells["failed"] = f"{np.mean([failed for *_, failed in numbers.failures(variant.name)]):.0%}"
    updates = [run.updates for run in runs if run.updates is not None]
    if updates:
        cells["updates"] = _least_to_most(updates)
    minutes = [round(run.minutes) for run in runs if run.minutes is not None]
    if minutes:
        cells["minutes"] = _least_to_most(minutes)
    cells["seeds, tasks"] = f"{level.num_seeds}, {level.num_tasks}"
    return cells


def _told_extra(numbers: StudyNumbers, variant: Variant, name: str) -> str:
    """A number that the runs of a variant hold beside their returns."""
    if name != "furthest_prompt_level":
        return numbers.level(variant.name, metric=EXTRA + name).text()
    # The mean of what lies furthest above in one run and furthest below in another would be near to none of it.
    extras = [run.extra for run in numbers.runs(variant.name)]
    return f"{max(extras, key=lambda extra: abs(extra[name] - extra['prompt_level']))[name]:.2f}"


def _told_check(numbers: StudyNumbers, check: Check, outcome: Outcome) -> dict[str, Any]:
    """A line of the list of checks."""
    counts, few = numbers.num_trainings(check), ""
    if outcome.status != UNRUN and not outcome.is_final and counts:
        few = f", so far of {min(counts)} training{'s' if min(counts) > 1 else ''}"
    return {
        "text": check.text,
        "rule": check.rule,
        "numbers": outcome.text + few,
        "mark": outcome.status,
        "class": _STATUS_CLASSES[outcome.status],
        "own": check.own,
    }


def _hardest(numbers: StudyNumbers) -> dict[str, str] | None:
    """The tasks on which AD does worst; of the best variant where a study is over one quantity."""
    learned = [variant for variant in shown_variants(numbers) if variant.agent == "ad"]
    if not learned:
        return None
    chosen = learned[0]
    if numbers.study.axis is not None:
        chosen = max(learned, key=lambda variant: numbers.level(variant.name, metric="final").value)
    listed = numbers.failures(chosen.name)[:_NUM_WORST]
    told = ", ".join(f"{task}: {final:.2f} of {oracle:.4g}, {failed:.0%}" for task, final, oracle, failed in listed)
    return {"label": _full_label(numbers.study, chosen), "text": told}


def _setup(study: Study) -> dict[str, Any] | None:
    """How the first variant that trains was made."""
    trained = next((variant for variant in study.variants.values() if variant.trains), None)
    if trained is None:
        return None
    label = _full_label(study, trained)
    return {"label": label, "sentences": setup_sentences(unit_of(study, trained, 0).config)}


def _full_label(study: Study, variant: Variant) -> str:
    """A variant's label outside its study's table; that of one over a quantity is a bare number there."""
    return variant.label if study.axis is None else f"{study.title}: {variant.label}"


def study_values(study: Study, results: Path = RESULTS) -> tuple[dict[str, Any], bytes | None]:
    """What the page tells of one study, and its picture."""
    numbers = numbers_of(study, results)
    verdict = numbers.verdict()
    rows = study_rows(numbers)
    runs = [run for variant in study.variants for run in numbers.runs(variant)]
    values = {
        "name": study.name,
        "title": study.title,
        "claim": study.claim,
        "source": study.source,
        "note": study.note,
        "setup": _setup(study),
        **_verdict_values(verdict),
        "num_runs": len(runs),
        "num_planned": sum(len(study.seeds(variant)) for variant in study.variants.values()),
        "checks": [_told_check(numbers, check, numbers.check(check)) for check in study.checks],
        "rows": rows,
        "columns": list(rows[0]) if rows else [],
        "caption": _caption(study),
        "worst": _hardest(numbers),
        "commits": ", ".join(
            sorted({commit for run in runs for commit in (run.commit, run.evaluation_commit) if commit})
        ),
        "minutes": f"{sum(run.minutes or 0 for run in runs):.0f}" if runs else "",
        "runtimes": told_runtimes(study, runs),
        "mixed": _mixed_histories(numbers),
        "shares_histories": any(len(numbers.runs(name)) > 1 and numbers.runs(name)[0].data for name in study.variants),
    }
    return values, study_image(numbers)


def _verdict_values(verdict: Verdict) -> dict[str, str]:
    css = _CLASSES[verdict.word] + ("" if verdict.is_final else " sofar")
    return {"verdict": verdict.text, "verdict_class": css, "counts": verdict.told_counts}


def _mixed_histories(numbers: StudyNumbers) -> str:
    """Labels of variants whose trainings did not all read the same histories."""
    return ", ".join(
        variant.label
        for variant in shown_variants(numbers)
        if len({run.data for run in numbers.runs(variant.name)}) > 1
    )


def claim_rows(studies: Sequence[Study], results: Path = RESULTS) -> list[dict[str, Any]]:
    """The paper's numbered claims, with what the checks of all studies come to."""
    found: dict[tuple[str, int], list[tuple[Study, Outcome, list[int]]]] = {}
    for study in studies:
        numbers = numbers_of(study, results)
        for check in study.checks:
            if check.claim is not None:
                told = study, numbers.check(check), numbers.num_trainings(check)
                found.setdefault((study.paper, check.claim), []).append(told)
    rows = []
    for paper in dict.fromkeys(study.paper for study in studies):
        for number, text in load_claims(paper).items():
            checks = found.get((paper, number), [])
            rows.append(
                {
                    "number": number,
                    "text": text,
                    **_verdict_values(verdict_of([outcome for _, outcome, _ in checks])),
                    "trainings": _least_to_most([count for *_, counts in checks for count in counts]),
                    "studies": _named(study for study, *_ in checks),
                }
            )
    return rows


def _least_to_most(counts: Sequence[int]) -> str:
    if not counts:
        return DASH
    return f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"


def _named(studies: Iterable[Study]) -> list[dict[str, str]]:
    """Names and titles, each study once."""
    return [{"name": name, "title": title} for name, title in dict.fromkeys((one.name, one.title) for one in studies)]


def write_page(page: Path = PAGE, results: Path = RESULTS) -> Path:
    """Writes the page from the committed results alone."""
    told, images = [], {}
    studies = [load_study(name) for name in study_names()]
    unrun = [study for study in studies if study.on_request and not read_runs(study.name, results)]
    shown = [study for study in studies if study not in unrun]
    for study in shown:
        values, image = study_values(study, results)
        told.append(values)
        if image is not None:
            images[f"{study.name}.webp"] = image
    text = render_page(
        images,
        template="paper.html.j2",
        studies=told,
        claims=claim_rows(shown, results),
        unrun=[{"name": study.name, "title": study.title} for study in unrun],
    )
    with whole_file(page) as temporary:
        temporary.write_text(text)
    return page


def gathered(names: Sequence[str] | None = None, results: Path = RESULTS) -> dict[str, dict[str, dict[str, Any]]]:
    """Metrics of all studies that return something: experiment, or else study, to variant to split to numbers."""
    metrics: dict[str, dict[str, dict[str, Any]]] = {}
    for name in names or study_names():
        study = load_study(name)
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
            metrics[study.gathered_as or study.name] = by_agent
    return metrics


def split_metrics(numbers: StudyNumbers, variant: str, split: str) -> Mapping[str, Any]:
    """The numbers of one variant on one split, named as the pipeline's own report names them."""
    study, curve = numbers.study, numbers.curve(variant, split).mean(0)
    returns, parts = (numbers.level(variant, split=split, metric=metric) for metric in ("final", "oracle_fraction"))
    oracle = float(np.mean(numbers.runs(variant)[0].splits[split].oracle))
    # A normalised score stands in the place of the return, as the published table has it.
    metric = "normalised" if study.metric == "normalised" else "final"
    shown = numbers.level(variant, split=split, metric=metric)
    stratified = numbers.stratified_iqm_interval(variant, metric=metric, split=split)
    return {
        "final_return": shown.value,
        "final_return_ci95": [shown.low, shown.high],
        "final_return_iqm": shown.iqm,
        "final_return_iqm_ci95": [shown.iqm_low, shown.iqm_high],
        "final_return_iqm_stratified_ci95": stratified,
        "is_normalised": metric == "normalised",
        "return_at": {str(e): float(curve[e - 1]) for e in (1, 10, 25, 50, 100, 160, 300, 1000) if e <= len(curve)},
        "nauc": float(curve.mean() / oracle),
        "oracle_return": oracle,
        "oracle_fraction": returns.value / oracle,
        # Over tasks, a return varies by how far goals are, too, which the oracle's return on the same task takes out.
        "oracle_fraction_ci95": (
            [returns.low / oracle, returns.high / oracle] if returns.num_seeds > 1 else [parts.low, parts.high]
        ),
        "oracle_fraction_iqm": parts.iqm,
        "reference_fraction": None if study.level is None else study.level / oracle,
        "episodes_to_reference": numbers.episodes_to_level(variant, split),
        "failed_lifetimes": float(np.mean([failed for *_, failed in numbers.failures(variant, split)])),
        "num_episodes": len(curve),
        "num_tasks": returns.num_tasks,
        "num_training_seeds": returns.num_seeds,
    }
