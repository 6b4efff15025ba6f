"""The linear transformer: all at once equals a step at a time, its memory has no end and does not grow."""

import pytest
import torch

from distillery.core.records import Context
from distillery.core.specs import Box, TaskSpec
from distillery.models.linear_transformer import LinearTransformer
from distillery.training.supervised import SupervisedLearner

GRID = TaskSpec.of_sizes((9, 9), 5, 20)
PICTURES = TaskSpec({"observation": Box((6, 8, 3), 0, 255, "uint8")}, Box((2,), -1.0, 1.0), 20)
SMALL = {"context_length": 10, "width": 32, "num_layers": 3, "feedforward_width": 64}


def model_and_context(num_steps: int, spec: TaskSpec = GRID, **settings) -> tuple[LinearTransformer, Context]:
    torch.manual_seed(0)
    model = LinearTransformer(spec, **{**SMALL, **settings}).eval()
    if spec is GRID:
        observations, actions = torch.randint(9, (4, num_steps, 2)), torch.randint(5, (4, num_steps))
    else:
        observations = torch.randint(256, (4, num_steps, 6 * 8 * 3), dtype=torch.uint8)
        actions = 2 * torch.rand(4, num_steps, 2) - 1
    return model, Context(observations, actions, torch.rand(4, num_steps).round())


def act_through(model: LinearTransformer, context: Context) -> torch.Tensor:
    """(B, T, P) of every step of a lifetime, one call a step."""
    cache, previous, parameters = model.new_cache(4), None, []
    for step in range(context.rewards.shape[1]):
        parameters.append(model.act(context.observations[:, step], previous, cache))
        previous = (context.actions[:, step], context.rewards[:, step])
    return torch.stack(parameters, 1)


@torch.no_grad()
@pytest.mark.parametrize("spec", [GRID, PICTURES], ids=["grid", "pictures"])
@pytest.mark.parametrize("settings", [{}, {"tokens_per_step": 3}], ids=str)
def test_cached_steps_equal_one_pass(spec, settings):
    model, context = model_and_context(47, spec, **settings)
    torch.testing.assert_close(act_through(model, context), model(context), rtol=1e-4, atol=5e-5)


@torch.no_grad()
def test_a_step_sees_neither_its_own_action_and_reward_nor_the_future():
    model, context = model_and_context(10)
    changed = Context(context.observations.clone(), context.actions.clone(), context.rewards.clone())
    changed.actions[:, 6:] = (changed.actions[:, 6:] + 1) % 5
    changed.rewards[:, 6:] += 1
    changed.observations[:, 7:] = 8 - changed.observations[:, 7:]
    before, after = model(context), model(changed)
    torch.testing.assert_close(after[:, :7], before[:, :7])
    assert not torch.allclose(after[:, 7], before[:, 7])


@torch.no_grad()
def test_the_first_step_is_remembered_long_after_the_nominal_context():
    model, context = model_and_context(60)
    changed = Context(context.observations.clone(), context.actions, context.rewards)
    changed.observations[:, 0] = 8 - changed.observations[:, 0]
    assert float((model(changed) - model(context))[:, 59].abs().max()) > 1e-4


def test_every_parameter_is_trained():
    model, context = model_and_context(10, token_mask_probability=0.5)
    model.train()
    model(context).square().mean().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    assert not torch.equal(model(context), model(context))
    model.eval()
    assert torch.equal(model(context), model(context))


@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_it_learns_to_remember_what_it_saw_first(optimiser):
    """The first observation tells which action is right; all that follows is noise, and only the last steps count."""
    torch.manual_seed(0)
    spec = TaskSpec.of_sizes((3,), 2, 20)
    model = LinearTransformer(spec, context_length=20, width=32, num_layers=1, num_heads=2, feedforward_width=32)
    learner = SupervisedLearner(model, num_updates=40, learning_rate=1e-2, optimiser=optimiser)
    generator = torch.Generator().manual_seed(1)
    weights = (torch.arange(20) >= 16).float().expand(64, 20)
    for update in range(40):
        right = torch.randint(2, (64, 1), generator=generator)
        observations = torch.full((64, 20, 1), 2)
        observations[:, 0] = right
        actions, rewards = torch.randint(2, (64, 20), generator=generator), torch.rand((64, 20), generator=generator)
        context = Context(observations, actions, rewards, right.expand(64, 20), weights)
        loss = float(learner.update(context, update)["loss"])
    assert loss < 0.1  # 0.69 without a memory


def test_muon_finds_matrices_in_its_blocks():
    model, _ = model_and_context(1)
    muon, _ = SupervisedLearner(model, num_updates=1, optimiser="muon")._optimisers
    assert len(muon.param_groups[0]["params"]) >= 3 * 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"context_length": 0}, "context_length must be at least 1 environment step, got 0"),
        ({"tokens_per_step": 2}, "tokens_per_step must be 1 or 3, got 2"),
        ({"num_heads": 5}, "num_heads must divide the width: 32 / 5"),
        ({"num_layers": 0}, "num_layers must be at least 1, got 0"),
        ({"token_mask_probability": 1.5}, "token_mask_probability must be from 0 to 1, got 1.5"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        LinearTransformer(GRID, **{**SMALL, **settings})
