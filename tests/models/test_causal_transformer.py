"""Two ways to one answer agree; what must not be seen is not seen; bad settings are refused."""

import pytest
import torch

from distillery.core.records import Context
from distillery.core.specs import TaskSpec
from distillery.models.causal_transformer import CausalTransformer

SPEC = TaskSpec.of_sizes((9, 9), 5, 20)
SHAPES = [
    {"positions": "rotary"},
    {"positions": "rotary", "rotary_fraction": 1.0, "tokens_per_step": 3},
    {"positions": "alibi"},
    {"positions": "alibi", "tokens_per_step": 3, "norm": "post"},
    {"positions": "rotary", "observation_embedding": "joint", "norm": "post"},
]


def model_and_context(num_steps: int, *, context_length: int = 10, **settings) -> tuple[CausalTransformer, Context]:
    torch.manual_seed(0)
    size = {"context_length": context_length, "width": 32, "num_layers": 3, "feedforward_width": 64}
    model = CausalTransformer(SPEC, **{**size, **settings}).eval()
    context = Context(
        torch.randint(9, (4, num_steps, 2)), torch.randint(5, (4, num_steps)), torch.rand(4, num_steps).round()
    )
    return model, context


def act_through(model: CausalTransformer, context: Context) -> torch.Tensor:
    """(B, T, A): the logits of every step of a lifetime, one call a step."""
    cache, previous, logits = model.new_cache(4), None, []
    for step in range(context.actions.shape[1]):
        logits.append(model.act(context.observations[:, step], previous, cache))
        previous = (context.actions[:, step], context.rewards[:, step])
    return torch.stack(logits, 1)


@torch.no_grad()
@pytest.mark.parametrize("settings", SHAPES, ids=str)
def test_cached_steps_equal_one_pass_over_a_lifetime_of_several_windows(settings):
    model, context = model_and_context(47, **settings)
    torch.testing.assert_close(act_through(model, context), model(context), rtol=1e-4, atol=2e-5)


@torch.no_grad()
@pytest.mark.parametrize("tokens_per_step", [1, 3])
def test_absolute_positions_recompute_the_last_window(tokens_per_step):
    model, context = model_and_context(23, positions="absolute", tokens_per_step=tokens_per_step)
    acted = act_through(model, context)
    for step in range(23):
        window = slice(max(0, step - 9), step + 1)
        recent = Context(context.observations[:, window], context.actions[:, window], context.rewards[:, window])
        torch.testing.assert_close(acted[:, step], model(recent)[:, -1], rtol=1e-4, atol=2e-5)


@torch.no_grad()
@pytest.mark.parametrize("settings", [*SHAPES, {"positions": "absolute"}], ids=str)
def test_a_step_sees_neither_its_own_action_and_reward_nor_the_future(settings):
    model, context = model_and_context(10, **settings)
    changed = Context(context.observations.clone(), context.actions.clone(), context.rewards.clone())
    changed.actions[:, 6:] = (changed.actions[:, 6:] + 1) % 5
    changed.rewards[:, 6:] += 1
    changed.observations[:, 7:] = 8 - changed.observations[:, 7:]
    before, after = model(context), model(changed)
    torch.testing.assert_close(after[:, :7], before[:, :7])
    assert not torch.allclose(after[:, 7], before[:, 7])


@torch.no_grad()
@pytest.mark.parametrize("tokens_per_step", [1, 3])
def test_one_layer_sees_exactly_its_window(tokens_per_step):
    torch.manual_seed(0)
    model = CausalTransformer(SPEC, context_length=5, num_layers=1, tokens_per_step=tokens_per_step).eval()
    context = Context(torch.randint(9, (1, 12, 2)), torch.randint(5, (1, 12)), torch.rand(1, 12))
    changed = Context(context.observations.clone(), context.actions, context.rewards)
    changed.observations[:, 3] = 8 - changed.observations[:, 3]
    differs = (model(context) - model(changed)).abs().amax((0, 2)) > 1e-6
    assert differs.nonzero().flatten().tolist() == [3, 4, 5, 6, 7]


@pytest.mark.parametrize("settings", [*SHAPES, {"positions": "absolute"}], ids=str)
def test_every_parameter_is_trained(settings):
    model, context = model_and_context(10, **settings)
    model(context).square().mean().backward()
    unused = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert unused == []


def test_token_mask_hides_inputs_only_while_training():
    model, context = model_and_context(10, token_mask_probability=0.5)
    assert torch.equal(model(context), model(context))
    model.train()
    assert not torch.equal(model(context), model(context))


def test_attention_dropout_acts_only_while_training():
    model, context = model_and_context(30, attention_dropout=0.5)
    assert torch.equal(model(context), model(context))
    model.train()
    assert not torch.equal(model(context), model(context))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"context_length": 0}, "context_length must be at least 1 environment step, got 0"),
        ({"tokens_per_step": 2}, "tokens_per_step must be 1 or 3, got 2"),
        ({"positions": "learned"}, "rotary, alibi or absolute, got 'learned'"),
        ({"norm": "none"}, "pre or post, got 'none'"),
        ({"num_heads": 5}, "num_heads must divide the width: 32 / 5"),
        ({"observation_embedding": "hashed"}, "factored or joint, got 'hashed'"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        CausalTransformer(SPEC, **{"context_length": 5, "width": 32, **settings})


def test_more_steps_than_trained_positions_are_refused():
    model, context = model_and_context(11, positions="absolute")
    with pytest.raises(ValueError, match="trained for 10 steps and the sequence has 11"):
        model(context)
