"""The shape of a task, as the histories store it and as models are built from it.

An observation is one row of D numbers, whatever the space: the parts of a dictionary lie side by side, an image is
flattened, integers stand for themselves. What each stretch of the row means is said once, here.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

# Name of the only part of an observation that is no dictionary.
SOLE = "observation"
BOX_DTYPES = ("uint8", "float32")

# Beyond it float32 leaves whole numbers out.
FLOAT32_WHOLE = 1 << 24


@dataclass(frozen=True)
class Discrete:
    """One or more whole numbers, each from 0.

    Attributes:
        sizes: how many values each has; a 9x9 grid's position has ``(9, 9)``.
    """

    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "sizes", tuple(int(size) for size in self.sizes))
        if not self.sizes or min(self.sizes) < 1:
            raise ValueError(f"a discrete space must have positive sizes, got {self.sizes}")

    @property
    def width(self) -> int:
        """Numbers in a row."""
        return len(self.sizes)

    @property
    def stored_dtype(self) -> np.dtype:
        """The smallest type that holds every value and that torch computes with."""
        largest = max(self.sizes) - 1
        return np.dtype(np.uint8 if largest < 1 << 8 else np.int16 if largest < 1 << 15 else np.int32)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for ``metadata.json``."""
        return {"kind": "discrete", "sizes": list(self.sizes)}


@dataclass(frozen=True)
class Box:
    """An array of numbers between two bounds: a vector, or an image.

    Attributes:
        shape: of the array; an image is (height, width, channels).
        low: no number lies below.
        high: no number lies above; infinite where there is no bound.
        dtype: `uint8` or `float32`.
    """

    shape: tuple[int, ...]
    low: float
    high: float
    dtype: str = "float32"

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(size) for size in self.shape))
        if not self.shape or min(self.shape) < 1:
            raise ValueError(f"a box must have a positive shape, got {self.shape}")
        if self.dtype not in BOX_DTYPES:
            raise ValueError(f"a box's dtype must be one of {', '.join(BOX_DTYPES)}, got {self.dtype!r}")
        if not self.low < self.high:
            raise ValueError(f"a box's low must be below its high, got {self.low} and {self.high}")

    @property
    def width(self) -> int:
        """Numbers in a row."""
        return math.prod(self.shape)

    @property
    def stored_dtype(self) -> np.dtype:
        """The type on disk."""
        return np.dtype(self.dtype)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for ``metadata.json``; JSON knows no infinity, so a missing bound is null."""
        low, high = (bound if math.isfinite(bound) else None for bound in (self.low, self.high))
        return {"kind": "box", "shape": list(self.shape), "low": low, "high": high, "dtype": self.dtype}


Space = Discrete | Box


def space_from_dict(values: Mapping[str, Any]) -> Space:
    """The inverse of `Discrete.to_dict` and `Box.to_dict`.

    Raises:
        ValueError: neither of them.
    """
    if values["kind"] == "discrete":
        return Discrete(tuple(values["sizes"]))
    if values["kind"] == "box":
        low = -math.inf if values["low"] is None else values["low"]
        high = math.inf if values["high"] is None else values["high"]
        return Box(tuple(values["shape"]), low, high, values["dtype"])
    raise ValueError(f"a space is discrete or box, got {values['kind']!r}")


def torch_dtype(dtype: np.dtype) -> torch.dtype:
    """The torch type of the same name."""
    return torch.from_numpy(np.empty(0, dtype)).dtype


@dataclass(frozen=True)
class TaskSpec:
    """What one task family looks like to an agent.

    Attributes:
        observation: parts of an observation by name, in the order in which they lie in its row; a space that is no
            dictionary is the one part called `SOLE`.
        action: one `Discrete` size A, several, or a one-dimensional `Box`.
        episode_steps: longest episode, in environment steps.
    """

    observation: Mapping[str, Space]
    action: Space
    episode_steps: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "observation", dict(self.observation))
        if self.episode_steps < 1:
            raise ValueError(f"episode_steps must be at least 1, got {self.episode_steps}")
        if not self.observation:
            raise ValueError("an observation must have at least one part")
        if not self.is_discrete:
            for name, space in self.observation.items():
                if isinstance(space, Discrete) and max(space.sizes) > FLOAT32_WHOLE:
                    raise ValueError(
                        f"the observation's part '{name}' counts up to {max(space.sizes)}, and beside parts that are "
                        f"float32 only numbers up to {FLOAT32_WHOLE} are kept exactly; split it into smaller parts"
                    )
        if isinstance(self.action, Box) and (
            self.action.dtype != "float32" or not math.isfinite(self.action.low) or not math.isfinite(self.action.high)
        ):
            raise ValueError(f"continuous actions must be float32 between finite bounds, got {self.action}")

    @classmethod
    def of_sizes(cls, observation_sizes: tuple[int, ...], num_actions: int, episode_steps: int) -> "TaskSpec":
        """Whole numbers as observations, one of A actions at a time."""
        if num_actions < 1:
            raise ValueError(f"num_actions must be at least 1, got {num_actions}")
        return cls({SOLE: Discrete(tuple(observation_sizes))}, Discrete((num_actions,)), episode_steps)

    # Observations

    @property
    def observation_width(self) -> int:
        """D, numbers in an observation's row."""
        return sum(space.width for space in self.observation.values())

    @property
    def is_discrete(self) -> bool:
        """Whether observations hold whole numbers alone."""
        return all(isinstance(space, Discrete) for space in self.observation.values())

    @property
    def stored_dtype(self) -> np.dtype:
        """Type of observation rows in records: the smallest that holds every part; float32 where one is."""
        dtype = np.result_type(*(space.stored_dtype for space in self.observation.values()))
        return np.dtype(np.float32) if dtype.kind == "f" else dtype

    @property
    def observation_dtype(self) -> torch.dtype:
        """Type of observation rows as environments return them and models read them."""
        if self.is_discrete:
            return torch.int64
        return torch_dtype(self.stored_dtype)

    @property
    def observation_sizes(self) -> tuple[int, ...]:
        """Sizes of all D whole numbers of an observation.

        Raises:
            ValueError: observations hold anything else.
        """
        if not self.is_discrete:
            raise ValueError(f"observations must be whole numbers here, but they are {self.observation}")
        return tuple(
            size for space in self.observation.values() if isinstance(space, Discrete) for size in space.sizes
        )

    def stretches(self) -> dict[str, slice]:
        """Where each part of an observation lies in its row."""
        stretches, start = {}, 0
        for name, space in self.observation.items():
            stretches[name] = slice(start, start + space.width)
            start += space.width
        return stretches

    # Actions

    @property
    def num_actions(self) -> int:
        """A, where one of A actions is taken at a time.

        Raises:
            ValueError: actions are several numbers, or continuous.
        """
        if not isinstance(self.action, Discrete) or self.action.width != 1:
            raise ValueError(f"one of a number of actions is needed here, but the action space is {self.action}")
        return self.action.sizes[0]

    @property
    def action_shape(self) -> tuple[int, ...]:
        """Shape of one action: () where it is one whole number, else (K,)."""
        return () if isinstance(self.action, Discrete) and self.action.width == 1 else (self.action.width,)

    @property
    def action_dtype(self) -> torch.dtype:
        """Type of actions as environments take them and models give them."""
        return torch.int64 if isinstance(self.action, Discrete) else torch.float32

    # Whole

    def difference(self, other: "TaskSpec") -> str | None:
        """The first thing in which two specs differ, in words; None if they agree."""
        for name in dict.fromkeys([*self.observation, *other.observation]):
            one, two = self.observation.get(name), other.observation.get(name)
            if one != two:
                return f"the observation's part '{name}' is {one or 'absent'} here and {two or 'absent'} there"
        if list(self.observation) != list(other.observation):
            return f"the observation's parts are {list(self.observation)} here and {list(other.observation)} there"
        if self.action != other.action:
            return f"the action space is {self.action} here and {other.action} there"
        if self.episode_steps != other.episode_steps:
            return f"episodes have up to {self.episode_steps} steps here and {other.episode_steps} there"
        return None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for ``metadata.json``."""
        return {
            "observation": {name: space.to_dict() for name, space in self.observation.items()},
            "action": self.action.to_dict(),
            "episode_steps": self.episode_steps,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TaskSpec":
        """The inverse of `to_dict`."""
        observation = {name: space_from_dict(space) for name, space in values["observation"].items()}
        return cls(observation, space_from_dict(values["action"]), values["episode_steps"])
