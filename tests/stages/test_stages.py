"""The stages as commands: what a person types, what comes out, and what a mistake answers."""

import contextlib
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module

from distillery.stages import compare
from distillery.stages.train import forget_states
from distillery.training.supervised import SupervisedLearner
from tests.stages.small_room import SMALL_ROOM

TINY = [
    "dataset=tiny",
    "tracking=none",
    *SMALL_ROOM,
    "histories.collection.runs_per_task=2",
    "histories.collection.selection.min_final_fraction=null",
    "histories.contexts.sequence_length=32",
    "histories.contexts.batch_size=4",
    "models.context_length=16",
    "models.width=16",
    "models.num_layers=1",
    "models.num_heads=2",
    "models.feedforward_width=32",
    "training.schedule.num_updates=4",
    "training.schedule.validate_every_updates=2",
    "training.validation.num_episodes=2",
    "training.validation.num_seeds=1",
    "evaluation.lifetimes.num_episodes=12",
    "evaluation.lifetimes.num_seeds=2",
    "evaluation.train_seeds=1",
    "runtime.progress=false",
]


def run_stage(stage: str, *overrides: str, folder: Path) -> None:
    """Runs a stage in this process, as its command line would in `folder`."""
    main = getattr(importlib.import_module(f"distillery.stages.{stage}"), stage)
    with contextlib.chdir(folder), initialize_config_module("distillery.conf", version_base="1.3"):
        main(compose("config", [*TINY, *overrides]))


def run_command(stage: str, *overrides: str, folder: Path) -> subprocess.CompletedProcess:
    """Types the stage's command in `folder`."""
    command = [sys.executable, "-m", f"distillery.stages.{stage}", *TINY, *overrides]
    environment = {name: value for name, value in os.environ.items() if name != "DVC_ROOT"}
    return subprocess.run(
        command, cwd=folder, env={**environment, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with collected histories and a trained agent."""
    folder = tmp_path_factory.mktemp("stages")
    run_stage("collect", folder=folder)
    run_stage("validate", folder=folder)
    run_stage("train", folder=folder)
    return folder


def test_the_stages_run_one_after_another(folder):
    run_stage("evaluate", folder=folder)
    run_stage("baselines", folder=folder)
    levels = {}
    for agent in ("ad", "source", "random", "oracle"):
        summary = json.loads((folder / "data" / "evaluations" / "tiny" / agent / "summary.json").read_text())
        assert set(summary["splits"]) == {"held_out", "train"}
        levels[agent] = summary["splits"]["held_out"]["oracle_fraction"]
    assert levels["oracle"] == 1.0
    assert levels["random"] < levels["source"] < 1.0
    model = json.loads((folder / "models" / "tiny" / "ad" / "model.json").read_text())
    evaluated = json.loads((folder / "data" / "evaluations" / "tiny" / "ad" / "summary.json").read_text())
    assert evaluated["weights"] == model["training"]["weights"]


def compared(capsys, folder: Path, *names: str) -> str:
    with contextlib.chdir(folder):
        compare.main(names)
    return " ".join(capsys.readouterr().out.split())


def test_evaluations_compare_where_their_tasks_are_the_same(folder, tmp_path, capsys):
    shutil.copytree(folder / "models", tmp_path / "models")
    shutil.copytree(folder / "data", tmp_path / "data")
    run_stage("train", "name=second", "checkpoint=second", "seed=1", folder=tmp_path)
    run_stage("evaluate", folder=tmp_path)
    run_stage("evaluate", "name=second", "checkpoint=second", folder=tmp_path)
    run_stage("evaluate", "name=greedy", "checkpoint=tiny", "evaluation.lifetimes.greedy=true", folder=tmp_path)
    run_stage("evaluate", "name=few", "checkpoint=tiny", "evaluation.max_tasks=2", folder=tmp_path)
    run_stage("train", "name=small", "checkpoint=small", "models.width=8", folder=tmp_path)
    run_stage("evaluate", "name=small", "checkpoint=small", folder=tmp_path)
    run_stage("baselines", "tasks.reward=once", "name=once", folder=tmp_path)
    told = compared(capsys, tmp_path, "tiny/ad", "greedy/ad")
    assert "part of the oracle's return" in told and "evaluated otherwise: lifetimes.greedy" in told
    told = compared(capsys, tmp_path, "tiny/ad,second/ad", "few/ad")
    assert "2 trainings, 2 tasks" in told and "1 training, 2 tasks" in told
    assert "on the 2 tasks that both" in told and "otherwise" not in told
    told = compared(capsys, tmp_path, "tiny/ad", "once/source")
    assert "not judged: other tasks" in told and "different tasks: reward, so that no difference" in told
    assert "trains nothing" in told
    for names, message in (
        (("once/oracle,once/source", "tiny/ad"), "a baseline is none"),
        (("tiny/ad,few/ad", "tiny/ad"), "'few/ad' was evaluated on other tasks than 'tiny/ad'"),
        (("tiny/ad,greedy/ad", "tiny/ad"), "evaluated otherwise, in lifetimes.greedy"),
        (("tiny/ad,small/ad", "tiny/ad"), "trained otherwise, in num_parameters"),
        (("tiny/ad,tiny/ad", "few/ad"), "one training is named twice"),
    ):
        with pytest.raises(SystemExit, match=message):
            compared(capsys, tmp_path, *names)


def test_collecting_twice_gives_the_same_bytes(folder, tmp_path):
    run_stage("collect", folder=tmp_path)
    for file in (folder / "data" / "histories").rglob("*.*"):
        assert file.read_bytes() == (tmp_path / file.relative_to(folder)).read_bytes()


def test_training_twice_gives_the_same_weights(folder, tmp_path):
    shutil.copytree(folder / "data", tmp_path / "data")
    run_stage("train", folder=tmp_path)
    weights = Path("models", "tiny", "ad", "model.safetensors")
    assert (tmp_path / weights).read_bytes() == (folder / weights).read_bytes()


def test_a_finished_training_whose_output_was_lost_is_not_done_again(folder, tmp_path, monkeypatch):
    shutil.copytree(folder / "data", tmp_path / "data")
    run_stage("train", folder=tmp_path)
    weights = tmp_path / "models" / "tiny" / "ad" / "model.safetensors"
    before = weights.read_bytes()
    shutil.rmtree(tmp_path / "models")
    monkeypatch.setattr(SupervisedLearner, "update", None)  # a further update would fail
    run_stage("train", folder=tmp_path)
    assert weights.read_bytes() == before


def test_old_training_states_are_forgotten(tmp_path):
    for name, age in (("old", 20), ("new", 1)):
        (tmp_path / f"{name}.pt").touch()
        os.utime(tmp_path / f"{name}.pt", (time.time() - age * 86400,) * 2)
    forget_states(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["new.pt"]


def error_of(stage: str, *overrides: str, folder: Path) -> str:
    with pytest.raises(ValueError) as caught:
        run_stage(stage, *overrides, folder=folder)
    return str(caught.value)


@pytest.mark.parametrize(
    ("stage", "override", "words"),
    [
        ("train", "dataset=nowhere", ["nowhere", "does not exist", "dvc"]),
        ("train", "tasks.walls=wrap", ["walls", "'clip' stored", "'wrap' asked for"]),
        ("train", "models.context_length=64", ["models.context_length=64", "sequence_length=32"]),
        ("train", "models.width=15", ["15"]),
        ("evaluate", "agent=ed", ["models/tiny/ed", "does not exist", "train"]),
        ("evaluate", "agent=dt", ["dt", "ad, ed"]),
        ("train", "agent=rl2", ["reads no histories", "choose training=rl2"]),
        (
            "collect",
            "+sources.rollout_steps=5",
            ["QLearning has no setting rollout_steps", "'~sources.rollout_steps'"],
        ),
        ("train", "sources.discount=0.5", ["other settings of the source"]),
        ("evaluate", "tasks.width=6", ["width", "5 stored", "6 asked for"]),
        ("evaluate", "tasks.split_seed=1", ["split_seed", "0 stored", "1 asked for"]),
    ],
)
def test_a_mistake_ends_in_one_clear_error(folder, stage, override, words):
    message = error_of(stage, override, folder=folder)
    assert all(word in message for word in words), message


def test_a_model_without_a_window_is_trained_on_sequences_of_any_length(folder, tmp_path):
    shutil.copytree(folder / "data", tmp_path / "data")
    transformer = {override.split("=")[0] for override in TINY if override.startswith("models.")}
    lstm = [override for override in TINY if override.split("=")[0] not in transformer - {"models.context_length"}]
    command = [sys.executable, "-m", "distillery.stages.train", *lstm, "models=lstm", "models.context_length=64"]
    subprocess.run(command, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, timeout=120)
    assert (tmp_path / "models" / "tiny" / "ad" / "model.safetensors").is_file()


def test_histories_from_before_a_setting_was_added_are_read_at_its_old_value_only(folder, tmp_path):
    shutil.copytree(folder / "data", tmp_path / "data")
    for path in (tmp_path / "data" / "histories").rglob("metadata.json"):
        metadata = json.loads(path.read_text())
        del metadata["source"]["replay"]
        path.write_text(json.dumps(metadata))
    run_stage("validate", folder=tmp_path)
    assert "other settings of the source" in error_of("validate", "sources.replay=backward", folder=tmp_path)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("runtime.device=cuda:9", ["error: ", "runtime.device=cuda:9 cannot be used"]),
        ("training.lrr=3", ["lrr"]),
        ("dataset=nowhere", ["error: ", "nowhere", "does not exist"]),
    ],
)
def test_the_command_line_ends_in_one_line(folder, override, words):
    result = run_command("train", override, folder=folder)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert all(word in result.stderr for word in words), result.stderr


def test_a_killed_command_goes_on_where_it_was(folder, tmp_path):
    shutil.copytree(folder / "data", tmp_path / "data")
    slow = ["training.schedule.num_updates=120", "training.schedule.validate_every_updates=10"]
    command = [sys.executable, "-m", "distillery.stages.train", *TINY, *slow]
    states = tmp_path / ".scratch" / "training"
    environment = {name: value for name, value in os.environ.items() if name != "DVC_ROOT"}
    with subprocess.Popen(command, cwd=tmp_path, env={**environment, "OMP_NUM_THREADS": "1"}) as process:
        while not list(states.glob("[!.]*.pt")) and process.poll() is None:
            time.sleep(0.05)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "models").exists()
    result = run_command("train", *slow, folder=tmp_path)
    assert "resuming after update" in result.stdout + result.stderr
    whole = tmp_path / "whole"
    shutil.copytree(folder / "data", whole / "data")
    run_stage("train", *slow, folder=whole)
    weights = Path("models", "tiny", "ad", "model.safetensors")
    assert (tmp_path / weights).read_bytes() == (whole / weights).read_bytes()


def test_a_damaged_shard_stops_training_with_the_remedy(folder, tmp_path):
    run_stage("collect", folder=tmp_path)
    shard = next((tmp_path / "data" / "histories" / "tiny" / "learning").glob("*.parquet"))
    shard.write_bytes(shard.read_bytes()[:-10])
    for stage in ("validate", "train"):
        message = error_of(stage, folder=tmp_path)
        assert "truncated or edited" in message
        assert "dvc checkout" in message


def test_a_source_that_learns_nothing_is_refused_and_nothing_is_left(tmp_path):
    message = error_of(
        "collect",
        "sources.learning_rate=0.0",
        "sources.epsilon_end=1.0",
        "sources.epsilon_start=1.0",
        "sources.num_episodes=10",
        "histories.contexts.keep_every_episode=1",
        folder=tmp_path,
    )
    assert "holds no learning" in message
    assert not list((tmp_path / "data").rglob("*.parquet"))


def test_a_selection_that_drops_most_runs_is_told(tmp_path, caplog):
    run_stage("collect", folder=tmp_path)
    assert not caplog.messages, "all runs are kept"
    strict = ["sources.epsilon_end=0.3", "histories.collection.selection.min_final_fraction=0.8"]
    run_stage("collect", *strict, "histories.collection.runs_per_task=8", folder=tmp_path)
    (message,) = caplog.messages
    assert message.startswith("tiny: the selection dropped ") and "min_final_fraction" in message
