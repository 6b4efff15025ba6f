"""The contract of a sequence model.

Letters: B batch, T environment steps, D observation dimensions, A actions.
"""

import abc
from typing import Any

from torch import Tensor, nn

from distillery.core.records import Context
from distillery.core.specs import TaskSpec


class SequenceModel(nn.Module, abc.ABC):
    """Predicts the next action from everything before it and the current observation.

    Attributes:
        spec: the task family the model was built for.
        context_length: how many environment steps it sees, the current one included.
    """

    spec: TaskSpec
    context_length: int

    @abc.abstractmethod
    def forward(self, context: Context) -> Tensor:
        """(B, T, A) logits of the action at every step, each from the steps before it and its own observation."""

    @abc.abstractmethod
    def new_cache(self, batch_size: int) -> Any:
        """The empty context of B fresh lifetimes, for `act`."""

    @abc.abstractmethod
    def act(self, observations: Tensor, previous: tuple[Tensor, Tensor] | None, cache: Any) -> Tensor:
        """(B, A) logits for the current step of B lifetimes; the cache takes the step in.

        Args:
            observations: (B, D) int64, the current observations.
            previous: the actions, (B,) int64, and rewards, (B,) float32, of the step before; None at the first.
            cache: from `new_cache`, changed in place.
        """
