"""Task distributions and their split.

A distribution owns a finite list of tasks, numbered from 0, and divides them by task into `train`, `validation`
(selects checkpoints and hyper-parameters) and `held_out` (is reported). The division is seeded and stratified by
difficulty, so that each split's oracle is close to the whole's. A family whose tests come from distributions of their
own makes its splits itself, and may add further ones.
"""

import abc

import numpy as np
import torch
from torch import Tensor

from distillery.core.records import EpisodeBatch, Transition
from distillery.core.seeding import numpy_generator
from distillery.core.specs import TaskSpec

# Every family has these; some have more.
SPLITS = ("train", "validation", "held_out")


def require_task_ids(task_ids: np.ndarray, num_tasks: int) -> None:
    """Raises ValueError unless there are task ids and every one is a whole number below `num_tasks`."""
    if len(task_ids) == 0 or task_ids.min() < 0 or task_ids.max() >= num_tasks:
        raise ValueError(f"task ids must be from 0 to {num_tasks - 1} and at least one, got {task_ids}")
    if task_ids.dtype.kind not in "iu":
        raise ValueError(f"task ids must be whole numbers, got {task_ids}")


class TaskBatch(abc.ABC):
    """E environments, each with its own task, advanced by one call. A single environment is a batch of one.

    Attributes:
        task_ids: (E,) int64.
        can_terminate: whether an episode may end before its last step.
    """

    spec: TaskSpec
    can_terminate: bool
    task_ids: Tensor

    @abc.abstractmethod
    def reset(self, where: Tensor | None = None) -> Tensor:
        """Starts a new episode everywhere, or where the (E,) bool mask says; returns (E, D) observations."""

    @abc.abstractmethod
    def step(self, actions: Tensor) -> Transition:
        """Advances every environment by its action, (E[, K]); resets none by itself."""

    def oracle_actions(self) -> Tensor:
        """(E[, K]) a best action now, for an agent that knows the task and the whole state.

        Raises:
            ValueError: the family knows of none.
        """
        raise ValueError(f"{type(self).__name__} knows no best actions; choose a source and agents that need none")

    def assign(self, task_ids: Tensor, where: Tensor) -> None:
        """Gives the environments that the (E,) bool mask says other tasks, (E,) int64; `reset` them next.

        A family that keeps anything else about its tasks extends this.
        """
        self.task_ids = torch.where(where, task_ids, self.task_ids)


class TabularTaskBatch(TaskBatch):
    """Environments whose states are numbered, for tabular sources.

    Attributes:
        state: (E,) int64, the current state's number; tabular sources read it, models never do.
        shares_dynamics: whether the moves in `next_state` are those of every task. Where tasks give actions a meaning
            of their own they are not, and no source may plan with them.
    """

    state: Tensor
    shares_dynamics: bool = True
    next_state: Tensor
    """(S, A) int64: where each action leads; the dynamics all tasks of the family share. What a task itself changes
    on arrival is in `state` after `advance`, and not in this table."""

    @abc.abstractmethod
    def advance(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Advances every environment by its action, (E,) int64; returns rewards, terminated, truncated, each (E,).

        Does not reset by itself, and does not look: tabular sources read `state` instead.
        """

    @abc.abstractmethod
    def observe(self, states: Tensor) -> Tensor:
        """(..., D) observations of states of any shape."""

    def step(self, actions: Tensor) -> Transition:
        """`advance`, then `observe`."""
        rewards, terminated, truncated = self.advance(actions)
        return Transition(self.observe(self.state), rewards, terminated, truncated)


class TaskDistribution(abc.ABC):
    """A finite family of tasks with a split. Subclasses define the tasks; this class divides and draws them.

    Args:
        num_validation: tasks that select checkpoints and hyper-parameters.
        num_held_out: tasks that are reported.
        split_seed: seed of the split by task.
        num_train: tasks to train on; None trains on all the others.
    """

    spec: TaskSpec
    num_tasks: int

    def __init__(
        self, *, num_validation: int, num_held_out: int, split_seed: int, num_train: int | None = None
    ) -> None:
        self.num_validation, self.num_held_out, self.split_seed = num_validation, num_held_out, split_seed
        self.num_train = num_train

    @abc.abstractmethod
    def batch(self, task_ids: np.ndarray, *, seed: int, device: torch.device | str = "cpu") -> TaskBatch:
        """Environments for the given (E,) task ids; `seed` drives whatever is random in them."""

    @abc.abstractmethod
    def oracle_returns(self) -> np.ndarray:
        """(num_tasks,) float64: best expected return of one episode by an agent that knows the task."""

    def expert_actions(self, episode: EpisodeBatch, task_ids: np.ndarray) -> Tensor:
        """(E, T[, K]) a best action at every step of recorded episodes, for an agent that knows the (E,) tasks.

        Raises:
            ValueError: the family cannot tell it from a record.
        """
        raise ValueError(
            f"{type(self).__name__} cannot tell the best actions of a recorded episode, which models trained on "
            "expert targets (dpt) need; choose another agent or another family"
        )

    def difficulty(self) -> np.ndarray:
        """(num_tasks,): what the split is stratified by; the same for all where a family does not say."""
        return np.zeros(self.num_tasks)

    def held_apart(self) -> np.ndarray:
        """(num_tasks,) bool: tasks of a kind that only `held_out` may have; if there are any, it has no others."""
        return np.zeros(self.num_tasks, dtype=bool)

    def draw(self, task_id: int, state: int) -> np.ndarray:
        """(rows, columns) letters, a picture of a state.

        ``A`` is the agent, ``G`` a goal, ``K`` a key, ``D`` a door, ``@`` the agent on one of these, ``.`` the floor.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot be drawn; give it a method `draw`, or do not render")

    def splits(self) -> dict[str, np.ndarray]:
        """Task ids of each split, sorted; none is in two.

        Which tasks are held out, and which validate, does not depend on `num_train`. The three splits together are
        all tasks, unless `num_train` says fewer or a whole kind of tasks is held apart.

        Raises:
            ValueError: a split would be empty, or there are not enough tasks.
        """
        apart = self.held_apart()
        num_train = self._checked_num_train(int(apart.sum()))
        generator = numpy_generator(self.split_seed, "split")
        shuffled = generator.permutation(self.num_tasks)
        by_difficulty = shuffled[np.argsort(self.difficulty()[shuffled], kind="stable")]
        held_out = _evenly_spread(
            by_difficulty[apart[by_difficulty]] if apart.any() else by_difficulty, self.num_held_out
        )
        rest = by_difficulty[~np.isin(by_difficulty, held_out) & ~apart[by_difficulty]]
        validation = _evenly_spread(rest, self.num_validation)
        train = _evenly_spread(rest[~np.isin(rest, validation)], num_train)
        return {"train": np.sort(train), "validation": np.sort(validation), "held_out": np.sort(held_out)}

    def _checked_num_train(self, num_apart: int) -> int:
        """How many tasks are trained on."""
        num_left = self.num_tasks - self.num_validation - max(self.num_held_out, num_apart)
        num_train = num_left if self.num_train is None else self.num_train
        sizes = {"train": min(num_train, num_left), "validation": self.num_validation, "held_out": self.num_held_out}
        of_these = f"of {self.num_tasks} tasks" + (f", {num_apart} of them held apart" if num_apart else "")
        counts = f"num_validation={self.num_validation} and num_held_out={self.num_held_out}"
        for split, size in sizes.items():
            if size < 1:
                raise ValueError(
                    f"the split '{split}' would have {size} tasks: {of_these}, {counts} leave {num_left} to train on; "
                    "every split needs at least one"
                )
        if num_train > num_left:
            raise ValueError(
                f"num_train={num_train} is more than there are: {of_these}, {counts} leave {num_left}; lower it, or "
                "set it to null for all of these"
            )
        if num_apart and self.num_held_out > num_apart:
            raise ValueError(
                f"num_held_out={self.num_held_out} is more than the {num_apart} tasks held apart; lower it"
            )
        return num_train

    def task_ids(self, split: str) -> np.ndarray:
        """Sorted task ids of one split.

        Raises:
            ValueError: unknown split.
        """
        splits = self.splits()
        if split not in splits:
            raise ValueError(f"unknown split '{split}'; choose one of {', '.join(splits)}")
        return splits[split]

    def sample(self, split: str, num_tasks: int, seed: int, device: torch.device | str = "cpu") -> TaskBatch:
        """Environments for `num_tasks` tasks drawn uniformly, with replacement, from a split."""
        ids = numpy_generator(seed, "sample", split).choice(self.task_ids(split), num_tasks)
        return self.batch(ids, seed=seed, device=device)


def _evenly_spread(ordered: np.ndarray, count: int) -> np.ndarray:
    """`count` items at equal distances along `ordered`: the middle of each of `count` equal stretches."""
    positions = ((np.arange(count) + 0.5) * len(ordered) / count).astype(int)
    return ordered[positions]
