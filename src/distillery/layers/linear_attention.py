"""Causal attention in linear time: a state of constant size, written to by the gated delta rule.

Source: Yang et al., Gated Delta Networks (2024), arXiv 2412.06464; its chunkwise form is that of Yang et al.,
Parallelizing Linear Transformers with the Delta Rule (2024), arXiv 2406.06484. For every head, with keys of length 1:

    S_t = a_t S_{t-1} + k_t u_t^T,    u_t = b_t (v_t - a_t S_{t-1}^T k_t),    o_t = S_t^T q_t

so that what a key brings is replaced (b_t) rather than piled up, and everything fades (a_t). In a chunk that begins
with the state S, c_t being the sum of log a up to t, the u are the solution of a triangular system,

    (1 + L) U = b V - (b e^c K) S,    L_tj = b_t e^(c_t - c_j) k_t . k_j  for j < t

whose two right-hand sides are solved for all chunks at once; only S goes from chunk to chunk. Ours has no negative
eigenvalues, one scalar decay and one writing strength per head, and decays that start spread over time scales.

Letters: B batch, S tokens, H heads, K head width, D width, N chunks, C tokens of a chunk.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distillery.layers.precision import Linear

CHUNK_TOKENS = 32
KERNEL_TOKENS = 4
# Tokens after which a head's memory has faded to 1/e, from the first head to the last, before training.
TIME_SCALES = (32.0, 2048.0)


def _chunks(x: Tensor, size: int) -> Tensor:
    """(B, H, S, ...) to (B, H, N, C, ...); the last chunk is filled up with zeros."""
    missing = -x.shape[2] % size
    if missing:
        x = torch.cat([x, x.new_zeros((*x.shape[:2], missing, *x.shape[3:]))], 2)
    return x.unflatten(2, (-1, size))


def gated_delta_rule(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    log_decays: Tensor,
    strengths: Tensor,
    *,
    state: Tensor | None = None,
    chunk_tokens: int = CHUNK_TOKENS,
) -> tuple[Tensor, Tensor]:
    """What every token reads, a chunk at a time.

    Args:
        queries: (B, H, S, K) float32.
        keys: (B, H, S, K), each of length 1.
        values: (B, H, S, K).
        log_decays: (B, H, S), log a_t, at most 0.
        strengths: (B, H, S), b_t, from 0 to 1.
        state: (B, H, K, K) of the tokens before; None is an empty one.
        chunk_tokens: C; changes nothing but rounding and time.

    Returns:
        (B, H, S, K) what is read, and the state after the last token.
    """
    num_tokens, size = queries.shape[2], min(chunk_tokens, queries.shape[2])
    queries, keys, values = (_chunks(x, size) for x in (queries, keys, values))  # (B, H, N, C, K)
    sums = _chunks(log_decays, size).cumsum(-1)  # (B, H, N, C)
    strengths = _chunks(strengths, size)[..., None]
    later = torch.ones(size, size, dtype=torch.bool, device=sums.device).triu(1)
    # Masked before the exponential, which of a token and a later one could overflow.
    fading = (sums[..., :, None] - sums[..., None, :]).masked_fill(later, float("-inf")).exp()  # (B, H, N, C, C)
    fallen = sums.exp()[..., None]
    written = keys * strengths
    # Of L, what is below the diagonal alone is read.
    solved = torch.linalg.solve_triangular(
        written @ keys.transpose(-1, -2) * fading,
        torch.cat([values * strengths, written * fallen], -1),
        upper=False,
        unitriangular=True,
    )
    own, from_state = solved.chunk(2, -1)  # U is `own` less `from_state` S
    to_end = (keys * (sums[..., -1:] - sums).exp()[..., None]).transpose(-1, -2)  # (B, H, N, K, C)
    if state is None:
        state = queries.new_zeros((*queries.shape[:2], queries.shape[-1], values.shape[-1]))
    states, updates = [], []
    for own_now, from_state_now, fallen_now, to_end_now in zip(
        own.unbind(2), from_state.unbind(2), fallen[..., -1:, :].unbind(2), to_end.unbind(2), strict=True
    ):
        states.append(state)
        updates.append(own_now - from_state_now @ state)
        state = state * fallen_now + to_end_now @ updates[-1]
    read = (queries * fallen) @ torch.stack(states, 2)
    read = read + (queries @ keys.transpose(-1, -2) * fading) @ torch.stack(updates, 2)
    return read.flatten(2, 3)[:, :, :num_tokens], state


def gated_delta_step(
    query: Tensor, key: Tensor, value: Tensor, log_decay: Tensor, strength: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """The same for one token: (B, H, K) thrice, (B, H) twice and (B, H, K, K) to (B, H, K) and the state after it."""
    state = state * log_decay.exp()[..., None, None]
    held = (key[..., None, :] @ state)[..., 0, :]
    update = strength[..., None] * (value - held)
    state = state + key[..., :, None] * update[..., None, :]
    return (query[..., None, :] @ state)[..., 0, :], state


@dataclass
class DeltaCache:
    """What one layer remembers of B lifetimes, however long they are.

    Attributes:
        state: (B, H, K, K).
        recent: (B, `KERNEL_TOKENS` - 1, 3 D) the last tokens' queries, keys and values before the convolution.
    """

    state: Tensor
    recent: Tensor


class GatedDeltaAttention(nn.Module):
    """Multi-head gated delta rule, with a short convolution before it and a gate after it, as in the paper.

    Args:
        width: D.
        num_heads: H; must divide D.
    """

    def __init__(self, width: int, *, num_heads: int) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"num_heads must divide the width: {width} / {num_heads} is not whole")
        self.num_heads, self.head_width = num_heads, width // num_heads
        self.in_projection = Linear(width, 4 * width)  # queries, keys, values, gate
        self.kernel = nn.Parameter(torch.randn(KERNEL_TOKENS, 3 * width) * KERNEL_TOKENS**-0.5)
        self.rate_projection = nn.Linear(width, 2 * num_heads)  # of decay and of writing
        # softplus(offset) is 1 / time scale.
        shortest, longest = (math.log(scale) for scale in TIME_SCALES)
        scales = torch.linspace(shortest, longest, num_heads).exp()
        self.decay_offset = nn.Parameter(torch.expm1(1.0 / scales).log())
        self.norm = nn.RMSNorm(self.head_width)
        self.out_projection = Linear(width, width)

    def _projected(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Queries, keys and values before the convolution, (B, S, 3 D), and the gate, (B, S, D)."""
        mixed, gate = self.in_projection(x).split([3 * x.shape[-1], x.shape[-1]], -1)
        return mixed, gate

    def _convolved(self, padded: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, `KERNEL_TOKENS` - 1 + S, 3 D) to queries, keys and values, each (B, H, S, K) float32."""
        num_tokens = padded.shape[1] - KERNEL_TOKENS + 1
        kernel = self.kernel.to(padded.dtype)
        convolved = padded[:, :num_tokens] * kernel[0]
        for tap in range(1, KERNEL_TOKENS):
            convolved = torch.addcmul(convolved, padded[:, tap : tap + num_tokens], kernel[tap])
        heads = F.silu(convolved).float().unflatten(2, (3, self.num_heads, self.head_width))
        queries, keys, values = heads.permute(2, 0, 3, 1, 4)
        return F.normalize(queries, dim=-1), F.normalize(keys, dim=-1), values

    def _rates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Log decays and strengths, each (B, H, S) float32."""
        decays, strengths = self.rate_projection(x).float().transpose(1, 2).chunk(2, 1)
        return -F.softplus(decays + self.decay_offset[:, None].float()), strengths.sigmoid()

    def _join(self, heads: Tensor, gate: Tensor) -> Tensor:
        """(B, H, S, K) and (B, S, D) to (B, S, D)."""
        joined = self.norm(heads.to(self.norm.weight.dtype)).transpose(1, 2).flatten(2).to(gate.dtype)
        mixed: Tensor = self.out_projection(joined * F.silu(gate))
        return mixed

    def forward(self, x: Tensor) -> Tensor:
        """(B, S, D) to (B, S, D), every token seeing all before it."""
        mixed, gate = self._projected(x)
        queries, keys, values = self._convolved(F.pad(mixed, (0, 0, KERNEL_TOKENS - 1, 0)))
        decays, strengths = self._rates(x)
        with torch.autocast(x.device.type, enabled=False):  # what adds up over a lifetime stays in full precision
            heads, _ = gated_delta_rule(queries, keys, values, decays, strengths)
        return self._join(heads, gate)

    def new_cache(self, batch_size: int) -> DeltaCache:
        """An empty cache for B sequences."""
        like = self.in_projection.weight
        state = like.new_zeros((batch_size, self.num_heads, self.head_width, self.head_width), dtype=torch.float32)
        return DeltaCache(state, like.new_zeros((batch_size, KERNEL_TOKENS - 1, self.kernel.shape[1])))

    def step(self, x: Tensor, position: int, cache: DeltaCache) -> Tensor:
        """The next token alone, (B, 1, D); equals the same token of `forward` over the whole sequence."""
        mixed, gate = self._projected(x)
        padded = torch.cat([cache.recent, mixed], 1)
        cache.recent = padded[:, 1:]
        queries, keys, values = (heads[:, :, 0] for heads in self._convolved(padded))
        decays, strengths = (rates[:, :, 0] for rates in self._rates(x))
        heads, cache.state = gated_delta_step(queries, keys, values, decays, strengths, cache.state)
        return self._join(heads[:, :, None], gate)
