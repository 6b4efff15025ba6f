"""Gymnasium's spaces as ours and ours as Gymnasium's: one row of numbers for whatever an environment shows and takes.

Letters: D numbers of an observation, K numbers of an action.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from distillery.core.specs import FLOAT32_WHOLE, SOLE, Box, Discrete, Space, TaskSpec

# Gymnasium's environments write "no bound" as infinity or as the largest float of some type.
_BEYOND = 1e18

SpaceOf = spaces.Space[Any]


def _leaves(space: SpaceOf, path: tuple[str, ...] = ()) -> dict[str, tuple[tuple[str, ...], SpaceOf]]:
    """The parts of a space that are no dictionary, by name: the keys that lead to each, and its space."""
    if not isinstance(space, spaces.Dict):
        return {"/".join(path) or SOLE: (path, space)}
    found: dict[str, tuple[tuple[str, ...], SpaceOf]] = {}
    for key, part in space.spaces.items():
        found |= _leaves(part, (*path, str(key)))
    return found


def _limit(bound: np.ndarray, worst: float) -> float:
    """One bound for all numbers of a box."""
    return float(bound) if abs(float(bound)) < _BEYOND else math.copysign(math.inf, worst)


def _box(name: str, space: spaces.Box) -> Box:
    low, high = _limit(space.low.min(), -1), _limit(space.high.max(), 1)
    if space.dtype == np.uint8:
        return Box(space.shape or (1,), low, high, "uint8")
    if space.dtype is not None and space.dtype.kind in "iu" and max(abs(low), abs(high)) > FLOAT32_WHOLE:
        raise ValueError(
            f"the observation's part '{name}' holds whole numbers up to {max(abs(low), abs(high)):g}, which float32 "
            "cannot tell apart; name it in drop_observation_parts, or transform it by a wrapper"
        )
    return Box(space.shape or (1,), low, high)


def _whole(space: SpaceOf) -> tuple[Discrete, np.ndarray | None] | None:
    """Whole numbers from 0, and what to take off Gymnasium's; None where a space holds anything else."""
    if isinstance(space, spaces.Discrete):
        sizes, start = np.array([space.n]), np.array([space.start])
    elif isinstance(space, spaces.MultiDiscrete):
        sizes, start = space.nvec.ravel(), space.start.ravel()
    elif isinstance(space, spaces.MultiBinary):
        sizes, start = np.full(math.prod(space.shape), 2), np.zeros(1)
    else:
        return None
    return Discrete(tuple(sizes.tolist())), start.astype(np.int64) if start.any() else None


class ObservationRows:
    """Observations of one Gymnasium space as rows of D numbers.

    Whole numbers count from 0 wherever the space's start; float64 becomes float32 and uint8 stays; numbers of a box
    share its widest bounds.

    Args:
        space: of the environment; dictionaries may be nested, their parts are then called ``outer/inner``.
        drop: parts to leave out.

    Attributes:
        spaces: our space of each part, in the order of the row.

    Raises:
        ValueError: a part has no such row, or there is no part of a name in `drop`.
    """

    def __init__(self, space: SpaceOf, drop: Sequence[str] = ()) -> None:
        leaves = _leaves(space)
        unknown = set(drop) - set(leaves)
        if unknown:
            raise ValueError(
                f"drop_observation_parts names {', '.join(sorted(unknown))}; the observation's parts are "
                f"{', '.join(leaves)}"
            )
        self.spaces: dict[str, Space] = {}
        self._parts: list[tuple[tuple[str, ...], slice, np.ndarray | None]] = []
        width = 0
        for name, (path, part) in leaves.items():
            if name not in drop:
                ours, start = self._part(name, part)
                self.spaces[name] = ours
                self._parts.append((path, slice(width, width + ours.width), start))
                width += ours.width
        if not self.spaces:
            raise ValueError(f"drop_observation_parts leaves nothing to observe: {', '.join(leaves)} are all dropped")

    @staticmethod
    def _part(name: str, space: SpaceOf) -> tuple[Space, np.ndarray | None]:
        whole = _whole(space)
        if whole is not None:
            return whole
        if isinstance(space, spaces.Box):
            return _box(name, space), None
        if isinstance(space, spaces.Tuple):
            raise ValueError(
                f"the observation's part '{name}' is a Tuple, whose parts have no names: {space}; wrap the "
                "environment so that it returns a dictionary"
            )
        raise ValueError(
            f"the observation's part '{name}' is {space}, which is no row of numbers; name it in "
            "drop_observation_parts, or transform it by a wrapper"
        )

    def write(self, observation: Any, row: np.ndarray) -> None:
        """Fills a row, (D,), from one observation."""
        for path, stretch, start in self._parts:
            part = observation
            for key in path:
                part = part[key]
            numbers = np.asarray(part).reshape(-1)
            row[stretch] = numbers if start is None else numbers - start


class ActionRows:
    """Our actions as a Gymnasium space wants them.

    Continuous actions keep their bounds if all K have the same; otherwise ours are from -1 to 1, and are stretched to
    the bounds of each.

    Args:
        space: of the environment.

    Attributes:
        space: ours.

    Raises:
        ValueError: the space is no row of numbers, or has no finite bounds.
    """

    def __init__(self, space: SpaceOf) -> None:
        self._theirs = space
        self._start: np.ndarray | None = None
        whole = _whole(space)
        self.space: Space
        if whole is not None:
            self.space, self._start = whole
        elif isinstance(space, spaces.Box):
            self.space = self._continuous(space)
        else:
            raise ValueError(
                f"the action space is {space}; it must be Discrete, MultiDiscrete, MultiBinary or Box: wrap the "
                "environment"
            )

    def _continuous(self, space: spaces.Box) -> Box:
        low, high = space.low.ravel().astype(np.float64), space.high.ravel().astype(np.float64)
        if space.dtype is None or space.dtype.kind != "f" or max(np.abs(low).max(), np.abs(high).max()) >= _BEYOND:
            raise ValueError(
                f"the action space is {space}; continuous actions must be floats between finite bounds: wrap the "
                "environment, for example with gymnasium.wrappers.RescaleAction"
            )
        self._low, self._high = low, high
        self._stretched = len(set(low)) > 1 or len(set(high)) > 1
        bounds = (-1.0, 1.0) if self._stretched else (float(low[0]), float(high[0]))
        return Box((len(low),), *bounds)

    def theirs(self, action: np.ndarray) -> Any:
        """One action for the environment, from () or (K,)."""
        theirs = self._theirs
        if isinstance(self.space, Discrete):
            shifted = action if self._start is None else action + self._start
            if isinstance(theirs, spaces.Discrete):
                return int(shifted.item())
            return np.reshape(shifted, theirs.shape or ()).astype(theirs.dtype)
        numbers = action.astype(np.float64)
        if self._stretched:
            numbers = self._low + (self._high - self._low) * (numbers + 1.0) / 2.0
        return np.clip(numbers, self._low, self._high).reshape(theirs.shape or ()).astype(theirs.dtype)


def to_gymnasium(space: Space) -> SpaceOf:
    """Gymnasium's space of the same values; one whole number is a `MultiDiscrete` of one."""
    if isinstance(space, Discrete):
        return spaces.MultiDiscrete(list(space.sizes))
    return spaces.Box(space.low, space.high, space.shape, np.dtype(space.dtype).type)


def observation_space(spec: TaskSpec) -> SpaceOf:
    """What Gymnasium calls the observations: a dictionary, unless there is but one nameless part."""
    parts = {name: to_gymnasium(space) for name, space in spec.observation.items()}
    return parts[SOLE] if list(parts) == [SOLE] else spaces.Dict(parts)


def action_space(spec: TaskSpec) -> SpaceOf:
    """What Gymnasium calls the actions."""
    if spec.action_shape == ():
        return spaces.Discrete(spec.num_actions)
    return to_gymnasium(spec.action)


def observations_of_rows(spec: TaskSpec, rows: np.ndarray) -> Any:
    """Observations in `observation_space`, batched as the (..., D) rows are; always copies."""
    parts = {}
    for name, stretch in spec.stretches().items():
        space = spec.observation[name]
        if isinstance(space, Box):
            parts[name] = rows[..., stretch].astype(space.dtype).reshape(*rows.shape[:-1], *space.shape)
        else:
            parts[name] = rows[..., stretch].astype(np.int64)
    return parts[SOLE] if list(parts) == [SOLE] else parts
