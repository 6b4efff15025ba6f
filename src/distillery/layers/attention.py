"""Causal self-attention over a sliding window, in one pass over a sequence or one token at a time from a cache.

Positions enter in one of three ways: `rotary` turns queries and keys (Su et al., RoFormer, 2021, arXiv 2104.09864),
`alibi` lowers scores with distance (Press et al., Train Short, Test Long, 2021, arXiv 2108.12409), and `none` leaves
them to the caller (absolute embeddings). The first two depend on distances alone, so a cache may roll for ever.

Queries may share keys and values in groups (Ainslie et al., GQA, 2023, arXiv 2305.13245), so that a cache is smaller.

Letters: B batch, S tokens, W window in tokens, H heads, G heads of keys and values, K head width, D width, Q queries
of a block.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distillery.layers.kept_attention import can_keep, kept_attention
from distillery.layers.precision import Linear, products_in_bfloat16

POSITIONS = ("rotary", "alibi", "none")
# Queries of a block. On CPUs small ones, whose kernel computes what a mask then hides.
QUERY_BLOCK, LARGEST_QUERY_BLOCK = 64, 512
BLOCKS_OF_A_WINDOW = 16
# From here on the kernel of CPUs skips most of what lies in the future by itself.
LONGEST_IN_BLOCKS = 1024


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
        """(S, K / 2) float32 angles, less whole turns: after a million steps float32 would have lost a hundredth."""
        exact = torch.float32 if positions.device.type == "mps" else torch.float64  # which has no other
        return (positions[:, None].to(exact) * self.frequencies.to(exact)).remainder(math.tau).float()

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


def window_attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    window: int,
    slopes: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """What every query reads of its window, in one call: the plain form.

    Args:
        queries: (B, H, S, K).
        keys: (B, G, S, K); G divides H.
        values: (B, G, S, K).
        window: W.
        slopes: (H,), by which scores fall with distance; None is 0.
        dropout: of the weights.

    Returns:
        (B, H, S, K).
    """
    num_heads, num_tokens = queries.shape[1:3]
    if slopes is None and num_tokens <= window:
        grouped = num_heads != keys.shape[1]
        return F.scaled_dot_product_attention(
            queries, keys, values, is_causal=True, dropout_p=dropout, enable_gqa=grouped
        )
    bias = window_bias(num_tokens, num_tokens, window, slopes, queries)
    keys, values = every_head(keys, num_heads), every_head(values, num_heads)
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias, dropout_p=dropout)


def blockwise_window_attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    window: int,
    slopes: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """`window_attention`, a block of queries at a time with the blocks of keys that any of them may see.

    Time and memory grow with S W instead of S S, and there is one mask, of a block.
    """
    num_heads, num_tokens = queries.shape[1:3]
    window = min(window, num_tokens)
    smallest = QUERY_BLOCK if queries.device.type == "cpu" else LARGEST_QUERY_BLOCK
    size = min(max(smallest, window // BLOCKS_OF_A_WINDOW), LARGEST_QUERY_BLOCK)
    of_queries = queries.split(size, 2)
    of_keys, of_values = every_head(keys, num_heads).split(size, 2), every_head(values, num_heads).split(size, 2)
    before = -(-(window - 1) // size)  # blocks that a block of queries sees in front of its own
    bias = window_bias(size, min(num_tokens, (before + 1) * size), window, slopes, queries)
    parts = []
    for number, block in enumerate(of_queries):
        seen = slice(max(0, number - before), number + 1)
        some_keys, some_values = torch.cat(of_keys[seen], 2), torch.cat(of_values[seen], 2)
        # Blocks end with the token that the bias ends with.
        own = bias[..., bias.shape[-2] - block.shape[2] :, bias.shape[-1] - some_keys.shape[2] :]
        parts.append(F.scaled_dot_product_attention(block, some_keys, some_values, attn_mask=own, dropout_p=dropout))
    return torch.cat(parts, 2)


def every_head(heads: Tensor, num_heads: int) -> Tensor:
    """(B, G, S, K) to (B, H, S, K), each of the G repeated for the queries that read it."""
    times = num_heads // heads.shape[1]
    return heads if times == 1 else heads.repeat_interleave(times, 1)


def window_bias(num_queries: int, num_keys: int, window: int, slopes: Tensor | None, like: Tensor) -> Tensor:
    """What is added to the scores of the last Q of S tokens: (Q, S), with slopes (H, Q, S); -inf hides."""
    tokens = torch.arange(num_keys, device=like.device)
    ages = tokens[num_keys - num_queries :, None] - tokens
    bias = ages.new_zeros((), dtype=like.dtype) if slopes is None else (-slopes[:, None, None] * ages).to(like.dtype)
    return torch.where((ages >= 0) & (ages < window), bias, float("-inf"))


class LayerCache:
    """The keys and values of the last W tokens of one layer, as a ring: token p lies in slot ``p % W``."""

    def __init__(self, batch_size: int, num_key_heads: int, window: int, head_width: int, like: Tensor) -> None:
        shape = (batch_size, num_key_heads, window, head_width)
        self.keys = torch.zeros(shape, dtype=like.dtype, device=like.device)
        self.values = torch.zeros_like(self.keys)

    def push(self, position: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Stores one token, (B, G, 1, K), and returns what is filled so far, (B, G, min(p + 1, W), K)."""
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
        num_key_heads: G, heads of keys and values, each read by H / G heads of queries; None is H.
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
        num_key_heads: int | None = None,
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
        self.num_heads = num_heads
        self.num_key_heads = num_heads if num_key_heads is None else num_key_heads
        if num_heads % self.num_key_heads:
            raise ValueError(f"num_key_heads must divide num_heads: {num_heads} / {self.num_key_heads} is not whole")
        self.window, self.dropout, self.head_width = window, dropout, width // num_heads
        self.in_projection = Linear(width, (num_heads + 2 * self.num_key_heads) * self.head_width)
        self.out_projection = Linear(width, width)
        self.rotary = Rotary(self.head_width, fraction=rotary_fraction) if positions == "rotary" else None
        slopes = alibi_slopes(num_heads) if positions == "alibi" else None
        self.slopes: Tensor | None
        self.register_buffer("slopes", slopes, persistent=False)

    def _heads(self, x: Tensor, first: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, H, S, K), keys and values, each (B, G, S, K), of the tokens from position `first` on."""
        heads = self.in_projection(x).unflatten(2, (-1, self.head_width))
        both, values = heads.split([self.num_heads + self.num_key_heads, self.num_key_heads], 2)
        if self.rotary is not None:
            positions = torch.arange(first, first + x.shape[1], device=x.device)
            both = self.rotary.turn(both, self.rotary.turns(positions))
        queries, keys = both.transpose(1, 2).split([self.num_heads, self.num_key_heads], 1)
        return queries, keys, values.transpose(1, 2)

    def _join(self, heads: Tensor) -> Tensor:
        return self.out_projection(heads.transpose(1, 2).flatten(2))  # (B, S, D)

    def forward(self, x: Tensor) -> Tensor:
        """(B, S, D) to (B, S, D), every token seeing its window."""
        queries, keys, values = self._heads(x)
        num_tokens, dropout = x.shape[1], self.dropout if self.training else 0.0
        masked = self.slopes is not None or num_tokens > self.window
        short = x.device.type == "cpu" and num_tokens <= LONGEST_IN_BLOCKS
        keeps = products_in_bfloat16() and not torch.compiler.is_compiling()
        if keeps and not masked and not dropout and can_keep(queries):
            keys, values = every_head(keys, self.num_heads), every_head(values, self.num_heads)
            return self._join(kept_attention(queries, keys, values))
        # Few tokens are fast as they are, and kernels skip what lies in the future: of GPUs all of it.
        in_blocks = num_tokens > 2 * QUERY_BLOCK and (masked or short)
        attend = blockwise_window_attention if in_blocks else window_attention
        return self._join(attend(queries, keys, values, window=self.window, slopes=self.slopes, dropout=dropout))

    def weights(self, x: Tensor, position: int) -> Tensor:
        """(B, H, S) what the token at `position` of (B, S, D) attends to: the softmax that `forward` applies there."""
        queries, keys, _ = self._heads(x)
        keys = every_head(keys, self.num_heads)
        scores = (queries[:, :, position, None] @ keys.transpose(-1, -2))[:, :, 0] * self.head_width**-0.5
        ages = position - torch.arange(x.shape[1], device=x.device)
        if self.slopes is not None:
            scores = scores - (self.slopes[:, None] * ages).to(scores.dtype)
        return scores.masked_fill((ages < 0) | (ages >= self.window), float("-inf")).softmax(-1)

    def new_cache(self, batch_size: int) -> LayerCache:
        """An empty cache for B sequences."""
        return LayerCache(batch_size, self.num_key_heads, self.window, self.head_width, self.in_projection.weight)

    def step(self, x: Tensor, position: int, cache: LayerCache) -> Tensor:
        """The next token alone, (B, 1, D); equals the same token of `forward` over the whole sequence."""
        queries, keys, values = self._heads(x, position)
        keys, values = cache.push(position, keys, values)
        bias = None
        if self.slopes is not None:
            slots = torch.arange(keys.shape[2], device=x.device)
            ages = (position - slots) % self.window
            bias = (-self.slopes[:, None] * ages).to(x.dtype)
            bias = bias.unflatten(0, (self.num_key_heads, -1))  # (G, H / G, filled)
        # The heads of a group as so many queries of one head: its keys and values are read once.
        grouped = queries[:, :, 0].unflatten(1, (self.num_key_heads, -1))  # (B, G, H / G, K)
        read = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=bias)
        return self._join(read.flatten(1, 2)[:, :, None])
