"""Several processes train one model, as `torchrun` starts them: each takes its share of every batch.

The processes draw one batch together, each its part, and gradients are averaged, so that the result does not depend on
the number of processes beyond rounding; but for dropout and hidden tokens, which each draws for itself.
"""

import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Workers:
    """The processes that train together.

    Attributes:
        rank: number of this one; 0 validates, keeps states and reports.
        count: how many there are.
        local_rank: number of this one on its machine: its GPU.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    def device(self, device: str) -> str:
        """The device of this process: of several GPUs, its own."""
        return f"cuda:{self.local_rank}" if device == "cuda" and self.count > 1 else device

    def check_batch_size(self, size: int) -> None:
        """Refuses batches that cannot be divided evenly.

        Raises:
            ValueError: naming the size.
        """
        if size % self.count:
            raise ValueError(
                f"histories.contexts.batch_size={size} cannot be divided over {self.count} processes; choose a "
                f"multiple of {self.count}"
            )

    def average(self, value: Tensor) -> Tensor:
        """The mean of what the processes hold, in a tensor of its own if there are several."""
        if self.count == 1:
            return value
        total = value.clone()
        dist.all_reduce(total)
        return total / self.count

    def average_gradients(self, model: nn.Module) -> None:
        """Averages gradients over the processes, all in one message."""
        if self.count == 1:
            return
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.count
        for gradient, averaged in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(averaged.view_as(gradient))

    def from_first(self, value: Any) -> Any:
        """The value that rank 0 holds; it goes by way of ordinary memory, however large."""
        if self.count == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]


def join_workers(device: str) -> Workers:
    """Joins the other processes if `torchrun` started this one; otherwise there is this one alone."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return Workers()
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo")
    return Workers(dist.get_rank(), count, int(os.environ.get("LOCAL_RANK", "0")))


def leave_workers(workers: Workers) -> None:
    """Parts from the other processes, once all work together is done."""
    if workers.count > 1:
        dist.destroy_process_group()
