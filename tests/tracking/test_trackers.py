"""One battery for every tracker; what MLflow's stores were sent is read back from them."""

import logging
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from distillery.core.records import Context
from distillery.stages.serve import Policy
from distillery.tracking.mlflow import MlflowTracker, flatten
from distillery.tracking.null import NullTracker


@pytest.fixture(params=["null", "database", "server"])
def tracker(request: pytest.FixtureRequest):
    if request.param == "null":
        return NullTracker()
    found = request.getfixturevalue(request.param)
    return MlflowTracker(found if isinstance(found, str) else found.uri, "battery")


@pytest.fixture(params=["database", "server"])
def mlflow_tracker(request: pytest.FixtureRequest) -> MlflowTracker:
    found = request.getfixturevalue(request.param)
    return MlflowTracker(found if isinstance(found, str) else found.uri, "read back")


def test_takes_everything_a_stage_sends(tracker, config, histories: Path, checkpoint, tmp_path: Path):
    (tmp_path / "note.txt").write_text("kept")
    tracker.check()
    with tracker.start("evaluate", "room/ad", config=config, tags={"experiment": "room", "agent": "ad"}) as run:
        run.log({"evaluate/held_out/nauc": 0.5})
        run.log({"evaluate/curve/held_out_return_per_episode": 1.0}, step=1)
        run.log_dataset(histories, context="training")
        run.log_file(tmp_path / "note.txt", "notes")
        run.log_model(checkpoint[0], loader=Policy)
        with tracker.start("sweep", "child", config=config, parent=run.id or None) as child:
            child.log({"score": 1.0}, step=2)
    assert isinstance(run.id, str)


def test_an_error_in_the_body_is_passed_on(tracker, config):
    with (
        pytest.raises(ZeroDivisionError),
        tracker.start("train", "room/ad", config=config, tags={"experiment": "room", "agent": "ad"}),
    ):
        _ = 1 / 0


def test_params_tags_curve_and_files_are_read_back(mlflow_tracker, config, monkeypatch, tmp_path: Path):
    monkeypatch.setenv("DVC_STAGE", "evaluate@room-ad")
    tags = {"experiment": "room", "agent": "ad"}
    with mlflow_tracker.start("evaluate", "room/ad", config=config, tags=tags, description="How it came out.") as run:
        for episode in range(1, 2502):
            run.log({"evaluate/curve/held_out_return_per_episode": episode / 10}, step=episode)
        (tmp_path / "curves.csv").write_text("episode,return\n")
        run.log_file(tmp_path / "curves.csv", "tables")

    client, _ = mlflow_tracker.open()
    found = client.get_run(run.id)
    points = client.get_metric_history(run.id, "evaluate/curve/held_out_return_per_episode")
    assert [(point.step, point.value) for point in points] == [(e, e / 10) for e in range(1, 2502)]
    assert found.data.params["models.width"] == "16"
    assert found.data.params["models.betas"] == "[0.9, 0.99]"
    assert found.data.params["note"] == "x" * 499 + "…"
    assert found.info.status == "FINISHED"
    expected = {"kind": "evaluate", **tags, "dvc.stage": "evaluate@room-ad", "mlflow.note.content": "How it came out."}
    assert expected.items() <= found.data.tags.items()
    assert len(found.data.tags["git.commit"]) == 40
    assert found.data.tags["git.dirty"] in ("true", "false")
    assert [file.path for file in client.list_artifacts(run.id)] == ["config.yaml", "tables"]
    text = Path(client.download_artifacts(run.id, "config.yaml", str(tmp_path))).read_text()
    assert "x" * 9000 in text


def test_a_run_that_fails_keeps_its_metrics(mlflow_tracker, config):
    with pytest.raises(RuntimeError, match="stop"), mlflow_tracker.start("train", "room/ad", config=config) as run:
        run.log({"train/loss": 2.5}, step=7)
        raise RuntimeError("stop")
    found = mlflow_tracker.open()[0].get_run(run.id)
    assert found.data.metrics == {"train/loss": 2.5}
    assert found.info.status == "FAILED"


def test_metrics_are_sent_while_the_run_goes_on(mlflow_tracker, config, monkeypatch):
    monkeypatch.setattr("distillery.tracking.mlflow.FLUSH_SECONDS", 0.0)
    with mlflow_tracker.start("train", "room/ad", config=config) as run:
        run.log({"train/loss": 2.5}, step=7)
        assert mlflow_tracker.open()[0].get_run(run.id).data.metrics == {"train/loss": 2.5}


def test_a_metric_without_a_proper_name_is_our_own_mistake(mlflow_tracker, config):
    with (
        pytest.raises(AssertionError, match="return@1"),
        mlflow_tracker.start("train", "room/ad", config=config) as run,
    ):
        run.log({"return@1": 1.0})


@pytest.mark.parametrize("in_lock", [True, False], ids=["listed in dvc.lock", "changed since"])
def test_the_dataset_carries_the_hash_that_is_true(mlflow_tracker, config, histories: Path, in_lock):
    # MD5 of DVC's listing of the two files, made by `dvc add` of the same bytes.
    md5 = "41e0dc225f47506336fb10e2de779b7f.dir"
    Path("dvc.lock").write_text(f"stages:\n  collect:\n    outs:\n    - path: {histories}\n      md5: {md5}\n")
    if not in_lock:
        (histories / "shard-0.parquet").write_bytes(b"other steps")
    with mlflow_tracker.start("train", "room/ad", config=config) as run:
        run.log_dataset(histories, context="training")
    found = mlflow_tracker.open()[0].get_run(run.id)
    (dataset,) = found.inputs.dataset_inputs
    assert dataset.dataset.name == "room/learning"
    assert dataset.dataset.digest == (md5 if in_lock else "c" * 36)
    assert {tag.key: tag.value for tag in dataset.tags}["mlflow.data.context"] == "training"
    assert found.data.tags.get("dvc.data.md5") == (md5 if in_lock else None)


LOAD = """
import sys
import numpy as np, mlflow
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2])
inputs = dict(np.load(sys.argv[3]))
np.save(sys.argv[4], model.predict(inputs))
assert model.metadata.signature is not None
assert model.predict(model.input_example).shape == (2, 5)
"""


def test_a_fresh_process_loads_the_model_and_it_acts_alike(mlflow_tracker, config, checkpoint, tmp_path: Path):
    folder, model = checkpoint
    with mlflow_tracker.start("evaluate", "room/ad", config=config) as run:
        run.log_model(folder, loader=Policy)
    rng = np.random.default_rng(0)
    # Longer than the window, three lifetimes at once.
    inputs = {
        "observations": rng.integers(0, 5, (3, 9, 2)),
        "actions": rng.integers(0, 5, (3, 8)),
        "rewards": rng.random((3, 8), np.float32),
    }
    np.savez(tmp_path / "inputs.npz", **inputs)
    arguments = [mlflow_tracker.uri, f"runs:/{run.id}/model", tmp_path / "inputs.npz", tmp_path / "found.npy"]
    result = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:__main__", "-c", LOAD, *map(str, arguments)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    context = Context(*(torch.as_tensor(inputs[name]) for name in ("observations", "actions", "rewards")))
    with torch.inference_mode():
        expected = model(context)[:, -1].softmax(-1).numpy()
    np.testing.assert_allclose(np.load(tmp_path / "found.npy"), expected, atol=1e-6)


@pytest.mark.parametrize(
    "uri", ["http://127.0.0.1:9", "ftp://nowhere", "sqlite:////proc/nowhere/mlflow.db", "postgresql://127.0.0.1:9/x"]
)
def test_a_store_out_of_reach_is_told_at_once(uri: str):
    started = time.monotonic()
    with pytest.raises(ValueError, match="tracking=none") as raised:
        MlflowTracker(uri, "distillery").check()
    assert uri in str(raised.value)
    assert "\n" not in str(raised.value)
    assert time.monotonic() - started < 10


def test_a_deleted_experiment_is_named_with_its_remedy(database: str):
    tracker = MlflowTracker(database, "gone")
    client, experiment_id = tracker.open()
    client.delete_experiment(experiment_id)
    with pytest.raises(ValueError, match=f"mlflow experiments restore --experiment-id {experiment_id}"):
        MlflowTracker(database, "gone").check()


def test_a_server_that_dies_costs_a_warning_only(mortal_server, config, checkpoint, caplog, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("DVC_STAGE", "train@room-ad")
    tracker = MlflowTracker(mortal_server.uri, "distillery")
    tracker.check()
    with caplog.at_level(logging.WARNING), tracker.start("train", "room/ad", config=config) as run:
        run.log({"train/loss": 1.0}, step=1)
        mortal_server.stop()
        run.flush()
        run.log({"train/loss": 1.0}, step=2)
        run.log_model(checkpoint[0], loader=Policy)
    with tracker.start("train", "room/ad", config=config) as run:
        run.log({"train/loss": 1.0})
    assert run.id == ""
    ours = [record.getMessage() for record in caplog.records if record.name == "distillery.tracking.mlflow"]
    assert len(ours) == 2  # one a run
    assert all(mortal_server.uri in text and "dvc repro -f -s train@room-ad" in text for text in ours)


def test_settings_become_dotted_names():
    nested = {"a": {"b": {"c": 1}, "d": None}, "e": [1, 2], "f": {}, "g": True, "h": "text"}
    expected = {"a.b.c": "1", "a.d": "null", "e": "[1, 2]", "f": "{}", "g": "true", "h": "text"}
    assert flatten(nested) == expected
