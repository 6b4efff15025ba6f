"""A file is written whole or not at all."""

import pytest

from distillery.core.files import read_json, whole_file, whole_folder, write_json


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
