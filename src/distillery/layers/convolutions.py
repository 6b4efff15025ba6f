"""Residual convolutions, those of many independent learners side by side.

Source: the network of Espeholt et al., IMPALA: Scalable Distributed Deep-RL with Importance Weighted Actor-Learner
Architectures (2018), arXiv 1802.01561. Ours differs in that each block begins as the identity, and in that L of them
are advanced together.

Letters: L learners, B batch, F features, P weights of one network.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


class StackedConvolutions:
    """L residual networks of one shape, from an image to features: grouped convolutions, a group to each learner.

    A section is a convolution, a pooling 3/2 and residual blocks of two convolutions, each of which begins as the
    identity. All kernels are 3x3 with stride 1.

    Attributes:
        parameters: (L, P) float32, requires grad; one row holds all weights and biases of one network.
        num_features: F.
    """

    def __init__(
        self,
        num_learners: int,
        image_shape: Sequence[int],
        channels: Sequence[int],
        num_blocks: int,
        generator: torch.Generator,
    ) -> None:
        """Draws first weights.

        Args:
            num_learners: L.
            image_shape: height, width, channels.
            channels: of each section.
            num_blocks: residual blocks of each section.
            generator: draws the weights, and gives the device.
        """
        self._shapes: list[tuple[int, int]] = []  # channels out, channels in
        self._num_blocks, self._num_sections = num_blocks, len(channels)
        rows = []
        height, width, size_in = image_shape
        for size in channels:
            for layer in range(1 + 2 * num_blocks):
                is_last_of_block = layer > 0 and layer % 2 == 0
                scale = 0.0 if is_last_of_block else math.sqrt(2.0 / (9 * size_in))
                shape = (num_learners, size * size_in * 9)
                rows.append(torch.randn(shape, generator=generator, device=generator.device) * scale)
                rows.append(rows[-1].new_zeros(num_learners, size))
                self._shapes.append((size, size_in))
                size_in = size
            height, width = (height + 1) // 2, (width + 1) // 2
        self.num_features = height * width * size_in
        self.parameters = torch.cat(rows, 1).requires_grad_()

    def __call__(self, images: Tensor) -> Tensor:
        """(L, B, F) from (L, B, height, width, channels)."""
        num_learners = len(images)
        sizes = [size for out, into in self._shapes for size in (out * into * 9, out)]
        pieces = iter(self.parameters.split(sizes, 1))
        shapes = iter(self._shapes)

        def convolve(x: Tensor) -> Tensor:
            weight = next(pieces).reshape(-1, next(shapes)[1], 3, 3)  # (L * out, in, 3, 3)
            return F.conv2d(x, weight, next(pieces).flatten(), padding=1, groups=num_learners)

        x = images.permute(1, 0, 4, 2, 3).flatten(1, 2)  # (B, L * channels, height, width)
        for _ in range(self._num_sections):
            x = F.max_pool2d(convolve(x), 3, stride=2, padding=1)
            for _ in range(self._num_blocks):
                x = x + convolve(convolve(x.relu()).relu())
        return x.relu().unflatten(1, (num_learners, -1)).flatten(2).transpose(0, 1)
