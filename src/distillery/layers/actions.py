"""Actions as models read and predict them: embeddings, and distributions given by a row of parameters.

One of A actions is given by A logits; several whole numbers by the logits of each, side by side, drawn independently;
K continuous numbers by K means and K log standard deviations of normal distributions over the bounds scaled to
[-1, 1]. What is drawn beyond a bound is cut to it; densities are those of the normal distribution before the cut. The
bounds of log standard deviations are smooth, as in Chua et al., PETS (2018), arXiv 1805.12114, appendix A.1.

Letters: B batch, A actions, K numbers of an action, P parameters; ``[, K]`` is absent where an action is one whole
number.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distillery.core.specs import Box, Discrete, Space

LOG_DEVIATION_BOUNDS = (-5.0, 1.0)


def num_action_parameters(space: Space) -> int:
    """P, parameters of a distribution over one action."""
    return sum(space.sizes) if isinstance(space, Discrete) else 2 * space.width


def _split(space: Discrete, parameters: Tensor) -> tuple[Tensor, ...]:
    """(..., A_k) logits of each whole number of an action."""
    return parameters.split(list(space.sizes), -1)


def _columns(space: Discrete, actions: Tensor) -> tuple[Tensor, ...]:
    """(...) each whole number of actions (...[, K])."""
    return (actions,) if space.width == 1 else actions.unbind(-1)


def _normal(parameters: Tensor) -> tuple[Tensor, Tensor]:
    """Means and log standard deviations, each (..., K), in the scale of [-1, 1].

    Both bounds of the deviations are approached smoothly, so that no gradient ends there.
    """
    means, raw = parameters.float().chunk(2, -1)
    low, high = LOG_DEVIATION_BOUNDS
    log_deviations = low + F.softplus(high - F.softplus(high - raw) - low)
    return means.tanh(), log_deviations


def _scaled(space: Box, actions: Tensor) -> Tensor:
    """From the space's bounds to [-1, 1]."""
    return 2.0 * (actions.float() - space.low) / (space.high - space.low) - 1.0


def _unscaled(space: Box, values: Tensor) -> Tensor:
    """From [-1, 1], beyond which values are cut, to the space's bounds."""
    scaled = space.low + (space.high - space.low) * (values.clamp(-1.0, 1.0) + 1.0) / 2.0
    return scaled.clamp(space.low, space.high)  # rounding may lead past a bound


def log_probability(space: Space, parameters: Tensor, actions: Tensor) -> Tensor:
    """(...) log-probability, or log-density in the scale of [-1, 1], of actions (...[, K]) given (..., P)."""
    if isinstance(space, Discrete):
        parts = [
            logits.float().log_softmax(-1).gather(-1, values.long()[..., None])[..., 0]
            for logits, values in zip(_split(space, parameters), _columns(space, actions), strict=True)
        ]
        return torch.stack(parts).sum(0)
    means, log_deviations = _normal(parameters)
    distances = (_scaled(space, actions) - means) * (-log_deviations).exp()
    return -(0.5 * distances.square() + log_deviations + 0.5 * math.log(2 * math.pi)).sum(-1)


def prediction_loss(space: Space, parameters: Tensor, targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """(...) loss of predicting targets (...[, K]): the negative log-probability, smoothed where actions are discrete.

    Raises:
        ValueError: smoothing of continuous actions.
    """
    if isinstance(space, Discrete):
        losses = [
            F.cross_entropy(
                logits.float().flatten(0, -2),
                values.long().flatten(),
                reduction="none",
                label_smoothing=label_smoothing,
            ).view(values.shape)
            for logits, values in zip(_split(space, parameters), _columns(space, targets), strict=True)
        ]
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum(0)
    if label_smoothing:
        raise ValueError(f"label_smoothing={label_smoothing} is for discrete actions; set it to 0")
    return -log_probability(space, parameters, targets)


def entropy(space: Space, parameters: Tensor) -> Tensor:
    """(...) entropy of the distributions given by (..., P), in nats."""
    if isinstance(space, Discrete):
        logs = [logits.float().log_softmax(-1) for logits in _split(space, parameters)]
        return torch.stack([-(log.exp() * log).sum(-1) for log in logs]).sum(0)
    _, log_deviations = _normal(parameters)
    return (log_deviations + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)


def sample(space: Space, parameters: Tensor, generator: torch.Generator) -> Tensor:
    """(B[, K]) actions drawn from (B, P)."""
    if isinstance(space, Discrete):
        draws = [
            torch.multinomial(logits.float().softmax(-1), 1, generator=generator)
            for logits in _split(space, parameters)
        ]
        return draws[0][:, 0] if space.width == 1 else torch.cat(draws, 1)
    means, log_deviations = _normal(parameters)
    noise = torch.randn(means.shape, generator=generator, device=means.device)
    return _unscaled(space, means + log_deviations.exp() * noise)


def likeliest(space: Space, parameters: Tensor) -> Tensor:
    """(B[, K]) the likeliest actions under (B, P)."""
    if isinstance(space, Discrete):
        best = [logits.argmax(-1) for logits in _split(space, parameters)]
        return best[0] if space.width == 1 else torch.stack(best, -1)
    return _unscaled(space, _normal(parameters)[0])


class ActionEmbedding(nn.Module):
    """Vectors of width W for actions: a table each for whole numbers, added up; a linear map for continuous ones.

    Args:
        space: of the actions.
        width: W.
    """

    def __init__(self, space: Space, width: int) -> None:
        super().__init__()
        self.space = space
        if isinstance(space, Discrete):
            self.tables = nn.ModuleList(nn.Embedding(size, width) for size in space.sizes)
        else:
            self.projection = nn.Linear(space.width, width)

    def forward(self, actions: Tensor) -> Tensor:
        """(...[, K]) to (..., W)."""
        if isinstance(self.space, Box):
            embedded: Tensor = self.projection(_scaled(self.space, actions).to(self.projection.weight.dtype))
            return embedded
        columns = _columns(self.space, actions)
        parts = [table(column) for table, column in zip(self.tables, columns, strict=True)]
        return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)
