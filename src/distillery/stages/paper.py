"""Runs studies of published results, and draws the page that puts them beside ours.

python -m distillery.stages.paper                     every study that two cores can run, then the page
python -m distillery.stages.paper context_size        one of them, then the page
python -m distillery.stages.paper context_size/c200   one variant of it
python -m distillery.stages.paper --page              the page alone, from the committed results
python -m distillery.stages.paper --list              what there is, and what is left to run
python -m distillery.stages.paper context_size --again    after a change of code: trains and runs all of it anew

Every finished run is written at once to ``data/results/<study>.json``; stopped at any time, the next call goes on
with what is left. Histories and checkpoints lie under ``data/histories/study`` and ``models/study``, named by a hash
of what made them, so that studies share whatever is equal.
"""

import argparse
import contextlib
import io
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import polars as pl
import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from distillery.core.files import read_json, whole_file
from distillery.core.lifetimes import BASELINES, FINAL_EPISODES
from distillery.core.protocols import TaskDistribution
from distillery.evaluation.storage import LIFETIMES_FILE, SUMMARY_FILE
from distillery.histories.format import METADATA_FILE, Metadata
from distillery.layers.precision import slow_bfloat16
from distillery.papers.results import Run, SplitResult, add_run, all_runs, read_runs, withdraw_runs
from distillery.papers.study import Study, Variant, load_study, study_names
from distillery.stages.attention import mapped_attention
from distillery.stages.baselines import write_baselines
from distillery.stages.collect import collect
from distillery.stages.entry import (
    agent_settings,
    build,
    checkpoint_folder,
    evaluation_folder,
    histories_folder,
    require_device,
)
from distillery.stages.evaluate import evaluate
from distillery.stages.paper_page import write_page
from distillery.stages.readme import README, study_tables, update_readme
from distillery.stages.resolve import check
from distillery.stages.study_units import (
    RUNTIMES,
    Unit,
    digest,
    is_current,
    require_known_runtime,
    runtime_of,
    settings_by_runtime,
    unit_of,
    units_of,
)
from distillery.stages.train import train
from distillery.tracking.provenance import provenance_tags
from distillery.training.checkpoints import read_checkpoint_info

# Beside a checkpoint, the commit of the code that trained it; a run that finds the checkpoint made tells that one.
_COMMIT_FILE = "commit.txt"
# Pools of workers in a row that died before any run was done, after which no further one is tried.
_FRUITLESS_POOLS = 2
# The histories of all seeds of a study are the same: what is asked is how trainings vary.
DATASET_SEED = 0


@contextlib.contextmanager
def _made_once(folder: Path, proof: str) -> Iterator[bool]:
    """Whether `folder` is still to be made, which a file in it proves; others that need it wait until it is."""
    lock = Path(".scratch", "locks", f"{digest(str(folder))}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(lock):
        yield not (folder / proof).is_file()


def run_unit(unit: Unit, variant: Variant) -> Run:
    """Collects, trains and evaluates what one run needs and is not there yet."""
    agent = variant.agent
    config = OmegaConf.create(unit.config)
    OmegaConf.set_struct(config, True)
    check(config)
    begin = time.perf_counter()
    if agent in BASELINES:
        facts: dict[str, Any] = {"commit": _commit()}
        write_baselines(config, [agent])
    else:
        facts = _trained(config)
        facts["evaluation_commit"] = _commit()
        evaluate(config)
        facts["extra"] = _prompt_levels(config)
        if variant.attention_at is not None:
            facts["extra"] |= mapped_attention(config, variant.attention_at)
    return Run(
        variant=unit.variant,
        seed=unit.seed,
        settings=unit.settings,
        splits=_splits(evaluation_folder(config, agent), config),
        minutes=round((time.perf_counter() - begin) / 60, 2),
        **facts,
    )


def _prompt_levels(config: DictConfig) -> dict[str, float]:
    """What prompts came to, as parts of the oracle's return, where contexts did not start empty."""
    summary = read_json(evaluation_folder(config, config.agent) / SUMMARY_FILE, remedy="evaluate again")
    levels = summary["splits"]["held_out"].get("prompt")
    return {} if levels is None else {"prompt_level": levels["mean"], "furthest_prompt_level": levels["furthest"]}


def _commit() -> str:
    """The commit of the code, marked where sources differ from it."""
    tags = provenance_tags()
    changed = "+" if tags.get("git.dirty") == "true" else ""
    return f"{tags.get('git.commit', 'unknown')[:10]}{changed}"


def _trained(config: DictConfig) -> dict[str, Any]:
    """Makes sure of the histories and the checkpoint; returns what a run tells of them."""
    facts: dict[str, Any] = {}
    kind = agent_settings(config).histories
    if kind is not None:
        folder = histories_folder(config, kind)
        # All kinds of a dataset are collected at once: who needs another kind of it waits as well.
        with _made_once(folder.parent, f"{kind}/{METADATA_FILE}") as needed:
            if needed:
                own = OmegaConf.merge(config, {"seed": DATASET_SEED})
                assert isinstance(own, DictConfig)
                collect(own)
        facts["data"] = Metadata.read(folder).content_hash[:16]
    checkpoint = checkpoint_folder(config, config.agent)
    with _made_once(checkpoint, _COMMIT_FILE) as needed:
        if needed:
            train(config)
            with whole_file(checkpoint / _COMMIT_FILE) as temporary:
                temporary.write_text(_commit())
    facts["commit"] = (checkpoint / _COMMIT_FILE).read_text()
    facts["updates"] = read_checkpoint_info(checkpoint).training["selected_update"]
    return facts


def _splits(folder: Path, config: DictConfig) -> dict[str, SplitResult]:
    """What an evaluation on disk comes to, task by task."""
    tasks: TaskDistribution = build(config.tasks)
    oracle = tasks.oracle_returns()
    frame = pl.read_parquet(folder / LIFETIMES_FILE)
    splits = {}
    for split in frame["split"].unique(maintain_order=True):
        rows = frame.filter(pl.col("split") == split).sort("task_id", "seed", "episode")
        num_tasks, num_episodes = rows["task_id"].n_unique(), rows["episode"].n_unique()
        returns = rows["return"].to_numpy().astype(np.float64).reshape(num_tasks, -1, num_episodes)  # (K, seeds, N)
        ids = rows["task_id"].unique(maintain_order=True).to_numpy()
        final = returns[..., -FINAL_EPISODES:].mean(-1)  # (K, seeds)
        splits[split] = SplitResult(
            curve=returns.mean((0, 1)).tolist(),
            task_ids=ids.tolist(),
            first=returns[..., 0].mean(1).tolist(),
            final=final.mean(1).tolist(),
            oracle=oracle[ids].tolist(),
            failed=(final < 0.5 * oracle[ids][:, None]).mean(1).tolist(),
        )
    return splits


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)  # nobody is left to take the result; what was trained so far is kept


def _start_worker(num_threads: int, parent: int) -> None:
    # Of a Ctrl-C the command alone takes notice, and ends its workers; they would go on with the next run.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    torch.set_num_threads(num_threads)
    os.environ["OMP_NUM_THREADS"] = str(num_threads)
    logging.basicConfig(level=logging.WARNING)


def _run_quietly(unit: Unit, variant: Variant) -> Run:
    """What a worker process does: the stages' own lines would mix with those of other workers."""
    with contextlib.redirect_stdout(io.StringIO()):
        return run_unit(unit, variant)


def missing_runs(studies: Sequence[tuple[Study, Collection[str]]], extra: Sequence[str]) -> list[list[Unit]]:
    """What is left to run: units of equal settings, of whatever study, are one run together.

    Runs of equal settings that another study has, made with whatever runtime, are taken over at once.
    """
    done, left = all_runs(), dict[str, list[Unit]]()
    for study, variants in studies:
        runs = read_runs(study.name)
        current = {(r.variant, r.seed) for r, is_so in zip(runs, is_current(study, runs), strict=True) if is_so}
        for unit in units_of(study, extra):
            if unit.variant not in variants:
                continue
            if (unit.variant, unit.seed) in current:
                continue
            possible = settings_by_runtime(study, study.variants[unit.variant], unit.seed)
            elsewhere = [done[settings] for _, settings in possible if settings in done]
            if elsewhere:
                add_run(study.name, replace(elsewhere[0], variant=unit.variant), study.variants)
            else:
                left.setdefault(unit.settings, []).append(unit)
    # First seeds first, so that a command that is stopped has something of every study; of those that share a
    # checkpoint one goes ahead, so that no worker waits for another's.
    ahead: Counter[str] = Counter()
    order: list[tuple[int, int, int]] = []
    for same in left.values():
        order.append((same[0].seed, ahead[same[0].config["checkpoint"]], len(order)))
        ahead[same[0].config["checkpoint"]] += 1
    return [same for _, same in sorted(zip(order, left.values(), strict=True), key=lambda pair: pair[0])]


def withdraw(studies: Sequence[tuple[Study, Collection[str]]]) -> list[str]:
    """Takes back results, so that their trainings are made anew, and those of other studies that rest on these.

    Returns the names of the results, ``study/variant/seed``.
    """
    by_name = {name: load_study(name) for name in study_names()} | {study.name: study for study, _ in studies}
    every = [
        unit_of(study, study.variants[run.variant], run.seed, [runtime] if runtime else [])
        for study in by_name.values()
        for run in read_runs(study.name)
        for runtime in [runtime_of(study, run)]
        if runtime is not None
    ]
    # Also those that were trained and whose run is not recorded.
    chosen = [
        unit
        for study, variants in studies
        for runtime in RUNTIMES
        for unit in units_of(study, [runtime] if runtime else [])
        if unit.variant in variants
    ]
    trained = [unit for unit in chosen if by_name[unit.study].variants[unit.variant].trains]
    for unit in trained:
        proof = checkpoint_folder(OmegaConf.create(unit.config), unit.config["agent"]) / _COMMIT_FILE
        proof.unlink(missing_ok=True)
    checkpoints = {unit.config["checkpoint"] for unit in trained}
    sharing = [unit for unit in every if unit.config["checkpoint"] in checkpoints]
    return withdraw_runs({unit.settings for unit in [*chosen, *sharing]})


def run_studies(
    studies: Sequence[tuple[Study, Collection[str]]], *, num_workers: int, num_threads: int, extra: Sequence[str]
) -> int:
    """Runs whatever is missing of some variants of some studies; returns the number of runs that failed."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    left = missing_runs(studies, extra)
    console.print(f"{len(left)} runs to make, {num_workers} at a time")
    if not left:
        return 0
    runtime = left[0][0].config["runtime"]
    require_device(runtime["device"])
    if warning := slow_bfloat16(runtime["device"], enabled=runtime["bfloat16"]):
        console.print(f"warning: {warning}")
    by_name = {study.name: study for study, _ in studies}
    progress, fruitless = _Progress(len(left)), 0
    while left:
        finished_before = progress.finished
        left = _run_in_a_pool(left, by_name, progress, console, num_workers=num_workers, num_threads=num_threads)
        fruitless = fruitless + 1 if progress.finished == finished_before else 0
        if left and fruitless == _FRUITLESS_POOLS:
            console.print(
                f"{len(left)} runs are left: workers were killed {fruitless} times before any run was done; where "
                "memory was short, fewer --workers need less"
            )
            return progress.failed + len(left)
        if left:
            console.print(f"a worker was killed; {len(left)} runs are left, begun ones go on where they stopped")
    return progress.failed


@dataclass
class _Progress:
    """How far all pools together came.

    Attributes:
        total: runs to make.
        finished: runs that ended, well or not.
        failed: runs that ended with an error.
    """

    total: int
    finished: int = 0
    failed: int = 0


def _run_in_a_pool(
    left: Sequence[list[Unit]],
    studies: Mapping[str, Study],
    progress: _Progress,
    console: Console,
    *,
    num_workers: int,
    num_threads: int,
) -> list[list[Unit]]:
    """Makes runs, until all are made or a worker dies, which ends its pool; returns those that are left then."""
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(num_workers, context, _start_worker, (num_threads, os.getpid()))
    lost = []
    try:
        futures: dict[Future[Run], list[Unit]] = {}
        for same in left:
            futures[pool.submit(_run_quietly, same[0], studies[same[0].study].variants[same[0].variant])] = same
        for future in as_completed(futures):
            same = futures[future]
            try:
                run = future.result()
            except BrokenProcessPool:
                lost.append(same)
                continue
            except Exception as error:  # whatever ends one run, the others go on
                progress.finished += 1
                progress.failed += 1
                console.print(f"{_place(progress, same)} failed: {type(error).__name__}: {error}")
                continue
            progress.finished += 1
            for unit in same:
                add_run(unit.study, replace(run, variant=unit.variant), studies[unit.study].variants)
            first, final = run.splits["held_out"].curve[0], np.mean(run.splits["held_out"].final)
            console.print(
                f"{_place(progress, same)}: return {first:.2f} in the first episode, {final:.2f} at the end "
                f"({run.minutes} min)"
            )
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()
    return sorted(lost, key=left.index)


def _place(progress: _Progress, same: Sequence[Unit]) -> str:
    return f"[{progress.finished}/{progress.total}] {', '.join(unit.label for unit in same)}"


def asked_studies(names: Sequence[str]) -> list[tuple[Study, Collection[str]]]:
    """Studies by ``study`` or ``study/variant``, each with the names of the variants that were asked for.

    Raises:
        ValueError: there is none of that name.
    """
    asked: dict[str, set[str]] = {}
    for name in names:
        study, _, variant = name.partition("/")
        known = load_study(study).variants
        if variant and variant not in known:
            raise ValueError(f"study '{study}' has no variant '{variant}'; it has {', '.join(known)}")
        asked.setdefault(study, set()).update([variant] if variant else known)
    return [(load_study(study), variants) for study, variants in asked.items()]


def default_studies() -> list[str]:
    """What runs when nothing is named: all that needs no GPU."""
    return [name for name in study_names() if not load_study(name).on_request]


def list_studies(studies: Sequence[tuple[Study, Collection[str]]], extra: Sequence[str]) -> None:
    """Prints every study with what is done and left."""
    table = Table("study", "what it shows", "runs", "left", box=None)
    for study, _ in studies:
        runs = read_runs(study.name)
        num_runs = len(units_of(study, extra))
        left = num_runs - sum(is_current(study, runs))
        title = f"{study.title} (when named)" if study.on_request else study.title
        table.add_row(study.name, title, str(num_runs), str(left))
    Console().print(table)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        prog="python -m distillery.stages.paper",
    )
    parser.add_argument(
        "studies",
        nargs="*",
        help="names of studies, or study/variant (default: all for a CPU), then overrides like runtime=cuda",
    )
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, a process each")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--page", action="store_true", help="draw the page alone")
    parser.add_argument(
        "--again",
        action="store_true",
        help="take back the results of the studies named, and train anew; if stopped, go on without this option",
    )
    parser.add_argument("--list", action="store_true", help="list the studies and what is left to run")
    options = parser.parse_intermixed_args(arguments)
    names = [name for name in options.studies if "=" not in name]
    extra = [name for name in options.studies if "=" in name]
    for name in extra:
        if name.startswith("runtime.num_threads"):
            sys.exit(f"error: {name}: the threads of each run are given by --threads")
        if name.partition("=")[0].split(".")[0] not in ("runtime", "tracking"):
            sys.exit(
                f"error: {name} would change a published study's settings; only runtime and tracking can be given"
            )
    if options.workers < 1 or options.threads < 1:
        sys.exit(f"error: --workers and --threads must be at least 1, got {options.workers} and {options.threads}")
    try:
        studies = asked_studies(names or (study_names() if options.list else default_studies()))
        require_known_runtime(studies[0][0], extra)
        if options.list:
            list_studies(studies, extra)
            return
        if options.again:
            if not names or options.page:
                raise ValueError("--again takes results back: name the studies, and leave --page out")
            print(f"taken back: {', '.join(withdraw(studies)) or 'nothing'}")
        failed = 0
        if not options.page:
            failed = run_studies(studies, num_workers=options.workers, num_threads=options.threads, extra=extra)
        page = write_page()
        print(f"the page: {page}; `dvc repro` takes the studies' numbers into data/reports/metrics.json")
        if README.is_file():
            update_readme(study_tables())
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; finished runs are kept, and the same command, without --again, goes on with what is left")
    if failed:
        sys.exit(f"error: {failed} runs failed; the command tries them again")


if __name__ == "__main__":
    main()
