"""A training step, optimiser and all: our model and learner beside plain PyTorch and beside GPT-2 of equal shape.

All sides read the same batch of contexts, full causal attention over as many steps as a context has, and AdamW; each
runs in the precision that is fastest for it. A token is an environment step. The share of the limit counts what any
such model needs: 6 operations a weight and token, and 6 T W a layer for attention, half of whose scores are masked.

Letters: B batch, T environment steps, W width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from benchmarks.cases import Case, Conditions, Row, compare
from benchmarks.machine import Demand
from benchmarks.rivals.networks import Network, PlainTraining, TorchEncoder
from benchmarks.timing import Figure, Side, Variant, Work
from distillery.core.protocols import SequenceModel
from distillery.core.records import Context
from distillery.models.causal_transformer import CausalTransformer
from distillery.tasks.dark_room import DarkRoom
from distillery.training.supervised import SupervisedLearner

# Length of the learning-rate schedule; no case makes so many updates.
NUM_UPDATES = 100_000


@dataclass(frozen=True)
class Shape:
    """The shape of a model and of its batches, the same on all sides.

    Attributes:
        width: W; the feed-forward part is four times as wide.
        num_layers: of it.
        num_heads: of each layer.
        num_steps: T, of each context.
        batch_size: B.
    """

    width: int
    num_layers: int
    num_heads: int
    num_steps: int
    batch_size: int

    @property
    def tokens(self) -> int:
        """Of a batch."""
        return self.num_steps * self.batch_size

    @property
    def backbone(self) -> dict[str, int]:
        """As arguments of a rival."""
        names = ("width", "num_layers", "num_heads", "num_steps")
        return {name: getattr(self, name) for name in names}

    @property
    def demand(self) -> Demand:
        """Of one token."""
        weights = self.num_layers * 12 * self.width**2
        return Demand(operations=6 * weights + 6 * self.num_layers * self.num_steps * self.width)


SHAPES = {
    "width64": Shape(width=64, num_layers=4, num_heads=4, num_steps=400, batch_size=32),
    "width256": Shape(width=256, num_layers=8, num_heads=8, num_steps=512, batch_size=8),
}
# 25 million parameters, for a GPU.
LARGE = Shape(width=512, num_layers=8, num_heads=8, num_steps=4096, batch_size=16)
TINY = Shape(width=16, num_layers=2, num_heads=2, num_steps=24, batch_size=2)


def random_context(shape: Shape, device: str) -> Context:
    """Steps of Dark Room, at random."""
    random = torch.Generator().manual_seed(0)
    size, spec = (shape.batch_size, shape.num_steps), DarkRoom().spec
    return Context(
        torch.randint(9, (*size, 2), generator=random),
        torch.randint(spec.num_actions, size, generator=random),
        torch.randint(2, size, generator=random).float(),
    ).to(device)


def our_model(shape: Shape, build: Callable[..., SequenceModel] = CausalTransformer) -> SequenceModel:
    """Ours; it sees the whole context."""
    torch.manual_seed(0)
    return build(
        DarkRoom().spec,
        context_length=shape.num_steps,
        width=shape.width,
        num_layers=shape.num_layers,
        num_heads=shape.num_heads,
        feedforward_width=4 * shape.width,
    )


def our_training(shape: Shape, device: str, *, bfloat16: bool, compile: bool) -> Work:
    """Our learner, a step at a time."""
    learner = SupervisedLearner(
        our_model(shape),
        num_updates=NUM_UPDATES,
        optimiser="adamw",
        device=device,
        bfloat16=bfloat16,
        compile=compile,
        fused=device != "cpu",
    )
    context, num_updates = random_context(shape, device), 0

    def work() -> int:
        nonlocal num_updates
        learner.update(context, num_updates)
        num_updates += 1
        return shape.tokens

    return work


def _torch_encoder(shape: Shape) -> nn.Module:
    return TorchEncoder(**shape.backbone)


def _gpt2(activation: str, shape: Shape) -> nn.Module:
    from benchmarks.rivals.gpt2 import GPT2

    return GPT2(**shape.backbone, activation=activation)


@dataclass(frozen=True)
class Rival:
    """Another way to write the model.

    Attributes:
        backbone: of a shape.
        key: of its ratio, before the case's name.
        packages: what it needs to be installed.
    """

    backbone: Callable[[Shape], nn.Module]
    key: str
    packages: tuple[str, ...] = ()


RIVALS = {
    "torch.nn.TransformerEncoder": Rival(_torch_encoder, "training_vs_torch"),
    "transformers GPT-2": Rival(partial(_gpt2, "gelu_new"), "training_vs_gpt2", ("transformers",)),
    # What GPT-2 comes with is an approximation in several operations, which takes longer than the exact one.
    "transformers GPT-2, exact GELU": Rival(partial(_gpt2, "gelu"), "training_vs_gpt2_exact_gelu", ("transformers",)),
}


def rival_network(name: str, shape: Shape) -> Network:
    """One of `RIVALS`, with the embeddings and the head that all sides share."""
    torch.manual_seed(0)
    return Network(DarkRoom().spec, RIVALS[name].backbone(shape), width=shape.width)


def rival_training(name: str, shape: Shape, device: str, *, bfloat16: bool, compile: bool) -> Work:
    """A rival, a step at a time."""
    training = PlainTraining(rival_network(name, shape), device=device, bfloat16=bfloat16, compile=compile)
    context = random_context(shape, device)

    def work() -> int:
        training.update(context)
        return shape.tokens

    return work


def variants(train: Callable[..., Work], shape: Shape, conditions: Conditions) -> list[Variant]:
    """Both precisions; on a GPU also compiled, for every side."""
    choices = [(False, False), (True, False)]
    if conditions.device != "cpu":
        choices.append((True, True))
    return [
        Variant(
            partial(train, shape, conditions.device, bfloat16=bfloat16, compile=compile),
            {
                "precision": "bfloat16" if bfloat16 else "float32",
                "compile": compile,
                "batch_size": shape.batch_size,
                "sequence_length": shape.num_steps,
                "optimiser": "adamw",
            },
        )
        for bfloat16, compile in choices
    ]


def training(name: str, conditions: Conditions) -> list[Row]:
    """Tokens per second of all sides."""
    shape = conditions.size(SHAPES[name], quick=TINY)
    ours = Side("ours", variants(our_training, shape, conditions))
    rivals = [
        Side(beside, variants(partial(rival_training, beside), shape, conditions), rival.packages)
        for beside, rival in RIVALS.items()
    ]
    return compare(
        f"training step, {shape.width} wide, {shape.num_layers} layers, {shape.num_steps} steps",
        "tokens/s",
        ours,
        rivals,
        conditions,
        keys={beside: f"{rival.key}_{name}" for beside, rival in RIVALS.items()},
        demand=shape.demand,
    )


def training_large(conditions: Conditions) -> list[Row]:
    """Operations per second of a model of 25 M parameters beside those of a product of matrices."""
    shape = conditions.size(LARGE, quick=TINY)
    row, *_ = compare(
        f"training step of 25 M parameters, {shape.num_steps} steps",
        "tokens/s",
        Side("ours", variants(our_training, shape, conditions)),
        [],
        conditions,
        demand=shape.demand,
    )
    assert row.ours is not None
    achieved = row.ours.wall * shape.demand.operations / 1e9
    limit = conditions.limits.products["bfloat16"] / 1e9
    return [
        row,
        Row(
            f"the same, operations of the model at {shape.num_steps} steps",
            "GFLOP/s",
            ours=Figure("ours", achieved, settings=row.ours.settings),
            rival=Figure("matrix product, bfloat16", limit),
            beside="matrix product, bfloat16",
            key="training_25m_vs_bfloat16_limit",
        ),
    ]


CASES = [
    *(
        Case(
            f"training/{name}", f"training step, {shape.width} wide, {shape.num_steps} steps", partial(training, name)
        )
        for name, shape in SHAPES.items()
    ),
    Case("training/large", "training step of 25 M parameters, 4096 steps", training_large, devices=("cuda",)),
]
