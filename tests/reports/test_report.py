"""The stage over outputs as the pipeline leaves them."""

import json
import re
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml

from distillery.core.lifetimes import BASELINES
from distillery.stages.report import FOLDER, report
from distillery.tasks.dark_room import DarkRoom

REPOSITORY = Path(__file__).parents[2]
FILES = {
    "index.html",
    "learning_curves.png",
    "goal_map.png",
    "filmstrip.png",
    "lifetime.gif",
    "training.png",
    "metrics.json",
    "curves.csv",
    "in_context.csv",
}


@pytest.fixture(scope="session")
def reported(made_once) -> tuple[Path, dict]:
    """The pipeline's folder with a report, and the lifetimes behind it."""
    root, made = made_once
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        report()
    return root, made


def contents(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (root / FOLDER).iterdir()}


def test_writes_every_file_and_keeps_them_small(reported) -> None:
    files = contents(reported[0])
    assert set(files) == FILES
    assert all(len(content) < 200_000 for name, content in files.items() if name.endswith(".png"))
    assert len(files["lifetime.gif"]) < 400_000
    assert all(content.startswith(b"\x89PNG") for name, content in files.items() if name.endswith(".png"))


def test_metrics_are_those_worked_by_hand(reported) -> None:
    root, made = reported
    metrics = json.loads((root / FOLDER / "metrics.json").read_text())
    assert list(metrics) == ["dark_room", "dark_room_explorer"]
    oracle_returns = DarkRoom().oracle_returns()
    for experiment, by_agent in made.items():
        assert list(metrics[experiment]) == ["ad", "ed", "source", "random", "oracle"]
        for agent, by_split in by_agent.items():
            for split, lifetimes in by_split.items():
                values = metrics[experiment][agent][split]
                final = lifetimes.returns[:, -10:].astype(float).mean()
                oracle = oracle_returns[np.unique(lifetimes.task_ids)].mean()
                assert values["final_return"] == pytest.approx(final, abs=1e-4)
                assert values["oracle_fraction"] == pytest.approx(final / oracle, abs=1e-4)
                assert values["nauc"] == pytest.approx(lifetimes.returns.astype(float).mean() / oracle, abs=1e-4)
                assert values["return_at"]["10"] == pytest.approx(lifetimes.returns[:, 9].mean(), abs=1e-4)
                assert set(values["return_at"]) == {"1", "10", "25"}
                low, high = values["final_return_ci95"]
                assert low <= values["final_return"] <= high
    assert metrics["dark_room"]["oracle"]["held_out"]["episodes_to_reference"] == 1
    assert metrics["dark_room"]["random"]["held_out"]["episodes_to_reference"] is None


def test_metrics_lead_with_the_agreed_keys(reported) -> None:
    metrics = json.loads((reported[0] / FOLDER / "metrics.json").read_text())
    agreed = ["final_return", "final_return_ci95", "return_at", "nauc", "oracle_fraction", "episodes_to_reference"]
    assert list(metrics["dark_room"]["ad"]["held_out"])[: len(agreed)] == agreed


def test_curves_hold_every_experiment_agent_split_and_episode(reported) -> None:
    root, made = reported
    curves = pl.read_csv(root / FOLDER / "curves.csv")
    assert curves.columns == ["experiment", "agent", "split", "episode", "return", "low", "high"]
    assert len(curves) == 2 * 5 * 2 * 30
    row = curves.filter(experiment="dark_room", agent="ad", split="train", episode=7).row(0, named=True)
    assert row["return"] == pytest.approx(made["dark_room"]["ad"]["train"].returns[:, 6].mean(), abs=1e-4)
    assert row["low"] <= row["return"] <= row["high"]


def test_plots_of_the_pipeline_name_columns_that_exist() -> None:
    pipeline = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())
    params = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    possible = {f"{name} {agent}" for name in params["experiments"] for agent in (*params["agents"], *BASELINES)}
    (plot,) = (settings for entry in pipeline["plots"] for settings in entry.values())
    (columns,) = plot["y"].values()
    assert set(columns) <= possible
    assert {f"{name} ad" for name in params["experiments"]} <= set(columns)


def test_pipeline_lists_every_file_of_the_report() -> None:
    stage = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]["report"]
    listed = [item for key in ("outs", "metrics") for item in stage[key]]
    assert {Path(path).name for item in listed for path in item} == FILES
    assert all(settings == {"cache": False, "persist": True} for item in listed for settings in item.values())


def test_page_is_self_contained_and_names_every_experiment(reported) -> None:
    page = (reported[0] / FOLDER / "index.html").read_text()
    assert not re.search(r"""(src|href)\s*=\s*["']?\s*(https?:)?//""", page)
    assert not re.search(r"@import|url\(\s*['\"]?(https?:)?//|<link|<script", page)
    sources = re.findall(r'<img src="([^"]{0,40})', page)
    assert len(sources) == 5
    assert all(source.startswith("data:image/") for source in sources)
    for experiment in ("dark_room", "dark_room_explorer"):
        assert experiment in page
    assert "sources.num_episodes" in page, "settings that differ"
    assert "10 of 2280" in page, "runs dropped"


def test_again_gives_the_same_bytes_whatever_other_experiments_left_behind(
    reported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, _ = reported
    before = contents(root)
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    shutil.copytree(copy / "data/evaluations/dark_room", copy / "data/evaluations/left_over")
    monkeypatch.chdir(copy)
    report()
    assert contents(copy) == before


@pytest.mark.parametrize(
    "missing",
    [
        "data/evaluations/dark_room_explorer/ed",
        "data/evaluations/dark_room/source/curves.csv",
        "data/evaluations/dark_room/ad/steps.npz",
        "data/validations/dark_room.json",
        "data/evaluations/dark_room/ad/training.json",
        "data/resolved/experiments/dark_room.yaml",
    ],
)
def test_missing_input_is_one_error_and_earlier_files_stay(
    missing: str, reported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(reported[0], copy)
    path = copy / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    before = contents(copy)
    monkeypatch.chdir(copy)
    monkeypatch.delitem(sys.modules, "distillery.stages.report")
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("distillery.stages.report", run_name="__main__")
    message = str(ended.value.code)
    assert message.startswith("error: ")
    assert missing in message
    assert "dvc repro" in message
    assert contents(copy) == before


def test_damaged_table_is_one_error(reported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(reported[0], copy)
    (copy / "data/evaluations/dark_room/ad/curves.csv").write_text("")
    monkeypatch.chdir(copy)
    with pytest.raises(ValueError, match=r"ad/curves\.csv is not a readable table"):
        report()


def test_page_opens_in_a_real_browser(reported) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("no chromium with its driver is installed: the page is not opened in a browser")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in (
        "headless=new",
        "no-sandbox",
        "disable-gpu",
        "disable-background-networking",
        "disable-dev-shm-usage",
    ):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    window = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        window.get((reported[0] / FOLDER / "index.html").as_uri())
        widths = window.execute_script("return [...document.images].map(i => i.complete ? i.naturalWidth : 0)")
        fetched = window.execute_script("return performance.getEntriesByType('resource').map(r => r.name)")
        assert len(widths) == 5
        assert min(widths) > 300
        assert [name for name in fetched if not name.startswith("data:")] == []
        assert window.get_log("browser") == []
        wider = window.execute_script("return document.documentElement.scrollWidth - window.innerWidth")
        assert wider <= 0, "the page scrolls sideways"
    finally:
        window.quit()
