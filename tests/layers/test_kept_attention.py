"""Attention that keeps its weights is attention."""

import pytest
import torch

from distillery.layers.attention import WindowAttention, window_attention
from distillery.layers.kept_attention import QUERIES_OF_A_BLOCK, can_keep, kept_attention
from distillery.layers.precision import bfloat16_products

LENGTHS = [1, 7, QUERIES_OF_A_BLOCK, QUERIES_OF_A_BLOCK + 1, 4 * QUERIES_OF_A_BLOCK - 3]


@pytest.mark.parametrize("num_tokens", LENGTHS)
def test_it_reads_and_learns_what_plain_attention_does(num_tokens):
    torch.manual_seed(0)
    heads = torch.randn(3, 2, 3, num_tokens, 8, requires_grad=True)
    towards = torch.randn(2, 3, num_tokens, 8)
    results = []
    for read in (kept_attention(*heads), window_attention(*heads.double(), window=num_tokens)):
        results.append((read.double(), torch.autograd.grad((read * towards).sum(), heads)[0].double()))
    for found, expected in zip(*results, strict=True):
        assert (found - expected).norm() < 0.01 * expected.norm()
    # No query reads a later token, of whatever block.
    later = heads.detach().clone()
    later[:, :, :, num_tokens // 2 + 1 :] += 5
    before, after = (kept_attention(*x)[:, :, : num_tokens // 2 + 1] for x in (heads, later))
    assert torch.equal(before, after)


def test_what_all_tokens_have_in_common_drowns_nothing():
    """Keys and values of 30 and little more: the little decides, and bfloat16 rounds to eighths there."""
    torch.manual_seed(0)
    queries, keys, values = torch.randn(3, 2, 2, 50, 8)
    heads = [queries, 30 + 0.5 * keys, 30 + 0.1 * values]
    heads = [x.requires_grad_() for x in heads]
    towards = torch.randn(2, 2, 50, 8)
    found = torch.autograd.grad((kept_attention(*heads) * towards).sum(), heads)
    exact = torch.autograd.grad((window_attention(*[x.double() for x in heads], window=50) * towards).sum(), heads)
    for one, other in zip(found, exact, strict=True):
        assert (one - other).norm() < 0.02 * other.norm()


def test_so_many_that_they_cannot_be_kept_are_computed_again():
    assert can_keep(torch.empty(8, 4, 400, 16, device="meta"))
    assert not can_keep(torch.empty(512, 8, 1024, 16, device="meta"))


def test_gradients_of_one_token_are_exact_by_hand():
    """It can read itself alone, so that nothing but its value counts."""
    queries, keys, values = torch.randn(3, 1, 1, 1, 4, requires_grad=True).unbind()
    read = kept_attention(queries, keys, values)
    torch.testing.assert_close(read, values.bfloat16())
    of_queries, of_keys, of_values = torch.autograd.grad(read.sum(), [queries, keys, values])
    assert not of_queries.any()
    assert not of_keys.any()
    assert torch.equal(of_values, torch.ones(1, 1, 1, 4))


@pytest.mark.parametrize("num_key_heads", [4, 2])
@pytest.mark.parametrize("positions", ["rotary", "none"])
def test_a_layer_trains_with_it_as_without(positions, num_key_heads):
    torch.manual_seed(0)
    attention = WindowAttention(32, num_heads=4, num_key_heads=num_key_heads, window=300, positions=positions)
    x = torch.randn(2, 300, 32, requires_grad=True)
    towards = torch.randn(2, 300, 32)
    results = []
    for bfloat16 in (False, True):
        with bfloat16_products("cpu", enabled=bfloat16):
            read = attention(x)
        assert ("KeptAttention" in graph(read)) == bfloat16
        gradients = torch.autograd.grad((read * towards).sum(), [x, *attention.parameters()])
        results.append([read, *gradients])
    for plain, found in zip(*results, strict=True):
        assert found.dtype == torch.float32
        # The offsets of keys change nothing, so that their gradient is rounding alone.
        assert (found - plain).norm() < 0.02 * plain.norm() + 0.02


def graph(tensor: torch.Tensor) -> str:
    """Names of the operations that a tensor came from."""
    names, waiting, seen = [], [tensor.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            names.append(node.name())
            waiting.extend(following for following, _ in node.next_functions)
    return " ".join(names)
