"""What a collection that was stopped had finished, so that the next one goes on behind it.

Shards are written into a folder of their own, outside the dataset's, that is named by all that decides the histories:
settings, seed and code. Each that is done, with all its kinds, is noted there.
"""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import filelock
import numpy as np
from omegaconf import DictConfig

from distillery.core.files import read_json, sha256_file, whole_folder, write_json
from distillery.histories.format import Shard
from distillery.stages.entry import code_hash, plain, scratch
from distillery.stages.shards import PLAYING_CODE


@dataclass(frozen=True)
class Finished:
    """One shard of learners whose histories are written.

    Attributes:
        task_ids: (E,) int64, the tasks of all its streams.
        kept: (E,) bool, which of them became histories.
        files: kind to the file of them; none where all were dropped.
    """

    task_ids: np.ndarray
    kept: np.ndarray
    files: dict[str, Shard]


def fingerprint(config: DictConfig) -> str:
    """Hex SHA-256 of everything that decides a collection's histories."""
    settings: dict[str, Any] = {key: plain(config[key]) for key in ("tasks", "sources")}
    settings |= {"collection": plain(config.histories.collection), "seed": config.seed}
    settings |= {"device": config.runtime.device, "threads": config.runtime.num_threads}
    return hashlib.sha256(json.dumps([settings, code_hash(*PLAYING_CODE)], sort_keys=True).encode()).hexdigest()


class FinishedShards:
    """The folder of a collection under way.

    Args:
        folder: of this one.
        kinds: of histories.
    """

    def __init__(self, folder: Path, kinds: tuple[str, ...]) -> None:
        self.folder, self._kinds = folder, kinds
        for kind in kinds:
            (folder / kind).mkdir(parents=True, exist_ok=True)

    def read(self) -> list[Finished]:
        """What was finished, from the first shard on, up to the first that is not there or not whole."""
        found: list[Finished] = []
        while (note := self._note(len(found))).is_file():
            try:
                values = read_json(note, remedy="")
                files = {kind: Shard(**shard) for kind, shard in values["files"].items()}
                finished = Finished(np.array(values["task_ids"]), np.array(values["kept"], dtype=bool), files)
            except (ValueError, KeyError, TypeError):
                break
            paths = {self.folder / kind / shard.file: shard.sha256 for kind, shard in files.items()}
            if not all(path.is_file() and sha256_file(path) == sha256 for path, sha256 in paths.items()):
                break
            found.append(finished)
        return found

    def add(self, number: int, finished: Finished) -> None:
        """Notes that a shard is done."""
        files = {kind: asdict(shard) for kind, shard in finished.files.items()}
        kept, ids = finished.kept.tolist(), finished.task_ids.tolist()
        write_json(self._note(number), {"task_ids": ids, "kept": kept, "files": files})

    def move_to(self, folder: Path) -> None:
        """Puts all kinds, with whatever lies in their folders, in the place of `folder`, whole or not at all."""
        with whole_folder(folder) as temporary:
            for kind in self._kinds:
                shutil.move(self.folder / kind, temporary / kind)

    def discard(self) -> None:
        """Deletes all of it."""
        shutil.rmtree(self.folder)

    def _note(self, number: int) -> Path:
        return self.folder / f"shard-{number:05d}.json"


@contextlib.contextmanager
def collection_under_way(config: DictConfig, kinds: tuple[str, ...]) -> Iterator[FinishedShards]:
    """The folder of this collection, which goes when it is done and stays when it is stopped.

    Raises:
        ValueError: another process is collecting the same dataset.
    """
    place = scratch("collections", config.dataset)
    place.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(place / "lock", timeout=0):
            own = place / fingerprint(config)[:16]
            for other in place.iterdir():
                if other.is_dir() and other != own:  # of other settings or code, which nobody will go on with
                    shutil.rmtree(other)
            under_way = FinishedShards(own, kinds)
            yield under_way
            under_way.discard()
    except filelock.Timeout as error:
        raise ValueError(
            f"dataset '{config.dataset}' is being collected by another process; wait for it, or choose another "
            "name by dataset=..."
        ) from error
