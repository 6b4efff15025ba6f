"""Dark Room: find an invisible goal in a grid, from nothing but one's own position.

Source: Laskin et al., In-context Reinforcement Learning with Algorithm Distillation (2022), arXiv 2210.14215,
section 4 and appendix. 9x9 cells, actions left, right, up, down and no-op, start at the centre, 20 steps, reward 1
on every step that ends on the goal. Published code bases differ silently in five choices; each is a setting here
and is stored with the histories.

Letters: E parallel environments, S cells, A actions.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from distillery.core.seeding import torch_generator
from distillery.core.specs import TaskSpec
from distillery.tasks.base import TabularTaskBatch, TaskDistribution

ACTION_NAMES = ("left", "right", "up", "down", "no-op")
# (dx, dy) of each action; y grows downwards, as rows of a picture do.
MOVES = np.array([(-1, 0), (1, 0), (0, -1), (0, 1), (0, 0)])


class DarkRoom(TaskDistribution):
    """Dark Room with one task per goal cell; task ``x + width * y`` has its goal at ``(x, y)``.

    Args:
        width: cells along x.
        height: cells along y.
        episode_steps: steps per episode.
        reward: ``every_step`` on the goal, or ``once`` per episode on first reaching it.
        start: ``centre``, ``random`` each episode, or a cell ``[x, y]``.
        walls: ``clip`` (a step into a wall stays) or ``wrap`` (the room is a torus).
        termination: ``never`` (episodes always last `episode_steps`) or ``at_goal``.
        num_validation: tasks that select checkpoints and hyper-parameters.
        num_held_out: tasks that are reported.
        split_seed: seed of the split by task.

    Raises:
        ValueError: a setting is not one of these.
    """

    def __init__(
        self,
        *,
        width: int = 9,
        height: int = 9,
        episode_steps: int = 20,
        reward: str = "every_step",
        start: str | Sequence[int] = "centre",
        walls: str = "clip",
        termination: str = "never",
        num_validation: int = 8,
        num_held_out: int = 16,
        split_seed: int = 0,
    ) -> None:
        super().__init__(num_validation=num_validation, num_held_out=num_held_out, split_seed=split_seed)
        for name, value, allowed in (
            ("reward", reward, ("every_step", "once")),
            ("walls", walls, ("clip", "wrap")),
            ("termination", termination, ("never", "at_goal")),
        ):
            if value not in allowed:
                raise ValueError(f"dark_room {name} must be one of {', '.join(allowed)}, got {value!r}")
        if not (1 <= width <= 256 and 1 <= height <= 256):
            raise ValueError(f"dark_room width and height must be from 1 to 256 cells, got {width} and {height}")
        self.width, self.height = width, height
        self.reward, self.walls, self.termination = reward, walls, termination
        self.start_states = self._start_states(start)
        self.spec = TaskSpec.of_sizes((width, height), len(MOVES), episode_steps)
        self.num_tasks = width * height
        self.next_state = self._dynamics()

    def _start_states(self, start: str | Sequence[int]) -> np.ndarray:
        if start == "centre":
            return np.array([self.width // 2 + self.width * (self.height // 2)])
        if start == "random":
            return np.arange(self.width * self.height)
        if isinstance(start, Sequence) and len(start) == 2:
            x, y = start[0], start[1]
            if isinstance(x, int) and isinstance(y, int) and 0 <= x < self.width and 0 <= y < self.height:
                return np.array([x + self.width * y])
        raise ValueError(
            f"dark_room start must be 'centre', 'random' or a cell [x, y] inside {self.width}x{self.height}, "
            f"got {start!r}"
        )

    def _dynamics(self) -> np.ndarray:
        """(S, A) int64: the cell that each action leads to."""
        cells = np.arange(self.width * self.height)
        x = cells[:, None] % self.width + MOVES[:, 0]
        y = cells[:, None] // self.width + MOVES[:, 1]
        if self.walls == "wrap":
            x, y = x % self.width, y % self.height
        return np.clip(x, 0, self.width - 1) + self.width * np.clip(y, 0, self.height - 1)

    def distances(self) -> np.ndarray:
        """(S, S) int64: fewest steps from each cell to each other."""
        dx, dy = (
            np.abs(np.arange(size)[:, None] - np.arange(size)) for size in (self.width, self.height)
        )  # (W, W), (H, H)
        if self.walls == "wrap":
            dx, dy = np.minimum(dx, self.width - dx), np.minimum(dy, self.height - dy)
        cells = np.arange(self.num_tasks)
        x, y = cells % self.width, cells // self.width
        return dx[x[:, None], x] + dy[y[:, None], y]

    def difficulty(self) -> np.ndarray:
        """Mean distance of each goal from the start."""
        return self.distances()[self.start_states].mean(0)

    def oracle_returns(self) -> np.ndarray:
        """Go straight to the goal and stay; staying on it from the first step on when the episode starts there."""
        first_reward = np.maximum(self.distances()[self.start_states], 1)  # the step that first ends on the goal
        if self.reward == "once" or self.termination == "at_goal":
            return (first_reward <= self.spec.episode_steps).mean(0)
        return np.maximum(self.spec.episode_steps + 1 - first_reward, 0).mean(0)

    def draw(self, task_id: int, state: int) -> np.ndarray:
        """See `TaskDistribution.draw`."""
        letters = np.full(self.num_tasks, ".")
        letters[task_id] = "G"
        letters[state] = "@" if state == task_id else "A"
        return letters.reshape(self.height, self.width)

    def batch(self, task_ids: np.ndarray, *, seed: int, device: torch.device | str = "cpu") -> "DarkRoomBatch":
        """Environments for the given goals."""
        return DarkRoomBatch(self, np.asarray(task_ids), seed=seed, device=device)


class DarkRoomBatch(TabularTaskBatch):
    """E Dark Rooms stepped as one array program."""

    def __init__(self, room: DarkRoom, task_ids: np.ndarray, *, seed: int, device: torch.device | str) -> None:
        if len(task_ids) == 0 or task_ids.min() < 0 or task_ids.max() >= room.num_tasks:
            raise ValueError(f"task ids must be from 0 to {room.num_tasks - 1} and at least one, got {task_ids}")
        if task_ids.dtype.kind not in "iu":
            raise ValueError(f"task ids must be whole numbers, got {task_ids}")
        self.spec = room.spec
        self.task_ids = torch.as_tensor(task_ids, dtype=torch.int64, device=device)
        self.next_state = torch.as_tensor(room.next_state, device=device)
        self._distances = torch.as_tensor(room.distances(), device=device)
        self._next_state_flat = self.next_state.flatten()
        cells = torch.arange(room.num_tasks, device=device)
        self.observation_of_state = torch.stack([cells % room.width, cells // room.width], 1)  # (S, 2)
        self._starts = torch.as_tensor(room.start_states, device=device)
        self._once = room.reward == "once"
        self.can_terminate = room.termination == "at_goal"
        self._generator = torch_generator(seed, "dark_room", device=device)
        self.state = self._starts[0].expand(len(task_ids)).clone()
        self._elapsed = torch.zeros_like(self.state)
        self._never = torch.zeros_like(self.state, dtype=torch.bool)
        self._rewarded = self._never

    def _draw_starts(self) -> Tensor:
        if len(self._starts) == 1:
            return self._starts.expand(len(self.task_ids))
        draws = torch.randint(len(self._starts), self.state.shape, generator=self._generator, device=self.state.device)
        return self._starts[draws]

    def reset(self, where: Tensor | None = None) -> Tensor:
        """See `TaskBatch.reset`."""
        if where is None:
            where = torch.ones_like(self._rewarded)
        self.state = torch.where(where, self._draw_starts(), self.state)
        self._elapsed = self._elapsed * ~where
        self._rewarded = self._rewarded & ~where
        return self.observe(self.state)

    def observe(self, states: Tensor) -> Tensor:
        """See `TaskBatch.observe`."""
        return self.observation_of_state[states]

    def oracle_actions(self) -> Tensor:
        """See `TaskBatch.oracle_actions`: the first action that leads nearest to the goal."""
        ahead = self.next_state[self.state]  # (E, A)
        return self._distances[ahead, self.task_ids[:, None]].argmin(1)

    def advance(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `TaskBatch.advance`."""
        self.state = self._next_state_flat[self.state * self.spec.num_actions + actions]
        self._elapsed = self._elapsed + 1
        at_goal = self.state == self.task_ids
        rewards = at_goal.float()
        if self._once:
            rewards = rewards * ~self._rewarded
            self._rewarded = self._rewarded | at_goal
        terminated = at_goal if self.can_terminate else self._never
        truncated = self._elapsed >= self.spec.episode_steps
        if self.can_terminate:
            truncated = truncated & ~terminated
        return rewards, terminated, truncated
