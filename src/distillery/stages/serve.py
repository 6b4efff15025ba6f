"""A checkpoint as a function from what was lived through to the next action's probabilities.

    policy = Policy(Path("models/dark_room/ad"))
    policy(observations, actions, rewards)

Letters: B batch, T environment steps, D observation dimensions, A actions.
"""

from pathlib import Path

import numpy as np
import torch

from distillery.core.protocols import SequenceModel
from distillery.core.records import Context
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
            observations: (B, T, D) int64, everything seen; the last is the current one.
            actions: (B, T - 1) int64, what was done at each step before the current one.
            rewards: (B, T - 1) float32, given after those actions.

        Returns:
            (B, A) float32.

        Raises:
            ValueError: shapes that do not belong together, or observations or actions that do not exist.
        """
        self._check(observations, actions, rewards)
        # The current step's action and reward are yet to come: zeros, which a causal model does not see.
        future = np.zeros((len(observations), 1))
        context = Context(
            torch.as_tensor(observations, dtype=torch.int64),
            torch.as_tensor(np.concatenate([actions, future], 1), dtype=torch.int64),
            torch.as_tensor(np.concatenate([rewards, future], 1), dtype=torch.float32),
        )
        if self._longest is not None:
            last = slice(-self._longest, None)
            context = Context(context.observations[:, last], context.actions[:, last], context.rewards[:, last])
        return self._model(context)[:, -1].float().softmax(-1).numpy()

    def _check(self, observations: np.ndarray, actions: np.ndarray, rewards: np.ndarray) -> None:
        spec = self._model.spec
        dimensions = len(spec.observation_sizes)
        if observations.ndim != 3 or observations.shape[1] < 1 or observations.shape[2] != dimensions:
            raise ValueError(f"observations must be (batch, steps, {dimensions}), got {observations.shape}")
        expected = (observations.shape[0], observations.shape[1] - 1)
        if actions.shape != expected or rewards.shape != expected:
            raise ValueError(
                f"with observations of shape {observations.shape}, actions and rewards must be {expected}, one step "
                f"less than observations; got {actions.shape} and {rewards.shape}"
            )
        if (observations < 0).any() or (observations >= np.array(spec.observation_sizes)).any():
            raise ValueError(f"observations must lie below {spec.observation_sizes}, got up to {observations.max()}")
        if ((actions < 0) | (actions >= spec.num_actions)).any():
            raise ValueError(f"actions must lie below {spec.num_actions}, got {actions.min()} to {actions.max()}")

    def example(self) -> dict[str, np.ndarray]:
        """Two lifetimes of three steps so far, standing still in the first cell."""
        dimensions = len(self._model.spec.observation_sizes)
        return {
            "observations": np.zeros((2, 3, dimensions), np.int64),
            "actions": np.zeros((2, 2), np.int64),
            "rewards": np.zeros((2, 2), np.float32),
        }
