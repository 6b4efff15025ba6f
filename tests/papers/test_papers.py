"""Studies are read whole, results add up over sittings, and verdicts follow from the numbers."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from distillery.papers.results import Run, SplitResult, add_run, all_runs, read_runs
from distillery.papers.statistics import (
    DOES_NOT,
    HOLDS,
    IN_PART,
    NOT_RUN,
    SO_FAR,
    StudyNumbers,
    difference,
    episodes_to,
    interval,
    iqm_interval,
    level,
)
from distillery.papers.study import Check, Study, Variant, load_study, study_names
from distillery.stages.entry import BASELINES


def split_result(final: list[float], *, first: float = 0.0, curve: list[float] | None = None) -> SplitResult:
    return SplitResult(
        curve=curve or [first, float(np.mean(final))],
        task_ids=list(range(len(final))),
        first=[first] * len(final),
        final=final,
        oracle=[2.0] * len(final),
        failed=[float(value < 1.0) for value in final],
    )


def run(variant: str, seed: int, final: list[float], **more: float) -> Run:
    return Run(variant, seed, f"{variant}-{seed}", "abc", {"held_out": split_result(final, **more)})


def study(*checks: Check, **settings: object) -> Study:
    variants = {name: Variant(name, name) for name in ("good", "bad", "source", "random")}
    values = {"name": "toy", "paper": "p", "title": "t", "claim": "c", "source": "s", "experiment": "dark_room"}
    return Study(**(values | settings), variants=variants, checks=checks)


# Studies

# What a check names is trained with five seeds at least, except where one training takes half an hour, and where 1000
# episodes are played.
FEWER_SEEDS = {("watermaze", "ad"): 3, ("watermaze", "ed"): 3}


@pytest.mark.parametrize("name", study_names())
def test_every_study_is_whole(name: str):
    loaded = load_study(name)
    assert loaded.checks, "a claim without a check can have no verdict"
    assert all(loaded.seeds(variant) for variant in loaded.variants.values())
    if loaded.on_request:
        return
    claimed = {variant for check in loaded.checks for variant in (check.variant, check.worse) if variant is not None}
    for variant in map(loaded.variants.__getitem__, claimed):
        if variant.agent not in BASELINES and not variant.name.endswith("_long"):
            assert len(loaded.seeds(variant)) >= FEWER_SEEDS.get((name, variant.name), 5), variant.name


def test_an_unknown_study_is_named_with_those_there_are():
    with pytest.raises(ValueError, match="no study 'nonsense'.*context_size"):
        load_study("nonsense")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title: x\n", "variants"),
        ("variants: {a: }\ntitel: x\n", "unknown keys titel"),
        ("variants: {a: {colour: red}}\n", "colour"),
    ],
)
def test_a_mistyped_study_is_refused(tmp_path: Path, text: str, message: str):
    (tmp_path / "paper").mkdir()
    (tmp_path / "paper" / "mine.yaml").write_text(text)
    with pytest.raises(ValueError, match=f"mine.yaml is no study: .*{message}"):
        load_study("mine", tmp_path)


def test_a_check_of_an_unknown_variant_is_refused():
    with pytest.raises(ValueError, match="'best', which is no variant"):
        study(Check("x", "best"))
    with pytest.raises(ValueError, match="'median'"):
        study(metric="median")


# Results


def test_runs_add_up_and_replace_each_other(tmp_path: Path):
    order = ["good", "bad"]
    add_run("toy", run("bad", 0, [0.5, 0.123456789]), order, tmp_path)
    add_run("toy", run("good", 1, [1.0, 2.0]), order, tmp_path)
    add_run("toy", run("good", 0, [1.5, 2.0]), order, tmp_path)
    add_run("toy", run("bad", 0, [0.25, 0.5]), order, tmp_path)
    runs = read_runs("toy", tmp_path)
    assert [(each.variant, each.seed) for each in runs] == [("good", 0), ("good", 1), ("bad", 0)]
    assert runs[2].splits["held_out"].final == [0.25, 0.5]
    assert set(all_runs(tmp_path)) == {"good-0", "good-1", "bad-0"}


def test_runs_of_variants_that_are_gone_are_dropped(tmp_path: Path):
    add_run("toy", run("old", 0, [1.0]), ["old"], tmp_path)
    add_run("toy", run("new", 0, [1.0]), ["new"], tmp_path)
    assert [each.variant for each in read_runs("toy", tmp_path)] == ["new"]


def test_a_broken_result_is_named_with_its_remedy(tmp_path: Path):
    assert read_runs("toy", tmp_path) == []
    path = tmp_path / "toy.json"
    path.write_text('{"runs": [')
    with pytest.raises(ValueError, match=r"toy\.json is not valid JSON.*make paper"):
        read_runs("toy", tmp_path)
    path.write_text(json.dumps({"format_version": 1, "runs": [{"variant": "a"}]}))
    with pytest.raises(ValueError, match=r"toy\.json lacks or misnames a field.*make paper"):
        read_runs("toy", tmp_path)


# Statistics


def test_intervals_cover_the_truth_as_often_as_they_say():
    """Trainings differ by more than their tasks do; the spread between tasks is no doubt about the mean."""
    generator = np.random.default_rng(0)
    tasks = np.linspace(0, 10, 8)
    covered = false_alarms = 0
    for _ in range(300):
        one, two = (tasks + generator.normal(0, 1, (5, 1)) + generator.normal(0, 1, (5, 8)) for _ in range(2))
        low, high = interval(one)
        covered += low <= tasks.mean() <= high
        assert high - low < 6
        low, high = difference(one, two)
        false_alarms += low > 0 or high < 0
    assert 0.91 <= covered / 300 <= 0.985
    assert false_alarms / 300 <= 0.09


def test_one_seed_varies_over_its_tasks():
    scores = np.array([[0.0, 1.0] * 50])
    low, high = interval(scores)
    assert low == pytest.approx(0.4, abs=0.01) and high == pytest.approx(0.6, abs=0.01)
    assert interval(np.array([[3.0]])) == (3.0, 3.0)


def test_the_interval_of_the_interquartile_mean_is_stratified_by_task():
    tasks = np.linspace(0, 10, 8)
    scores = tasks + np.random.default_rng(0).normal(0, 0.1, (5, 8))
    low, high = iqm_interval(scores)
    assert low <= stats.trim_mean(scores.ravel(), 0.25) <= high
    assert high - low < 0.3, "the spread between tasks must not widen it"
    assert iqm_interval(np.ones((2, 3))) == (1.0, 1.0)


def test_level_and_interquartile_mean():
    scores = np.array([[0.0, 1.0, 1.0, 10.0], [0.0, 1.0, 1.0, 10.0]])
    found = level(scores)
    assert (found.value, found.iqm, found.num_seeds, found.num_tasks) == (3.0, 1.0, 2, 4)
    assert found.iqm == stats.trim_mean(scores.ravel(), 0.25)
    assert found.text() == "3.00 (3.00 to 3.00)" and found.iqm_text().startswith("1.00 (")


def test_a_difference_is_taken_task_by_task_or_between_trainings():
    one = np.array([[1.0, 5.0, 9.0]])
    assert difference(one + 0.5, one) == (0.5, 0.5)
    low, high = difference(one + 0.5, one, paired=False)
    assert low < 0.5 < high
    many = np.repeat(one, 5, 0) + np.linspace(-0.1, 0.1, 5)[:, None]
    low, high = difference(many + 1.0, many)
    assert 0.85 < low < 1.0 < high < 1.15
    low, high = difference(many, one)  # the only run of the other varies over its tasks
    assert low < -1.0 and high > 1.0
    assert difference(np.ones((2, 3)), np.zeros((3, 2))) == (1.0, 1.0)


def test_episodes_to_a_level():
    curve = np.concatenate([np.zeros(5), np.ones(15)])
    assert episodes_to(curve, 1.0) == 6
    assert episodes_to(curve, 0.5) == 1
    assert episodes_to(curve, 1.01) is None
    assert episodes_to(np.ones(9), 0.0) is None


def test_verdicts():
    runs = [run("good", 0, [1.9, 1.8], first=0.2), run("bad", 0, [0.3, 0.2], first=0.2)]
    better, high = Check("better", "good", worse="bad"), Check("high", "good", at_least=1.8)
    assert StudyNumbers(study(better, high), runs).verdict() == HOLDS
    assert StudyNumbers(study(better, Check("too high", "good", at_least=1.95)), runs).verdict() == IN_PART
    assert StudyNumbers(study(Check("x", "bad", worse="good")), runs).verdict() == DOES_NOT
    assert StudyNumbers(study(better), []).verdict() == NOT_RUN
    assert StudyNumbers(study(better, Check("x", "source", at_least=0.0)), runs).verdict() == SO_FAR
    planned = study(better, high, num_seeds=len([one for one in runs if one.variant == "good"]) + 1)
    assert StudyNumbers(planned, runs).verdict() == SO_FAR  # a seed is left
    met, text = StudyNumbers(study(better), runs).check(better)
    assert met and "1.85" in text and "against 0.25" in text


def test_gain_and_margin():
    runs = [run("good", 0, [1.9, 1.8], first=0.2), run("bad", 0, [0.3, 0.2], first=0.2)]
    numbers = StudyNumbers(study(), runs)
    assert numbers.level("good", metric="gain").value == pytest.approx(1.65)
    assert numbers.check(Check("x", "good", worse="bad", margin=1.5))[0] is True
    assert numbers.check(Check("x", "good", worse="bad", margin=1.7))[0] is False
    assert numbers.check(Check("x", "bad", metric="gain", at_most=0.1))[0] is True


def test_normalised_scores_are_0_for_random_and_1_for_the_source():
    runs = [run("good", 0, [60.0, 80.0]), run("source", 0, [80.0, 90.0]), run("random", 0, [50.0, 50.0])]
    numbers = StudyNumbers(study(metric="normalised"), runs)
    assert numbers.level("source").value == pytest.approx(1.0)
    assert numbers.level("random").value == pytest.approx(0.0)
    assert numbers.level("good").value == pytest.approx(20 / 35)


def test_episodes_to_the_published_level():
    curve = [0.0] * 20 + [1.9] * 30
    runs = [run("good", 0, [1.9], curve=curve)]
    check = Check("soon", "good", metric="episodes_to", at_most=25)
    assert StudyNumbers(study(check, level=1.8), runs).check(check) == (True, "21")
    assert StudyNumbers(study(check, level=1.95), runs).verdict() == DOES_NOT


def test_who_reaches_a_level_sooner():
    soon, late, never = ([0.0] * n + [1.9] * (50 - n) for n in (20, 30, 50))
    check = Check("sooner", "good", worse="bad", metric="episodes_to")
    for good, bad, met, text in (
        (soon, late, True, "21 against 31"),
        (late, soon, False, "31 against 21"),
        (soon, soon, False, "21 against 21"),
        (soon, never, True, "21 against never"),
        (never, never, False, "never against never"),
    ):
        runs = [run("good", 0, [1.9], curve=good), run("bad", 0, [1.9], curve=bad)]
        assert StudyNumbers(study(check, level=1.8), runs).check(check) == (met, text)
        wide = replace(check, margin=15.0)
        assert StudyNumbers(study(wide, level=1.8), runs).check(wide)[0] is (met and bad is never)
    with pytest.raises(ValueError, match="counts episodes; give the study a level"):
        study(Check("sooner", "good", metric="episodes_to", at_least=3.0), level=1.8)


def test_failures_come_worst_first():
    numbers = StudyNumbers(study(), [run("good", 0, [1.9, 0.1, 1.0]), run("good", 1, [1.7, 0.3, 0.8])])
    listed = numbers.failures("good")
    assert [task for task, _, _ in listed] == [1, 2, 0]
    assert listed[0][1] == pytest.approx(0.2) and listed[0][2] == 1.0
    assert math.isclose(listed[1][2], 0.5)


def test_without_its_ends_a_normalised_score_is_not_run_yet():
    numbers = StudyNumbers(study(Check("x", "good", at_least=0.5), metric="normalised"), [run("good", 0, [60.0])])
    assert not numbers.has("good") and numbers.has("good", metric="final")
    assert numbers.verdict() == NOT_RUN
