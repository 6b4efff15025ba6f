"""Muon for many matrices of few shapes at once.

Muon (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/) steps along the momentum's nearest orthogonal
matrix, which a few products of small matrices approximate. A model's blocks have the same shapes again and again, so
each product is one of all matrices of a shape.

Letters: M matrices, R rows, C columns, R at most C.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class BatchedMuon(torch.optim.Muon):
    """`torch.optim.Muon`, with its settings and its state, and updates equal to its own but for rounding."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step on all parameters that have gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            shapes: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    update = self._momentum(parameter, group)
                    flat = update if update.shape[0] <= update.shape[1] else update.T
                    shapes.setdefault((flat.shape[0], flat.shape[1]), []).append((parameter, flat))
            for pairs in shapes.values():
                directions = orthogonal(
                    torch.stack([flat.bfloat16() for _, flat in pairs]),
                    coefficients=group["ns_coefficients"],
                    num_steps=group["ns_steps"],
                    epsilon=group["eps"],
                )
                for (parameter, _), direction in zip(pairs, directions, strict=True):
                    rows, columns = parameter.shape
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(
                        direction if rows <= columns else direction.T,
                        alpha=-group["lr"] * max(1.0, rows / columns) ** 0.5,
                    )
        return loss

    def _momentum(self, parameter: Tensor, group: dict[str, Any]) -> Tensor:
        """The running mean of gradients, looked ahead as Nesterov does."""
        gradient, state = parameter.grad, self.state[parameter]
        assert gradient is not None
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        running: Tensor = state["momentum_buffer"]
        running.lerp_(gradient, 1 - group["momentum"])
        return gradient.lerp(running, group["momentum"])


def orthogonal(
    matrices: Tensor, *, coefficients: tuple[float, float, float], num_steps: int, epsilon: float
) -> Tensor:
    """Newton and Schulz's iteration: (M, R, C) matrices with their singular values brought near to 1.

    Args:
        matrices: R at most C.
        coefficients: of the polynomial that the singular values go through in each step: of x, x^3 and x^5.
        num_steps: how often.
        epsilon: least norm that a matrix is divided by.
    """
    one, cubic, quintic = coefficients
    x = matrices / torch.linalg.matrix_norm(matrices, keepdim=True).clamp(min=epsilon)
    for _ in range(num_steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=cubic, alpha=quintic), x, beta=one)
    return x
