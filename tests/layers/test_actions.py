"""Distributions over actions against torch's own, and numbers worked by hand."""

import math

import pytest
import torch
from torch.distributions import Categorical, Normal

from distillery.core.specs import Box, Discrete
from distillery.layers.actions import (
    LOG_DEVIATION_BOUNDS,
    ActionEmbedding,
    entropy,
    likeliest,
    log_probability,
    num_action_parameters,
    prediction_loss,
    sample,
)

ONE, SEVERAL, CONTINUOUS = Discrete((5,)), Discrete((3, 4)), Box((2,), -2.0, 4.0)


def parameters(space, *leading: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return 2 * torch.randn((*leading, num_action_parameters(space)), generator=generator)


def normal(rows: torch.Tensor) -> Normal:
    """Over the scale of [-1, 1]; deviations within their bounds are nearly what the parameters say."""
    means, raw = rows.chunk(2, -1)
    low, high = LOG_DEVIATION_BOUNDS
    bounded = high - torch.nn.functional.softplus(high - raw)
    return Normal(means.tanh(), (low + torch.nn.functional.softplus(bounded - low)).exp())


def test_how_many_parameters():
    assert [num_action_parameters(space) for space in (ONE, SEVERAL, CONTINUOUS)] == [5, 7, 4]


def test_log_probabilities_and_entropies_of_discrete_actions():
    rows = parameters(SEVERAL, 6, 2)
    actions = torch.stack([torch.randint(size, (6, 2)) for size in SEVERAL.sizes], -1)
    first, second = Categorical(logits=rows[..., :3]), Categorical(logits=rows[..., 3:])
    expected = first.log_prob(actions[..., 0]) + second.log_prob(actions[..., 1])
    torch.testing.assert_close(log_probability(SEVERAL, rows, actions), expected)
    torch.testing.assert_close(entropy(SEVERAL, rows), first.entropy() + second.entropy())
    torch.testing.assert_close(prediction_loss(SEVERAL, rows, actions), -expected)
    rows, actions = parameters(ONE, 6, 2), torch.randint(5, (6, 2))
    torch.testing.assert_close(log_probability(ONE, rows, actions), Categorical(logits=rows).log_prob(actions))


def test_log_probabilities_and_entropies_of_continuous_actions():
    rows = parameters(CONTINUOUS, 6, 3)
    actions = torch.rand(6, 3, 2) * 6 - 2
    scaled = (actions - 1) / 3
    torch.testing.assert_close(
        log_probability(CONTINUOUS, rows, actions), normal(rows).log_prob(scaled).sum(-1), rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(entropy(CONTINUOUS, rows), normal(rows).entropy().sum(-1))


def test_label_smoothing_by_hand():
    rows = torch.tensor([[1.0, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0]]).log_softmax(-1)
    smoothed = prediction_loss(SEVERAL, rows, torch.tensor([[0, 2]]), label_smoothing=0.3)
    expected = 0.0
    for logits, value in ((rows[0, :3], 0), (rows[0, 3:], 2)):
        targets = torch.full_like(logits, 0.3 / len(logits))
        targets[value] += 0.7
        expected -= float((targets * logits.log_softmax(-1)).sum())
    assert float(smoothed) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match=r"label_smoothing=0\.3 is for discrete actions"):
        prediction_loss(CONTINUOUS, parameters(CONTINUOUS, 1), torch.zeros(1, 2), label_smoothing=0.3)


@pytest.mark.parametrize("space", [ONE, SEVERAL])
def test_discrete_draws_are_as_frequent_as_they_are_probable(space):
    rows = parameters(space, 1).expand(40_000, -1) / 2
    draws = sample(space, rows, torch.Generator().manual_seed(1)).view(40_000, -1)
    assert draws.dtype == torch.int64
    start = 0
    for column, size in zip(draws.T, space.sizes, strict=True):
        probabilities = rows[0, start : start + size].softmax(-1)
        torch.testing.assert_close(column.bincount(minlength=size) / 40_000, probabilities, atol=0.01, rtol=0)
        start += size
    best = likeliest(space, rows[:1])
    assert best.shape == ((1,) if space.width == 1 else (1, space.width))
    assert bool(
        (
            log_probability(space, rows[:50], best.expand(50, *best.shape[1:])) + 1e-6
            >= log_probability(space, rows[:50], draws[:50, 0] if space.width == 1 else draws[:50])
        ).all()
    )


def test_continuous_draws_have_their_mean_and_deviation_and_keep_the_bounds():
    rows = torch.tensor([[0.2, -0.1, -2.0, -1.5]]).expand(40_000, -1)
    draws = sample(CONTINUOUS, rows, torch.Generator().manual_seed(1))
    expected = normal(rows[:1])
    torch.testing.assert_close(draws.mean(0), 1 + 3 * expected.mean[0], atol=0.02, rtol=0)
    torch.testing.assert_close(draws.std(0), 3 * expected.stddev[0], atol=0.02, rtol=0)
    wild = sample(CONTINUOUS, 50 * parameters(CONTINUOUS, 2000), torch.Generator().manual_seed(2))
    assert float(wild.min()) == -2.0
    assert float(wild.max()) == 4.0
    torch.testing.assert_close(likeliest(CONTINUOUS, rows[:1]), 1 + 3 * expected.mean)


@pytest.mark.parametrize("space", [ONE, SEVERAL, CONTINUOUS])
def test_the_same_generator_gives_the_same_draws(space):
    rows = parameters(space, 30)
    first, second = (sample(space, rows, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)


def test_deviations_stay_within_bounds_and_keep_their_gradients():
    rows = torch.tensor([[0.0, 0.0, -40.0, 40.0]])
    per_number = Normal(0.0, 1.0).entropy()
    low, high = LOG_DEVIATION_BOUNDS
    assert float(entropy(CONTINUOUS, rows)) == pytest.approx(low + high + 2 * float(per_number), abs=0.01)
    near = torch.tensor([[0.0, 0.0, -6.0, 3.0]], requires_grad=True)  # beyond the bounds a hard cut would end learning
    entropy(CONTINUOUS, near).sum().backward()
    assert bool((near.grad[0, 2:] > 0.05).all())


def test_fitting_finds_the_actions():
    rows = torch.zeros(1, 4, requires_grad=True)
    targets = torch.tensor([[1.0, -1.0]]) + 0.3 * torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    optimiser = torch.optim.Adam([rows], lr=0.05)
    for _ in range(300):
        optimiser.zero_grad()
        prediction_loss(CONTINUOUS, rows.expand(500, -1), targets).mean().backward()
        optimiser.step()
    torch.testing.assert_close(likeliest(CONTINUOUS, rows.detach())[0], targets.mean(0), atol=0.02, rtol=0)
    deviations = math.log(0.1) + 0.5 * math.log(2 * math.pi * math.e)  # 0.3 is 0.1 in the scale of [-1, 1]
    assert float(entropy(CONTINUOUS, rows.detach())) == pytest.approx(2 * deviations, abs=0.1)


def test_embeddings_add_up_tables_or_map_scaled_numbers():
    table = ActionEmbedding(ONE, 8)
    assert torch.equal(table(torch.tensor([3])), table.tables[0].weight[[3]])
    tables = ActionEmbedding(SEVERAL, 8)
    expected = tables.tables[0].weight[2] + tables.tables[1].weight[3]
    assert torch.equal(tables(torch.tensor([[2, 3]]))[0], expected)
    linear = ActionEmbedding(CONTINUOUS, 8)
    torch.testing.assert_close(linear(torch.tensor([[-2.0, 4.0]])), linear.projection(torch.tensor([[-1.0, 1.0]])))
