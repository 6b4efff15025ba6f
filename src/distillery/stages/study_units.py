"""The runs of a study: a composed configuration each, named by hashes of what it depends on."""

import copy
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from distillery.core.lifetimes import BASELINES
from distillery.papers.results import Run
from distillery.papers.study import Study, Variant
from distillery.stages.entry import agent_settings, plain
from distillery.stages.validate import settings_as_before
from distillery.training.checkpoints import FORMAT_VERSION

# How something is called or followed, which decides no number.
_DECIDES_NOTHING = ("runtime", "tracking", "sweeps", "name", "checkpoint", "dataset", "hydra")
# The groups that a command may change beside a study.
_HOW_IT_RUNS = ("runtime", "tracking")
# Of how something runs, what may change numbers by more than their last digits.
_DECIDING_RUNTIME = ("bfloat16", "compile")
# Runs of these stand beside each other: on a CPU, there with products in bfloat16, on a GPU.
RUNTIMES = ("", "runtime.bfloat16=true", "runtime=cuda")


@dataclass(frozen=True)
class Unit:
    """One run to be made.

    Attributes:
        study: its name.
        variant: its name.
        seed: of training and evaluation.
        config: composed, plain.
        settings: hash of what decides the result.
    """

    study: str
    variant: str
    seed: int
    config: dict[str, Any]
    settings: str

    @property
    def label(self) -> str:
        """For people."""
        return f"{self.study}/{self.variant} seed {self.seed}"


def digest(*parts: Any) -> str:
    """Twelve hex digits of the SHA-256 of plain values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


@cache
def _composed(overrides: tuple[str, ...]) -> dict[str, Any]:
    """Composing takes a while; seeds of a variant differ in nothing else, and all are asked for again and again."""
    GlobalHydra.instance().clear()
    with initialize_config_module("distillery.conf", version_base="1.3"):
        # Bars of several workers would overwrite each other.
        config = compose("config", ["runtime.progress=false", *overrides])
    OmegaConf.resolve(config)
    return plain(config)


def _with_runtime(overrides: tuple[str, ...], extra: tuple[str, ...]) -> dict[str, Any]:
    """What both compose to. Where the first leave alone what the second change, each part is composed but once."""
    config, usual = _composed(overrides), _composed(())
    if any(config[group] != usual[group] for group in _HOW_IT_RUNS):
        return copy.deepcopy(_composed((*overrides, *extra)))
    changed = _composed(extra)
    return copy.deepcopy(config | {group: changed[group] for group in _HOW_IT_RUNS})


def _deciding_runtime(config: dict[str, Any]) -> list[dict[str, Any]]:
    """What of the runtime decides numbers, other than by default; nothing by default."""
    runtime = config["runtime"]
    decides: dict[str, Any] = {name: True for name in _DECIDING_RUNTIME if runtime[name]}
    device = str(runtime["device"]).partition(":")[0]
    if device != "cpu":
        decides["device"] = device
    return [decides] if decides else []


def compose_variant(study: Study, variant: Variant, seed: int, extra: Sequence[str] = ()) -> dict[str, Any]:
    """The configuration of one run; what is shared is named by what it depends on.

    Args:
        study: whose run it is.
        variant: of the study.
        seed: of training and evaluation.
        extra: overrides of runtime and tracking alone.

    Raises:
        ValueError: an override names nothing that exists, or the variant no agent.
    """
    is_baseline = variant.agent in BASELINES
    overrides = (f"experiment={variant.experiment or study.experiment}", *study.overrides, *variant.overrides)
    try:
        config = _with_runtime(overrides, tuple(extra))
    except (HydraException, OmegaConfBaseException) as error:
        text = str(error).strip().splitlines()[0]
        raise ValueError(f"study '{study.name}', variant '{variant.name}' cannot be composed: {text}") from error
    config |= {"agent": "ad" if is_baseline else variant.agent, "seed": seed}
    sources, family = config["sources"], config["tasks"]["_target_"].split(".")[-2]
    histories = digest(config["tasks"], settings_as_before(sources), config["histories"]["collection"])
    config["dataset"] = f"study/{family}-{sources['_target_'].split('.')[-2]}-{histories}"
    agent = agent_settings(OmegaConf.create({"agent": config["agent"], "agents": config["agents"]}))
    training = digest(
        None if is_baseline or agent.histories is None else histories,
        config["tasks"],
        settings_as_before(config["models"]),
        config["training"],
        config["histories"]["contexts"],
        settings_as_before(plain(agent)),
        FORMAT_VERSION,  # a checkpoint of another format is no use
        seed,
        *_deciding_runtime(config),
    )
    config["checkpoint"] = f"study/{family}-{training}"
    config["name"] = f"study/{study.name}/{variant.name}/{seed}"
    return config


def unit_of(study: Study, variant: Variant, seed: int, extra: Sequence[str] = ()) -> Unit:
    """What is to be run for one seed of a variant."""
    config = compose_variant(study, variant, seed, extra)
    is_baseline = variant.agent in BASELINES
    decides = {key: value for key, value in config.items() if key not in _DECIDES_NOTHING}
    decides |= {group: settings_as_before(config[group]) for group in ("sources", "models")}
    lifetimes = settings_as_before(config["evaluation"]["lifetimes"])
    decides["evaluation"] = decides["evaluation"] | {"lifetimes": lifetimes}
    decides["agents"] = None if is_baseline else settings_as_before(config["agents"][config["agent"]])
    # What a checkpoint of another format returned tells nothing of today's model.
    decides["format_version"] = FORMAT_VERSION
    if is_baseline:
        decides = {key: decides[key] for key in ("tasks", "sources", "evaluation", "seed")}
    return Unit(
        study.name,
        variant.name,
        seed,
        config,
        digest(variant.agent, variant.attention_at, decides, *_deciding_runtime(config)),
    )


def units_of(study: Study, extra: Sequence[str] = ()) -> list[Unit]:
    """All runs of a study, first seeds first, so that a stopped study has something of everything."""
    units = [
        unit_of(study, variant, seed, extra) for variant in study.variants.values() for seed in study.seeds(variant)
    ]
    return sorted(units, key=lambda unit: unit.seed)


def is_current(study: Study, runs: Sequence[Run]) -> list[bool]:
    """Of each run, whether it has the study's present settings, in whatever runtime."""
    return [runtime_of(study, run) is not None for run in runs]


def runtime_of(study: Study, run: Run) -> str | None:
    """Which of the `RUNTIMES` a run was made with; None where it has not the study's present settings."""
    variant = study.variants.get(run.variant)
    if variant is None or run.seed not in study.seeds(variant):
        return None
    made_with = (name for name, settings in settings_by_runtime(study, variant, run.seed) if settings == run.settings)
    return next(made_with, None)


def settings_by_runtime(study: Study, variant: Variant, seed: int) -> Iterator[tuple[str, str]]:
    """Each of the `RUNTIMES`, and the settings that a run of it has."""
    for runtime in RUNTIMES:
        yield runtime, unit_of(study, variant, seed, [runtime] if runtime else []).settings


def require_known_runtime(study: Study, extra: Sequence[str]) -> None:
    """Refuses overrides whose runs would stand beside no others, and be made again each time.

    Raises:
        ValueError: naming the runtimes that can be chosen.
    """
    variant = next(iter(study.variants.values()))
    if unit_of(study, variant, 0, extra).settings not in dict(settings_by_runtime(study, variant, 0)).values():
        raise ValueError(
            f"results of {' '.join(extra)} would stand beside no others; choose the default runtime, "
            f"{' or '.join(name for name in RUNTIMES if name)}"
        )


def told_runtimes(study: Study, runs: Sequence[Run]) -> str:
    """How many runs were made otherwise than with the default runtime."""
    counts = Counter(runtime_of(study, run) for run in runs)
    return ", ".join(
        f"{count} run{'s' if count > 1 else ''} with {runtime}"
        for runtime, count in sorted(counts.items(), key=str)
        if runtime
    )
