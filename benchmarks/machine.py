"""The machine: what it is, how fast it can be at best, and how much memory a process holds.

The limits are measured in the same run as everything else: a product of two large matrices in each precision, and a
copy of an array that no cache holds, whose bytes count twice, once read and once written.
"""

import contextlib
import os
import platform
import subprocess
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from benchmarks.timing import Clock, Side, Variant, Work, race

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

RIVALS = ("stable-baselines3", "transformers", "minari", "mujoco")

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Limits:
    """What the machine can do at best.

    Attributes:
        products: by precision, floating-point operations per second of a product of matrices.
        copy: bytes per second, read and written, of a copy.
    """

    products: dict[str, float]
    copy: float


@dataclass(frozen=True)
class Demand:
    """What one unit of work needs at least, whoever does it.

    Attributes:
        operations: floating-point operations in products of matrices.
        bytes: read and written.
    """

    operations: float = 0.0
    bytes: float = 0.0

    def shares(self, speed: float, precision: str, limits: Limits) -> dict[str, float]:
        """The part of each limit that is used at a speed in units per second."""
        shares = {}
        if self.operations:
            shares[f"matrix product, {precision}"] = speed * self.operations / limits.products[precision]
        if self.bytes:
            shares["memory copy"] = speed * self.bytes / limits.copy
        return shares


def _product(device: str, size: int, dtype: torch.dtype) -> Callable[[], Work]:
    def prepare() -> Work:
        left, right = torch.rand(2, size, size, device=device).to(dtype)
        result = torch.empty(size, size, device=device, dtype=dtype)

        def work() -> int:
            torch.mm(left, right, out=result)
            return 2 * size**3

        return work

    return prepare


def _copy(device: str, num_bytes: int) -> Callable[[], Work]:
    def prepare() -> Work:
        source = torch.ones(num_bytes // 4, device=device)
        target = torch.empty_like(source)

        def work() -> int:
            target.copy_(source)
            return 2 * num_bytes

        return work

    return prepare


def measure_limits(device: str, *, quick: bool) -> Limits:
    """The machine's limits, now."""
    on_cpu = device == "cpu"
    size = 128 if quick else 2048 if on_cpu else 8192
    clock = Clock(device, rounds=2 if quick else 5, seconds=0.0 if quick else 0.3)
    sides = [Side(name, [Variant(_product(device, size, dtype))]) for name, dtype in DTYPES.items()]
    num_bytes = 1 << (20 if quick else 28 if on_cpu else 31)
    *products, copy = race([*sides, Side("copy", [Variant(_copy(device, num_bytes))])], clock)
    return Limits({figure.name: figure.wall for figure in products}, copy.wall)


def cpu_model() -> str:
    """The CPU's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe(device: str, limits: Limits, *, quick: bool) -> dict[str, Any]:
    """The machine, for `results.json`."""
    return {
        "cpu": cpu_model(),
        "cores": num_cores(),
        "threads": torch.get_num_threads(),
        "device": device,
        "device_name": torch.cuda.get_device_name(device) if device.startswith("cuda") else cpu_model(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "rivals": rival_versions(),
        # The Makefile sets them, and they decide what memory costs.
        "allocator": {name: value for name, value in sorted(os.environ.items()) if name.startswith("MALLOC_")},
        "quick": quick,
        "commit": commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "matrix_product_gflops": {name: speed / 1e9 for name, speed in limits.products.items()},
        "memory_copy_gb_per_s": limits.copy / 1e9,
    }


def commit() -> str | None:
    """The code's, with a + where its files differ from it; None where no git knows."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        name = subprocess.run([*git, "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, check=True)
        paths = [":/src", ":/benchmarks", ":/pyproject.toml", ":!/benchmarks/results.json", ":!/benchmarks/README.md"]
        status = [*git, "status", "--porcelain", "--", *paths]
        changes = subprocess.run(status, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return name.stdout.strip() + ("+" if changes.stdout.strip() else "")


def rival_versions() -> dict[str, str]:
    """Those that are installed."""
    versions = {}
    for name in RIVALS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def _status(field: str) -> int:
    """Bytes that the kernel reports of this process.

    Raises:
        ValueError: it reports none of that name.
    """
    path = Path("/proc/self/status")
    for line in path.read_text().splitlines() if path.exists() else []:
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"{path} has no line {field}, and memory is read from there; run this case on Linux")


def resident_bytes() -> int:
    """Memory that this process holds now."""
    return _status("VmRSS")


def peak_resident_bytes() -> int:
    """The most that this process held since `forget_peak`, or ever.

    What its parent held does not count, unlike in `resource.getrusage`.
    """
    return _status("VmHWM")


def forget_peak() -> None:
    """Lets `peak_resident_bytes` begin anew from what is held now, where the kernel allows it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def data_bytes() -> int:
    """Private memory of this process, which `resource.RLIMIT_DATA` limits; files mapped for reading do not count."""
    return _status("VmData")


def in_fresh_process(function: Callable[..., _Result], *arguments: Any) -> _Result:
    """What `function` returns in a process of its own, whose memory holds nothing else.

    Args:
        function: of a module, found there by its name.
        *arguments: and the result must be such that they can be pickled.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()
