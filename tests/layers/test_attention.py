"""Positions and windows against numbers worked by hand."""

import math

import pytest
import torch

from distillery.layers.attention import (
    QUERY_BLOCK,
    Rotary,
    WindowAttention,
    alibi_slopes,
    blockwise_window_attention,
    turned_pairs,
    window_attention,
    window_bias,
)


def test_biases_by_hand():
    hidden, like = -math.inf, torch.empty(0)
    expected = [[0, hidden, hidden, hidden], [0, 0, hidden, hidden], [hidden, 0, 0, hidden], [hidden, hidden, 0, 0]]
    assert window_bias(4, 4, 2, None, like).tolist() == expected
    assert window_bias(1, 4, 2, None, like).tolist() == expected[3:]
    assert window_bias(1, 3, 3, torch.tensor([1.0, 0.5]), like).tolist() == [[[-2, -1, 0]], [[-1, -0.5, 0]]]


def test_alibi_slopes_of_eight_heads():
    assert alibi_slopes(8).tolist() == [2.0**-h for h in range(1, 9)]


def test_rotary_products_depend_on_distance_alone():
    rotary = Rotary(8, fraction=1.0)
    torch.manual_seed(0)
    query, key = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)

    def product(query_at: int, key_at: int) -> float:
        turned = [rotary.turn(x, rotary.turns(torch.tensor([at]))) for x, at in ((query, query_at), (key, key_at))]
        return float((turned[0] * turned[1]).sum())

    assert math.isclose(product(7, 3), product(1007, 1003), rel_tol=1e-3)
    assert not math.isclose(product(7, 3), product(7, 4), rel_tol=1e-3)


def test_a_pair_turns_by_its_angle():
    rotary = Rotary(2, fraction=1.0)
    turned = rotary.turn(torch.tensor([[[[1.0, 0.0]]]]), rotary.turns(torch.tensor([2])))
    torch.testing.assert_close(turned.flatten(), torch.tensor([math.cos(2.0), math.sin(2.0)]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_complex_products_equal_the_plain_turns(dtype):
    rotary = Rotary(8, fraction=0.5)
    torch.manual_seed(0)
    angles = rotary.turns(torch.arange(3, 14))
    heads = torch.randn(2, 11, 2, 3, 8, dtype=dtype, requires_grad=True)
    weights = torch.randn(2, 11, 2, 3, 8)
    turned = rotary.turn(heads, angles)
    plain = turned_pairs(heads.float().unflatten(-1, (4, 2)), angles[:, None, None]).flatten(-2).to(dtype)
    assert turned.dtype == dtype
    torch.testing.assert_close(turned, plain)
    gradients = [torch.autograd.grad((values.float() * weights).sum(), heads)[0] for values in (turned, plain)]
    torch.testing.assert_close(*gradients)
    torch.testing.assert_close(turned[..., 4:], heads[..., 4:])  # the other half of the pairs stays


def test_far_positions_turn_as_exactly_as_near_ones():
    rotary = Rotary(8, fraction=1.0)
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 1, 1, 8)

    def product(query_at: int, key_at: int) -> float:
        turned = [rotary.turn(x, rotary.turns(torch.tensor([at]))) for x, at in ((query, query_at), (key, key_at))]
        return float((turned[0] * turned[1]).sum())

    for shift in (10**6 + 1, 10**8 + 7):
        assert math.isclose(product(7 + shift, 3 + shift), product(7, 3), rel_tol=1e-5)


@pytest.mark.parametrize("slopes", [None, alibi_slopes(4)], ids=["unbiased", "alibi"])
@pytest.mark.parametrize("num_key_heads", [4, 2, 1])
@pytest.mark.parametrize("window", [1, 5, QUERY_BLOCK, QUERY_BLOCK + 1, 2 * QUERY_BLOCK, 1000])
@pytest.mark.parametrize("num_tokens", [3, QUERY_BLOCK, 3 * QUERY_BLOCK + 7])
def test_blocks_of_queries_equal_one_call(window, num_tokens, num_key_heads, slopes):
    torch.manual_seed(0)
    queries = torch.randn(2, 4, num_tokens, 4, requires_grad=True)
    keys, values = torch.randn(2, 2, num_key_heads, num_tokens, 4, requires_grad=True).unbind()
    weights = torch.randn(2, 4, num_tokens, 4)
    results = []
    for attend in (window_attention, blockwise_window_attention):
        read = attend(queries, keys, values, window=window, slopes=slopes)
        results.append((read, *torch.autograd.grad((read * weights).sum(), [queries, keys, values])))
    for blocks, plain in zip(*results, strict=True):
        torch.testing.assert_close(blocks, plain, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("positions", ["rotary", "alibi", "none"])
@pytest.mark.parametrize("num_key_heads", [1, 2])
def test_grouped_queries_are_heads_with_the_same_keys_and_values(positions, num_key_heads):
    torch.manual_seed(0)
    settings = {"num_heads": 4, "window": 5, "positions": positions}
    grouped = WindowAttention(16, num_key_heads=num_key_heads, **settings)
    every = WindowAttention(16, **settings)
    every.out_projection.load_state_dict(grouped.out_projection.state_dict())
    for name, parameter in grouped.in_projection.named_parameters():
        heads = parameter.unflatten(0, (-1, 4))
        queries, keys, values = heads.split([4, num_key_heads, num_key_heads])
        times = 4 // num_key_heads
        repeated = torch.cat([queries, keys.repeat_interleave(times, 0), values.repeat_interleave(times, 0)])
        every.in_projection.get_parameter(name).copy_(repeated.flatten(0, 1))
    x = torch.randn(3, 13, 16)
    torch.testing.assert_close(grouped(x), every(x))
    torch.testing.assert_close(grouped.weights(x, 9), every.weights(x, 9))
    cache = grouped.new_cache(3)
    assert cache.keys.shape == (3, num_key_heads, 5, 4)
    steps = [grouped.step(x[:, i : i + 1], i, cache) for i in range(13)]
    torch.testing.assert_close(torch.cat(steps, 1), every(x))


def test_heads_that_make_no_groups_are_refused():
    with pytest.raises(ValueError, match="num_key_heads must divide num_heads: 4 / 3"):
        WindowAttention(16, num_heads=4, num_key_heads=3, window=5, positions="none")


@torch.no_grad()
def test_fast_attention_equals_the_plain_formula():
    torch.manual_seed(0)
    attention = WindowAttention(8, num_heads=2, window=3, positions="alibi")
    x = torch.randn(1, 7, 8)
    queries, keys, values = (h[0] for h in attention._heads(x))  # (H, S, K)
    out = torch.zeros(7, 2, 4)
    for head in range(2):
        for i in range(7):
            seen = range(max(0, i - 2), i + 1)
            scores = torch.stack(
                [queries[head, i] @ keys[head, j] / 2.0 - (i - j) * 2.0 ** (-4.0 * (head + 1)) for j in seen]
            )
            out[i, head] = sum(w * values[head, j] for w, j in zip(scores.softmax(0), seen, strict=True))
    torch.testing.assert_close(attention(x)[0], attention.out_projection(out.flatten(1)))


@torch.no_grad()
@pytest.mark.parametrize("positions", ["rotary", "alibi", "none"])
def test_weights_times_values_are_what_the_layer_gives(positions):
    torch.manual_seed(0)
    attention = WindowAttention(8, num_heads=2, window=4, positions=positions).eval()
    x = torch.randn(3, 9, 8)
    _, _, values = attention._heads(x)
    for position in (0, 2, 8):
        weights = attention.weights(x, position)
        torch.testing.assert_close(weights.sum(-1), torch.ones(3, 2))
        assert (weights > 0).sum(-1).unique().tolist() == [min(position + 1, 4)]
        read = (weights[:, :, None] @ values)[:, :, 0]  # (B, H, K)
        torch.testing.assert_close(
            attention.out_projection(read.flatten(1)), attention(x)[:, position], rtol=1e-4, atol=1e-5
        )


@torch.no_grad()
@pytest.mark.parametrize("bfloat16", [False, True])
def test_blocks_of_queries_equal_one_token_at_a_time(bfloat16):
    torch.manual_seed(0)
    attention = WindowAttention(16, num_heads=2, window=QUERY_BLOCK + 9, positions="rotary").eval()
    x = torch.randn(2, 3 * QUERY_BLOCK, 16)
    cache = attention.new_cache(2)
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        whole = attention(x)
        steps = torch.cat([attention.step(x[:, i : i + 1], i, cache) for i in range(x.shape[1])], 1)
    tolerance = 2e-2 if bfloat16 else 1e-5
    torch.testing.assert_close(steps, whole, rtol=tolerance, atol=tolerance)


def test_dropout_of_weights_is_drawn_in_every_block():
    torch.manual_seed(0)
    attention = WindowAttention(8, num_heads=2, window=1, positions="none", dropout=0.5).train()
    x = torch.ones(1, 4 * QUERY_BLOCK, 8)
    # A token that sees itself alone reads it twofold, or nothing.
    kept = [(part - attention.out_projection.bias).abs().sum(-1) > 1e-6 for part in attention(x)[0].split(QUERY_BLOCK)]
    shares = torch.stack([part.float().mean() for part in kept])
    assert (shares > 0.5).all() and (shares < 0.95).all()  # either head: 0.75
    assert not torch.equal(kept[0], kept[1])
