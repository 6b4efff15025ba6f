"""Activation checkpointing changes memory, and nothing else."""

import pytest
import torch
from torch import nn

from distillery.core.records import Context
from distillery.core.specs import TaskSpec
from distillery.layers.activation_checkpointing import activation_checkpointing
from distillery.layers.precision import bfloat16_products
from distillery.models.causal_transformer import CausalTransformer
from distillery.models.linear_transformer import LinearTransformer

SPEC = TaskSpec.of_sizes((9, 9), 5, 20)
BUILDS = {"causal": CausalTransformer, "linear": LinearTransformer}


def model_and_context(name: str, num_steps: int, **settings) -> tuple[nn.Module, Context]:
    torch.manual_seed(0)
    model = BUILDS[name](SPEC, context_length=num_steps, **settings).train()
    shape = (1, num_steps)
    return model, Context(torch.randint(9, (*shape, 2)), torch.randint(5, shape), torch.rand(shape).round())


def gradients(model: nn.Module, context: Context, *, enabled: bool, bfloat16: bool) -> list[torch.Tensor]:
    torch.manual_seed(1)  # dropout draws the same numbers again on the way back
    with bfloat16_products("cpu", enabled=bfloat16), activation_checkpointing(enabled=enabled):
        loss = model(context).square().mean()
    return [loss, *torch.autograd.grad(loss, list(model.parameters()))]


def kept_bytes(model: nn.Module, context: Context, *, enabled: bool) -> int:
    """Of all tensors that the backward pass will read, parameters aside."""
    kept: dict[int, int] = {}
    own = {parameter.data_ptr() for parameter in model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if tensor.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        activation_checkpointing(enabled=enabled),
    ):
        loss = model(context).square().mean()
    del loss
    return sum(kept.values())


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("name", BUILDS)
def test_gradients_are_the_same_to_the_bit(name, bfloat16):
    model, context = model_and_context(name, 150, dropout=0.1)
    plain, again = (gradients(model, context, enabled=enabled, bfloat16=bfloat16) for enabled in (False, True))
    for one, other in zip(plain, again, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", BUILDS)
def test_what_is_kept_grows_by_a_vector_a_layer_and_token(name):
    num_layers, width, num_steps = 6, 32, 300
    model, context = model_and_context(name, num_steps, num_layers=num_layers, width=width, feedforward_width=128)
    kept = {enabled: kept_bytes(model, context, enabled=enabled) for enabled in (False, True)}
    inputs = num_layers * width * num_steps * 4
    assert inputs < kept[True] < 2 * inputs
    assert kept[False] > 8 * inputs


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILDS)
def test_a_context_of_64_thousand_steps_trains(name):
    model, context = model_and_context(name, 65536, width=16, num_layers=2, num_heads=1, feedforward_width=32)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with activation_checkpointing(enabled=True):
        loss = nn.functional.cross_entropy(model(context)[0], context.actions[0])
    loss.backward()
    optimiser.step()
    with torch.no_grad():
        assert nn.functional.cross_entropy(model(context)[0], context.actions[0]) < loss - 1e-3
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
