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
# Cells along the longer side of a room: up to the first, text and frames keep their size; past the second, a cell
# has no room for a text.
_ROOMY, _WRITTEN = 11, 20
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
        num_validation: how many goals select the checkpoint; none of these are among `fractions`.
    """

    title: str
    width: int
    height: int
    fractions: Mapping[str, Mapping[int, float]]
    num_validation: int = 0

    @property
    def hatched(self) -> str | None:
        """What the goals without a value are, if there are any."""
        missing = int(np.isnan(self.grid()).sum())
        if not missing:
            return None
        return "validation goal, not reported" if missing == self.num_validation else "goal not reported"

    @property
    def numbered(self) -> bool:
        """Whether cells are large enough for a text."""
        return max(self.width, self.height) <= _WRITTEN

    def grid(self) -> np.ndarray:
        """(height, width) fractions, NaN where a goal is not reported."""
        values = np.full(self.width * self.height, np.nan)
        for by_task in self.fractions.values():
            for task, fraction in by_task.items():
                values[task] = fraction
        return values.reshape(self.height, self.width)


@matplotlib.rc_context(RC | {"axes.grid": False})
def goal_map(maps: Mapping[str, GoalValues], *, ending: str = "the last ten episodes") -> Figure:
    """Draws one room per experiment on one colour scale.

    Args:
        maps: by experiment.
        ending: the episodes whose mean is the final return, in words.
    """
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
    bar.set_label(f"return of {ending} / oracle's")
    bar.outline.set_visible(False)
    figure.legend(handles=_legend(maps), loc="outside upper left", ncols=3, handletextpad=0.7, columnspacing=2.2)
    return figure


def _legend(maps: Mapping[str, GoalValues]) -> list[Line2D | Patch]:
    """What there is in any of the maps."""
    square: dict[str, Any] = {"marker": "s", "linestyle": "none", "markersize": 13}
    outlined: dict[str, Any] = {
        "markerfacecolor": "none",
        "markeredgecolor": HELD_OUT_COLOUR,
        "markeredgewidth": 2.4,
    }
    filled: dict[str, Any] = {"markerfacecolor": _MAP(0.75), "markeredgecolor": "white"}
    handles: list[Line2D | Patch] = [Line2D([], [], **square, **outlined, label="held-out goal")]
    if any(values.fractions.get("train") for values in maps.values()):
        handles.append(Line2D([], [], **square, **filled, label="training goal"))
    labels = {values.hatched for values in maps.values()} - {None}
    if labels:
        # One label for all maps: the wider one, which is the shorter, where they differ.
        handles.append(Patch(**_HATCHED, label=min(labels, key=lambda label: len(str(label)))))
    return handles


def draw_room(panel: Axes, values: GoalValues, norm: Normalize) -> None:
    """One room; y grows downwards."""
    grid = values.grid()
    longest = max(grid.shape)
    scale = min(1.0, _ROOMY / longest)
    for y, x in np.ndindex(grid.shape):
        fraction = grid[y, x]
        corner = (x - 0.5, y - 0.5)
        if np.isnan(fraction):
            panel.add_patch(Rectangle(corner, 1, 1, **_HATCHED, linewidth=0))
            panel.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="white", linewidth=1))
            continue
        panel.add_patch(Rectangle(corner, 1, 1, facecolor=_MAP(norm(fraction)), edgecolor="white", linewidth=1))
        if not values.numbered:
            continue
        text = "1.0" if fraction >= 0.995 else f"{max(fraction, 0.0):.2f}"[1:]
        ink = "white" if norm(fraction) < 0.55 else INK
        panel.text(x, y, text, ha="center", va="center", fontsize=9 * scale, color=ink)
    for task in values.fractions.get("held_out", {}):
        corner = (task % values.width - 0.44, task // values.width - 0.44)
        for colour, line_width in (("white", 4.6 * scale), (HELD_OUT_COLOUR, 2.6 * scale)):
            panel.add_patch(Rectangle(corner, 0.88, 0.88, fill=False, edgecolor=colour, linewidth=line_width))
    every = 1 if longest <= _ROOMY else -(-longest // 10)
    panel.set(
        title=values.title,
        xlim=(-0.5, values.width - 0.5),
        ylim=(values.height - 0.5, -0.5),
        aspect="equal",
        xlabel="x",
        ylabel="y",
        xticks=range(0, values.width, every),
        yticks=range(0, values.height, every),
    )
    panel.spines[:].set_visible(False)
    panel.tick_params(length=0, labelcolor=FAINT)
