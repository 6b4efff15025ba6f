"""Several task families in one: their tasks are numbered one family after another, and each keeps its own split.

Letters: E parallel environments, F families, R environments of one group.
"""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distillery.core.records import EpisodeBatch, Transition
from distillery.core.seeding import stream_seed
from distillery.tasks.base import TaskBatch, TaskDistribution, require_task_ids

PACKAGE = "distillery.tasks."


class MixedTasks(TaskDistribution):
    """All tasks of several families that look alike.

    Their episodes may be of different lengths. The end of a shorter one is told as `terminated`, for it is no time
    limit of the mixture's: sources that look beyond a time limit do so for the longest families alone.

    Args:
        families: of each, its settings with the class under ``_target_``, or a distribution that is built already.

    Attributes:
        families: (F,) the distributions.
        first_ids: (F + 1,) int64, the number of each family's first task, and at last that of all tasks.

    Raises:
        ValueError: there are none, one is no family, or two of them differ in what agents see and do.
    """

    def __init__(self, *, families: Sequence[Mapping[str, Any] | TaskDistribution]) -> None:
        if len(families) == 0:
            raise ValueError("mixture families must name at least one family, got none")
        self.families = [family if isinstance(family, TaskDistribution) else _built(family) for family in families]
        longest = max(family.spec.episode_steps for family in self.families)
        self.spec = replace(self.families[0].spec, episode_steps=longest)
        for number, family in enumerate(self.families):
            difference = self.spec.difference(replace(family.spec, episode_steps=longest))
            if difference:
                raise ValueError(
                    f"mixture families must look alike, but between families[0] ({type(self.families[0]).__name__}) "
                    f"and families[{number}] ({type(family).__name__}) {difference}"
                )
        self.first_ids = np.cumsum([0, *(family.num_tasks for family in self.families)])
        self.num_tasks = int(self.first_ids[-1])
        super().__init__(
            num_validation=sum(family.num_validation for family in self.families),
            num_held_out=sum(family.num_held_out for family in self.families),
            split_seed=self.families[0].split_seed,
        )

    def family_of(self, task_ids: np.ndarray) -> np.ndarray:
        """(...) int64: which family tasks belong to."""
        return np.searchsorted(self.first_ids, task_ids, side="right") - 1

    def splits(self) -> dict[str, np.ndarray]:
        """The families' own splits side by side; one that only some have holds theirs."""
        merged: dict[str, list[np.ndarray]] = {}
        for family, first in zip(self.families, self.first_ids[:-1], strict=True):
            for split, task_ids in family.splits().items():
                merged.setdefault(split, []).append(task_ids + first)
        return {split: np.concatenate(parts) for split, parts in merged.items()}

    def difficulty(self) -> np.ndarray:
        """Of each task within its family; the families' own splits are what use it."""
        return np.concatenate([family.difficulty() for family in self.families])

    def oracle_returns(self) -> np.ndarray:
        """See `TaskDistribution.oracle_returns`."""
        return np.concatenate([family.oracle_returns() for family in self.families])

    def expert_actions(self, episode: EpisodeBatch, task_ids: np.ndarray) -> Tensor:
        """See `TaskDistribution.expert_actions`: each family answers for its own."""
        task_ids = np.asarray(task_ids)
        require_task_ids(task_ids, self.num_tasks)
        owners = self.family_of(task_ids)
        actions = torch.zeros_like(episode.actions, dtype=self.spec.action_dtype)
        for number in np.unique(owners):
            mine = owners == number
            where = torch.as_tensor(mine, device=actions.device)
            own_ids = task_ids[mine] - self.first_ids[number]
            actions[where] = self.families[number].expert_actions(episode.select(where), own_ids).to(actions.dtype)
        return actions

    def draw(self, task_id: int, state: int) -> np.ndarray:
        """See `TaskDistribution.draw`."""
        number = int(self.family_of(np.asarray(task_id)))
        return self.families[number].draw(task_id - int(self.first_ids[number]), state)

    def batch(self, task_ids: np.ndarray, *, seed: int, device: torch.device | str = "cpu") -> "MixedBatch":
        """Environments for the given tasks, of as many families as these belong to."""
        return MixedBatch(self, np.asarray(task_ids), seed=seed, device=device)


def _built(settings: Mapping[str, Any]) -> TaskDistribution:
    """A family from its settings.

    Raises:
        ValueError: ``_target_`` names no family, or the family refuses its settings.
    """
    values = dict(settings)
    target = str(values.pop("_target_", None))
    module, _, name = target.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), name) if target.startswith(PACKAGE) else None
    except (ImportError, AttributeError):
        cls = None
    if not (isinstance(cls, type) and issubclass(cls, TaskDistribution)):
        raise ValueError(
            f"mixture families must each have a _target_ that is a family in {PACKAGE[:-1]}, got {target}"
        )
    try:
        return cls(**values)
    except TypeError as error:
        raise ValueError(f"{target} cannot be built from its settings: {error}") from error


@dataclass
class _Group:
    """Some environments of one family.

    Attributes:
        family: its number.
        batch: R environments.
        slots: (R,) int64, which of the E each of them is; -1 for one that is not used at present.
    """

    family: int
    batch: TaskBatch
    slots: Tensor


class MixedBatch(TaskBatch):
    """E environments, those of one family stepped together.

    States are numbered family by family, so that a mixture has none of its own: it is for sources that read
    observations.
    """

    def __init__(self, tasks: MixedTasks, task_ids: np.ndarray, *, seed: int, device: torch.device | str) -> None:
        require_task_ids(task_ids, tasks.num_tasks)
        self.spec, self._tasks, self._seed = tasks.spec, tasks, seed
        self.task_ids = torch.as_tensor(task_ids, dtype=torch.int64, device=device)
        self._groups: list[_Group] = []
        owners = tasks.family_of(task_ids)
        for number in np.unique(owners):
            self._add_group(int(number), np.flatnonzero(owners == number))

    def _add_group(self, family: int, slots: np.ndarray) -> None:
        device = self.task_ids.device
        own_ids = self.task_ids.cpu().numpy()[slots] - self._tasks.first_ids[family]
        seed = stream_seed(self._seed, "mixture", family, len(self._groups))
        batch = self._tasks.families[family].batch(own_ids, seed=seed, device=device)
        self._groups.append(_Group(family, batch, torch.as_tensor(slots, device=device)))
        # A family whose episodes are shorter than the longest ends them itself.
        self.can_terminate = any(group.batch.can_terminate or self._is_short(group) for group in self._groups)

    def _is_short(self, group: _Group) -> bool:
        return group.batch.spec.episode_steps < self.spec.episode_steps

    def _collected(self, parts: list[Tensor]) -> Tensor:
        """(E, ...) from what each group gives for its R environments."""
        whole = torch.zeros((len(self.task_ids), *parts[0].shape[1:]), dtype=parts[0].dtype, device=parts[0].device)
        for group, part in zip(self._groups, parts, strict=True):
            used = group.slots >= 0
            whole[group.slots[used]] = part[used]
        return whole

    def reset(self, where: Tensor | None = None) -> Tensor:
        """See `TaskBatch.reset`."""
        if where is None:
            where = torch.ones_like(self.task_ids, dtype=torch.bool)
        return self._collected(
            [group.batch.reset(where[group.slots.clamp(min=0)] & (group.slots >= 0)) for group in self._groups]
        )

    def step(self, actions: Tensor) -> Transition:
        """See `TaskBatch.step`."""
        # An environment that is not used takes somebody's action, for what comes of it is not looked at.
        parts = [
            self._ended_by_itself(group, group.batch.step(actions[group.slots.clamp(min=0)])) for group in self._groups
        ]
        names = ("observations", "rewards", "terminated", "truncated")
        return Transition(**{name: self._collected([getattr(part, name) for part in parts]) for name in names})

    def _ended_by_itself(self, group: _Group, transition: Transition) -> Transition:
        """The end of a shorter family's episodes is no time limit of the mixture's, whose episodes are longer."""
        if not self._is_short(group):
            return transition
        ended = transition.terminated | transition.truncated
        return replace(transition, terminated=ended, truncated=torch.zeros_like(ended))

    def oracle_actions(self) -> Tensor:
        """See `TaskBatch.oracle_actions`: every family answers for its own."""
        return self._collected([group.batch.oracle_actions() for group in self._groups])

    def assign(self, task_ids: Tensor, where: Tensor) -> None:
        """See `TaskBatch.assign`: a slot may be given a task of another family."""
        super().assign(task_ids, where)
        slots = np.flatnonzero(where.cpu().numpy())
        owners = self._tasks.family_of(self.task_ids.cpu().numpy())
        for group in self._groups:
            moved = torch.as_tensor(slots[owners[slots] != group.family], device=group.slots.device)
            group.slots[torch.isin(group.slots, moved)] = -1
        for number in np.unique(owners[slots]):
            self._place(int(number), slots[owners[slots] == number])

    def _place(self, family: int, slots: np.ndarray) -> None:
        """Gives slots environments of a family: those they have, unused ones, or else new ones."""
        placed = np.concatenate([group.slots.cpu().numpy() for group in self._groups])
        homeless = slots[~np.isin(slots, placed)]
        for group in (group for group in self._groups if group.family == family):
            held = group.slots.cpu().numpy()
            free = np.flatnonzero(held < 0)[: len(homeless)]
            held[free], homeless = homeless[: len(free)], homeless[len(free) :]
            group.slots = torch.as_tensor(held, device=group.slots.device)
            chosen = torch.as_tensor(np.isin(held, slots), device=group.slots.device)
            own_ids = self.task_ids[group.slots.clamp(min=0)] - int(self._tasks.first_ids[family])
            group.batch.assign(torch.where(chosen, own_ids, group.batch.task_ids), chosen)
        if len(homeless) > 0:
            self._add_group(family, homeless)
