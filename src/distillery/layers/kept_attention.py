"""Causal attention for training on CPUs in bfloat16, which keeps its weights for the backward pass.

Kernels that compute the weights again on the way back (FlashAttention, Dao et al., 2022, arXiv 2205.14135) spare
memory, which contexts of some hundred steps do not lack, and those of CPUs multiply in float32. Here a block of
queries at a time meets the keys that it may see, every product is one of bfloat16, and the weights are stored.

Letters: B batch, H heads, S tokens, K head width, N = B H, M blocks, Q queries of a block.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Smaller blocks compute less that the mask then hides, larger ones have fewer operations.
QUERIES_OF_A_BLOCK = 96
# What a layer may keep; beyond it, computing the weights again is the better bargain.
MOST_BYTES = 1 << 29


def can_keep(queries: Tensor) -> bool:
    """Whether the weights of (B, H, S, K) queries are few enough to be kept."""
    batch_size, num_heads, num_tokens, _ = queries.shape
    return batch_size * num_heads * num_tokens * (num_tokens + QUERIES_OF_A_BLOCK) <= MOST_BYTES


def kept_attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """What every query reads of the tokens up to its own; all are (B, H, S, K), what comes out in bfloat16.

    What all keys or all values have in common says nothing about their weights, and would drown differences when
    bfloat16 rounds them: keys and values count from those of the first token, which every query may see.
    """
    read: Tensor = _KeptAttention.apply(queries * queries.shape[-1] ** -0.5, keys, values)
    return read


def _in_blocks(x: Tensor, num_blocks: int) -> Tensor:
    """(B, H, S, K) to (M, N, Q, K), the last block filled up with zeros."""
    size = -(-x.shape[2] // num_blocks)
    x = F.pad(x.bfloat16(), (0, 0, 0, size * num_blocks - x.shape[2])).flatten(0, 1)
    return x.unflatten(1, (num_blocks, size)).transpose(0, 1).contiguous()


def _whole(blocks: Tensor) -> Tensor:
    """(M, N, Q, K) to (N, M Q, K)."""
    return blocks.transpose(0, 1).flatten(1, 2)


class _KeptAttention(torch.autograd.Function):
    """softmax(Q K^T) V, every token seeing itself and those before."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        ctx.shape, ctx.type = queries.shape, queries.dtype
        num_blocks = -(-queries.shape[2] // QUERIES_OF_A_BLOCK)
        first_values = values[:, :, :1]
        keys, values = keys - keys[:, :, :1], values - first_values
        queries, keys, values = (_in_blocks(x, num_blocks) for x in (queries, keys, values))
        size = queries.shape[2]
        keys, values = _whole(keys), _whole(values)
        turned = keys.transpose(1, 2).contiguous()  # (N, K, M Q)
        future = queries.new_full((size, size), float("-inf")).triu(1)
        read, weights = torch.empty_like(queries), []
        for number, block in enumerate(queries):
            end = (number + 1) * size
            scores = block @ turned[:, :, :end]
            scores[:, :, -size:] += future
            weights.append(scores.softmax(-1))
            torch.bmm(weights[-1], values[:, :end], out=read[number])
        ctx.save_for_backward(queries, keys, values, *weights)
        # The weights of a query sum to 1, so that it reads the first value as a whole.
        return (_whole(read)[:, : ctx.shape[2]].reshape(ctx.shape) + first_values).bfloat16()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        queries, keys, values, *weights = ctx.saved_tensors
        gradient = _in_blocks(gradient, len(queries))
        turned = values.transpose(1, 2).contiguous()
        of_queries = torch.empty_like(queries)
        of_keys, of_values = (torch.zeros(turned.shape) for _ in range(2))  # (N, K, M Q)
        turned_queries, turned_gradient = (x.transpose(2, 3).contiguous() for x in (queries, gradient))
        for number, kept in enumerate(weights):
            end = kept.shape[-1]
            of_scores = gradient[number] @ turned[:, :, :end]
            torch.ops.aten._softmax_backward_data.out(of_scores, kept, -1, kept.dtype, grad_input=of_scores)
            torch.bmm(of_scores, keys[:, :end], out=of_queries[number])
            of_keys[:, :, :end] += turned_queries[number] @ of_scores
            of_values[:, :, :end] += turned_gradient[number] @ kept
        whole = (_whole(of_queries), of_keys.transpose(1, 2), of_values.transpose(1, 2))
        of_q, of_k, of_v = (x[:, : ctx.shape[2]].reshape(ctx.shape).to(ctx.type) for x in whole)
        return of_q, of_k, of_v
