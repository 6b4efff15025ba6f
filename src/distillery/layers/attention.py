"""Causal self-attention over a sliding window, in one pass over a sequence or one token at a time from a cache.

Positions enter in one of three ways: `rotary` turns queries and keys (Su et al., RoFormer, 2021, arXiv 2104.09864),
`alibi` lowers scores with distance (Press et al., Train Short, Test Long, 2021, arXiv 2108.12409), and `none` leaves
them to the caller (absolute embeddings). The first two depend on distances alone, so a cache may roll for ever.

Letters: B batch, S tokens, W window in tokens, H heads, K head width, D width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distillery.layers.precision import Linear

POSITIONS = ("rotary", "alibi", "none")
QUERY_BLOCK = 64


def banded_mask(num_tokens: int, window: int, device: torch.device | str = "cpu") -> Tensor:
    """(S, S) bool: each token sees itself and the ``window - 1`` tokens before it."""
    ones = torch.ones(num_tokens, num_tokens, dtype=torch.bool, device=device)
    return ones.tril().triu(1 - window)


def alibi_slopes(num_heads: int) -> Tensor:
    """(H,) slopes ``2^(-8 h / H)``, h from 1 to H (Press et al., section 3)."""
    return 2.0 ** (-8.0 * torch.arange(1, num_heads + 1) / num_heads)


class Rotary(nn.Module):
    """Turns pairs of a head's neighbouring channels by angles that grow with the token's position.

    Args:
        head_width: K; must be even.
        fraction: part of the pairs that turn; the others match on content alone, at any distance.
        base: the slowest pair turns about once in ``2 pi base`` tokens.
    """

    def __init__(self, head_width: int, *, fraction: float, base: float = 1000.0) -> None:
        super().__init__()
        if head_width % 2:
            raise ValueError(f"rotary positions need an even head width, got {head_width}")
        num_pairs = head_width // 2
        num_turning = round(num_pairs * fraction)
        frequencies = torch.zeros(num_pairs)
        frequencies[:num_turning] = base ** (-torch.arange(num_turning) / max(num_turning, 1))
        self.frequencies: Tensor
        self.register_buffer("frequencies", frequencies, persistent=False)

    def turns(self, positions: Tensor) -> Tensor:
        """(S, K / 2) angles."""
        return positions[:, None].to(torch.float32) * self.frequencies

    @staticmethod
    def turn(heads: Tensor, angles: Tensor) -> Tensor:
        """Turns channels 2i and 2i + 1 of (B, S, ..., K) by a token's i-th angle of (S, K / 2), in float32."""
        angles = angles.view(len(angles), *(1,) * (heads.ndim - 3), -1)
        pairs = heads.float().unflatten(-1, (-1, 2))
        if not torch.compiler.is_compiling():
            # One pass over the numbers instead of six; compilers fuse those, and cannot read complex numbers.
            turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.polar(torch.ones_like(angles), angles))
        else:
            turned = turned_pairs(pairs, angles)
        return turned.flatten(-2).to(heads.dtype)


def turned_pairs(pairs: Tensor, angles: Tensor) -> Tensor:
    """Each pair (..., 2) turned by its angle, (...)."""
    cosines, sines = angles.cos(), angles.sin()
    first, second = pairs.unbind(-1)
    return torch.stack([first * cosines - second * sines, first * sines + second * cosines], -1)


def window_attention(queries: Tensor, keys: Tensor, values: Tensor, *, window: int, dropout: float = 0.0) -> Tensor:
    """What every query reads of its window, in one call: the plain form. All are (B, H, S, K)."""
    num_tokens = queries.shape[2]
    mask = banded_mask(num_tokens, window, queries.device) if num_tokens > window else None
    return F.scaled_dot_product_attention(
        queries, keys, values, attn_mask=mask, is_causal=mask is None, dropout_p=dropout
    )


def blockwise_window_attention(
    queries: Tensor, keys: Tensor, values: Tensor, *, window: int, dropout: float = 0.0
) -> Tensor:
    """The same, a block of queries at a time with the keys that any of them may see: the others cost nothing.

    All are (B, H, S, K). For CPUs, whose kernel computes what a mask then hides.
    """
    num_tokens = queries.shape[2]
    tokens = torch.arange(num_tokens, device=queries.device)
    parts = []
    for begin in range(0, num_tokens, QUERY_BLOCK):
        end, first = min(begin + QUERY_BLOCK, num_tokens), max(0, begin - window + 1)
        ages = tokens[begin:end, None] - tokens[first:end]
        parts.append(
            F.scaled_dot_product_attention(
                queries[:, :, begin:end],
                keys[:, :, first:end],
                values[:, :, first:end],
                attn_mask=(ages >= 0) & (ages < window),
                dropout_p=dropout,
            )
        )
    return torch.cat(parts, 2)


class LayerCache:
    """The keys and values of the last W tokens of one layer, as a ring: token p lies in slot ``p % W``."""

    def __init__(self, batch_size: int, num_heads: int, window: int, head_width: int, like: Tensor) -> None:
        shape = (batch_size, num_heads, window, head_width)
        self.keys = torch.zeros(shape, dtype=like.dtype, device=like.device)
        self.values = torch.zeros_like(self.keys)

    def push(self, position: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Stores one token, (B, H, 1, K), and returns what is filled so far, (B, H, min(p + 1, W), K)."""
        window = self.keys.shape[2]
        slot = position % window
        self.keys[:, :, slot] = keys[:, :, 0]
        self.values[:, :, slot] = values[:, :, 0]
        filled = min(position + 1, window)
        return self.keys[:, :, :filled], self.values[:, :, :filled]


class WindowAttention(nn.Module):
    """Multi-head causal self-attention that sees W tokens, its own included.

    Args:
        width: D.
        num_heads: H; must divide D.
        window: W, in tokens.
        positions: one of `POSITIONS`.
        dropout: of the attention weights, while training.
        rotary_fraction: part of each head that turns, with rotary positions.
    """

    def __init__(
        self,
        width: int,
        *,
        num_heads: int,
        window: int,
        positions: str,
        dropout: float = 0.0,
        rotary_fraction: float = 0.5,
    ) -> None:
        super().__init__()
        if positions not in POSITIONS:
            raise ValueError(f"attention positions must be one of {', '.join(POSITIONS)}, got {positions!r}")
        if width % num_heads:
            raise ValueError(f"num_heads must divide the width: {width} / {num_heads} is not whole")
        if not 0.0 <= dropout <= 1.0:
            raise ValueError(f"attention dropout must be from 0 to 1, got {dropout}")
        self.num_heads, self.window, self.dropout = num_heads, window, dropout
        self.head_width = width // num_heads
        self.in_projection = Linear(width, 3 * width)
        self.out_projection = Linear(width, width)
        self.rotary = Rotary(self.head_width, fraction=rotary_fraction) if positions == "rotary" else None
        slopes = alibi_slopes(num_heads) if positions == "alibi" else None
        self.slopes: Tensor | None
        self.register_buffer("slopes", slopes, persistent=False)

    def _heads(self, x: Tensor, first: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (B, H, S, K), of the tokens from position `first` on."""
        batch_size, num_tokens, _ = x.shape
        heads = self.in_projection(x).view(batch_size, num_tokens, 3, self.num_heads, self.head_width)
        both, values = heads[:, :, :2], heads[:, :, 2]
        if self.rotary is not None:
            positions = torch.arange(first, first + num_tokens, device=x.device)
            both = self.rotary.turn(both, self.rotary.turns(positions))
        queries, keys = both.permute(2, 0, 3, 1, 4)
        return queries, keys, values.transpose(1, 2)

    def _join(self, heads: Tensor) -> Tensor:
        return self.out_projection(heads.transpose(1, 2).flatten(2))  # (B, S, D)

    def forward(self, x: Tensor) -> Tensor:
        """(B, S, D) to (B, S, D), every token seeing its window."""
        queries, keys, values = self._heads(x)
        dropout = self.dropout if self.training else 0.0
        if self.slopes is None:
            in_blocks = x.device.type == "cpu" and x.shape[1] > 2 * QUERY_BLOCK
            attend = blockwise_window_attention if in_blocks else window_attention
            return self._join(attend(queries, keys, values, window=self.window, dropout=dropout))
        steps = torch.arange(x.shape[1], device=x.device)
        bias = -self.slopes[:, None, None] * (steps[:, None] - steps)  # (H, S, S)
        bias = bias.to(x.dtype).masked_fill(~banded_mask(x.shape[1], self.window, x.device), float("-inf"))
        return self._join(F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias, dropout_p=dropout))

    def weights(self, x: Tensor, position: int) -> Tensor:
        """(B, H, S) what the token at `position` of (B, S, D) attends to: the softmax that `forward` applies there."""
        queries, keys, _ = self._heads(x)
        scores = (queries[:, :, position, None] @ keys.transpose(-1, -2))[:, :, 0] * self.head_width**-0.5
        ages = position - torch.arange(x.shape[1], device=x.device)
        if self.slopes is not None:
            scores = scores - (self.slopes[:, None] * ages).to(scores.dtype)
        return scores.masked_fill((ages < 0) | (ages >= self.window), float("-inf")).softmax(-1)

    def new_cache(self, batch_size: int) -> LayerCache:
        """An empty cache for B sequences."""
        return LayerCache(batch_size, self.num_heads, self.window, self.head_width, self.in_projection.weight)

    def step(self, x: Tensor, position: int, cache: LayerCache) -> Tensor:
        """The next token alone, (B, 1, D); equals the same token of `forward` over the whole sequence."""
        queries, keys, values = self._heads(x, position)
        keys, values = cache.push(position, keys, values)
        bias = None
        if self.slopes is not None:
            slots = torch.arange(keys.shape[2], device=x.device)
            ages = (position - slots) % self.window
            bias = (-self.slopes[:, None, None] * ages).to(x.dtype)  # (H, 1, filled)
        return self._join(F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias))
