"""Studies are read whole, results add up over sittings, and verdicts follow from the numbers."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from distillery.core.lifetimes import BASELINES
from distillery.papers.intervals import difference, interval, iqm_interval, level, stratified_iqm_interval
from distillery.papers.results import Run, SplitResult, add_run, all_runs, read_runs, withdraw_runs
from distillery.papers.statistics import StudyNumbers
from distillery.papers.study import Check, Study, Variant, load_claims, load_study, study_names
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
    verdict_of,
)

ROOT = Path(__file__).parents[2]


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


def runs_of(variant: str, *finals: float, **more: float) -> list[Run]:
    """A training for each number, which is its return on both of its tasks."""
    return [run(variant, seed, [value, value], **more) for seed, value in enumerate(finals)]


def study(*checks: Check, **settings: object) -> Study:
    variants = {
        name: Variant(name, name, agent=name if name in BASELINES else "ad")
        for name in ("good", "bad", "source", "random")
    }
    values = {"name": "toy", "paper": "p", "title": "t", "claim": "c", "source": "s", "experiment": "dark_room"}
    return Study(**(values | settings), variants=variants, checks=checks)


# Studies

# What a numbered claim rests on is trained with five seeds at least, other checks with three, the least a verdict
# rests on; so are those where one training takes half an hour or 1000 episodes are played.
FEWER_SEEDS = {
    ("watermaze", "ad"): 3,
    ("watermaze", "ed"): 3,
    ("dark_room", "ad_long"): 3,
    ("dark_room", "ad_a2c_long"): 3,
    ("dark_room_hard", "ad_long"): 3,
    ("dark_room_hard", "ad_a2c_long"): 3,
    ("dark_key_to_door", "ad_a2c_long"): 3,
    ("dark_key_to_door", "ad_long"): 3,
    ("single_stream", "ad_a2c_long"): 3,
    ("label_smoothing", "a2c0"): 3,
    ("label_smoothing", "a2c20"): 3,
}


@pytest.mark.parametrize("name", study_names())
def test_every_study_is_whole(name: str):
    loaded = load_study(name)
    assert loaded.checks, "a claim without a check can have no verdict"
    assert all(loaded.seeds(variant) for variant in loaded.variants.values())
    if loaded.on_request:
        return
    # By whether a numbered claim of the paper rests on it.
    claimed = {
        variant: check.claim is not None
        for check in sorted(loaded.checks, key=lambda check: check.claim is not None)
        for variant in (check.variant, check.worse)
        if variant is not None
    }
    for variant in map(loaded.variants.__getitem__, claimed):
        if variant.trains:
            least = FEWER_SEEDS.get((name, variant.name), 5 if claimed[variant.name] else 3)
            assert len(loaded.seeds(variant)) >= least, variant.name


def test_every_claim_has_checks_and_every_number_a_claim():
    claims = load_claims("algorithm_distillation")
    loaded = [load_study(name) for name in study_names()]
    assert list(claims) == list(range(1, 11))
    assert {check.claim for one in loaded for check in one.checks} == {None, *claims}


def test_claims_that_are_not_numbered_are_refused(tmp_path: Path):
    assert load_claims("paper", tmp_path) == {}
    (tmp_path / "paper").mkdir()
    (tmp_path / "paper" / "claims.yaml").write_text("first: AD improves\n")
    with pytest.raises(ValueError, match="claims.yaml must map numbers to claims"):
        load_claims("paper", tmp_path)
    assert study_names(tmp_path) == []


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


def test_the_interval_of_the_interquartile_mean_is_of_trainings():
    generator = np.random.default_rng(0)
    tasks = np.linspace(0, 10, 8)
    alike = tasks + generator.normal(0, 0.1, (5, 8))
    low, high = iqm_interval(alike)
    assert low <= stats.trim_mean(alike.ravel(), 0.25) <= high
    assert high - low < 0.3, "the spread between tasks must not widen it"
    # Trainings that differ on all tasks at once: the truth is covered nearly as often as five resampled ones can.
    covered = sum(
        low <= 5.0 <= high
        for low, high in (
            iqm_interval(tasks + generator.normal(0, 1, (5, 1)) + generator.normal(0, 0.3, (5, 8))) for _ in range(100)
        )
    )
    assert covered >= 75
    assert iqm_interval(np.ones((2, 3))) == (1.0, 1.0)
    low, high = iqm_interval(alike[:1])
    assert high - low > 2, "of one training, it is over tasks"


def test_the_stratified_interval_draws_trainings_for_each_task_apart():
    generator = np.random.default_rng(0)
    scores = np.linspace(0, 10, 8) + generator.normal(0, 1, (5, 1)) + generator.normal(0, 0.3, (5, 8))
    drawn = generator.integers(5, size=(4000, 5, 8))
    plain = np.percentile([stats.trim_mean(scores[rows, np.arange(8)].ravel(), 0.25) for rows in drawn], [2.5, 97.5])
    np.testing.assert_allclose(stratified_iqm_interval(scores), plain, atol=0.05)
    low, high = iqm_interval(scores)
    assert np.ptp(plain) < 0.7 * (high - low), "it takes a training's tasks for independent"
    assert stratified_iqm_interval(np.ones((2, 3))) == (1.0, 1.0)
    assert stratified_iqm_interval(scores[:1]) is None


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
    # What does not train is what it is: the trainings' own spread remains.
    low, high = difference(many, one, trained=(True, False))
    assert (low, high) == pytest.approx(interval(many - one.mean())) and low < 0.0 < high
    mirrored = difference(one, many, trained=(False, True))
    assert mirrored == pytest.approx((-high, -low))
    # A single training is taken to spread as the others do, which is less certain.
    wide = difference(many, one)
    assert wide[0] < low and high < wide[1] and sum(wide) == pytest.approx(0.0, abs=1e-9)
    found = stats.ttest_ind(many.mean(1), one.mean(1), equal_var=True).confidence_interval(0.95)
    assert wide == pytest.approx((found.low, found.high))
    nothing = (-math.inf, math.inf)
    assert difference(one[:, :1], one[:, :1] + 1.0) == nothing == difference(one[:, :1], one, paired=False)
    assert difference(one[:, :1], one[:, :1] + 1.0, paired=False) == nothing
    assert difference(np.ones((3, 2)), one) == nothing, "trainings that are all alike tell no spread"
    assert difference(np.ones((2, 3)), np.zeros((3, 2))) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("statuses", "word"),
    [
        ([MET, MET], HOLDS),
        ([MET, UNRUN], OPEN),
        ([REFUTED, REFUTED], DOES_NOT),
        ([MET, REFUTED], IN_PART),
        ([MET, UNDECIDED], OPEN),
        ([MET, REFUTED, UNRUN], IN_PART),
        ([REFUTED, UNDECIDED], AT_MOST_PART),
        ([REFUTED, UNRUN], AT_MOST_PART),
        ([UNDECIDED, UNRUN], OPEN),
        ([UNRUN, UNRUN], NOT_RUN),
        ([], NOT_RUN),
    ],
)
def test_what_checks_come_to(statuses: list[str], word: str):
    found = verdict_of([Outcome(status, "", status != UNRUN) for status in statuses])
    assert found.word == word
    assert found.text == (word if UNRUN not in statuses or word == NOT_RUN else f"{word} so far")
    assert found.told_counts == ", ".join(
        f"{statuses.count(status)} {status}" for status in (MET, REFUTED, UNDECIDED, UNRUN) if status in statuses
    )


@pytest.mark.parametrize(
    ("finals", "settings", "status"),
    [
        ((1.9, 1.8, 1.85), {"at_least": 1.5}, MET),
        ((1.9, 1.8, 1.85), {"at_least": 1.85}, UNDECIDED),  # in the mean, and within its interval
        ((1.9, 1.8, 1.85), {"at_least": 2.1}, REFUTED),
        ((1.9, 1.8, 1.85), {"at_most": 2.1}, MET),
        ((1.9, 1.8, 1.85), {"at_most": 1.5}, REFUTED),
        ((1.9, 1.8, 1.85), {"at_least": 1.5, "at_most": 2.1}, MET),
        ((1.9, 1.8, 1.85), {"at_least": 1.95, "at_most": 2.1}, UNDECIDED),
        ((1.9, 1.8, 1.85), {"at_least": 2.0, "at_most": 2.1}, REFUTED),
    ],
)
def test_an_interval_decides(finals: tuple[float, ...], settings: dict[str, float], status: str):
    check = Check("x", "good", **settings)
    outcome = StudyNumbers(study(check, num_seeds=3), runs_of("good", *finals)).check(check)
    assert outcome.status == status and outcome.is_final and "1.85 (" in outcome.text


def test_a_difference_decides_by_its_interval():
    runs = runs_of("good", 1.9, 1.8, 1.85, first=0.2) + runs_of("bad", 0.3, 0.2, 0.25, first=0.2)
    numbers = StudyNumbers(study(num_seeds=3), runs)
    assert numbers.level("good", metric="gain").value == pytest.approx(1.65)
    for margin, status in ((1.4, MET), (1.6, UNDECIDED), (1.8, REFUTED)):
        outcome = numbers.check(Check("x", "good", worse="bad", margin=margin))
        assert outcome.status == status and "against 0.25" in outcome.text
    assert numbers.check(Check("x", "bad", worse="good")).status == REFUTED
    assert numbers.check(Check("x", "good", worse="bad", metric="gain", margin=1.4)).status == MET


def test_a_difference_to_what_does_not_train_is_of_all_trainings():
    runs = [run("good", seed, [value]) for seed, value in enumerate((1.9, 1.0, 1.5))] + [run("random", 0, [1.45])]
    outcome = StudyNumbers(study(num_seeds=3), runs).check(Check("x", "good", worse="random"))
    assert outcome.status == UNDECIDED, "the first training alone would tell otherwise"


def test_committed_results_are_of_committed_code():
    for name in study_names():
        for each in read_runs(name, ROOT / "data" / "results"):
            commits = f"{each.commit} {each.evaluation_commit or ''}"
            assert "+" not in commits, f"run {name}/{each.variant}/{each.seed} again: its code was not committed"


def test_withdrawn_runs_are_gone_from_every_study(tmp_path: Path):
    for name in ("one", "two"):
        for variant in ("good", "bad"):
            add_run(name, replace(run(variant, 0, [1.0]), settings=variant), ["good", "bad"], tmp_path)
    assert withdraw_runs({"good"}, tmp_path) == ["one/good/0", "two/good/0"]
    assert [each.variant for name in ("one", "two") for each in read_runs(name, tmp_path)] == ["bad", "bad"]
    assert withdraw_runs({"good"}, tmp_path) == []


def test_a_verdict_on_few_trainings_is_one_so_far():
    high = Check("high", "good", at_least=1.0)
    for count, planned, is_final in ((1, 3, False), (2, 2, False), (3, 3, True), (3, 5, False), (5, 5, True)):
        runs = [run("good", seed, [1.9, 1.8]) for seed in range(count)]
        found = StudyNumbers(study(high, num_seeds=planned), runs).verdict()
        assert (found.word, found.is_final) == (HOLDS if count > 1 else OPEN, is_final)
    # What does not train is known by one run, exactly.
    fixed = Check("as computed", "random", at_least=0.95, at_most=1.05)
    numbers = StudyNumbers(study(fixed), [run("random", 0, [0.0, 2.0])])
    assert numbers.check(fixed) == Outcome(MET, "1.00", True) and numbers.verdict().is_final


def test_one_training_decides_nothing():
    """Its tasks all agree, and the next training may differ from it by more than they do."""
    bad = runs_of("bad", 0.3, 0.2, 0.25)
    alone = run("good", 0, [1.9, 1.8, 1.85], curve=[0.0] * 10 + [1.9] * 20)
    checks = (
        Check("x", "good", at_least=1.0),
        Check("x", "good", at_most=1.0),
        Check("x", "good", worse="bad"),
        Check("x", "bad", worse="good"),
        Check("x", "good", metric="episodes_to", at_most=20),
    )
    numbers = StudyNumbers(study(level=1.8, num_seeds=3), [alone, *bad])
    assert [numbers.check(check).status for check in checks] == [UNDECIDED] * 5
    again = run("good", 1, [1.95, 1.8, 1.7], curve=alone.splits["held_out"].curve)
    numbers = StudyNumbers(study(level=1.8, num_seeds=3), [alone, again, *bad])
    assert [numbers.check(check).status for check in checks] == [MET, REFUTED, MET, REFUTED, MET]


def test_our_own_checks_are_left_out_of_the_verdict():
    high, aim = Check("high", "good", at_least=1.5), Check("aim", "good", at_least=1.99, own=True)
    runs = [run("good", seed, [1.9, 1.8]) for seed in range(3)]
    assert StudyNumbers(study(high, aim, num_seeds=3), runs).verdict().text == HOLDS
    assert StudyNumbers(study(high, replace(aim, own=False), num_seeds=3), runs).verdict().text == IN_PART


def test_a_check_of_some_episodes():
    runs = [run("good", seed, [0.3], curve=[0.1, 0.9, 1.1, 0.3 + 0.01 * seed]) for seed in range(3)]
    within = Check("within", "good", metric="gain", episodes=(2, 3), at_least=0.9, at_most=0.9)
    numbers = StudyNumbers(study(within, num_seeds=3), runs)
    assert numbers.check(within).status == MET
    assert numbers.level("good", metric="final", episodes=(3, 4)).value == pytest.approx(0.705)
    assert StudyNumbers(study(within), runs[:1]).check(within).status == UNDECIDED  # one number has no interval
    with pytest.raises(ValueError, match="has 4 episodes, and a check asks for 3 to 5"):
        numbers.level("good", metric="final", episodes=(3, 5))
    with pytest.raises(ValueError, match="names episodes, which metric first does not average"):
        study(replace(within, metric="first"))


def test_a_check_of_one_training_is_refused():
    values = {"variants": {"good": Variant("good", "good", num_seeds=1), "fixed": Variant("fixed", "x", "random")}}
    kept = {"name": "toy", "paper": "p", "title": "t", "claim": "c", "source": "s", "experiment": "dark_room"}
    for check in (Check("high", "good", at_least=1.0), Check("high", "fixed", worse="good")):
        with pytest.raises(ValueError, match="'high' could never be decided by one training of 'good'.*num_seeds: 3"):
            Study(**kept, **values, checks=(check,))
    told = Study(**kept, **values, checks=(Check("low", "fixed", at_most=1.0),))
    assert [len(told.seeds(variant)) for variant in told.variants.values()] == [1, 1]
    assert [len(study().seeds(study().variants[name])) for name in ("good", "random")] == [3, 1]


def test_runs_of_one_variant_are_evaluated_alike():
    runs = [run("good", 0, [1.0, 2.0]), run("good", 1, [1.0])]
    with pytest.raises(ValueError, match="toy/good on the split 'held_out' differ.*1 tasks over 2 ep.* and 2 tasks"):
        StudyNumbers(study(), runs)
    StudyNumbers(study(), [runs[0], replace(runs[1], variant="bad")])


def test_what_does_not_train_differs_by_what_it_does():
    """Its tasks vary, but it would do the same on them again."""
    checks = [Check("x", "source", worse="random", margin=margin) for margin in (0.5, 1.5)]
    numbers = StudyNumbers(study(*checks), [run("source", 0, [1.0, 5.0]), run("random", 0, [0.0, 4.0])])
    assert [numbers.check(check) for check in checks] == [
        Outcome(MET, "3.00 against 2.00; difference 1.00", True),
        Outcome(REFUTED, "3.00 against 2.00; difference 1.00", True),
    ]


def test_one_number_each_leaves_no_interval():
    check = Check("x", "good", worse="bad")
    outcome = StudyNumbers(study(check), [run("good", 0, [1.0]), run("bad", 0, [0.5])]).check(check)
    assert outcome == Outcome(UNDECIDED, "1.00 against 0.50; no interval of their difference", False)


def test_trainings_are_counted_on_the_split_that_is_asked_for():
    check = Check("high", "good", at_least=1.0, split="train")
    runs = runs_of("good", 1.9, 1.8, 1.85)
    on_train = replace(runs[0], splits={**runs[0].splits, "train": runs[0].splits["held_out"]})
    numbers = StudyNumbers(study(check, splits=("held_out", "train")), [on_train, *runs[1:]])
    outcome = numbers.check(check)
    assert numbers.num_trainings(check) == [1]
    assert (outcome.status, outcome.is_final) == (UNDECIDED, False)
    assert numbers.check(replace(check, split="held_out")).is_final


def test_parts_of_the_oracles_return():
    numbers = StudyNumbers(study(), [run("good", 0, [1.0, 2.0])])  # the oracle earns 2
    assert numbers.scores("good", metric="oracle_fraction").tolist() == [[0.5, 1.0]]


@pytest.mark.parametrize(
    ("check", "rule"),
    [
        (Check("x", "good", at_least=0.5), "at least 0.5"),
        (Check("x", "good", at_least=-1.5, at_most=1.5), "at least -1.5 and at most 1.5"),
        (Check("x", "good", worse="bad", margin=0.3), "difference above 0.3"),
        (Check("x", "good", metric="episodes_to", at_most=20), "at most 20 in every training"),
        (Check("x", "good", worse="bad", metric="episodes_to", margin=2), "fewer by more than 2 in every training"),
    ],
)
def test_the_rule_of_a_check_is_told(check: Check, rule: str):
    assert check.rule == rule


def test_normalised_scores_are_0_for_random_and_1_for_the_source():
    runs = [run("good", 0, [60.0, 80.0]), run("source", 0, [80.0, 90.0]), run("random", 0, [50.0, 50.0])]
    numbers = StudyNumbers(study(metric="normalised"), runs)
    assert numbers.level("source").value == pytest.approx(1.0)
    assert numbers.level("random").value == pytest.approx(0.0)
    assert numbers.level("good").value == pytest.approx(20 / 35)


def test_interquartile_means_and_their_intervals_are_normalised_alike():
    ends = [run("source", 0, [80.0, 82.0, 84.0, 90.0] * 2), run("random", 0, [1.0, 50.0, 50.0, 50.0] * 2)]
    runs = [run("good", seed, [60.0 + seed, 61.0, 62.0, 64.0] * 2) for seed in range(3)]
    numbers = StudyNumbers(study(metric="normalised"), [*runs, *ends])
    found, between = numbers.level("good"), 83.0 - 50.0  # interquartile means of the ends
    assert found.iqm == pytest.approx((61 + 2 / 3 - 50.0) / between)
    interval = numbers.stratified_iqm_interval("good", metric="normalised", split="held_out")
    returns = numbers.stratified_iqm_interval("good", metric="final", split="held_out")
    assert interval == pytest.approx([(end - 50.0) / between for end in returns])
    assert interval[0] <= found.iqm <= interval[1]


def test_episodes_to_the_published_level():
    def lived(*starts: int) -> list[Run]:
        return [run("good", seed, [1.9], curve=[0.0] * n + [1.9] * (50 - n)) for seed, n in enumerate(starts)]

    check = Check("soon", "good", metric="episodes_to", at_most=25)
    for starts, status, text in (
        ((20, 20), MET, "21"),
        ((20, 22), MET, "21 to 23"),
        ((20, 30), UNDECIDED, "21 to 31"),
        ((20, 50), UNDECIDED, "21 to never in 50"),
        ((30, 32), REFUTED, "31 to 33"),
        ((50, 50), REFUTED, "never in 50"),
    ):
        outcome = StudyNumbers(study(check, level=1.8), lived(*starts)).check(check)
        assert (outcome.status, outcome.text) == (status, text)


def test_who_reaches_a_level_sooner():
    soon, late, never = ([0.0] * n + [1.9] * (50 - n) for n in (20, 30, 50))
    cut, after, latest, longer_never = ([0.0] * n + [1.9] * (100 - n) for n in (40, 42, 60, 100))
    check = Check("sooner", "good", worse="bad", metric="episodes_to")
    for good, bad, status, wide, text in (
        (soon, late, MET, REFUTED, "21 against 31"),
        (late, soon, REFUTED, REFUTED, "31 against 21"),
        (soon, soon, REFUTED, REFUTED, "21 against 21"),
        (soon, never, MET, MET, "21 against never in 50"),
        (late, never, MET, UNDECIDED, "31 against never in 50"),
        (never, soon, REFUTED, REFUTED, "never in 50 against 21"),
        (never, never, UNDECIDED, UNDECIDED, "never in 50 against never in 50"),
        # Whose lifetime ends sooner may have come to the level before the other, or not: of 50 episodes, the 41st is
        # the last that begins ten.
        (never, latest, UNDECIDED, UNDECIDED, "never in 50 against 61"),
        (never, cut, REFUTED, REFUTED, "never in 50 against 41"),
        (never, after, UNDECIDED, REFUTED, "never in 50 against 43"),
        (latest, never, UNDECIDED, UNDECIDED, "61 against never in 50"),
        (latest, longer_never, MET, MET, "61 against never in 100"),
    ):
        runs = [
            run(name, seed, [1.9], curve=curve) for name, curve in (("good", good), ("bad", bad)) for seed in (0, 1)
        ]
        outcome = StudyNumbers(study(check, level=1.8), runs).check(check)
        assert (outcome.status, outcome.text) == (status, text)
        by_15 = replace(check, margin=15.0)
        assert StudyNumbers(study(by_15, level=1.8), runs).check(by_15).status == wide, text
    with pytest.raises(ValueError, match="counts episodes; give the study a level"):
        study(Check("sooner", "good", metric="episodes_to", at_least=3.0), level=1.8)


def test_failures_come_worst_first():
    numbers = StudyNumbers(study(), [run("good", 0, [1.9, 0.1, 1.0]), run("good", 1, [1.7, 0.3, 0.8])])
    listed = numbers.failures("good")
    assert [task for task, *_ in listed] == [1, 2, 0]
    assert listed[0][1:] == (pytest.approx(0.2), 2.0, 1.0)
    assert math.isclose(listed[1][3], 0.5)


def test_without_its_ends_a_normalised_score_is_not_run_yet():
    numbers = StudyNumbers(study(Check("x", "good", at_least=0.5), metric="normalised"), [run("good", 0, [60.0])])
    assert not numbers.has("good") and numbers.has("good", metric="final")
    assert numbers.verdict().text == NOT_RUN
