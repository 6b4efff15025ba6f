"""Search spaces are refused by name when they make no sense."""

import optuna
import pytest

from distillery.sweeps.space import contains, distributions, suggest

FLOAT = {"type": "float", "low": 0.001, "high": 0.1, "log": True}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"type": "uniform", "low": 0, "high": 1}, "a.b has the unknown type 'uniform'"),
        ({"low": 0, "high": 1}, "unknown type None"),
        ({**FLOAT, "low": 0.2}, "a.b has low=0.2 above high=0.1"),
        ({**FLOAT, "low": 0.0}, "logarithmic"),
        ({**FLOAT, "low": float("nan")}, "finite low"),
        ({**FLOAT, "low": "small"}, "finite low of type float, got 'small'"),
        ({**FLOAT, "step": 0.01}, "excludes log"),
        ({**FLOAT, "hihg": 1}, r"unknown settings \['hihg'\]"),
        ({"type": "float", "low": 1}, "lacks high"),
        ({"type": "int", "low": 1.5, "high": 3}, "finite low of type int, got 1.5"),
        ({"type": "categorical", "choices": []}, "needs a list of choices"),
        ({"type": "categorical", "choices": [1, 2, 1]}, "choice 1 twice"),
        ({"type": "categorical", "choices": [[1]]}, r"the choice \[1\]"),
    ],
)
def test_a_bad_entry_is_named(entry, message):
    with pytest.raises(ValueError, match=message):
        distributions({"a.b": entry})


def test_an_empty_space_is_refused():
    with pytest.raises(ValueError, match="empty"):
        distributions({})


def test_suggestions_lie_within():
    space = {
        "rate": FLOAT,
        "width": {"type": "int", "low": 16, "high": 64, "step": 16},
        "kind": {"type": "categorical", "choices": ["a", None, True]},
    }
    ranges = distributions(space)
    trial = optuna.create_study().ask()
    for path, distribution in ranges.items():
        assert contains(distribution, suggest(trial, path, distribution))
    assert not contains(ranges["rate"], 0.2)
    assert not contains(ranges["rate"], "0.05")
    assert not contains(ranges["width"], 17)
    assert not contains(ranges["kind"], "b")
