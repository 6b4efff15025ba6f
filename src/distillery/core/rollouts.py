"""Episodes played in lock-step by learners that read states instead of observations.

Letters: E environments, T environment steps, D observation dimensions.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from distillery.core.protocols import TaskBatch
from distillery.core.records import EpisodeBatch

Choose = Callable[[int, Tensor], Tensor]
Learn = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None], None]


def play_tabular_episode(batch: TaskBatch, choose: Choose, learn: Learn | None) -> EpisodeBatch:
    """One episode of E learners that read states instead of observations.

    Args:
        batch: E environments.
        choose: ``(step, states) -> actions``, both (E,) int64.
        learn: ``(states, actions, rewards, next_states, terminated, alive)``, or None for a frozen policy. `alive`,
            (E,) bool, says whose episode had not ended before this step; None says everybody's.
    """
    batch.reset()
    states, actions, rewards = [], [], []
    num_steps = torch.full_like(batch.task_ids, batch.spec.episode_steps)
    terminated_ever = torch.zeros_like(batch.task_ids, dtype=torch.bool)
    alive = torch.ones_like(terminated_ever) if batch.can_terminate else None
    for step in range(batch.spec.episode_steps):
        state = batch.state
        action = choose(step, state)
        reward, terminated, _ = batch.advance(action)
        if learn is not None:
            learn(state, action, reward, batch.state, terminated, alive)
        states.append(state)
        actions.append(action)
        rewards.append(reward)
        if alive is not None:
            now = terminated & alive
            num_steps = torch.where(now, step + 1, num_steps)
            terminated_ever |= now
            alive = alive & ~terminated
    observations = batch.observe(torch.stack(states, 1))  # (E, T, D)
    return EpisodeBatch(
        observations=observations.to(torch.uint8),
        actions=torch.stack(actions, 1).to(torch.uint8),
        rewards=torch.stack(rewards, 1),
        terminated=terminated_ever,
        num_steps=num_steps,
    )
