"""Matrix products in bfloat16, on GPUs by autocast and on CPUs by a linear map of our own.

On CPUs autocast makes training slower: attention's backward kernel for bfloat16 takes twice as long as the one for
float32, and most of the rest gains nothing. Products of activations with weights alone gain, two to three times where
the processor multiplies bfloat16 (AVX512-BF16, AMX), and everything between them stays in float32.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_products_in_bfloat16 = False


@contextlib.contextmanager
def bfloat16_products(device_type: str, *, enabled: bool) -> Iterator[None]:
    """Within it, forward passes multiply in bfloat16, and so do their backward passes, wherever those run.

    Args:
        device_type: `cpu`, `cuda`, ...; all but CPUs use `torch.autocast`.
        enabled: False changes nothing.
    """
    global _products_in_bfloat16
    if device_type != "cpu":
        with torch.autocast(device_type, torch.bfloat16, enabled=enabled):
            yield
        return
    before, _products_in_bfloat16 = _products_in_bfloat16, enabled
    try:
        yield
    finally:
        _products_in_bfloat16 = before


class Linear(nn.Linear):
    """A linear map whose product is taken in bfloat16 within `bfloat16_products`; in and out it stays in float32."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) to (..., outputs)."""
        if _products_in_bfloat16:
            product: Tensor = _BFloat16Product.apply(x, self.weight, self.bias)
            return product
        return super().forward(x)


class _BFloat16Product(torch.autograd.Function):
    """x W^T + b; three products, each with its factors rounded to bfloat16 and its sums in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        rounded, rounded_weight = x.bfloat16(), weight.bfloat16()
        ctx.save_for_backward(rounded, rounded_weight)
        return F.linear(rounded, rounded_weight, bias.bfloat16()).float()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        (gradient,) = gradients
        x, weight = ctx.saved_tensors
        rounded = gradient.bfloat16()
        of_x = (rounded @ weight).float() if ctx.needs_input_grad[0] else None
        of_weight = (rounded.flatten(0, -2).T @ x.flatten(0, -2)).float()
        return of_x, of_weight, gradient.flatten(0, -2).sum(0)
