"""Time and memory of a training step against the length of its contexts, for attention and for linear attention.

Every step reads the same number of tokens, as a few long contexts or many short ones, and attention sees the whole
context. Each point has a process of its own, since memory that was once taken is not always given back.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.cases import Case, Conditions, Row
from benchmarks.machine import forget_peak, in_fresh_process, peak_resident_bytes, resident_bytes
from benchmarks.timing import Clock, Figure, Side, Variant, race
from benchmarks.training import NUM_UPDATES, Shape, our_model, random_context
from distillery.models.causal_transformer import CausalTransformer
from distillery.models.linear_transformer import LinearTransformer
from distillery.training.supervised import SupervisedLearner

MODELS: dict[str, type] = {"transformer": CausalTransformer, "linear_attention": LinearTransformer}
PICTURES = {"cpu": "context_length.png", "cuda": "context_length_cuda.png"}


@dataclass(frozen=True)
class Point:
    """A training step at one length.

    Attributes:
        context_length: steps of a context.
        microseconds_per_token: by wall time.
        cpu_microseconds_per_token: by CPU time.
        mebibytes: at most, beyond what was held before the first step.
    """

    context_length: int
    microseconds_per_token: float
    cpu_microseconds_per_token: float
    mebibytes: float


def measured_point(name: str, shape: Shape, clock: Clock, num_threads: int) -> Point:
    """One point; to be run in a process of its own."""
    torch.set_num_threads(num_threads)
    on_gpu = clock.device != "cpu"
    model = our_model(shape, MODELS[name])
    learner = SupervisedLearner(model, num_updates=NUM_UPDATES, device=clock.device, bfloat16=on_gpu, fused=on_gpu)
    context = random_context(shape, clock.device)
    forget_peak()
    before = resident_bytes()
    if on_gpu:
        before = torch.cuda.memory_allocated(clock.device)
        torch.cuda.reset_peak_memory_stats(clock.device)

    def work() -> int:
        learner.update(context, 0)
        return shape.tokens

    (figure,) = race([Side(name, [Variant(lambda: work)])], clock)
    assert figure.cpu is not None
    most = torch.cuda.max_memory_allocated(clock.device) if on_gpu else peak_resident_bytes()
    return Point(shape.num_steps, 1e6 / figure.wall, 1e6 / figure.cpu, (most - before) / 2**20)


def lengths(conditions: Conditions) -> list[int]:
    """Of contexts, each twice the one before."""
    first, last = conditions.size((128, 8192), quick=(16, 32), cuda=(128, 65_536))
    return [first << doubling for doubling in range((last // first).bit_length())]


def points(name: str, conditions: Conditions) -> list[Point]:
    """All points of one model."""
    all_lengths = lengths(conditions)
    width, num_layers = conditions.size((64, 4), quick=(8, 1))
    clock = Clock(conditions.device, rounds=2, seconds=0.0)
    shapes = [
        Shape(width, num_layers, conditions.size(4, quick=2), length, all_lengths[-1] // length)
        for length in all_lengths
    ]
    return [in_fresh_process(measured_point, name, shape, clock, conditions.threads) for shape in shapes]


def draw(measured: dict[str, list[Point]], path: Path) -> str | None:
    """Draws time and memory against length; says so where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure as Canvas
    except ImportError:
        return "no picture: matplotlib is not installed (pip install -e .)"
    canvas = Canvas(figsize=(9, 3.5), layout="constrained")
    quantities: dict[str, Any] = {
        "microseconds_per_token": "µs a token of a training step",
        "mebibytes": "MiB at most",
    }
    for axes, (field, label) in zip(canvas.subplots(1, 2), quantities.items(), strict=True):
        for name, line in measured.items():
            axes.plot(
                [point.context_length for point in line],
                [getattr(point, field) for point in line],
                marker="o",
                label=name.replace("_", " "),
            )
        axes.set(xscale="log", yscale="log", xlabel="context length, steps", ylabel=label)
        axes.set_xscale("log", base=2)
        axes.legend()
    canvas.savefig(path, dpi=120)
    return None


def attention_length(conditions: Conditions) -> list[Row]:
    """A row for each model, the longest context beside the shortest, and a picture of all points."""
    measured = {name: points(name, conditions) for name in MODELS}
    note = draw(measured, conditions.folder / PICTURES[conditions.device])
    precision = "float32" if conditions.device == "cpu" else "bfloat16"
    rows = []
    for name, line in measured.items():
        shortest, longest = line[0], line[-1]
        settings = {"device": conditions.device, "threads": conditions.threads, "precision": precision}
        settings |= {"tokens": longest.context_length}

        def cost(point: Point, settings: dict[str, Any] = settings) -> Figure:
            return Figure(
                f"context {point.context_length}",
                point.microseconds_per_token,
                point.cpu_microseconds_per_token,
                settings=settings,
            )

        rows.append(
            Row(
                f"{name.replace('_', ' ')}, training step at context {longest.context_length}",
                "µs a token",
                ours=cost(longest),
                rival=cost(shortest),
                beside=f"at context {shortest.context_length}",
                key=f"attention_length_{name}_longest_vs_shortest",
                note=note,
                more={"points": [asdict(point) for point in line]},
            )
        )
    return rows


CASES = [Case("attention_length/training", "training step against context length", attention_length)]
