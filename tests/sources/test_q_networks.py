"""The networks of deep Q-learners read all of an observation, each learner its own."""

from dataclasses import replace

import pytest
import torch

from distillery.core.specs import Box, Discrete, TaskSpec
from distillery.sources.q_networks import QNetworks

SIZES = {"channels": (8,), "num_residual_blocks": 1, "num_layers": 1, "hidden_size": 32}


def test_networks_read_every_part_of_an_observation() -> None:
    parts = {
        "where": Discrete((3,)),
        "eye": Box((4, 4, 1), 0, 255, "uint8"),
        "speed": Box((2,), -1.0, 1.0),
    }
    spec, generator = TaskSpec(parts, Discrete((5,)), 10), torch.Generator().manual_seed(0)
    networks = QNetworks(2, spec, generator, **SIZES)
    rows = torch.rand(2, 6, 19, generator=generator).round()
    values = networks(rows)
    assert values.shape == (2, 6, 5)
    for column in (0, 3, 18):
        changed = rows.clone()
        changed[:, 0, column] = 1 - changed[:, 0, column]
        assert not torch.isclose(networks(changed)[:, 0], values[:, 0], rtol=0.0, atol=1e-8).all()
        assert torch.equal(networks(changed)[:, 1:], values[:, 1:])
    no_image = QNetworks(2, replace(spec, observation={"where": Discrete((3,))}), generator, **SIZES)
    assert len(no_image.parts) == 1
    two_images = replace(spec, observation=dict.fromkeys(("left", "right"), parts["eye"]))
    with pytest.raises(ValueError, match="left, right"):
        QNetworks(2, two_images, generator, **SIZES)
