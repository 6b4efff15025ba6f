"""What a model attends to when it acts: its attention weights over the steps of a lifetime, and what they dwell on.

Source: Laskin et al. (2022), arXiv 2210.14215, appendix, attention maps of Key-to-Door at steps 200 and 1900, in which
attention reaches back over several earlier episodes, notably to restarts and rewards. Its maps are pictures; ours are
also summed up in numbers, as multiples of what even attention would give.

Letters: L lifetimes, T environment steps, H heads, D numbers of an observation, K numbers of an action.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from distillery.core.protocols import SequenceModel, TaskDistribution
from distillery.core.records import Context
from distillery.core.seeding import stream_seed, torch_generator
from distillery.evaluation.in_context import chooser, live


@runtime_checkable
class Attentive(Protocol):
    """A model that can tell what it attends to.

    Attributes:
        tokens_per_step: 1 where a step's token holds the action and reward of the step before it, 3 where each has
            a token in its own step.
    """

    tokens_per_step: int

    def attention_weights(self, context: Context, at_step: int) -> Tensor:
        """(L, layers, H, `at_step` + 1) weights of each step, when the action of one step is read."""


@dataclass(frozen=True)
class LifetimeSteps:
    """The first T steps of L lifetimes, episodes end to end.

    Attributes:
        observations: (L, T, D), seen before the action.
        actions: (L, T[, K]).
        rewards: (L, T) float32, given after the action.
        episode_starts: (L, T) bool, whether the step is an episode's first.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    episode_starts: Tensor


@dataclass(frozen=True)
class AttentionMap:
    """Attention of L lifetimes at one step t over all steps up to it.

    Attributes:
        at_step: t, from 0.
        weights: (L, layers, H, t + 1) float32; each head's sum to 1.
        episode_starts: (L, t + 1) bool, steps whose tokens hold the first observation of an episode.
        rewarded: (L, t + 1) bool, steps whose tokens hold a reward that is not 0.
    """

    at_step: int
    weights: np.ndarray
    episode_starts: np.ndarray
    rewarded: np.ndarray


def record_steps(
    model: SequenceModel,
    tasks: TaskDistribution,
    task_ids: np.ndarray,
    *,
    num_steps: int,
    seed: int,
    greedy: bool = False,
    device: torch.device | str = "cpu",
) -> LifetimeSteps:
    """Lets the model live T steps on each task, from an empty context on, weights frozen.

    Raises:
        ValueError: less than one step.
    """
    if num_steps < 1:
        raise ValueError(f"attention maps need at least 1 step, got num_steps={num_steps}")
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        batch = tasks.batch(np.asarray(task_ids), seed=stream_seed(seed, "attention maps"), device=device)
        generator = torch_generator(seed, "attention maps", "actions", device=device)
        lifetimes = live(model, batch, chooser(tasks.spec, greedy=greedy, generator=generator))
        steps = [step for _, step in zip(range(num_steps), lifetimes, strict=False)]
    model.train(was_training)
    observations, actions, rewards, ended = (
        torch.stack([getattr(step, name) for step in steps], 1)
        for name in ("observations", "actions", "rewards", "ended")
    )
    starts = torch.cat([torch.ones_like(ended[:, :1]), ended[:, :-1]], 1)
    return LifetimeSteps(observations, actions, rewards, starts)


def attention_map(model: SequenceModel, steps: LifetimeSteps, at_step: int) -> AttentionMap:
    """What every head attends to when the action of one step is read.

    Raises:
        ValueError: the model has no attention weights, or there is no such step.
    """
    if not isinstance(model, Attentive):
        raise ValueError(f"{type(model).__name__} has no attention weights to map; choose a causal transformer")
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        context = Context(steps.observations, steps.actions, steps.rewards)
        weights = model.attention_weights(context, at_step).float()
    model.train(was_training)
    seen = slice(0, at_step + 1)
    rewarded = steps.rewards[:, seen] != 0
    if model.tokens_per_step == 1:
        rewarded = torch.cat([torch.zeros_like(rewarded[:, :1]), rewarded[:, :-1]], 1)
    else:
        rewarded = rewarded & (torch.arange(at_step + 1, device=rewarded.device) < at_step)
    arrays = (weights, steps.episode_starts[:, seen], rewarded)
    return AttentionMap(at_step, *(array.cpu().numpy() for array in arrays))


def summarise_attention(attention: AttentionMap) -> dict[str, float | None]:
    """Numbers of one map, each a mean over lifetimes, layers and heads.

    Returns:
        `beyond_episode`: attention that goes to steps before the current episode's first;
        `beyond_previous_episode`: before the first of the one before it; `beyond_episode_uniform`:
        the same, were attention even over all steps in the window. `rewards_to_uniform` and `starts_to_uniform`: of
        the attention to steps before the current one, what goes to rewards (to first steps of episodes), as a multiple
        of what would if it were even; None where no lifetime has any in its window.
    """
    weights = attention.weights.astype(np.float64)
    visible = weights.sum((1, 2)) > 0  # (L, T)
    steps = np.arange(attention.at_step + 1)
    current = np.where(attention.episode_starts, steps, 0).max(1)  # (L,) first step of the current episode
    beyond = steps < current[:, None]
    previous = np.where(attention.episode_starts & beyond, steps, 0).max(1)  # (L,) first step of the one before it
    before_previous = steps < previous[:, None]
    earlier = visible & (steps < attention.at_step)
    return {
        "beyond_episode": float((weights * beyond[:, None, None]).sum(-1).mean()),
        "beyond_previous_episode": float((weights * before_previous[:, None, None]).sum(-1).mean()),
        "beyond_episode_uniform": float(((beyond & visible).sum(1) / visible.sum(1)).mean()),
        "rewards_to_uniform": _to_uniform(weights, attention.rewarded & earlier, earlier),
        "starts_to_uniform": _to_uniform(weights, attention.episode_starts & earlier, earlier),
    }


def _to_uniform(weights: np.ndarray, chosen: np.ndarray, among: np.ndarray) -> float | None:
    """Weight on chosen steps over what they would have if weights were even among some; masks are (L, T)."""
    some = chosen.any(1)
    if not some.any():
        return None
    weights, chosen, among = weights[some], chosen[some], among[some]
    on_chosen = (weights * chosen[:, None, None]).sum(-1) / (weights * among[:, None, None]).sum(-1)
    even = chosen.sum(1) / among.sum(1)
    return float((on_chosen / even[:, None, None]).mean())
