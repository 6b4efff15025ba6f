"""Episodes played in lock-step, by agents that read observations and by tabular learners that read states.

Letters: E environments, T environment steps, D numbers of an observation, K numbers of an action.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from distillery.core.protocols import TabularTaskBatch, TaskBatch
from distillery.core.records import EpisodeBatch, Transition
from distillery.core.specs import Box, torch_dtype

Choose = Callable[[int, Tensor], Tensor]
Learn = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None], None]
Watch = Callable[[Tensor, Tensor, Transition, Tensor | None], None]


class _Ends:
    """Which of E episodes have ended, and when."""

    def __init__(self, batch: TaskBatch) -> None:
        self.num_steps = torch.full_like(batch.task_ids, batch.spec.episode_steps)
        self.terminated = torch.zeros_like(batch.task_ids, dtype=torch.bool)
        self.alive = torch.ones_like(self.terminated) if batch.can_terminate else None

    def note(self, step: int, terminated: Tensor) -> None:
        if self.alive is not None:
            now = terminated & self.alive
            self.num_steps = torch.where(now, step + 1, self.num_steps)
            self.terminated = self.terminated | now
            self.alive = self.alive & ~terminated


def play_episode(batch: TaskBatch, choose: Choose, watch: Watch | None = None) -> EpisodeBatch:
    """One episode of E agents that read observations.

    Args:
        batch: E environments.
        choose: ``(step, observations) -> actions``, from (E, D) to (E[, K]).
        watch: called after every step with ``(observations, actions, transition, alive)``. `alive`, (E,) bool, says
            whose episode had not ended before this step; None says everybody's.
    """
    seen = batch.reset()
    observations, actions, rewards = [], [], []
    ends = _Ends(batch)
    for step in range(batch.spec.episode_steps):
        action = choose(step, seen)
        transition = batch.step(action)
        if watch is not None:
            watch(seen, action, transition, ends.alive)
        observations.append(seen.to(torch_dtype(batch.spec.stored_dtype)))
        actions.append(action)
        rewards.append(transition.rewards)
        ends.note(step, transition.terminated)
        seen = transition.observations
    return EpisodeBatch(
        observations=torch.stack(observations, 1),
        actions=torch.stack(actions, 1).to(torch_dtype(batch.spec.action.stored_dtype)),
        rewards=torch.stack(rewards, 1),
        terminated=ends.terminated,
        num_steps=ends.num_steps,
    )


def play_tabular_episode(batch: TabularTaskBatch, choose: Choose, learn: Learn | None) -> EpisodeBatch:
    """One episode of E learners that read states instead of observations.

    Args:
        batch: E environments.
        choose: ``(step, states) -> actions``, both (E,) int64.
        learn: ``(states, actions, rewards, next_states, terminated, alive)``, or None for a frozen policy. `alive`,
            (E,) bool, says whose episode had not ended before this step; None says everybody's.
    """
    batch.reset()
    states, actions, rewards = [], [], []
    ends = _Ends(batch)
    for step in range(batch.spec.episode_steps):
        state = batch.state
        action = choose(step, state)
        reward, terminated, _ = batch.advance(action)
        if learn is not None:
            learn(state, action, reward, batch.state, terminated, ends.alive)
        states.append(state)
        actions.append(action)
        rewards.append(reward)
        ends.note(step, terminated)
    observations = batch.observe(torch.stack(states, 1))  # (E, T, D)
    return EpisodeBatch(
        observations=observations.to(torch_dtype(batch.spec.stored_dtype)),
        actions=torch.stack(actions, 1).to(torch_dtype(batch.spec.action.stored_dtype)),
        rewards=torch.stack(rewards, 1),
        terminated=ends.terminated,
        num_steps=ends.num_steps,
    )


def random_actions(batch: TaskBatch, generator: torch.Generator) -> Tensor:
    """(E[, K]) actions drawn uniformly from the action space."""
    space, num_envs, device = batch.spec.action, len(batch.task_ids), batch.task_ids.device
    if isinstance(space, Box):
        draws = torch.rand((num_envs, space.width), generator=generator, device=device)
        return space.low + (space.high - space.low) * draws
    columns = [torch.randint(size, (num_envs,), generator=generator, device=device) for size in space.sizes]
    return columns[0] if batch.spec.action_shape == () else torch.stack(columns, 1)
