"""Return per episode: a panel for each experiment, and one that lays the experiments over each other.

Returns of different families mean different things: each family has a return axis of its own, and where there are
several, the last panel shows parts of the oracle's return. A lifetime of one episode is a dot, not a curve.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator, ScalarFormatter

from distillery.reports.style import FAINT, PUBLISHED_COLOUR, RC, agent_style, experiment_colour

_LEVEL = (0, (1, 1.5))
_TICKS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)
# AD on other splits than held_out, in the order they come: lines of curves, and marks of dots.
_SPLIT_LINES: tuple[Any, ...] = (":", (0, (1, 3)), (0, (3, 2, 1, 2)))
_SPLIT_MARKS = ("s", "^", "v")
# Axes that reach beyond this have ticks at whole numbers alone.
_WHOLE = 5


@dataclass(frozen=True)
class PublishedCurve:
    """A curve read off a paper's figure.

    Attributes:
        label: what it is.
        episodes: of each point.
        returns: at those episodes.
    """

    label: str
    episodes: tuple[int, ...]
    returns: tuple[float, ...]


# Laskin et al. (2022), arXiv 2210.14215, figure 4, Dark Room: read at 1 k to 20 k environment steps, 20 an episode.
PUBLISHED_DARK_ROOM = PublishedCurve(
    "AD as published (2022)",
    episodes=(50, 100, 200, 300, 400, 600, 800, 1000),
    returns=(2.7, 4.5, 9.6, 12.1, 12.9, 13.6, 13.9, 14.1),
)
# Of the tasks it was measured on.
PUBLISHED_SETTINGS = {
    "width": 9,
    "height": 9,
    "episode_steps": 20,
    "reward": "every_step",
    "start": "centre",
    "walls": "clip",
    "termination": "never",
}


@dataclass(frozen=True)
class CurvePanel:
    """What the figure needs to know of an experiment beside its curves.

    Attributes:
        title: of its panel.
        family: experiments of one family share an axis.
        oracle_return: on held-out tasks; what their returns are divided by where families differ.
        published: reference points, or None where the tasks are not a paper's.
    """

    title: str
    family: str = ""
    oracle_return: float = 1.0
    published: PublishedCurve | None = None


@matplotlib.rc_context(RC)
def learning_curves(curves: pl.DataFrame, panels: Mapping[str, CurvePanel], *, noun: str = "goals") -> Figure:
    """Draws all curves.

    Args:
        curves: columns experiment, agent, split, episode, return, low, high.
        panels: of the experiments, in their order.
        noun: what tasks are called.
    """
    rows = -(-len(panels) // 2)
    figure = Figure(figsize=(10, 0.7 + 3.5 * rows + 3.6), layout="constrained")
    grid = figure.add_gridspec(rows + 1, 2, height_ratios=[1.0] * rows + [1.05])
    agents = curves["agent"].unique(maintain_order=True).to_list()
    splits = [split for split in curves["split"].unique(maintain_order=True) if split != "held_out"]
    frames = {experiment: curves.filter(pl.col("experiment") == experiment) for experiment in panels}
    for number, (experiment, values) in enumerate(panels.items()):
        alone = len(panels) % 2 and number == len(panels) - 1
        panel = figure.add_subplot(grid[number // 2, :] if alone else grid[number // 2, number % 2])
        if num_episodes(frames[experiment]) == 1:
            draw_dots(panel, frames[experiment], agents, splits)
        else:
            draw_experiment(panel, frames[experiment], agents, splits, values.published)
        family = [frames[name] for name, other in panels.items() if other.family == values.family]
        panel.set(title=values.title, ylabel="return of the episode" if number % 2 == 0 else "")
        _value_axis(panel, pl.concat(family))
    draw_overlay(figure.add_subplot(grid[rows, :]), frames, panels, noun=noun)
    figure.legend(
        handles=_handles(frames, agents, splits, panels, noun),
        loc="outside upper left",
        ncols=3,
        columnspacing=2.2,
        handlelength=3,
    )
    return figure


def num_episodes(frame: pl.DataFrame) -> int:
    """Episodes of the longest curve."""
    return int(frame["episode"].to_numpy().max())


def draw_experiment(
    panel: Axes, frame: pl.DataFrame, agents: Sequence[str], splits: Sequence[str], published: PublishedCurve | None
) -> None:
    """Every agent of one experiment on held-out tasks with its band, and AD on other splits, dotted."""
    last = num_episodes(frame)
    for agent in agents:
        style = agent_style(agent, agents)
        # The oracle's interval would only tell how much tasks differ.
        look = {"colour": style.colour, "line": style.line, "width": style.width, "band": agent != "oracle"}
        _draw(panel, frame, agent, "held_out", **look)
    for split, line in zip(splits, _cycle(_SPLIT_LINES, len(splits)), strict=True):
        _draw(panel, frame, "ad", split, colour=agent_style("ad").colour, line=line, width=1.4, band=False)
    if published is not None:
        inside = [point for point in zip(published.episodes, published.returns, strict=True) if point[0] <= last]
        panel.plot([e for e, _ in inside], [r for _, r in inside], "D", color=PUBLISHED_COLOUR, markersize=6, zorder=5)
        panel.axhline(published.returns[-1], color=PUBLISHED_COLOUR, linewidth=1.2, linestyle=_LEVEL)
        panel.annotate(
            f"{published.returns[-1]}",
            (1.01, published.returns[-1]),
            xycoords=("axes fraction", "data"),
            va="center",
            color=PUBLISHED_COLOUR,
            fontsize=9.5,
            annotation_clip=False,
        )
    _episode_axis(panel, last)


def draw_dots(panel: Axes, frame: pl.DataFrame, agents: Sequence[str], splits: Sequence[str]) -> None:
    """Every agent of an experiment whose lifetimes are one episode: a dot for each split, with its interval."""
    own = frame["agent"].unique(maintain_order=True).to_list()
    marks = dict(zip(("held_out", *splits), ("o", *_cycle(_SPLIT_MARKS, len(splits))), strict=True))
    shown = [split for split in marks if split in frame["split"]]
    for place, agent in enumerate(own):
        colour = agent_style(agent, agents).colour
        for number, split in enumerate(shown):
            rows = frame.filter((pl.col("agent") == agent) & (pl.col("split") == split))
            x = [place + 0.2 * (number - (len(shown) - 1) / 2)] * len(rows)
            fill = colour if split == "held_out" else "white"
            # As in curves, the oracle's interval would only tell how much tasks differ.
            if agent != "oracle":
                panel.vlines(x, rows["low"], rows["high"], color=colour, alpha=0.45, linewidth=2)
            panel.plot(x, rows["return"], marks[split], color=colour, markerfacecolor=fill, markersize=6, zorder=4)
    panel.set_xlim(-0.6, len(own) - 0.4)
    panel.set_xticks(range(len(own)), labels=[agent_style(agent, agents).short for agent in own])
    panel.tick_params(length=0)
    if len(shown) > 1:
        mark: dict[str, Any] = {"color": FAINT, "linestyle": "none", "markersize": 6}
        handles = [
            Line2D(
                [], [], marker=marks[s], markerfacecolor=FAINT if s == "held_out" else "white", label=_named(s), **mark
            )
            for s in shown
        ]
        panel.legend(handles=handles, loc="lower center", ncols=len(shown), fontsize=9.5, handletextpad=0.3)


def draw_overlay(
    panel: Axes, frames: Mapping[str, pl.DataFrame], panels: Mapping[str, CurvePanel], *, noun: str
) -> None:
    """AD of every experiment, thick, with its source, thin, on one axis that reaches to a published curve's end.

    Experiments of several families are shown as parts of the oracle's return.
    """
    one_family = len({values.family for values in panels.values()}) == 1
    shown = {
        name: frames[name] if one_family else _as_fraction(frames[name], values.oracle_return)
        for name, values in panels.items()
    }
    for number, (experiment, frame) in enumerate(shown.items()):
        look: dict[str, Any] = {"colour": experiment_colour(number), "mark": "o"}
        _draw(panel, frame, "ad", "held_out", line="-", width=2.6, label=f"AD, {experiment}", **look)
        line = agent_style("source").line
        look |= {"line": line, "width": 1.3, "band": False, "hollow": True}
        _draw(panel, frame, "source", "held_out", label=f"its source, {experiment}", **look)
    together = pl.concat(shown.values())
    oracle = agent_style("oracle")
    is_level = (pl.col("agent") == "oracle") & (pl.col("split") == "held_out")
    level = float(together.filter(is_level)["return"].to_numpy().mean()) if one_family else 1.0
    panel.axhline(level, color=oracle.colour, linestyle=oracle.line, linewidth=oracle.width)
    panel.annotate("oracle", (1.05, level), xytext=(0, 3), textcoords="offset points", fontsize=9.5, color=FAINT)
    published = shared_published(panels)
    if published is not None:
        panel.plot(
            published.episodes,
            published.returns,
            "D-",
            color=PUBLISHED_COLOUR,
            markersize=6,
            linewidth=1.2,
            label=published.label,
        )
    panel.set_title(f"Side by side on held-out {noun}")
    panel.set_xlabel("episode of the lifetime, counted from 1 (logarithmic)")
    panel.set_ylabel("return of the episode" if one_family else "return / oracle's")
    last = num_episodes(together)
    _episode_axis(panel, max(last, published.episodes[-1]) if published else last)
    _value_axis(panel, together)
    panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=3, handlelength=3, columnspacing=2.2)


def shared_published(panels: Mapping[str, CurvePanel]) -> PublishedCurve | None:
    """The published curve that every experiment is held against, if there is one."""
    first, *others = (values.published for values in panels.values())
    return first if all(other == first for other in others) else None


def _as_fraction(frame: pl.DataFrame, oracle_return: float) -> pl.DataFrame:
    return frame.with_columns(pl.col("return", "low", "high") / oracle_return)


def _draw(
    panel: Axes,
    frame: pl.DataFrame,
    agent: str,
    split: str,
    *,
    colour: str,
    line: Any,
    width: float,
    band: bool = True,
    label: str | None = None,
    mark: str | None = None,
    hollow: bool = False,
) -> None:
    """One curve; where it is a single episode, its `mark`, if any, with its interval as a bar."""
    rows = frame.filter((pl.col("agent") == agent) & (pl.col("split") == split)).sort("episode")
    if rows.is_empty():
        return
    single = len(rows) == 1 and mark is not None
    panel.plot(
        rows["episode"],
        rows["return"],
        color=colour,
        linestyle="none" if single else line,
        linewidth=width,
        marker=mark if single else None,
        markersize=8,
        markerfacecolor="white" if hollow else colour,
        clip_on=not single,
        label=label,
        zorder=4 if agent == "ad" else 3,
    )
    if band and single:
        panel.vlines(rows["episode"], rows["low"], rows["high"], color=colour, alpha=0.45, linewidth=2.5)
    elif band:
        panel.fill_between(rows["episode"], rows["low"], rows["high"], color=colour, alpha=0.16, linewidth=0)


def _episode_axis(panel: Axes, last: int) -> None:
    panel.set_xscale("log")
    panel.set_xlim(0.97, max(2, last) * 1.06)
    ticks = range(1, last + 1) if last < 5 else [tick for tick in _TICKS if tick <= last]
    panel.xaxis.set_major_locator(FixedLocator(list(ticks)))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(ScalarFormatter())
    panel.tick_params(length=0)


def _value_axis(panel: Axes, frame: pl.DataFrame) -> None:
    """From 0, or the lowest return below it, to a little above the highest."""
    returns = frame["return"].to_numpy()
    low, high = min(0.0, 1.1 * float(returns.min())), 1.1 * float(returns.max())
    if high <= low:
        high = low + 1.0
    panel.set_ylim(low, high)
    panel.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=high - low > _WHOLE))


def _cycle(choices: Sequence[Any], count: int) -> list[Any]:
    return [choices[number % len(choices)] for number in range(count)]


def _named(split: str) -> str:
    return {"held_out": "held-out", "train": "training"}.get(split, split.replace("_", " "))


def _handles(
    frames: Mapping[str, pl.DataFrame],
    agents: Sequence[str],
    splits: Sequence[str],
    panels: Mapping[str, CurvePanel],
    noun: str,
) -> list[Line2D]:
    lived = [frame for frame in frames.values() if num_episodes(frame) > 1]
    lines = dict(zip(splits, _cycle(_SPLIT_LINES, len(splits)), strict=True))
    drawn = [split for split in splits if any(split in frame["split"] for frame in lived)]
    handles = []
    for agent in agents:
        style = agent_style(agent, agents)
        line: dict[str, Any] = {"color": style.colour, "linestyle": style.line, "linewidth": style.width}
        dot: dict[str, Any] = {"color": style.colour, "linestyle": "none", "marker": "o", "markersize": 6}
        handles.append(Line2D([], [], label=style.label, **(line if lived else dot)))
        for split in drawn if agent == "ad" else ():
            dotted: dict[str, Any] = {"color": style.colour, "linestyle": lines[split], "linewidth": 1.4}
            handles.append(Line2D([], [], label=f"AD, {_named(split)} {noun}", **dotted))
    for published in dict.fromkeys(values.published for values in panels.values()):
        if published is not None:
            line = {"color": PUBLISHED_COLOUR, "marker": "D", "linestyle": _LEVEL, "linewidth": 1.2, "markersize": 6}
            end = f"{published.label}; end: {published.returns[-1]} at ep. {published.episodes[-1]}"
            handles.append(Line2D([], [], label=end, **line))
    return handles
