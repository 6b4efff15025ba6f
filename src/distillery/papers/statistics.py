"""Numbers of a study: levels with intervals over training seeds and tasks, differences, and verdicts.

What varies independently is a training: its scores on all tasks share its weights. So the interval of a mean is the
t interval over the means of the training seeds, and a difference is judged by Welch's. Where there is one training,
its tasks are all there is to vary. Beside it stands what the field reports: the interquartile mean with its 95 %
bootstrap interval, stratified by task (Agarwal et al., Deep RL at the Edge of the Statistical Precipice, 2021, arXiv
2108.13264), which resamples the runs of each task on their own and is therefore narrower. All of it is SciPy's.

Letters: S training seeds, K tasks, N episodes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from distillery.papers.results import Run
from distillery.papers.study import EXTRA, Check, Study

NUM_RESAMPLES = 2000
WINDOW = 10
SAME = 1e-9  # numbers this close are equal but for rounding
# What normalised scores count as 0 and 1.
ENDS = ("random", "source")
HOLDS, SO_FAR, IN_PART, DOES_NOT, NOT_RUN = "holds", "holds so far", "holds in part", "does not", "not run yet"


@dataclass(frozen=True)
class Level:
    """A number with its 95 % interval.

    Attributes:
        value: the mean.
        low: of its interval.
        high: of its interval.
        iqm: interquartile mean.
        iqm_low: of its interval.
        iqm_high: of its interval.
        num_seeds: training seeds it rests on.
        num_tasks: tasks it rests on.
    """

    value: float
    low: float
    high: float
    iqm: float
    iqm_low: float
    iqm_high: float
    num_seeds: int
    num_tasks: int

    def text(self, decimals: int = 2) -> str:
        """Number and interval in words."""
        return f"{self.value:.{decimals}f} ({self.low:.{decimals}f} to {self.high:.{decimals}f})"

    def iqm_text(self, decimals: int = 2) -> str:
        """The same of the interquartile mean."""
        return f"{self.iqm:.{decimals}f} ({self.iqm_low:.{decimals}f} to {self.iqm_high:.{decimals}f})"


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
    """95 % bootstrap interval of the interquartile mean of (S, K) scores, stratified by task; over tasks if S is 1."""
    if np.ptp(scores) == 0:
        return float(scores.flat[0]), float(scores.flat[0])
    samples = tuple(scores.T) if len(scores) > 1 else (scores[0],)

    def iqm(*parts: np.ndarray, axis: int) -> np.ndarray:
        return stats.trim_mean(np.concatenate(parts, axis), 0.25, axis=axis)

    found = stats.bootstrap(
        samples, iqm, n_resamples=NUM_RESAMPLES, method="percentile", rng=np.random.default_rng(0), batch=200
    ).confidence_interval
    return float(found.low), float(found.high)


def scores_of(
    runs: Sequence[Run], metric: str, split: str, ends: Mapping[str, np.ndarray] | None = None
) -> np.ndarray:
    """(S, K) scores of one variant's runs.

    Args:
        runs: of the variant, one a seed.
        metric: `final`, `first`, `gain` or `normalised`; or one of the runs' own numbers, K being 1.
        split: of the tasks.
        ends: for `normalised`: the returns that count as 0 and 1, `random` and `source`, each a number per task mean.

    Raises:
        ValueError: a run lacks the split.
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
        if metric == "normalised":
            assert ends is not None
            rows.append((final - ends["random"].mean()) / (ends["source"].mean() - ends["random"].mean()))
        else:
            rows.append({"final": final, "first": first, "gain": final - first}[metric])
    return np.stack(rows)


def level(scores: np.ndarray) -> Level:
    """Mean and interquartile mean of (S, K) scores, with their intervals."""
    iqm = float(stats.trim_mean(scores.ravel(), 0.25))
    return Level(float(scores.mean()), *interval(scores), iqm, *iqm_interval(scores), *scores.shape)


def episodes_to(curve: np.ndarray, target: float) -> int | None:
    """First episode e, counted from 1, whose episodes e to e + 9 average at least `target`."""
    if len(curve) < WINDOW:
        return None
    averages = np.convolve(curve, np.full(WINDOW, 1 / WINDOW), "valid")
    reached = np.flatnonzero(averages >= target - 1e-9)
    return int(reached[0]) + 1 if len(reached) else None


class StudyNumbers:
    """The runs of a study, asked for levels.

    Args:
        study: what was run.
        runs: what there is of it.
    """

    def __init__(self, study: Study, runs: Sequence[Run]) -> None:
        self.study = study
        self._runs = {name: [run for run in runs if run.variant == name] for name in study.variants}

    def has(self, variant: str, split: str = "held_out", metric: str | None = None) -> bool:
        """Whether the variant has runs on the split, and those that its metric is scaled by."""
        names = [variant, *(ENDS if (metric or self.study.metric) == "normalised" else ())]
        return all(any(split in run.splits for run in self._runs[name]) for name in names)

    def runs(self, variant: str) -> list[Run]:
        """The runs of one variant, one a seed."""
        return self._runs[variant]

    def scores(self, variant: str, *, metric: str | None = None, split: str = "held_out") -> np.ndarray:
        """(S, K) scores; see `scores_of`."""
        metric = metric or self.study.metric
        ends = None
        if metric == "normalised":
            ends = {end: scores_of(self._runs[end], "final", split) for end in ENDS}
        runs = [run for run in self._runs[variant] if split in run.splits]
        return scores_of(runs, metric, split, ends)

    def level(self, variant: str, *, metric: str | None = None, split: str = "held_out") -> Level:
        """The level of one variant."""
        return level(self.scores(variant, metric=metric, split=split))

    def curve(self, variant: str, split: str = "held_out") -> np.ndarray:
        """(S, N) mean return of every episode, a row for each seed."""
        return np.array([run.splits[split].curve for run in self._runs[variant] if split in run.splits])

    def episodes_to_level(self, variant: str, split: str = "held_out") -> int | None:
        """Episodes until the mean curve reaches the study's published level."""
        if self.study.level is None:
            return None
        return episodes_to(self.curve(variant, split).mean(0), self.study.level)

    def failures(self, variant: str, split: str = "held_out") -> list[tuple[int, float, float]]:
        """Task, mean final return over seeds, and share of failed lifetimes, worst first."""
        results = [run.splits[split] for run in self._runs[variant]]
        final = np.mean([result.final for result in results], 0)
        failed = np.mean([result.failed for result in results], 0)
        oracle = np.array(results[0].oracle)
        order = np.argsort(final / oracle, kind="stable")
        return [(results[0].task_ids[i], float(final[i]), float(failed[i])) for i in order]

    def check(self, check: Check) -> tuple[bool | None, str]:
        """Whether a check is met, None where its runs are missing, and the numbers in words."""
        names = [check.variant] if check.worse is None else [check.variant, check.worse]
        if not all(self.has(name, check.split, check.metric) for name in names):
            return None, NOT_RUN
        asked: dict[str, Any] = {"metric": check.metric, "split": check.split}
        if check.metric == "episodes_to":
            return self._check_episodes(check)
        own = self.level(check.variant, **asked)
        if check.worse is None:
            met = (check.at_least is None or own.value >= check.at_least) and (
                check.at_most is None or own.value <= check.at_most
            )
            return met, own.text()
        other = self.level(check.worse, **asked)
        low, high = difference(self.scores(check.variant, **asked), self.scores(check.worse, **asked))
        text = f"{own.text()} against {other.text()}; difference {low:.2f} to {high:.2f}"
        return low > check.margin, text

    def _check_episodes(self, check: Check) -> tuple[bool, str]:
        reached = self.episodes_to_level(check.variant, check.split)
        text = "never" if reached is None else f"{reached}"
        if check.worse is None:
            assert check.at_most is not None
            return reached is not None and reached <= check.at_most, text
        other = self.episodes_to_level(check.worse, check.split)
        sooner = reached is not None and (other is None or reached + check.margin < other)
        return sooner, f"{text} against {'never' if other is None else other}"

    def is_complete(self, check: Check) -> bool:
        """Whether all the training seeds are there that a check is to rest on."""
        names = [check.variant] if check.worse is None else [check.variant, check.worse]
        variants = [self.study.variants[name] for name in names]
        return all(len(self._runs[variant.name]) >= len(self.study.seeds(variant)) for variant in variants)

    def verdict(self) -> str:
        """`HOLDS`, `SO_FAR` where runs of checks are left, `IN_PART`, `DOES_NOT` or `NOT_RUN`."""
        met = [self.check(check)[0] for check in self.study.checks]
        if not met or all(one is None for one in met):
            return NOT_RUN
        if all(one is True for one in met) and all(map(self.is_complete, self.study.checks)):
            return HOLDS
        if not any(one is False for one in met):
            return SO_FAR
        return IN_PART if any(one is True for one in met) else DOES_NOT


def difference(better: np.ndarray, worse: np.ndarray, *, paired: bool = True) -> tuple[float, float]:
    """95 % interval of the difference of two variants' means, from (S, K) and (S', K') scores: Welch's.

    Where both have one seed on the same tasks, the difference is taken task by task, so that the tasks' own spread
    drops out; `paired` False says that the tasks are not the same.
    """
    if paired and better.shape == worse.shape and len(better) == 1:
        return interval(better - worse)
    one, two = _draws(better), _draws(worse)
    if np.ptp(one) < SAME and np.ptp(two) < SAME:
        return float(one.mean() - two.mean()), float(one.mean() - two.mean())
    found = stats.ttest_ind(one, two, equal_var=False).confidence_interval(0.95)
    return float(found.low), float(found.high)
