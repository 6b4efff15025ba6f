"""Activation checkpointing: what a block computes is computed again on the way back, instead of being kept.

Source: Chen et al., Training Deep Nets with Sublinear Memory Cost (2016), arXiv 1604.06174. Memory then grows by what
goes from block to block alone, and a training step takes about a third longer.
"""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from distillery.layers.precision import same_products

_enabled = False


@contextlib.contextmanager
def activation_checkpointing(*, enabled: bool) -> Iterator[None]:
    """Within it, blocks keep their inputs alone for the backward pass."""
    global _enabled
    before, _enabled = _enabled, enabled
    try:
        yield
    finally:
        _enabled = before


def through_blocks(blocks: Iterable[nn.Module], x: Tensor) -> Tensor:
    """What comes out of the last of the blocks, each of which keeps the shape of (B, S, W)."""
    # A compiled backward pass knows by itself how the forward pass multiplied.
    again: dict[str, Any] = {} if torch.compiler.is_compiling() else {"context_fn": _contexts}
    for block in blocks:
        x = checkpoint(block, x, use_reentrant=False, **again) if _enabled else block(x)
    return x


def _contexts() -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
    """Of the forward pass and of its repetition."""
    return contextlib.nullcontext(), same_products()
