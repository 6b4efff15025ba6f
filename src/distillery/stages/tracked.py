"""What the evaluating stages send to the tracker: the same names for every agent, so that runs compare."""

import json
from pathlib import Path

import polars as pl
from omegaconf import DictConfig

from distillery.core.protocols import Tracker
from distillery.evaluation.storage import CURVES_FILE, LIFETIMES_FILE, SUMMARY_FILE
from distillery.stages.entry import plain


def track_evaluation(
    tracker: Tracker, config: DictConfig, agent: str, folder: Path, *, checkpoint: Path | None, dataset: Path | None
) -> None:
    """Logs one agent's evaluation: scalars, the in-context curve per episode, files, and the model if there is one."""
    summary = json.loads((folder / SUMMARY_FILE).read_text())
    curves = pl.read_csv(folder / CURVES_FILE)
    with tracker.start(
        "evaluate", f"{config.name}/{agent}", config=plain(config),
        tags={"experiment": config.name, "agent": agent},
    ) as run:
        for split, values in summary["splits"].items():
            scalars = {name: value for name, value in values.items() if isinstance(value, int | float)}
            run.log({f"evaluate/{split}/{name}": value for name, value in scalars.items()})
            for row in curves.filter(pl.col("split") == split).iter_rows(named=True):
                curve = {f"evaluate/{split}/return_per_episode": row["return"]}
                run.log(curve, step=row["episode"])
        for file in (SUMMARY_FILE, CURVES_FILE, LIFETIMES_FILE):
            run.log_file(folder / file)
        if dataset is not None:
            run.log_dataset(dataset, context="training")
        if checkpoint is not None:
            run.log_model(checkpoint)
