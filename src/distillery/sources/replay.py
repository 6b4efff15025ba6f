"""What a learner with many actors remembers of their streams, and the sequences that it draws from it.

Letters: L learners, E streams of all of them together, B sequences, S entries of a sequence, D numbers of an
observation, C capacity in entries.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from distillery.core.specs import TaskSpec, torch_dtype


@dataclass(frozen=True)
class Sequences:
    """B stretches of S consecutive entries of L learners' streams.

    Attributes:
        observations: (L, B, S, D) of `TaskSpec.stored_dtype`.
        actions: (L, B, S) int64.
        rewards: (L, B, S) float32, given after the action.
        continues: (L, B, S) bool, False where the action ended the task.
        acted: (L, B, S) bool, False where there was no action to learn from: at the last look of an episode, and
            after an early end.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    continues: Tensor
    acted: Tensor


class Replay:
    """The latest C entries of E streams: every step, and the last look of every episode.

    Args:
        capacity: C.
        num_learners: L; the streams of a learner stand next to each other.
        num_streams: E.
        spec: of the observations.
        device: where it lies.
    """

    def __init__(
        self, capacity: int, *, num_learners: int, num_streams: int, spec: TaskSpec, device: torch.device | str
    ) -> None:
        shape = (capacity, num_streams)
        dtype = torch_dtype(spec.stored_dtype)
        self._capacity, self._num_appended, self._num_learners = capacity, 0, num_learners
        self._observations = torch.zeros((*shape, spec.observation_width), dtype=dtype, device=device)
        self._actions = torch.zeros(shape, dtype=torch.int64, device=device)
        self._rewards = torch.zeros(shape, device=device)
        self._flags = torch.zeros((*shape, 2), dtype=torch.bool, device=device)  # continues, acted
        self._first_stream = torch.arange(num_learners, device=device)[:, None] * (num_streams // num_learners)

    @property
    def num_entries(self) -> int:
        """Entries of each stream that are still there."""
        return min(self._num_appended, self._capacity)

    def append(
        self, observations: Tensor, actions: Tensor, rewards: Tensor, *, continues: Tensor, acted: Tensor
    ) -> None:
        """Adds an entry to every stream: (E, D), then (E,) each."""
        at = self._num_appended % self._capacity
        self._observations[at] = observations.to(self._observations.dtype)
        self._actions[at], self._rewards[at] = actions, rewards
        self._flags[at, :, 0], self._flags[at, :, 1] = continues, acted
        self._num_appended += 1

    def sequences(self, actors: Tensor, starts: Tensor, length: int) -> Sequences:
        """Stretches of so many entries of some actors of each learner, (L, B), from starts, (L, B), 0 the oldest."""
        oldest = self._num_appended - self.num_entries
        entries = (oldest + starts[..., None] + torch.arange(length, device=starts.device)) % self._capacity
        streams = (self._first_stream + actors)[..., None]
        continues, acted = self._flags[entries, streams].unbind(-1)
        return Sequences(
            self._observations[entries, streams],
            self._actions[entries, streams],
            self._rewards[entries, streams],
            continues,
            acted,
        )
