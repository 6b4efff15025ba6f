"""The networks of many deep Q-learners: from observations with or without an image to the values of actions.

Letters: L learners, B batch, D numbers of an observation, A actions.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from distillery.core.specs import Box, TaskSpec
from distillery.layers.convolutions import StackedConvolutions
from distillery.layers.embeddings import scaled_to_unit
from distillery.layers.perceptrons import RowInputs, StackedPerceptrons


class QNetworks:
    """L networks of one shape, from observations to the values of A actions.

    An image goes through convolutions; what else an observation holds stands beside their features.

    Attributes:
        parts: the stacked networks it is made of.
    """

    def __init__(
        self,
        num_learners: int,
        spec: TaskSpec,
        generator: torch.Generator,
        *,
        channels: Sequence[int],
        num_residual_blocks: int,
        num_layers: int,
        hidden_size: int,
    ) -> None:
        """Draws first weights.

        Args:
            num_learners: L.
            spec: of observations and actions.
            generator: draws the weights, and gives the device.
            channels: of each section of convolutions.
            num_residual_blocks: of each section.
            num_layers: hidden layers behind the convolutions.
            hidden_size: units of each.

        Raises:
            ValueError: an observation holds several images.
        """
        stretches = spec.stretches()
        images = {name: x for name, x in spec.observation.items() if isinstance(x, Box) and len(x.shape) == 3}
        others = {name: space for name, space in spec.observation.items() if name not in images}
        if len(images) > 1:
            raise ValueError(f"dqn reads one image at a time, but an observation holds {', '.join(images)}")
        num_inputs = num_active = 0
        self._torso: StackedConvolutions | None = None
        for name, self._image in images.items():
            self._pixels = stretches[name]
            shape = self._image.shape
            self._torso = StackedConvolutions(num_learners, shape, channels, num_residual_blocks, generator)
            num_inputs = num_active = self._torso.num_features
        self._rows: RowInputs | None = None
        if others:
            self._rows = RowInputs(replace(spec, observation=others))
            self._columns = [column for name in others for column in range(spec.observation_width)[stretches[name]]]
            num_inputs, num_active = num_inputs + self._rows.width, num_active + self._rows.num_active
        sizes = (num_inputs, *[hidden_size] * num_layers, spec.num_actions)
        self._head = StackedPerceptrons(num_learners, sizes, num_active, generator)
        self.parts: list[StackedConvolutions | StackedPerceptrons] = [self._head]
        if self._torso is not None:
            self.parts.append(self._torso)

    def __call__(self, observations: Tensor) -> Tensor:
        """(L, B, A) from (L, B, D) of any type."""
        inputs = []
        if self._torso is not None:
            pixels = scaled_to_unit(self._image, observations[..., self._pixels], torch.float32)
            inputs.append(self._torso(pixels.unflatten(-1, self._image.shape)))
        if self._rows is not None:
            inputs.append(self._rows(observations[..., self._columns]))
        return self._head.outputs(torch.cat(inputs, -1))

    @torch.no_grad()
    def copy_to(self, other: "QNetworks") -> None:
        """Gives another of the same shape these weights."""
        for mine, theirs in zip(self.parts, other.parts, strict=True):
            theirs.parameters.copy_(mine.parameters)
