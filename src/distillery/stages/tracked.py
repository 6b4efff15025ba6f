"""What the evaluating stages send to the tracker: the same names for every agent, so that runs compare."""

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl
from omegaconf import DictConfig

from distillery.core.lifetimes import FINAL_EPISODES
from distillery.core.protocols import Tracker
from distillery.evaluation.storage import CURVES_FILE, LIFETIMES_FILE, SUMMARY_FILE
from distillery.stages.entry import plain
from distillery.stages.serve import Policy

# Sorts before the scalars in the tracker's lists; the step is the episode, so that the curves of ticked runs overlay.
CURVE = "evaluate/curve/{split}_return_per_episode"
_FIGURE_FILE = "in_context_curve.png"
# What an agent can do follows from what it has seen: by kind of histories, or by name for those that read none.
_EXPLANATIONS = {
    "learning": "imitates whole learning histories, so it can go on improving inside its context, weights frozen",
    "expert": "imitates the converged source only, so its data hold no improvement that it could imitate",
    "shuffled": "imitates histories whose episodes are out of order, so improvement is hidden from it",
    "source": "learns each task from scratch by changing its own estimates: what is distilled",
    "random": "takes every action with equal probability: the level without learning",
    "oracle": "knows the goal: the highest level there is",
}


def track_evaluation(
    tracker: Tracker, config: DictConfig, agent: str, folder: Path, *, checkpoint: Path | None, dataset: Path | None
) -> None:
    """Logs one agent's evaluation: scalars, the in-context curve per episode, files, and the model if there is one."""
    summary = json.loads((folder / SUMMARY_FILE).read_text())
    curves = pl.read_csv(folder / CURVES_FILE)
    histories = config.agents[agent].histories if agent in config.agents else None
    held_out = summary["splits"]["held_out"]
    with tracker.start(
        "evaluate",
        f"{config.name}/{agent}",
        config=plain(config) | {"agent": agent},
        tags={
            "experiment": config.name,
            "agent": agent,
            "agent.explained": _EXPLANATIONS.get(histories or agent, ""),
            "result": result_line(held_out, curves),
        },
        description=description(config.name, agent, _EXPLANATIONS.get(histories or agent), held_out, curves),
    ) as run:
        for split, values in summary["splits"].items():
            run.log({f"evaluate/{split}/{name}": value for name, value in scalars(values)})
            for row in curves.filter(pl.col("split") == split).iter_rows(named=True):
                run.log({CURVE.format(split=split): row["return"]}, step=row["episode"])
        for file in (SUMMARY_FILE, CURVES_FILE, LIFETIMES_FILE):
            run.log_file(folder / file)
        # A run without an id is kept nowhere: no need to draw for it.
        if run.id:
            with tempfile.TemporaryDirectory() as temporary:
                figure = Path(temporary, _FIGURE_FILE)
                draw_curves(figure, curves, f"{config.name}/{agent}", oracle=held_out["oracle_return"])
                run.log_file(figure, "figures")
        for figure in sorted(folder.glob("*.png")):
            run.log_file(figure, "figures")
        if dataset is not None:
            run.log_dataset(dataset, context="training")
        if checkpoint is not None:
            run.log_model(checkpoint, loader=Policy)


def scalars(values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The numbers of one split's summary, named so that they sort; what is None has not been reached."""
    for name, value in values.items():
        if name in ("num_tasks", "num_lifetimes"):
            continue
        if name == "return_at":
            yield from ((f"return_at_{int(episode):03d}", number) for episode, number in value.items())
        elif name.endswith("_ci95"):
            yield from zip((f"{name}_low", f"{name}_high"), value, strict=True)
        elif isinstance(value, int | float):
            yield name, value


def result_line(held_out: Mapping[str, Any], curves: pl.DataFrame) -> str:
    """The held-out result in a few words, to be read beside that of another run."""
    first = curves.filter((pl.col("split") == "held_out") & (pl.col("episode") == 1))["return"].item()
    return (
        f"held-out return {first:.2f} in the first episode, {held_out['final_return']:.2f} in {_last(held_out)}, "
        f"{held_out['oracle_fraction']:.3f} of the oracle"
    )


def _last(held_out: Mapping[str, Any]) -> str:
    """The end of a lifetime, in words."""
    num_episodes = min(FINAL_EPISODES, held_out["num_episodes"])
    return f"the last {num_episodes} episodes" if num_episodes > 1 else "the last episode"


def description(
    experiment: str, agent: str, explanation: str | None, held_out: Mapping[str, Any], curves: pl.DataFrame
) -> str:
    """What the run is and how it came out, beside the oracle and the reference, in Markdown."""
    low, high = held_out["final_return_ci95"]
    oracle, reached = held_out["oracle_return"], held_out["episodes_to_reference"]
    reference = held_out["reference_fraction"]
    num_episodes = held_out["num_episodes"]
    ended = f"is reached at episode {reached}" if reached is not None else f"is not reached in {num_episodes} episodes"
    if num_episodes < FINAL_EPISODES:
        ended = f"cannot be told of fewer than {FINAL_EPISODES} episodes"
    about = f": {explanation}" if explanation else ""
    return (
        f"**{agent}** on **{experiment}**{about}. "
        f"On {held_out['num_tasks']} held-out tasks: {result_line(held_out, curves)} "
        f"(95 % interval of {_last(held_out)} {low:.2f} to {high:.2f}; oracle {oracle:.2f}). "
        f"The reference level, {reference} of the oracle ({reference * oracle:.1f}), {ended}. "
        f"To compare runs, open the metric `{CURVE.format(split='held_out')}`: its step is the episode."
    )


def draw_curves(path: Path, curves: pl.DataFrame, title: str, *, oracle: float) -> None:
    """Return per episode with its interval, one line a split, below the oracle's level."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for split, name in (("held_out", "held-out tasks"), ("train", "training tasks")):
        rows = curves.filter(pl.col("split") == split)
        if len(rows):
            (line,) = axes.plot(rows["episode"], rows["return"], label=name)
            axes.fill_between(rows["episode"], rows["low"], rows["high"], color=line.get_color(), alpha=0.2)
    axes.axhline(oracle, color="black", linestyle="--", linewidth=1, label="oracle on held-out tasks")
    axes.set(title=title, xlabel="episode in the lifetime", ylabel="return", ylim=(0, 1.05 * oracle))
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=110)
