"""Observations, actions and rewards of any space as vectors of one width.

An observation's parts are embedded each by its kind, and added up: whole numbers by tables, vectors of numbers by a
linear map, images (height, width, channels) by a small strided convolutional network. Numbers between finite bounds
are scaled to [-1, 1] first.

Letters: B batch, T environment steps, S tokens, D numbers of an observation, K numbers of an action, W width; ``...``
any leading dimensions.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distillery.core.specs import Box, Discrete, Space, TaskSpec
from distillery.layers.actions import ActionEmbedding

OBSERVATION_EMBEDDINGS = ("factored", "joint")
IMAGE_CHANNELS = (16, 32, 32)
IMAGE_RANK = 3


class DiscreteEmbedding(nn.Module):
    """Whole numbers as vectors.

    Args:
        space: of the numbers.
        width: W.
        joint: one table over all combinations, instead of one table for each number, added up.
    """

    def __init__(self, space: Discrete, width: int, *, joint: bool) -> None:
        super().__init__()
        self.joint_sizes = space.sizes if joint else None
        sizes = (math.prod(space.sizes),) if joint else space.sizes
        self.tables = nn.ModuleList(nn.Embedding(size, width) for size in sizes)

    def forward(self, numbers: Tensor) -> Tensor:
        """(..., D) to (..., W)."""
        numbers = numbers.long()
        if self.joint_sizes is not None:
            index = torch.zeros_like(numbers[..., 0])
            for dimension, size in enumerate(self.joint_sizes):
                index = index * size + numbers[..., dimension]
            numbers = index[..., None]
        embedded = self.tables[0](numbers[..., 0])
        for dimension, table in enumerate(list(self.tables)[1:], start=1):
            embedded = embedded + table(numbers[..., dimension])
        return embedded


def scaled_to_unit(space: Box, numbers: Tensor, dtype: torch.dtype) -> Tensor:
    """Numbers between finite bounds to [-1, 1]; others as they are."""
    numbers = numbers.to(dtype)
    if not (math.isfinite(space.low) and math.isfinite(space.high)):
        return numbers
    factor = 2.0 / (space.high - space.low)
    return numbers * factor - (1.0 + space.low * factor)


class VectorEmbedding(nn.Module):
    """A linear map of the numbers of a box, whatever its shape.

    Args:
        space: of the numbers.
        width: W.
    """

    def __init__(self, space: Box, width: int) -> None:
        super().__init__()
        self.space = space
        self.projection = nn.Linear(space.width, width)

    def forward(self, numbers: Tensor) -> Tensor:
        """(..., D) to (..., W)."""
        embedded: Tensor = self.projection(scaled_to_unit(self.space, numbers, self.projection.weight.dtype))
        return embedded


class ImageEmbedding(nn.Module):
    """Convolutions of kernel 3 and stride 2, each halving the image, then a linear map of what is left.

    Each image is seen alone: nothing is normalised over a batch, so that one step at a time gives what one pass gives.

    Args:
        space: of shape (height, width, channels).
        width: W.
        channels: of each convolution.

    Raises:
        ValueError: no channels, or less than one.
    """

    def __init__(self, space: Box, width: int, channels: Sequence[int] = IMAGE_CHANNELS) -> None:
        super().__init__()
        if not channels or min(channels) < 1:
            raise ValueError(f"image_channels must be one or more numbers from 1, got {list(channels)}")
        self.space = space
        height, breadth, planes = space.shape
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=2, padding=1)
            for before, after in zip([planes, *channels], channels, strict=False)
        )
        for _ in channels:
            height, breadth = (height + 1) // 2, (breadth + 1) // 2
        self.projection = nn.Linear(height * breadth * channels[-1], width)

    def forward(self, numbers: Tensor) -> Tensor:
        """(..., D) to (..., W)."""
        leading = numbers.shape[:-1]
        x = scaled_to_unit(self.space, numbers.reshape(-1, *self.space.shape), self.projection.weight.dtype)
        x = x.permute(0, 3, 1, 2)  # (N, C, H, W), channels last in memory as images come
        for convolution in self.convolutions:
            x = F.gelu(convolution(x))
        embedded: Tensor = self.projection(x.permute(0, 2, 3, 1).flatten(1))
        return embedded.view(*leading, self.projection.out_features)


def part_embedding(space: Space, width: int, observation: str, image_channels: Sequence[int]) -> nn.Module:
    """The embedding of one part of an observation."""
    if isinstance(space, Discrete):
        return DiscreteEmbedding(space, width, joint=observation == "joint")
    if len(space.shape) == IMAGE_RANK:
        return ImageEmbedding(space, width, image_channels)
    return VectorEmbedding(space, width)


class StepEmbedding(nn.Module):
    """Vectors of width W for observations, actions and rewards, and the tokens they make.

    A step is either one token (observation, previous action and previous reward added up) or three (o_t, a_t, r_t in
    a row).

    Args:
        spec: spaces of observations and actions.
        width: W.
        observation: of whole numbers: `factored` adds one embedding for each, `joint` has one for each combination of
            the numbers of a part.
        image_channels: of each convolution, for parts that are images.

    Raises:
        ValueError: a setting is out of range.
    """

    def __init__(
        self,
        spec: TaskSpec,
        width: int,
        observation: str = "factored",
        *,
        image_channels: Sequence[int] = IMAGE_CHANNELS,
    ) -> None:
        super().__init__()
        if observation not in OBSERVATION_EMBEDDINGS:
            raise ValueError(f"observation_embedding must be factored or joint, got {observation!r}")
        self.stretches = list(spec.stretches().values())
        self.observation = nn.ModuleList(
            part_embedding(space, width, observation, image_channels) for space in spec.observation.values()
        )
        self.action = ActionEmbedding(spec.action, width)
        self.reward = nn.Linear(1, width)

    def observations(self, observations: Tensor) -> Tensor:
        """(..., D) of `TaskSpec.observation_dtype` to (..., W)."""
        embedded: Tensor | None = None
        for part, stretch in zip(self.observation, self.stretches, strict=True):
            one = part(observations[..., stretch])
            embedded = one if embedded is None else embedded + one
        assert embedded is not None  # a spec has at least one part
        return embedded

    def actions(self, actions: Tensor) -> Tensor:
        """(...[, K]) of `TaskSpec.action_dtype` to (..., W)."""
        embedded: Tensor = self.action(actions)
        return embedded

    def rewards(self, rewards: Tensor) -> Tensor:
        """(...,) float32 to (..., W)."""
        embedded: Tensor = self.reward(rewards.unsqueeze(-1).to(self.reward.weight.dtype))
        return embedded

    def tokens(
        self,
        observations: Tensor,
        actions: Tensor,
        rewards: Tensor,
        *,
        per_step: int,
        hide: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """(B, S, W) tokens of T observations and the actions and rewards of (at least) the first T - 1 steps.

        Args:
            observations: (B, T, D).
            actions: (B, T - 1[, K]) or more.
            rewards: (B, T - 1) or more.
            per_step: 1 gives T tokens; 3 gives 3 T - 2, the last being the last observation.
            hide: applied to the vectors of observations, of actions and of rewards, each (B, ..., W), so that a part
                of a step can be hidden while the others are seen, however many tokens they make.
        """
        num_steps = observations.shape[1]
        seen = self.observations(observations)  # (B, T, W)
        acted = self.actions(actions[:, : num_steps - 1])  # (B, T - 1, W)
        rewarded = self.rewards(rewards[:, : num_steps - 1])
        if hide is not None:
            seen, acted, rewarded = hide(seen), hide(acted), hide(rewarded)
        if per_step == 1:
            return seen + F.pad(acted + rewarded, (0, 0, 1, 0))
        steps = torch.stack([seen[:, :-1], acted, rewarded], 2).flatten(1, 2)  # (B, 3 (T - 1), W)
        return torch.cat([steps, seen[:, -1:]], 1)

    def next_tokens(
        self, observations: Tensor, previous: tuple[Tensor, Tensor] | None, *, per_step: int
    ) -> list[Tensor]:
        """The tokens, each (B, W), that a step adds to those before it; the last is where its action is read.

        Args:
            observations: (B, D), the current ones.
            previous: actions, (B[, K]), and rewards, (B,), of the step before; None at the first.
            per_step: see `tokens`.
        """
        seen = self.observations(observations)
        if previous is None:
            return [seen]
        acted, rewarded = self.actions(previous[0]), self.rewards(previous[1])
        return [seen + (acted + rewarded)] if per_step == 1 else [acted, rewarded, seen]
