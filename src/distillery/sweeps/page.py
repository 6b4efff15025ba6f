"""A study as one page that opens offline: its plots, its trials, and how to promote the winner."""

import html
from collections.abc import Callable, Iterator
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

SCORE = "validation score"

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { margin-bottom: 0; } h2 { margin-top: 2.5rem; } .lead, figcaption { color: #555; } figure { margin: 0; }
pre { background: #f4f4f4; padding: .8rem; white-space: pre-wrap; overflow-wrap: anywhere; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; display: block; overflow-x: auto; }
th, td { text-align: left; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid #ddd; vertical-align: top; }
tr.best { font-weight: 600; } tr.pruned, tr.fail { color: #777; }
"""


def page(study: optuna.Study, summary: dict[str, Any], promotion: str) -> str:
    """The whole page as HTML; plotly is in it once."""
    import plotly.offline

    title = html.escape(summary["study"])
    best = summary["best"]
    values = ", ".join(f"{name} = {short(value)}" for name, value in best["params"].items())
    states = ", ".join(f"{count} {state}" for state, count in summary["states"].items() if count)
    sections = "\n".join(_sections(study))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Sweep {title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>{_STYLE}</style>
<script>{plotly.offline.get_plotlyjs()}</script></head>
<body>
<h1>{title}</h1>
<p class="lead">{html.escape(states)}. Best: trial {best["number"]} with a {SCORE} of {best["score"]:.4f}
({html.escape(values)}).{_beside_default(summary)} The score is the area under the in-context learning curve on
validation tasks, as a part of the oracle's.</p>
<h2>Promote the winner</h2>
<pre>{html.escape(promotion)}</pre>
{sections}
<h2>Trials</h2>
{_table(study, best["number"])}
</body></html>
"""


def _beside_default(summary: dict[str, Any]) -> str:
    default = summary["default_score"]
    return "" if default is None else f" The experiment's own settings score {default:.4f}."


def _sections(study: optuna.Study) -> Iterator[str]:
    from optuna import visualization as plots

    completed = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    searched = sorted({name for trial in completed for name in trial.params})
    named: dict[str, Any] = {"target_name": SCORE}
    yield _section(
        "History",
        "Every completed trial, and the best so far.",
        lambda: plots.plot_optimization_history(study, **named),
    )
    yield _section(
        "While they trained",
        "Each trial's score at its validations, by update; lines that end early were pruned.",
        lambda: plots.plot_intermediate_values(study).update_layout(xaxis_title="update", yaxis_title=SCORE),
    )
    yield _section(
        "One parameter at a time", "Completed trials only.", lambda: plots.plot_slice(study, params=searched, **named)
    )
    if len(searched) > 1:
        yield _section(
            "All parameters together",
            "One line a completed trial.",
            lambda: plots.plot_parallel_coordinate(study, params=searched, **named),
        )
    title, caption = "Importances", "How much of the score's spread each parameter accounts for."
    if len(completed) < 4 or len(searched) < 2:
        yield _missing(title, "it takes four completed trials of two parameters to tell importances")
    else:
        yield _section(title, caption, lambda: plots.plot_param_importances(study, **named))
    yield _section("When", "Which trial ran when.", lambda: plots.plot_timeline(study))


def _section(title: str, caption: str, draw: Callable[[], Any]) -> str:
    try:
        figure = draw()
    # Optuna refuses a plot of too few or too equal trials in several ways; the page says so in its place.
    except (ValueError, RuntimeError) as error:
        return _missing(title, str(error))
    figure.update_layout(title=None, margin={"t": 30})
    body = figure.to_html(full_html=False, include_plotlyjs=False, config={"displaylogo": False, "responsive": True})
    return f"<h2>{title}</h2><figure>{body}<figcaption>{caption}</figcaption></figure>"


def _missing(title: str, reason: str) -> str:
    return f"<h2>{title}</h2><p>No plot: {html.escape(reason)}.</p>"


def _table(study: optuna.Study, best: int) -> str:
    trials = study.get_trials(deepcopy=False)
    searched = list(dict.fromkeys(name for trial in trials for name in trial.params))
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ("trial", "state", SCORE, *searched, "minutes", ""))
    rows = "\n".join(_row(trial, searched, best) for trial in trials)
    return f"<table><thead><tr>{head}</tr></thead><tbody>\n{rows}\n</tbody></table>"


def _row(trial: FrozenTrial, searched: list[str], best: int) -> str:
    duration = trial.duration.total_seconds() / 60 if trial.duration else None
    cells = [
        str(trial.number),
        trial.state.name.lower(),
        short(score_of(trial)),
        *(short(trial.params.get(name)) for name in searched),
        "" if duration is None else f"{duration:.1f}",
        remark(trial),
    ]
    mark = "best" if trial.number == best else trial.state.name.lower()
    return f'<tr class="{mark}">' + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>"


def score_of(trial: FrozenTrial) -> float | None:
    """A trial's score, or the last it reported before it was pruned."""
    if trial.state == TrialState.COMPLETE:
        return trial.value
    return trial.intermediate_values.get(trial.last_step) if trial.last_step is not None else None


def remark(trial: FrozenTrial) -> str:
    """Why a trial ended as it did, where that is not plain."""
    notes = trial.user_attrs
    if "same_as" in notes:
        return f"same as trial {notes['same_as']}"
    if "refused" in notes:
        return f"refused: {notes['refused']}"
    if trial.state == TrialState.FAIL:
        return notes.get("error") or ("interrupted" if "interrupted" in notes else "its worker ended")
    words = ["the experiment's own settings"] if "default" in notes else []
    words += [f"retry of trial {notes['retry_of']}"] if "retry_of" in notes else []
    return ", ".join(words)


def short(value: Any) -> str:
    """A value as a table shows it; nothing for None."""
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
