"""The chunkwise form equals the recurrence; the recurrence does what it says; gradients are right."""

import pytest
import torch
import torch.nn.functional as F

from distillery.layers.linear_attention import GatedDeltaAttention, gated_delta_rule, gated_delta_step


def tokens(num_tokens: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    """Queries, keys, values, (2, 3, S, 4), log decays and strengths, (2, 3, S)."""
    generator = torch.Generator().manual_seed(0)
    queries, keys, values = (torch.randn(2, 3, num_tokens, 4, generator=generator, dtype=dtype) for _ in range(3))
    decays = -F.softplus(torch.randn(2, 3, num_tokens, generator=generator, dtype=dtype) - 2)
    strengths = torch.rand(2, 3, num_tokens, generator=generator, dtype=dtype)
    return queries, F.normalize(keys, dim=-1), values, decays, strengths


def by_recurrence(*inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    state, read = torch.zeros(2, 3, 4, 4, dtype=inputs[0].dtype), []
    for step in range(inputs[0].shape[2]):
        heads, state = gated_delta_step(*(x[:, :, step] for x in inputs), state)
        read.append(heads)
    return torch.stack(read, 2), state


@pytest.mark.parametrize("chunk_tokens", [1, 7, 16, 64])
def test_chunks_equal_the_recurrence(chunk_tokens):
    inputs = tokens(37)
    read, state = gated_delta_rule(*inputs, chunk_tokens=chunk_tokens)
    expected, last = by_recurrence(*inputs)
    torch.testing.assert_close(read, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(state, last, rtol=1e-10, atol=1e-12)


def test_a_lifetime_may_be_read_in_pieces():
    inputs = tokens(40)
    whole, last = gated_delta_rule(*inputs)
    first, state = gated_delta_rule(*(x[:, :, :23] for x in inputs))
    second, state = gated_delta_rule(*(x[:, :, 23:] for x in inputs), state=state)
    torch.testing.assert_close(torch.cat([first, second], 2), whole)
    torch.testing.assert_close(state, last)


def test_gradients_of_chunks_are_those_of_the_recurrence():
    inputs = [x.requires_grad_() for x in tokens(21)]
    weights = torch.randn(2, 3, 21, 4, dtype=torch.float64)
    chunked = torch.autograd.grad((gated_delta_rule(*inputs, chunk_tokens=8)[0] * weights).sum(), inputs)
    expected = torch.autograd.grad((by_recurrence(*inputs)[0] * weights).sum(), inputs)
    for one, other in zip(chunked, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def test_a_key_keeps_what_was_last_written_to_it():
    """Two orthogonal keys, written in full and without decay; the second write to the first key replaces."""
    keys = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])[None, None]
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])[None, None]
    ones = torch.ones(1, 1, 3)
    read, state = gated_delta_rule(keys, keys, values, 0 * ones, ones)
    torch.testing.assert_close(read, values)
    torch.testing.assert_close(state[0, 0], torch.tensor([[5.0, 6.0], [3.0, 4.0]]))


def test_decay_by_hand():
    key = torch.tensor([[1.0, 0.0]])[None, None]
    keys, values = key.expand(1, 1, 3, 2), torch.tensor([[8.0], [0.0], [0.0]])[None, None].expand(1, 1, 3, 2)
    strengths = torch.tensor([[[1.0, 0.0, 0.0]]])
    read, _ = gated_delta_rule(keys, keys, values, torch.full((1, 1, 3), 0.5).log(), strengths)
    torch.testing.assert_close(read[0, 0, :, 0], torch.tensor([8.0, 4.0, 2.0]))


def test_strong_decay_overflows_nowhere():
    queries, keys, values, decays, strengths = tokens(64, torch.float32)
    inputs = [x.requires_grad_() for x in (queries, keys, values, 60 * decays - 20, strengths)]
    read, _ = gated_delta_rule(*inputs)
    assert bool(read.isfinite().all())
    assert all(bool(x.isfinite().all()) for x in torch.autograd.grad(read.square().sum(), inputs))


@torch.no_grad()
def test_one_token_at_a_time_equals_the_whole_sequence():
    torch.manual_seed(0)
    attention = GatedDeltaAttention(16, num_heads=4)
    x = torch.randn(3, 90, 16)
    cache, steps = attention.new_cache(3), []
    sizes = set()
    for position in range(90):
        steps.append(attention.step(x[:, position, None], position, cache))
        sizes.add((cache.state.shape, cache.recent.shape))
    torch.testing.assert_close(torch.cat(steps, 1), attention(x), rtol=1e-4, atol=1e-5)
    assert len(sizes) == 1  # what is remembered does not grow


def test_first_decays_are_spread_over_time_scales():
    attention = GatedDeltaAttention(16, num_heads=4)
    scales = 1 / F.softplus(attention.decay_offset)
    torch.testing.assert_close(scales[[0, -1]], torch.tensor([32.0, 2048.0]), rtol=1e-3, atol=0)
    torch.testing.assert_close(scales[1:] / scales[:-1], torch.full((3,), 4.0), rtol=1e-3, atol=0)


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match="num_heads must divide the width: 16 / 3"):
        GatedDeltaAttention(16, num_heads=3)
