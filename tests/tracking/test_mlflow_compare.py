"""What a person sees who ticks two runs and presses Compare, in a real browser."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from distillery.core.records import Lifetimes
from distillery.evaluation.storage import write_evaluation
from distillery.stages.tracked import CURVE, track_evaluation
from distillery.tracking.mlflow import MlflowTracker

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")

NUM_EPISODES = 40
ORACLE = 16.0
PATIENCE_SECONDS = 90
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --window-size=1600,1200"
)


def program(*names: str) -> str:
    found = next((path for path in map(shutil.which, names) if path), None)
    if found is None:
        pytest.skip(f"the comparison page needs a browser: none of {', '.join(names)} is installed")
    return found


@pytest.fixture
def browser(tmp_path: Path) -> Iterator:
    options = webdriver.ChromeOptions()
    options.binary_location = program("chromium", "chromium-browser", "google-chrome")
    for flag in [*FLAGS.split(), f"--user-data-dir={tmp_path / 'profile'}"]:
        options.add_argument(flag)
    service = webdriver.ChromeService(program("chromedriver", "chromium.chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    driver.set_page_load_timeout(PATIENCE_SECONDS)
    yield driver
    driver.quit()


def wait_for(condition: Callable, what: str):
    """The first true value of a condition on a page that is still being drawn."""
    from selenium.common.exceptions import WebDriverException

    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        try:
            if found := condition():
                return found
        except WebDriverException:
            pass  # drawn anew under our hands
        time.sleep(0.3)
    raise AssertionError(f"the page does not show {what}")


def log_evaluation(tracker: MlflowTracker, folder: Path, agent: str, final_return: float) -> None:
    """A learning curve up to a level, tracked as the stages track it."""
    config = OmegaConf.create({"name": "room", "agent": agent, "agents": {agent: {"histories": "learning"}}})
    rng = np.random.default_rng(0)
    curve = final_return * (1 - np.exp(-np.arange(1, NUM_EPISODES + 1) / 8))
    ids, seeds = np.repeat(np.arange(4), 2), np.tile(np.arange(2), 4)
    returns = (curve + rng.normal(0, 0.3, (8, NUM_EPISODES))).astype(np.float32)
    lifetimes = Lifetimes(ids, seeds, returns)
    splits = {"held_out": lifetimes, "train": lifetimes}
    write_evaluation(folder, splits, np.full(4, ORACLE), agent=agent, weights=None)
    track_evaluation(tracker, config, agent, folder, checkpoint=None, dataset=None)


def test_ticked_runs_are_overlaid(server, browser, tmp_path: Path):
    from selenium.webdriver.common.by import By

    tracker = MlflowTracker(server.uri, "compare")
    log_evaluation(tracker, tmp_path / "ad", "ad", 15.0)
    log_evaluation(tracker, tmp_path / "ed", "ed", 1.0)
    _, experiment_id = tracker.open()

    def text() -> str:
        return browser.find_element(By.TAG_NAME, "body").text

    browser.get(f"{server.uri}/#/experiments/{experiment_id}/runs")
    for name in ("room/ad", "room/ed"):
        row = wait_for(
            lambda name=name: browser.find_element(
                By.XPATH, f"//a[normalize-space()='{name}']/ancestor::*[@role='row']"
            ).get_attribute("row-id"),
            f"the run {name}",
        )
        # The grid keeps a row's box and its name in different places.
        tick = f"[row-id='{row}'] .ag-selection-checkbox"
        wait_for(lambda tick=tick: browser.find_element(By.CSS_SELECTOR, tick).click() or True, f"a box for {name}")
    press = "//button[normalize-space()='Compare' and not(@disabled)]"
    wait_for(lambda: browser.find_element(By.XPATH, press).click() or True, "a Compare button")

    wait_for(lambda: "Comparing 2 Runs" in text(), "the comparison")
    assert "room/ad" in text()
    assert "room/ed" in text()
    # The sentence that says which is better, and by how much.
    wait_for(lambda: text().count("of the oracle") == 2, "both results")

    metric = CURVE.format(split="held_out")
    link = f"//a[normalize-space()='{metric}']"
    wait_for(lambda: browser.find_element(By.XPATH, link).click() or True, "the in-context curve")

    def shapes() -> set[str]:
        # Each line is drawn twice: as logged, and smoothed.
        drawn = browser.find_elements(By.CSS_SELECTOR, ".js-plotly-plot .scatterlayer .trace path.js-line")
        return {path.get_attribute("d") for path in drawn}

    wait_for(lambda: len(browser.find_elements(By.CSS_SELECTOR, ".js-plotly-plot")) == 1, "one chart")
    wait_for(lambda: len(shapes()) == 2, "two lines in the chart")
    wait_for(lambda: all(f"{name} ({metric})" in text() for name in ("room/ad", "room/ed")), "a legend with both runs")
    wait_for(lambda: text().count(f"(step={NUM_EPISODES})") >= 2, "the last episode of both runs")
    if picture := os.environ.get("DISTILLERY_SCREENSHOT"):
        browser.save_screenshot(picture)
