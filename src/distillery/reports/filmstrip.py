"""One lifetime to look at: chosen episodes as a strip of rooms, and as an animation.

Letters: N episodes, T environment steps, F frames.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from PIL import Image, ImageDraw, ImageFont

from distillery.reports.style import FAINT, GOAL_COLOUR, GRID, INK, RC

_MAP = matplotlib.colormaps["Blues"]
STRIP_EPISODES = (1, 5)
ANIMATED_EPISODES = (1, 2, 3, 5, 10, 25, 50)


@dataclass(frozen=True)
class RoomLifetime:
    """One lifetime in a room.

    Attributes:
        title: of its row.
        width: cells along x.
        height: cells along y.
        task_id: its goal is at (task_id % width, task_id // width).
        observations: (N, T, 2) x and y, seen before each step.
        num_steps: (N,) real steps of each episode.
        returns: (N,).
    """

    title: str
    width: int
    height: int
    task_id: int
    observations: np.ndarray
    num_steps: np.ndarray
    returns: np.ndarray

    @property
    def goal(self) -> tuple[int, int]:
        """X and y of the goal."""
        return self.task_id % self.width, self.task_id // self.width

    def path(self, episode: int) -> np.ndarray:
        """(steps, 2) cells of an episode, counted from 1, in the order they were seen."""
        return self.observations[episode - 1, : int(self.num_steps[episode - 1])].astype(int)

    def running_returns(self, episode: int) -> np.ndarray:
        """(steps,) return so far when each cell of the path is seen, as far as the path tells."""
        on_goal = (self.path(episode) == self.goal).all(1)
        on_goal[0] = False  # no step has been taken yet
        return np.minimum(on_goal.cumsum(), round(float(self.returns[episode - 1])))


def shown_episodes(chosen: Sequence[int], num_episodes: int) -> list[int]:
    """The chosen episodes that exist, and the last."""
    return [episode for episode in chosen if episode < num_episodes] + [num_episodes]


def strip_text(num_episodes: int) -> str:
    """Which episodes a strip shows of so many, in words."""
    shown = len(shown_episodes(STRIP_EPISODES, num_episodes))
    return ("only episode", "first and last episode", "first, fifth and last episode")[shown - 1]


@matplotlib.rc_context(RC | {"axes.grid": False, "axes.titleweight": "normal"})
def filmstrip(lifetimes: Mapping[str, RoomLifetime]) -> Figure:
    """Draws a row of rooms per experiment: first, fifth and last episode."""
    columns = max(len(shown_episodes(STRIP_EPISODES, len(life.returns))) for life in lifetimes.values())
    figure = Figure(
        figsize=(3.3 * columns, 4.05 * len(lifetimes) + 0.35), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08)
    )
    heights = [4.05] * len(lifetimes) + [0.35]
    *rows, foot = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    foot.legend(handles=_legend(), loc="center", ncols=4, columnspacing=2.5)
    for row, life in zip(rows, lifetimes.values(), strict=True):
        row.suptitle(life.title, x=0.012, ha="left", fontweight="bold", fontsize=12)
        panels = row.subplots(1, columns, squeeze=False)[0]
        episodes = shown_episodes(STRIP_EPISODES, len(life.returns))
        for panel, episode in zip(panels, episodes, strict=False):
            draw_episode(panel, life, episode)
        for panel in panels[len(episodes) :]:
            panel.set_axis_off()
    return figure


def _legend() -> list[Line2D]:
    def point(marker: str, colour: Any, label: str, **settings: Any) -> Line2D:
        return Line2D([], [], marker=marker, color=colour, linestyle="none", markersize=10, label=label, **settings)

    return [
        point("s", GOAL_COLOUR, "goal, unseen by the agent"),
        point("o", _MAP(0.35), "start", markerfacecolor="white", markeredgewidth=2),
        Line2D([], [], color=_MAP(0.7), linewidth=2.6, label="path, darker with time"),
        point("o", _MAP(1.0), "end"),
    ]


def draw_episode(panel: Axes, life: RoomLifetime, episode: int) -> None:
    """One episode: the path from light (its start) to dark (its end), moved a little with time so that none hides."""
    x, y = life.goal
    panel.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=GOAL_COLOUR, alpha=0.9, linewidth=0))
    path = life.path(episode)
    progress = np.linspace(0, 1, len(path))
    drawn = path + (progress[:, None] - 0.5) * 0.5
    segments = np.stack([drawn[:-1], drawn[1:]], 1)
    colours = _MAP(0.35 + 0.65 * progress)
    panel.add_collection(
        LineCollection(list(segments), colors=colours[1:], linewidths=2.6, capstyle="round", label="path")
    )
    panel.scatter(drawn[:, 0], drawn[:, 1], c=colours, s=16, zorder=3, linewidths=0)
    panel.scatter(drawn[0, 0], drawn[0, 1], s=75, facecolor="white", edgecolor=colours[0], linewidths=2, zorder=4)
    panel.scatter(drawn[-1, 0], drawn[-1, 1], s=75, color=colours[-1], edgecolor="white", linewidths=1.2, zorder=5)
    panel.set_title(f"episode {episode}: return {life.returns[episode - 1]:.0f}", loc="center", fontsize=11.5)
    panel.set(xlim=(-0.5, life.width - 0.5), ylim=(life.height - 0.5, -0.5), aspect="equal")
    panel.set_xticks(np.arange(life.width + 1) - 0.5, labels=[])
    panel.set_yticks(np.arange(life.height + 1) - 0.5, labels=[])
    panel.grid(True, color=GRID, linewidth=0.9)
    panel.tick_params(length=0)
    panel.spines[:].set(visible=True, color=FAINT)


# The animation is painted, not plotted: hundreds of frames in a second, and few colours, so that it stays small.
_ROOM, _MARGIN, _HEADER, _FOOTER, _SCALE = 306, 20, 66, 74, 2


def lifetime_gif(lifetimes: Mapping[str, RoomLifetime], *, frame_ms: int = 90, pause_ms: int = 900) -> bytes:
    """The same lifetimes as an endless animation, rooms side by side, all in the same episode at once.

    Args:
        lifetimes: by experiment.
        frame_ms: how long a step is shown.
        pause_ms: how long the end of an episode is shown.
    """
    lives = list(lifetimes.values())
    episodes = shown_episodes(ANIMATED_EPISODES, min(len(life.returns) for life in lives))
    frames, durations = [], []
    for episode in episodes:
        num_frames = max(int(life.num_steps[episode - 1]) for life in lives) + 1
        for frame in range(num_frames):
            frames.append(_paint(lives, episodes, episode, frame))
            durations.append(pause_ms if frame == num_frames - 1 else frame_ms)
    palette = _palette()
    frames = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    buffer = io.BytesIO()
    frames[0].save(
        buffer, format="GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0, optimize=True
    )
    return buffer.getvalue()


def _palette() -> Image.Image:
    """White to ink, white to grid, the path's blues, and the goal's colour as it is and half-way to its neighbours."""
    paper = np.full(3, 255.0)
    shades = [paper + (_rgb(INK) - paper) * step / 9 for step in range(10)]
    blues = [255 * np.array(_MAP(0.35 + 0.65 * step / 15)[:3]) for step in range(16)]
    shades += [_rgb(GRID), _rgb(FAINT), *blues, *((blue + paper) / 2 for blue in blues[::5])]
    shades += [_rgb(GOAL_COLOUR), (_rgb(GOAL_COLOUR) + paper) / 2, (_rgb(GOAL_COLOUR) + blues[-1]) / 2, blues[0] * 0.8]
    image = Image.new("P", (1, 1))
    image.putpalette(np.round(shades).astype(np.uint8).tobytes())
    return image


def _rgb(colour: str) -> np.ndarray:
    return 255 * np.array(to_rgb(colour))


def _paint(lives: Sequence[RoomLifetime], episodes: Sequence[int], episode: int, frame: int) -> Image.Image:
    panel_width = _ROOM + 2 * _MARGIN
    size = (panel_width * len(lives), _HEADER + _ROOM + _FOOTER)
    image = Image.new("RGB", (_SCALE * size[0], _SCALE * size[1]), "white")
    draw = ImageDraw.Draw(image)
    for number, life in enumerate(lives):
        left = number * panel_width + _MARGIN
        _paint_room(draw, life, episode, frame, left)
        _paint_returns(draw, life, episodes, episode, frame, left)
    return image.resize(size, Image.Resampling.BOX)


def _paint_room(draw: ImageDraw.ImageDraw, life: RoomLifetime, episode: int, frame: int, left: int) -> None:
    path, running = life.path(episode), life.running_returns(episode)
    ended = frame >= len(path)
    value = life.returns[episode - 1] if ended else running[frame]
    _write(draw, (left, 8), life.title, _fitting(life.title), bold=True)
    _write(draw, (left, 34), f"episode {episode}", 17)
    _write(draw, (left + _ROOM, 34), f"return {value:.0f}", 17, anchor="ra")
    cell = _ROOM / max(life.width, life.height)

    def box(where: Sequence[float], half: float) -> list[float]:
        middle = (left + (where[0] + 0.5) * cell, _HEADER + (where[1] + 0.5) * cell)
        return [_SCALE * (middle[axis] + sign * half * cell) for sign in (-1, 1) for axis in (0, 1)]

    draw.rectangle(box(life.goal, 0.5), fill=GOAL_COLOUR)
    for line in range(life.width + 1):
        draw.line(
            box((line - 0.5, -0.5), 0)[:2] + box((line - 0.5, life.height - 0.5), 0)[:2], fill=GRID, width=_SCALE
        )
    for line in range(life.height + 1):
        draw.line(box((-0.5, line - 0.5), 0)[:2] + box((life.width - 0.5, line - 0.5), 0)[:2], fill=GRID, width=_SCALE)
    seen = path[: frame + 1]
    for step in range(1, len(seen)):
        colour = to_hex(_MAP(0.35 + 0.65 * step / len(path)))
        draw.line(box(seen[step - 1], 0)[:2] + box(seen[step], 0)[:2], fill=colour, width=5 * _SCALE, joint="curve")
        draw.ellipse(box(seen[step], 0.075), fill=colour)
    draw.ellipse(box(seen[-1], 0.32), fill="white")
    draw.ellipse(box(seen[-1], 0.27), fill=to_hex(_MAP(1.0)))


def _paint_returns(
    draw: ImageDraw.ImageDraw, life: RoomLifetime, episodes: Sequence[int], episode: int, frame: int, left: int
) -> None:
    """Bars of the episodes shown so far; the present one grows."""
    path, running = life.path(episode), life.running_returns(episode)
    base, tallest = _HEADER + _ROOM + _FOOTER - 22, 40
    # Where no episode returned more than 1, the goal pays once.
    most = float(life.observations.shape[1]) if life.returns.max() > 1 else 1.0
    slot = _ROOM / len(episodes)
    for number, shown in enumerate(episodes):
        middle = left + (number + 0.5) * slot
        _write(draw, (middle, base + 4), str(shown), 11, anchor="ma", colour=FAINT)
        if shown > episode:
            continue
        now = shown == episode and frame < len(path)
        value = float(running[frame] if now else life.returns[shown - 1])
        colour = to_hex(_MAP(1.0)) if shown == episode else to_hex(_MAP(0.55))
        corners = (middle - 0.36 * slot, base - tallest * value / most, middle + 0.36 * slot, base)
        draw.rectangle([_SCALE * side for side in corners], fill=colour)
    draw.line([_SCALE * left, _SCALE * base, _SCALE * (left + _ROOM), _SCALE * base], fill=FAINT, width=_SCALE)


def _write(
    draw: ImageDraw.ImageDraw,
    where: tuple[float, float],
    text: str,
    size: int,
    *,
    bold: bool = False,
    anchor: str = "la",
    colour: str = INK,
) -> None:
    draw.text((_SCALE * where[0], _SCALE * where[1]), text, fill=colour, font=_font(size, bold), anchor=anchor)


def _fitting(title: str) -> int:
    """The largest size at which a bold title is no wider than its room."""
    sizes = range(13, 6, -1)
    return next((size for size in sizes if _font(size, True).getlength(title) <= _SCALE * _ROOM), sizes[-1])


def _font(size: int, bold: bool) -> ImageFont.FreeTypeFont:
    # matplotlib ships this font, so that every machine paints the same.
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", name)), size * _SCALE)
