"""Matrix products in bfloat16, on GPUs by autocast and on CPUs by a linear map of our own.

On CPUs autocast makes training slower: attention's backward kernel for bfloat16 takes twice as long as the one for
float32, and most of the rest gains nothing. Products gain, two to three times where the processor multiplies bfloat16
(AVX512-BF16, AMX): those with weights, here, and those of attention, in `distillery.layers.kept_attention`. What goes
from block to block, norms and optimisers stay in float32.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_products_in_bfloat16 = False


@contextlib.contextmanager
def bfloat16_products(device_type: str, *, enabled: bool) -> Iterator[None]:
    """Within it, forward passes multiply in bfloat16, and so do their backward passes, wherever those run.

    Args:
        device_type: `cpu`, `cuda`, ...; all but CPUs use `torch.autocast`.
        enabled: whether they do; False within True switches it off again.
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


def slow_bfloat16(device: str, *, enabled: bool) -> str | None:
    """What to tell who multiplies in bfloat16 on a CPU that has no instructions for it; None where it is fast."""
    if not enabled or torch.device(device).type != "cpu":
        return None
    able = torch.cpu.get_capabilities()
    if any(able.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16")):
        return None
    return (
        "this processor has no instructions for products in bfloat16 (avx512_bf16 or amx_bf16), which take longer "
        "here than those in float32; choose runtime.bfloat16=false"
    )


def products_in_bfloat16() -> bool:
    """Whether maps on a CPU multiply in bfloat16 now."""
    return _products_in_bfloat16


def same_products() -> contextlib.AbstractContextManager[None]:
    """A context in which maps on a CPU multiply as they do now, for what is computed again later."""
    return bfloat16_products("cpu", enabled=_products_in_bfloat16)


class Linear(nn.Linear):
    """A linear map whose product is taken in bfloat16 within `bfloat16_products`; what goes in may be of either type.

    Args:
        rounded: what comes out then stays in bfloat16, for something that would round it anyway.
    """

    def __init__(self, in_features: int, out_features: int, *, rounded: bool = False) -> None:
        super().__init__(in_features, out_features)
        self.rounded = rounded

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) to (..., outputs)."""
        if _products_in_bfloat16:
            product: Tensor = _BFloat16Product.apply(x, self.weight, self.bias)
            return product if self.rounded else product.float()
        return super().forward(x)


class _BFloat16Product(torch.autograd.Function):
    """x W^T + b; of three products the factors and the results are rounded to bfloat16, sums within are float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        rounded, rounded_weight = x.bfloat16(), weight.bfloat16()
        ctx.save_for_backward(rounded, rounded_weight)
        ctx.type = x.dtype
        return F.linear(rounded, rounded_weight, bias.bfloat16())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        of_x, of_weight, of_bias = ctx.needs_input_grad
        x, weight = ctx.saved_tensors
        return (
            (gradient @ weight).to(ctx.type) if of_x else None,
            (gradient.flatten(0, -2).T @ x.flatten(0, -2)).float() if of_weight else None,
            gradient.flatten(0, -2).sum(0, dtype=torch.float32) if of_bias else None,
        )
