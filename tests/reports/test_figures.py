"""Figures show what the data say, at the right place."""

import io

import numpy as np
import polars as pl
import pytest
from matplotlib.figure import Figure
from PIL import Image

from distillery.reports.filmstrip import (
    RoomLifetime,
    draw_episode,
    filmstrip,
    lifetime_gif,
    shown_episodes,
    strip_text,
)
from distillery.reports.goal_map import GoalValues, goal_map
from distillery.reports.learning_curves import PUBLISHED_DARK_ROOM, CurvePanel, learning_curves
from distillery.reports.style import (
    AGENTS,
    agent_style,
    experiment_colour,
    gif_bytes,
    png_bytes,
    sentence_figure,
    webp_bytes,
)
from distillery.reports.training_curves import training_curves


@pytest.fixture
def lifetime() -> RoomLifetime:
    """Two episodes of four steps in a room of 3 x 2 whose goal is at (2, 1); the second ends after three steps."""
    observations = np.zeros((2, 4, 2), dtype=np.uint8)
    observations[0] = [(0, 0), (1, 0), (0, 0), (0, 1)]
    observations[1, :3] = [(0, 0), (1, 1), (2, 1)]
    return RoomLifetime("by hand", 3, 2, 5, observations, np.array([4, 3]), np.array([0.0, 2.0]))


def test_goal_map_puts_a_value_at_its_goal() -> None:
    values = GoalValues("", 4, 3, {"held_out": {6: 0.5}, "train": {0: 0.25, 11: 1.0}})
    grid = values.grid()
    assert grid.shape == (3, 4)
    assert grid[1, 2] == 0.5  # 6 = 2 + 4 x 1
    assert grid[0, 0] == 0.25
    assert grid[2, 3] == 1.0
    assert np.isnan(grid).sum() == 9


def test_goal_map_writes_the_value_into_its_cell() -> None:
    panel = goal_map({"a": GoalValues("room", 4, 3, {"held_out": {6: 0.5}, "train": {0: 0.996}})}).axes[0]
    assert {text.get_position(): text.get_text() for text in panel.texts} == {(2, 1): ".50", (0, 0): "1.0"}
    assert panel.get_ylim() == (2.5, -0.5), "y grows downwards"
    outlined = [patch for patch in panel.patches if not patch.get_fill() and patch.get_width() < 1]
    assert {(round(p.get_x() + 0.44), round(p.get_y() + 0.44)) for p in outlined} == {(2, 1)}


def test_goal_map_says_what_its_hatched_goals_are() -> None:
    fractions = {"held_out": {6: 0.5}, "train": dict.fromkeys(range(6), 1.0)}
    assert GoalValues("", 3, 3, fractions, num_validation=2).hatched == "validation goal, not reported"
    assert GoalValues("", 3, 3, fractions, num_validation=1).hatched == "goal not reported"
    assert GoalValues("", 3, 2, {"train": fractions["train"]}).hatched is None
    legend = goal_map({"a": GoalValues("", 3, 3, {"held_out": {6: 0.5}}, num_validation=1)}).legends[0]
    assert [text.get_text() for text in legend.get_texts()] == ["held-out goal", "goal not reported"]


@pytest.mark.parametrize(("side", "written"), [(17, 289), (25, 0)])
def test_goal_map_writes_into_cells_that_have_room(side: int, written: int) -> None:
    panel = goal_map({"a": GoalValues("", side, side, {"held_out": dict.fromkeys(range(side**2), 0.5)})}).axes[0]
    assert len(panel.texts) == written
    assert len(panel.get_xticks()) <= 10


def test_path_stops_with_the_episode(lifetime: RoomLifetime) -> None:
    assert lifetime.goal == (2, 1)
    assert lifetime.path(1).tolist() == [[0, 0], [1, 0], [0, 0], [0, 1]]
    assert lifetime.path(2).tolist() == [[0, 0], [1, 1], [2, 1]]
    assert lifetime.running_returns(1).tolist() == [0, 0, 0, 0]
    assert lifetime.running_returns(2).tolist() == [0, 0, 1]


def test_running_return_does_not_pay_for_the_start() -> None:
    still = np.full((1, 3, 2), (1, 1), dtype=np.uint8)
    life = RoomLifetime("", 3, 3, 4, still, np.array([3]), np.array([3.0]))
    assert life.running_returns(1).tolist() == [0, 1, 2]


def test_running_return_pays_once_where_the_episode_did() -> None:
    there = np.array([[(0, 0), (1, 1), (1, 1), (1, 1)]], dtype=np.uint8)
    life = RoomLifetime("", 3, 3, 4, there, np.array([4]), np.array([1.0]))
    assert life.running_returns(1).tolist() == [0, 1, 1, 1]


def test_filmstrip_draws_the_path(lifetime: RoomLifetime) -> None:
    figure = filmstrip({"a": lifetime})
    for panel, episode in zip(figure.axes, (1, 2), strict=True):
        segments = np.array(panel.collections[0].get_segments())  # (steps - 1, 2, 2)
        drawn = np.concatenate([segments[:1, 0], segments[:, 1]])
        assert np.round(drawn).astype(int).tolist() == lifetime.path(episode).tolist()
        assert panel.get_title() == f"episode {episode}: return {lifetime.returns[episode - 1]:.0f}"


def test_path_darkens_with_time(lifetime: RoomLifetime) -> None:
    panel = Figure().add_subplot()
    draw_episode(panel, lifetime, 1)
    brightness = panel.collections[0].get_colors()[:, :3].sum(1)
    assert (np.diff(brightness) < 0).all()


@pytest.mark.parametrize(("num_episodes", "expected"), [(1, [1]), (2, [1, 2]), (5, [1, 5]), (100, [1, 5, 100])])
def test_shown_episodes_exist_and_end_with_the_last(num_episodes: int, expected: list[int]) -> None:
    assert shown_episodes((1, 5), num_episodes) == expected


@pytest.mark.parametrize(
    ("num_episodes", "text"),
    [(1, "only episode"), (2, "first and last episode"), (5, "first and last episode"), (6, "first, fifth and last")],
)
def test_strip_says_which_episodes_it_shows(num_episodes: int, text: str) -> None:
    assert strip_text(num_episodes).startswith(text)


def test_gif_has_a_frame_for_each_step_and_one_for_each_end(lifetime: RoomLifetime) -> None:
    content = lifetime_gif({"a": lifetime})
    with Image.open(io.BytesIO(content)) as image:
        # Frames that look alike are merged by the format; none may be lost beyond that.
        assert 1 < image.n_frames <= 5 + 4
        assert image.info["loop"] == 0
    assert content == lifetime_gif({"a": lifetime})


def flat_curves(experiments: list[str], num_episodes: int) -> pl.DataFrame:
    """Agents at levels 0, 1, 2, ... on both splits."""
    levels = [(e, a, s, float(n)) for e in experiments for n, a in enumerate(AGENTS) for s in ("held_out", "train")]
    rows = [(*level[:3], n + 1, level[3], level[3], level[3]) for level in levels for n in range(num_episodes)]
    return pl.DataFrame(
        rows, orient="row", schema=["experiment", "agent", "split", "episode", "return", "low", "high"]
    )


@pytest.mark.parametrize("count", [1, 2, 3])
def test_learning_curves_have_a_panel_each_and_an_overlay(count: int) -> None:
    names = [f"experiment {number}" for number in range(count)]
    panels = {name: CurvePanel(name, published=PUBLISHED_DARK_ROOM) for name in names}
    figure = learning_curves(flat_curves(names, 60), panels)
    assert len(figure.axes) == count + 1
    for panel in figure.axes[:-1]:
        drawn = {line.get_color(): line.get_ydata() for line in panel.lines if line.get_linestyle() != ":"}
        for level, style in enumerate(AGENTS.values()):
            assert set(drawn[style.colour]) == {level}
    overlay = {line.get_color(): line for line in figure.axes[-1].lines if line.get_linewidth() > 2}
    assert set(overlay) == {experiment_colour(number) for number in range(count)}


def test_published_points_inside_the_axis_only() -> None:
    figure = learning_curves(flat_curves(["a"], 60), {"a": CurvePanel("a", published=PUBLISHED_DARK_ROOM)})
    points = [line for line in figure.axes[0].lines if line.get_marker() == "D"]
    assert [line.get_xdata().tolist() for line in points] == [[50]]
    assert figure.axes[1].get_xlim()[1] > 1000
    alone = learning_curves(flat_curves(["a"], 60), {"a": CurvePanel("a")})
    assert not [line for panel in alone.axes for line in panel.lines if line.get_marker() == "D"]


def test_agents_differ_in_colour_and_unknown_ones_have_one() -> None:
    styles = [agent_style(agent, [*AGENTS, "new", "newer"]) for agent in (*AGENTS, "new", "newer")]
    assert len({style.colour for style in styles}) == len(styles)


def test_png_is_small_and_the_same_twice() -> None:
    contents = [png_bytes(learning_curves(flat_curves(["a"], 20), {"a": CurvePanel("a")})) for _ in range(2)]
    assert contents[0] == contents[1]
    assert len(contents[0]) < 200_000


def scaled(curves: pl.DataFrame, factor: float) -> pl.DataFrame:
    return curves.with_columns(pl.col("return", "low", "high") * factor)


def test_families_have_axes_of_their_own_and_share_parts_of_the_oracle() -> None:
    curves = pl.concat([flat_curves(["a", "b"], 60), scaled(flat_curves(["c"], 20), 10.0)])
    panels = {
        "a": CurvePanel("a", "room", 4.0, PUBLISHED_DARK_ROOM),
        "b": CurvePanel("b", "room", 4.0, PUBLISHED_DARK_ROOM),
        "c": CurvePanel("c", "maze", 40.0),
    }
    figure = learning_curves(curves, panels, noun="tasks")
    assert [panel.get_ylim()[1] for panel in figure.axes] == pytest.approx([4.4, 4.4, 44.0, 1.1])
    assert figure.axes[-1].get_ylabel() == "return / oracle's"
    thick = [line for line in figure.axes[-1].lines if line.get_linewidth() > 2]
    assert [set(line.get_ydata()) for line in thick] == [{0.0}] * 3, "AD's level is 0"
    thin = [line for line in figure.axes[-1].lines if line.get_linewidth() == 1.3 and len(line.get_xdata()) > 2]
    assert [line.get_ydata()[0] for line in thin] == [0.5] * 3, "the source's is 2 of 4, and 20 of 40"
    diamonds = [[line for line in panel.lines if line.get_marker() == "D"] for panel in figure.axes]
    assert [len(lines) for lines in diamonds] == [1, 1, 0, 0], "the paper's curve is no part of an oracle's return"
    assert "AD, training tasks" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_lifetimes_of_one_episode_are_dots_at_their_returns() -> None:
    curves = flat_curves(["bandit"], 1)
    seen = curves.with_columns(pl.lit("seen").alias("split"), pl.col("return") + 0.5)
    curves = pl.concat([curves.filter(split="held_out"), seen.filter(pl.col("agent") != "oracle").unique()])
    figure = learning_curves(curves, {"bandit": CurvePanel("bandit", "b", 4.0)})
    first, overlay = figure.axes
    assert first.get_xscale() == "linear"
    assert [label.get_text() for label in first.get_xticklabels()] == [style.short for style in AGENTS.values()]
    held_out = {
        round(line.get_xdata()[0] + 0.1): line.get_ydata()[0] for line in first.lines if line.get_marker() == "o"
    }
    assert held_out == {0: 0.0, 1: 1.0, 2: 2.0, 3: 3.0, 4: 4.0}
    assert [text.get_text() for text in first.get_legend().get_texts()] == ["held-out", "seen"]
    dots = [line for line in overlay.lines if line.get_marker() == "o"]
    assert [(line.get_xdata().tolist(), line.get_ydata().tolist()) for line in dots] == [([1], [0.0]), ([1], [2.0])]
    assert len(png_bytes(figure)) > 5000


@pytest.mark.parametrize(("num_episodes", "ticks"), [(3, [1, 2, 3]), (12, [1, 2, 5, 10])])
def test_every_lifetime_has_ticks(num_episodes: int, ticks: list[int]) -> None:
    panel = learning_curves(flat_curves(["a"], num_episodes), {"a": CurvePanel("a")}).axes[0]
    assert panel.get_xticks().tolist() == ticks


def test_returns_below_zero_and_none_but_zero_have_an_axis() -> None:
    below = learning_curves(scaled(flat_curves(["a"], 12), -1.0), {"a": CurvePanel("a")})
    assert below.axes[0].get_ylim()[0] == pytest.approx(-4.4)
    nothing = learning_curves(scaled(flat_curves(["a"], 12), 0.0), {"a": CurvePanel("a")})
    assert nothing.axes[0].get_ylim() == (0.0, 1.0)


def test_training_of_several_families_is_shown_by_scores() -> None:
    curves = {"loss": [[1, -0.5], [2, -1.0]], "validation_final_return": [[2, 60.0]], "validation_score": [[2, 0.6]]}
    trainings = {"a": {"ad": {"curves": curves, "selected_update": 2}}}
    returns, scores = (training_curves(trainings, one_family=one).axes[1] for one in (True, False))
    assert {line.get_ydata()[0] for line in returns.lines} == {60.0}
    assert {line.get_ydata()[0] for line in scores.lines} == {0.6}
    assert training_curves(trainings).axes[0].get_ylim()[0] < -1.0, "losses of continuous actions may be negative"


def test_a_sentence_stands_in_for_a_picture() -> None:
    figure = sentence_figure("There is no room to draw.")
    assert png_bytes(figure).startswith(b"\x89PNG")
    with Image.open(io.BytesIO(png_bytes(figure))) as png, Image.open(io.BytesIO(webp_bytes(figure))) as webp:
        assert (png.format, webp.format) == ("PNG", "WEBP")
        assert png.convert("RGB").tobytes() == webp.convert("RGB").tobytes()  # nothing is lost
    with Image.open(io.BytesIO(gif_bytes(figure))) as image:
        assert image.format == "GIF"
        assert image.n_frames == 1
