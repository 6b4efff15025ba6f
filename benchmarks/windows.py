"""Drawing contexts from disk: a packed memory-map beside slices of the same Parquet shard, and beside Minari.

Besides, what a batch of contexts costs as a part of a training step, for data that do not fit into memory: the process
may hold a tenth of the file's size, and the file's pages are thrown out of memory before every batch, so that each
window comes from the disk. (What a disk keeps in memory of its own cannot be thrown out.)

Letters: B batch, T environment steps.
"""

import mmap
import os
import resource
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cases import Case, Conditions, Row, compare
from benchmarks.machine import Demand, data_bytes, in_fresh_process, resident_bytes
from benchmarks.timing import Clock, Figure, Side, Variant, Work, installed, race
from benchmarks.training import SHAPES, TINY, our_training, variants
from distillery.core.records import EpisodeBatch
from distillery.histories.contexts import Contexts
from distillery.histories.packed import PackedHistories, step_dtype
from distillery.sources.q_learning import QLearning
from distillery.tasks.dark_room import DarkRoom

MINARI = ("minari", "pyarrow")
RECORD_BYTES = 7
# A context's positions, actions and rewards.
CONTEXT_BYTES = 2 * 8 + 8 + 4


def collected(num_runs: int, num_episodes: int) -> tuple[list[EpisodeBatch], np.ndarray]:
    """Episodes of Q-learning in Dark Room, and the learners' task ids."""
    room = DarkRoom()
    task_ids = np.resize(room.task_ids("train"), num_runs)
    source = QLearning(num_episodes=num_episodes, initial_value=20.0)
    return list(source.run(room, task_ids, seed=0)), task_ids


def packed(folder: Path, episodes: list[EpisodeBatch], task_ids: np.ndarray, *, copies: int = 1) -> PackedHistories:
    """Histories as a memory-map, so many times one after another; without Parquet, which is what expands to it."""
    spec = DarkRoom().spec
    num_runs, num_steps = len(task_ids), spec.episode_steps
    steps = np.empty((num_runs, len(episodes), num_steps), step_dtype(spec))
    for number, episode in enumerate(episodes):
        steps["observation"][:, number] = episode.observations.numpy()
        steps["action"][:, number] = episode.actions.numpy()
        steps["reward"][:, number] = episode.rewards.numpy()
    path = folder / "steps.npy"
    header = {
        "descr": np.lib.format.dtype_to_descr(steps.dtype),
        "fortran_order": False,
        "shape": (steps.size * copies,),
    }
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for _ in range(copies):
            steps.tofile(file)
    num_histories = num_runs * copies
    return PackedHistories(
        spec=spec,
        steps=np.load(path, mmap_mode="r"),
        episode_starts=np.arange(num_histories * len(episodes) + 1) * num_steps,
        history_starts=np.arange(num_histories + 1) * len(episodes),
        task_ids=np.tile(task_ids, copies),
        terminated=np.zeros(num_histories * len(episodes), bool),
    )


def contexts_of(histories: PackedHistories, *, batch_size: int, sequence_length: int) -> Contexts:
    """Contexts that begin anywhere in whole histories."""
    return Contexts(histories, batch_size=batch_size, sequence_length=sequence_length, start="random")


def drawing(contexts: Contexts, num_batches: int) -> Work:
    """Batches of contexts, each another one."""
    update = 0

    def work() -> int:
        nonlocal update
        update += num_batches
        return sum(contexts.batch(update - number).actions.numel() for number in range(num_batches))

    return work


def parquet_variant(
    folder: Path, episodes: list[EpisodeBatch], task_ids: np.ndarray, *, batch_size: int, sequence_length: int
) -> Variant:
    """Slices of a shard as the pipeline stores it."""

    def prepare() -> Work:
        import polars as pl

        from distillery.histories.writer import steps_frame, write_shard

        spec, path = DarkRoom().spec, folder / "shard.parquet"
        write_shard(steps_frame(episodes, task_ids, spec, first_history=0), path, spec, compression_level=3)
        shard, random = pl.scan_parquet(path), np.random.default_rng(0)
        per_history = len(episodes) * spec.episode_steps

        def work() -> int:
            first = random.integers(len(task_ids), size=batch_size) * per_history
            first += random.integers(per_history - sequence_length + 1, size=batch_size)
            return sum(shard.slice(int(row), sequence_length).collect().height for row in first)

        return work

    return Variant(prepare, {"batch_size": batch_size, "sequence_length": sequence_length})


def minari_variants(folder: Path, histories: PackedHistories, **shape: int) -> list[Variant]:
    """Minari's side, or nothing where it is not installed."""
    if not installed(MINARI):
        return []
    from benchmarks.rivals.minari_windows import variants as of_minari

    return of_minari(folder, histories, **shape)


def windows(conditions: Conditions) -> list[Row]:
    """Steps per second from data that fit into memory."""
    shape = {"batch_size": conditions.size(32, quick=4), "sequence_length": conditions.size(400, quick=60)}
    episodes, task_ids = collected(conditions.size(570, quick=57), conditions.size(50, quick=6))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        histories = packed(folder, episodes, task_ids)
        contexts = contexts_of(histories, **shape)

        parquet = Side(
            "slices of Parquet",
            [parquet_variant(folder, episodes, task_ids, **shape)],
            ("polars", "pyarrow", "pandera"),
        )
        minari = Side("Minari", minari_variants(folder, histories, **shape), MINARI)
        return compare(
            "contexts from the memory-map",
            "steps/s",
            Side("memory-map", [Variant(lambda: drawing(contexts, 20), shape)]),
            [parquet, minari],
            conditions,
            keys={"slices of Parquet": "windows_vs_parquet", "Minari": "windows_vs_minari"},
            # A record is read and a context written.
            demand=Demand(bytes=RECORD_BYTES + CONTEXT_BYTES),
        )


# Data that do not fit


def forget(histories: PackedHistories) -> None:
    """Throws a memory-map's pages out of memory."""
    assert isinstance(histories.steps, np.memmap)
    mapped: mmap.mmap = histories.steps._mmap  # type: ignore[attr-defined]
    mapped.madvise(mmap.MADV_DONTNEED)
    with Path(str(histories.steps.filename)).open("rb") as file:
        os.fsync(file.fileno())  # pages that are still to be written stay
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@contextmanager
def limited_memory(num_bytes: int | None) -> Iterator[None]:
    """Private memory may grow by so many bytes; files mapped for reading do not count."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    if num_bytes is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (data_bytes() + num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def measured_on_disk(
    folder: Path, file_bytes: int, memory_bytes: int | None, shape: dict[str, int], clock: Clock
) -> dict[str, Any]:
    """Seconds of a batch, each time from the disk, and the memory that drawing takes; in a process of its own."""
    num_runs, num_episodes = 570, 50
    per_copy = num_runs * num_episodes * DarkRoom().spec.episode_steps * RECORD_BYTES
    copies = max(1, round(file_bytes / per_copy))
    histories = packed(folder, *collected(num_runs, num_episodes), copies=copies)
    with limited_memory(memory_bytes):
        before = resident_bytes()
        contexts = contexts_of(histories, **shape)
        work = drawing(contexts, 1)

        def cold() -> int:
            forget(histories)
            work()
            return 1

        def forgetting() -> int:
            forget(histories)
            return 1

        cold()
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_majflt
        both, alone = race(
            [Side("cold", [Variant(lambda: cold)]), Side("alone", [Variant(lambda: forgetting)])], clock
        )
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_majflt - faults
    assert both.cpu is not None
    assert alone.cpu is not None
    return {
        # What throwing out takes is no part of drawing.
        "wall": max(1 / both.wall - 1 / alone.wall, 0.0),
        "cpu": max(1 / both.cpu - 1 / alone.cpu, 0.0),
        "file_bytes": copies * per_copy,
        "memory_bytes": memory_bytes,
        "resident_growth_bytes": resident_bytes() - before,
        "major_faults": faults,
    }


def larger_than_memory(conditions: Conditions) -> list[Row]:
    """Seconds of a batch of windows beside those of a training step on it."""
    model = conditions.size(SHAPES["width64"], quick=TINY)
    shape = {"batch_size": model.batch_size, "sequence_length": model.num_steps}
    file_bytes, clock = conditions.size(1 << 30, quick=1 << 22), conditions.clock
    # Windows are drawn by the CPU, and a GPU's driver would not start in so little memory.
    drawing_clock = replace(clock, device="cpu")
    # Of a small file a tenth would not hold what any process needs.
    memory_bytes = conditions.size(file_bytes // 10, quick=1 << 28)
    note = None
    with tempfile.TemporaryDirectory(dir=conditions.folder, prefix=".partial-windows-") as name:
        arguments = (Path(name), file_bytes, memory_bytes, shape, drawing_clock)
        try:
            drawn = in_fresh_process(measured_on_disk, *arguments)
        except MemoryError:
            note = f"drawing needs more than {memory_bytes >> 20} MiB; measured without that limit"
            drawn = in_fresh_process(measured_on_disk, Path(name), file_bytes, None, shape, drawing_clock)
    (step,) = race([Side("training step", variants(our_training, model, conditions))], clock)
    assert step.cpu is not None
    return [
        Row(
            f"a batch of windows from a file of {drawn['file_bytes'] / 2**30:.2g} GiB, memory for a tenth",
            "s",
            ours=Figure("drawing", drawn["wall"], drawn["cpu"], settings=shape),
            rival=Figure("training step", model.tokens / step.wall, model.tokens / step.cpu, settings=step.settings),
            beside="training step on it",
            note=note,
            # Without the limit it is not what the key promises.
            key="windows_vs_training_step" if note is None else None,
            more=drawn,
        )
    ]


CASES = [
    Case("windows/in_memory", "contexts from data that fit into memory", windows),
    Case("windows/on_disk", "contexts from data ten times larger than memory", larger_than_memory),
]
