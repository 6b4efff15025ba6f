"""Final return per goal as a map of the room: where an agent finds what it never trained on."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from distillery.reports.style import FAINT, INK, RC

_HATCHED: dict[str, Any] = {"facecolor": "#eceef1", "edgecolor": "#b4bac3", "hatch": "///"}
_MAP = matplotlib.colormaps["viridis"]
HELD_OUT_COLOUR = "#d81b60"


@dataclass(frozen=True)
class GoalValues:
    """One agent's goals.

    Attributes:
        title: of the panel.
        width: cells along x.
        height: cells along y.
        fractions: split to task id to final return divided by the oracle's; the goal of task t is at
            (t % width, t // width).
    """

    title: str
    width: int
    height: int
    fractions: Mapping[str, Mapping[int, float]]

    def grid(self) -> np.ndarray:
        """(height, width) fractions, NaN where a goal is not reported."""
        values = np.full(self.width * self.height, np.nan)
        for by_task in self.fractions.values():
            for task, fraction in by_task.items():
                values[task] = fraction
        return values.reshape(self.height, self.width)


@matplotlib.rc_context(RC | {"axes.grid": False})
def goal_map(maps: Mapping[str, GoalValues]) -> Figure:
    """Draws one room per experiment on one colour scale."""
    columns = min(2, len(maps))
    rows = -(-len(maps) // columns)
    figure = Figure(figsize=(5 * columns if columns > 1 else 6, 0.5 + 4.75 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    lowest = min(float(np.nanmin(values.grid())) for values in maps.values())
    norm = Normalize(min(0.8, np.floor(10 * lowest) / 10), 1.0)
    for panel, values in zip(panels, maps.values(), strict=False):
        draw_room(panel, values, norm)
    for panel in panels[len(maps) :]:
        panel.set_axis_off()
    bar = figure.colorbar(
        ScalarMappable(norm, _MAP),
        ax=list(panels),
        shrink=0.75,
        aspect=28,
        pad=0.02,
        format="%.2f",
        ticks=MaxNLocator(nbins=5, steps=[1, 2, 5, 10]),
    )
    bar.set_label("return of the last ten episodes / oracle's")
    bar.outline.set_visible(False)
    figure.legend(
        handles=[
            Line2D(
                [],
                [],
                marker="s",
                linestyle="none",
                markersize=13,
                markerfacecolor="none",
                markeredgecolor=HELD_OUT_COLOUR,
                markeredgewidth=2.4,
                label="held-out goal",
            ),
            Line2D(
                [],
                [],
                marker="s",
                linestyle="none",
                markersize=13,
                markerfacecolor=_MAP(0.75),
                markeredgecolor="white",
                label="training goal",
            ),
            Patch(**_HATCHED, label="validation goal, not reported"),
        ],
        loc="outside upper left",
        ncols=3,
        handletextpad=0.7,
        columnspacing=2.2,
    )
    return figure


def draw_room(panel: Axes, values: GoalValues, norm: Normalize) -> None:
    """One room; y grows downwards."""
    grid = values.grid()
    for y, x in np.ndindex(grid.shape):
        fraction = grid[y, x]
        corner = (x - 0.5, y - 0.5)
        if np.isnan(fraction):
            panel.add_patch(
                Rectangle(corner, 1, 1, facecolor="#eceef1", edgecolor="#b4bac3", hatch="///", linewidth=0)
            )
            panel.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="white", linewidth=1))
            continue
        panel.add_patch(Rectangle(corner, 1, 1, facecolor=_MAP(norm(fraction)), edgecolor="white", linewidth=1))
        text = "1.0" if fraction >= 0.995 else f"{max(fraction, 0.0):.2f}"[1:]
        ink = "white" if norm(fraction) < 0.55 else INK
        panel.text(x, y, text, ha="center", va="center", fontsize=9, color=ink)
    for task in values.fractions.get("held_out", {}):
        corner = (task % values.width - 0.44, task // values.width - 0.44)
        for colour, line_width in (("white", 4.6), (HELD_OUT_COLOUR, 2.6)):
            panel.add_patch(Rectangle(corner, 0.88, 0.88, fill=False, edgecolor=colour, linewidth=line_width))
    panel.set(
        title=values.title,
        xlim=(-0.5, values.width - 0.5),
        ylim=(values.height - 0.5, -0.5),
        aspect="equal",
        xlabel="x",
        ylabel="y",
        xticks=range(values.width),
        yticks=range(values.height),
    )
    panel.spines[:].set_visible(False)
    panel.tick_params(length=0, labelcolor=FAINT)
