"""What may be searched, as plain data: dotted configuration paths to ranges.

``{"models.context_length": {"type": "categorical", "choices": [100, 200]},
"training.learner.muon_learning_rate": {"type": "float", "low": 0.005, "high": 0.05, "log": true}}``
"""

import math
from collections.abc import Mapping
from typing import Any

from optuna import Trial
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

Space = Mapping[str, Mapping[str, Any]]

_RANGES = {"float": FloatDistribution, "int": IntDistribution}
_RANGE_SETTINGS = {"type", "low", "high", "log", "step"}


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """Optuna's view of a space.

    Raises:
        ValueError: the space is empty or one of its entries makes no sense.
    """
    if not space:
        raise ValueError("the search space is empty; give at least one path with a range or choices")
    return {path: _distribution(path, dict(entry)) for path, entry in space.items()}


def suggest(trial: Trial, path: str, distribution: BaseDistribution) -> Any:
    """Asks for one value."""
    if isinstance(distribution, CategoricalDistribution):
        return trial.suggest_categorical(path, distribution.choices)
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    ask: Any = trial.suggest_int if isinstance(distribution, IntDistribution) else trial.suggest_float
    return ask(path, distribution.low, distribution.high, log=distribution.log, step=distribution.step)


def contains(distribution: BaseDistribution, value: Any) -> bool:
    """Whether a value could have been suggested."""
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return bool(distribution._contains(distribution.to_internal_repr(value)))


def _distribution(path: str, entry: dict[str, Any]) -> BaseDistribution:
    kind = entry.get("type")
    if kind == "categorical":
        return _categorical(path, entry)
    if kind not in _RANGES:
        raise ValueError(f"{path} has the unknown type {kind!r}; use categorical, float or int")
    _require_keys(path, entry, _RANGE_SETTINGS, {"low", "high"})
    low, high, log, step = entry["low"], entry["high"], bool(entry.get("log", False)), entry.get("step")
    for name, value in (("low", low), ("high", high), ("step", step)):
        given = value is not None or name != "step"
        numbers = int if kind == "int" else int | float
        if given and (not isinstance(value, numbers) or isinstance(value, bool) or not math.isfinite(value)):
            raise ValueError(f"{path} needs a finite {name} of type {kind}, got {value!r}")
    if low > high:
        raise ValueError(f"{path} has low={low} above high={high}; exchange them")
    if log and low <= 0:
        raise ValueError(f"{path} is searched on a logarithmic scale, so low must be above 0, got {low}")
    if step is not None and (log or step <= 0):
        raise ValueError(f"{path} has step={step}; a step must be above 0 and excludes log")
    if kind == "int":
        return IntDistribution(low, high, log=log, step=1 if step is None else step)
    return FloatDistribution(float(low), float(high), log=log, step=step)


def _categorical(path: str, entry: dict[str, Any]) -> CategoricalDistribution:
    _require_keys(path, entry, {"type", "choices"}, {"choices"})
    choices = entry["choices"]
    if not isinstance(choices, list) or not choices:
        raise ValueError(f"{path} needs a list of choices, got {choices!r}")
    for number, choice in enumerate(choices):
        if not isinstance(choice, bool | int | float | str | None):
            raise ValueError(f"{path} has the choice {choice!r}; choices are numbers, strings, true, false or null")
        if choice in choices[:number]:
            raise ValueError(f"{path} has the choice {choice!r} twice")
    return CategoricalDistribution(choices)


def _require_keys(path: str, entry: dict[str, Any], allowed: set[str], needed: set[str]) -> None:
    unknown, missing = sorted(entry.keys() - allowed), sorted(needed - entry.keys())
    if unknown:
        raise ValueError(f"{path} of type {entry['type']} has unknown settings {unknown}; use {sorted(allowed)}")
    if missing:
        raise ValueError(f"{path} of type {entry['type']} lacks {', '.join(missing)}")
