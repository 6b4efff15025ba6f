"""A GPT-style causal transformer over histories that run across episodes.

Source: Laskin et al. (2022), arXiv 2210.14215, section 4 and appendix; its preset is `causal_transformer_paper`.

    P(a_t | o_0, a_0, r_0, ..., a_{t-1}, r_{t-1}, o_t)

A step is either one token (observation, previous action and previous reward added up) or three (o_t, a_t, r_t in a
row, as in the paper). Ours adds the one-token form, relative positions, pre-norm and an embedding per observation
dimension; with one embedding per cell, cells that are goals of no training task stay nearly untrained. Images go
through convolutions without batch normalisation, smaller than the paper's.

Letters: B batch, T environment steps, S tokens, D numbers of an observation, K numbers of an action, W width, H heads.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distillery.core.protocols import SequenceModel
from distillery.core.records import Context
from distillery.core.specs import TaskSpec
from distillery.layers.actions import num_action_parameters
from distillery.layers.activation_checkpointing import through_blocks
from distillery.layers.attention import LayerCache, WindowAttention
from distillery.layers.blocks import NORMS, Block, check_fractions, check_sizes, hide_tokens, initialise
from distillery.layers.embeddings import IMAGE_CHANNELS, StepEmbedding


@dataclass
class TransformerCache:
    """What B lifetimes remember: rolling keys and values, or the last steps themselves with absolute positions."""

    layers: list[LayerCache]
    num_tokens: int = 0
    observations: list[Tensor] = field(default_factory=list)
    actions: list[Tensor] = field(default_factory=list)
    rewards: list[Tensor] = field(default_factory=list)


class CausalTransformer(SequenceModel):
    """See the module's text.

    Args:
        spec: spaces of observations and actions.
        context_length: the attention window c, in environment steps.
        width: W, the embedding dimension.
        num_layers: number of blocks.
        num_heads: attention heads per block.
        num_key_heads: heads of keys and values per block; must divide `num_heads`. None is as many.
        feedforward_width: hidden width of each block's feed-forward part.
        tokens_per_step: 1 or 3.
        positions: `rotary`, `alibi` or `absolute`; absolute positions are learned for one window only.
        rotary_fraction: part of each head that turns, with rotary positions.
        norm: `pre` or `post`.
        observation_embedding: `factored` or `joint`.
        dropout: of embeddings and residual branches.
        attention_dropout: of attention weights.
        token_mask_probability: chance that an observation, an action or a reward is replaced by a learned mask, while
            training.
        image_channels: of each convolution, where observations hold images.

    Raises:
        ValueError: a setting is out of range.
    """

    def __init__(
        self,
        spec: TaskSpec,
        *,
        context_length: int,
        width: int = 64,
        num_layers: int = 4,
        num_heads: int = 4,
        num_key_heads: int | None = None,
        feedforward_width: int = 256,
        tokens_per_step: int = 1,
        positions: str = "rotary",
        rotary_fraction: float = 0.5,
        norm: str = "pre",
        observation_embedding: str = "factored",
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        token_mask_probability: float = 0.0,
        image_channels: Sequence[int] = IMAGE_CHANNELS,
    ) -> None:
        super().__init__()
        if context_length < 1:
            raise ValueError(f"context_length must be at least 1 environment step, got {context_length}")
        check_sizes(width=width, num_layers=num_layers, num_heads=num_heads, feedforward_width=feedforward_width)
        check_sizes(num_key_heads=num_heads if num_key_heads is None else num_key_heads)
        check_fractions(rotary_fraction=rotary_fraction, token_mask_probability=token_mask_probability)
        if tokens_per_step not in (1, 3):
            raise ValueError(f"tokens_per_step must be 1 or 3, got {tokens_per_step}")
        if positions not in ("rotary", "alibi", "absolute"):
            raise ValueError(f"positions must be rotary, alibi or absolute, got {positions!r}")
        if norm not in NORMS:
            raise ValueError(f"norm must be pre or post, got {norm!r}")
        self.spec, self.context_length, self.tokens_per_step = spec, context_length, tokens_per_step
        self.width = width
        self.token_mask_probability = token_mask_probability
        window = context_length * tokens_per_step
        self.embedding = StepEmbedding(spec, width, observation_embedding, image_channels=image_channels)
        self.mask_vector = nn.Parameter(torch.zeros(width)) if token_mask_probability > 0 else None
        self.position_embedding = nn.Embedding(window, width) if positions == "absolute" else None
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            Block(
                WindowAttention(
                    width,
                    num_heads=num_heads,
                    num_key_heads=num_key_heads,
                    window=window,
                    positions="none" if positions == "absolute" else positions,
                    dropout=attention_dropout,
                    rotary_fraction=rotary_fraction,
                ),
                width,
                feedforward_width=feedforward_width,
                norm=norm,
                dropout=dropout,
            )
            for _ in range(num_layers)
        )
        self.final_norm = nn.LayerNorm(width) if norm == "pre" else nn.Identity()
        self.action_head = nn.Linear(width, num_action_parameters(spec.action))
        self.apply(initialise)

    def _embedded(self, observations: Tensor, actions: Tensor, rewards: Tensor) -> Tensor:
        """(B, S, W) what the first block reads."""
        hide = None
        if self.training and self.mask_vector is not None:
            hide = partial(hide_tokens, mask_vector=self.mask_vector, probability=self.token_mask_probability)
        x = self.embedding.tokens(observations, actions, rewards, per_step=self.tokens_per_step, hide=hide)
        if self.position_embedding is not None:
            if observations.shape[1] > self.context_length:
                raise ValueError(
                    f"absolute positions were trained for {self.context_length} steps and the sequence has "
                    f"{observations.shape[1]}; use sequences of context_length steps, or rotary or alibi"
                )
            x = x + self.position_embedding.weight[: x.shape[1]]
        return self.dropout(x)

    def encode(self, context: Context) -> Tensor:
        """See `SequenceModel.encode`.

        Raises:
            ValueError: with absolute positions, more steps than positions were trained for.
        """
        x = through_blocks(self.blocks, self._embedded(context.observations, context.actions, context.rewards))
        features: Tensor = self.final_norm(x[:, :: self.tokens_per_step])
        return features

    def _layers(self) -> list[tuple[Block, WindowAttention]]:
        """The blocks, each beside its attention."""
        blocks = [block for block in self.blocks if isinstance(block, Block)]
        return [(block, block.attention) for block in blocks if isinstance(block.attention, WindowAttention)]

    def new_cache(self, batch_size: int) -> TransformerCache:
        """See `SequenceModel.new_cache`."""
        if self.position_embedding is not None:
            return TransformerCache([])
        return TransformerCache([attention.new_cache(batch_size) for _, attention in self._layers()])

    def encode_step(
        self, observations: Tensor, previous: tuple[Tensor, Tensor] | None, cache: TransformerCache
    ) -> Tensor:
        """See `SequenceModel.encode_step`; with absolute positions the last c steps are computed afresh."""
        if self.position_embedding is not None:
            return self._encode_afresh(observations, previous, cache)
        tokens = self.embedding.next_tokens(observations, previous, per_step=self.tokens_per_step)
        x = tokens[-1]
        for token in tokens:
            x = token[:, None]
            for block, layer_cache in zip(self.blocks, cache.layers, strict=True):
                x = block(x, cache.num_tokens, layer_cache)
            cache.num_tokens += 1
        features: Tensor = self.final_norm(x[:, 0])
        return features

    def _encode_afresh(
        self, observations: Tensor, previous: tuple[Tensor, Tensor] | None, cache: TransformerCache
    ) -> Tensor:
        if previous is not None:
            cache.actions.append(previous[0])
            cache.rewards.append(previous[1])
        cache.observations.append(observations)
        for kept, room in (
            (cache.observations, self.context_length),
            (cache.actions, self.context_length - 1),
            (cache.rewards, self.context_length - 1),
        ):
            if len(kept) > room:
                kept.pop(0)
        nothing = observations.new_zeros((len(observations), 0, *self.spec.action_shape))
        actions = torch.stack(cache.actions, 1) if cache.actions else nothing.to(self.spec.action_dtype)
        rewards = (
            torch.stack(cache.rewards, 1) if cache.rewards else observations.new_zeros((len(observations), 0)).float()
        )
        return self.encode(Context(torch.stack(cache.observations, 1), actions, rewards))[:, -1]

    @torch.inference_mode()
    def attention_weights(self, context: Context, at_step: int) -> Tensor:
        """What every head attends to when it reads the action of one step of a lifetime.

        The one-token form's token of a step holds the action and the reward of the step before it.

        Args:
            context: a lifetime's steps from its beginning; those after `at_step` are not looked at.
            at_step: number of the step, from 0.

        Returns:
            (B, layers, H, `at_step` + 1) weights of the tokens of each step, added up; each head's sum to 1.

        Raises:
            ValueError: no such step.
        """
        if not 0 <= at_step < context.observations.shape[1]:
            raise ValueError(f"at_step must be from 0 to {context.observations.shape[1] - 1}, got {at_step}")
        # Nothing further back reaches this step, through as many layers as there are.
        absolute = self.position_embedding is not None
        reach = self.context_length if absolute else self.context_length * len(self.blocks) + 1
        first = max(0, at_step + 1 - reach)
        seen = slice(first, at_step + 1)
        x = self._embedded(context.observations[:, seen], context.actions[:, seen], context.rewards[:, seen])
        layers = []
        for block, attention in self._layers():
            layers.append(attention.weights(block.attended(x), x.shape[1] - 1))
            x = block(x)
        weights = torch.stack(layers, 1)  # (B, layers, H, S)
        weights = F.pad(weights, (first * self.tokens_per_step, -x.shape[1] % self.tokens_per_step))
        return weights.unflatten(-1, (-1, self.tokens_per_step)).sum(-1)
