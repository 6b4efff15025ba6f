"""Stacked convolutions beside ordinary ones."""

import torch
import torch.nn.functional as F
from torch import Tensor

from distillery.layers.convolutions import StackedConvolutions


def test_stacked_convolutions_are_convolutions() -> None:
    generator = torch.Generator().manual_seed(0)
    stacked = StackedConvolutions(3, (7, 5, 2), (4, 6), 1, generator)
    with torch.no_grad():
        stacked.parameters.normal_(std=0.2, generator=generator)  # blocks would be the identity
    images = torch.randn(3, 9, 7, 5, 2, generator=generator)
    features = stacked(images)
    assert features.shape == (3, 9, stacked.num_features) == (3, 9, 6 * 2 * 2)
    for learner, row in enumerate(stacked.parameters.detach()):
        first, x = 0, images[learner].permute(0, 3, 1, 2)

        def convolve(x: Tensor, size: int, row: Tensor = row) -> Tensor:
            nonlocal first
            end = first + size * x.shape[1] * 9
            weight, bias = row[first:end].view(size, -1, 3, 3), row[end : end + size]
            first = end + size
            return F.conv2d(x, weight, bias, padding=1)

        for size in (4, 6):
            x = F.max_pool2d(convolve(x, size), 3, 2, 1)
            x = x + convolve(convolve(x.relu(), size).relu(), size)
        assert first == len(row)
        torch.testing.assert_close(features[learner], x.relu().flatten(1), rtol=1e-4, atol=1e-4)
