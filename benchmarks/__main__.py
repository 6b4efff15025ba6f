"""The command line.

python -m benchmarks                        every case
python -m benchmarks training collection/a2c --threads 2
python -m benchmarks --readme               writes the figures into benchmarks/README.md
"""

import argparse
import os
import sys
import traceback
from pathlib import Path

import torch

from benchmarks.cases import Case, Conditions, all_cases, chosen_cases
from benchmarks.machine import Limits, describe, measure_limits
from benchmarks.results import print_tables, read_results, require_rivals, store, update_readme, write_results

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results.json"
# Figures of tiny sizes mean nothing, so they do not take the place of others.
QUICK_RESULTS = FOLDER.parent / ".scratch" / "benchmarks" / "results.json"


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """The options, checked."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="How fast each stage is, beside what people use today."
    )
    parser.add_argument("names", nargs="*", metavar="case", help="a case or a stage, see --list; default: all")
    parser.add_argument("--threads", type=int, help="of torch; default: as torch chooses")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where our side runs (default: cpu)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see whether every case still runs")
    parser.add_argument("--list", action="store_true", help="list the cases and stop")
    parser.add_argument("--readme", action="store_true", help="write the figures into benchmarks/README.md and stop")
    parser.add_argument(
        "--output", type=Path, help="file of results (default: benchmarks/results.json, of --quick one in .scratch)"
    )
    options = parser.parse_args(arguments)
    if options.threads is not None and options.threads < 1:
        parser.error(f"--threads must be at least 1, got {options.threads}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda cannot be used: torch finds no GPU here; choose cpu")
    if options.output is None:
        options.output = QUICK_RESULTS if options.quick else RESULTS
    return options


def measure(cases: list[Case], options: argparse.Namespace) -> list[str]:
    """Measures the cases one after another, each stored when it is done; returns the names of those that failed."""
    results = read_results(options.output)
    require_rivals(results, cases, options.device)
    limits: Limits = measure_limits(options.device, quick=options.quick)
    folder = options.output.parent.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    conditions = Conditions(options.device, torch.get_num_threads(), options.quick, limits, folder)
    machine = describe(options.device, limits, quick=options.quick)
    failed = []
    for number, case in enumerate(cases, 1):
        print(f"[{number}/{len(cases)}] {case.name}: {case.about}", file=sys.stderr, flush=True)
        try:
            rows = case.rows(conditions)
        except Exception:  # the others are still worth measuring
            traceback.print_exc()
            failed.append(case.name)
            continue
        store(results, case, rows, machine)
        write_results(options.output, results)
    print_tables(results, [case.name for case in cases if case.name not in failed], options.device)
    print(f"written to {options.output}")
    return failed


def main(arguments: list[str] | None = None) -> None:
    """Measures, or lists, or writes README.md."""
    options = parsed(arguments)
    try:
        if options.readme:
            update_readme(FOLDER / "README.md", read_results(options.output), all_cases())
            return
        cases = chosen_cases(options.names, options.device)
        if options.list:
            for case in cases:
                print(f"{case.name:32} {case.about}")
            return
        # No library may fetch anything, nor report what it is used for.
        os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        failed = measure(cases, options)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    if failed:
        sys.exit(f"error: {', '.join(failed)} could not be measured, see above")


if __name__ == "__main__":
    main()
