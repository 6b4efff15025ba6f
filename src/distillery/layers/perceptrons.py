"""Many small perceptrons of one shape, evaluated and optimised as one: a network to every learner of a source.

Letters: L learners, S rows of inputs, D numbers of an observation, I inputs, O outputs, A actions, P weights and
biases of one perceptron.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from distillery.core.specs import Box, Discrete, TaskSpec
from distillery.layers.embeddings import scaled_to_unit


class RowInputs:
    """Observation rows as inputs of perceptrons.

    Whole numbers become one-hot. Numbers between finite bounds are scaled to [-1, 1]; others, whose size nobody
    promises, become ``sign(x) * log(1 + |x|)``. An image is a row like any other: its pixels have no neighbours here,
    so large ones are better left to sources with convolutions.

    Args:
        spec: whose observations they are.

    Attributes:
        width: I.
        num_active: how many inputs are away from 0 at a time.
    """

    def __init__(self, spec: TaskSpec) -> None:
        self._parts = [(spec.observation[name], stretch) for name, stretch in spec.stretches().items()]
        spaces = spec.observation.values()
        self.width = sum(sum(space.sizes) if isinstance(space, Discrete) else space.width for space in spaces)
        self.num_active = spec.observation_width

    def __call__(self, rows: Tensor) -> Tensor:
        """(..., D) of any dtype to (..., I) float32."""
        columns: list[Tensor] = []
        for space, stretch in self._parts:
            part = rows[..., stretch]
            if isinstance(space, Box):
                columns.append(_bounded(space, part))
            else:
                numbers = part.long().unbind(-1)
                columns += [one_hot(x, size).float() for x, size in zip(numbers, space.sizes, strict=True)]
        return torch.cat(columns, -1)


def _bounded(space: Box, numbers: Tensor) -> Tensor:
    numbers = numbers.float()
    if math.isfinite(space.low) and math.isfinite(space.high):
        return scaled_to_unit(space, numbers, torch.float32)
    return numbers.sign() * numbers.abs().log1p()


class StackedPerceptrons:
    """L multi-layer perceptrons of one shape; called, they give a policy with a value beside it.

    Attributes:
        parameters: (L, P) float32, requires grad; one row holds all weights and biases of one perceptron.
    """

    def __init__(self, num_learners: int, sizes: Sequence[int], num_active: int, generator: torch.Generator) -> None:
        """Draws first weights.

        Args:
            num_learners: L.
            sizes: inputs, hidden units of each layer, outputs.
            num_active: inputs that are away from 0, by about 1, at a time.
            generator: draws the weights, and gives the device.
        """
        self._shapes: list[tuple[int, int]] = []
        rows = []
        fan_in, last = num_active, len(sizes) - 2
        for layer, (size_in, size_out) in enumerate(pairwise(sizes)):
            scale = math.sqrt(2.0 / fan_in) if layer < last else 0.01 / math.sqrt(fan_in)
            shape = (num_learners, size_in * size_out)
            rows.append(torch.randn(shape, generator=generator, device=generator.device) * scale)
            rows.append(rows[-1].new_zeros(num_learners, size_out))
            self._shapes += [(size_in, size_out), (1, size_out)]
            fan_in = size_out
        self.parameters = torch.cat(rows, 1).requires_grad_()

    def outputs(self, inputs: Tensor) -> Tensor:
        """(L, S, O) from (S, I), the same inputs for all, or (L, S, I)."""
        sizes = [size_in * size_out for size_in, size_out in self._shapes]
        pieces = self.parameters.split(sizes, 1)
        weights = [piece.view(-1, *shape) for piece, shape in zip(pieces, self._shapes, strict=True)]
        hidden = inputs.expand(len(self.parameters), -1, -1)
        for weight, bias in zip(weights[:-2:2], weights[1:-2:2], strict=True):
            hidden = torch.baddbmm(bias, hidden, weight).relu()  # (L, S, width)
        return torch.baddbmm(weights[-1], hidden, weights[-2])

    def __call__(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """(L, S, A) logits and (L, S) values, which is the last output; inputs as for `outputs`."""
        outputs = self.outputs(inputs)
        return outputs[..., :-1], outputs[..., -1]


class StackedAdam:
    """Adam on the (L, P) parameters of L learners, each with its own count of updates."""

    def __init__(self, parameters: Tensor, *, learning_rate: float, betas: Sequence[float], epsilon: float) -> None:
        self._parameters, self._learning_rate, self._betas, self._epsilon = parameters, learning_rate, betas, epsilon
        self._mean = torch.zeros_like(parameters, requires_grad=False)
        self._square = torch.zeros_like(self._mean)
        self._num_updates = torch.zeros(len(parameters), 1, device=parameters.device)

    @torch.no_grad()
    def step(self, gradient: Tensor, active: Tensor | None) -> None:
        """Moves the learners that `active`, (L,) bool, names; None names all. The others stay exactly as they are."""
        moving = torch.ones_like(self._num_updates) if active is None else active[:, None].float()  # (L, 1)
        self._num_updates += moving
        decay, square_decay = self._betas
        self._mean.lerp_(gradient, (1 - decay) * moving)
        self._square.lerp_(gradient.square(), (1 - square_decay) * moving)
        num_updates = self._num_updates.clamp(min=1)
        rate = self._learning_rate / (1 - decay**num_updates) * moving
        root = self._square.sqrt().mul_((1 - square_decay**num_updates).rsqrt()).add_(self._epsilon)
        self._parameters.addcdiv_(self._mean * rate, root, value=-1)
