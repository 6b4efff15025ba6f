"""Checkpoints: finished models to share, and training states to resume from.

A finished checkpoint is a folder with ``model.safetensors`` and ``model.json`` (format version, architecture, spec,
what it was trained on). A training state is one file that also holds the optimiser and the random generators.
"""

import logging
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

from distillery.core.files import read_json, whole_file, whole_folder, write_json
from distillery.core.specs import TaskSpec

logger = logging.getLogger(__name__)

FORMAT_VERSION = 3


class CheckpointError(ValueError):
    """A checkpoint cannot be used as asked."""


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint says of itself.

    Attributes:
        architecture: settings the model is built from, `_target_` included.
        spec: shape of the tasks it was trained for.
        training: what selected it: update, validation score, dataset's content hash, curves.
    """

    architecture: dict[str, Any]
    spec: TaskSpec
    training: dict[str, Any]


def save_checkpoint(folder: Path | str, model: nn.Module, info: CheckpointInfo) -> None:
    """Writes a finished checkpoint, whole or not at all."""
    with whole_folder(folder) as temporary:
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
        safetensors.torch.save_file(weights, temporary / "model.safetensors")
        values = {
            "format_version": FORMAT_VERSION,
            "architecture": info.architecture,
            "spec": info.spec.to_dict(),
            "training": info.training,
        }
        write_json(temporary / "model.json", values)


def read_checkpoint_info(folder: Path | str) -> CheckpointInfo:
    """Reads ``model.json``.

    Raises:
        CheckpointError: missing, broken, or of another format version.
    """
    path = Path(folder) / "model.json"
    remedy = "train it with `dvc repro train`, or fetch it with `dvc pull`"
    try:
        values = read_json(path, remedy=remedy)
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    found = values.get("format_version") if isinstance(values, dict) else None
    if found != FORMAT_VERSION:
        raise CheckpointError(f"{path} has format version {found}, this code reads {FORMAT_VERSION}; {remedy}")
    try:
        return CheckpointInfo(values["architecture"], TaskSpec.from_dict(values["spec"]), values["training"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} lacks or misnames a field ({error}); {remedy}") from error


def load_weights(folder: Path | str, model: nn.Module) -> None:
    """Loads a checkpoint's weights into a model of the same architecture.

    Raises:
        CheckpointError: damaged file, or weights of another architecture.
    """
    path = Path(folder) / "model.safetensors"
    try:
        weights = safetensors.torch.load_file(path)
    except (FileNotFoundError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); train again with `dvc repro train`") from error
    expected = model.state_dict()
    differing = sorted(expected.keys() ^ weights.keys()) + sorted(
        f"{name} {tuple(weights[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in expected.keys() & weights.keys()
        if weights[name].shape != expected[name].shape
    )
    if differing:
        raise CheckpointError(
            f"{path} holds another architecture than the model it is loaded into; differing: "
            f"{', '.join(differing[:5])}; build the model from the checkpoint's model.json, or train again"
        )
    model.load_state_dict(weights)


def save_training_state(path: Path | str, state: dict[str, Any]) -> None:
    """Writes a training state, whole or not at all."""
    with whole_file(path) as temporary:
        torch.save(state, temporary)


def load_training_state(path: Path | str) -> dict[str, Any] | None:
    """The training state, or None where there is none or it cannot be read: then training starts afresh."""
    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except FileNotFoundError:
        return None
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        logger.warning("%s cannot be read (%s); training starts afresh", path, error)
        return None
