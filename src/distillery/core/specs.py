"""The shape of a task, as the histories store it and as models are built from it."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class TaskSpec:
    """What one task family looks like to an agent.

    Attributes:
        observation_sizes: number of values of each discrete observation dimension; a 9x9 grid has ``(9, 9)``.
        num_actions: number of discrete actions A.
        episode_steps: longest episode, in environment steps.
    """

    observation_sizes: tuple[int, ...]
    num_actions: int
    episode_steps: int

    def __post_init__(self) -> None:
        for name, value in (("num_actions", self.num_actions), ("episode_steps", self.episode_steps)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not self.observation_sizes or min(self.observation_sizes) < 1:
            raise ValueError(f"observation_sizes must hold positive sizes, got {self.observation_sizes}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for ``metadata.json``."""
        return {**asdict(self), "observation_sizes": list(self.observation_sizes)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TaskSpec":
        """The inverse of `to_dict`."""
        return cls(tuple(values["observation_sizes"]), values["num_actions"], values["episode_steps"])
