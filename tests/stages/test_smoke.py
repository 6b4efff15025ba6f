"""The toy pipeline takes what the full one reads, and makes every experiment small, whatever its tasks are."""

import subprocess
from pathlib import Path

import pytest

from distillery.stages.resolve import check, compose_entry
from distillery.stages.smoke import SmokeError, copy_checkout, smaller, toy_params

FAMILIES = ("dark_room", "dark_room_hard_explorer", "dark_key_to_door_explorer", "adversarial_bandit", "watermaze")


def test_no_number_grows_and_no_setting_is_invented() -> None:
    own = {"sources": {"num_episodes": 1, "rate": 0.5}, "evaluation": {"max_tasks": None}, "models": {"width": 64}}
    toy = {
        "sources": {"num_episodes": 30, "rate": 0.1},
        "evaluation": {"max_tasks": 64},
        "models": {"width": 16, "num_heads": 2},
        "histories": {"contexts": {"batch_size": 4}},
    }
    assert smaller(own, toy) == {"sources": {"num_episodes": 1, "rate": 0.1}, "models": {"width": 16}}
    assert smaller({"a": 0.5, "b": True}, {"a": None, "b": False}) == {"a": None, "b": False}


def test_every_family_has_a_toy_that_composes_and_is_allowed() -> None:
    params = {
        "datasets": {name: {"groups": {"experiment": name}} for name in FAMILIES},
        "experiments": {name: {"dataset": name, "set": {"seed": 3}} for name in FAMILIES},
    }
    toy = toy_params(params)
    for name in FAMILIES:
        config = compose_entry(toy, "experiments", name)
        check(config)
        assert config.seed == 3
        assert config.training.schedule.num_updates == 4
        assert config.evaluation.lifetimes.num_episodes == (1 if name == "adversarial_bandit" else 12)
    assert compose_entry(toy, "datasets", "watermaze").tasks.num_train == 64


def test_toys_name_what_cannot_be_composed() -> None:
    with pytest.raises(ValueError, match="'lost' in params.yaml cannot be composed"):
        toy_params({"datasets": {"lost": {"groups": {"experiment": "nowhere"}}}, "experiments": {}})


def test_a_copy_has_the_results_of_studies_and_none_of_the_pipeline(tmp_path: Path) -> None:
    root, copy = tmp_path / "root", tmp_path / "copy"
    for name in ("dvc.yaml", "data/results/study.json", "data/reports/metrics.json", "src/code.py", "models/a/b.bin"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    subprocess.run(["git", "init", "--quiet", str(root)], check=True)
    copy.mkdir()
    copy_checkout(root, copy)
    files = {str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_file() and ".git" not in path.parts}
    assert files == {"dvc.yaml", "data/results/study.json", "src/code.py"}
    with pytest.raises(SmokeError, match="not the top of a Git checkout"):
        copy_checkout(tmp_path, tmp_path)
