"""A transformer in linear time, whose context has no end: gated delta networks over histories across episodes.

Source: Laskin et al. (2022), arXiv 2210.14215, names the need for sequence models over longer horizons (section 6);
the layer is that of Yang et al., Gated Delta Networks (2024), arXiv 2412.06464, see
`distillery.layers.linear_attention`.

    P(a_t | o_0, a_0, r_0, ..., a_{t-1}, r_{t-1}, o_t)

Everything else is as in `distillery.models.causal_transformer`, whose tokens, blocks and settings it shares, so that
the two can be compared. A lifetime is remembered in a state of constant size that is never cut: `context_length` is
nominal. A step costs the same at any age.

Letters: B batch, T environment steps, S tokens, W width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from distillery.core.protocols import SequenceModel
from distillery.core.records import Context
from distillery.core.specs import TaskSpec
from distillery.layers.actions import num_action_parameters
from distillery.layers.activation_checkpointing import through_blocks
from distillery.layers.blocks import Block, check_fractions, check_sizes, hide_tokens, initialise
from distillery.layers.embeddings import IMAGE_CHANNELS, StepEmbedding
from distillery.layers.linear_attention import DeltaCache, GatedDeltaAttention


@dataclass
class LinearCache:
    """What B lifetimes remember: a state a layer.

    Attributes:
        layers: their states, changed in place.
        num_tokens: that were taken in.
    """

    layers: list[DeltaCache]
    num_tokens: int = 0


class LinearTransformer(SequenceModel):
    """See the module's text.

    Args:
        spec: spaces of observations and actions.
        context_length: nominal, in environment steps; the model itself sees everything since its cache was new.
        width: W, the embedding dimension.
        num_layers: number of blocks.
        num_heads: heads per block; a head's state has (W / heads) x (W / heads) numbers.
        feedforward_width: hidden width of each block's feed-forward part.
        tokens_per_step: 1 or 3.
        observation_embedding: `factored` or `joint`.
        dropout: of embeddings and residual branches.
        token_mask_probability: chance that an observation, an action or a reward is replaced by a learned mask, while
            training.
        image_channels: of each convolution, where observations hold images.

    Raises:
        ValueError: a setting is out of range.
    """

    has_window = False

    def __init__(
        self,
        spec: TaskSpec,
        *,
        context_length: int,
        width: int = 64,
        num_layers: int = 4,
        num_heads: int = 4,
        feedforward_width: int = 256,
        tokens_per_step: int = 1,
        observation_embedding: str = "factored",
        dropout: float = 0.0,
        token_mask_probability: float = 0.0,
        image_channels: Sequence[int] = IMAGE_CHANNELS,
    ) -> None:
        super().__init__()
        if context_length < 1:
            raise ValueError(f"context_length must be at least 1 environment step, got {context_length}")
        check_sizes(width=width, num_layers=num_layers, num_heads=num_heads, feedforward_width=feedforward_width)
        check_fractions(dropout=dropout, token_mask_probability=token_mask_probability)
        if tokens_per_step not in (1, 3):
            raise ValueError(f"tokens_per_step must be 1 or 3, got {tokens_per_step}")
        self.spec, self.context_length, self.tokens_per_step = spec, context_length, tokens_per_step
        self.width, self.token_mask_probability = width, token_mask_probability
        self.embedding = StepEmbedding(spec, width, observation_embedding, image_channels=image_channels)
        self.mask_vector = nn.Parameter(torch.zeros(width)) if token_mask_probability > 0 else None
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            Block(
                GatedDeltaAttention(width, num_heads=num_heads),
                width,
                feedforward_width=feedforward_width,
                dropout=dropout,
            )
            for _ in range(num_layers)
        )
        self.final_norm = nn.LayerNorm(width)
        self.action_head = nn.Linear(width, num_action_parameters(spec.action))
        self.apply(initialise)

    def encode(self, context: Context) -> Tensor:
        """See `SequenceModel.encode`."""
        hide = None
        if self.training and self.mask_vector is not None:
            hide = partial(hide_tokens, mask_vector=self.mask_vector, probability=self.token_mask_probability)
        x = self.embedding.tokens(
            context.observations, context.actions, context.rewards, per_step=self.tokens_per_step, hide=hide
        )
        x = through_blocks(self.blocks, self.dropout(x))
        features: Tensor = self.final_norm(x[:, :: self.tokens_per_step])
        return features

    def new_cache(self, batch_size: int) -> LinearCache:
        """See `SequenceModel.new_cache`."""
        attentions = [block.attention for block in self.blocks if isinstance(block, Block)]
        return LinearCache([a.new_cache(batch_size) for a in attentions if isinstance(a, GatedDeltaAttention)])

    def encode_step(self, observations: Tensor, previous: tuple[Tensor, Tensor] | None, cache: LinearCache) -> Tensor:
        """See `SequenceModel.encode_step`."""
        tokens = self.embedding.next_tokens(observations, previous, per_step=self.tokens_per_step)
        x = tokens[-1]
        for token in tokens:
            x = token[:, None]
            for block, layer_cache in zip(self.blocks, cache.layers, strict=True):
                x = block(x, cache.num_tokens, layer_cache)
            cache.num_tokens += 1
        features: Tensor = self.final_norm(x[:, 0])
        return features
