"""Two ways to one answer agree; what must not be seen is not seen; the state runs on; bad settings are refused."""

import pytest
import torch

from distillery.core.records import Context
from distillery.core.specs import Box, Discrete, TaskSpec
from distillery.layers.actions import num_action_parameters
from distillery.models.lstm import LSTMModel

SPEC = TaskSpec.of_sizes((9, 9), 5, 20)
IMAGE = TaskSpec({"view": Box((8, 8, 3), 0, 255, "uint8"), "key": Discrete((2,))}, Discrete((3,)), 20)
CONTINUOUS = TaskSpec({"observation": Box((3,), -1.0, 1.0)}, Box((2,), -1.0, 1.0), 20)
SHAPES = [{}, {"num_layers": 2, "mlp_depth": 2}, {"observation_embedding": "joint"}]


def model_and_context(num_steps: int, spec: TaskSpec = SPEC, **settings) -> tuple[LSTMModel, Context]:
    torch.manual_seed(0)
    size = {"context_length": 10, "hidden_size": 24, "embedding_width": 8, "mlp_width": 16}
    model = LSTMModel(spec, **{**size, **settings})
    torch.nn.init.normal_(model.action_head.weight)  # the first policy is nearly uniform, which would hide much
    observations = torch.randint(2, (4, num_steps, spec.observation_width)).to(spec.observation_dtype)
    actions = torch.rand(4, num_steps, *spec.action_shape).round().to(spec.action_dtype)
    return model.eval(), Context(observations, actions, torch.rand(4, num_steps).round())


def encode_through(model: LSTMModel, context: Context) -> torch.Tensor:
    """(B, T, W): the features of every step of a lifetime, one call a step."""
    cache, previous, features = model.new_cache(4), None, []
    for step in range(context.actions.shape[1]):
        features.append(model.encode_step(context.observations[:, step], previous, cache))
        previous = (context.actions[:, step], context.rewards[:, step])
    return torch.stack(features, 1)


@torch.no_grad()
@pytest.mark.parametrize("spec", [SPEC, IMAGE, CONTINUOUS], ids=["discrete", "image", "continuous"])
@pytest.mark.parametrize("settings", SHAPES, ids=str)
def test_cached_steps_equal_one_pass_far_beyond_the_context_length(spec, settings):
    model, context = model_and_context(47, spec, **settings)
    features = model.encode(context)
    assert features.shape == (4, 47, model.width)
    assert model(context).shape == (4, 47, num_action_parameters(spec.action))
    torch.testing.assert_close(encode_through(model, context), features, rtol=1e-5, atol=1e-6)


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
def test_observation_action_and_reward_of_a_step_reach_the_next():
    model, context = model_and_context(6)
    expected = model(context)[:, 4]
    for name, other in (("observations", 7), ("actions", 4), ("rewards", 5.0)):
        changed = Context(context.observations.clone(), context.actions.clone(), context.rewards.clone())
        getattr(changed, name)[:, 3] = other
        assert not torch.allclose(model(changed)[:, 4], expected), name


@torch.no_grad()
def test_the_last_action_and_reward_may_be_missing_and_one_step_is_enough():
    model, context = model_and_context(5)
    shorter = Context(context.observations, context.actions[:, :4], context.rewards[:, :4])
    assert torch.equal(model(shorter), model(context))
    first = Context(context.observations[:, :1], context.actions[:, :0], context.rewards[:, :0])
    torch.testing.assert_close(model(first), model(context)[:, :1])


@torch.no_grad()
def test_lifetimes_of_a_batch_are_independent():
    model, context = model_and_context(12)
    alone = Context(context.observations[2:3], context.actions[2:3], context.rewards[2:3])
    torch.testing.assert_close(model(alone), model(context)[2:3])


def test_every_parameter_is_trained():
    model, context = model_and_context(10, num_layers=2, mlp_depth=2)
    model(context).square().mean().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@torch.no_grad()
def test_the_first_policy_is_nearly_uniform():
    torch.manual_seed(0)
    _, context = model_and_context(30)
    probabilities = LSTMModel(SPEC, context_length=10)(context).softmax(-1)
    torch.testing.assert_close(probabilities, torch.full_like(probabilities, 0.2), rtol=0, atol=0.02)


def test_it_learns_to_recall_an_observation_long_gone():
    """The action to take is the very first observation; later ones say nothing."""
    torch.manual_seed(0)
    spec = TaskSpec.of_sizes((4,), 4, 20)
    model = LSTMModel(spec, context_length=12, hidden_size=32, embedding_width=16, mlp_width=32)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(300):  # 150 suffice on some CPUs and leave 0.11 on others
        first = torch.randint(4, (32,))
        observations = torch.zeros(32, 12, 1, dtype=torch.int64)
        observations[:, 0, 0] = first
        logits = model(Context(observations, torch.zeros(32, 12, dtype=torch.int64), torch.zeros(32, 12)))
        loss = torch.nn.functional.cross_entropy(logits[:, -1], first)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"context_length": 0}, "context_length must be at least 1 environment step, got 0"),
        ({"hidden_size": 0}, "hidden_size must be at least 1, got 0"),
        ({"mlp_depth": 0}, "mlp_depth must be at least 1, got 0"),
        ({"observation_embedding": "hashed"}, "factored or joint, got 'hashed'"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        LSTMModel(SPEC, **{"context_length": 5, **settings})
