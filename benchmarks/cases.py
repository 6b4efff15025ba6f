"""What a case is, what it reports, and where cases are found: every module here that has a list `CASES`."""

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import benchmarks
from benchmarks.machine import Demand, Limits
from benchmarks.timing import Clock, Figure, Side, installed, longest_operations, timed

NOT_INSTALLED = "not installed (pip install -e '.[bench]')"
WHOLE_PACKAGE = "not installed (pip install -e .; this case needs {})"

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Conditions:
    """Under what all cases of a run are measured.

    Attributes:
        device: `cpu` or `cuda`, of our side.
        threads: of torch.
        quick: tiny sizes, whose figures mean nothing.
        limits: of the machine.
        folder: where pictures go.
    """

    device: str
    threads: int
    quick: bool
    limits: Limits
    folder: Path

    def size(self, full: _Value, *, quick: _Value, cuda: _Value | None = None) -> _Value:
        """A size: the full one, another for GPUs if it is given, or the quick one."""
        if self.quick:
            return quick
        return cuda if cuda is not None and self.device == "cuda" else full

    @property
    def clock(self) -> Clock:
        """How long to measure."""
        return Clock(self.device, rounds=self.size(5, quick=2), seconds=self.size(1.0, quick=0.0))


@dataclass(frozen=True)
class Row:
    """A line of a stage's table.

    Attributes:
        what: was measured.
        unit: of both figures.
        ours: our side.
        rival: the other side; None where there is none, or it is not installed.
        beside: name of the other side, where there is one.
        note: why a figure is missing, or what it cannot say.
        key: under which `results.json` keeps the ratio; None keeps it in the row alone.
        shares: the part of the machine's limits that our side uses.
        profile: the operators of torch that take longest on our side; its comparison's first row has it.
        more: whatever else was measured.
    """

    what: str
    unit: str
    ours: Figure | None = None
    rival: Figure | None = None
    beside: str | None = None
    note: str | None = None
    key: str | None = None
    shares: Mapping[str, float] = field(default_factory=dict)
    profile: Sequence[Mapping[str, Any]] = ()
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ratio_wall(self) -> float | None:
        """Ours divided by the other's, by wall time."""
        return None if self.ours is None or self.rival is None else self.ours.wall / self.rival.wall

    @property
    def ratio_cpu(self) -> float | None:
        """The same by CPU time."""
        if self.ours is None or self.rival is None or self.ours.cpu is None or self.rival.cpu is None:
            return None
        return self.ours.cpu / self.rival.cpu


@dataclass(frozen=True)
class Case:
    """Something to measure.

    Attributes:
        name: `stage/what`; the stage is the module's name.
        about: one sentence.
        run: measures it.
        packages: what our own side needs beyond torch, NumPy and Gymnasium.
        devices: on which it can be run.
    """

    name: str
    about: str
    run: Callable[[Conditions], list[Row]]
    packages: tuple[str, ...] = ()
    devices: tuple[str, ...] = ("cpu", "cuda")

    @property
    def stage(self) -> str:
        """The table that it belongs to."""
        return self.name.partition("/")[0]

    def rows(self, conditions: Conditions) -> list[Row]:
        """Its rows, or one that says what is not installed."""
        missing = [package for package in self.packages if not installed([package])]
        if missing:
            return [Row(self.about, "", note=WHOLE_PACKAGE.format(", ".join(missing)))]
        return self.run(conditions)


def compare(
    what: str,
    unit: str,
    ours: Side,
    rivals: Sequence[Side],
    conditions: Conditions,
    *,
    keys: Mapping[str, str] | None = None,
    demand: Demand | None = None,
    more: Mapping[str, Any] | None = None,
) -> list[Row]:
    """One row for each rival, all of which and ours take turns; one row of ours alone where there is none.

    The first has the profile of ours.

    Args:
        what: is measured.
        unit: of the speeds.
        ours: our side.
        rivals: the others; those that are not installed have a row that says so.
        conditions: of the run.
        keys: by the rival's name, see `Row.key`.
        demand: of one unit on our side.
        more: see `Row.more`.
    """
    present = [side for side in rivals if side.is_installed]
    (own, work), *others = timed([ours, *present], conditions.clock)
    figures = {figure.name: figure for figure, _ in others}
    shares = {}
    if demand is not None:
        shares = demand.shares(own.wall, str(own.settings.get("precision", "float32")), conditions.limits)

    def row(beside: str | None = None) -> Row:
        rival = None if beside is None else figures.get(beside)
        return Row(
            what,
            unit,
            ours=own,
            rival=rival,
            beside=beside,
            note=NOT_INSTALLED if beside is not None and rival is None else None,
            key=None if beside is None else (keys or {}).get(beside),
            shares=shares,
            more=more or {},
        )

    rows = [row(side.name) for side in rivals] or [row()]
    return [replace(rows[0], profile=longest_operations(work, conditions.clock)), *rows[1:]]


def all_cases() -> list[Case]:
    """Every case, by stage."""
    names = sorted(module.name for module in pkgutil.iter_modules(benchmarks.__path__) if not module.ispkg)
    modules = [importlib.import_module(f"benchmarks.{name}") for name in names if name != "__main__"]
    return [case for module in modules for case in getattr(module, "CASES", [])]


def chosen_cases(names: Sequence[str], device: str) -> list[Case]:
    """The cases of these names, or of the stages of these names; all where there is no name.

    Raises:
        ValueError: nothing is called so, or what is cannot run on the device.
    """
    cases = all_cases()
    for name in names:
        if not any(name in (case.name, case.stage) for case in cases):
            known = ", ".join(dict.fromkeys(case.stage for case in cases))
            raise ValueError(f"no case or stage is called '{name}'; stages are {known}; --list shows every case")
    chosen = [case for case in cases if not names or case.name in names or case.stage in names]
    able = [case for case in chosen if device in case.devices]
    if not able:
        raise ValueError(f"{', '.join(names)} cannot run on device={device}; choose {' or '.join(chosen[0].devices)}")
    return able
