"""A GPT-style causal transformer over histories that run across episodes.

Source: Laskin et al. (2022), arXiv 2210.14215, section 4 and appendix; its preset is `causal_transformer_paper`.

    P(a_t | o_0, a_0, r_0, ..., a_{t-1}, r_{t-1}, o_t)

A step is either one token (observation, previous action and previous reward added up) or three (o_t, a_t, r_t in a
row, as in the paper). Ours adds the one-token form, relative positions, pre-norm and an embedding per observation
dimension; with one embedding per cell, cells that are goals of no training task stay nearly untrained.

Letters: B batch, T environment steps, S tokens, D observation dimensions, W width, A actions.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distillery.core.protocols import SequenceModel
from distillery.core.records import Context
from distillery.core.specs import TaskSpec
from distillery.layers.attention import LayerCache, WindowAttention


class StepEmbedding(nn.Module):
    """Vectors of width W for observations, actions and rewards.

    Args:
        spec: sizes of observations and actions.
        width: W.
        observation: `factored` adds one embedding per observation dimension; `joint` has one per observation.
    """

    def __init__(self, spec: TaskSpec, width: int, observation: str) -> None:
        super().__init__()
        if observation not in ("factored", "joint"):
            raise ValueError(f"observation_embedding must be factored or joint, got {observation!r}")
        sizes = spec.observation_sizes
        if observation == "joint":
            sizes = (int(torch.tensor(sizes).prod()),)
        self.joint_sizes = spec.observation_sizes if observation == "joint" else None
        self.observation = nn.ModuleList(nn.Embedding(size, width) for size in sizes)
        self.action = nn.Embedding(spec.num_actions, width)
        self.reward = nn.Linear(1, width)

    def observations(self, observations: Tensor) -> Tensor:
        """(..., D) int64 to (..., W)."""
        if self.joint_sizes is not None:
            index = torch.zeros_like(observations[..., 0])
            for dimension, size in enumerate(self.joint_sizes):
                index = index * size + observations[..., dimension]
            return self.observation[0](index)
        embedded = self.observation[0](observations[..., 0])
        for dimension, table in enumerate(list(self.observation)[1:], start=1):
            embedded = embedded + table(observations[..., dimension])
        return embedded

    def actions(self, actions: Tensor) -> Tensor:
        """(...,) int64 to (..., W)."""
        return self.action(actions)

    def rewards(self, rewards: Tensor) -> Tensor:
        """(...,) float32 to (..., W)."""
        return self.reward(rewards.unsqueeze(-1).to(self.reward.weight.dtype))


class Block(nn.Module):
    """Attention and feed-forward, each with a residual path; normalised before (`pre`) or after (`post`)."""

    def __init__(self, attention: WindowAttention, width: int, feedforward_width: int, norm: str, dropout: float):
        super().__init__()
        self.attention = attention
        self.attention_norm, self.feedforward_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.feedforward_in = nn.Linear(width, feedforward_width)
        self.feedforward_out = nn.Linear(feedforward_width, width)
        self.dropout = nn.Dropout(dropout)
        self.pre_norm = norm == "pre"

    def _feedforward(self, x: Tensor) -> Tensor:
        return self.feedforward_out(F.gelu(self.feedforward_in(x), approximate="tanh"))

    def forward(self, x: Tensor, position: int | None = None, cache: LayerCache | None = None) -> Tensor:
        """(B, S, W) to (B, S, W); with a cache, the one token at `position`."""
        attended = self.attention_norm(x) if self.pre_norm else x
        if cache is None or position is None:
            attended = self.attention(attended)
        else:
            attended = self.attention.step(attended, position, cache)
        x = x + self.dropout(attended)
        if not self.pre_norm:
            x = self.attention_norm(x)
        x = x + self.dropout(self._feedforward(self.feedforward_norm(x) if self.pre_norm else x))
        return x if self.pre_norm else self.feedforward_norm(x)


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
        spec: sizes of observations and actions.
        context_length: the attention window c, in environment steps.
        width: W, the embedding dimension.
        num_layers: number of blocks.
        num_heads: attention heads per block.
        feedforward_width: hidden width of each block's feed-forward part.
        tokens_per_step: 1 or 3.
        positions: `rotary`, `alibi` or `absolute`; absolute positions are learned for one window only.
        rotary_fraction: part of each head that turns, with rotary positions.
        norm: `pre` or `post`.
        observation_embedding: `factored` or `joint`.
        dropout: of embeddings and residual branches.
        attention_dropout: of attention weights.
        token_mask_probability: chance that an input token is replaced by a learned mask, while training.

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
        feedforward_width: int = 256,
        tokens_per_step: int = 1,
        positions: str = "rotary",
        rotary_fraction: float = 0.5,
        norm: str = "pre",
        observation_embedding: str = "factored",
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        token_mask_probability: float = 0.0,
    ) -> None:
        super().__init__()
        if context_length < 1:
            raise ValueError(f"context_length must be at least 1 environment step, got {context_length}")
        sizes = {"width": width, "num_layers": num_layers, "num_heads": num_heads}
        for name, size in {**sizes, "feedforward_width": feedforward_width}.items():
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        for name, part in (("rotary_fraction", rotary_fraction), ("token_mask_probability", token_mask_probability)):
            if not 0.0 <= part <= 1.0:
                raise ValueError(f"{name} must be from 0 to 1, got {part}")
        if tokens_per_step not in (1, 3):
            raise ValueError(f"tokens_per_step must be 1 or 3, got {tokens_per_step}")
        if positions not in ("rotary", "alibi", "absolute"):
            raise ValueError(f"positions must be rotary, alibi or absolute, got {positions!r}")
        if norm not in ("pre", "post"):
            raise ValueError(f"norm must be pre or post, got {norm!r}")
        self.spec, self.context_length, self.tokens_per_step = spec, context_length, tokens_per_step
        self.token_mask_probability = token_mask_probability
        window = context_length * tokens_per_step
        self.embedding = StepEmbedding(spec, width, observation_embedding)
        self.mask_vector = nn.Parameter(torch.zeros(width)) if token_mask_probability > 0 else None
        self.position_embedding = nn.Embedding(window, width) if positions == "absolute" else None
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            Block(
                WindowAttention(
                    width,
                    num_heads=num_heads,
                    window=window,
                    positions="none" if positions == "absolute" else positions,
                    dropout=attention_dropout,
                    rotary_fraction=rotary_fraction,
                ),
                width,
                feedforward_width,
                norm,
                dropout,
            )
            for _ in range(num_layers)
        )
        self.final_norm = nn.LayerNorm(width) if norm == "pre" else nn.Identity()
        self.action_head = nn.Linear(width, spec.num_actions)
        self.apply(_initialise)

    def _tokens(self, observations: Tensor, actions: Tensor, rewards: Tensor) -> Tensor:
        """(B, S, W) tokens of T observations and the actions and rewards of (at least) the first T - 1 steps."""
        num_steps = observations.shape[1]
        seen = self.embedding.observations(observations)  # (B, T, W)
        acted = self.embedding.actions(actions[:, : num_steps - 1])  # (B, T - 1, W)
        rewarded = self.embedding.rewards(rewards[:, : num_steps - 1])
        if self.tokens_per_step == 1:
            return seen + F.pad(acted + rewarded, (0, 0, 1, 0))
        steps = torch.stack([seen[:, :-1], acted, rewarded], 2).flatten(1, 2)  # (B, 3 (T - 1), W)
        return torch.cat([steps, seen[:, -1:]], 1)

    def forward(self, context: Context) -> Tensor:
        """See `SequenceModel.forward`.

        Raises:
            ValueError: with absolute positions, more steps than positions were trained for.
        """
        x = self._tokens(context.observations, context.actions, context.rewards)
        if self.training and self.mask_vector is not None:
            hidden = torch.rand(x.shape[:2], device=x.device) < self.token_mask_probability
            x = torch.where(hidden[..., None], self.mask_vector.to(x.dtype), x)
        if self.position_embedding is not None:
            if context.observations.shape[1] > self.context_length:
                raise ValueError(
                    f"absolute positions were trained for {self.context_length} steps and the sequence has "
                    f"{context.observations.shape[1]}; use sequences of context_length steps, or rotary or alibi"
                )
            x = x + self.position_embedding.weight[: x.shape[1]]
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x)
        return self.action_head(self.final_norm(x[:, :: self.tokens_per_step]))

    def new_cache(self, batch_size: int) -> TransformerCache:
        """See `SequenceModel.new_cache`."""
        if self.position_embedding is not None:
            return TransformerCache([])
        blocks = [block for block in self.blocks if isinstance(block, Block)]
        return TransformerCache([block.attention.new_cache(batch_size) for block in blocks])

    def act(self, observations: Tensor, previous: tuple[Tensor, Tensor] | None, cache: TransformerCache) -> Tensor:
        """See `SequenceModel.act`; with absolute positions the last c steps are computed afresh."""
        if self.position_embedding is not None:
            return self._act_afresh(observations, previous, cache)
        seen = self.embedding.observations(observations)  # (B, W)
        tokens = [seen]
        if previous is not None:
            acted, rewarded = self.embedding.actions(previous[0]), self.embedding.rewards(previous[1])
            tokens = [seen + (acted + rewarded)] if self.tokens_per_step == 1 else [acted, rewarded, seen]
        x = seen
        for token in tokens:
            x = token[:, None]
            for block, layer_cache in zip(self.blocks, cache.layers, strict=True):
                x = block(x, cache.num_tokens, layer_cache)
            cache.num_tokens += 1
        return self.action_head(self.final_norm(x[:, 0]))

    def _act_afresh(
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
        no_steps = observations.new_zeros((len(observations), 0))
        actions = torch.stack(cache.actions, 1) if cache.actions else no_steps
        rewards = torch.stack(cache.rewards, 1) if cache.rewards else no_steps.float()
        return self.forward(Context(torch.stack(cache.observations, 1), actions, rewards))[:, -1]


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=module.in_features**-0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.5)
