"""Rows against rows worked by hand."""

import polars as pl

from distillery.reports.tables import differing_settings, rounded, task_table, wide_curves


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
    rows = task_table(tasks, width=9)
    told = [(row["task"], row["goal"], row["failed"]) for row in rows]
    assert told == [("3", "(3, 0)", "25%"), ("11", "(2, 1)", "0%")]


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
