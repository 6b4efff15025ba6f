"""What a study is: variants of one experiment, run over seeds, and the claim that they test.

A study is one file, ``conf/papers/<paper>/<study>.yaml``; what the paper claims as a whole is ``claims.yaml`` beside
them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from distillery.core.lifetimes import BASELINES

FOLDER = Path(__file__).parent.parent / "conf" / "papers"
CLAIMS_FILE = "claims.yaml"
METRICS = ("final", "first", "gain", "normalised", "oracle_fraction", "episodes_to")
# What a return per episode can tell on its own.
CURVE_METRICS = ("final", "gain")
# Numbers that a run holds beside its returns are metrics too, called by this and their name.
EXTRA = "extra."
# A check that rests on fewer trainings is one so far, however many are planned.
MIN_TRAININGS = 3


@dataclass(frozen=True)
class Variant:
    """One agent under one set of changes.

    Attributes:
        name: inside the study.
        label: for people.
        agent: `ad`, `ed`, ... (see ``conf/config.yaml``), or `source`, `random`, `oracle`.
        overrides: of the study's composition, as on a Hydra command line.
        x: place on the axis of a study over one quantity.
        line: which of several lines over that axis it belongs to.
        published: what the paper reports for the study's metric, on the first of its splits.
        published_splits: the same on other splits.
        published_curve: pairs of episode and return read off the paper's figure.
        num_seeds: training seeds, where they are not the study's; what does not train is run once.
        experiment: in ``conf/experiment/``, where it is not the study's.
        attention_at: step of the lifetime at which attention is mapped; None maps none.
    """

    name: str
    label: str
    agent: str = "ad"
    overrides: tuple[str, ...] = ()
    x: float | None = None
    line: str | None = None
    published: float | None = None
    published_splits: Mapping[str, float] = field(default_factory=dict)
    published_curve: tuple[tuple[float, float], ...] = ()
    num_seeds: int | None = None
    experiment: str | None = None
    attention_at: int | None = None

    @property
    def trains(self) -> bool:
        """Whether its runs are trainings, which differ from seed to seed."""
        return self.agent not in BASELINES


@dataclass(frozen=True)
class Check:
    """One part of a claim, which the numbers meet, refute or leave open.

    With `worse`, it is met if the 95 % interval of the difference between two variants lies above `margin`; otherwise
    if the interval of the variant's own metric lies from `at_least` on and up to `at_most`. It is refuted if the
    interval lies on the other side, and undecided between. Of `episodes_to`, which is counted for every training, all
    trainings must agree.

    Attributes:
        text: what is checked, in words.
        variant: the one it is about.
        worse: the one it is held against.
        margin: least difference.
        at_least: least value.
        at_most: largest value.
        metric: one of `METRICS`; None is the study's.
        split: of the tasks.
        episodes: first and last of those that are averaged for `final` and `gain`; None is the last ten.
        claim: number of the paper's claim that it is a part of, see `load_claims`.
        own: whether it is no claim of the paper's, but a control or an aim of ours, and left out of the verdict.
    """

    text: str
    variant: str
    worse: str | None = None
    margin: float = 0.0
    at_least: float | None = None
    at_most: float | None = None
    metric: str | None = None
    split: str = "held_out"
    episodes: tuple[int, int] | None = None
    claim: int | None = None
    own: bool = False

    @property
    def variants(self) -> tuple[str, ...]:
        """Names of the one or two variants that it is about."""
        return (self.variant,) if self.worse is None else (self.variant, self.worse)

    @property
    def rule(self) -> str:
        """What is asked of the number, in words."""
        if self.metric == "episodes_to":
            if self.worse is None:
                return f"at most {self.at_most:g} in every training"
            return f"fewer{f' by more than {self.margin:g}' if self.margin else ''} in every training"
        if self.worse is not None:
            return f"difference above {self.margin:g}"
        parts = (("at least", self.at_least), ("at most", self.at_most))
        return " and ".join(f"{word} {value:g}" for word, value in parts if value is not None)


@dataclass(frozen=True)
class Study:
    """A published figure or table, and how ours is made.

    Attributes:
        name: also of its result's file.
        paper: folder of the paper it belongs to.
        title: for people.
        claim: what the paper says.
        source: figure or table of the paper.
        experiment: in ``conf/experiment/``, what all variants start from.
        overrides: of that experiment, for all variants.
        num_seeds: training seeds of each variant.
        variants: what is compared.
        checks: what the claim comes to.
        metric: what is compared; one of `METRICS`.
        axis: name of the quantity, for a study over one; None draws returns per episode.
        splits: of the tasks that are shown; the first is checked unless a check says otherwise.
        level: a published level, whose first reaching is counted in episodes.
        level_label: what level it is, in words.
        published_besides: pairs of place on the axis and level that the paper reports and ours leaves out.
        gathered_as: the experiment's name among all metrics of the report; None is not gathered.
        note: how ours differs from the published setting.
        on_request: whether it runs only when it is named, since it needs more than two CPU cores.
    """

    name: str
    paper: str
    title: str
    claim: str
    source: str
    experiment: str
    variants: Mapping[str, Variant]
    overrides: tuple[str, ...] = ()
    num_seeds: int = MIN_TRAININGS
    checks: tuple[Check, ...] = ()
    metric: str = "final"
    axis: str | None = None
    splits: tuple[str, ...] = ("held_out",)
    level: float | None = None
    level_label: str = "published end of AD"
    published_besides: tuple[tuple[float, float], ...] = ()
    gathered_as: str | None = None
    note: str = ""
    on_request: bool = False
    order: int = field(default=100, compare=False)

    def __post_init__(self) -> None:
        for metric in (self.metric, *(check.metric for check in self.checks)):
            if metric is not None and metric not in METRICS and not metric.startswith(EXTRA):
                raise ValueError(
                    f"study '{self.name}': a metric is one of {', '.join(METRICS)}, or {EXTRA}... of a run's own "
                    f"numbers; got {metric!r}"
                )
        for check in self.checks:
            for name in check.variants:
                if name not in self.variants:
                    raise ValueError(f"study '{self.name}': a check names '{name}', which is no variant of it")

        self._require_decidable_checks()

    def _require_decidable_checks(self) -> None:
        """A check that is always met, or never could be, would make a verdict that means nothing."""
        asked = {self.metric, *(check.metric or self.metric for check in self.checks)}
        for check in self.checks:
            if check.worse is None and check.at_least is None and check.at_most is None:
                raise ValueError(
                    f"study '{self.name}': the check '{check.text}' would always be met; give it worse, at_least or "
                    "at_most"
                )
            for name in check.variants:
                if self.variants[name].trains and len(self.seeds(self.variants[name])) < 2:
                    raise ValueError(
                        f"study '{self.name}': the check '{check.text}' could never be decided by one training of "
                        f"'{name}'; give the study or the variant num_seeds: {MIN_TRAININGS} or more"
                    )
            if check.split not in self.splits:
                raise ValueError(
                    f"study '{self.name}': the check '{check.text}' is of the split '{check.split}', which the study "
                    f"does not show; choose {' or '.join(self.splits)}"
                )
            if check.at_least is not None and check.at_most is not None and check.at_least > check.at_most:
                raise ValueError(
                    f"study '{self.name}': the check '{check.text}' could never be met: at_least is "
                    f"{check.at_least:g}, at_most {check.at_most:g}"
                )
            metric = check.metric or self.metric
            if check.episodes is not None and metric not in CURVE_METRICS:
                raise ValueError(
                    f"study '{self.name}': the check '{check.text}' names episodes, which metric {metric} does not "
                    f"average; choose {' or '.join(CURVE_METRICS)}"
                )
            uncounted = self.level is None or (check.at_most is None and check.worse is None)
            if check.metric == "episodes_to" and uncounted:
                raise ValueError(
                    f"study '{self.name}': the check '{check.text}' counts episodes; give the study a level and the "
                    "check at_most or worse"
                )
        if self.metric == "episodes_to":
            raise ValueError(f"study '{self.name}': episodes_to is for checks; choose another metric")
        if "normalised" in asked and not {"random", "source"} <= set(self.variants):
            raise ValueError(f"study '{self.name}': normalised scores need variants called random and source")

    def seeds(self, variant: Variant) -> range:
        """Training seeds of a variant."""
        if variant.num_seeds is not None:
            return range(variant.num_seeds)
        return range(self.num_seeds if variant.trains else 1)


def study_names(folder: Path = FOLDER) -> list[str]:
    """All studies, in the order of the page."""
    studies = [load_study(name, folder) for name in sorted(_study_files(folder))]
    return [study.name for study in sorted(studies, key=lambda study: (study.order, study.name))]


def _study_files(folder: Path) -> dict[str, Path]:
    return {path.stem: path for path in folder.glob("*/*.yaml") if path.name != CLAIMS_FILE}


def load_claims(paper: str, folder: Path = FOLDER) -> dict[int, str]:
    """What a paper claims, by the numbers that checks give; none where nothing is listed.

    Raises:
        ValueError: the file is no list of numbered claims.
    """
    path = folder / paper / CLAIMS_FILE
    if not path.exists():
        return {}
    claims = yaml.safe_load(path.read_text())
    if not isinstance(claims, dict) or not all(isinstance(number, int) for number in claims):
        raise ValueError(f"{path} must map numbers to claims; checks name them by `claim: 1`")
    return {number: str(text) for number, text in claims.items()}


def load_study(name: str, folder: Path = FOLDER) -> Study:
    """Reads one study.

    Raises:
        ValueError: there is none of that name, or its file is wrong.
    """
    paths = _study_files(folder)
    if name not in paths:
        raise ValueError(f"there is no study '{name}'; there are {', '.join(sorted(paths))}")
    try:
        values: Any = yaml.safe_load(paths[name].read_text())
        if not isinstance(values, dict):
            raise TypeError("it must be a mapping that holds variants")
        for item in (values, *(settings or {} for settings in values["variants"].values())):
            if isinstance(item.get("overrides"), str):
                raise TypeError(f"overrides must be a list, got {item['overrides']!r}")
        variants = {key: _variant(key, settings or {}) for key, settings in values.pop("variants").items()}
        checks = tuple(_check(check) for check in values.pop("checks", ()))
        unknown = set(values) - {item.name for item in fields(Study)}
        if unknown:
            raise TypeError(f"unknown keys {', '.join(sorted(unknown))}")
        values |= {key: tuple(values[key]) for key in ("overrides", "splits") if key in values}
        values["published_besides"] = _pairs(values.get("published_besides", ()))
        return Study(name=name, paper=paths[name].parent.name, variants=variants, checks=checks, **values)
    except (KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise ValueError(f"{paths[name]} is no study: {error}") from error


def _pairs(values: Any) -> tuple[tuple[float, float], ...]:
    return tuple((float(x), float(y)) for x, y in values)


def _check(settings: Mapping[str, Any]) -> Check:
    episodes = settings.get("episodes")
    return Check(**{**settings, "episodes": None if episodes is None else (int(episodes[0]), int(episodes[1]))})


def _variant(name: str, settings: Mapping[str, Any]) -> Variant:
    values = {"label": name, **settings}
    values["overrides"] = tuple(values.get("overrides", ()))
    values["published_curve"] = _pairs(values.get("published_curve", ()))
    return Variant(name=name, **values)
