"""A sweep of tiny trainings: from histories to a promoted winner."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from distillery.stages.collect import collect
from distillery.stages.entry import plain
from distillery.stages.resolve import check, compose_entry, load_params
from distillery.stages.resolve import main as resolve
from distillery.stages.sweep import sweep
from distillery.stages.sweep_trial import CONTEXTS, fitting_contexts, searched_space, with_overrides
from distillery.sweeps import promotion

RATE = "training.learner.muon_learning_rate"
KEEP = f"{CONTEXTS}.keep_every_episode"
SPACE = {
    "models.context_length": {"type": "categorical", "choices": [16, 64]},
    RATE: {"type": "float", "low": 0.005, "high": 0.05, "log": True},
    KEEP: {"type": "categorical", "choices": [3, 6]},
}
TINY = {
    "tasks": {"width": 5, "height": 5, "episode_steps": 8, "num_validation": 3, "num_held_out": 4},
    "sources": {"num_episodes": 30, "initial_value": 5.0},
    "histories": {
        "collection": {"runs_per_task": 2, "learners_per_shard": 64, "selection": {"min_final_fraction": None}},
        "contexts": {"sequence_length": 80, "batch_size": 4, "keep_every_episode": 3},
    },
    "models": {"context_length": 16, "width": 16, "num_layers": 1, "num_heads": 2, "feedforward_width": 16},
    "training": {
        "schedule": {"num_updates": 4, "validate_every_updates": 1, "log_every_updates": 1},
        "validation": {"num_episodes": 3, "num_seeds": 1},
    },
    "runtime": {"progress": False},
    "sweeps": {
        "num_trials": 4,
        "num_workers": 1,
        "space": SPACE,
        "sampler": {"num_startup_trials": 3},
        "pruner": {"first_rung_validations": 1},
    },
}
PARAMS = """\
# What is run.
datasets:
  tiny-data:
    groups: {}
    set: {}
experiments:
  tiny:   # kept
    dataset: tiny-data
    groups: {}
    set: {}
"""


def configured(**changes):
    """The tiny experiment of params.yaml in the working directory; changes replace whole values of its groups."""
    config = compose_entry(load_params(), "experiments", "tiny")
    config.merge_with(TINY)
    values = plain(config)
    for path, value in changes.items():
        group, _, name = path.partition("__")
        values[group] = {**values[group], name: value} if name else value
    return OmegaConf.create(values)


@pytest.fixture(scope="module")
def collected(tmp_path_factory) -> Path:
    """A folder with params.yaml and the tiny dataset."""
    folder = tmp_path_factory.mktemp("collected")
    (folder / "params.yaml").write_text(PARAMS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("DVC_ROOT", raising=False)
        collect(configured())
    return folder


@pytest.fixture
def workplace(tmp_path, collected, monkeypatch) -> Path:
    """A copy of it to work in."""
    folder = tmp_path / "workplace"
    shutil.copytree(collected, folder)
    monkeypatch.chdir(folder)
    for name in ("DVC_ROOT", "OPTUNA_STORAGE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    return folder


def test_a_sweep_is_tracked_told_and_promoted(workplace, capsys):
    store = f"sqlite:///{workplace / 'mlflow.db'}"
    tracking = {"_target_": "distillery.tracking.mlflow.MlflowTracker", "uri": store, "experiment": "tiny"}
    sweep(configured(tracking=tracking))
    out = capsys.readouterr().out
    assert len(re.findall(r"^trial +\d+ (complete|pruned)", out, re.M)) == 4
    folder = Path("data/sweeps/tiny-context_length")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["states"]["complete"] + summary["states"]["pruned"] == 4
    assert summary["default_score"] is not None
    assert summary["best"]["score"] >= summary["default_score"]
    assert summary["promotion"] in out

    page = (folder / "index.html").read_text()
    assert page.count("Plotly.newPlot(") >= 4
    assert not re.search(r"<(script|link)[^>]+(src|href)=", page)
    assert page.count("<tr") == 1 + 4

    runs = tracked_runs(store)
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = {run.data.tags["trial"]: run for run in runs if "trial" in run.data.tags}
    assert len(children) == 4
    assert {run.data.tags["mlflow.parentRunId"] for run in children.values()} == {parent.info.run_id}
    assert {run.info.status for run in runs} == {"FINISHED"}
    states = [run.data.tags["state"] for run in children.values()]
    assert states.count("pruned") == summary["states"]["pruned"]
    best = children[str(summary["best"]["number"])]
    assert best.data.metrics["sweep/score"] == pytest.approx(summary["best"]["score"])
    assert best.data.params[RATE] == str(summary["best"]["params"][RATE])
    assert parent.data.metrics["sweep/best_score"] == pytest.approx(summary["best"]["score"])
    assert curve(store, best, "sweep/validation_score") == [1, 2, 3, 4]

    # A later session goes on under the same run, and promotes.
    sweep(configured(tracking=tracking, sweeps__num_trials=5, sweeps__promote=True))
    runs = tracked_runs(store)
    assert len([run for run in runs if "trial" in run.data.tags]) == 5
    assert sum("mlflow.parentRunId" not in run.data.tags for run in runs) == 1
    summary = json.loads((folder / "summary.json").read_text())
    text = Path("params.yaml").read_text()
    assert text.startswith("# What is run.\n")
    assert "# kept" in text
    composed = configured_values(summary["best"]["overrides"])
    assert composed == summary["best"]["overrides"]


def configured_values(paths) -> dict:
    config = compose_entry(load_params(), "experiments", "tiny")
    return {path: OmegaConf.select(config, path) for path in paths}


def tracked_runs(store: str) -> list:
    from mlflow import MlflowClient

    client = MlflowClient(store)
    return client.search_runs([client.get_experiment_by_name("tiny").experiment_id])


def curve(store: str, run, name: str) -> list[int]:
    from mlflow import MlflowClient

    return [point.step for point in MlflowClient(store).get_metric_history(run.info.run_id, name)]


def test_the_command_line_runs_workers(workplace):
    Path("params.yaml").write_text(PARAMS.replace("set: {}", f"set: {json.dumps(TINY)}"))
    resolve(["experiments", "tiny"])
    command = [sys.executable, "-m", "distillery.stages.sweep", "-cd", "data/resolved/experiments", "-cn", "tiny"]
    result = subprocess.run(
        [*command, "sweeps.num_workers=2", "sweeps.num_trials=3", f"sweeps.space={{{KEEP}:null}}"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert len(re.findall(r"^trial +\d+ ", result.stdout, re.M)) >= 3
    assert "dvc exp run -S" in result.stdout
    space = {path: None if path == KEEP else entry for path, entry in SPACE.items()}
    schedule = {**TINY["training"]["schedule"], "num_updates": 3, "_target_": "distillery.training.loop.Schedule"}
    with pytest.raises(ValueError, match=r"training\.schedule\.num_updates: 4 then, 3 now"):
        sweep(configured(sweeps__space=space, training__schedule={**schedule, "patience_validations": None}))


def test_contexts_fit_what_is_searched(workplace):
    config = plain(configured())
    assert fitting_contexts(config, {"models.context_length": 64}) == {}
    fitted = fitting_contexts(config, {KEEP: 6})
    assert fitted == {f"{CONTEXTS}.sequence_length": 40, f"{CONTEXTS}.batch_size": 8}
    assert fitting_contexts(config, {KEEP: 3}) == {f"{CONTEXTS}.sequence_length": 80, f"{CONTEXTS}.batch_size": 4}
    assert fitting_contexts(config, {f"{CONTEXTS}.sequence_length": 20}) == {f"{CONTEXTS}.batch_size": 16}
    recurrent = {**config, "models": {"_target_": "distillery.models.lstm.LSTMModel", "context_length": 40}}
    assert fitting_contexts(recurrent, {"models.context_length": 64}) == {}
    assert fitting_contexts(recurrent, {KEEP: 6}) == {f"{CONTEXTS}.sequence_length": 40, f"{CONTEXTS}.batch_size": 8}
    config["models"]["positions"] = "absolute"
    fitted = fitting_contexts(config, {"models.context_length": 40})
    assert fitted == {f"{CONTEXTS}.sequence_length": 40, f"{CONTEXTS}.batch_size": 8}


def test_values_that_do_not_fit_are_refused_with_the_reason(workplace):
    only = {
        "models.context_length": {"type": "categorical", "choices": [64]},
        KEEP: {"type": "categorical", "choices": [6]},
    }
    space = dict.fromkeys(SPACE) | only
    with pytest.raises(ValueError, match=r"no trial .* was completed"):
        sweep(configured(sweeps__space=space, sweeps__num_trials=1))
    from optuna import load_study
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    storage = JournalStorage(JournalFileBackend(".scratch/sweeps/tiny-context_length.log"))
    (trial,) = load_study(study_name="tiny-context_length", storage=storage).trials
    assert trial.state.name == "PRUNED"
    assert "models.context_length=64 is longer than the training sequences" in trial.user_attrs["refused"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("models.contxt_length", "did you mean models.context_length"),
        ("models", "no value of the composed configuration"),
        ("training.validation.num_episodes", "would change what trials are scored on"),
        ("sources.discount", "would change what trials are scored on"),
    ],
)
def test_a_path_that_cannot_be_searched_is_named(workplace, path, message):
    config = plain(configured())
    config["sweeps"]["space"][path] = {"type": "float", "low": 0.1, "high": 0.2}
    with pytest.raises(ValueError, match=re.escape(f"'{path}'") + ".*" + message):
        searched_space(config)


def test_missing_histories_are_told(workplace):
    shutil.rmtree("data/histories")
    with pytest.raises(ValueError, match="collect them with `dvc repro collect@tiny-data`"):
        sweep(configured())
    assert not Path(".scratch/sweeps").exists()


def test_every_way_to_promote_says_the_same(workplace):
    overrides = {RATE: 1e-05, "models.context_length": 64, "models.positions": "rotary", KEEP: 6}
    command = promotion.command("tiny", overrides)
    options = [word for word in shlex.split(command)[3:] if word != "-S"]
    parsed = OverridesParser.create().parse_overrides(options)
    assert {option.key_or_group: option.value() for option in parsed} == {
        f"experiments.tiny.set.{path}": value for path, value in overrides.items()
    }
    lines = yaml.safe_load(promotion.lines("tiny", overrides))["experiments"]["tiny"]
    promotion.write(Path("params.yaml"), "tiny", overrides)
    written = load_params()["experiments"]["tiny"]
    assert written["set"] == lines["set"] == promotion.nested(overrides)
    assert written["dataset"] == "tiny-data"
    with pytest.raises(ValueError, match="does not define the experiment 'huge'"):
        promotion.write(Path("params.yaml"), "huge", overrides)


def test_the_published_space_fits_the_published_experiments():
    params = {
        "datasets": {name: {"groups": {"experiment": name}} for name in ("dark_room", "dark_room_explorer")},
        "experiments": {name: {"dataset": name} for name in ("dark_room", "dark_room_explorer")},
    }
    for name in params["experiments"]:
        config = compose_entry(params, "experiments", name)
        space = searched_space(plain(config))
        assert config.models.context_length in space["models.context_length"]["choices"]
        for length in space["models.context_length"]["choices"]:
            check(with_overrides(plain(config), {"models.context_length": length}))
