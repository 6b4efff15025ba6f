"""Every random stream has a name: the same seed and name give the same numbers, other names other numbers."""

import zlib

import numpy as np
import torch


def stream_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed for the stream called `names` under a run's `seed`.

    Raises:
        ValueError: if `seed` is not a whole number from 0.
    """
    if not isinstance(seed, int | np.integer) or isinstance(seed, bool) or seed < 0:
        raise ValueError(f"seed must be a whole number from 0, got {seed!r}")
    keys = tuple(zlib.crc32(str(name).encode()) for name in names)
    return int(np.random.SeedSequence(seed, spawn_key=keys).generate_state(1, np.uint64)[0] >> 1)


def numpy_generator(seed: int, *names: str | int) -> np.random.Generator:
    """A NumPy generator for the stream called `names`."""
    return np.random.default_rng(stream_seed(seed, *names))


def torch_generator(seed: int, *names: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator on `device` for the stream called `names`."""
    return torch.Generator(device=device).manual_seed(stream_seed(seed, *names))
