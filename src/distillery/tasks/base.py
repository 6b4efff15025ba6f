"""Task distributions and their split.

A distribution owns a finite list of tasks, numbered from 0, and divides them by task into `train`, `validation`
(selects checkpoints and hyper-parameters) and `held_out` (is reported). The division is seeded and stratified by
difficulty, so that each split's oracle is close to the whole's.
"""

import abc

import numpy as np
import torch
from torch import Tensor

from distillery.core.records import EpisodeBatch, Transition
from distillery.core.seeding import numpy_generator
from distillery.core.specs import TaskSpec

SPLITS = ("train", "validation", "held_out")


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
    """

    state: Tensor
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
    """A finite family of tasks with a split. Subclasses define the tasks; this class divides and draws them."""

    spec: TaskSpec
    num_tasks: int

    def __init__(self, *, num_validation: int, num_held_out: int, split_seed: int) -> None:
        self.num_validation, self.num_held_out, self.split_seed = num_validation, num_held_out, split_seed

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

    @abc.abstractmethod
    def difficulty(self) -> np.ndarray:
        """(num_tasks,): what the split is stratified by."""

    def draw(self, task_id: int, state: int) -> np.ndarray:
        """(rows, columns) letters, a picture of a state: ``A`` agent, ``G`` goal, ``@`` both, ``.`` floor."""
        raise NotImplementedError(f"{type(self).__name__} cannot be drawn; give it a method `draw`, or do not render")

    def splits(self) -> dict[str, np.ndarray]:
        """Task ids of each split, sorted; together they are all tasks, and none is in two.

        Raises:
            ValueError: a split would be empty.
        """
        num_train = self.num_tasks - self.num_validation - self.num_held_out
        sizes = {"train": num_train, "validation": self.num_validation, "held_out": self.num_held_out}
        for split, size in sizes.items():
            if size < 1:
                raise ValueError(
                    f"the split '{split}' would have {size} tasks: of {self.num_tasks} tasks, num_validation="
                    f"{self.num_validation} and num_held_out={self.num_held_out} leave {num_train} to train on; "
                    "every split needs at least one"
                )
        generator = numpy_generator(self.split_seed, "split")
        shuffled = generator.permutation(self.num_tasks)
        by_difficulty = shuffled[np.argsort(self.difficulty()[shuffled], kind="stable")]
        held_out = _evenly_spread(by_difficulty, self.num_held_out)
        rest = by_difficulty[~np.isin(by_difficulty, held_out)]
        validation = _evenly_spread(rest, self.num_validation)
        train = rest[~np.isin(rest, validation)]
        return {"train": np.sort(train), "validation": np.sort(validation), "held_out": np.sort(held_out)}

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
