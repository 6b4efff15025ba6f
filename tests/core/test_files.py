"""A file is written whole or not at all."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from distillery.core.files import PARTIAL_PREFIX, read_json, whole_file, whole_folder, write_json


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "result.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), whole_file(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_whole_file_is_readable_by_others(tmp_path):
    with whole_file(tmp_path / "result.txt") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "result.txt").stat().st_mode & 0o444 == 0o444


def test_a_failed_folder_leaves_the_old_folder(tmp_path):
    folder = tmp_path / "data"
    with whole_folder(folder) as temporary:
        (temporary / "a").write_text("old")
    with pytest.raises(RuntimeError), whole_folder(folder) as temporary:
        (temporary / "a").write_text("half")
        raise RuntimeError
    assert (folder / "a").read_text() == "old"
    assert list(tmp_path.iterdir()) == [folder]


def test_broken_json_names_file_and_remedy(tmp_path):
    path = tmp_path / "x.json"
    with pytest.raises(ValueError, match=r"x\.json does not exist; do this"):
        read_json(path, remedy="do this")
    path.write_text("{")
    with pytest.raises(ValueError, match=r"x\.json is not valid JSON .*; do this"):
        read_json(path, remedy="do this")


def test_nan_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"loss": float("nan")})
    assert not (tmp_path / "x.json").exists()


def test_what_a_killed_process_left_is_cleared_and_what_a_living_one_writes_is_not(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = tmp_path / f".partial-data-{dead.pid}-abc"
    left.mkdir()
    (left / "half").write_text("x")
    living = tmp_path / f".partial-data-{os.getppid()}-abc"
    living.mkdir()
    with whole_folder(tmp_path / "data") as temporary:
        (temporary / "a").write_text("new")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([living.name, "data"])


def test_partial_results_are_ignored_by_version_control():
    root = Path(__file__).parents[2]
    for file in (".dvcignore", ".gitignore"):
        assert f"{PARTIAL_PREFIX}*" in (root / file).read_text().splitlines()


def test_a_full_disk_is_told(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=0))
    told = pytest.raises(OSError, match=r"result could not be written, the disk is full; free some space")
    with told, whole_folder(tmp_path / "result") as temporary:
        (temporary / "half").write_text("x")
        raise RuntimeError("unexpected pos")  # as torch says it
    assert list(tmp_path.iterdir()) == []
