"""Every kind of observation becomes a vector; parts add up; a step at a time equals all at once."""

import math

import pytest
import torch

from distillery.core.specs import Box, Discrete, TaskSpec
from distillery.layers.embeddings import ImageEmbedding, StepEmbedding, VectorEmbedding

PICTURE = Box((18, 24, 3), 0, 255, "uint8")
MIXED = TaskSpec(
    {"cell": Discrete((3, 4)), "speed": Box((2,), -2.0, 2.0), "view": Box((6, 5, 1), 0, 255, "uint8")},
    Discrete((5,)),
    10,
)


def rows_of(spec: TaskSpec, *leading: int) -> torch.Tensor:
    """Random observations, (..., D) of the spec's dtype."""
    generator = torch.Generator().manual_seed(0)
    parts = []
    for space in spec.observation.values():
        if isinstance(space, Discrete):
            parts += [torch.randint(size, (*leading, 1), generator=generator) for size in space.sizes]
        elif space.dtype == "uint8":
            parts.append(torch.randint(256, (*leading, space.width), generator=generator))
        else:
            parts.append(torch.rand((*leading, space.width), generator=generator))
    return torch.cat(parts, -1).to(spec.observation_dtype)


def test_factored_tables_are_added_and_joint_ones_looked_up():
    spec = TaskSpec.of_sizes((3, 4), 5, 10)
    factored, joint = StepEmbedding(spec, 8), StepEmbedding(spec, 8, "joint")
    row = torch.tensor([[2, 1]])
    rows, columns = (table.weight for table in factored.observation[0].tables)
    assert torch.equal(factored.observations(row)[0], rows[2] + columns[1])
    assert torch.equal(joint.observations(row)[0], joint.observation[0].tables[0].weight[2 * 4 + 1])


def test_vectors_between_bounds_are_scaled_and_others_are_not():
    bounded, free = VectorEmbedding(Box((2,), -1.0, 3.0), 8), VectorEmbedding(Box((2,), -math.inf, 3.0), 8)
    numbers = torch.tensor([[3.0, 1.0]])
    torch.testing.assert_close(bounded(numbers), bounded.projection(torch.tensor([[1.0, 0.0]])))
    torch.testing.assert_close(free(numbers), free.projection(numbers))
    pixels = VectorEmbedding(Box((2,), 0, 255, "uint8"), 8)
    torch.testing.assert_close(
        pixels(torch.tensor([[255, 0]], dtype=torch.uint8)), pixels.projection(torch.tensor([[1.0, -1.0]]))
    )


@pytest.mark.parametrize("shape", [(18, 24, 3), (72, 96, 3), (5, 7, 1)])
def test_images_of_any_size(shape):
    embedding = ImageEmbedding(Box(shape, 0, 255, "uint8"), 16)
    images = torch.randint(256, (2, 3, math.prod(shape)), dtype=torch.uint8)
    embedded = embedding(images)
    assert embedded.shape == (2, 3, 16)
    torch.testing.assert_close(embedding(images[1, 2]), embedded[1, 2], rtol=1e-4, atol=1e-5)


def test_an_image_is_read_as_rows_of_pixels_of_channels():
    """One convolution over one pixel, by hand."""
    embedding = ImageEmbedding(Box((1, 1, 3), 0, 255, "uint8"), 4, channels=(2,))
    pixel = torch.tensor([[0, 255, 51]], dtype=torch.uint8)
    scaled = torch.tensor([-1.0, 1.0, -0.6])
    kernel, bias = embedding.convolutions[0].weight[:, :, 1, 1], embedding.convolutions[0].bias
    expected = embedding.projection(torch.nn.functional.gelu(kernel @ scaled + bias, approximate="tanh"))
    torch.testing.assert_close(embedding(pixel)[0], expected)


def test_where_something_is_in_an_image_matters():
    embedding = ImageEmbedding(PICTURE, 16)
    images = torch.zeros(2, 18, 24, 3, dtype=torch.uint8)
    images[0, 2, 3], images[1, 2, 20] = 255, 255
    first, second = embedding(images.flatten(1))
    assert not torch.allclose(first, second, atol=1e-3)


def test_parts_are_added_up():
    embedding = StepEmbedding(MIXED, 16)
    rows = rows_of(MIXED, 4, 3)
    assert rows.dtype == torch.float32
    parts = [
        part(rows[..., where]) for part, where in zip(embedding.observation, MIXED.stretches().values(), strict=True)
    ]
    torch.testing.assert_close(embedding.observations(rows), sum(parts))
    embedding.observations(rows).square().sum().backward()
    without = [name for name, p in embedding.observation.named_parameters() if p.grad is None]
    assert without == []


@pytest.mark.parametrize(
    "spec",
    [
        MIXED,
        TaskSpec({"observation": PICTURE}, Box((2,), -1.0, 1.0), 10),
        TaskSpec({"observation": Box((3,), -1.0, 1.0)}, Discrete((2, 3)), 10),
    ],
)
@pytest.mark.parametrize("per_step", [1, 3])
def test_tokens_of_a_lifetime_are_those_of_its_steps(spec, per_step):
    embedding = StepEmbedding(spec, 16)
    observations = rows_of(spec, 2, 4)
    if isinstance(spec.action, Discrete):
        actions = torch.stack([torch.randint(size, (2, 4)) for size in spec.action.sizes], -1)
        actions = actions if spec.action_shape else actions[..., 0]
    else:
        actions = torch.rand(2, 4, *spec.action_shape)
    rewards = torch.rand(2, 4)
    whole = embedding.tokens(observations, actions, rewards, per_step=per_step)
    steps, previous = [], None
    for step in range(4):
        steps += embedding.next_tokens(observations[:, step], previous, per_step=per_step)
        previous = (actions[:, step], rewards[:, step])
    assert len(steps) == (4 if per_step == 1 else 10)
    torch.testing.assert_close(torch.stack(steps, 1), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("channels", [(), (16, 0)])
def test_bad_channels_are_refused(channels):
    with pytest.raises(ValueError, match=r"image_channels must be one or more numbers from 1"):
        StepEmbedding(TaskSpec({"observation": PICTURE}, Discrete((5,)), 10), 8, image_channels=channels)
