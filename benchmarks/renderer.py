"""Watermaze's renderer, a batch of views at once, beside MuJoCo drawing a pool like it one view after another.

And what it is a part of: a step of acting in context, the model's time included.
"""

import importlib
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from benchmarks.cases import NOT_INSTALLED, Case, Conditions, Row, compare
from benchmarks.machine import Demand
from benchmarks.timing import Side, Variant, Work, installed
from distillery.core.seeding import torch_generator
from distillery.evaluation.in_context import chooser, live
from distillery.models.causal_transformer import CausalTransformer
from distillery.tasks.watermaze import Watermaze

SIZES = ((18, 24), (72, 96))
MUJOCO = "MuJoCo, one by one"
ALONE = "its views alone"


def views(height: int, width: int, num_pools: int, device: str) -> Work:
    """Draws pools whose swimmers have gone somewhere."""
    pool = Watermaze(height=height, width=width).batch(np.arange(num_pools), seed=0, device=device)
    pool.reset()
    actions = torch.randint(8, (20, num_pools), generator=torch.Generator().manual_seed(0)).to(device)
    for action in actions:
        pool.advance(action)

    def work() -> int:
        pool.frames()
        return num_pools

    return work


def mujoco_drawing() -> tuple[Callable[..., Callable[[], Work]] | None, str]:
    """MuJoCo's side, or None and why there is none: it needs OpenGL besides."""
    if not installed(("mujoco",)):
        return None, NOT_INSTALLED
    try:
        module = importlib.import_module("benchmarks.rivals.mujoco_renderer")
        module.drawing(18, 24, num_frames=1)()()
    except Exception as error:  # whatever a driver that is not there raises
        return None, f"MuJoCo cannot draw here ({type(error).__name__}: {error}); install EGL, or set MUJOCO_GL"
    drawing: Callable[..., Callable[[], Work]] = module.drawing
    return drawing, ""


def rendering(height: int, width: int, conditions: Conditions) -> list[Row]:
    """Frames per second at one size."""
    num_pools = conditions.size(1024, quick=8)
    what = f"views of {num_pools} pools, {height}x{width}"
    ours = Side("ours", [Variant(partial(views, height, width, num_pools, conditions.device), {"pools": num_pools})])
    drawing, reason = mujoco_drawing()
    demand = Demand(bytes=height * width * 3)
    if drawing is None:
        row, *_ = compare(what, "frames/s", ours, [], conditions, demand=demand)
        return [Row(what, row.unit, ours=row.ours, beside=MUJOCO, note=reason, shares=row.shares)]
    num_frames = conditions.size(500, quick=2)
    rival = Side(MUJOCO, [Variant(drawing(height, width, num_frames=num_frames), {"device": "cpu"})])
    return compare(
        what,
        "frames/s",
        ours,
        [rival],
        conditions,
        keys={MUJOCO: f"renderer_vs_mujoco_{height}x{width}"},
        demand=demand,
    )


def acting(height: int, width: int, num_lifetimes: int, device: str) -> Work:
    """Lifetimes in pools, as the model of the Watermaze experiment lives them, a step at a time."""
    pool = Watermaze(height=height, width=width)
    torch.manual_seed(0)
    model = CausalTransformer(
        pool.spec, context_length=200, width=64, num_layers=4, num_heads=4, feedforward_width=256
    ).to(device)
    choose = chooser(pool.spec, greedy=False, generator=torch_generator(0, "actions", device=device))
    steps = live(model.eval(), pool.batch(np.arange(num_lifetimes), seed=0, device=device), choose)

    @torch.inference_mode()
    def work() -> int:
        next(steps)
        return num_lifetimes

    return work


def share_of_acting(height: int, width: int, conditions: Conditions) -> list[Row]:
    """Steps per second of acting beside views per second: the part of a step that is spent on its view."""
    num_pools, device = conditions.size(256, quick=8), conditions.device
    ours = Side("ours", [Variant(partial(acting, height, width, num_pools, device), {"lifetimes": num_pools})])
    alone = Side(ALONE, [Variant(partial(views, height, width, num_pools, device), {"pools": num_pools})])
    what = f"acting in context in {num_pools} pools, {height}x{width}"
    return compare(what, "steps/s", ours, [alone], conditions, keys={ALONE: f"view_vs_acting_step_{height}x{width}"})


CASES = [
    Case(f"renderer/{height}x{width}", f"views of pools, {height}x{width}", partial(rendering, height, width))
    for height, width in SIZES
] + [
    Case(
        f"renderer/acting_{height}x{width}",
        f"acting in context in pools, {height}x{width}",
        partial(share_of_acting, height, width),
    )
    for height, width in SIZES
]
