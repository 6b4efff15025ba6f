"""Any Gymnasium environment as a family of tasks that differ in its physics, its settings or its layout.

    GymnasiumFamily(env_id="CartPole-v1", variations={"length": {"low": 0.3, "high": 1.0}}, best_return=500)

A foreign environment is a Python object that steps one action at a time, so this adapter loops over E of them. It is
for families that exist elsewhere; one of our own is written as arrays.

An episode that has ended stands still: until `reset`, its environment is left alone, rewards are 0, and the last
observation and the way it ended are repeated. No step of it is made up or lost.

Letters: E parallel environments, D numbers of an observation.
"""

import importlib
import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.envs.registration import load_env_creator
from torch import Tensor

from distillery.core.records import Transition
from distillery.core.seeding import numpy_generator, stream_seed
from distillery.core.specs import TaskSpec
from distillery.tasks.base import TaskBatch, TaskDistribution, require_task_ids
from distillery.tasks.spaces import ActionRows, ObservationRows
from distillery.tasks.variations import draw_variations, set_attributes

_OWN_ARGUMENTS = {"id": "env_id", "max_episode_steps": "episode_steps", "disable_env_checker": None}
_SEEDS = 2**31


class GymnasiumFamily(TaskDistribution):
    """Tasks that are one Gymnasium environment with something changed.

    What is varied is an argument of the environment's constructor if it has one of that name, otherwise an attribute,
    set once the environment is made. An attribute changes only what the environment reads at every step; what it has
    worked out from others (CartPole's total mass) is recomputed for the classes in `variations.DERIVED`.

    Tasks are drawn when the family is built and depend on its settings alone. If there are but lists to draw from,
    no two tasks are alike, so that none that is held out was trained on. Held-out tasks have the first numbers, those
    for validation the next, and those to train on the last: another `num_train` adds or removes tasks at the end and
    leaves all others what they are.

    Args:
        env_id: as `gymnasium.make` knows it.
        best_return: what an agent that knows the task gets in an episode, at most. Scores are parts of it, so it is
            above 0; shift rewards that are costs.
        make: arguments of the constructor, the same for all tasks.
        variations: by name, a list of values or ``{low: ..., high: ...}``; None varies nothing.
        reward_offset: added to every reward. An episode that ends early is given, with its last reward, what the steps
            that it leaves out would have added, so that all episodes gain the same and what is best stays so.
        reward_scale: what that is multiplied by.
        fixed_reset_seed: whether every reset of a task has the task's own seed, for families in which the layout is
            drawn at resets; otherwise each reset draws anew.
        episode_steps: longest episode; None takes the environment's own limit.
        drop_observation_parts: parts of a dictionary that agents do not see; of texts there is no other use.
        modules: imported first, so that their environments are registered.
        num_train: tasks to train on.
        num_validation: tasks that select checkpoints and hyper-parameters.
        num_held_out: tasks that are reported.
        split_seed: seed of what the tasks are: the split is made by drawing, so another one draws every split anew.

    Attributes:
        variations: (num_tasks,) list, what is varied in each task, by name.

    Raises:
        ValueError: a setting is wrong, or the environment's spaces are none of ours.
    """

    def __init__(
        self,
        *,
        env_id: str,
        best_return: float,
        make: Mapping[str, Any] | None = None,
        variations: Mapping[str, Any] | None = None,
        reward_offset: float = 0.0,
        reward_scale: float = 1.0,
        fixed_reset_seed: bool = False,
        episode_steps: int | None = None,
        drop_observation_parts: Sequence[str] = (),
        modules: Sequence[str] = (),
        num_train: int = 32,
        num_validation: int = 8,
        num_held_out: int = 8,
        split_seed: int = 0,
    ) -> None:
        super().__init__(
            num_train=num_train, num_validation=num_validation, num_held_out=num_held_out, split_seed=split_seed
        )
        if not 0.0 < best_return < math.inf:
            raise ValueError(
                f"gymnasium_family best_return must be above 0 and finite, got {best_return}; shift the rewards by "
                "reward_offset until it is"
            )
        for name, value in (("reward_offset", reward_offset), ("reward_scale", reward_scale)):
            if not math.isfinite(value):
                raise ValueError(f"gymnasium_family {name} must be finite, got {value}")
        if reward_scale <= 0.0:
            raise ValueError(f"gymnasium_family reward_scale must be above 0, got {reward_scale}")
        self.reward_offset, self.reward_scale = float(reward_offset), float(reward_scale)
        self.num_tasks = num_train + num_validation + num_held_out
        self._checked_num_train(0)
        self.env_id, self.best_return, self._make = env_id, float(best_return), dict(make or {})
        for name, ours in _OWN_ARGUMENTS.items():
            if name in self._make:
                raise ValueError(f"gymnasium_family make has '{name}'; {f'set {ours}' if ours else 'leave it out'}")
        _import(modules)
        seed = stream_seed(split_seed, "gymnasium_family")
        self.variations = draw_variations(
            dict(variations or {}), self.num_tasks, seed=seed, distinct=not fixed_reset_seed
        )
        draws = numpy_generator(seed, "reset_seeds").integers(_SEEDS, size=self.num_tasks)
        self.reset_seeds = draws if fixed_reset_seed else None
        self._arguments: frozenset[str] = self._constructor_arguments()
        self._drop, self._episode_steps = tuple(drop_observation_parts), episode_steps
        first = self._made(0)
        self.spec, self.observation_rows, self.action_rows = self._look_at(first)
        first.close()

    def _constructor_arguments(self) -> frozenset[str]:
        """Names among the variations that the environment's constructor takes."""
        try:
            entry_point = gymnasium.spec(self.env_id).entry_point
            creator = load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point
        except (gymnasium.error.Error, ImportError, AttributeError) as error:
            raise ValueError(
                f"gymnasium_family env_id={self.env_id!r} cannot be made: {error}; is the package that registers it "
                "installed and named in modules?"
            ) from error
        parameters = inspect.signature(creator).parameters if creator else {}
        named = {name for name, parameter in parameters.items() if parameter.kind != parameter.VAR_KEYWORD}
        return frozenset(named & set(self.variations[0]))

    def _made(self, task_id: int) -> gymnasium.Env:
        """The environment of one task, not checked yet."""
        varied = self.variations[task_id]
        arguments = self._make | {name: value for name, value in varied.items() if name in self._arguments}
        try:
            # Time is kept by the batch: a limit of theirs would be cut by wrappers that others may add.
            env = gymnasium.make(self.env_id, max_episode_steps=-1, disable_env_checker=True, **arguments)
        except (gymnasium.error.Error, ImportError, TypeError, KeyError, AssertionError) as error:
            raise ValueError(
                f"gymnasium_family env_id={self.env_id!r} cannot be made with {arguments}: {error}"
            ) from error
        set_attributes(env.unwrapped, {name: value for name, value in varied.items() if name not in self._arguments})
        return env

    def _look_at(self, env: gymnasium.Env) -> tuple[TaskSpec, ObservationRows, ActionRows]:
        """What an environment shows and takes, in our terms."""
        rows = ObservationRows(env.observation_space, self._drop)
        actions = ActionRows(env.action_space)
        return TaskSpec(rows.spaces, actions.space, self._limit(env)), rows, actions

    def _limit(self, env: gymnasium.Env) -> int:
        """Longest episode: what was asked for, or else what the environment or its registration says."""
        registered = gymnasium.spec(self.env_id).max_episode_steps
        own = getattr(env.unwrapped, "max_steps", None)  # MiniGrid's environments count for themselves
        limit = registered if own is None else own
        asked = limit if self._episode_steps is None else self._episode_steps
        if asked is None:
            raise ValueError(f"gymnasium_family env_id={self.env_id!r} has no limit of its own; set episode_steps")
        if own is not None and asked > own:
            raise ValueError(
                f"gymnasium_family episode_steps={asked} is beyond the {own} steps after which {self.env_id} itself "
                f"ends an episode; lower it, or set make.max_steps={asked}"
            )
        return int(asked)

    def make_env(self, task_id: int) -> gymnasium.Env:
        """A fresh environment of one task, without a time limit.

        Raises:
            ValueError: what is varied changes its spaces.
        """
        env = self._made(task_id)
        difference = self.spec.difference(self._look_at(env)[0])
        if difference:
            raise ValueError(
                f"gymnasium_family tasks must look alike, but with {self.variations[task_id]} in task {task_id} "
                f"and {self.variations[0]} in task 0, {difference}"
            )
        return env

    def splits(self) -> dict[str, np.ndarray]:
        """Task ids of each split; see `TaskDistribution.splits`. Tests are numbered first, so that they stay."""
        held_out, validation, train = np.split(
            np.arange(self.num_tasks), np.cumsum([self.num_held_out, self.num_validation])
        )
        return {"train": train, "validation": validation, "held_out": held_out}

    def oracle_returns(self) -> np.ndarray:
        """`best_return` for every task."""
        return np.full(self.num_tasks, self.best_return)

    def batch(self, task_ids: np.ndarray, *, seed: int, device: torch.device | str = "cpu") -> "GymnasiumBatch":
        """Environments for the given tasks."""
        return GymnasiumBatch(self, np.asarray(task_ids), seed=seed, device=device)


def _import(modules: Sequence[str]) -> None:
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ValueError(
                f"gymnasium_family modules names {module!r}, which cannot be imported ({error}); install it, for "
                "example with pip install -e '.[environments]'"
            ) from error


class GymnasiumBatch(TaskBatch):
    """E Gymnasium environments, stepped one after another."""

    can_terminate = True

    def __init__(
        self, family: GymnasiumFamily, task_ids: np.ndarray, *, seed: int, device: torch.device | str
    ) -> None:
        require_task_ids(task_ids, family.num_tasks)
        self.spec, self._family = family.spec, family
        self.task_ids = torch.as_tensor(task_ids, dtype=torch.int64, device=device)
        self.envs = [family.make_env(int(task_id)) for task_id in task_ids]
        self._seeding = numpy_generator(seed, "gymnasium")
        # An environment is seeded at its first reset; later ones go on with its own random numbers.
        self._seeds: list[int | None] = self._seeding.integers(_SEEDS, size=len(task_ids)).tolist()
        dtype = np.int64 if self.spec.is_discrete else self.spec.stored_dtype
        self._rows = np.zeros((len(task_ids), self.spec.observation_width), dtype)
        self._elapsed = np.zeros(len(task_ids), np.int64)
        self._terminated = np.zeros(len(task_ids), bool)
        self._truncated = np.zeros(len(task_ids), bool)

    def _tensor(self, values: np.ndarray) -> Tensor:
        """A copy on the device: what was returned must not change at the next step."""
        return torch.tensor(values, device=self.task_ids.device)

    def reset(self, where: Tensor | None = None) -> Tensor:
        """See `TaskBatch.reset`."""
        slots = range(len(self.envs)) if where is None else np.flatnonzero(where.cpu().numpy()).tolist()
        fixed = self._family.reset_seeds
        ids = self.task_ids.tolist()
        for slot in slots:
            seed = self._seeds[slot] if fixed is None else int(fixed[ids[slot]])
            observation, _ = self.envs[slot].reset(seed=seed)
            self._family.observation_rows.write(observation, self._rows[slot])
            self._seeds[slot], self._elapsed[slot] = None, 0
            self._terminated[slot] = self._truncated[slot] = False
        return self._tensor(self._rows)

    def step(self, actions: Tensor) -> Transition:
        """See `TaskBatch.step`."""
        rewards = np.zeros(len(self.envs), np.float32)
        taken = actions.cpu().numpy()
        for slot in np.flatnonzero(~(self._terminated | self._truncated)).tolist():
            rewards[slot] = self._step(slot, taken[slot])
        return Transition(
            self._tensor(self._rows),
            self._tensor(rewards),
            self._tensor(self._terminated),
            self._tensor(self._truncated),
        )

    def _step(self, slot: int, action: np.ndarray) -> float:
        theirs = self._family.action_rows.theirs(np.asarray(action))
        observation, reward, terminated, truncated, _ = self.envs[slot].step(theirs)
        self._family.observation_rows.write(observation, self._rows[slot])
        self._elapsed[slot] += 1
        out_of_time = self._elapsed[slot] >= self.spec.episode_steps
        if truncated and not terminated and not out_of_time:
            raise ValueError(
                f"{self._family.env_id} cut an episode short after {self._elapsed[slot]} of {self.spec.episode_steps} "
                "steps; set episode_steps to its own limit, or raise that limit by an argument under make"
            )
        self._terminated[slot] = terminated
        self._truncated[slot] = out_of_time and not terminated
        steps_counted = 1 + (self.spec.episode_steps - self._elapsed[slot] if terminated else 0)
        return (float(reward) + self._family.reward_offset * steps_counted) * self._family.reward_scale

    def assign(self, task_ids: Tensor, where: Tensor) -> None:
        """See `TaskBatch.assign`: an environment that is given another task is made and seeded anew."""
        before = self.task_ids.tolist()
        super().assign(task_ids, where)
        for slot, task_id in enumerate(self.task_ids.tolist()):
            if task_id != before[slot]:
                self.envs[slot].close()
                self.envs[slot] = self._family.make_env(task_id)
                self._seeds[slot] = int(self._seeding.integers(_SEEDS))
