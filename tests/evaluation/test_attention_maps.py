"""Maps are of the lifetime that was lived; their numbers are as worked by hand."""

import numpy as np
import pytest
import torch

from distillery.core.records import Context
from distillery.evaluation.attention_maps import AttentionMap, attention_map, record_steps, summarise_attention
from distillery.models.causal_transformer import CausalTransformer
from distillery.models.linear_transformer import LinearTransformer

SMALL = {"context_length": 12, "width": 16, "num_layers": 2, "num_heads": 2}


def model_of(room, **settings) -> CausalTransformer:
    torch.manual_seed(0)
    return CausalTransformer(room.spec, **SMALL, **settings)


@pytest.mark.parametrize("tokens_per_step", [1, 3])
def test_maps_of_a_lifetime(room, tokens_per_step):
    model, ids = model_of(room, tokens_per_step=tokens_per_step), np.arange(25)
    steps = record_steps(model, room, ids, num_steps=40, seed=0)
    assert steps.observations.shape == (25, 40, 2)
    assert steps.episode_starts[0].nonzero().flatten().tolist() == [0, 8, 16, 24, 32]
    assert bool((steps.rewards > 0).any())
    attention = attention_map(model, steps, 30)
    assert model.training
    assert attention.weights.shape == (25, 2, 2, 31)
    np.testing.assert_allclose(attention.weights.sum(-1), 1, rtol=1e-5)
    assert (attention.weights[..., :18] == 0).all()  # beyond the window
    expected = model.eval().attention_weights(Context(steps.observations, steps.actions, steps.rewards), 30)
    np.testing.assert_array_equal(attention.weights, expected)
    # In the one-token form a reward lies in the token of the step after it.
    shift = 1 if tokens_per_step == 1 else 0
    given = (steps.rewards != 0)[:, :30].numpy()
    np.testing.assert_array_equal(attention.rewarded[:, shift : 30 + shift], given)
    numbers = summarise_attention(attention)
    assert 0 < numbers["beyond_episode"] < 1
    assert numbers["rewards_to_uniform"] > 0
    assert numbers["starts_to_uniform"] > 0


def by_hand(weights: list[float], starts: list[int], rewarded: list[int]) -> AttentionMap:
    mask = np.zeros((2, 1, len(weights)), bool)
    mask[0, :, starts], mask[1, :, rewarded] = True, True
    return AttentionMap(len(weights) - 1, np.array(weights, np.float32)[None, None, None], mask[0], mask[1])


def test_numbers_by_hand():
    # Six steps, the first out of sight; episodes begin at 0, 2 and 4; rewards lie in steps 0 and 3.
    numbers = summarise_attention(by_hand([0.0, 0.1, 0.2, 0.3, 0.15, 0.25], [0, 2, 4], [0, 3]))
    assert numbers["beyond_episode"] == pytest.approx(0.6)  # steps 1 to 3
    assert numbers["beyond_episode_uniform"] == pytest.approx(3 / 5)
    assert numbers["beyond_previous_episode"] == pytest.approx(0.1)  # step 1
    assert numbers["rewards_to_uniform"] == pytest.approx(0.3 / 0.75 / (1 / 4))
    assert numbers["starts_to_uniform"] == pytest.approx(0.35 / 0.75 / (2 / 4))


def test_even_attention_is_one_and_what_is_not_there_is_none():
    numbers = summarise_attention(by_hand([0.25] * 4, [0, 2], []))
    assert numbers["starts_to_uniform"] == pytest.approx(1.0)
    assert numbers["beyond_episode"] == numbers["beyond_episode_uniform"] == pytest.approx(0.5)
    assert numbers["rewards_to_uniform"] is None


def test_mistakes_are_told(room):
    model = LinearTransformer(room.spec, **SMALL)
    steps = record_steps(model, room, np.arange(2), num_steps=3, seed=0)
    with pytest.raises(ValueError, match="LinearTransformer has no attention weights to map"):
        attention_map(model, steps, 2)
    with pytest.raises(ValueError, match="at_step must be from 0 to 2, got 3"):
        attention_map(model_of(room), steps, 3)
    with pytest.raises(ValueError, match="num_steps=0"):
        record_steps(model, room, np.arange(2), num_steps=0, seed=0)
