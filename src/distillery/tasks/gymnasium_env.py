"""Tasks as Gymnasium environments: one task as an `Env`, many as a `VectorEnv`, both over the same `TaskBatch`.

    gymnasium.make("distillery/DarkRoom-v0", task_id=7, walls="wrap")
    gymnasium.make_vec("distillery/DarkRoom-v0", num_envs=64, split="held_out")

`distillery.tasks` registers every family. The task's number is in ``info["task_id"]``, for those who may know it.

Letters: E parallel environments, D observation dimensions.
"""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from distillery.tasks.base import TaskBatch, TaskDistribution

RENDER_MODES = ["ansi", "rgb_array"]
RENDERING: dict[str, Any] = {"render_modes": RENDER_MODES, "render_fps": 4}
CELL_PIXELS = 16
# Of the letters that families draw with; any other is grey.
COLOURS = {".": (238, 238, 238), "G": (76, 175, 80), "A": (33, 80, 200), "@": (240, 160, 30)}


class _Choice:
    """Which tasks the next episodes have: always the same ones, or some drawn from a split."""

    def __init__(self, tasks: TaskDistribution, num_envs: int, task_id: Any, split: str) -> None:
        self._tasks, self._num_envs = tasks, num_envs
        self._fixed = None if task_id is None else self.checked(task_id)
        self._drawn_from = tasks.task_ids(split) if task_id is None else np.empty(0, np.int64)

    def checked(self, task_id: Any) -> np.ndarray:
        """(E,) int64 from one id for all or an id for each.

        Raises:
            ValueError: wrong ids, or the wrong number of them.
        """
        ids = np.asarray(task_id)
        whole = ids.dtype.kind in "iu" and ids.shape in ((), (self._num_envs,))
        if not whole or ids.min() < 0 or ids.max() >= self._tasks.num_tasks:
            raise ValueError(
                f"task_id must be a whole number from 0 to {self._tasks.num_tasks - 1}, or {self._num_envs} of them, "
                f"got {task_id!r}"
            )
        return np.broadcast_to(ids, self._num_envs).astype(np.int64)

    def next(self, random: np.random.Generator, options: Mapping[str, Any] | None = None) -> np.ndarray:
        """(E,) int64 ids; those in the reset options go first."""
        unknown = set(options or {}) - {"task_id"}
        if unknown:
            raise ValueError(f"unknown reset options {', '.join(sorted(map(str, unknown)))}; there is 'task_id'")
        if options:
            return self.checked(options["task_id"])
        if self._fixed is not None:
            return self._fixed
        return random.choice(self._drawn_from, self._num_envs)


def _built(tasks: TaskDistribution | str, settings: Mapping[str, Any]) -> TaskDistribution:
    if isinstance(tasks, str):
        module, name = tasks.split(":")
        distribution: TaskDistribution = getattr(importlib.import_module(module), name)(**settings)
        return distribution
    if settings:
        raise ValueError(f"settings {', '.join(settings)} are for tasks given by name; {tasks!r} is built already")
    return tasks


def _checked_render_mode(render_mode: str | None) -> str | None:
    if render_mode not in (None, *RENDER_MODES):
        raise ValueError(f"render_mode must be None or one of {', '.join(RENDER_MODES)}, got {render_mode!r}")
    return render_mode


def _begun(batch: TaskBatch | None) -> TaskBatch:
    if batch is None:
        raise ResetNeeded("no episode has begun: call reset() first")
    return batch


def _spaces(tasks: TaskDistribution) -> tuple[spaces.MultiDiscrete, spaces.Discrete]:
    return spaces.MultiDiscrete(list(tasks.spec.observation_sizes)), spaces.Discrete(tasks.spec.num_actions)


def _own_array(values: Tensor) -> np.ndarray:
    """A copy: what an environment has returned must not change at its next step."""
    return values.cpu().numpy().copy()


def _frame(picture: np.ndarray, render_mode: str) -> str | np.ndarray:
    """Text, or (pixels, pixels, 3) uint8, of the (rows, columns) letters that a family draws."""
    if render_mode == "ansi":
        return "\n".join(" ".join(row) for row in picture) + "\n"
    colours = np.array([[COLOURS.get(letter, (128, 128, 128)) for letter in row] for row in picture], np.uint8)
    pixels = colours.repeat(CELL_PIXELS, 0).repeat(CELL_PIXELS, 1)
    pixels[::CELL_PIXELS] = pixels[:, ::CELL_PIXELS] = 200  # lines between the cells
    return pixels


class TaskEnv(gymnasium.Env):
    """One environment with one task at a time.

    Args:
        tasks: a distribution, or ``module:class`` of one to be built with `settings`.
        task_id: the task of every episode; None draws a new one at each reset.
        split: where tasks are drawn from.
        render_mode: None, ``ansi`` or ``rgb_array``.
        **settings: of the distribution, if it is given by name.

    Raises:
        ValueError: a setting is wrong.
    """

    metadata = RENDERING

    def __init__(
        self,
        tasks: TaskDistribution | str,
        *,
        task_id: int | None = None,
        split: str = "train",
        render_mode: str | None = None,
        **settings: Any,
    ) -> None:
        self.tasks = _built(tasks, settings)
        self.render_mode = _checked_render_mode(render_mode)
        self.observation_space, self.action_space = _spaces(self.tasks)
        self._choice = _Choice(self.tasks, 1, task_id, split)
        self._batch: TaskBatch | None = None

    def _info(self) -> dict[str, Any]:
        return {"task_id": int(_begun(self._batch).task_ids[0])}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts an episode; ``options={"task_id": 3}`` chooses the task of this one."""
        super().reset(seed=seed)
        ids = self._choice.next(self.np_random, options)
        self._batch = self.tasks.batch(ids, seed=int(self.np_random.integers(2**31)))
        return _own_array(self._batch.reset()[0]), self._info()

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """See `gymnasium.Env.step`."""
        batch = _begun(self._batch)
        if not self.action_space.contains(action):
            raise ValueError(
                f"the action must be a whole number from 0 to {batch.spec.num_actions - 1}, got {action!r}"
            )
        after = batch.step(torch.tensor([int(action)], device=batch.state.device))
        return (
            _own_array(after.observations[0]),
            float(after.rewards[0]),
            bool(after.terminated[0]),
            bool(after.truncated[0]),
            self._info(),
        )

    def render(self) -> str | np.ndarray | None:
        """The room from above, in the chosen `render_mode`."""
        if self.render_mode is None:
            gymnasium.logger.warn("nothing is rendered: choose a render_mode when making the environment")
            return None
        batch = _begun(self._batch)
        return _frame(self.tasks.draw(int(batch.task_ids[0]), int(batch.state[0])), self.render_mode)


class TaskVectorEnv(VectorEnv):
    """E environments advanced by one call, each with one task at a time.

    An environment whose episode ends is reset within the same step: the observation returned is the next episode's
    first, and the last one of the episode before is in ``info["final_obs"]``.

    Args:
        tasks: a distribution, or ``module:class`` of one to be built with `settings`.
        num_envs: E.
        task_id: the task of every episode, one for all environments or one for each; None draws a new one whenever an
            episode starts.
        split: where tasks are drawn from.
        render_mode: None, ``ansi`` or ``rgb_array``.
        **settings: of the distribution, if it is given by name.

    Raises:
        ValueError: a setting is wrong.
    """

    metadata = RENDERING | {"autoreset_mode": AutoresetMode.SAME_STEP}

    def __init__(
        self,
        tasks: TaskDistribution | str,
        *,
        num_envs: int = 1,
        task_id: int | Sequence[int] | None = None,
        split: str = "train",
        render_mode: str | None = None,
        **settings: Any,
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, got {num_envs}")
        self.num_envs = num_envs
        self.tasks = _built(tasks, settings)
        self.render_mode = _checked_render_mode(render_mode)
        self.single_observation_space, self.single_action_space = _spaces(self.tasks)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._choice = _Choice(self.tasks, num_envs, task_id, split)
        self._batch: TaskBatch | None = None

    def _info(self) -> dict[str, Any]:
        ids = _own_array(_begun(self._batch).task_ids)
        return {"task_id": ids, "_task_id": np.ones(self.num_envs, dtype=bool)}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts an episode everywhere; ``options={"task_id": ids}`` chooses the tasks of these episodes."""
        super().reset(seed=seed)
        ids = self._choice.next(self.np_random, options)
        self._batch = self.tasks.batch(ids, seed=int(self.np_random.integers(2**31)))
        return _own_array(self._batch.reset()), self._info()

    def _checked_actions(self, actions: np.ndarray) -> np.ndarray:
        actions, num_actions = np.asarray(actions), self.tasks.spec.num_actions
        whole = actions.dtype.kind in "iu" and actions.shape == (self.num_envs,)
        if not whole or actions.min() < 0 or actions.max() >= num_actions:
            raise ValueError(
                f"actions must be {self.num_envs} whole numbers from 0 to {num_actions - 1}, got {actions!r}"
            )
        return actions.astype(np.int64)

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """See `gymnasium.vector.VectorEnv.step`."""
        batch = _begun(self._batch)
        after = batch.step(torch.as_tensor(self._checked_actions(actions), device=batch.state.device))
        observations, rewards = _own_array(after.observations), _own_array(after.rewards.double())
        terminated, truncated = _own_array(after.terminated), _own_array(after.truncated)
        done = terminated | truncated
        final: dict[str, Any] = {}
        if done.any():
            final = self._final(observations, _own_array(batch.task_ids), done)
            observations = self._restart(batch, done)
        return observations, rewards, terminated, truncated, final | self._info()

    def _final(self, observations: np.ndarray, task_ids: np.ndarray, done: np.ndarray) -> dict[str, Any]:
        """What the episodes that have just ended leave behind, laid out as Gymnasium's own vector environments do."""
        last = np.full(self.num_envs, None, dtype=object)
        for env in np.flatnonzero(done):
            last[env] = observations[env].copy()
        return {
            "final_obs": last,
            "_final_obs": done.copy(),
            "final_info": {"task_id": np.where(done, task_ids, 0), "_task_id": done.copy()},
            "_final_info": done.copy(),
        }

    def _restart(self, batch: TaskBatch, done: np.ndarray) -> np.ndarray:
        """Starts an episode where `done`; returns all (E, D) observations."""
        where = torch.as_tensor(done, device=batch.state.device)
        batch.assign(torch.as_tensor(self._choice.next(self.np_random), device=batch.state.device), where)
        return _own_array(batch.reset(where))

    def render(self) -> tuple[str | np.ndarray, ...] | None:
        """The rooms from above, in the chosen `render_mode`."""
        if self.render_mode is None:
            gymnasium.logger.warn("nothing is rendered: choose a render_mode when making the environment")
            return None
        batch = _begun(self._batch)
        pairs = zip(batch.task_ids.tolist(), batch.state.tolist(), strict=True)
        return tuple(_frame(self.tasks.draw(task_id, state), self.render_mode) for task_id, state in pairs)
