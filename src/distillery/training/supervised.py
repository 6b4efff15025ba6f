"""The supervised learner: predict an action at every step of a context.

Source: Laskin et al. (2022), arXiv 2210.14215, equation 4:

    L(theta) = - sum_t w_t log P_theta(a_t | history before t, o_t) / sum_t w_t

The action is the one the source took, and every weight 1, unless the context has targets or weights of its own.

Letters: B batch, T environment steps, K numbers of an action, P parameters of an action.
"""

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from distillery.core.protocols import SequenceModel
from distillery.core.records import Context
from distillery.core.specs import Box
from distillery.layers.actions import prediction_loss
from distillery.layers.activation_checkpointing import activation_checkpointing
from distillery.layers.precision import bfloat16_products
from distillery.training.distributed import Workers
from distillery.training.muon import BatchedMuon
from distillery.training.sharding import (
    blocks_of,
    gathered,
    load_model_state,
    load_optimiser_state,
    shard_parameters,
    whole,
)

OPTIMISERS = ("adamw", "muon")
SMALLEST_WEIGHT = 1e-8


class SupervisedLearner:
    """Updates a model by the log-probability of actions.

    Args:
        model: what is trained; it is moved to `device`.
        num_updates: length of the learning-rate schedule.
        optimiser: `adamw`, or `muon` for the matrices inside the blocks (Jordan et al., Muon, 2024) with AdamW for
            the rest.
        learning_rate: peak rate of AdamW.
        muon_learning_rate: peak rate of Muon.
        betas: of AdamW.
        weight_decay: of both.
        warmup_fraction: part of the schedule that rises linearly.
        initial_fraction: of the peak rate, where the schedule starts.
        final_fraction: of the peak rate, where the schedule ends, after a cosine.
        gradient_clip: global norm.
        label_smoothing: alpha; of discrete actions.
        device: `cpu`, `cuda`, ...
        bfloat16: multiply in bfloat16, see `distillery.layers.precision`.
        compile: compile the forward pass with `torch.compile`.
        fused: use AdamW's fused kernel.
        activation_checkpointing: see `distillery.layers.activation_checkpointing`.
        fsdp: spread the model over the processes, see `distillery.training.sharding`.
        workers: the processes that train together; None is this one alone.

    Raises:
        ValueError: a setting is out of range, or two do not go together.
    """

    def __init__(
        self,
        model: SequenceModel,
        *,
        num_updates: int,
        optimiser: str = "adamw",
        learning_rate: float = 3e-3,
        muon_learning_rate: float = 0.02,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.01,
        warmup_fraction: float = 0.05,
        initial_fraction: float = 0.01,
        final_fraction: float = 0.01,
        gradient_clip: float = 1.0,
        label_smoothing: float = 0.0,
        device: torch.device | str = "cpu",
        bfloat16: bool = False,
        compile: bool = False,
        fused: bool = False,
        activation_checkpointing: bool = False,
        fsdp: bool = False,
        workers: Workers | None = None,
    ) -> None:
        _require_settings(
            optimiser=optimiser,
            num_updates=num_updates,
            rates={"learning_rate": learning_rate, "muon_learning_rate": muon_learning_rate},
            fractions={
                "label_smoothing": label_smoothing,
                "warmup_fraction": warmup_fraction,
                "initial_fraction": initial_fraction,
                "final_fraction": final_fraction,
            },
            betas=betas,
            gradient_clip=gradient_clip,
            weight_decay=weight_decay,
        )
        if label_smoothing and isinstance(model.spec.action, Box):
            raise ValueError(
                f"training label_smoothing={label_smoothing} is for discrete actions, and these are "
                f"{model.spec.action}; set it to 0"
            )
        if fsdp and optimiser != "adamw":
            raise ValueError(
                f"runtime.fsdp spreads matrices over processes, and training.learner.optimiser={optimiser} needs them "
                "whole; set training.learner.optimiser=adamw or runtime.fsdp=false"
            )
        if activation_checkpointing:
            blocks_of(model, "runtime.activation_checkpointing")
        self.device, self._workers = torch.device(device), workers or Workers()
        self._sharded = fsdp and self._workers.count > 1
        if self._sharded:
            self._whole_model = copy.deepcopy(model)
            shard_parameters(model, self._workers, self.device.type)
            self.model = model
        else:
            self.model = self._whole_model = model.to(self.device)
        self._forward = torch.compile(model) if compile else model
        self._num_updates, self._warmup_fraction = num_updates, warmup_fraction
        self._initial_fraction, self._final_fraction = initial_fraction, final_fraction
        self._gradient_clip, self._label_smoothing = gradient_clip, label_smoothing
        self._bfloat16, self._activation_checkpointing = bfloat16, activation_checkpointing
        self._optimisers: list[torch.optim.Optimizer] = []
        matrices = _block_matrices(model) if optimiser == "muon" else []
        chosen = {id(parameter) for parameter in matrices}
        others = [parameter for parameter in model.parameters() if id(parameter) not in chosen]
        if matrices:
            self._optimisers.append(BatchedMuon(matrices, lr=muon_learning_rate, weight_decay=weight_decay))
        self._optimisers.append(
            torch.optim.AdamW(
                others, lr=learning_rate, betas=(betas[0], betas[1]), fused=fused or None, weight_decay=weight_decay
            )
        )
        self._peak_rates = [optimiser.param_groups[0]["lr"] for optimiser in self._optimisers]

    def rate_fraction(self, update: int) -> float:
        """Learning rate of the given update, counted from 0, as a part of the peak: linear rise, cosine fall."""
        warmup = max(1, round(self._warmup_fraction * self._num_updates))
        if update < warmup:
            return self._initial_fraction + (1 - self._initial_fraction) * (update + 1) / warmup
        progress = (update - warmup) / max(1, self._num_updates - warmup)
        cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
        return self._final_fraction + (1 - self._final_fraction) * cosine

    def loss(self, context: Context, *, total_weight: Tensor | None = None) -> Tensor:
        """Weighted mean loss per step.

        Args:
            context: with what is to be predicted.
            total_weight: what the weighted sum is divided by; None says the sum of the context's own weights.
        """
        with (
            bfloat16_products(self.device.type, enabled=self._bfloat16),
            activation_checkpointing(enabled=self._activation_checkpointing),
        ):
            parameters = self._forward(context)
        targets = context.actions if context.targets is None else context.targets
        losses = prediction_loss(
            self.model.spec.action, parameters, targets, label_smoothing=self._label_smoothing
        )  # (B, T)
        if context.weights is None:
            return losses.mean()
        total = context.weights.sum() if total_weight is None else total_weight
        return (losses * context.weights).sum() / total.clamp(min=SMALLEST_WEIGHT)

    def update(self, context: Context, update: int) -> dict[str, Tensor]:
        """One optimisation step on this process's part of a batch.

        Returns:
            The whole batch's loss and its gradient's norm before clipping, still on the device.
        """
        self.model.train()
        for optimiser, peak_rate in zip(self._optimisers, self._peak_rates, strict=True):
            optimiser.zero_grad(set_to_none=True)
            optimiser.param_groups[0]["lr"] = peak_rate * self.rate_fraction(update)
        context = context.to(self.device)
        # Of all processes, so that the mean of their gradients is the whole batch's, however weights are spread.
        total = None if context.weights is None else self._workers.average(context.weights.sum())
        loss = self.loss(context, total_weight=total)
        loss.backward()
        if not self._sharded:  # sharded models average theirs as they spread them
            self._workers.average_gradients(self.model)
        norm = gathered(nn.utils.clip_grad_norm_(self.model.parameters(), self._gradient_clip))
        for optimiser in self._optimisers:
            optimiser.step()
        return {"loss": self._workers.average(loss.detach()), "gradient_norm": norm}

    def whole_model(self) -> SequenceModel:
        """The model with its present weights; of a sharded one a copy, on the first process's device."""
        if self._sharded:
            self._whole_model.load_state_dict(whole(self.model.state_dict()))
            if self._workers.rank == 0:
                self._whole_model.to(self.device)
        return self._whole_model

    def state_dict(self) -> dict[str, Any]:
        """Weights and optimiser states, for exact resume; of sharded models whole, every process calling alike."""
        return {
            "model": whole(self.model.state_dict()),
            "optimisers": [whole(optimiser.state_dict()) for optimiser in self._optimisers],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        load_model_state(self.model, state["model"])
        for optimiser, saved in zip(self._optimisers, state["optimisers"], strict=True):
            load_optimiser_state(optimiser, saved)


def _require_settings(
    *,
    optimiser: str,
    num_updates: int,
    rates: Mapping[str, float],
    fractions: Mapping[str, float],
    betas: tuple[float, float],
    gradient_clip: float,
    weight_decay: float,
) -> None:
    """Refuses settings that are out of range, whatever the model."""
    if optimiser not in OPTIMISERS:
        raise ValueError(f"training optimiser must be one of {', '.join(OPTIMISERS)}, got {optimiser!r}")
    if num_updates < 1:
        raise ValueError(f"training num_updates must be at least 1, got {num_updates}")
    if not all(rate > 0 for rate in rates.values()):
        given = " and ".join(f"{name}={rate}" for name, rate in rates.items())
        raise ValueError(f"learning rates must be above 0, got {given}")
    for name, value in fractions.items():
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"training {name} must be from 0 to 1, got {value}")
    if len(betas) != 2 or not all(0.0 <= beta < 1.0 for beta in betas):
        raise ValueError(f"training betas must be two numbers from 0 to below 1, got {betas}")
    if not gradient_clip > 0 or weight_decay < 0:
        raise ValueError(
            f"training gradient_clip must be above 0 and weight_decay at least 0, got {gradient_clip} and "
            f"{weight_decay}"
        )


def _block_matrices(model: SequenceModel) -> list[nn.Parameter]:
    """Weight matrices of linear layers inside the model's blocks: what Muon is made for.

    A kernel over time has two dimensions as well, but is no linear map.
    """
    linear = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    return [
        parameter
        for name, parameter in model.named_parameters()
        if name.startswith("blocks.") and id(parameter) in linear
    ]
