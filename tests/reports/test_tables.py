"""Rows against rows worked by hand."""

import polars as pl

from distillery.evaluation import metrics as evaluation_metrics
from distillery.reports.tables import (
    DASH,
    FINAL_EPISODES,
    NUM_WORST,
    differing_settings,
    ending,
    headline_rows,
    reported_splits,
    rounded,
    split_heading,
    task_table,
    verdicts,
    wide_curves,
)


def test_rounded_cuts_floats_only() -> None:
    assert rounded({"a": 0.123456, "b": [1.000049, 3], "c": None, "d": "x", "e": True}) == {
        "a": 0.1235,
        "b": [1.0, 3],
        "c": None,
        "d": "x",
        "e": True,
    }


def test_differing_settings_are_flat_and_leave_out_how_it_ran() -> None:
    first = {"name": "a", "runtime": {"device": "cpu"}, "models": {"width": 64, "heads": 4}, "seed": 0}
    second = {
        "name": "b",
        "runtime": {"device": "cuda"},
        "models": {"width": 32, "heads": 4, "norm": "pre"},
        "seed": 0,
    }
    assert differing_settings({"a": first, "b": second}) == [
        {"key": "models.norm", "values": ["\N{EN DASH}", "pre"]},
        {"key": "models.width", "values": ["64", "32"]},
    ]


def test_task_table_is_held_out_and_worst_first() -> None:
    tasks = pl.DataFrame(
        {
            "split": ["held_out", "held_out", "train"],
            "task_id": [11, 3, 5],
            "first_return": [0.0, 1.0, 2.0],
            "final_return": [16.0, 8.0, 1.0],
            "oracle_return": [16.0, 16.0, 16.0],
            "oracle_fraction": [1.0, 0.5, 0.06],
            "failed_lifetimes": [0.0, 0.25, 1.0],
        }
    )
    rows = task_table(tasks, num_episodes=30, width=9)
    told = [(row["task"], row["goal"], row["failed"]) for row in rows]
    assert told == [("3", "(3, 0)", "25%"), ("11", "(2, 1)", "0%")]
    assert list(task_table(tasks, num_episodes=30)[0]) == [
        "task",
        "first ep.",
        "last ten",
        "oracle",
        "fraction",
        "failed",
    ]
    assert list(task_table(tasks, num_episodes=4)[0])[2] == "all 4"
    assert list(task_table(tasks, num_episodes=1)[0]) == ["task", "return", "oracle", "fraction", "failed"]


def test_task_table_lists_the_worst_of_many() -> None:
    many = pl.DataFrame(
        {
            "split": ["held_out"] * 40,
            "task_id": range(40),
            "first_return": [0.125] * 40,
            "final_return": [number / 40 for number in range(40)],
            "oracle_return": [1.5] * 40,
            "oracle_fraction": [number / 60 for number in range(40)],
            "failed_lifetimes": [0.0] * 40,
        }
    )
    rows = task_table(many, num_episodes=30)
    assert [row["task"] for row in rows] == [str(number) for number in range(NUM_WORST)]
    assert (rows[1]["first ep."], rows[1]["oracle"]) == ("0.12", "1.50")


def split_values(**changes) -> dict:
    return {
        "final_return": 3.0,
        "final_return_ci95": [2.5, 3.5],
        "return_at": {"1": 1.0, "10": 2.0},
        "nauc": 0.5,
        "oracle_return": 4.0,
        "oracle_fraction": 0.75,
        "oracle_fraction_ci95": [0.7, 0.8],
        "oracle_fraction_iqm": 0.8,
        "episodes_to_reference": 7,
        "failed_lifetimes": 0.125,
        "num_episodes": 20,
    } | changes


def test_headline_has_the_splits_and_episodes_there_are() -> None:
    single = split_values(return_at={"1": 1.0}, episodes_to_reference=None, num_episodes=1)
    metrics = {
        "room": {"ad": {"held_out": split_values(), "train": split_values()}},
        "bandit": {"ad": {"held_out": single, "seen": single, "uniform": single}},
    }
    assert reported_splits(metrics) == ["held_out", "train", "seen", "uniform"]
    both = headline_rows(metrics, split="held_out")
    assert [(row["experiment"], row["ep. 1"], row["ep. 10"]) for row in both] == [
        ("room", "1.00", "2.00"),
        ("bandit", "1.00", DASH),
    ]
    assert "ep. 25" not in both[0]
    (seen,) = headline_rows(metrics, split="seen")
    assert seen["experiment"] == "bandit"
    assert "ep. 10" not in seen
    assert [split_heading(split, "tasks") for split in ("held_out", "train", "seen")] == [
        "Held-out tasks",
        "Training tasks",
        "Tasks of the split 'seen'",
    ]


def test_verdicts_say_nothing_where_there_is_nothing_to_say() -> None:
    metrics = {
        "room": {"ad": {"held_out": split_values()}, "ed": {"held_out": split_values(final_return=1.5)}},
        "poor": {"ad": {"held_out": split_values(episodes_to_reference=None)}},
        "bandit": {
            "ad": {"held_out": split_values(num_episodes=1)},
            "ed": {"held_out": split_values(final_return=0.0)},
        },
    }
    room, poor, bandit = verdicts(metrics, dict.fromkeys(metrics, ""))
    assert (room["ending"], room["reference"], room["over_ed"]) == (
        "the last ten episodes",
        "reached at episode 7",
        "2.0 times",
    )
    assert (poor["reference"], poor["over_ed"]) == ("not reached", "")
    assert (bandit["ending"], bandit["reference"], bandit["over_ed"]) == ("the only episode", "", "")


def test_final_returns_are_of_the_episodes_that_the_metrics_take() -> None:
    assert FINAL_EPISODES == evaluation_metrics.FINAL_EPISODES
    assert [ending(count) for count in (1, 10, 11)] == ["the only episode", "all 10 episodes", "the last ten episodes"]


def test_wide_curves_have_a_column_per_experiment_and_agent() -> None:
    curves = pl.DataFrame(
        {
            "experiment": ["e", "e", "f", "f", "e"],
            "agent": ["ad", "ad", "ad", "ad", "ad"],
            "split": ["held_out"] * 4 + ["train"],
            "episode": [1, 2, 1, 2, 1],
            "return": [1.0, 2.0, 3.0, 4.0, 9.0],
        }
    )
    assert wide_curves(curves, split="held_out").to_dict(as_series=False) == {
        "episode": [1, 2],
        "e ad": [1.0, 2.0],
        "f ad": [3.0, 4.0],
    }
