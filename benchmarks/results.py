"""What was measured: `results.json`, where cases are kept until they are measured again, and tables made of it."""

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.cases import Case, Row
from benchmarks.targets import TARGETS
from benchmarks.timing import installed
from distillery.reports.marked import with_part

Results = dict[str, Any]
# A row as `results.json` holds it.
StoredRow = Mapping[str, Any]

COLUMNS = ("what", "ours", "beside", "its figure", "ratio, wall", "ratio, CPU", "share of limit")
BEGIN = "<!-- begin: figures, written by `python -m benchmarks --readme` -->"
END = "<!-- end: figures -->"
NOT_MEASURED = "not measured"


def read_results(path: Path) -> Results:
    """What was measured before; nothing where there is no such file.

    Raises:
        ValueError: it is no file of results.
    """
    if not path.exists():
        return {"ratios": {}, "ratios_cpu": {}, "machine": {}, "cases": {}}
    try:
        results = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); delete it and measure again") from error
    if not isinstance(results, dict) or not isinstance(results.get("cases"), dict):
        raise ValueError(f"{path} holds no results of this suite; delete it, or choose another file with --output")
    return results


def write_whole(path: Path, text: str) -> None:
    """Writes a file whole or not at all; `distillery.core.files` does more, and needs a package more."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".partial-{path.name}-")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        Path(name).chmod(0o666 & ~umask)
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def store(results: Results, case: Case, rows: Sequence[Row], machine: Mapping[str, Any]) -> None:
    """Puts a case's rows in the place of those of the same device; other cases and devices stay."""
    stored = [
        {**asdict(row), "ratio": {"wall": row.ratio_wall, "cpu": row.ratio_cpu}, "stage": case.stage} for row in rows
    ]
    results["cases"].setdefault(case.name, {})[machine["device"]] = {
        "about": case.about,
        "machine": dict(machine),
        "rows": stored,
    }
    results["machine"] = dict(machine)
    # Gathered anew, so that no ratio is left of a row that is gone.
    results["ratios"], results["ratios_cpu"] = _ratios(results, "wall"), _ratios(results, "cpu")


def require_rivals(results: Results, cases: Sequence[Case], device: str) -> None:
    """Refuses to measure alone what was measured beside others, whose figures would be lost.

    Raises:
        ValueError: some of those others are not installed.
    """
    for case in cases:
        for row in results["cases"].get(case.name, {}).get(device, {"rows": []})["rows"]:
            packages = (row["rival"] or {}).get("packages", ())
            if not installed(packages):
                raise ValueError(
                    f"{case.name} was measured beside {row['beside']}, which is not installed here, so that the "
                    "figure would be lost; pip install -e '.[bench]', or choose another file with --output"
                )


def _ratios(results: Results, clock: str) -> dict[str, float]:
    """Ratios by key; those of a GPU have a key of their own."""
    ratios = {}
    for devices in results["cases"].values():
        for device, measured in devices.items():
            for row in measured["rows"]:
                if row["key"] is not None and row["ratio"][clock] is not None:
                    ratios[row["key"] if device == "cpu" else f"{row['key']}_{device}"] = row["ratio"][clock]
    return dict(sorted(ratios.items()))


def write_results(path: Path, results: Results) -> None:
    """Writes `results.json`, whole or not at all; NaN is refused."""
    write_whole(path, json.dumps(results, indent=2, allow_nan=False) + "\n")


def number(value: float | None, suffix: str = "") -> str:
    """Three digits or a whole number, or nothing."""
    if value is None:
        return ""
    return f"{value:,.0f}{suffix}" if abs(value) >= 100 else f"{value:.3g}{suffix}"


def _figure(figure: Mapping[str, Any] | None, unit: str = "") -> str:
    """A figure with what was chosen on its side: precision, batch, ..."""
    if figure is None:
        return ""
    chosen = [
        f"{name} {value}" if value is not True else name
        for name, value in figure["settings"].items()
        if name not in ("device", "threads") and value is not False
    ]
    return f"{number(figure['wall'])} {unit}".strip() + (f" ({', '.join(chosen)})" if chosen else "")


def cells(row: StoredRow) -> tuple[str, ...]:
    """A row's text, one for each of `COLUMNS`."""
    ours, rival, shares = row["ours"], row["rival"], row["shares"]
    share = max(shares, key=lambda name: float(shares[name])) if shares else None
    return (
        row["what"],
        _figure(ours, row["unit"]),
        row["beside"] or "",
        " ".join(filter(None, (_figure(rival), row["note"]))),
        number(row["ratio"]["wall"], " x"),
        number(row["ratio"]["cpu"], " x"),
        "" if share is None else f"{shares[share]:.1%} of {share}",
    )


def _longest(row: StoredRow) -> str:
    """The operators that take longest, in words."""
    return ", ".join(f"{item['operation'].removeprefix('aten::')} {item['share']:.0%}" for item in row["profile"])


def print_tables(results: Results, names: Sequence[str], device: str) -> None:
    """A table for each stage of the cases named: by rich where it is installed, otherwise as plain text."""
    stages: dict[str, list[StoredRow]] = {}
    for name in names:
        for row in results["cases"].get(name, {}).get(device, {"rows": []})["rows"]:
            stages.setdefault(row["stage"], []).append(row)
    for stage, rows in stages.items():
        _print_table(stage, [cells(row) for row in rows])
        for row in rows:
            if row["profile"]:
                print(f"  {row['what']}: {_longest(row)}")


def _print_table(title: str, lines: Sequence[tuple[str, ...]]) -> None:
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        print(f"\n{title}")
        for line in (COLUMNS, *lines):
            print(" | ".join(line))
        return
    table = Table(title=title, title_justify="left")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in ("what", "beside") else "right")
    for line in lines:
        table.add_row(*line)
    Console(width=180).print(table)


# README.md


def _targets(results: Results) -> list[str]:
    lines = ["| what | target | measured, wall | measured, CPU |", "|---|---|---|---|"]
    for target in TARGETS:
        wall, cpu = results["ratios"].get(target.key), results["ratios_cpu"].get(target.key)
        lines.append(
            f"| {target.what} | {target.bound} | {number(wall) or NOT_MEASURED} | {number(cpu) or NOT_MEASURED} |"
        )
    return lines


def _machine(machine: Mapping[str, Any]) -> str:
    products = ", ".join(f"{number(value)} in {name}" for name, value in machine["matrix_product_gflops"].items())
    return (
        f"{machine['device_name']}, {machine['cores']} cores, {machine['threads']} threads, torch {machine['torch']}; "
        f"matrix products at {products} GFLOP/s, memory copied at {number(machine['memory_copy_gb_per_s'])} GB/s; "
        f"{machine['date']}, commit {machine['commit'] or 'unknown'}"
    )


def _device(results: Results, cases: Sequence[Case], device: str) -> list[str]:
    """A table of every case on one device, what took longest, and what was measured where, when and of which code."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---|" + "---|" * (len(COLUMNS) - 1)]
    machines, profiles = dict[str, list[str]](), list[str]()
    for case in cases:
        measured = results["cases"].get(case.name, {}).get(device)
        if device not in case.devices:
            continue
        if measured is None:
            lines.append(f"| {case.about} | {NOT_MEASURED} |" + " |" * (len(COLUMNS) - 2))
            continue
        lines += [f"| {' | '.join(cells(row))} |" for row in measured["rows"]]
        profiles += [f"- {row['what']}: {_longest(row)}" for row in measured["rows"] if row["profile"]]
        machines.setdefault(_machine(measured["machine"]), []).append(case.name)
    told = [f"{', '.join(names)}: measured on {machine}.\n" for machine, names in machines.items()]
    return [
        *told,
        *lines,
        *(["", "Operators of torch that take most of our side's time:", ""] if profiles else []),
        *profiles,
    ]


def figures(results: Results, cases: Sequence[Case]) -> str:
    """The part of README.md between its two marks.

    Raises:
        ValueError: the results are of tiny sizes.
    """
    quick = [
        name
        for name, devices in results["cases"].items()
        if any(measured["machine"]["quick"] for measured in devices.values())
    ]
    if quick:
        raise ValueError(f"{', '.join(quick)} were measured at tiny sizes; measure them again without --quick")
    parts = ["### Targets", "", *_targets(results)]
    for device, title in (("cpu", "CPU"), ("cuda", "GPU")):
        parts += ["", f"### {title}", "", *_device(results, cases, device)]
    return "\n".join(parts)


def update_readme(path: Path, results: Results, cases: Sequence[Case]) -> None:
    """Writes the figures into README.md.

    Raises:
        ValueError: a mark is missing, or the results are of tiny sizes.
    """
    told = figures(results, cases)
    try:
        text = with_part(path.read_text(), BEGIN, END, told)
    except ValueError as error:
        raise ValueError(f"{path} {error}") from error
    write_whole(path, text)
