"""What every stage's command line shares: configuration in, one clear error out."""

import functools
import hashlib
import inspect
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import distillery

logger = logging.getLogger(__name__)

# Groups of the configuration that are the settings of one class of the wing of that name.
_GROUPS_OF_ONE = ("tasks", "sources", "models")


def stage(main: Callable[[DictConfig], None]) -> Callable[[], None]:
    """Turns ``main(config)`` into a command line over ``conf/``.

    The pipeline passes a resolved file, ``-cd data/resolved/experiments -cn dark_room``; a person passes overrides,
    ``experiment=dark_room models.width=128``. Mistakes in what was asked end in one line, without a traceback.
    """

    @hydra.main(version_base="1.3", config_path="pkg://distillery.conf", config_name="config")
    @functools.wraps(main)
    def command(config: DictConfig) -> None:
        if config.runtime.num_threads is not None:
            torch.set_num_threads(config.runtime.num_threads)
        begin = time.perf_counter()
        try:
            require_device(config.runtime.device)
            main(config)
        except (ValueError, FloatingPointError, OmegaConfBaseException, OSError) as error:
            if os.environ.get("HYDRA_FULL_ERROR"):
                raise
            sys.exit(f"error: {error}")
        print(
            f"{main.__name__} took {time.perf_counter() - begin:.0f} s, {time.process_time():.0f} s of processor time"
        )

    return command


def build(node: DictConfig | Mapping[str, Any], **values: Any) -> Any:
    """Instantiates a configuration node with further keyword arguments; only classes of this package.

    Raises:
        ValueError: the node names no class of this package, or the class refuses its settings.
    """
    settings: dict[str, Any] = plain(node) if isinstance(node, DictConfig) else dict(node)
    cls = class_of(settings)
    del settings["_target_"]
    _require_known(cls, settings)
    try:
        return cls(**{**settings, **values})
    except TypeError as error:
        raise ValueError(f"{cls.__name__} cannot be built from its settings: {error}") from error


def class_of(node: DictConfig | Mapping[str, Any]) -> Any:
    """The class that a configuration node names; only classes of this package.

    Raises:
        ValueError: the node names no class of this package.
    """
    target = str(node.get("_target_"))
    if not target.startswith("distillery."):
        raise ValueError(f"_target_ must name a class of distillery, got {target!r}")
    try:
        return hydra.utils.get_class(target)
    except (ImportError, ValueError) as error:
        raise ValueError(f"_target_ names no class: {error}") from error


def _require_known(cls: type, settings: Mapping[str, Any]) -> None:
    """Refuses settings that a class has not: most come of an experiment that sets them for another choice.

    Raises:
        ValueError: naming them and what there is.
    """
    parameters = inspect.signature(cls).parameters
    unknown = [name for name in settings if name not in parameters]
    if unknown and not any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values()):
        wing = cls.__module__.split(".")[1]
        example = f", as in '~{wing}.{unknown[0]}'" if wing in _GROUPS_OF_ONE else ""
        raise ValueError(
            f"{cls.__name__} has no setting {', '.join(unknown)}, but {', '.join(parameters)}; where an experiment "
            f"sets it for another choice than yours, take it away by its full path{example}"
        )


def plain(node: DictConfig) -> dict[str, Any]:
    """A configuration node as plain containers, interpolations resolved."""
    container = OmegaConf.to_container(node, resolve=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def root() -> Path:
    """The repository's root: DVC names the real one even inside its temporary experiments."""
    return Path(os.environ.get("DVC_ROOT") or Path.cwd())


def scratch(*parts: str) -> Path:
    """A path under the git-ignored folder for caches and training states."""
    return root().joinpath(".scratch", *parts)


def code_hash(*wings: str) -> str:
    """Hex SHA-256 of the Python files of some wings of this package, as they are installed here."""
    digest = hashlib.sha256()
    for wing in wings:
        for file in sorted(Path(distillery.__file__).parent.joinpath(wing).rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()


def require_device(device: str) -> None:
    """Refuses a device that torch cannot use here.

    Raises:
        ValueError: naming the device and the remedy.
    """
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"runtime.device={device} cannot be used: {reason}; choose cpu or an existing GPU") from error


def agent_settings(config: DictConfig) -> DictConfig:
    """The settings of the chosen agent.

    Raises:
        ValueError: no such agent.
    """
    if config.agent not in config.agents:
        raise ValueError(f"unknown agent '{config.agent}'; conf/config.yaml defines {', '.join(config.agents)}")
    return config.agents[config.agent]


def histories_folder(config: DictConfig, kind: str) -> Path:
    """Where the dataset of the given kind lies."""
    return Path("data", "histories", config.dataset, kind)


def checkpoint_folder(config: DictConfig, agent: str) -> Path:
    """Where the trained model of an agent lies."""
    return Path("models", config.checkpoint, agent)


def evaluation_folder(config: DictConfig, agent: str) -> Path:
    """Where the lifetimes of an agent lie."""
    return Path("data", "evaluations", config.name, agent)
