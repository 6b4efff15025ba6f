"""Speeds measured side by side: all sides take turns in one run, so that what disturbs one disturbs them all.

Wall time is `time.perf_counter`; CPU time is `time.process_time`, that of all threads of this process, in which the
work of a GPU does not show. Of several rounds the best counts, and the spread says how far the worst was from it.
"""

import importlib.util
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

# Operators that a profile tells of.
NUM_OPERATIONS = 5

# Does some work and returns how many units it did.
Work = Callable[[], int]


@dataclass(frozen=True)
class Variant:
    """One way to run a side.

    Attributes:
        prepare: makes everything that is needed; what it returns is timed.
        settings: what is chosen, for the reader: batch, precision, ...
    """

    prepare: Callable[[], Work]
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Side:
    """One that takes part in a comparison.

    Attributes:
        name: for the table.
        variants: the fastest takes part, the others are only tried.
        packages: what it needs to be installed.
    """

    name: str
    variants: Sequence[Variant]
    packages: tuple[str, ...] = ()

    @property
    def is_installed(self) -> bool:
        """Whether its packages can be imported."""
        return installed(self.packages)


@dataclass(frozen=True)
class Figure:
    """What was measured of one side.

    Attributes:
        name: of the side.
        wall: in the row's unit; of a speed, the best of all rounds.
        cpu: the same in CPU time; None where the figure is no time.
        spread: the part by which the slowest round was below the best; None where there was one round.
        settings: of the side.
        packages: that it needs.
    """

    name: str
    wall: float
    cpu: float | None = None
    spread: float | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    packages: tuple[str, ...] = ()


@dataclass(frozen=True)
class Clock:
    """How long to measure.

    Attributes:
        device: waited for before a time is read.
        rounds: turns of each side.
        seconds: a turn repeats its work until so much time is over.
    """

    device: str
    rounds: int
    seconds: float

    def turn(self, work: Work) -> tuple[float, float]:
        """Units per second of wall time and of CPU time, over one turn."""
        synchronise(self.device)
        units, begin, begin_cpu = 0, time.perf_counter(), time.process_time()
        while True:
            units += work()
            synchronise(self.device)
            wall = time.perf_counter() - begin
            if wall >= self.seconds:
                # A process clock may tick more coarsely than the shortest work.
                return units / wall, units / max(time.process_time() - begin_cpu, 1e-6)


def installed(packages: Sequence[str]) -> bool:
    """Whether all of these can be imported."""
    return all(importlib.util.find_spec(package) is not None for package in packages)


def synchronise(device: str) -> None:
    """Waits until a GPU has done what it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def _fastest(side: Side, clock: Clock) -> tuple[Variant, Work]:
    """The variant with the best turn of one each, warmed up. Only the best so far is kept in memory.

    Raises:
        RuntimeError: the last one, where no variant can be run.
    """
    best: tuple[float, Variant, Work] | None = None
    for left, variant in zip(reversed(range(len(side.variants))), side.variants, strict=True):
        try:
            work = variant.prepare()
            work()
            speed = clock.turn(work)[0] if len(side.variants) > 1 else 0.0
        except RuntimeError as error:  # a batch too large for a GPU's memory, no compiler, ...
            if best is None and not left:
                raise
            print(f"{side.name} cannot be run with {dict(variant.settings)}: {error}", file=sys.stderr)
            continue
        if best is None or speed > best[0]:
            best = (speed, variant, work)
    assert best is not None, f"{side.name} has no variant"
    return best[1:]


def race(sides: Sequence[Side], clock: Clock) -> list[Figure]:
    """Speeds of all sides, which take turns."""
    return [figure for figure, _ in timed(sides, clock)]


def timed(sides: Sequence[Side], clock: Clock) -> list[tuple[Figure, Work]]:
    """The same, each with the work that was timed."""
    chosen = [_fastest(side, clock) for side in sides]
    turns: list[list[tuple[float, float]]] = [[] for _ in sides]
    for _ in range(clock.rounds):
        for own, (_, work) in zip(turns, chosen, strict=True):
            own.append(clock.turn(work))
    shared = {"device": clock.device, "threads": torch.get_num_threads()}
    return [
        (Figure(side.name, *speeds(own), settings=shared | dict(variant.settings), packages=side.packages), work)
        for side, own, (variant, work) in zip(sides, turns, chosen, strict=True)
    ]


def speeds(turns: Sequence[tuple[float, float]]) -> tuple[float, float, float]:
    """Best speed by wall time, best by CPU time, and the spread of the first."""
    walls, cpus = zip(*turns, strict=True)
    return max(walls), max(cpus), 1 - min(walls) / max(walls)


def longest_operations(work: Work, clock: Clock) -> list[dict[str, Any]]:
    """The operators of torch that take most of one turn, by their own time; none where torch does nothing."""
    on_gpu = clock.device != "cpu"
    calls, begin = 0, time.perf_counter()
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as profiled:
        while not calls or time.perf_counter() - begin < clock.seconds:
            work()
            calls += 1
        synchronise(clock.device)
    attribute = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    times = {event.key: float(getattr(event, attribute)) for event in profiled.key_averages()}
    total = sum(times.values())
    if not total:
        return []
    longest = sorted(times, key=lambda name: -times[name])[:NUM_OPERATIONS]
    return [
        {"operation": name, "milliseconds": times[name] / calls / 1e3, "share": times[name] / total}
        for name in longest
    ]


@dataclass
class Stopwatch:
    """Seconds of one stretch.

    Attributes:
        wall: since it was started, once it is stopped.
        cpu: of all threads of this process.
    """

    wall: float = 0.0
    cpu: float = 0.0


@contextmanager
def stopwatch(device: str = "cpu") -> Iterator[Stopwatch]:
    """Times a block; the times are there when it is over."""
    synchronise(device)
    watch, begin, begin_cpu = Stopwatch(), time.perf_counter(), time.process_time()
    yield watch
    synchronise(device)
    watch.wall, watch.cpu = time.perf_counter() - begin, time.process_time() - begin_cpu
