"""A small family whose observations are images or vectors and whose actions are continuous or several numbers."""

import numpy as np
import torch
from torch import Tensor

from distillery.core.records import Transition
from distillery.core.specs import Box, Discrete, TaskSpec
from distillery.tasks.base import TaskBatch, TaskDistribution

SPECS = {
    "image": TaskSpec({"observation": Box((4, 6, 3), 0, 255, "uint8")}, Box((2,), -1.0, 1.0), 6),
    "vector": TaskSpec({"observation": Box((2,), -1.0, 1.0)}, Discrete((3, 3)), 6),
}


class _Points(TaskBatch):
    can_terminate = True

    def __init__(self, family: "Points", task_ids: np.ndarray) -> None:
        self.spec, self.task_ids = family.spec, torch.as_tensor(task_ids)
        self._goals = family.goals[self.task_ids]
        self.points = torch.zeros(len(task_ids), 2)
        self._steps = torch.zeros(len(task_ids), dtype=torch.int64)

    def _observe(self) -> Tensor:
        if self.spec is SPECS["vector"]:
            return self.points.clone()
        pictures = torch.zeros(len(self.points), 4, 6, 3, dtype=torch.uint8)
        pictures[..., :2] = ((self.points + 1) * 127).to(torch.uint8)[:, None, None]
        return pictures.flatten(1)

    def reset(self, where: Tensor | None = None) -> Tensor:
        where = torch.ones_like(self._steps, dtype=torch.bool) if where is None else where
        self.points = torch.where(where[:, None], torch.zeros(2), self.points)
        self._steps = self._steps * ~where
        return self._observe()

    def step(self, actions: Tensor) -> Transition:
        moves = actions if self.spec is SPECS["image"] else actions.float() - 1
        self.points = (self.points + 0.5 * moves).clamp(-1, 1)
        self._steps = self._steps + 1
        distances = (self.points - self._goals).abs().amax(1)
        return Transition(self._observe(), -distances, distances < 0.3, self._steps >= self.spec.episode_steps)


class Points(TaskDistribution):
    """A point is moved towards one of eight goals; an episode ends there."""

    num_tasks = 8

    def __init__(self, name: str) -> None:
        super().__init__(num_validation=2, num_held_out=2, split_seed=0)
        self.spec = SPECS[name]
        self.goals = torch.tensor([[x, y] for x in (-1.0, 1.0) for y in (-1.0, -0.5, 0.5, 1.0)])

    def batch(self, task_ids: np.ndarray, *, seed: int, device: torch.device | str = "cpu") -> _Points:
        return _Points(self, task_ids)

    def oracle_returns(self) -> np.ndarray:
        return -np.ones(self.num_tasks)

    def difficulty(self) -> np.ndarray:
        return self.goals.abs().sum(1).numpy()
