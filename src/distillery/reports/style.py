"""How every figure looks: one colour per agent, one font, one way to bytes.

Colours are those of Okabe and Ito (2008), told apart by colour-blind readers too; line styles tell the same once more.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from PIL import Image

DPI = 150
INK, FAINT, GRID = "#22272e", "#6b7280", "#e3e6ea"
PUBLISHED_COLOUR = "#9c3d78"
GOAL_COLOUR = "#e69f00"

RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
}


@dataclass(frozen=True)
class AgentStyle:
    """How an agent is named and drawn.

    Attributes:
        label: for people.
        short: the same for a table.
        colour: of its lines and bands.
        line: matplotlib's line style.
        width: of the line, in points.
    """

    label: str
    short: str
    colour: str
    line: Any = "-"
    width: float = 1.8


AGENTS = {
    "ad": AgentStyle("Algorithm Distillation (AD)", "AD", "#0072b2", width=2.6),
    "ed": AgentStyle("Expert Distillation (ED)", "ED", "#d55e00", (0, (6, 1.5))),
    "source": AgentStyle("source, learning from scratch", "source", "#009e73", (0, (4, 1.2, 1, 1.2))),
    "random": AgentStyle("random", "random", "#8a8f98", (0, (1.2, 1.2))),
    "oracle": AgentStyle("oracle", "oracle", "#22272e", (0, (3, 2)), 1.3),
}
# For agents that are added later, in the order they come.
_FURTHER = ("#cc79a7", "#7a5195", "#b58900")
# Two shades of AD's blue, then others, one for each experiment, dark enough and far enough apart.
_SHADES = ("#003f6b", "#2b9fe6", "#7a5195", "#b58900", "#cc79a7", "#5c4033", "#0072b2", "#7cc4ee")


def agent_style(agent: str, agents: Sequence[str] = ()) -> AgentStyle:
    """The style of an agent; `agents` are all agents of the figure, so that unknown ones get a colour each."""
    if agent in AGENTS:
        return AGENTS[agent]
    further = [name for name in agents if name not in AGENTS]
    number = further.index(agent) if agent in further else 0
    return AgentStyle(agent, agent, _FURTHER[number % len(_FURTHER)])


def experiment_colour(number: int) -> str:
    """The shade of the experiment of that number, counted from 0."""
    return _SHADES[number % len(_SHADES)]


@matplotlib.rc_context(RC)
def sentence_figure(sentence: str) -> Figure:
    """A picture of one sentence, in the place of one that there is nothing for."""
    figure = Figure(figsize=(9, 1.2))
    figure.text(0.5, 0.5, sentence, ha="center", va="center", color=FAINT, wrap=True)
    return figure


def gif_bytes(figure: Figure) -> bytes:
    """The figure as a GIF of one frame."""
    return _saved(figure, format="GIF")


def png_bytes(figure: Figure) -> bytes:
    """The figure as a PNG of at most 256 colours; the same figure gives the same bytes."""
    return _saved(figure, format="PNG", optimize=True)


def webp_bytes(figure: Figure) -> bytes:
    """The same picture as `png_bytes` gives, in three quarters of its size; for pages that hold many."""
    return _saved(figure, format="WEBP", lossless=True, quality=100, method=6)


def _saved(figure: Figure, **options: Any) -> bytes:
    """The figure in at most 256 colours, saved by Pillow."""
    drawn, saved = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=DPI, metadata={"Software": None})
    with Image.open(drawn) as image:
        image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(saved, **options)
    return saved.getvalue()
