"""Tasks as Gymnasium environments: one task as an `Env`, many as a `VectorEnv`, both over the same `TaskBatch`.

    gymnasium.make("distillery/DarkRoom-v0", task_id=7, walls="wrap")
    gymnasium.make_vec("distillery/DarkRoom-v0", num_envs=64, split="held_out")

`distillery.tasks` registers every family. The task's number is in ``info["task_id"]``, for those who may know it.

Letters: E parallel environments, D numbers of an observation.
"""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from distillery.core.protocols import TabularTaskBatch
from distillery.core.specs import Box, TaskSpec
from distillery.tasks.base import TaskBatch, TaskDistribution
from distillery.tasks.spaces import action_space, observation_space, observations_of_rows

RENDER_MODES = ["ansi", "rgb_array"]
RENDERING: dict[str, Any] = {"render_modes": RENDER_MODES, "render_fps": 4}
CELL_PIXELS = 16
# Of the letters that families draw with; any other is grey.
COLOURS = {
    ".": (238, 238, 238),
    "G": (76, 175, 80),
    "A": (33, 80, 200),
    "@": (240, 160, 30),
    "K": (255, 221, 51),
    "D": (121, 85, 72),
}


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


def _own_array(values: Tensor) -> np.ndarray:
    """A copy: what an environment has returned must not change at its next step."""
    return values.cpu().numpy().copy()


def _checked_actions(spec: TaskSpec, actions: Any, leading: tuple[int, ...]) -> np.ndarray:
    """Actions as an array of `TaskSpec.action_dtype`, a single one for ``leading=()``.

    Raises:
        ValueError: not in the action space, or not as many as there are environments.
    """
    given, space = np.asarray(actions), spec.action
    shape = leading + spec.action_shape
    if isinstance(space, Box):
        if (
            given.dtype.kind in "iuf"
            and given.shape == shape
            and given.min() >= space.low
            and given.max() <= space.high
        ):
            return given.astype(np.float32)
        wanted = f"numbers from {space.low:g} to {space.high:g}"
    else:
        sizes = space.sizes if spec.action_shape else space.sizes[0]
        if given.dtype.kind in "iu" and given.shape == shape and given.min() >= 0 and (given < sizes).all():
            return given.astype(np.int64)
        wanted = f"whole numbers from 0 to {np.subtract(sizes, 1).tolist()}"
    raise ValueError(f"the action must be an array of shape {shape} of {wanted}, got {actions!r}")


def _frame(picture: np.ndarray, render_mode: str) -> str | np.ndarray:
    """Text, or (pixels, pixels, 3) uint8, of the (rows, columns) letters that a family draws."""
    if render_mode == "ansi":
        return "\n".join(" ".join(row) for row in picture) + "\n"
    colours = np.array([[COLOURS.get(letter, (128, 128, 128)) for letter in row] for row in picture], np.uint8)
    pixels = colours.repeat(CELL_PIXELS, 0).repeat(CELL_PIXELS, 1)
    pixels[::CELL_PIXELS] = pixels[:, ::CELL_PIXELS] = 200  # lines between the cells
    return pixels


def _image_part(spec: TaskSpec) -> tuple[slice, tuple[int, ...]] | None:
    """Where the first part lies that is a picture, and its (height, width, channels); None if there is none."""
    for name, stretch in spec.stretches().items():
        space = spec.observation[name]
        if isinstance(space, Box) and space.dtype == "uint8" and len(space.shape) == 3 and space.shape[2] in (1, 3):
            return stretch, space.shape
    return None


def _frames(
    tasks: TaskDistribution, batch: TaskBatch, rows: np.ndarray, render_mode: str
) -> tuple[str | np.ndarray, ...]:
    """A picture of each environment: drawn by the family, or else what its agent sees, if that is a picture.

    Raises:
        ValueError: neither can be had in this mode.
    """
    image = _image_part(tasks.spec)
    if isinstance(batch, TabularTaskBatch):
        pairs = zip(batch.task_ids.tolist(), batch.state.tolist(), strict=True)
        return tuple(_frame(tasks.draw(task_id, state), render_mode) for task_id, state in pairs)
    if image is None or render_mode != "rgb_array":
        raise ValueError(
            f"{type(tasks).__name__} cannot be rendered as {render_mode}: it neither draws numbered states nor shows "
            "agents an image, which rgb_array would return; choose render_mode=None"
        )
    stretch, (height, width, channels) = image
    pixels = rows[:, stretch].astype(np.uint8).reshape(-1, height, width, channels)
    return tuple(pixels.repeat(3 // channels, -1))


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
        self.observation_space, self.action_space = observation_space(self.tasks.spec), action_space(self.tasks.spec)
        self._choice = _Choice(self.tasks, 1, task_id, split)
        self._batch: TaskBatch | None = None
        self._rows = np.empty(0)

    def _info(self) -> dict[str, Any]:
        return {"task_id": int(_begun(self._batch).task_ids[0])}

    def _observation(self, rows: Tensor) -> Any:
        self._rows = _own_array(rows)
        return observations_of_rows(self.tasks.spec, self._rows[0])

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Starts an episode; ``options={"task_id": 3}`` chooses the task of this one."""
        super().reset(seed=seed)
        ids = self._choice.next(self.np_random, options)
        self._batch = self.tasks.batch(ids, seed=int(self.np_random.integers(2**31)))
        return self._observation(self._batch.reset()), self._info()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """See `gymnasium.Env.step`."""
        batch = _begun(self._batch)
        checked = _checked_actions(batch.spec, action, ())
        after = batch.step(torch.as_tensor(checked, device=batch.task_ids.device)[None])
        return (
            self._observation(after.observations),
            float(after.rewards[0]),
            bool(after.terminated[0]),
            bool(after.truncated[0]),
            self._info(),
        )

    def render(self) -> str | np.ndarray | None:
        """The environment from above or as its agent sees it, in the chosen `render_mode`."""
        if self.render_mode is None:
            gymnasium.logger.warn("nothing is rendered: choose a render_mode when making the environment")
            return None
        return _frames(self.tasks, _begun(self._batch), self._rows, self.render_mode)[0]


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
        self.single_observation_space = observation_space(self.tasks.spec)
        self.single_action_space = action_space(self.tasks.spec)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._choice = _Choice(self.tasks, num_envs, task_id, split)
        self._batch: TaskBatch | None = None
        self._rows = np.empty(0)

    def _info(self) -> dict[str, Any]:
        ids = _own_array(_begun(self._batch).task_ids)
        return {"task_id": ids, "_task_id": np.ones(self.num_envs, dtype=bool)}

    def _observations(self) -> Any:
        return observations_of_rows(self.tasks.spec, self._rows)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Starts an episode everywhere; ``options={"task_id": ids}`` chooses the tasks of these episodes."""
        super().reset(seed=seed)
        ids = self._choice.next(self.np_random, options)
        self._batch = self.tasks.batch(ids, seed=int(self.np_random.integers(2**31)))
        self._rows = _own_array(self._batch.reset())
        return self._observations(), self._info()

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """See `gymnasium.vector.VectorEnv.step`."""
        batch = _begun(self._batch)
        checked = _checked_actions(batch.spec, actions, (self.num_envs,))
        after = batch.step(torch.as_tensor(checked, device=batch.task_ids.device))
        self._rows, rewards = _own_array(after.observations), _own_array(after.rewards.double())
        terminated, truncated = _own_array(after.terminated), _own_array(after.truncated)
        done = terminated | truncated
        final: dict[str, Any] = {}
        if done.any():
            final = self._final(_own_array(batch.task_ids), done)
            self._rows = self._restart(batch, done)
        return self._observations(), rewards, terminated, truncated, final | self._info()

    def _final(self, task_ids: np.ndarray, done: np.ndarray) -> dict[str, Any]:
        """What the episodes that have just ended leave behind, laid out as Gymnasium's own vector environments do."""
        last = np.full(self.num_envs, None, dtype=object)
        for env in np.flatnonzero(done):
            last[env] = observations_of_rows(self.tasks.spec, self._rows[env])
        return {
            "final_obs": last,
            "_final_obs": done.copy(),
            "final_info": {"task_id": np.where(done, task_ids, 0), "_task_id": done.copy()},
            "_final_info": done.copy(),
        }

    def _restart(self, batch: TaskBatch, done: np.ndarray) -> np.ndarray:
        """Starts an episode where `done`; returns all (E, D) observations."""
        device = batch.task_ids.device
        where = torch.as_tensor(done, device=device)
        batch.assign(torch.as_tensor(self._choice.next(self.np_random), device=device), where)
        return _own_array(batch.reset(where))

    def render(self) -> tuple[str | np.ndarray, ...] | None:
        """Every environment, as `TaskEnv.render` shows one."""
        if self.render_mode is None:
            gymnasium.logger.warn("nothing is rendered: choose a render_mode when making the environment")
            return None
        return _frames(self.tasks, _begun(self._batch), self._rows, self.render_mode)
