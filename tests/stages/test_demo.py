"""The first minute: the committed checkpoint learns in context on goals it never saw."""

import copy
import json

import numpy as np
import pytest

from distillery.core.specs import TaskSpec
from distillery.evaluation.in_context import InContextEvaluation, weights_checksum
from distillery.stages.demo import DEMO_CHECKPOINT, main, room_size, watch
from distillery.stages.entry import build
from distillery.stages.evaluate import load_model
from distillery.training.checkpoints import read_checkpoint_info


@pytest.fixture(scope="module")
def demo():
    info = read_checkpoint_info(DEMO_CHECKPOINT)
    tasks = build(info.training["tasks"])
    return info, tasks, load_model(DEMO_CHECKPOINT, tasks)


def test_it_is_small_and_is_what_it_says(demo):
    info, _, model = demo
    assert sum(file.stat().st_size for file in DEMO_CHECKPOINT.iterdir()) < 1_000_000
    assert weights_checksum(model) == info.training["weights"]


def test_it_learns_in_context_on_held_out_goals(demo):
    _, tasks, model = demo
    ids = tasks.task_ids("held_out")
    returns = InContextEvaluation(num_episodes=15, num_seeds=2).run(model, tasks, ids, seed=5).returns
    oracle = tasks.oracle_returns()[ids].mean()
    assert returns[:, 0].mean() < 0.4 * oracle
    assert returns[:, -5:].mean() > 0.8 * oracle


def test_watching_equals_evaluating(demo):
    _, tasks, model = demo
    task = int(tasks.task_ids("held_out")[3])
    moments = list(watch(model, tasks, task, num_episodes=6, seed=0, greedy=True))
    whole = InContextEvaluation(num_episodes=6, num_seeds=1, greedy=True).run(model, tasks, np.array([task]), seed=0)
    assert moments[-1].returns == whole.returns[0].tolist()
    path = [cell for moment in moments if moment.step == tasks.spec.episode_steps for cell in moment.path[:-1]]
    assert path == [tuple(cell) for cell in whole.observations[0].reshape(-1, 2).tolist()]


def test_the_terminal_shows_every_episode(capsys):
    main(["--episodes", "3", "--goal", "4", "6"])
    shown = capsys.readouterr().out
    assert all(f"episode {episode}: return" in shown for episode in (1, 2, 3))
    assert "★" in shown
    assert "returns:" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--goal", "9", "0"], "--goal 9 0 lies outside the 9x9 room"),
        (["--episodes", "0"], "--episodes must be at least 1"),
        (["--checkpoint", "/nowhere"], "/nowhere/model.json does not exist"),
    ],
)
def test_mistakes_are_told(arguments, message):
    with pytest.raises(SystemExit, match=message):
        main(arguments)


def test_tasks_that_are_no_rooms_of_goals_are_refused(demo):
    _, tasks, _ = demo
    assert room_size(tasks) == (9, 9)
    sliver = copy.copy(tasks)
    sliver.spec = TaskSpec.of_sizes((81,), 5, 20)
    with pytest.raises(ValueError, match=r"each cell is the goal of one task.*DarkRoom; choose one of dark_room"):
        room_size(sliver)


def test_another_format_version_is_refused(tmp_path):
    values = json.loads((DEMO_CHECKPOINT / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps({**values, "format_version": 0}))
    with pytest.raises(SystemExit, match="format version 0"):
        main(["--checkpoint", str(tmp_path)])
