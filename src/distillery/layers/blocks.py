"""Blocks of a sequence model: something that mixes steps, then a feed-forward part, each with a residual path.

Letters: B batch, S tokens, W width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distillery.layers.attention import WindowAttention
from distillery.layers.linear_attention import GatedDeltaAttention
from distillery.layers.precision import Linear

NORMS = ("pre", "post")


class Block(nn.Module):
    """Attention and feed-forward, each with a residual path; normalised before (`pre`) or after (`post`).

    Args:
        attention: what mixes the tokens.
        width: W.
        feedforward_width: hidden width of the feed-forward part.
        norm: one of `NORMS`.
        dropout: of both residual branches.
    """

    def __init__(
        self,
        attention: WindowAttention | GatedDeltaAttention,
        width: int,
        *,
        feedforward_width: int,
        norm: str = "pre",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.attention = attention
        self.attention_norm, self.feedforward_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.feedforward_in = Linear(width, feedforward_width, rounded=True)
        self.feedforward_out = Linear(feedforward_width, width)
        self.dropout = nn.Dropout(dropout)
        self.pre_norm = norm == "pre"

    def _feedforward(self, x: Tensor) -> Tensor:
        # Exact: on CPUs its approximation by tanh takes longer.
        return self.feedforward_out(F.gelu(self.feedforward_in(x)))

    def attended(self, x: Tensor) -> Tensor:
        """What the attention reads, (B, S, W)."""
        return self.attention_norm(x) if self.pre_norm else x

    def forward(self, x: Tensor, position: int | None = None, cache: Any = None) -> Tensor:
        """(B, S, W) to (B, S, W); with a cache, the one token at `position`."""
        attended = self.attended(x)
        if cache is None or position is None:
            attended = self.attention(attended)
        else:
            attended = self.attention.step(attended, position, cache)
        x = x + self.dropout(attended)
        if not self.pre_norm:
            x = self.attention_norm(x)
        x = x + self.dropout(self._feedforward(self.feedforward_norm(x) if self.pre_norm else x))
        return x if self.pre_norm else self.feedforward_norm(x)


def hide_tokens(x: Tensor, mask_vector: Tensor, probability: float) -> Tensor:
    """(B, S, W) with each vector replaced by the (W,) mask vector with the given probability."""
    hidden = torch.rand(x.shape[:2], device=x.device) < probability
    return torch.where(hidden[..., None], mask_vector.to(x.dtype), x)


def check_sizes(**sizes: int) -> None:
    """Refuses sizes below 1.

    Raises:
        ValueError: naming the setting.
    """
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")


def check_fractions(**fractions: float) -> None:
    """Refuses what is not from 0 to 1.

    Raises:
        ValueError: naming the setting.
    """
    for name, fraction in fractions.items():
        if not 0.0 <= fraction <= 1.0:
            raise ValueError(f"{name} must be from 0 to 1, got {fraction}")


def initialise(module: nn.Module) -> None:
    """Fresh weights of linear maps, convolutions and tables; for `nn.Module.apply`."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=module.weight[0].numel() ** -0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.5)
