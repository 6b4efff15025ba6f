"""Watermaze: find a platform hidden under the water of a round pool, from what the eyes see.

Source: Laskin et al., In-context Reinforcement Learning with Algorithm Distillation (2022), arXiv 2210.14215,
section 4 and appendix; after Morris, Spatial Localization Does Not Require the Presence of Local Cues (1981).
First-person pictures of 72x96 pixels, 8 actions, 50 steps, start at the centre, reward 1 on reaching the platform,
which rises once it is found; goals are uniform in the pool and coloured walls are the only landmarks. The paper's pool
is a level of DeepMind Lab; ours is drawn by closed forms (`distillery.tasks.watermaze_renderer`). What the paper does
not print is a setting here: lengths, angles, the heading at the start and what follows the reward. With the default
lengths random actions earn 0.10 an episode, which is where the paper's source starts, and the oracle takes 10 steps to
the platform on average and 17 at most.

Letters: E parallel environments, H rows of pixels, W columns, A actions, N tasks, K headings.
"""

import math
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from distillery.core.records import EpisodeBatch, Transition
from distillery.core.seeding import numpy_generator, torch_generator
from distillery.core.specs import SOLE, Box, Discrete, TaskSpec
from distillery.tasks.base import TaskBatch, TaskDistribution, require_task_ids
from distillery.tasks.watermaze_renderer import MAX_HEIGHT, PoolRenderer

ACTION_NAMES = (
    "forward",
    "back",
    "left",
    "right",
    "rotate left",
    "rotate right",
    "forward and rotate left",
    "forward and rotate right",
)
# Of each action: the turn, in turn angles to the left, then the step, in step lengths ahead and to the right of the
# heading after the turn.
TURNS = (0, 0, 0, 0, 1, -1, 1, -1)
STEPS = ((1, 0), (-1, 0), (0, -1), (0, 1), (0, 0), (0, 0), (1, 0), (1, 0))
WALL_MARGIN = 0.05  # no eye comes nearer to the wall, in pool radii
_FACING = 0.1  # steps that facing the target is worth when steering


class Watermaze(TaskDistribution):
    """A round pool with one task per platform; task i's platform depends on `split_seed` and the radii alone.

    Args:
        height: rows of pixels.
        width: columns of pixels.
        field_of_view: horizontal, in degrees.
        pool_radius: in the unit of all lengths; eyes are 0.12 above the water and the wall ends at 0.5.
        platform_radius: how near to its centre the platform is reached.
        step_length: of a step forward, back, left or right.
        turn_angle: of a rotation, in degrees.
        start: ``centre``, or a point ``[x, y]``; the pool's centre is ``[0, 0]``.
        heading: at the start of an episode: ``fixed`` along the first axis, or ``random``, one of those that whole
            turns lead to.
        episode_steps: steps per episode.
        reward: ``once`` per episode on first reaching the platform, or ``every_step`` on it.
        termination: ``never`` (episodes always last `episode_steps`) or ``at_platform``.
        num_tasks: platforms drawn; more of them leave those before where they are.
        num_train: tasks to train on; None trains on all that are not below.
        num_validation: tasks that select checkpoints and hyper-parameters.
        num_held_out: tasks that are reported.
        split_seed: seed of the platforms and of the split by task.

    Raises:
        ValueError: a setting is not one of these.
    """

    def __init__(
        self,
        *,
        height: int = 72,
        width: int = 96,
        field_of_view: float = 90.0,
        pool_radius: float = 1.0,
        platform_radius: float = 0.1,
        step_length: float = 0.06,
        turn_angle: float = 30.0,
        start: str | Sequence[float] = "centre",
        heading: str = "random",
        episode_steps: int = 50,
        reward: str = "once",
        termination: str = "never",
        num_tasks: int = 4096,
        num_train: int | None = None,
        num_validation: int = 32,
        num_held_out: int = 64,
        split_seed: int = 0,
    ) -> None:
        super().__init__(
            num_validation=num_validation, num_held_out=num_held_out, split_seed=split_seed, num_train=num_train
        )
        for name, value, allowed in (
            ("heading", heading, ("fixed", "random")),
            ("reward", reward, ("once", "every_step")),
            ("termination", termination, ("never", "at_platform")),
        ):
            if value not in allowed:
                raise ValueError(f"watermaze {name} must be one of {', '.join(allowed)}, got {value!r}")
        _check_sizes(height, width, field_of_view, turn_angle, num_tasks)
        _check_lengths(pool_radius, platform_radius, step_length)
        self.height, self.width, self.field_of_view = height, width, float(field_of_view)
        self.pool_radius, self.platform_radius = float(pool_radius), float(platform_radius)
        self.step_length, self.turn_angle = float(step_length), math.radians(turn_angle)
        self.reward, self.termination = reward, termination
        self.start = self._start(start)
        num_headings = 1 if heading == "fixed" else max(round(360 / turn_angle), 1)
        self.start_headings = np.arange(num_headings) * self.turn_angle  # (K,) radians
        self.spec = TaskSpec({SOLE: Box((height, width, 3), 0, 255, "uint8")}, Discrete((len(TURNS),)), episode_steps)
        self.num_tasks = num_tasks
        self.goals = self._goals()

    def _start(self, start: str | Sequence[float]) -> tuple[float, float]:
        if start == "centre":
            return (0.0, 0.0)
        if not isinstance(start, str) and len(start) == 2:
            x, y = float(start[0]), float(start[1])
            if math.hypot(x, y) <= self.pool_radius * (1.0 - WALL_MARGIN):
                return (x, y)
        raise ValueError(
            f"watermaze start must be 'centre' or a point [x, y] no farther from it than {1.0 - WALL_MARGIN} times "
            f"pool_radius={self.pool_radius}, got {start!r}"
        )

    def _goals(self) -> np.ndarray:
        """(N, 2) float32 centres of platforms, uniform where the whole platform lies in the pool."""
        draws = numpy_generator(self.split_seed, "watermaze", "goals").random((self.num_tasks, 2))
        radius = np.sqrt(draws[:, 0]) * (self.pool_radius - self.platform_radius)
        angle = draws[:, 1] * math.tau
        return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1).astype(np.float32)

    def difficulty(self) -> np.ndarray:
        """Distance of each platform's centre from the start."""
        return np.hypot(*(self.goals - np.asarray(self.start)).T)

    def oracle_returns(self) -> np.ndarray:
        """What steering straight to the platform and staying there earns, mean over the headings at the start."""
        return self._oracle_returns

    @cached_property
    def _oracle_returns(self) -> np.ndarray:
        num_headings = len(self.start_headings)
        pool = self.batch(np.repeat(np.arange(self.num_tasks), num_headings), seed=0)
        pool.place(np.tile(np.arange(num_headings), self.num_tasks))
        returns = torch.zeros(len(pool.task_ids), dtype=torch.float64)
        alive = torch.ones_like(returns)
        for _ in range(self.spec.episode_steps):
            rewards, terminated, _ = pool.advance(pool.oracle_actions())
            returns += rewards * alive
            alive *= ~terminated
            if (pool.can_terminate or self.reward == "once") and bool(pool.risen.all()):
                break
        return returns.view(self.num_tasks, num_headings).mean(1).numpy()

    def batch(self, task_ids: np.ndarray, *, seed: int, device: torch.device | str = "cpu") -> "WatermazeBatch":
        """Environments for the given platforms."""
        return WatermazeBatch(self, np.asarray(task_ids), seed=seed, device=device)

    def expert_actions(self, episode: EpisodeBatch, task_ids: np.ndarray) -> Tensor:
        """See `TaskDistribution.expert_actions`: the first picture tells the heading, the actions tell the rest."""
        pool = self.batch(task_ids, seed=0, device=episode.actions.device)
        pool.place(pool.recognised(episode.observations[:, 0]))
        experts = []
        for actions in episode.actions.long().unbind(1):
            experts.append(pool.oracle_actions())
            pool.advance(actions)
        return torch.stack(experts, 1)


def _check_sizes(height: int, width: int, field_of_view: float, turn_angle: float, num_tasks: int) -> None:
    if not 1 <= height <= MAX_HEIGHT or width < 1:
        raise ValueError(
            f"watermaze height must be from 1 to {MAX_HEIGHT} and width at least 1, got {height} and {width}"
        )
    if not 0.0 < field_of_view < 180.0:
        raise ValueError(f"watermaze field_of_view must be between 0 and 180 degrees, got {field_of_view}")
    if not 0.0 < turn_angle <= 180.0:
        raise ValueError(f"watermaze turn_angle must be above 0 and at most 180 degrees, got {turn_angle}")
    if num_tasks < 1:
        raise ValueError(f"watermaze num_tasks must be at least 1, got {num_tasks}")


def _check_lengths(pool_radius: float, platform_radius: float, step_length: float) -> None:
    if not 0.0 < pool_radius < math.inf:
        raise ValueError(f"watermaze pool_radius must be above 0 and finite, got {pool_radius}")
    if not WALL_MARGIN * pool_radius <= platform_radius < pool_radius:
        raise ValueError(
            f"watermaze platform_radius must be from {WALL_MARGIN} times pool_radius={pool_radius}, nearer than which "
            f"nobody comes to the wall, to below it, got {platform_radius}"
        )
    if not 0.0 < step_length <= platform_radius:
        raise ValueError(
            f"watermaze step_length must be above 0 and at most platform_radius={platform_radius}, or steps may lead "
            f"over the platform, got {step_length}"
        )


class WatermazeBatch(TaskBatch):
    """E pools stepped and drawn as one array program.

    Sources may read where the agent is; models never do.

    Attributes:
        position: (E, 2) float32, of the eyes; the pool's centre is (0, 0).
        heading: (E,) float32 radians, growing to the left; 0 looks along the first axis.
        risen: (E,) bool, whether the platform was found in this episode and stands out of the water.
        pool_radius: of the wall.
        platform_radius: how near to its centre the platform is reached.
        step_length: of a step.
    """

    def __init__(self, tasks: Watermaze, task_ids: np.ndarray, *, seed: int, device: torch.device | str) -> None:
        require_task_ids(task_ids, tasks.num_tasks)
        self.spec = tasks.spec
        self.can_terminate = tasks.termination == "at_platform"
        self.task_ids = torch.as_tensor(task_ids, dtype=torch.int64, device=device)
        self.pool_radius, self.platform_radius = tasks.pool_radius, tasks.platform_radius
        self.step_length, self._turn_angle = tasks.step_length, tasks.turn_angle
        self._once = tasks.reward == "once"
        self._all_goals = torch.as_tensor(tasks.goals, device=device)
        self._goals = self._all_goals[self.task_ids]  # (E, 2)
        self._turns = torch.tensor(TURNS, device=device) * tasks.turn_angle  # (A,)
        self._unturned = torch.tensor([action for action, turn in enumerate(TURNS) if turn == 0], device=device)
        self._steps = torch.tensor(STEPS, device=device) * tasks.step_length  # (A, 2) ahead, right
        self._start = torch.tensor(tasks.start, device=device)
        self._start_headings = torch.as_tensor(tasks.start_headings, dtype=torch.float32, device=device)
        self._renderer = PoolRenderer(
            height=tasks.height,
            width=tasks.width,
            field_of_view=tasks.field_of_view,
            pool_radius=tasks.pool_radius,
            platform_radius=tasks.platform_radius,
            device=device,
        )
        self._generator = torch_generator(seed, "watermaze", device=device)
        self.place(np.zeros(len(task_ids), dtype=np.int64))

    def place(self, start_headings: np.ndarray | Tensor) -> None:
        """Starts an episode everywhere, with the (E,) numbers of headings at the start, and does not look."""
        numbers = torch.as_tensor(start_headings, device=self._start.device)
        self.heading = self._start_headings[numbers]
        self.position = self._start.expand(len(numbers), -1).clone()
        self.risen = torch.zeros_like(numbers, dtype=torch.bool)
        self._elapsed = torch.zeros_like(numbers)

    def reset(self, where: Tensor | None = None) -> Tensor:
        """See `TaskBatch.reset`."""
        numbers = self._draw_headings()
        if where is None:
            self.place(numbers)
            return self._look()
        self.heading = torch.where(where, self._start_headings[numbers], self.heading)
        self.position = torch.where(where[:, None], self._start, self.position)
        self.risen = self.risen & ~where
        self._elapsed = self._elapsed * ~where
        return self._look()

    def _draw_headings(self) -> Tensor:
        """(E,) numbers of headings at the start."""
        num_headings, shape, device = len(self._start_headings), self.task_ids.shape, self.task_ids.device
        if num_headings == 1:
            return torch.zeros(shape, dtype=torch.int64, device=device)
        return torch.randint(num_headings, shape, generator=self._generator, device=device)

    def assign(self, task_ids: Tensor, where: Tensor) -> None:
        """See `TaskBatch.assign`."""
        super().assign(task_ids, where)
        self._goals = self._all_goals[self.task_ids]

    # Motion

    def _moved(self, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Positions (E, ..., 2) and headings (E, ...) that (E, ...) actions lead to."""
        spread = (-1, *[1] * (actions.ndim - 1))
        heading = torch.remainder(self.heading.view(spread) + self._turns[actions], math.tau)
        ahead, right = self._steps[actions].unbind(-1)
        cosine, sine = heading.cos(), heading.sin()
        steps = torch.stack([ahead * cosine + right * sine, ahead * sine - right * cosine], -1)
        position = self.position.view(*spread, 2) + steps
        # Who runs into the wall slides along it.
        farthest = self.pool_radius * (1.0 - WALL_MARGIN)
        return position * (farthest / position.norm(dim=-1, keepdim=True)).clamp(max=1.0), heading

    def advance(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Advances every environment by its action, (E,) int64, and does not look.

        Returns rewards, terminated and truncated, each (E,).
        """
        self.position, self.heading = self._moved(actions)
        self._elapsed = self._elapsed + 1
        reached = (self.position - self._goals).norm(dim=1) <= self.platform_radius
        rewards = (reached & ~self.risen if self._once else reached).float()
        self.risen = self.risen | reached
        terminated = reached if self.can_terminate else torch.zeros_like(reached)
        return rewards, terminated, (self._elapsed >= self.spec.episode_steps) & ~terminated

    def step(self, actions: Tensor) -> Transition:
        """See `TaskBatch.step`."""
        rewards, terminated, truncated = self.advance(actions)
        return Transition(self._look(), rewards, terminated, truncated)

    def sidestep(self, targets: Tensor) -> Tensor:
        """(E,) of the actions that do not turn, the one that ends nearest to (E, 2) points."""
        position, _ = self._moved(self._unturned.expand(len(targets), -1))
        return self._unturned[(targets[:, None] - position).norm(dim=-1).argmin(1)]

    def steer(self, targets: Tensor) -> Tensor:
        """(E,) the action that leaves the fewest steps to (E, 2) points and, if several do, faces them best.

        The steps left are those of the better of two simple plans: to turn to the point, then straight ahead; or
        without a turn, some steps ahead or back and some to a side. Looking one action ahead mends both.
        """
        position, heading = self._moved(torch.arange(len(TURNS), device=targets.device).expand(len(targets), -1))
        x, y = ((targets[:, None] - position) / self.step_length).unbind(-1)  # (E, A)
        cosine, sine = heading.cos(), heading.sin()
        ahead, right = x * cosine + y * sine, x * sine - y * cosine
        distance = torch.hypot(ahead, right)
        turns = ((torch.atan2(right, ahead).abs() - self._turn_angle / 2) / self._turn_angle).clamp(min=0.0)
        steps = torch.minimum(distance + turns, ahead.abs() + right.abs())
        return (steps - _FACING * ahead / distance.clamp(min=1e-6)).argmin(1)

    def oracle_actions(self) -> Tensor:
        """See `TaskBatch.oracle_actions`: straight to the platform, and on it to its centre."""
        return self.steer(self._goals)

    # Pictures

    def frames(self) -> Tensor:
        """(E, H, W, 3) uint8, what each agent sees now."""
        return self._renderer.render(self.position, self.heading, self._goals, self.risen)

    def _look(self) -> Tensor:
        return self.frames().flatten(1)

    def recognised(self, observations: Tensor) -> Tensor:
        """(E,) numbers of the headings at the start that (E, D) first pictures show.

        Raises:
            ValueError: a picture is of none of them.
        """
        num_headings = len(self._start_headings)
        position, platform = (self._start.expand(num_headings, -1) for _ in range(2))
        hidden = torch.zeros(num_headings, dtype=torch.bool, device=position.device)
        views = self._renderer.render(position, self._start_headings, platform, hidden).flatten(1)  # (K, D)
        same = torch.stack([(observations == view).all(1) for view in views], 1)  # (E, K)
        if not bool((same.sum(1) == 1).all()):
            raise ValueError(
                "first pictures do not tell the heading at the start: each must show exactly one of the "
                f"{num_headings} that episodes of this watermaze start with; were they recorded with other settings, "
                "or are they too small?"
            )
        return same.int().argmax(1)
