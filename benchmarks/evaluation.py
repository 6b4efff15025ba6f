"""Acting in context with frozen weights: a rolling cache beside computing the whole window anew at every step.

Both sides live the same lifetimes, environment included, their window full; each has the batch and the precision that
are fastest for it. Until the window is full both compute the same. Beyond, layers of a cache also remember what their
tokens saw before they left the window, which recomputing the last steps cannot know.

Letters: L lifetimes, T environment steps, D numbers of an observation, W width.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from benchmarks.cases import Case, Conditions, Row, compare
from benchmarks.machine import Demand
from benchmarks.timing import Side, Variant, Work
from distillery.core.protocols import SequenceModel
from distillery.core.records import Context
from distillery.core.seeding import torch_generator
from distillery.evaluation.in_context import chooser, live
from distillery.models.causal_transformer import CausalTransformer
from distillery.tasks.dark_room import DarkRoom

WIDTH, NUM_LAYERS, NUM_HEADS = 64, 4, 4


@dataclass
class LastSteps:
    """The steps of L lifetimes that lie in the window; the current one has no action and no reward yet.

    Attributes:
        observations: each (L, D).
        actions: each (L,).
        rewards: each (L,).
    """

    observations: deque[Tensor]
    actions: deque[Tensor]
    rewards: deque[Tensor]


class Recomputing(SequenceModel):
    """A model that remembers steps instead of keys and values, and reads all of them again for each action.

    Args:
        model: what is computed.
        begin_full: a new cache holds steps of nothing, as many as leave room for the current one.
    """

    def __init__(self, model: CausalTransformer, *, begin_full: bool = False) -> None:
        super().__init__()
        self.model, self.begin_full = model, begin_full
        self.spec, self.context_length, self.width = model.spec, model.context_length, model.width
        self.action_head = model.action_head

    def encode(self, context: Context) -> Tensor:
        """See `SequenceModel.encode`."""
        return self.model.encode(context)

    def new_cache(self, batch_size: int) -> LastSteps:
        """See `SequenceModel.new_cache`."""
        past, device = self.context_length - 1, next(self.model.parameters()).device
        num_steps = past if self.begin_full else 0
        whole = torch.zeros(batch_size, dtype=torch.int64, device=device)
        rows = torch.zeros(batch_size, self.spec.observation_width, dtype=torch.int64, device=device)
        return LastSteps(
            deque([rows] * num_steps, past + 1),
            deque([whole] * num_steps, past),
            deque([whole.float()] * num_steps, past),
        )

    def encode_step(self, observations: Tensor, previous: tuple[Tensor, Tensor] | None, cache: LastSteps) -> Tensor:
        """See `SequenceModel.encode_step`."""
        cache.observations.append(observations)
        if previous is not None:
            cache.actions.append(previous[0])
            cache.rewards.append(previous[1])
        empty = torch.zeros(len(observations), 0, device=observations.device)
        actions = torch.stack(list(cache.actions), 1) if cache.actions else empty.long()
        rewards = torch.stack(list(cache.rewards), 1) if cache.rewards else empty
        return self.encode(Context(torch.stack(list(cache.observations), 1), actions, rewards))[:, -1]


def model_of(context_length: int) -> CausalTransformer:
    """The default model of Dark Room with another window."""
    torch.manual_seed(0)
    return CausalTransformer(
        DarkRoom().spec,
        context_length=context_length,
        width=WIDTH,
        num_layers=NUM_LAYERS,
        num_heads=NUM_HEADS,
        feedforward_width=4 * WIDTH,
    ).eval()


def living(
    model: SequenceModel, num_lifetimes: int, device: str, *, bfloat16: bool, steps_first: int, steps_each: int
) -> Work:
    """Lifetimes on held-out goals that have lived for some steps, and live on by a few at a time."""
    room, model = DarkRoom(), model.to(device)
    ids = np.resize(room.task_ids("held_out"), num_lifetimes)
    choose = chooser(room.spec, greedy=False, generator=torch_generator(0, "actions", device=device))
    steps = live(model, room.batch(ids, seed=0, device=device), choose)

    @torch.inference_mode()
    def advance(num_steps: int) -> int:
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bfloat16):
            for _ in range(num_steps):
                next(steps)
        return num_steps * num_lifetimes

    advance(steps_first)
    return partial(advance, steps_each)


def variants(
    model: Callable[[], SequenceModel], batches: tuple[int, ...], device: str, *, steps_first: int, steps_each: int
) -> list[Variant]:
    """Every batch in both precisions."""

    def prepare(num_lifetimes: int, bfloat16: bool) -> Work:
        return living(
            model(),
            num_lifetimes,
            device,
            bfloat16=bfloat16,
            steps_first=steps_first,
            steps_each=steps_each,
        )

    return [
        Variant(
            partial(prepare, num_lifetimes, bfloat16),
            {"lifetimes": num_lifetimes, "precision": "bfloat16" if bfloat16 else "float32"},
        )
        for num_lifetimes in batches
        for bfloat16 in (False, True)
    ]


def demand_of(context_length: int) -> Demand:
    """Of one step: its products, and the keys and values of the window, which are kept in float32."""
    weights = NUM_LAYERS * 12 * WIDTH**2
    window = NUM_LAYERS * context_length * WIDTH
    return Demand(operations=2 * weights + 4 * window, bytes=2 * window * 4)


@dataclass(frozen=True)
class Batches:
    """Lifetimes at once that are tried.

    Attributes:
        cached: on our side.
        recomputed: on the other.
    """

    cached: tuple[int, ...]
    recomputed: tuple[int, ...]


ON_CPU = {200: Batches((128, 512, 1024), (8, 32, 128)), 1000: Batches((64, 256), (2, 8, 32))}
ON_GPU = {200: Batches((1024, 8192), (128, 1024)), 1000: Batches((1024, 4096), (32, 256))}
TINY = Batches((4,), (2,))


def cached_or_recomputed(context_length: int, conditions: Conditions) -> list[Row]:
    """Environment steps per second of both sides, their window full."""
    batches = conditions.size(ON_CPU[context_length], quick=TINY, cuda=ON_GPU[context_length])
    length, device = conditions.size(context_length, quick=16), conditions.device
    ours = variants(
        lambda: model_of(length), batches.cached, device, steps_first=length, steps_each=conditions.size(8, quick=2)
    )
    recomputed = variants(
        lambda: Recomputing(model_of(length), begin_full=True),
        batches.recomputed,
        device,
        steps_first=0,
        steps_each=1,
    )
    return compare(
        f"acting in context, window of {length} steps",
        "steps/s",
        Side("rolling cache", ours),
        [Side("recomputing the window", recomputed)],
        conditions,
        keys={"recomputing the window": f"evaluation_cached_vs_recompute_{context_length}"},
        demand=demand_of(length),
    )


CASES = [
    Case(
        f"evaluation/context{context_length}",
        f"acting in context, window of {context_length} steps",
        partial(cached_or_recomputed, context_length),
    )
    for context_length in ON_CPU
]
