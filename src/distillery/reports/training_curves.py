"""Loss and in-context return on validation tasks, per update."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from distillery.reports.style import INK, RC, agent_style

_LINES: tuple[Any, ...] = (
    "-",
    (0, (5, 1.5)),
    (0, (1.2, 1.2)),
    (0, (4, 1.2, 1, 1.2)),
    (0, (8, 2, 1, 2, 1, 2)),
    (0, (2, 4)),
)
_LOSS = ("loss", "loss on the next action", "nats")
_RETURN = ("validation_final_return", "return at the end of validation lifetimes", "return")
_SCORE = ("validation_score", "score of validation lifetimes", "mean return / oracle's")


@matplotlib.rc_context(RC)
def training_curves(trainings: Mapping[str, Mapping[str, Mapping[str, Any]]], *, one_family: bool = True) -> Figure:
    """Draws both panels; a dot marks the update whose weights became the checkpoint.

    Args:
        trainings: by experiment and agent, each with `curves` (name to (update, value) pairs) and `selected_update`.
        one_family: whether returns of all experiments mean the same; otherwise scores are drawn, parts of the oracle's
            return.
    """
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    agents = list(dict.fromkeys(agent for by_agent in trainings.values() for agent in by_agent))
    panels = (_LOSS, _RETURN if one_family else _SCORE)
    for (name, title, unit), panel in zip(panels, figure.subplots(1, 2), strict=True):
        for number, by_agent in enumerate(trainings.values()):
            for agent, training in by_agent.items():
                _draw(panel, training, name, agent_style(agent, agents).colour, _LINES[number % len(_LINES)])
        # The loss of continuous actions, and returns of some families, may lie below zero.
        below = any(np.min(line.get_ydata()) < 0 for line in panel.lines)
        panel.set(title=title, xlabel="update", ylabel=unit, ylim=(None if below else 0, None), xlim=(0, None))
        panel.tick_params(length=0)
    handles = [
        Line2D([], [], color=agent_style(agent, agents).colour, linewidth=2, label=agent_style(agent, agents).label)
        for agent in agents
    ] + [
        Line2D([], [], color=INK, linestyle=_LINES[number % len(_LINES)], linewidth=1.8, label=experiment)
        for number, experiment in enumerate(trainings)
    ]
    dot: dict[str, Any] = {"color": INK, "marker": "o", "linestyle": "none", "markersize": 6}
    handles.append(Line2D([], [], label="checkpoint selected here", **dot))
    figure.legend(handles=handles, loc="outside upper left", ncols=3, handlelength=3, columnspacing=2.2)
    return figure


def _draw(panel: Axes, training: Mapping[str, Any], name: str, colour: str, line: Any) -> None:
    points: Sequence[Sequence[float]] = training["curves"].get(name, [])
    if not points:
        return
    updates, values = zip(*points, strict=True)
    marker = "." if len(points) < 25 else None
    panel.plot(updates, values, color=colour, linestyle=line, linewidth=1.8, marker=marker, markersize=5)
    if name.startswith("validation") and training["selected_update"] in updates:
        chosen = updates.index(training["selected_update"])
        panel.plot(updates[chosen], values[chosen], "o", color=colour, markersize=8, markeredgecolor="white", zorder=5)
