"""Stacked perceptrons against ordinary ones, and observation rows as their inputs."""

import math
from itertools import pairwise

import torch

from distillery.core.specs import Box, Discrete, TaskSpec
from distillery.layers.perceptrons import RowInputs, StackedPerceptrons


def spec_of(**parts: Box | Discrete) -> TaskSpec:
    return TaskSpec(parts, Discrete((2,)), 5)


def test_whole_numbers_become_one_hot() -> None:
    inputs = RowInputs(TaskSpec.of_sizes((3, 2), 2, 5))
    assert (inputs.width, inputs.num_active) == (5, 2)
    rows = torch.tensor([[2, 0], [0, 1]], dtype=torch.uint8)
    assert inputs(rows).tolist() == [[0, 0, 1, 1, 0], [1, 0, 0, 0, 1]]
    assert inputs(rows.view(1, 2, 1, 2)).shape == (1, 2, 1, 5)
    assert inputs(rows).dtype == torch.float32


def test_bounded_numbers_are_scaled_and_others_squashed() -> None:
    bounded = RowInputs(spec_of(speed=Box((2,), -4, 12)))
    torch.testing.assert_close(bounded(torch.tensor([[-4.0, 6.0]])), torch.tensor([[-1.0, 0.25]]))
    image = RowInputs(spec_of(image=Box((1, 1, 3), 0, 255, "uint8")))
    torch.testing.assert_close(
        image(torch.tensor([[0, 51, 255]], dtype=torch.uint8)), torch.tensor([[-1.0, -0.6, 1.0]])
    )
    for low, high in ((-math.inf, math.inf), (0, math.inf), (-math.inf, 3)):
        unbounded = RowInputs(spec_of(speed=Box((3,), low, high)))
        expected = torch.tensor([[-math.log(1001.0), 0.0, math.log(1.5)]])
        torch.testing.assert_close(unbounded(torch.tensor([[-1000.0, 0.0, 0.5]])), expected)


def test_parts_lie_side_by_side() -> None:
    inputs = RowInputs(spec_of(dial=Discrete((2,)), arm=Box((2,), -1, 1), door=Discrete((2, 3))))
    assert (inputs.width, inputs.num_active) == (2 + 2 + 5, 5)
    row = torch.tensor([1.0, 0.5, -0.5, 0.0, 2.0])
    assert inputs(row).tolist() == [0, 1, 0.5, -0.5, 1, 0, 0, 0, 1]


def plain(row: torch.Tensor, sizes: tuple[int, ...], hidden: torch.Tensor) -> torch.Tensor:
    """One perceptron, layer by layer from its row of weights."""
    for layer, (size_in, size_out) in enumerate(pairwise(sizes)):
        weight, bias, row = row.split([size_in * size_out, size_out, len(row) - (size_in + 1) * size_out])
        hidden = hidden @ weight.view(size_in, size_out) + bias
        if layer < len(sizes) - 2:
            hidden = hidden.relu()
    assert len(row) == 0
    return hidden


def test_stacked_perceptrons_are_perceptrons() -> None:
    generator, sizes = torch.Generator().manual_seed(0), (4, 6, 5, 3)
    stack = StackedPerceptrons(3, sizes, 4, generator)
    with torch.no_grad():
        stack.parameters.normal_(generator=generator)
    own = torch.randn(3, 7, 4, generator=generator)
    expected = torch.stack([plain(stack.parameters[x], sizes, own[x]) for x in range(3)])
    torch.testing.assert_close(stack.outputs(own), expected)
    shared = torch.stack([plain(stack.parameters[x], sizes, own[0]) for x in range(3)])
    torch.testing.assert_close(stack.outputs(own[0]), shared)
    logits, values = stack(own)
    assert torch.equal(torch.cat([logits, values[..., None]], -1), stack.outputs(own))


def test_first_outputs_are_small_and_learners_differ() -> None:
    stack = StackedPerceptrons(5, (10, 64, 64, 4), 10, torch.Generator().manual_seed(0))
    outputs = stack.outputs(torch.randn(200, 10, generator=torch.Generator().manual_seed(1)))
    assert 0.003 < outputs.std() < 0.03
    assert len({tuple(row) for row in outputs[:, 0].tolist()}) == 5
