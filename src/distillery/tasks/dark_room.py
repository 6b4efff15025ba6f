"""Dark Room: find an invisible goal in a grid, from nothing but one's own position.

Source: Laskin et al., In-context Reinforcement Learning with Algorithm Distillation (2022), arXiv 2210.14215,
section 4 and appendix. 9x9 cells, actions left, right, up, down and no-op, start at the centre, 20 steps, reward 1
on every step that ends on the goal. Published code bases differ silently in five choices; each is a setting here
and is stored with the histories.

Not in the paper: tasks in which the actions have lost their names. Each then has a permutation of the five besides
its goal, and what an action does must be found out as well.

Letters: E parallel environments, T environment steps, S cells, A actions, P permutations.
"""

from collections.abc import Sequence
from functools import cached_property
from itertools import permutations

import numpy as np
import torch
from torch import Tensor

from distillery.core.records import EpisodeBatch
from distillery.core.seeding import numpy_generator, torch_generator
from distillery.core.specs import TaskSpec
from distillery.tasks.base import TabularTaskBatch, TaskDistribution, require_task_ids

ACTION_NAMES = ("left", "right", "up", "down", "no-op")
# (dx, dy) of each action; y grows downwards, as rows of a picture do.
MOVES = np.array([(-1, 0), (1, 0), (0, -1), (0, 1), (0, 0)])


def require_choice(family: str, name: str, value: str, allowed: Sequence[str]) -> None:
    """Raises ValueError naming the setting unless its value is allowed."""
    if value not in allowed:
        raise ValueError(f"{family} {name} must be one of {', '.join(allowed)}, got {value!r}")


class Grid:
    """Cells in which one moves by `MOVES`; cell ``x + width * y`` lies at ``(x, y)``.

    Attributes:
        num_cells: S.
        next_state: (S, A) int64, the cell that each action leads to.
    """

    def __init__(self, family: str, *, width: int, height: int, walls: str, longest_side: int) -> None:
        require_choice(family, "walls", walls, ("clip", "wrap"))
        if not (1 <= width <= longest_side and 1 <= height <= longest_side):
            raise ValueError(
                f"{family} width and height must be from 1 to {longest_side} cells, got {width} and {height}"
            )
        self._family, self._walls = family, walls
        self.width, self.height, self.num_cells = width, height, width * height
        self.next_state = self._dynamics()

    def _dynamics(self) -> np.ndarray:
        cells = np.arange(self.num_cells)
        x = cells[:, None] % self.width + MOVES[:, 0]
        y = cells[:, None] // self.width + MOVES[:, 1]
        if self._walls == "wrap":
            x, y = x % self.width, y % self.height
        return np.clip(x, 0, self.width - 1) + self.width * np.clip(y, 0, self.height - 1)

    @cached_property
    def distances(self) -> np.ndarray:
        """(S, S) int64: fewest steps from each cell to each other."""
        dx, dy = (
            np.abs(np.arange(size)[:, None] - np.arange(size)) for size in (self.width, self.height)
        )  # (W, W), (H, H)
        if self._walls == "wrap":
            dx, dy = np.minimum(dx, self.width - dx), np.minimum(dy, self.height - dy)
        cells = np.arange(self.num_cells)
        x, y = cells % self.width, cells // self.width
        return dx[x[:, None], x] + dy[y[:, None], y]

    @property
    def steps_to_touch(self) -> np.ndarray:
        """(S, S) int64: steps until one can end on each cell, from each; at least one, even for the own."""
        return np.maximum(self.distances, 1)

    def start_states(self, start: str | Sequence[int]) -> np.ndarray:
        """Cells in which an episode may start, all equally likely: ``centre``, ``random`` or a cell ``[x, y]``.

        Raises:
            ValueError: none of these.
        """
        if start == "centre":
            return np.array([self.width // 2 + self.width * (self.height // 2)])
        if start == "random":
            return np.arange(self.num_cells)
        if isinstance(start, Sequence) and len(start) == 2:
            x, y = start[0], start[1]
            if isinstance(x, int) and isinstance(y, int) and 0 <= x < self.width and 0 <= y < self.height:
                return np.array([x + self.width * y])
        raise ValueError(
            f"{self._family} start must be 'centre', 'random' or a cell [x, y] inside {self.width}x{self.height}, "
            f"got {start!r}"
        )

    def cells_of(self, observations: Tensor) -> Tensor:
        """(...) int64 cells from (..., 2) positions."""
        positions = observations.long()
        return positions[..., 0] + self.width * positions[..., 1]

    def positions(self) -> np.ndarray:
        """(S, 2) int64: x and y of each cell."""
        cells = np.arange(self.num_cells)
        return np.stack([cells % self.width, cells // self.width], 1)


def nearing_actions(next_state: Tensor, distances: Tensor, cells: Tensor, goals: Tensor) -> Tensor:
    """(...) the first action that leads nearest to the goal, from (S, A), (S, S) and cells and goals, (...)."""
    return distances[next_state[cells], goals[..., None]].argmin(-1)


def draw_starts(starts: Tensor, num_envs: int, generator: torch.Generator) -> Tensor:
    """(E,) cells to start in; a single one needs no draw."""
    if len(starts) == 1:
        return starts.expand(num_envs)
    return starts[torch.randint(len(starts), (num_envs,), generator=generator, device=starts.device)]


def action_permutations(num_permutations: int) -> np.ndarray:
    """(P, A) int64: the move that each action makes; the first permutation leaves every action its name.

    The others are drawn once and for all, without repetition, so that any number of them is varied.
    """
    others = np.array(list(permutations(range(len(MOVES)))))[1:]
    shuffled = numpy_generator(0, "dark_room", "action permutations").permutation(others)
    return np.concatenate([np.arange(len(MOVES))[None], shuffled])[:num_permutations]


class DarkRoom(TaskDistribution):
    """Dark Room with one task per goal cell; task ``x + width * y`` has its goal at ``(x, y)``.

    With P permutations of the actions there are P times as many: task ``cell + width * height * p`` has the p-th. What
    is split is then pairs of goal and permutation: no held-out pair is trained on, but its goal is, with other
    permutations, and so is its permutation, with other goals. ``split=halves`` holds goals apart, with all their
    permutations.

    Args:
        width: cells along x.
        height: cells along y.
        episode_steps: steps per episode.
        reward: ``every_step`` on the goal, or ``once`` per episode on first reaching it.
        start: ``centre``, ``random`` each episode, or a cell ``[x, y]``.
        walls: ``clip`` (a step into a wall stays) or ``wrap`` (the room is a torus).
        termination: ``never`` (episodes always last `episode_steps`) or ``at_goal``.
        num_action_permutations: P, from 1 (actions do what they are called) to 120; held out are pairs, see above.
        split: ``stratified`` (held-out goals lie between the others) or ``halves`` (they lie in the right half of the
            room, all others in the left one, to which a middle column belongs).
        num_train: tasks to train on; None for all that are left.
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
        num_action_permutations: int = 1,
        split: str = "stratified",
        num_train: int | None = None,
        num_validation: int = 8,
        num_held_out: int = 16,
        split_seed: int = 0,
    ) -> None:
        super().__init__(
            num_train=num_train, num_validation=num_validation, num_held_out=num_held_out, split_seed=split_seed
        )
        require_choice("dark_room", "reward", reward, ("every_step", "once"))
        require_choice("dark_room", "termination", termination, ("never", "at_goal"))
        require_choice("dark_room", "split", split, ("stratified", "halves"))
        if not 1 <= num_action_permutations <= 120:
            raise ValueError(
                "dark_room num_action_permutations must be from 1 to 120, the permutations of five actions, got "
                f"{num_action_permutations}"
            )
        self.grid = Grid("dark_room", width=width, height=height, walls=walls, longest_side=256)
        self.width, self.height = width, height
        self.reward, self.walls, self.termination, self.split = reward, walls, termination, split
        self.start_states = self.grid.start_states(start)
        self.spec = TaskSpec.of_sizes((width, height), len(MOVES), episode_steps)
        self.permutations = action_permutations(num_action_permutations)
        self.num_tasks = self.grid.num_cells * num_action_permutations
        self.next_state = self.grid.next_state

    def distances(self) -> np.ndarray:
        """(S, S) int64: fewest steps from each cell to each other."""
        return self.grid.distances

    def difficulty(self) -> np.ndarray:
        """Mean distance of each goal from the start."""
        return np.tile(self.grid.distances[self.start_states].mean(0), len(self.permutations))

    def held_apart(self) -> np.ndarray:
        """Goals in the right half, where the split says so."""
        x = self.grid.positions()[:, 0]
        right = (2 * x > self.width - 1) & (self.split == "halves")
        return np.tile(right, len(self.permutations))

    def oracle_returns(self) -> np.ndarray:
        """Go straight to the goal and stay; staying on it from the first step on when the episode starts there."""
        first_reward = self.grid.steps_to_touch[self.start_states]  # the step that first ends on the goal
        if self.reward == "once" or self.termination == "at_goal":
            of_goals = (first_reward <= self.spec.episode_steps).mean(0)
        else:
            of_goals = np.maximum(self.spec.episode_steps + 1 - first_reward, 0).mean(0)
        return np.tile(of_goals, len(self.permutations))

    def expert_actions(self, episode: EpisodeBatch, task_ids: np.ndarray) -> Tensor:
        """See `TaskDistribution.expert_actions`: as the oracle, which stays on the goal even where it pays once."""
        device = episode.observations.device
        cells = self.grid.cells_of(episode.observations)  # (E, T)
        tasks = torch.as_tensor(np.asarray(task_ids), device=device)
        goals = (tasks % self.grid.num_cells)[:, None].expand_as(cells)
        next_state, distances = (
            torch.as_tensor(table, device=device) for table in (self.next_state, self.grid.distances)
        )
        moves = nearing_actions(next_state, distances, cells, goals)
        actions_of_moves = torch.as_tensor(self.permutations.argsort(1), device=device)  # (P, A)
        return actions_of_moves[tasks // self.grid.num_cells].gather(1, moves)

    def draw(self, task_id: int, state: int) -> np.ndarray:
        """See `TaskDistribution.draw`."""
        goal = task_id % self.grid.num_cells
        letters = np.full(self.grid.num_cells, ".")
        letters[goal] = "G"
        letters[state] = "@" if state == goal else "A"
        return letters.reshape(self.height, self.width)

    def batch(self, task_ids: np.ndarray, *, seed: int, device: torch.device | str = "cpu") -> "DarkRoomBatch":
        """Environments for the given goals."""
        return DarkRoomBatch(self, np.asarray(task_ids), seed=seed, device=device)


class DarkRoomBatch(TabularTaskBatch):
    """E Dark Rooms stepped as one array program."""

    def __init__(self, room: DarkRoom, task_ids: np.ndarray, *, seed: int, device: torch.device | str) -> None:
        require_task_ids(task_ids, room.num_tasks)
        self.spec = room.spec
        self.task_ids = torch.as_tensor(task_ids, dtype=torch.int64, device=device)
        self.next_state = torch.as_tensor(room.next_state, device=device)
        self._distances = torch.as_tensor(room.distances(), device=device)
        self._next_state_flat = self.next_state.flatten()
        self.observation_of_state = torch.as_tensor(room.grid.positions(), device=device)  # (S, 2)
        self._starts = torch.as_tensor(room.start_states, device=device)
        self._once = room.reward == "once"
        self.can_terminate = room.termination == "at_goal"
        self.shares_dynamics = len(room.permutations) == 1
        self._moves_of_actions = torch.as_tensor(room.permutations, device=device)  # (P, A)
        self._actions_of_moves = self._moves_of_actions.argsort(1)
        self._look_up_tasks()
        self._generator = torch_generator(seed, "dark_room", device=device)
        self.state = self._starts[0].expand(len(task_ids)).clone()
        self._elapsed = torch.zeros_like(self.state)
        self._never = torch.zeros_like(self.state, dtype=torch.bool)
        self._rewarded = self._never

    def _look_up_tasks(self) -> None:
        num_cells = len(self.next_state)
        self._goals, self._permutations = self.task_ids % num_cells, self.task_ids // num_cells

    def assign(self, task_ids: Tensor, where: Tensor) -> None:
        """See `TaskBatch.assign`."""
        super().assign(task_ids, where)
        self._look_up_tasks()

    def reset(self, where: Tensor | None = None) -> Tensor:
        """See `TaskBatch.reset`."""
        if where is None:
            where = torch.ones_like(self._rewarded)
        self.state = torch.where(where, draw_starts(self._starts, len(self.state), self._generator), self.state)
        self._elapsed = self._elapsed * ~where
        self._rewarded = self._rewarded & ~where
        return self.observe(self.state)

    def observe(self, states: Tensor) -> Tensor:
        """See `TaskBatch.observe`."""
        return self.observation_of_state[states]

    def oracle_actions(self) -> Tensor:
        """See `TaskBatch.oracle_actions`: the first move that leads nearest to the goal."""
        moves = nearing_actions(self.next_state, self._distances, self.state, self._goals)
        return moves if self.shares_dynamics else self._actions_of_moves[self._permutations, moves]

    def advance(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `TaskBatch.advance`."""
        moves = actions if self.shares_dynamics else self._moves_of_actions[self._permutations, actions]
        self.state = self._next_state_flat[self.state * self.spec.num_actions + moves]
        self._elapsed = self._elapsed + 1
        at_goal = self.state == self._goals
        rewards = at_goal.float()
        if self._once:
            rewards = rewards * ~self._rewarded
            self._rewarded = self._rewarded | at_goal
        terminated = at_goal if self.can_terminate else self._never
        truncated = self._elapsed >= self.spec.episode_steps
        if self.can_terminate:
            truncated = truncated & ~terminated
        return rewards, terminated, truncated
