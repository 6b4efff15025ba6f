"""Figures of studies: returns per episode, or a level over one quantity, ours beside the published numbers."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

from distillery.reports.style import AGENTS, FAINT, PUBLISHED_COLOUR, RC, agent_style

_TICKS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
# None of them a baseline's colour; the first two are those of AD and ED.
_PALETTE = ("#0072b2", "#d55e00", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195", "#b58900", "#5c4033")
_FURTHER = _PALETTE[2:]
# Of fewer published points than this, the course between them is not known.
_JOINED_POINTS = 4
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (2, 1)))


@dataclass(frozen=True)
class CurveLine:
    """One variant's return per episode.

    Attributes:
        label: for people.
        agent: decides the colour where no other line of the figure has the same agent.
        mean: (N,) over seeds and tasks.
        low: (N,) of the band over seeds; equal to `mean` where there is one seed.
        high: (N,) of the band.
        published: pairs of episode and return.
        published_end: the level it is said to end at, drawn at the right edge where `published` is empty.
        setting: what lines of several agents may have in common, which then share a colour.
    """

    label: str
    agent: str
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    published: Sequence[tuple[float, float]] = ()
    published_end: float | None = None
    setting: tuple[str, ...] = ()


@dataclass(frozen=True)
class SweepPoint:
    """One variant's level.

    Attributes:
        label: for people.
        x: place on the axis; None puts the points side by side in their order.
        value: the level.
        low: of its interval.
        high: of its interval.
        published: what the paper reports, or None.
        trainings: the level of each training.
    """

    label: str
    x: float | None
    value: float
    low: float
    high: float
    published: float | None = None
    trainings: Sequence[float] = ()


@dataclass(frozen=True)
class SweepLine:
    """The levels of one split or one family of variants."""

    label: str
    points: Sequence[SweepPoint] = field(default_factory=tuple)


def _styles(lines: Sequence[CurveLine]) -> list[tuple[str, Any]]:
    """Colour and line style of each line, none of them twice.

    The first line of an agent has the agent's own, in every figure; its further ones, and those of agents that have
    none, take a palette's, once drawn through and then dashed. Where agents have a line each for the same settings, a
    setting has its colour and an agent its style.
    """
    styles = list[tuple[str, Any]]()
    agents, settings = (
        list(dict.fromkeys(values)) for values in zip(*((x.agent, x.setting) for x in lines), strict=True)
    )
    is_grid = {(line.agent, line.setting) for line in lines} == set(product(agents, settings))
    if is_grid and 1 < len(agents) <= len(_DASHES) and 1 < len(settings) <= len(_PALETTE):
        return [(_PALETTE[settings.index(x.setting)], _DASHES[agents.index(x.agent)]) for x in lines]
    seen, number = set[str](), 0
    for line in lines:
        if line.agent in AGENTS and line.agent not in seen:
            style = agent_style(line.agent)
            styles.append((style.colour, style.line))
        else:
            styles.append((_FURTHER[number % len(_FURTHER)], _DASHES[number // len(_FURTHER) % len(_DASHES)]))
            number += 1
        seen.add(line.agent)
    return styles


@matplotlib.rc_context(RC)
def curves_figure(
    lines: Sequence[CurveLine],
    *,
    ylabel: str = "return of the episode",
    level: float | None,
    level_label: str = "published end",
) -> Figure:
    """Return per episode, one line a variant, with the published points in the same colour.

    Args:
        lines: at least one.
        ylabel: of the axis.
        level: a published level, drawn across.
        level_label: what it is.
    """
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    axes = figure.subplots()
    longest, styles = 1.0, _styles(lines)
    for line, (colour, dashes) in zip(lines, styles, strict=True):
        episodes = np.arange(1, len(line.mean) + 1)
        axes.plot(episodes, line.mean, color=colour, linestyle=dashes, label=line.label)
        axes.fill_between(episodes, line.low, line.high, color=colour, alpha=0.18, linewidth=0)
        longest = max(longest, len(line.mean))
        if line.published:
            x, y = zip(*line.published, strict=True)
            dots = ":" if len(x) >= _JOINED_POINTS else "none"
            axes.plot(x, y, color=colour, linestyle=dots, marker="o", markersize=4, linewidth=1)
            longest = max(longest, *x)
    for line, (colour, dashes) in zip(lines, styles, strict=True):
        if line.published_end is not None and not line.published:
            # What is drawn through has full dots, what is dashed rings.
            inside = colour if dashes == _DASHES[0] else "none"
            axes.plot(
                [longest],
                [line.published_end],
                color=colour,
                marker="o",
                markerfacecolor=inside,
                markersize=4,
                clip_on=False,
            )
    if any(line.published or line.published_end is not None for line in lines):
        axes.plot([], [], color=FAINT, linestyle=":", marker="o", markersize=4, label="as published")
    if level is not None:
        axes.axhline(
            level, color=PUBLISHED_COLOUR, linewidth=1, linestyle=(0, (1, 1.5)), label=f"{level_label}: {level:g}"
        )
    _episode_axis(axes, longest)
    axes.set_ylabel(ylabel)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def _episode_axis(axes: Axes, longest: float) -> None:
    axes.set(xscale="log", xlim=(1, longest * 1.04), xlabel="episode in the lifetime")
    axes.xaxis.set_major_locator(FixedLocator([tick for tick in _TICKS if tick <= longest]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(ScalarFormatter())


@matplotlib.rc_context(RC)
def sweep_figure(
    lines: Sequence[SweepLine], *, xlabel: str, ylabel: str, besides: Sequence[tuple[float, float]] = ()
) -> Figure:
    """Levels with intervals over one quantity, or side by side, with the published ones as rings.

    Args:
        lines: at least one; without places on the axis, all have as many points.
        xlabel: of the axis.
        ylabel: of the axis.
        besides: pairs of place and level that were published where `lines` have no point.
    """
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    axes = figure.subplots()
    numeric = all(point.x is not None for line in lines for point in line.points)

    def places_of(row: int) -> list[float]:
        """Where the points of one line stand; where there is no axis a little apart, or they would hide each other."""
        if numeric:
            return [point.x for point in lines[row].points if point.x is not None]
        return [number + 0.16 * (row - (len(lines) - 1) / 2) for number in range(len(lines[row].points))]

    shown, told = list[float](), list(besides)
    for row, (line, colour) in enumerate(zip(lines, _PALETTE, strict=False)):
        places = places_of(row)
        values = np.array([point.value for point in line.points])
        errors = np.array([[p.value - p.low for p in line.points], [p.high - p.value for p in line.points]])
        axes.errorbar(
            places,
            values,
            np.clip(errors, 0, None),
            color=colour,
            marker="o",
            capsize=3,
            linestyle="-" if numeric else "none",
            label=line.label,
        )
        dots = [(x, value) for x, point in zip(places, line.points, strict=True) for value in point.trainings]
        if dots:
            xs, ys = zip(*dots, strict=True)
            axes.scatter(xs, ys, s=9, color=colour, alpha=0.55, zorder=3)
        shown += [*values, *(value for _, value in dots)]
        told += [(x, p.published) for x, p in zip(places, line.points, strict=True) if p.published is not None]
    if told:
        x, y = zip(*sorted(told), strict=True)
        style = ":" if numeric else "none"
        axes.plot(
            x, y, color=PUBLISHED_COLOUR, marker="o", markerfacecolor="none", linestyle=style, label="as published"
        )
        shown += y
    # Intervals of few trainings may reach further than any value can; they are cut off at the edge.
    margin = 0.08 * (max(shown) - min(shown) or 1.0)
    axes.set_ylim(min(shown) - margin, max(shown) + margin)
    if numeric:
        places = sorted({x for row in range(len(lines)) for x in places_of(row)} | {x for x, _ in besides})
        if min(places) > 0 and max(places) / min(places) >= 8:
            axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(places))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(ScalarFormatter())
    else:
        first = lines[0].points
        axes.set_xticks(range(len(first)), [point.label for point in first], rotation=25, ha="right")
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


@dataclass(frozen=True)
class AttentionPanel:
    """Attention of one lifetime at one step, over the steps of the window.

    Attributes:
        title: for people.
        weights: of each step, oldest first.
        rewarded: places of steps that tell of a reward.
        episode_starts: places of episodes' first steps.
    """

    title: str
    weights: Sequence[float]
    rewarded: Sequence[int]
    episode_starts: Sequence[int]


@matplotlib.rc_context(RC)
def attention_figure(panels: Sequence[AttentionPanel]) -> Figure:
    """Weights over the window, a panel for each step; episodes' first steps and rewards are marked."""
    figure = Figure(figsize=(9, 2.2 * len(panels) + 0.4), layout="constrained")
    for axes, panel in zip(figure.subplots(len(panels), 1, squeeze=False)[:, 0], panels, strict=True):
        age = np.arange(len(panel.weights)) - len(panel.weights) + 1
        axes.fill_between(age, panel.weights, step="mid", color=_PALETTE[0], alpha=0.8, linewidth=0)
        for number, place in enumerate(panel.episode_starts):
            label = "an episode starts" if number == 0 else None
            axes.axvline(age[place], color=FAINT, linewidth=1, linestyle=(0, (2, 2)), label=label)
        top = max(panel.weights) * 1.08
        places = [age[place] for place in panel.rewarded]
        axes.plot(places, [top] * len(places), "v", color=_PALETTE[1], markersize=5, label="a reward")
        axes.set(title=panel.title, xlim=(age[0], age[-1]), ylim=(0, top * 1.05), ylabel="weight")
    axes.set_xlabel("environment steps before the action")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure
