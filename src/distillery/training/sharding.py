"""Large models: parameters, gradients and optimiser states spread over the processes, by torch's FSDP.

Each process holds a part of every parameter, gathers a block's parameters when it needs them and drops them again.
States are kept whole, as those of one process are, so that a training goes on with any number of processes, sharded
or not. The first process's GPU must hold the weights once as a whole, to act on validation tasks. Under autocast, a
block's bfloat16 weights stay until its backward pass, unless activations are checkpointed.

Source: Zhao et al., PyTorch FSDP (2023), arXiv 2304.11277.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from distillery.training.distributed import Workers


def shard_parameters(model: nn.Module, workers: Workers, device_type: str) -> None:
    """Spreads a model's parameters over the processes, block by block; to be called before its optimiser is made.

    The model may lie in ordinary memory: no more than a block at a time goes to the device as a whole.

    Raises:
        ValueError: the model has no blocks, so that it could be gathered only as a whole.
    """
    blocks = blocks_of(model, "runtime.fsdp")
    mesh = init_device_mesh(device_type, (workers.count,))
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def blocks_of(model: nn.Module, setting: str) -> nn.ModuleList:
    """The blocks that a model is a stack of.

    Raises:
        ValueError: it has none; names the setting that needs them.
    """
    blocks = getattr(model, "blocks", None)
    if not isinstance(blocks, nn.ModuleList):
        raise ValueError(f"{setting} works block by block, and {type(model).__name__} has no blocks; set it to false")
    return blocks


def gathered(tensor: Tensor) -> Tensor:
    """The whole of a tensor, where it is; every process calls it alike."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole(value: Any) -> Any:
    """States with whole tensors in them; spread ones come to ordinary memory. Every process calls it alike."""
    if isinstance(value, DTensor):
        return gathered(value).detach().cpu()
    if isinstance(value, dict):
        return {key: whole(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [whole(entry) for entry in value]
    return value


def load_model_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Loads a whole state into a model, spread as its parameters are."""
    held = model.state_dict()
    model.load_state_dict({name: _spread(value, held.get(name)) for name, value in state.items()})


def load_optimiser_state(optimiser: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Loads a whole state into an optimiser, spread as its parameters are."""
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    spread = {
        number: {name: _spread(value, parameters[number]) for name, value in entries.items()}
        for number, entries in state["state"].items()
    }
    optimiser.load_state_dict({**state, "state": spread})


def _spread(value: Any, like: Tensor | None) -> Any:
    """A tensor as another of its shape is spread; what has no shape of it, as the number of steps, stays whole."""
    if not isinstance(like, DTensor) or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
