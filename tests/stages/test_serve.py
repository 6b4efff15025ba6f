"""A served checkpoint gives what the model gives, in any space, and refuses what does not exist."""

import numpy as np
import pytest
import torch

from distillery.core.records import Context
from distillery.core.specs import Box, Discrete, TaskSpec
from distillery.models.causal_transformer import CausalTransformer
from distillery.stages.serve import Policy
from distillery.training.checkpoints import CheckpointInfo, save_checkpoint

SETTINGS = {"context_length": 4, "width": 16, "num_layers": 2, "num_heads": 2, "feedforward_width": 16}
SPECS = {
    "grid": TaskSpec.of_sizes((5, 5), 5, 8),
    "image": TaskSpec({"observation": Box((4, 6, 3), 0, 255, "uint8")}, Discrete((3, 4)), 8),
    "vector": TaskSpec({"cell": Discrete((5,)), "speed": Box((2,), 0.5, 2.0)}, Box((2,), -1.0, 1.0), 8),
}


def served(folder, name: str, **settings) -> tuple[Policy, CausalTransformer]:
    torch.manual_seed(0)
    model = CausalTransformer(SPECS[name], **SETTINGS, **settings).eval()
    architecture = {"_target_": "distillery.models.causal_transformer.CausalTransformer", **SETTINGS, **settings}
    save_checkpoint(folder / "ad", model, CheckpointInfo(architecture, SPECS[name], {}))
    return Policy(folder / "ad"), model


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("positions", ["rotary", "absolute"])
def test_the_example_is_answered_as_the_model_answers(tmp_path, name, positions):
    policy, model = served(tmp_path, name, positions=positions)
    spec, example = SPECS[name], policy.example()
    answer = policy(**example)
    tensors = {key: torch.from_numpy(values) for key, values in example.items()}
    assert tensors["observations"].dtype == spec.observation_dtype
    assert tensors["actions"].dtype == spec.action_dtype
    cache, previous = model.new_cache(2), None
    with torch.no_grad():
        for step in range(3):
            expected = model.act(tensors["observations"][:, step], previous, cache)
            if step < 2:
                previous = (tensors["actions"][:, step], tensors["rewards"][:, step])
    if isinstance(spec.action, Discrete):
        columns = expected.split(list(spec.action.sizes), -1)
        expected = torch.cat([logits.softmax(-1) for logits in columns], -1)
        np.testing.assert_allclose(answer.sum(-1), spec.action.width, rtol=1e-5)
    np.testing.assert_allclose(answer, expected, rtol=1e-4, atol=1e-5)


def test_absolute_positions_see_the_last_window(tmp_path):
    policy, model = served(tmp_path, "grid", positions="absolute")
    generator = np.random.default_rng(0)
    observations, actions = generator.integers(5, size=(2, 9, 2)), generator.integers(5, size=(2, 8))
    rewards = np.ones((2, 8), np.float32)
    answer = policy(observations, actions, rewards)
    last = Context(*(torch.from_numpy(x) for x in (observations[:, 5:], actions[:, 5:], rewards[:, 5:])))
    with torch.no_grad():
        np.testing.assert_allclose(answer, model(last)[:, -1].softmax(-1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("grid", {"observations": np.zeros((2, 3, 1), int)}, r"must be \(batch, steps, 2\), got \(2, 3, 1\)"),
        ("grid", {"observations": np.full((2, 3, 2), 5)}, r"observations must lie .* below \(5, 5\), got 5 to 5"),
        ("grid", {"observations": np.full((2, 3, 2), -1)}, r"observations must lie .* got -1"),
        ("grid", {"actions": np.full((2, 2), 5)}, "actions must lie from 0 and below 5, got 5 to 5"),
        (
            "grid",
            {"actions": np.zeros((2, 3), int)},
            r"must be \(2, 2\), one step less than observations; got \(2, 3\)",
        ),
        ("image", {"actions": np.zeros((2, 2), int)}, r"must be \(2, 2\), each action a row of 2, one step"),
        ("image", {"actions": np.full((2, 2, 2), 3)}, r"below \(3, 4\)"),
        ("vector", {"actions": np.full((2, 2, 2), 1.5)}, r"actions must lie from -1\.0 to 1\.0, got 1\.5 to 1\.5"),
        ("vector", {"observations": np.full((2, 3, 3), 2.5)}, r"part 'speed' must lie from 0\.5 to 2\.0"),
        ("vector", {"observations": np.full((2, 3, 3), np.nan)}, r"part 'cell' must lie from 0 and below 5, got nan"),
    ],
)
def test_what_does_not_exist_is_refused(tmp_path, name, changed, message):
    policy, _ = served(tmp_path, name)
    with pytest.raises(ValueError, match=message):
        policy(**{**policy.example(), **changed})
