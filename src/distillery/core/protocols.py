"""Contracts that more than one wing relies on. A wing implements its own and imports no sibling.

Letters: E parallel environments or learners, S states, A actions, B batch, T environment steps, D numbers of an
observation, K numbers of an action (absent where it is one whole number), W width, P parameters of an action.
"""

import abc
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from distillery.core.records import Context, EpisodeBatch, Transition
from distillery.core.specs import TaskSpec


class TaskBatch(Protocol):
    """E environments, each with its own task, advanced by one call. A single environment is a batch of one.

    Attributes:
        task_ids: (E,) int64.
        can_terminate: whether an episode may end before its last step.
    """

    spec: TaskSpec
    task_ids: Tensor
    can_terminate: bool

    def reset(self, where: Tensor | None = None) -> Tensor:
        """Starts a new episode everywhere, or where the (E,) bool mask says; returns (E, D) observations."""

    def step(self, actions: Tensor) -> Transition:
        """Advances every environment by its action, (E[, K]); resets none by itself."""

    def oracle_actions(self) -> Tensor:
        """(E[, K]) a best action now, for an agent that knows the task and the whole state.

        Raises:
            ValueError: the family knows of none.
        """


@runtime_checkable
class TabularTaskBatch(TaskBatch, Protocol):
    """Environments whose states are numbered: what tabular sources need.

    Attributes:
        state: (E,) int64, the current state's number; tabular sources read it, models never do.
        next_state: (S, A) int64, where each action leads: the dynamics all tasks of the family share. What a task
            itself changes on arrival (a key picked up) is in `state` after `advance`, and not in this table.
        shares_dynamics: whether the moves in `next_state` are those of every task; where they are not, no source may
            plan with them.
    """

    state: Tensor
    next_state: Tensor
    shares_dynamics: bool

    def advance(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Advances every environment by its action, (E,) int64; returns rewards, terminated, truncated, each (E,)."""

    def observe(self, states: Tensor) -> Tensor:
        """(..., D) observations of states of any shape."""


class TaskDistribution(Protocol):
    """A finite family of tasks, divided by task into train, validation and held_out; some have further splits."""

    spec: TaskSpec
    num_tasks: int

    def batch(self, task_ids: np.ndarray, *, seed: int, device: torch.device | str = "cpu") -> TaskBatch:
        """Environments for the given (E,) task ids; `seed` drives whatever is random in them."""

    def task_ids(self, split: str) -> np.ndarray:
        """Sorted task ids of one split."""

    def splits(self) -> dict[str, np.ndarray]:
        """Task ids of each split."""

    def oracle_returns(self) -> np.ndarray:
        """(num_tasks,) float64: best expected return of one episode by an agent that knows the task."""

    def expert_actions(self, episode: EpisodeBatch, task_ids: np.ndarray) -> Tensor:
        """(E, T[, K]) a best action at every step of recorded episodes, for an agent that knows the (E,) tasks.

        Raises:
            ValueError: the family cannot tell it from a record.
        """


class Learners(Protocol):
    """E learners in the middle of their lives; each stream of episodes has its own task.

    Attributes:
        task_ids: (E,) int64, the task of each stream.
    """

    task_ids: np.ndarray

    def episode(self, *, frozen: bool = False) -> EpisodeBatch:
        """Plays the next episode everywhere; `frozen` plays the greedy policy learned so far and learns nothing."""


class Source(Protocol):
    """A learning algorithm with its settings.

    Attributes:
        num_episodes: length of one history, in episodes.
    """

    num_episodes: int

    def start(
        self, tasks: TaskDistribution, task_ids: np.ndarray, *, seed: int, device: torch.device | str = "cpu"
    ) -> Learners:
        """Fresh learners for the given tasks. A source with several actors returns a stream for each actor."""

    def run(
        self, tasks: TaskDistribution, task_ids: np.ndarray, *, seed: int, device: torch.device | str = "cpu"
    ) -> Iterator[EpisodeBatch]:
        """The whole histories, one episode of all learners at a time."""


class SequenceModel(nn.Module, abc.ABC):
    """Predicts the next action from everything before it and the current observation.

    What it predicts are the P parameters of a distribution over actions (see `distillery.layers.actions`): A logits
    where one of A actions is taken.

    Attributes:
        spec: the task family the model was built for.
        context_length: how many environment steps it sees, the current one included.
        width: W, of its features.
        action_head: from features to parameters of an action.
        has_window: whether it sees nothing further back than `context_length`.
    """

    has_window = True

    spec: TaskSpec
    context_length: int

    action_head: nn.Module
    width: int

    @abc.abstractmethod
    def encode(self, context: Context) -> Tensor:
        """(B, T, W) features of every step, each from the steps before it and its own observation."""

    def forward(self, context: Context) -> Tensor:
        """(B, T, P) parameters of the action at every step."""
        parameters: Tensor = self.action_head(self.encode(context))
        return parameters

    @abc.abstractmethod
    def new_cache(self, batch_size: int) -> Any:
        """The empty context of B fresh lifetimes, for `act`."""

    @abc.abstractmethod
    def encode_step(self, observations: Tensor, previous: tuple[Tensor, Tensor] | None, cache: Any) -> Tensor:
        """(B, W) features of the current step of B lifetimes; the cache takes the step in.

        Args:
            observations: (B, D), the current observations.
            previous: the actions, (B[, K]), and rewards, (B,) float32, of the step before; None at the first.
            cache: from `new_cache`, changed in place.
        """

    def act(self, observations: Tensor, previous: tuple[Tensor, Tensor] | None, cache: Any) -> Tensor:
        """(B, P) parameters of the current step's action; see `encode_step`."""
        parameters: Tensor = self.action_head(self.encode_step(observations, previous, cache))
        return parameters


class ServedModel(Protocol):
    """A checkpoint as a function of named arrays."""

    def __call__(self, *args: Any, **inputs: Any) -> np.ndarray:
        """An array whose first axis is the batch, from arrays whose first axes are batch and steps."""

    def example(self) -> dict[str, np.ndarray]:
        """Arguments of one call."""


class TrackedRun(Protocol):
    """One run that is being tracked: a training, the evaluation of one agent, a sweep's trial.

    Attributes:
        id: names the run in its store, so that other processes can nest runs under it.
    """

    id: str

    def log(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Logs metrics at a step (an update, or an episode counted from 1)."""

    def log_dataset(self, folder: Path, *, context: str) -> None:
        """Names the dataset that was read, with its DVC hash and content hash; context says what for."""

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Attaches a file, optionally under a folder."""

    def log_model(self, checkpoint: Path, *, loader: Callable[[Path], ServedModel]) -> None:
        """Attaches a checkpoint so that it can be loaded and called from the tracking store.

        Args:
            checkpoint: folder of the checkpoint.
            loader: class or function, found by its name again where the model is loaded.
        """


class Tracker(Protocol):
    """Where runs are tracked."""

    def check(self) -> None:
        """Raises ValueError with a remedy if runs could not be tracked; called before any work."""

    def start(
        self,
        kind: str,
        name: str,
        *,
        config: Mapping[str, Any],
        tags: Mapping[str, str] | None = None,
        parent: str | None = None,
        description: str | None = None,
    ) -> AbstractContextManager[TrackedRun]:
        """Opens a run.

        Args:
            kind: `train`, `evaluate` or `sweep`.
            name: shown in lists, for example ``dark_room/ad``.
            config: the composed configuration.
            tags: searchable marks, for example the experiment and the agent.
            parent: id of the run to nest under; None nests it under the current pipeline run, if there is one.
            description: what the run is and how it came out, for people; Markdown.
        """
