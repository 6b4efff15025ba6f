"""Means and interquartile means of trainings' scores, and differences between them, with 95 % intervals.

What varies independently is a training: its scores on all tasks share its weights. So the interval of a mean is the t
interval over the means of the training seeds, and a difference is judged by Welch's, given these tasks and these
histories. Where there is one training, its interval is over tasks, which tells nothing of another training. Beside it
stands the interquartile mean that the field reports (Agarwal et al., Deep RL at the Edge of the Statistical Precipice,
2021, arXiv 2108.13264) with a 95 % bootstrap interval. There every score is a training of its own, and runs are
resampled for each task apart; here the tasks of a training share its weights, so whole trainings are resampled. That
stratified interval is in ``metrics.json`` beside it. All of it is SciPy's.

Letters: S training seeds, K tasks.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats

NUM_RESAMPLES = 2000
SAME = 1e-9  # numbers this close are equal but for rounding


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
    units = scores if len(scores) > 1 else scores.T  # what is drawn as a whole

    def iqm(drawn: np.ndarray, axis: int) -> np.ndarray:
        assert axis == -1
        return stats.trim_mean(units[drawn].reshape(*drawn.shape[:-1], -1), 0.25, axis=-1)

    return _bootstrapped((np.arange(len(units)),), iqm, scores)


def stratified_iqm_interval(scores: np.ndarray) -> tuple[float, float] | None:
    """The same as Agarwal et al. have it, trainings drawn for each task apart; None where S is 1.

    It takes the scores of a training for independent, so that it is too narrow where trainings differ as a whole.
    """
    if len(scores) == 1:
        return None

    def iqm(*by_task: np.ndarray, axis: int) -> np.ndarray:
        return stats.trim_mean(np.concatenate(by_task, axis), 0.25, axis=axis)

    return _bootstrapped(tuple(scores.T), iqm, scores)


def _bootstrapped(
    samples: tuple[np.ndarray, ...], statistic: Callable[..., np.ndarray], scores: np.ndarray
) -> tuple[float, float]:
    """95 % percentile interval of a statistic of samples, each of which is drawn from apart."""
    if np.ptp(scores) == 0:
        return float(scores.flat[0]), float(scores.flat[0])
    rng = np.random.default_rng(0)
    found = stats.bootstrap(
        samples, statistic, n_resamples=NUM_RESAMPLES, method="percentile", vectorized=True, rng=rng, batch=200
    ).confidence_interval
    return float(found.low), float(found.high)


def level(scores: np.ndarray) -> Level:
    """Mean and interquartile mean of (S, K) scores, with their intervals."""
    iqm = float(stats.trim_mean(scores.ravel(), 0.25))
    return Level(float(scores.mean()), *interval(scores), iqm, *iqm_interval(scores), *scores.shape)


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


def _between(one: np.ndarray, two: np.ndarray, *, equal_spread: bool) -> tuple[float, float]:
    """95 % interval of the difference of the means of two samples."""
    gap = float(one.mean() - two.mean())
    if np.ptp(one) < SAME and np.ptp(two) < SAME:
        # What a single one would vary by, others that are all alike do not tell.
        return (gap, gap) if min(len(one), len(two)) > 1 else (-np.inf, np.inf)
    with warnings.catch_warnings():  # where one of the two is all alike, the other's spread is what there is to go by
        warnings.filterwarnings("ignore", "Precision loss occurred", RuntimeWarning)
        found = stats.ttest_ind(one, two, equal_var=equal_spread).confidence_interval(0.95)
    return float(found.low), float(found.high)
