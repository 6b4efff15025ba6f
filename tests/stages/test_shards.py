"""Where shards are played changes nothing about the histories."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import filelock
import psutil
import pytest
import torch
from hydra import compose, initialize_config_module

from distillery.stages.collect import collect
from distillery.stages.finished_shards import FinishedShards
from tests.stages.small_room import SMALL_ROOM

SETTINGS = [
    "tracking=none",
    "experiment=dark_room",
    *SMALL_ROOM,
    "histories.collection.runs_per_task=20",
    "histories.collection.learners_per_shard=50",
    "histories.collection.selection.min_final_fraction=0.99",
    "runtime.progress=false",
]


def collected(folder: Path, *overrides: str) -> dict[str, dict]:
    """The metadata of both kinds of histories, collected in this process."""
    with contextlib.chdir(folder), initialize_config_module("distillery.conf", version_base="1.3"):
        collect(compose("config", ["dataset=shards", *SETTINGS, *overrides]))
    return metadata(folder)


def metadata(folder: Path) -> dict[str, dict]:
    histories = folder / "data" / "histories" / "shards"
    return {kind: json.loads((histories / kind / "metadata.json").read_text()) for kind in ("learning", "expert")}


@pytest.fixture(scope="module")
def in_process(tmp_path_factory) -> dict[str, dict]:
    return collected(tmp_path_factory.mktemp("in_process"))


def test_several_shards_and_a_selection_are_looked_at(in_process):
    assert len(in_process["learning"]["shards"]) == 8
    assert 0 < in_process["learning"]["selection"]["num_dropped"] < 360


def test_an_engine_that_there_is_not_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"runtime.collection must be one of in_process, ray, got 'spark'"):
        collected(tmp_path, "runtime.collection=spark")


@pytest.fixture
def real_ray(monkeypatch):
    """Ray makes a cluster of this machine, with a worker for each processor."""
    ray = pytest.importorskip("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    yield ray
    assert not ray.is_initialized()  # what was begun was ended


@pytest.mark.slow
def test_a_mistake_in_a_worker_is_told_as_it_is_here(real_ray, tmp_path):
    overrides = ["dataset=shards", "tasks=watermaze_small", "tasks.num_train=4", "sources=q_learning"]
    overrides += ["histories.collection.runs_per_task=1", "runtime.progress=false", "runtime.collection=ray"]
    with (
        contextlib.chdir(tmp_path),
        initialize_config_module("distillery.conf", version_base="1.3"),
        pytest.raises(ValueError, match="q_learning reads the numbers of states") as told,
    ):
        collect(compose("config", overrides))
    assert "Traceback" not in str(told.value)


def kill_a_player(killed: list[int]) -> None:
    """Ends one of this process's Ray workers by SIGKILL, in the midst of a shard, as soon as there is one."""
    deadline = time.monotonic() + 100
    while not killed and time.monotonic() < deadline:
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "ray::_play_remotely" in " ".join(child.cmdline()):
                    child.send_signal(signal.SIGKILL)
                    killed.append(child.pid)
                    return
        time.sleep(0.01)


@pytest.mark.slow
def test_workers_of_a_running_cluster_play_if_they_have_the_same_code(real_ray, tmp_path, monkeypatch):
    cluster = pytest.importorskip("ray.cluster_utils").Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    try:
        found = collected(tmp_path, "runtime.collection=ray", f"runtime.ray_address={cluster.address}")
        assert found == collected(tmp_path)
        monkeypatch.setattr("distillery.stages.shards.code_hash", lambda *wings: "other")
        with pytest.raises(ValueError, match="has another version of distillery"):
            collected(tmp_path, "runtime.collection=ray", f"runtime.ray_address={cluster.address}")
    finally:
        cluster.shutdown()


@pytest.mark.slow
def test_gpus_that_a_cluster_lacks_are_told(real_ray, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ValueError, match="runtime.device=cuda needs a GPU"):
        collected(tmp_path, "runtime.collection=ray", "runtime.device=cuda")


@pytest.mark.slow
def test_a_killed_worker_loses_nothing_and_nothing_is_written_twice(real_ray, tmp_path):
    longer = ["sources.num_episodes=1500", "histories.collection.learners_per_shard=100"]
    (tmp_path / "expected").mkdir()
    expected = collected(tmp_path / "expected", *longer)
    killed: list[int] = []
    killer = threading.Thread(target=kill_a_player, args=(killed,))
    killer.start()
    found = collected(tmp_path, *longer, "runtime.collection=ray")
    killer.join()
    assert killed
    assert found == expected
    assert len(expected["learning"]["shards"]) == 4


def test_a_killed_collection_goes_on_behind_its_last_shard(tmp_path, capfd):
    longer = ["sources.num_episodes=600", "histories.collection.learners_per_shard=60"]
    (tmp_path / "whole").mkdir()
    expected = collected(tmp_path / "whole", *longer)
    num_shards = len(expected["learning"]["shards"])
    command = [sys.executable, "-m", "distillery.stages.collect", "dataset=shards", *SETTINGS, *longer]
    environment = {name: value for name, value in os.environ.items() if name != "DVC_ROOT"}
    with subprocess.Popen(command, cwd=tmp_path, env={**environment, "OMP_NUM_THREADS": "1"}) as process:
        while len(notes(tmp_path)) < 2 and process.poll() is None:
            time.sleep(0.01)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert 2 <= len(notes(tmp_path)) < num_shards and not (tmp_path / "data" / "histories").exists()
    # What was written last may have been cut short.
    cut = sorted(tmp_path.glob(".scratch/collections/shards/*/expert/shard-00001.parquet"))[0]
    cut.write_bytes(cut.read_bytes()[:-10])
    assert collected(tmp_path, *longer) == expected
    assert f"going on behind 1 of {num_shards} shards" in capfd.readouterr().out
    assert not notes(tmp_path)  # what is done is gone


def notes(folder: Path) -> list[Path]:
    return list(folder.glob(".scratch/collections/shards/*/shard-*.json"))


def test_finished_shards_of_other_settings_are_not_taken_over(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stop = RuntimeError("stopped")

    def stopping(self, number, finished):
        add(self, number, finished)
        if number == 2:
            raise stop

    add = FinishedShards.add
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="stopped"):
        patch.setattr(FinishedShards, "add", stopping)
        collected(tmp_path)
    (left,) = {note.parent for note in notes(tmp_path)}
    collected(tmp_path, "sources.num_episodes=40")
    assert not left.exists()


def test_two_processes_do_not_collect_one_dataset(tmp_path):
    place = tmp_path / ".scratch" / "collections" / "shards"
    place.mkdir(parents=True)
    with (
        filelock.FileLock(place / "lock"),
        pytest.raises(ValueError, match="dataset 'shards' is being collected by another process"),
    ):
        collected(tmp_path)
