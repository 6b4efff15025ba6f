"""The study's promises, on a trial function that costs nothing."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from optuna.trial import TrialState

from distillery.sweeps.space import distributions
from distillery.sweeps.storage import MAX_RETRIES, open_study, shown
from distillery.sweeps.study import FINISHED, STOP_SECONDS, Session, recover, spent, work

sys.path.insert(0, str(Path(__file__).parent))
from trials import DEFAULT, SPACE, killing, parabola, run, settings


def states(trials) -> list[str]:
    return [trial.state.name for trial in trials]


def test_the_default_comes_first_and_bad_trials_are_pruned(tmp_path):
    trials = run(settings(tmp_path, num_trials=20))
    assert trials[0].params == DEFAULT
    assert trials[0].state == TrialState.COMPLETE
    assert len(trials) == 20
    pruned = [trial for trial in trials if trial.state == TrialState.PRUNED]
    assert pruned
    assert all(len(trial.intermediate_values) < 3 for trial in pruned)
    best = max((trial for trial in trials if trial.state == TrialState.COMPLETE), key=lambda trial: trial.value)
    assert best.params["kind"] == "good"
    assert best.value > -0.25


def test_the_default_is_never_pruned(tmp_path):
    first = run(settings(tmp_path, num_trials=1))
    assert first[0].user_attrs["default"]
    config = settings(tmp_path / "bad")
    with Session(config, {**DEFAULT, "kind": "bad"}, {}) as session:
        good = session.study.ask({"x": distributions(SPACE)["x"], "kind": distributions(SPACE)["kind"]})
        session.study.tell(good, state=TrialState.FAIL)
        session.study.enqueue_trial(DEFAULT)
        session.study.enqueue_trial({**DEFAULT, "kind": "bad"}, user_attrs={"default": True})
        session.run(parabola)
        trials = session.study.get_trials()
    assert states(trials)[:3] == ["FAIL", "COMPLETE", "COMPLETE"]
    assert trials[2].params["kind"] == "bad"


def test_a_sole_worker_proposes_the_same_again(tmp_path):
    first, second = (run(settings(tmp_path / name)) for name in "ab")
    assert [trial.params for trial in first] == [trial.params for trial in second]


def test_a_resumed_study_goes_on(tmp_path):
    first = run(settings(tmp_path, num_trials=5))
    assert states(run(settings(tmp_path, num_trials=5))) == states(first)
    second = run(settings(tmp_path, num_trials=9))
    assert [trial.number for trial in second] == list(range(9))
    assert [trial.params for trial in second[:5]] == [trial.params for trial in first]
    assert len({tuple(trial.params.items()) for trial in second}) == 9


def test_other_settings_are_refused(tmp_path):
    run(settings(tmp_path, num_trials=1), facts={"updates": 600})
    with pytest.raises(ValueError, match="updates: 600 then, 300 now"):
        run(settings(tmp_path, num_trials=2), facts={"updates": 300})
    narrower = {**SPACE, "kind": {"type": "categorical", "choices": ["good"]}}
    with pytest.raises(ValueError, match="space"):
        run(settings(tmp_path, num_trials=2, space=narrower), facts={"updates": 600})


def test_what_was_tried_before_is_answered_from_memory(tmp_path):
    space = {"x": {"type": "categorical", "choices": [0.0, 1.0]}, "kind": {"type": "categorical", "choices": ["good"]}}
    tried = []

    def remembered(attempt):
        tried.append(attempt.values["x"])
        return parabola(attempt)

    trials = run(settings(tmp_path, space=space, num_trials=8), remembered)
    assert sorted(tried) == [0.0, 1.0]
    assert len(trials) == 8
    assert sum("same_as" in trial.user_attrs for trial in trials) == 6


@pytest.mark.parametrize(
    ("ending", "num_workers", "more"),
    [(signal.SIGKILL, 1, []), (signal.SIGINT, 2, []), (signal.SIGINT, 2, ["deaf"])],
    ids=["killed", "stopped", "deaf to a signal"],
)
def test_a_trial_whose_worker_ended_is_tried_again(tmp_path, ending, num_workers, more):
    program = [sys.executable, str(Path(__file__).with_name("trials.py")), str(tmp_path), str(num_workers), *more]
    worker = subprocess.Popen(program, stdout=subprocess.PIPE, text=True)
    assert worker.stdout.readline() == "hanging\n"
    study = open_study(settings(tmp_path))
    assert states(study.get_trials())[2] == "RUNNING"
    # Somebody else is alive, so nothing is taken from him.
    with Session(settings(tmp_path), DEFAULT, {}) as session:
        assert not session.alone()
        assert states(session.study.get_trials())[2] == "RUNNING"
    worker.send_signal(ending)
    assert worker.wait(timeout=STOP_SECONDS + 20) == (-signal.SIGKILL if ending == signal.SIGKILL else 130)
    trials = run(settings(tmp_path))
    assert trials[2].state == TrialState.FAIL
    retry = next(trial for trial in trials if trial.user_attrs.get("retry_of") == 2)
    assert retry.params == trials[2].params
    assert retry.state in FINISHED
    assert sum(trial.state in FINISHED for trial in trials) == 12


def test_two_workers_share_the_budget_and_a_killed_one_is_replaced(tmp_path):
    trials = run(settings(tmp_path, num_trials=10), killing, num_workers=2)
    finished = [trial for trial in trials if trial.state in FINISHED]
    assert len({trial.user_attrs["worker"] for trial in trials}) >= 2
    # Two that end within the same instant may both begin another one.
    assert 10 <= len(finished) <= 11
    assert sum(trial.params == DEFAULT for trial in trials) == 1
    (killed,) = [trial for trial in trials if trial.state == TrialState.FAIL]
    assert [trial.params for trial in finished if trial.user_attrs.get("retry_of") == killed.number] == [killed.params]


def test_a_trial_that_kills_its_workers_is_given_up(tmp_path):
    config = settings(tmp_path)
    study = open_study(config)
    study.enqueue_trial(DEFAULT)
    for _ in range(MAX_RETRIES + 1):
        study.ask()
        assert len(recover(study)) == 1
    assert states(study.get_trials()) == ["FAIL"] * (MAX_RETRIES + 1)


def test_a_half_written_line_does_not_spoil_the_journal(tmp_path):
    run(settings(tmp_path, num_trials=2))
    with (tmp_path / "toy.log").open("a") as file:
        file.write('{"op_code": 4, "worker')
    assert len(run(settings(tmp_path, num_trials=4))) == 4


def test_failures_are_kept_and_bounded(tmp_path):
    def failing(attempt):
        if attempt.number == 0:
            return float("nan")
        raise RuntimeError("out of memory")

    trials = run(settings(tmp_path, max_failed_trials=3), failing)
    assert states(trials) == ["FAIL"] * 3
    assert trials[0].user_attrs["error"] == "FloatingPointError: the score is nan"
    assert trials[1].user_attrs["error"] == "RuntimeError: out of memory"


def test_a_refusal_names_its_reason(tmp_path):
    def picky(attempt):
        if attempt.values["kind"] == "bad":
            attempt.refuse("bad and x do not go together")
        return parabola(attempt)

    refused = [trial for trial in run(settings(tmp_path), picky) if "refused" in trial.user_attrs]
    assert {trial.state for trial in refused} == {TrialState.PRUNED}
    assert refused[0].user_attrs["refused"] == "bad and x do not go together"


def test_a_mistake_ends_the_sweep_and_keeps_what_was_finished(tmp_path):
    def mistaken(attempt):
        if attempt.number == 1:
            raise ValueError("no such thing")
        return parabola(attempt)

    with pytest.raises(ValueError, match="no such thing"):
        run(settings(tmp_path), mistaken)
    assert states(open_study(settings(tmp_path)).get_trials()) == ["COMPLETE", "FAIL"]


def test_a_default_outside_the_space_is_told(tmp_path, caplog):
    with Session(settings(tmp_path), {**DEFAULT, "x": 3.0}, {}) as session:
        assert not session.study.get_trials()
    assert "x=3.0 lies outside the search space" in caplog.text


def test_a_database_serves_as_well(tmp_path):
    config = settings(tmp_path, storage=f"sqlite:///{tmp_path / 'study.db'}", num_trials=3)
    assert len(run(config)) == 3
    work(config, parabola, None)
    assert spent(open_study(config), config)


def test_an_unreachable_storage_is_named_without_its_password(tmp_path):
    config = settings(tmp_path, storage="sqlite:////nowhere/at/all/study.db")
    with pytest.raises(ValueError, match="'toy' cannot be opened in sqlite:////nowhere"):
        run(config)
    assert shown("postgresql://me:secret@host/db") == "postgresql://host/db"


@pytest.mark.parametrize(
    "name", ["num_trials", "max_failed_trials", "first_rung_step", "reduction_factor", "grace_seconds"]
)
def test_settings_out_of_range_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=name):
        settings(tmp_path, **{name: 0})
