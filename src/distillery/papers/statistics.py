"""Numbers of a study: levels with intervals over training seeds and tasks, differences, and verdicts.

A check is met or refuted where its interval lies on one side of what is asked, and undecided where it does not, or
where a training stands alone; a verdict on few trainings is one so far.

What varies independently is a training: its scores on all tasks share its weights. So the interval of a mean is the t
interval over the means of the training seeds, and a difference is judged by Welch's, given these tasks and these
histories. Where there is one training, its interval is over tasks, which tells nothing of another training and decides
nothing. Beside it stands the interquartile mean that the field reports (Agarwal et al., Deep RL at the Edge of the
Statistical Precipice, 2021, arXiv 2108.13264) with a 95 % bootstrap interval. There every score is a training of its
own, and runs are resampled for each task apart; here the tasks of a training share its weights, so whole trainings are
resampled. All of it is SciPy's.

Letters: S training seeds, K tasks, N episodes.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy import stats

from distillery.core.lifetimes import FINAL_EPISODES, episodes_to
from distillery.papers.results import Run
from distillery.papers.study import EXTRA, MIN_TRAININGS, Check, Study

NUM_RESAMPLES = 2000
SAME = 1e-9  # numbers this close are equal but for rounding
# What normalised scores count as 0 and 1.
ENDS = ("random", "source")
STATUSES = MET, REFUTED, UNDECIDED, UNRUN = "yes", "no", "undecided", "not run"
HOLDS, IN_PART, DOES_NOT = "holds", "holds in part", "does not hold"
AT_MOST_PART, OPEN, NOT_RUN = "holds in part at most", "is undecided", "not run yet"


@dataclass(frozen=True)
class Outcome:
    """What came of a check.

    Attributes:
        status: `MET`, `REFUTED`, `UNDECIDED` or `UNRUN`.
        text: the numbers in words.
        is_final: whether all trainings are there that it is to rest on.
    """

    status: str
    text: str
    is_final: bool


@dataclass(frozen=True)
class Verdict:
    """What came of a claim.

    Attributes:
        word: `HOLDS`, `IN_PART`, `DOES_NOT`, `AT_MOST_PART`, `OPEN` or `NOT_RUN`.
        is_final: whether all its checks are.
        counts: checks by status.
    """

    word: str
    is_final: bool
    counts: Mapping[str, int] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """In words."""
        return self.word if self.is_final or self.word == NOT_RUN else f"{self.word} so far"

    @property
    def told_counts(self) -> str:
        """How many checks came out how, in words."""
        return ", ".join(f"{self.counts[status]} {status}" for status in STATUSES if self.counts.get(status))


def verdict_of(outcomes: Sequence[Outcome]) -> Verdict:
    """What the outcomes of a claim's checks come to.

    It holds if all are met, does not hold if all are refuted, holds in part if some are met and others refuted, and
    holds in part at most if some are refuted, none is met and others are open; else it is undecided.
    """
    counts = Counter(outcome.status for outcome in outcomes)
    is_final = all(outcome.is_final for outcome in outcomes)
    if counts.keys() <= {UNRUN}:
        return Verdict(NOT_RUN, False, counts)
    if MET in counts and REFUTED in counts:
        return Verdict(IN_PART, is_final, counts)
    if len(counts) == 1 and UNDECIDED not in counts:
        return Verdict(HOLDS if MET in counts else DOES_NOT, is_final, counts)
    return Verdict(AT_MOST_PART if REFUTED in counts else OPEN, is_final, counts)


@dataclass(frozen=True)
class Level:
    """A number with its 95 % interval.

    Attributes:
        value: the mean.
        low: of its interval; the mean itself where there is none.
        high: of its interval.
        iqm: interquartile mean.
        iqm_low: of its interval.
        iqm_high: of its interval.
        num_seeds: training seeds it rests on.
        num_tasks: tasks it rests on.
        is_fixed: whether it is of what does not train, which is what it is on these tasks.
    """

    value: float
    low: float
    high: float
    iqm: float
    iqm_low: float
    iqm_high: float
    num_seeds: int
    num_tasks: int
    is_fixed: bool = False

    def text(self, decimals: int = 2) -> str:
        """Number and interval in words; what is fixed, or one number alone, is told without."""
        return self._told(self.value, self.low, self.high, decimals)

    def iqm_text(self, decimals: int = 2) -> str:
        """The same of the interquartile mean."""
        return self._told(self.iqm, self.iqm_low, self.iqm_high, decimals)

    def _told(self, value: float, low: float, high: float, decimals: int) -> str:
        if self.is_fixed or self.num_seeds * self.num_tasks == 1:
            return f"{value:z.{decimals}f}"
        return f"{value:z.{decimals}f} ({low:z.{decimals}f} to {high:z.{decimals}f})"


def _draws(scores: np.ndarray) -> np.ndarray:
    """What was drawn independently: the mean of each training, or the tasks of the only one."""
    return scores.mean(1) if len(scores) > 1 else scores[0]


def interval(scores: np.ndarray) -> tuple[float, float]:
    """95 % t interval of the mean of (S, K) scores, over training seeds; over tasks where S is 1."""
    draws, mean = _draws(scores), float(scores.mean())
    if np.ptp(draws) < SAME:
        return mean, mean
    found = stats.ttest_1samp(draws, 0.0).confidence_interval(0.95)
    return float(found.low), float(found.high)


def iqm_interval(scores: np.ndarray) -> tuple[float, float]:
    """95 % bootstrap interval of the interquartile mean of (S, K) scores, of trainings; of tasks where S is 1."""
    if np.ptp(scores) == 0:
        return float(scores.flat[0]), float(scores.flat[0])
    units = scores if len(scores) > 1 else scores.T  # what is drawn as a whole

    def iqm(drawn: np.ndarray, axis: int) -> np.ndarray:
        assert axis == -1
        return stats.trim_mean(units[drawn].reshape(*drawn.shape[:-1], -1), 0.25, axis=-1)

    found = stats.bootstrap(
        (np.arange(len(units)),),
        iqm,
        n_resamples=NUM_RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(0),
        batch=200,
    ).confidence_interval
    return float(found.low), float(found.high)


def scores_of(
    runs: Sequence[Run],
    metric: str,
    split: str,
    ends: Mapping[str, np.ndarray] | None = None,
    episodes: tuple[int, int] | None = None,
) -> np.ndarray:
    """(S, K) scores of one variant's runs.

    Args:
        runs: of the variant, one a seed.
        metric: `final`, `first`, `gain`, `normalised` or `oracle_fraction`; or one of the runs' own
            numbers, K being 1.
        split: of the tasks.
        ends: for `normalised`: the returns that count as 0 and 1, `random` and `source`, each a number per task mean.
        episodes: first and last of those that `final` averages, K being 1, for runs hold these as means over tasks;
            None is each task's last ten.

    Raises:
        ValueError: a run lacks the split, or ends before those episodes.
    """
    rows = []
    for run in runs:
        if split not in run.splits:
            raise ValueError(f"run {run.variant}/{run.seed} was not evaluated on the split '{split}'; run it again")
        if metric.startswith(EXTRA):
            rows.append(np.array([run.extra[metric.removeprefix(EXTRA)]], dtype=float))
            continue
        result = run.splits[split]
        first, final = np.array(result.first), np.array(result.final)
        if episodes is not None:
            begin, end = episodes
            if end > len(result.curve):
                raise ValueError(
                    f"run {run.variant}/{run.seed} has {len(result.curve)} episodes, and a check asks for {begin} "
                    f"to {end}"
                )
            first, final = np.array(result.curve[:1]), np.array([np.mean(result.curve[begin - 1 : end])])
        if metric == "normalised":
            assert ends is not None
            rows.append((final - ends["random"].mean()) / (ends["source"].mean() - ends["random"].mean()))
        else:
            kinds = {"final": final, "first": first, "gain": final - first}
            rows.append(final / np.array(result.oracle) if metric == "oracle_fraction" else kinds[metric])
    return np.stack(rows)


def level(scores: np.ndarray) -> Level:
    """Mean and interquartile mean of (S, K) scores, with their intervals."""
    iqm = float(stats.trim_mean(scores.ravel(), 0.25))
    return Level(float(scores.mean()), *interval(scores), iqm, *iqm_interval(scores), *scores.shape)


class StudyNumbers:
    """The runs of a study, asked for levels.

    Args:
        study: what was run.
        runs: what there is of it.

    Raises:
        ValueError: runs of one variant were evaluated on other numbers of tasks or episodes.
    """

    def __init__(self, study: Study, runs: Sequence[Run]) -> None:
        self.study = study
        self._runs = {name: [run for run in runs if run.variant == name] for name in study.variants}
        for name, own in self._runs.items():
            self._require_alike(name, own)

    def _require_alike(self, variant: str, runs: Sequence[Run]) -> None:
        shapes: dict[str, set[tuple[int, int]]] = {}
        for run in runs:
            for split, result in run.splits.items():
                shapes.setdefault(split, set()).add((len(result.final), len(result.curve)))
        for split, found in shapes.items():
            if len(found) > 1:
                told = " and ".join(f"{tasks} tasks over {episodes} episodes" for tasks, episodes in sorted(found))
                raise ValueError(
                    f"runs of {self.study.name}/{variant} on the split '{split}' differ in what they were evaluated "
                    f"on: {told}; run the variant with --again"
                )

    def has(self, variant: str, split: str = "held_out", metric: str | None = None) -> bool:
        """Whether the variant has runs on the split, and those that its metric is scaled by."""
        names = [variant, *(ENDS if (metric or self.study.metric) == "normalised" else ())]
        return all(any(split in run.splits for run in self._runs[name]) for name in names)

    def runs(self, variant: str) -> list[Run]:
        """The runs of one variant, one a seed."""
        return self._runs[variant]

    def scores(
        self,
        variant: str,
        *,
        metric: str | None = None,
        split: str = "held_out",
        episodes: tuple[int, int] | None = None,
    ) -> np.ndarray:
        """(S, K) scores; see `scores_of`."""
        metric = metric or self.study.metric
        ends = self._ends(split) if metric == "normalised" else None
        runs = [run for run in self._runs[variant] if split in run.splits]
        return scores_of(runs, metric, split, ends, episodes)

    def _ends(self, split: str) -> dict[str, np.ndarray]:
        return {end: scores_of(self._runs[end], "final", split) for end in ENDS}

    def level(
        self,
        variant: str,
        *,
        metric: str | None = None,
        split: str = "held_out",
        episodes: tuple[int, int] | None = None,
    ) -> Level:
        """The level of one variant; of normalised scores, interquartile means are scaled by interquartile means."""
        found = level(self.scores(variant, metric=metric, split=split, episodes=episodes))
        found = replace(found, is_fixed=not self.study.variants[variant].trains)
        if (metric or self.study.metric) != "normalised":
            return found
        returns = level(self.scores(variant, metric="final", split=split))
        zero, one = (float(stats.trim_mean(scores.ravel(), 0.25)) for scores in self._ends(split).values())
        iqms = (returns.iqm, returns.iqm_low, returns.iqm_high)
        iqm, iqm_low, iqm_high = ((value - zero) / (one - zero) for value in iqms)
        return replace(found, iqm=iqm, iqm_low=iqm_low, iqm_high=iqm_high)

    def curve(self, variant: str, split: str = "held_out") -> np.ndarray:
        """(S, N) mean return of every episode, a row for each seed."""
        return np.array([run.splits[split].curve for run in self._runs[variant] if split in run.splits])

    def episodes_to_level(self, variant: str, split: str = "held_out") -> int | None:
        """Episodes until the mean curve reaches the study's published level."""
        if self.study.level is None:
            return None
        return episodes_to(self.curve(variant, split).mean(0), self.study.level)

    def failures(self, variant: str, split: str = "held_out") -> list[tuple[int, float, float, float]]:
        """Task, mean final return over seeds, oracle's return, and share of failed lifetimes, worst first."""
        results = [run.splits[split] for run in self._runs[variant]]
        final = np.mean([result.final for result in results], 0)
        failed = np.mean([result.failed for result in results], 0)
        oracle = np.array(results[0].oracle)
        order = np.argsort(final / oracle, kind="stable")
        return [(results[0].task_ids[i], float(final[i]), float(oracle[i]), float(failed[i])) for i in order]

    def check(self, check: Check) -> Outcome:
        """What came of a check, and the numbers in words."""
        if not all(self.has(name, check.split, check.metric) for name in check.variants):
            return Outcome(UNRUN, NOT_RUN, False)
        if check.metric == "episodes_to":
            status, text = self._check_episodes(check)
        elif check.worse is None:
            status, text = self._check_level(check)
        else:
            status, text = self._check_difference(check)
        # The tasks of one training vary, but tell nothing of the next training.
        if 1 in self.num_trainings(check):
            status = UNDECIDED
        return Outcome(status, text, self._is_complete(check))

    def num_trainings(self, check: Check) -> list[int]:
        """How many trainings a check rests on, of each of its variants that trains."""
        return [self._num_runs(name, check.split) for name in check.variants if self.study.variants[name].trains]

    def _num_runs(self, variant: str, split: str) -> int:
        return sum(split in run.splits for run in self._runs[variant])

    def _check_level(self, check: Check) -> tuple[str, str]:
        own = self.level(check.variant, metric=check.metric, split=check.split, episodes=check.episodes)
        low, high = (own.value, own.value) if own.is_fixed else (own.low, own.high)
        least = -np.inf if check.at_least is None else check.at_least
        most = np.inf if check.at_most is None else check.at_most
        if least <= low and high <= most:
            return MET, own.text()
        return (REFUTED if high < least or low > most else UNDECIDED), own.text()

    def _check_difference(self, check: Check) -> tuple[str, str]:
        assert check.worse is not None
        asked: dict[str, Any] = {"metric": check.metric, "split": check.split, "episodes": check.episodes}
        low, high = difference(
            self.scores(check.variant, **asked),
            self.scores(check.worse, **asked),
            paired=self._task_ids(check.variant, check.split) == self._task_ids(check.worse, check.split),
            trained=tuple(self.study.variants[name].trains for name in (check.variant, check.worse)),
        )
        own, other = (self.level(name, **asked) for name in (check.variant, check.worse))
        text = f"{own.text()} against {other.text()}; {_told_difference(low, high)}"
        if low > check.margin:
            return MET, text
        return (REFUTED if high <= check.margin else UNDECIDED), text

    def _task_ids(self, variant: str, split: str) -> list[int]:
        return next(run.splits[split].task_ids for run in self._runs[variant] if split in run.splits)

    def _check_episodes(self, check: Check) -> tuple[str, str]:
        soonest, latest, text = self._episodes_of_runs(check.variant, check.split)
        if check.worse is None:
            assert check.at_most is not None
            limits = check.at_most, check.at_most
        else:
            others_soonest, others_latest, told = self._episodes_of_runs(check.worse, check.split)
            text = f"{text} against {told}"
            # Fewer by more than the margin is at most the one before, episodes being counted.
            limits = others_soonest - check.margin - SAME, others_latest - check.margin - SAME
        if latest <= limits[0]:
            return MET, text
        return (REFUTED if soonest > limits[1] else UNDECIDED), text

    def _episodes_of_runs(self, variant: str, split: str) -> tuple[float, float, str]:
        """Least and most episodes in which trainings reach the study's level, and both in words.

        One that never did is known by the first of every ten of its N episodes: it needs more than N - 9.
        """
        assert self.study.level is not None
        curves = self.curve(variant, split)
        reached = [episodes_to(curve, self.study.level) for curve in curves]
        unseen = max(curves.shape[1] - FINAL_EPISODES + 2, 1)
        soonest = min(unseen if one is None else one for one in reached)
        latest = max(math.inf if one is None else one for one in reached)
        told = [f"{one}" for one in sorted(one for one in reached if one is not None)]
        if None in reached:
            told.append(f"never in {curves.shape[1]}")
        return soonest, latest, told[0] if told[0] == told[-1] else f"{told[0]} to {told[-1]}"

    def _is_complete(self, check: Check) -> bool:
        """Whether all the trainings are there that a check is to rest on, and enough of them."""
        for name in check.variants:
            variant = self.study.variants[name]
            least = MIN_TRAININGS if variant.trains else 1
            if self._num_runs(name, check.split) < max(len(self.study.seeds(variant)), least):
                return False
        return True

    def verdict(self) -> Verdict:
        """What the checks of the paper's claim come to."""
        return verdict_of([self.check(check) for check in self.study.checks if not check.own])


def difference(
    better: np.ndarray, worse: np.ndarray, *, paired: bool = True, trained: tuple[bool, ...] = (True, True)
) -> tuple[float, float]:
    """95 % interval of the difference of two variants' means, from (S, K) and (S', K') scores.

    Of several trainings each it is Welch's. One training against several is taken to spread as they do: Student's, of
    one variance. What does not train is what it is, so that the others' spread remains, or none. One training against
    one is held against it task by task, so that the tasks' own spread drops out; of one number each, there is no
    interval.

    Args:
        better: (S, K) scores.
        worse: (S', K') scores.
        paired: whether the tasks are the same.
        trained: whether each of the two is a training's.
    """
    counts = len(better), len(worse)
    if not any(trained):
        gap = float(better.mean() - worse.mean())
        return gap, gap
    if counts == (1, 1):
        if 1 in (better.size, worse.size):
            return -np.inf, np.inf
        if not (paired and better.shape == worse.shape):
            return _between(better[0], worse[0], equal_spread=False)
        return interval(better - worse)
    if counts[0] == 1 and not trained[0]:
        return interval(better.mean() - worse)
    if counts[1] == 1 and not trained[1]:
        return interval(better - worse.mean())
    return _between(better.mean(1), worse.mean(1), equal_spread=1 in counts)


def _told_difference(low: float, high: float) -> str:
    if math.isinf(low):
        return "no interval of their difference"
    return f"difference {low:z.2f} to {high:z.2f}" if low < high else f"difference {low:z.2f}"


def _between(one: np.ndarray, two: np.ndarray, *, equal_spread: bool) -> tuple[float, float]:
    """95 % interval of the difference of the means of two samples."""
    gap = float(one.mean() - two.mean())
    if np.ptp(one) < SAME and np.ptp(two) < SAME:
        # What a single one would vary by, others that are all alike do not tell.
        return (gap, gap) if min(len(one), len(two)) > 1 else (-np.inf, np.inf)
    found = stats.ttest_ind(one, two, equal_var=equal_spread).confidence_interval(0.95)
    return float(found.low), float(found.high)
