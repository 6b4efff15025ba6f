"""One lifetime of a million steps: what a step costs, and how much memory is held, late in life beside early.

Both tenths begin when the window is full. The model is small, since what is asked is whether anything grows.
"""

import gc
from functools import partial

import torch

from benchmarks.cases import Case, Conditions, Row
from benchmarks.machine import resident_bytes
from benchmarks.timing import Figure, Stopwatch, stopwatch
from distillery.core.protocols import SequenceModel
from distillery.core.seeding import torch_generator
from distillery.evaluation.in_context import chooser, live
from distillery.models.causal_transformer import CausalTransformer
from distillery.models.linear_transformer import LinearTransformer
from distillery.tasks.dark_room import DarkRoom

NUM_LIFETIMES, NUM_TENTHS = 4, 10
MODELS: dict[str, type] = {"transformer": CausalTransformer, "linear_attention": LinearTransformer}


def small_model(name: str, context_length: int) -> SequenceModel:
    """Two layers of 32 channels."""
    torch.manual_seed(0)
    model: SequenceModel = MODELS[name](
        DarkRoom().spec, context_length=context_length, width=32, num_layers=2, num_heads=2, feedforward_width=128
    )
    return model.eval()


@torch.inference_mode()
def tenths(
    model: SequenceModel, context_length: int, num_steps: int, device: str
) -> tuple[list[Stopwatch], list[int]]:
    """Times of ten parts of a lifetime that follow each other once the window is full, and memory at their ends."""
    room = DarkRoom()
    choose = chooser(room.spec, greedy=False, generator=torch_generator(0, "actions", device=device))
    batch = room.batch(room.task_ids("held_out")[:NUM_LIFETIMES], seed=0, device=device)
    steps = live(model.to(device), batch, choose)
    for _ in range(context_length):
        next(steps)
    watches, resident = [], []
    for _ in range(NUM_TENTHS):
        with stopwatch(device) as watch:
            for _ in range(num_steps // NUM_TENTHS):
                next(steps)
        watches.append(watch)
        gc.collect()
        resident.append(torch.cuda.memory_allocated(device) if device.startswith("cuda") else resident_bytes())
    return watches, resident


def lifetime(name: str, conditions: Conditions) -> list[Row]:
    """A row for the time of a step, and one for memory."""
    context_length = conditions.size(200, quick=20)
    num_steps = conditions.size(1_000_000, quick=2000)
    watches, resident = tenths(small_model(name, context_length), context_length, num_steps, conditions.device)
    settings = {
        "device": conditions.device,
        "threads": conditions.threads,
        "precision": "float32",
        "lifetimes": NUM_LIFETIMES,
        "context_length": context_length,
        "steps": num_steps,
    }
    # The transformer is the model of the default pipeline, so its ratio is the one with a target.
    prefix = "lifetime" if name == "transformer" else f"lifetime_{name}"
    scale = 1e6 / (num_steps // NUM_TENTHS)

    def cost(part: str, watch: Stopwatch) -> Figure:
        return Figure(part, watch.wall * scale, watch.cpu * scale, settings=settings)

    what = f"{name.replace('_', ' ')}, a lifetime of {num_steps:,} steps"
    return [
        Row(
            f"{what}: a step of the last tenth",
            "µs",
            ours=cost("last tenth", watches[-1]),
            rival=cost("first tenth", watches[0]),
            beside="first tenth",
            key=f"{prefix}_last_vs_first_tenth",
            more={"microseconds_by_tenth": [watch.wall * scale for watch in watches]},
        ),
        Row(
            f"{what}: memory held after the last tenth",
            "MiB",
            ours=Figure("last tenth", resident[-1] / 2**20, settings=settings),
            rival=Figure("first tenth", resident[0] / 2**20, settings=settings),
            beside="after the first tenth",
            key=f"{prefix}_memory_last_vs_first_tenth",
            more={"mebibytes_by_tenth": [held / 2**20 for held in resident]},
        ),
    ]


CASES = [
    Case(f"lifetimes/{name}", f"{name.replace('_', ' ')}, a lifetime of a million steps", partial(lifetime, name))
    for name in MODELS
]
