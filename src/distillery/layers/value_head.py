"""A head that predicts returns of any scale.

Source: van Hasselt et al., Learning values across many orders of magnitude (2016), arXiv 1602.07714 (PopArt).

    V(x) = mean + s * (w . x + b),      s^2 = mean_square - mean^2

Mean and mean square of the returns run along; w and b are rewritten whenever these move, so that V stays what it was.
Ours differs in that the first few updates count alike, so that no first guess of the scale lingers.

Letters: W width.
"""

import torch
from torch import Tensor, nn

# How fast the value head's mean and deviation follow; the first few updates count alike.
STATISTICS_RATE = 0.05
SMALLEST_DEVIATION = 1e-3


class ValueHead(nn.Module):
    """Values from features, on a scale that follows the returns without moving the values.

    Args:
        width: W, of the features.
    """

    mean: Tensor
    mean_square: Tensor
    num_observed: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("mean_square", torch.ones(()))
        self.register_buffer("num_observed", torch.zeros(()))

    @property
    def deviation(self) -> Tensor:
        """s, the running standard deviation of returns."""
        return (self.mean_square - self.mean.square()).clamp(min=SMALLEST_DEVIATION**2).sqrt()

    def forward(self, features: Tensor) -> Tensor:
        """(...) values in units of reward, from (..., W)."""
        return self.mean + self.deviation * self.scaled(features)

    def scaled(self, features: Tensor) -> Tensor:
        """(...) values less the mean, over the deviation."""
        values: Tensor = self.linear(features.float())
        return values[..., 0]

    @torch.no_grad()
    def observe(self, mean: float, mean_square: float) -> None:
        """Takes in the mean and mean square of new returns; the values stay what they were."""
        old_mean, old_deviation = self.mean.clone(), self.deviation
        self.num_observed += 1
        rate = (1 / self.num_observed).clamp(min=STATISTICS_RATE)
        self.mean += rate * (mean - self.mean)
        self.mean_square += rate * (mean_square - self.mean_square)
        self.linear.weight *= old_deviation / self.deviation
        self.linear.bias.copy_((old_deviation * self.linear.bias + old_mean - self.mean) / self.deviation)
