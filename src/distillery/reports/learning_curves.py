"""Return per episode: a panel for each experiment, and one that lays the experiments over each other."""

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


@matplotlib.rc_context(RC)
def learning_curves(
    curves: pl.DataFrame, titles: Mapping[str, str], *, published: PublishedCurve | None = None
) -> Figure:
    """Draws all curves.

    Args:
        curves: columns experiment, agent, split, episode, return, low, high.
        titles: of the experiments, in the order of the panels.
        published: reference points, or None where the tasks are not the paper's.
    """
    rows = -(-len(titles) // 2)
    figure = Figure(figsize=(10, 0.7 + 3.5 * rows + 3.6), layout="constrained")
    grid = figure.add_gridspec(rows + 1, 2, height_ratios=[1.0] * rows + [1.05])
    top = 1.1 * float(curves["return"].to_numpy().max())
    agents = curves["agent"].unique(maintain_order=True).to_list()
    for number, (experiment, title) in enumerate(titles.items()):
        alone = len(titles) % 2 and number == len(titles) - 1
        panel = figure.add_subplot(grid[number // 2, :] if alone else grid[number // 2, number % 2])
        frame = curves.filter(pl.col("experiment") == experiment)
        draw_experiment(panel, frame, agents, published)
        panel.set(title=title, ylim=(0, top), ylabel="return of the episode" if number % 2 == 0 else "")
    panel = figure.add_subplot(grid[rows, :])
    draw_overlay(panel, curves, list(titles), published)
    panel.set(ylim=(0, top), ylabel="return of the episode")
    figure.legend(
        handles=_handles(agents, published), loc="outside upper left", ncols=3, columnspacing=2.2, handlelength=3
    )
    return figure


def draw_experiment(panel: Axes, frame: pl.DataFrame, agents: Sequence[str], published: PublishedCurve | None) -> None:
    """Every agent of one experiment on held-out goals with its band, and AD on training goals, dotted."""
    last = int(frame["episode"].to_numpy().max())
    for agent in agents:
        style = agent_style(agent, agents)
        # The oracle's interval would only tell how far away the goals lie.
        _draw(
            panel,
            frame,
            agent,
            "held_out",
            colour=style.colour,
            line=style.line,
            width=style.width,
            band=agent != "oracle",
        )
    _draw(panel, frame, "ad", "train", colour=agent_style("ad").colour, line=":", width=1.4, band=False)
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


def draw_overlay(
    panel: Axes, curves: pl.DataFrame, experiments: Sequence[str], published: PublishedCurve | None
) -> None:
    """AD of every experiment, thick, with its source, thin, on one axis that reaches to the published curve's end."""
    last = int(curves["episode"].to_numpy().max())
    for number, experiment in enumerate(experiments):
        frame, colour = curves.filter(pl.col("experiment") == experiment), experiment_colour(number)
        _draw(panel, frame, "ad", "held_out", colour=colour, line="-", width=2.6, label=f"AD, {experiment}")
        _draw(
            panel,
            frame,
            "source",
            "held_out",
            colour=colour,
            line=agent_style("source").line,
            width=1.3,
            band=False,
            label=f"its source, {experiment}",
        )
    oracle = agent_style("oracle")
    level = float(
        curves.filter((pl.col("agent") == "oracle") & (pl.col("split") == "held_out"))["return"].to_numpy().mean()
    )
    panel.axhline(level, color=oracle.colour, linestyle=oracle.line, linewidth=oracle.width)
    panel.annotate("oracle", (1.05, level), xytext=(0, 3), textcoords="offset points", fontsize=9.5, color=FAINT)
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
    panel.set_title("Side by side on held-out goals")
    panel.set_xlabel("episode of the lifetime, counted from 1 (logarithmic)")
    _episode_axis(panel, max(last, published.episodes[-1]) if published else last)
    panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=3, handlelength=3, columnspacing=2.2)


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
) -> None:
    rows = frame.filter((pl.col("agent") == agent) & (pl.col("split") == split)).sort("episode")
    panel.plot(
        rows["episode"],
        rows["return"],
        color=colour,
        linestyle=line,
        linewidth=width,
        label=label,
        zorder=4 if agent == "ad" else 3,
    )
    if band:
        panel.fill_between(rows["episode"], rows["low"], rows["high"], color=colour, alpha=0.16, linewidth=0)


def _episode_axis(panel: Axes, last: int) -> None:
    panel.set_xscale("log")
    panel.set_xlim(0.97, max(2, last) * 1.06)
    panel.xaxis.set_major_locator(FixedLocator([tick for tick in _TICKS if tick <= last]))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(ScalarFormatter())
    panel.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    panel.tick_params(length=0)


def _handles(agents: Sequence[str], published: PublishedCurve | None) -> list[Line2D]:
    handles = []
    for agent in agents:
        style = agent_style(agent, agents)
        line: dict[str, Any] = {"color": style.colour, "linestyle": style.line, "linewidth": style.width}
        handles.append(Line2D([], [], label=style.label, **line))
        if agent == "ad":
            dotted: dict[str, Any] = {"color": style.colour, "linestyle": ":", "linewidth": 1.4}
            handles.append(Line2D([], [], label="AD, training goals", **dotted))
    if published is not None:
        line = {"color": PUBLISHED_COLOUR, "marker": "D", "linestyle": _LEVEL, "linewidth": 1.2, "markersize": 6}
        end = f"{published.label}; end: {published.returns[-1]} at ep. {published.episodes[-1]}"
        handles.append(Line2D([], [], label=end, **line))
    return handles
