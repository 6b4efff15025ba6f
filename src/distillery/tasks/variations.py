"""What the tasks of a foreign family differ in: drawn by name, and set as attributes of an environment."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from distillery.core.seeding import numpy_generator

# What environments work out once, when they are made, from attributes that may be varied later; by their class.
DERIVED: dict[str, dict[str, Callable[[Any], float]]] = {
    "CartPoleEnv": {
        "total_mass": lambda env: env.masspole + env.masscart,
        "polemass_length": lambda env: env.masspole * env.length,
    },
}


def draw_variations(
    variations: Mapping[str, Any], num_tasks: int, *, seed: int, distinct: bool
) -> list[dict[str, Any]]:
    """What is varied in each task, by name; what a task gets does not depend on how many follow it.

    Args:
        variations: by name, a list of values or a mapping of `low` and `high`.
        num_tasks: how many to draw.
        seed: of the draws; each name has a stream of its own.
        distinct: whether tasks that have nothing but lists to differ in must differ in these.

    Raises:
        ValueError: neither of both, or too few combinations.
    """
    for name, values in variations.items():
        _check_variation(name, values)
    if distinct and variations and not any(isinstance(values, Mapping) for values in variations.values()):
        return _draw_combinations(variations, num_tasks, seed)
    columns: dict[str, list[Any]] = {}
    for name, values in variations.items():
        generator = numpy_generator(seed, "variations", name)
        if isinstance(values, Mapping):
            columns[name] = generator.uniform(values["low"], values["high"], num_tasks).tolist()
        else:
            columns[name] = [values[index] for index in generator.integers(len(values), size=num_tasks)]
    return [{name: column[task] for name, column in columns.items()} for task in range(num_tasks)]


def _check_variation(name: str, values: Any) -> None:
    if isinstance(values, Mapping):
        low: Any = values.get("low")
        high: Any = values.get("high")
        numbers = isinstance(low, int | float) and isinstance(high, int | float)
        if set(values) == {"low", "high"} and numbers and -math.inf < low < high < math.inf:
            return
    elif isinstance(values, Sequence) and not isinstance(values, str) and len(values) > 0:
        return
    raise ValueError(
        f"gymnasium_family variations.{name} must be a list of values, or low and high with low below high, "
        f"got {values!r}"
    )


def _draw_combinations(variations: Mapping[str, Sequence[Any]], num_tasks: int, seed: int) -> list[dict[str, Any]]:
    combinations = list(itertools.product(*variations.values()))
    if len(combinations) < num_tasks:
        raise ValueError(
            f"gymnasium_family variations have {len(combinations)} combinations, too few for {num_tasks} different "
            "tasks; ask for fewer, or vary more"
        )
    # Not `choice`, whose first draws depend on how many there are.
    chosen = numpy_generator(seed, "variations").permutation(len(combinations))[:num_tasks]
    return [dict(zip(variations, combinations[index], strict=True)) for index in chosen]


def set_attributes(env: Any, values: Mapping[str, Any]) -> None:
    """Sets attributes of an environment, and those that it derives from them.

    Raises:
        ValueError: there is no such attribute.
    """
    for name, value in values.items():
        if not hasattr(env, name):
            raise ValueError(
                f"gymnasium_family variations names '{name}', which is neither an argument nor an attribute of "
                f"{type(env).__name__}"
            )
        setattr(env, name, value)
    derived = [DERIVED.get(cls.__name__, {}) for cls in type(env).__mro__]
    for name, derive in (item for attributes in derived for item in attributes.items()):
        if name not in values:
            setattr(env, name, derive(env))
