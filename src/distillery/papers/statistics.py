"""Numbers of a study: levels of its variants, differences, and what came of its checks.

A check is met or refuted where its interval lies on one side of what is asked, and undecided where it does not, or
where a training stands alone; a verdict on few trainings is one so far. See `distillery.papers.intervals` for what
intervals are of.

Letters: S training seeds, K tasks, N episodes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from scipy import stats

from distillery.core.lifetimes import FINAL_EPISODES, episodes_to
from distillery.papers.intervals import SAME, Level, difference, level, stratified_iqm_interval
from distillery.papers.results import Run
from distillery.papers.study import EXTRA, MIN_TRAININGS, Check, Study
from distillery.papers.verdicts import MET, NOT_RUN, REFUTED, UNDECIDED, UNRUN, Outcome, Verdict, verdict_of

# What normalised scores count as 0 and 1.
ENDS = ("random", "source")


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
        iqm, iqm_low, iqm_high = self._scaled_iqms((returns.iqm, returns.iqm_low, returns.iqm_high), split)
        return replace(found, iqm=iqm, iqm_low=iqm_low, iqm_high=iqm_high)

    def stratified_iqm_interval(self, variant: str, *, metric: str, split: str) -> tuple[float, ...] | None:
        """See `intervals.stratified_iqm_interval`; scaled as the interquartile mean of `level` is."""
        normalised = metric == "normalised"
        scores = self.scores(variant, metric="final" if normalised else metric, split=split)
        found = stratified_iqm_interval(scores)
        return self._scaled_iqms(found, split) if found is not None and normalised else found

    def _scaled_iqms(self, iqms: Sequence[float], split: str) -> tuple[float, ...]:
        """Interquartile means of returns, 0 where that of `random` is and 1 where that of `source` is."""
        zero, one = (float(stats.trim_mean(scores.ravel(), 0.25)) for scores in self._ends(split).values())
        return tuple((value - zero) / (one - zero) for value in iqms)

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


def _told_difference(low: float, high: float) -> str:
    if math.isinf(low):
        return "no interval of their difference"
    return f"difference {low:z.2f} to {high:z.2f}" if low < high else f"difference {low:z.2f}"
