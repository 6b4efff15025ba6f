"""Figures of studies: every point stands where it is told apart from the others."""

import numpy as np
import pytest

from distillery.reports.study_figures import CurveLine, SweepLine, SweepPoint, curves_figure, sweep_figure


def line(label: str, xs: list[float | None], value: float, published: float | None = None) -> SweepLine:
    points = [SweepPoint(f"v{i}", x, value + i, value + i - 0.1, value + i + 0.1, published) for i, x in enumerate(xs)]
    return SweepLine(label, points)


def test_lines_without_an_axis_stand_side_by_side() -> None:
    nowhere: list[float | None] = [None, None, None]
    lines = [line("held-out", nowhere, 1.0, published=0.5), line("seen", nowhere, 1.0)]
    axes = sweep_figure(lines, xlabel="", ylabel="score").axes[0]
    held_out, seen, published = (
        next(container[0] for container in axes.containers if container.get_label() == "held-out"),
        next(container[0] for container in axes.containers if container.get_label() == "seen"),
        next(drawn for drawn in axes.lines if drawn.get_label() == "as published"),
    )
    assert axes.get_xticks().tolist() == [0, 1, 2]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["v0", "v1", "v2"]
    apart = seen.get_xdata() - held_out.get_xdata()
    assert apart == pytest.approx([0.16] * 3)
    assert (seen.get_xdata() + held_out.get_xdata()) / 2 == pytest.approx([0, 1, 2])
    assert published.get_xdata().tolist() == held_out.get_xdata().tolist()  # of that split


def test_lines_over_an_axis_stand_where_it_says() -> None:
    lines = [line("held-out", [1.0, 2.0, 30.0], 1.0), line("train", [1.0, 2.0, 30.0], 2.0)]
    axes = sweep_figure(lines, xlabel="tasks", ylabel="score").axes[0]
    assert axes.get_xscale() == "log"
    assert [container[0].get_xdata().tolist() for container in axes.containers] == [[1.0, 2.0, 30.0]] * 2


def test_no_two_lines_look_alike() -> None:
    agents = ["ad"] * 6 + ["ed", "dpt", "rl2", "rl2", "source", "random", "oracle"]
    curve = np.linspace(0.0, 1.0, 5)
    lines = [CurveLine(f"{number}", agent, curve, curve, curve) for number, agent in enumerate(agents)]
    drawn = [line for line in curves_figure(lines, level=None).axes[0].get_lines() if len(line.get_xdata()) == 5]
    looks = {(line.get_color(), str(line._dash_pattern)) for line in drawn}
    assert len(looks) == len(drawn) == len(agents)
    assert len({line.get_color() for line in drawn[-3:]} - {line.get_color() for line in drawn[:-3]}) == 3
