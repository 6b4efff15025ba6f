"""A searcher over poses: covers the ground of a round pool by count bonuses, and remembers where it was paid.

Source: count bonuses after Strehl and Littman, An Analysis of Model-Based Interval Estimation for Markov Decision
Processes (2008), Journal of Computer and System Sciences 74:1309-1331, on a grid over continuous positions. The moves
are known, so what is left of planning is one closed form:

    head for  argmax_c  discount ** (distance(c) / step_length) / (1 + n(c)) ** power

over cells c, where n(c) counts the unpaid steps that ended so near to c that a goal there would have paid.

Ours differs from MBIE-EB in five ways: worth falls with the way straight ahead, which who sidesteps goes in stairs,
instead of being found by value iteration; the bonus' power is a setting (theirs is 1/2; rewards here are
deterministic, so a cell once covered is all but worthless and a higher power wastes less); each learner prefers cells
a little by draws of its own, which break ties; and once a step was paid the search is over: the goal lies near that
place, and the middle of the cells there with the least counts is where all later episodes go. It reads positions and
rewards, never pictures.

Letters: E learners, C cells, T environment steps.
"""

import math
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from distillery.core.protocols import TaskBatch, TaskDistribution
from distillery.core.records import EpisodeBatch, Transition
from distillery.core.rollouts import play_episode
from distillery.core.seeding import stream_seed, torch_generator
from distillery.sources.base import Learners, Source, falling, require_counts, require_fraction, require_positive


@runtime_checkable
class PoseBatch(TaskBatch, Protocol):
    """E agents that move about a round pool, as this source needs them.

    Attributes:
        position: (E, 2) where they are; the pool's centre is (0, 0).
        pool_radius: the pool's, in which the whole platform lies.
        platform_radius: how near to the goal, its middle, a step must end to be paid.
        step_length: of a step.
    """

    position: Tensor
    pool_radius: float
    platform_radius: float
    step_length: float

    def steer(self, targets: Tensor) -> Tensor:
        """(E,) the action that leads soonest to (E, 2) points."""

    def sidestep(self, targets: Tensor) -> Tensor:
        """(E,) the action that does not turn and ends nearest to (E, 2) points."""


class PoseSearcher(Source):
    """Search by count bonuses over positions.

    Args:
        num_episodes: length of one history, in episodes.
        gait: ``turn``, to where it goes, then straight ahead; or ``sidestep``, ahead, back and to the sides without
            ever turning, so that every action depends on where the goal lies, not those alone that begin an episode.
        discount: of a step on the way to a cell, above 0 and up to 1.
        power: how fast a cell's worth falls with its count; 0.5 is the classical bonus.
        cell_size: side of a cell, in platform radii.
        preference: how much more a learner likes one uncounted cell than another at most, as a fraction.
        epsilon: chance of a random action at every step of the first episode.
        epsilon_end: the same in the last episode, between which it falls linearly; None keeps it.
    """

    def __init__(
        self,
        *,
        num_episodes: int,
        gait: str = "turn",
        discount: float = 0.9,
        power: float = 2.0,
        cell_size: float = 0.5,
        preference: float = 0.1,
        epsilon: float = 0.0,
        epsilon_end: float | None = None,
    ) -> None:
        epsilon_end = epsilon if epsilon_end is None else epsilon_end
        require_counts("pose_searcher", num_episodes=num_episodes)
        require_fraction(
            "pose_searcher", discount=discount, preference=preference, epsilon=epsilon, epsilon_end=epsilon_end
        )
        require_positive("pose_searcher", discount=discount, power=power, cell_size=cell_size)
        if gait not in ("turn", "sidestep"):
            raise ValueError(f"pose_searcher gait must be turn or sidestep, got {gait!r}")
        if cell_size > 1.0:
            raise ValueError(
                f"pose_searcher cell_size must be at most 1, or goals hide between cells, got {cell_size}"
            )
        self.num_episodes, self.gait = num_episodes, gait
        self.discount, self.power = discount, power
        self.cell_size, self.preference = cell_size, preference
        self.epsilon, self.epsilon_end = epsilon, epsilon_end

    def epsilon_of(self, episode: int) -> float:
        """Chance of a random action in the given episode, counted from 0."""
        return falling(
            self.epsilon, self.epsilon_end, 1.0, episode=episode, num_episodes=max(1, self.num_episodes - 1)
        )

    def start(
        self, tasks: TaskDistribution, task_ids: np.ndarray, *, seed: int, device: torch.device | str = "cpu"
    ) -> "PoseSearchers":
        """See `Source.start`.

        Raises:
            ValueError: the tasks' agents have no positions.
        """
        return PoseSearchers(self, tasks, task_ids, seed=seed, device=device)


class PoseSearchers(Learners):
    """E searchers: what ground each has covered, and where it was paid."""

    def __init__(
        self,
        source: PoseSearcher,
        tasks: TaskDistribution,
        task_ids: np.ndarray,
        *,
        seed: int,
        device: torch.device | str,
    ) -> None:
        self.task_ids = np.asarray(task_ids)
        self._source = source
        # Frozen episodes have pools of their own, so that learning goes on as if never stopped.
        self._batch, self._frozen_batch = (
            _pose_batch(tasks, task_ids, stream_seed(seed, name), device) for name in ("tasks", "frozen tasks")
        )
        self._generator = torch_generator(seed, "pose_searcher", device=device)
        radius, near = self._batch.pool_radius - self._batch.platform_radius, self._batch.platform_radius
        self._cells = _cells(radius, source.cell_size * near).to(device)  # (C, 2)
        shape = (len(task_ids), len(self._cells))
        self._likings = torch.log1p(-source.preference * torch.rand(shape, generator=self._generator, device=device))
        self._counts = torch.zeros_like(self._likings)  # (E, C)
        self._goals = torch.zeros((len(task_ids), 2), device=device)  # where each goes, once it has found it
        self._paid_at = torch.zeros_like(self._goals)  # where each was first paid
        self._found = torch.zeros(len(task_ids), dtype=torch.bool, device=device)
        self._episode = 0

    def _distances(self, places: Tensor) -> Tensor:
        """(..., C) from (..., 2) places to the cells."""
        # Not by a matrix product, whose rounding would let a learner feel how many others there are.
        return torch.cdist(places, self._cells, compute_mode="donot_use_mm_for_euclid_dist")

    def _covered(self, places: Tensor) -> Tensor:
        """(..., C) bool: cells where a goal would have paid a step that ended at (..., 2) places."""
        return self._distances(places) <= self._batch.platform_radius

    def _locate(self, learners: Tensor) -> None:
        """Where the given learners take the goal to be: amid those cells it may lie in that were covered least."""
        near = self._covered(self._paid_at[learners])
        counts = self._counts[learners].masked_fill(~near, math.inf)
        likely = (near & (counts == counts.amin(1, keepdim=True))).double()
        middle = (likely @ self._cells.double() / likely.sum(1, keepdim=True)).float()
        # At the pool's edge there may be no cell as near as the goal is.
        self._goals[learners] = torch.where(near.any(1, keepdim=True), middle, self._paid_at[learners])

    def _draw_exploration(self, epsilon: float) -> tuple[Tensor, Tensor]:
        """Where to act at random, (T, E) bool, and the random actions, (T, E)."""
        shape, device = (self._batch.spec.episode_steps, len(self.task_ids)), self._counts.device
        explore = torch.rand(shape, generator=self._generator, device=device) < epsilon
        return explore, torch.randint(self._batch.spec.num_actions, shape, generator=self._generator, device=device)

    def episode(self, *, frozen: bool = False) -> EpisodeBatch:
        """See `Learners.episode`."""
        search = _Search(self, self._frozen_batch if frozen else self._batch)
        if frozen:
            return play_episode(search.batch, search.act)
        epsilon = self._source.epsilon_of(self._episode)
        self._episode += 1
        if epsilon == 0.0:
            episode = play_episode(search.batch, search.act, search.watch)
        else:
            explore, random_actions = self._draw_exploration(epsilon)

            def choose(step: int, observations: Tensor) -> Tensor:
                return torch.where(explore[step], random_actions[step], search.act(step, observations))

            episode = play_episode(search.batch, choose, search.watch)
        self._take_in(search)
        return episode

    def _take_in(self, search: "_Search") -> None:
        """Learns from an episode that is over."""
        self._counts[search.searchers] = search.counts
        # Who went to the goal it believed in and was not paid has covered more ground, and believes in another.
        missed = (self._found & search.unpaid).nonzero()[:, 0]
        places, real = torch.stack(search.places, 1)[missed], torch.stack(search.real, 1)[missed]  # (M, T, ...)
        self._counts[missed] += (self._covered(places) & real[..., None]).sum(1)
        first = ~self._found & ~search.unpaid
        self._paid_at = torch.where(first[:, None], search.paid_at, self._paid_at)
        self._found = self._found | first
        self._locate(torch.cat([missed, first.nonzero()[:, 0]]))


class _Search:
    """One episode of E learners, of whom F search and the others know where to go.

    Attributes:
        batch: the E environments.
        searchers: (F,) which learners search.
        counts: (F, C) of theirs, growing step by step.
        unpaid: (E,) bool, who was not paid yet.
        paid_at: (E, 2) where the others were.
        places: of each step, (E, 2) where it ended.
        real: of each step, (E,) bool, whether the episode had not ended before.
    """

    def __init__(self, learners: PoseSearchers, batch: PoseBatch) -> None:
        self.batch, self._learners = batch, learners
        self.searchers = (~learners._found).nonzero()[:, 0]
        self.counts = learners._counts[self.searchers]
        self._likings = learners._likings[self.searchers]
        self.unpaid = torch.ones_like(learners._found)
        self.paid_at = torch.zeros_like(learners._paid_at)
        self.places: list[Tensor] = []
        self.real: list[Tensor] = []

    def act(self, step: int, observations: Tensor) -> Tensor:
        """(E,) actions: to the goal, or to the cell most worth the way until paid, then back to where that was."""
        targets = self._learners._goals
        if len(self.searchers):
            source = self._learners._source
            steps = self._learners._distances(self.batch.position[self.searchers]) / self.batch.step_length
            log_worth = self._likings - source.power * self.counts.log1p() + math.log(source.discount) * steps
            search = torch.where(
                self.unpaid[self.searchers, None],
                self._learners._cells[log_worth.argmax(1)],
                self.paid_at[self.searchers],
            )
            targets = targets.index_put((self.searchers,), search)
        turns = self._learners._source.gait == "turn"
        return self.batch.steer(targets) if turns else self.batch.sidestep(targets)

    def watch(self, observations: Tensor, actions: Tensor, transition: Transition, alive: Tensor | None) -> None:
        """Covers ground, and notes who is paid for the first time in this episode."""
        place, paid = self.batch.position, transition.rewards > 0.0
        real = torch.ones_like(paid) if alive is None else alive
        first = paid & real & self.unpaid
        self.paid_at = torch.where(first[:, None], place, self.paid_at)
        # Steps after the first paid one tell nothing: a goal may pay once an episode.
        self.unpaid = self.unpaid & ~first
        self.places.append(place)
        self.real.append(real)
        if len(self.searchers):
            told = (real & self.unpaid)[self.searchers]
            self.counts += self._learners._covered(place[self.searchers]) & told[:, None]


def _pose_batch(tasks: TaskDistribution, task_ids: np.ndarray, seed: int, device: torch.device | str) -> PoseBatch:
    batch = tasks.batch(task_ids, seed=seed, device=device)
    if not isinstance(batch, PoseBatch):
        raise ValueError(
            "pose_searcher needs tasks whose agents have positions, such as watermaze; those of "
            f"{type(tasks).__name__} have none, so choose another source"
        )
    return batch


def _cells(radius: float, size: float) -> Tensor:
    """(C, 2) middles of the cells of a square grid that lie in a circle about (0, 0)."""
    num_beside = int(radius / size)
    line = torch.arange(-num_beside, num_beside + 1) * size
    cells = torch.cartesian_prod(line, line)
    return cells[cells.norm(dim=1) <= radius]
