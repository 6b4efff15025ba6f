"""Dark Key-to-Door: find an invisible key, then an invisible door, from nothing but one's own position.

Source: Laskin et al., In-context Reinforcement Learning with Algorithm Distillation (2022), arXiv 2210.14215,
section 4 and appendix. 9x9 cells, the moves of Dark Room, a random start, 50 steps; reward 1 on first touching the
key, and 1 on touching the door with it. Whether one holds the key is not observed, so that memory is needed.

Three things the paper leaves open are settled here. A step touches the cell it ends in, a no-op included; starting
somewhere touches nothing. One step touches one thing: where key and door share a cell, which they do in one task of
81, the step that picks up the key does not open the door, but the next one that ends there does. Whether the open
door ends the episode is a setting; the paper's axes say it does not, most published code says it does.

States are ``cell + cells * done``, where `done` counts what has been touched: nothing, the key, or the door as well.
The last is there for episodes that go on behind the door: a table of states that cannot tell the door from the open
door unlearns the way as it walks through again. The greedy policy of Q-learning (learning_rate=0.99, 600 episodes)
earns 2.0 with it, and 0.07 without.

Letters: E parallel environments, T environment steps, C cells, S = 3 * C states, A actions.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from distillery.core.records import EpisodeBatch
from distillery.core.seeding import torch_generator
from distillery.core.specs import TaskSpec
from distillery.tasks.base import TabularTaskBatch, TaskDistribution, require_task_ids
from distillery.tasks.dark_room import MOVES, Grid, draw_starts, nearing_actions, require_choice


class DarkKeyToDoor(TaskDistribution):
    """Dark Key-to-Door with one task per pair of cells: task ``key + cells * door``, a cell being ``x + width * y``.

    Args:
        width: cells along x.
        height: cells along y.
        episode_steps: steps per episode.
        start: ``random`` each episode, ``centre``, or a cell ``[x, y]``.
        walls: ``clip`` (a step into a wall stays) or ``wrap`` (the room is a torus).
        termination: ``never`` (episodes always last `episode_steps`) or ``at_door``, once it opens.
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
        episode_steps: int = 50,
        start: str | Sequence[int] = "random",
        walls: str = "clip",
        termination: str = "never",
        num_train: int | None = 2424,
        num_validation: int = 48,
        num_held_out: int = 96,
        split_seed: int = 0,
    ) -> None:
        super().__init__(
            num_train=num_train, num_validation=num_validation, num_held_out=num_held_out, split_seed=split_seed
        )
        require_choice("dark_key_to_door", "termination", termination, ("never", "at_door"))
        # Tasks are pairs of cells: at 32x32 there are a million.
        self.grid = Grid("dark_key_to_door", width=width, height=height, walls=walls, longest_side=32)
        self.width, self.height, self.walls, self.termination = width, height, walls, termination
        self.start_states = self.grid.start_states(start)
        self.spec = TaskSpec.of_sizes((width, height), len(MOVES), episode_steps)
        self.num_tasks = self.grid.num_cells**2

    def keys_and_doors(self, task_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(...) cells of the keys and of the doors of tasks, (...)."""
        return task_ids % self.grid.num_cells, task_ids // self.grid.num_cells

    def difficulty(self) -> np.ndarray:
        """Mean number of steps until the door is open, by the shortest way."""
        keys, doors = self.keys_and_doors(np.arange(self.num_tasks))
        return self.grid.steps_to_touch[self.start_states].mean(0)[keys] + self.grid.steps_to_touch[keys, doors]

    def oracle_returns(self) -> np.ndarray:
        """By the shortest way to the key, then to the door, over all starts: 2 wherever the steps suffice."""
        keys, doors = self.keys_and_doors(np.arange(self.num_tasks))
        horizon, until_key = self.spec.episode_steps, self.grid.steps_to_touch[self.start_states]  # (starts, C)
        # Share of the starts from which each key is touched within so many steps, (horizon + 1, C).
        shares = np.stack([(until_key <= num_steps).mean(0) for num_steps in range(horizon + 1)])
        left_for_key = np.maximum(horizon - self.grid.steps_to_touch[keys, doors], 0)
        return shares[horizon, keys] + shares[left_for_key, keys]

    def expert_actions(self, episode: EpisodeBatch, task_ids: np.ndarray) -> Tensor:
        """See `TaskDistribution.expert_actions`: the key is held from the step after the first reward on."""
        device = episode.observations.device
        cells = self.grid.cells_of(episode.observations)  # (E, T)
        keys, doors = (torch.as_tensor(part, device=device) for part in self.keys_and_doors(np.asarray(task_ids)))
        paid = (episode.rewards > 0).long()
        has_key = paid.cumsum(1) > paid  # by an earlier step
        next_state, distances = (
            torch.as_tensor(table, device=device) for table in (self.grid.next_state, self.grid.distances)
        )
        return nearing_actions(next_state, distances, cells, torch.where(has_key, doors[:, None], keys[:, None]))

    def draw(self, task_id: int, state: int) -> np.ndarray:
        """See `TaskDistribution.draw`; a key that was picked up is gone, and hides no door in its cell."""
        (key, door), cell = self.keys_and_doors(np.asarray(task_id)), state % self.grid.num_cells
        letters = np.full(self.grid.num_cells, ".")
        letters[door] = "D"
        if state < self.grid.num_cells:
            letters[key] = "K"
        letters[cell] = "A" if letters[cell] == "." else "@"
        return letters.reshape(self.height, self.width)

    def batch(self, task_ids: np.ndarray, *, seed: int, device: torch.device | str = "cpu") -> "DarkKeyToDoorBatch":
        """Environments for the given pairs of cells."""
        return DarkKeyToDoorBatch(self, np.asarray(task_ids), seed=seed, device=device)


class DarkKeyToDoorBatch(TabularTaskBatch):
    """E rooms stepped as one array program."""

    def __init__(self, room: DarkKeyToDoor, task_ids: np.ndarray, *, seed: int, device: torch.device | str) -> None:
        require_task_ids(task_ids, room.num_tasks)
        self.spec, self._num_cells = room.spec, room.grid.num_cells
        self.can_terminate = room.termination == "at_door"
        self.task_ids = torch.as_tensor(task_ids, dtype=torch.int64, device=device)
        self._look_up_tasks()
        moves = torch.as_tensor(room.grid.next_state, device=device)
        # (S, A): moves alone change nothing about what has been touched.
        self.next_state = torch.cat([moves + done * self._num_cells for done in range(3)])
        self._next_state_flat = self.next_state.flatten()
        self._distances = torch.as_tensor(room.grid.distances, device=device)
        self.observation_of_state = torch.as_tensor(room.grid.positions(), device=device).repeat(3, 1)  # (S, 2)
        self._starts = torch.as_tensor(room.start_states, device=device)
        self._generator = torch_generator(seed, "dark_key_to_door", device=device)
        self.state = self._starts[0].expand(len(task_ids)).clone()
        self._elapsed = torch.zeros_like(self.state)
        self._never = torch.zeros_like(self.state, dtype=torch.bool)

    def _look_up_tasks(self) -> None:
        self._keys, self._doors = self.task_ids % self._num_cells, self.task_ids // self._num_cells

    def assign(self, task_ids: Tensor, where: Tensor) -> None:
        """See `TaskBatch.assign`."""
        super().assign(task_ids, where)
        self._look_up_tasks()

    def reset(self, where: Tensor | None = None) -> Tensor:
        """See `TaskBatch.reset`: without a key."""
        if where is None:
            where = torch.ones_like(self._never)
        self.state = torch.where(where, draw_starts(self._starts, len(self.state), self._generator), self.state)
        self._elapsed = self._elapsed * ~where
        return self.observe(self.state)

    def observe(self, states: Tensor) -> Tensor:
        """See `TaskBatch.observe`: the cell alone."""
        return self.observation_of_state[states]

    def oracle_actions(self) -> Tensor:
        """See `TaskBatch.oracle_actions`: nearer to the key, then to the door, where it stays."""
        goals = torch.where(self.state >= self._num_cells, self._doors, self._keys)
        # The first third of the table is that of the cells.
        return nearing_actions(self.next_state, self._distances, self.state % self._num_cells, goals)

    def advance(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `TaskBatch.advance`."""
        reached = self._next_state_flat[self.state * self.spec.num_actions + actions]
        cell, done = reached % self._num_cells, reached // self._num_cells
        opens = (cell == self._doors) & (done == 1)
        touches = opens | ((cell == self._keys) & (done == 0))
        self.state = reached + self._num_cells * touches
        self._elapsed = self._elapsed + 1
        truncated = self._elapsed >= self.spec.episode_steps
        if self.can_terminate:
            return touches.float(), opens, truncated & ~opens
        return touches.float(), self._never, truncated
