"""Products in bfloat16: what they compute, and that nothing else changes."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from distillery.layers.precision import Linear, bfloat16_products, slow_bfloat16


@pytest.fixture
def linear() -> Linear:
    torch.manual_seed(0)
    return Linear(24, 40)


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(3, 7, 24, generator=torch.Generator().manual_seed(1), requires_grad=True)


def gradients(linear: nn.Linear, x: torch.Tensor, towards: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad((linear(x) * towards).sum(), [x, linear.weight, linear.bias]))


def rounded(values: torch.Tensor) -> torch.Tensor:
    return values.detach().bfloat16().double()


def test_the_product_is_that_of_rounded_factors(linear, x):
    with bfloat16_products("cpu", enabled=True):
        found = linear(x)
    exact = rounded(x) @ rounded(linear.weight).T + rounded(linear.bias)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=2**-8)
    assert not torch.equal(found, linear(x))


def test_gradients_are_those_of_rounded_factors(linear, x):
    towards = torch.randn(3, 7, 40, generator=torch.Generator().manual_seed(2))
    with bfloat16_products("cpu", enabled=True):
        found = gradients(linear, x, towards)
    exact = [
        rounded(towards) @ rounded(linear.weight),
        rounded(towards).flatten(0, 1).T @ rounded(x).flatten(0, 1),
        rounded(towards).sum((0, 1)),
    ]
    for one, other in zip(found, exact, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one.double(), other, rtol=2**-8, atol=2**-7)


def test_what_comes_out_may_stay_rounded(linear, x):
    into = Linear(24, 40, rounded=True)
    into.load_state_dict(linear.state_dict())
    out_of = Linear(40, 24)
    with bfloat16_products("cpu", enabled=True):
        hidden = into(x)
        assert hidden.dtype == torch.bfloat16
        assert torch.equal(hidden.float(), linear(x))
        found = torch.autograd.grad(out_of(hidden).sum(), [x, into.weight])
        expected = torch.autograd.grad(out_of(linear(x)).sum(), [x, linear.weight])
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
    assert into(x).dtype == torch.float32


def test_frozen_weights_get_no_gradient(linear, x):
    linear.weight.requires_grad_(False)
    with bfloat16_products("cpu", enabled=True):
        linear(x).sum().backward()
    assert linear.weight.grad is None
    assert linear.bias.grad is not None
    assert x.grad is not None


def test_without_it_a_plain_linear_map_is_left(linear, x):
    plain = nn.Linear(24, 40)
    plain.load_state_dict(linear.state_dict())
    with bfloat16_products("cpu", enabled=False):
        assert torch.equal(linear(x), plain(x))
    assert torch.equal(linear(x), plain(x))


def test_an_error_within_leaves_nothing_behind(linear, x):
    before = linear(x)
    with pytest.raises(RuntimeError), bfloat16_products("cpu", enabled=True):
        linear(x[..., :5])
    assert torch.equal(linear(x), before)


def test_a_first_layer_needs_no_gradient_of_its_input(linear):
    with bfloat16_products("cpu", enabled=True):
        linear(torch.randn(2, 24)).sum().backward()
    assert linear.weight.grad is not None


def test_a_cpu_without_instructions_for_it_is_told_of():
    flags = Path("/proc/cpuinfo").read_text()
    able = any(re.search(rf"\b{flag}\b", flags) for flag in ("avx512_bf16", "amx_bf16", "bf16"))
    warning = slow_bfloat16("cpu", enabled=True)
    assert (warning is None) == able
    assert warning is None or "runtime.bfloat16=false" in warning
    assert slow_bfloat16("cpu", enabled=False) is None
    assert slow_bfloat16("cuda:0", enabled=True) is None
