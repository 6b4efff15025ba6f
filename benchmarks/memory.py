"""Peak memory of collection: the same number of learners in a shard, and once or four times as many shards."""

import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.cases import Case, Conditions, Row
from benchmarks.machine import in_fresh_process, peak_resident_bytes
from benchmarks.timing import Figure

PACKAGES = ("hydra", "omegaconf", "polars", "pyarrow", "pandera", "tqdm", "psutil", "yaml")


def peak_of_collection(folder: Path, changes: dict[str, Any], num_threads: int) -> int:
    """Collects histories of Dark Room into a folder; to be run in a process of its own, whose peak it returns."""
    from distillery.stages.collect import collect
    from distillery.stages.resolve import compose_entry

    torch.set_num_threads(num_threads)
    os.chdir(folder)
    params = {"datasets": {"try": {"groups": {"experiment": "dark_room"}, "set": changes}}, "experiments": {}}
    collect(compose_entry(params, "datasets", "try"))
    return peak_resident_bytes()


def peak(conditions: Conditions, times: int) -> int:
    """Bytes at most, collecting so many times the smaller dataset."""
    runs_per_task = conditions.size(20, quick=1)
    changes = {
        "sources": {"num_episodes": conditions.size(300, quick=30)},
        "histories": {
            "collection": {
                "runs_per_task": runs_per_task * times,
                "learners_per_shard": conditions.size(570, quick=57),
            }
        },
        "runtime": {"progress": False, "device": conditions.device},
    }
    with tempfile.TemporaryDirectory() as name:
        return in_fresh_process(peak_of_collection, Path(name), changes, conditions.threads)


def collection(conditions: Conditions) -> list[Row]:
    """Mebibytes at most for both sizes."""
    once, four_times = peak(conditions, 1), peak(conditions, 4)
    settings = {"learners_per_shard": conditions.size(570, quick=57), "threads": conditions.threads}
    return [
        Row(
            "peak memory of collection, four times the histories",
            "MiB",
            ours=Figure("four times", four_times / 2**20, settings=settings),
            rival=Figure("once", once / 2**20, settings=settings),
            beside="once",
            key="memory_4x_vs_1x",
        )
    ]


CASES = [Case("memory/collection", "peak memory of collection, four times the histories", collection, PACKAGES)]
