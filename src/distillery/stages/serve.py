"""A checkpoint as a function from what was lived through to the next action's probabilities.

    policy = Policy(Path("models/dark_room/ad"))
    policy(observations, actions, rewards)

Letters: B batch, T environment steps, D numbers of an observation, K numbers of an action, P parameters of an action.
"""

from pathlib import Path

import numpy as np
import torch

from distillery.core.protocols import SequenceModel
from distillery.core.records import Context
from distillery.core.specs import Discrete, Space
from distillery.stages.entry import build
from distillery.training.checkpoints import load_weights, read_checkpoint_info


class Policy:
    """See `distillery.core.protocols.ServedModel`.

    Raises:
        ValueError: the checkpoint is missing or damaged.
    """

    def __init__(self, checkpoint: Path) -> None:
        info = read_checkpoint_info(checkpoint)
        self._model: SequenceModel = build(info.architecture, spec=info.spec)
        load_weights(checkpoint, self._model)
        self._model.eval()
        # Absolute positions end with the window; all others run on, as they do in an evaluation.
        absolute = info.architecture.get("positions") == "absolute"
        self._longest = self._model.context_length if absolute else None

    @torch.inference_mode()
    def __call__(self, observations: np.ndarray, actions: np.ndarray, rewards: np.ndarray) -> np.ndarray:
        """Probabilities of the next action, from an empty context on, across episodes without a seam.

        Args:
            observations: (B, T, D) of `TaskSpec.observation_dtype`, everything seen; the last is the current one.
            actions: (B, T - 1[, K]) of `TaskSpec.action_dtype`, what was done at each step before the current one.
            rewards: (B, T - 1) float32, given after those actions.

        Returns:
            (B, P) float32: the probability of each value of each whole number of an action, side by side; of
            continuous actions the parameters (see `distillery.layers.actions`).

        Raises:
            ValueError: shapes that do not belong together, or observations or actions that do not exist.
        """
        self._check(observations, actions, rewards)
        spec = self._model.spec
        # The current step's action and reward are yet to come: zeros, which a causal model does not see.
        future = np.zeros((len(observations), 1, *spec.action_shape))
        context = Context(
            torch.as_tensor(observations, dtype=spec.observation_dtype),
            torch.as_tensor(np.concatenate([actions, future], 1), dtype=spec.action_dtype),
            torch.as_tensor(np.concatenate([rewards, np.zeros((len(observations), 1))], 1), dtype=torch.float32),
        )
        if self._longest is not None:
            last = slice(-self._longest, None)
            context = Context(context.observations[:, last], context.actions[:, last], context.rewards[:, last])
        parameters = self._model(context)[:, -1].float()
        if isinstance(spec.action, Discrete):
            columns = parameters.split(list(spec.action.sizes), -1)
            parameters = torch.cat([logits.softmax(-1) for logits in columns], -1)
        return parameters.numpy()

    def _check(self, observations: np.ndarray, actions: np.ndarray, rewards: np.ndarray) -> None:
        spec = self._model.spec
        width = spec.observation_width
        if observations.ndim != 3 or observations.shape[1] < 1 or observations.shape[2] != width:
            raise ValueError(f"observations must be (batch, steps, {width}), got {observations.shape}")
        expected = (observations.shape[0], observations.shape[1] - 1)
        if actions.shape != (*expected, *spec.action_shape) or rewards.shape != expected:
            row = "" if not spec.action_shape else f", each action a row of {spec.action_shape[0]}"
            raise ValueError(
                f"with observations of shape {observations.shape}, actions and rewards must be {expected}{row}, one "
                f"step less than observations; got {actions.shape} and {rewards.shape}"
            )
        for name, stretch in spec.stretches().items():
            what = "observations" if len(spec.observation) == 1 else f"observations' part '{name}'"
            _require_inside(what, spec.observation[name], observations[..., stretch])
        _require_inside("actions", spec.action, actions if spec.action_shape else actions[..., None])

    def example(self) -> dict[str, np.ndarray]:
        """Two lifetimes of three steps so far: zeros, or the numbers nearest to zero that there are."""
        spec = self._model.spec
        row = np.concatenate([_near_zero(space) for space in spec.observation.values()])
        observation = row.astype(np.int64 if spec.is_discrete else spec.stored_dtype)
        kind = np.int64 if isinstance(spec.action, Discrete) else np.float32
        action = _near_zero(spec.action).astype(kind).reshape(spec.action_shape)
        return {
            "observations": np.broadcast_to(observation, (2, 3, len(observation))).copy(),
            "actions": np.broadcast_to(action, (2, 2, *action.shape)).copy(),
            "rewards": np.zeros((2, 2), np.float32),
        }


def _near_zero(space: Space) -> np.ndarray:
    """(numbers,) of a space."""
    return np.full(space.width, 0.0 if isinstance(space, Discrete) else np.clip(0.0, space.low, space.high))


def _require_inside(what: str, space: Space, numbers: np.ndarray) -> None:
    """Refuses (..., numbers) that a space does not have.

    Raises:
        ValueError: naming the bounds and what was found.
    """
    if isinstance(space, Discrete):
        if not ((numbers >= 0) & (numbers < np.array(space.sizes))).all():
            below = space.sizes[0] if space.width == 1 else space.sizes
            raise ValueError(f"{what} must lie from 0 and below {below}, got {numbers.min()} to {numbers.max()}")
    elif not ((numbers >= space.low) & (numbers <= space.high)).all():
        raise ValueError(f"{what} must lie from {space.low} to {space.high}, got {numbers.min()} to {numbers.max()}")
