"""Two ways to one answer agree; what must not be seen is not seen; bad settings are refused."""

import pytest
import torch

from distillery.core.records import Context
from distillery.core.specs import Box, Discrete, TaskSpec
from distillery.layers.attention import every_head
from distillery.layers.blocks import hide_tokens
from distillery.models.causal_transformer import CausalTransformer

SPEC = TaskSpec.of_sizes((9, 9), 5, 20)
SHAPES = [
    {"positions": "rotary"},
    {"positions": "rotary", "rotary_fraction": 1.0, "tokens_per_step": 3},
    {"positions": "alibi"},
    {"positions": "alibi", "tokens_per_step": 3, "norm": "post"},
    {"positions": "rotary", "observation_embedding": "joint", "norm": "post"},
    {"positions": "rotary", "num_key_heads": 2},
    {"positions": "alibi", "num_key_heads": 1},
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


@pytest.mark.parametrize("tokens_per_step", [1, 3])
def test_token_mask_hides_parts_of_a_step_by_themselves(tokens_per_step):
    model, context = model_and_context(200, token_mask_probability=0.3, tokens_per_step=tokens_per_step)
    embedding, tokens = model.embedding, []
    parts = (embedding.observations(context.observations), embedding.actions(context.actions[:, :-1]))
    shown = embedding.tokens(context.observations, context.actions, context.rewards, per_step=tokens_per_step)

    def hide(x):
        tokens.append(hide_tokens(x, torch.full_like(x[0, 0], 9.0), 0.3))
        return tokens[-1]

    hidden = embedding.tokens(
        context.observations, context.actions, context.rewards, per_step=tokens_per_step, hide=hide
    )
    masked = [(part == 9.0).all(-1) for part in tokens]
    assert [part.shape[1] for part in masked] == [200, 199, 199]
    for one in masked:
        assert abs(float(one.float().mean()) - 0.3) < 0.1
    both = float((masked[0][:, 1:] & masked[1]).float().mean())
    assert abs(both - 0.09) < 0.06  # an observation and an action, each by itself
    assert torch.equal(tokens[0][~masked[0]], parts[0][~masked[0]])
    assert torch.equal(tokens[1][~masked[1]], parts[1][~masked[1]])
    seen = ~masked[0].clone()
    seen[:, 1:] &= ~(masked[1] | masked[2])  # of the one-token form, steps of which nothing is hidden
    if tokens_per_step == 1:
        assert torch.equal(hidden[seen], shown[seen]) and not torch.equal(hidden, shown)


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


SPACES = {
    "image": TaskSpec({"observation": Box((6, 8, 3), 0, 255, "uint8")}, Discrete((5,)), 20),
    "vector": TaskSpec({"observation": Box((3,), -1.0, 1.0)}, Box((2,), -1.0, 1.0), 20),
    "several": TaskSpec({"cell": Discrete((9, 9)), "speed": Box((2,), -1.0, 1.0)}, Discrete((3, 4)), 20),
}


def of_space(name: str, num_steps: int, **settings) -> tuple[CausalTransformer, Context]:
    """A small model and a random context of 4 lifetimes."""
    torch.manual_seed(0)
    spec = SPACES[name]
    model = CausalTransformer(spec, context_length=6, width=16, num_layers=2, num_heads=2, **settings).eval()
    observations = {
        "image": torch.randint(256, (4, num_steps, 6 * 8 * 3), dtype=torch.uint8),
        "vector": torch.rand(4, num_steps, 3),
        "several": torch.cat([torch.randint(9, (4, num_steps, 2)), torch.rand(4, num_steps, 2)], -1),
    }[name]
    actions = {
        "image": torch.randint(5, (4, num_steps)),
        "vector": 2 * torch.rand(4, num_steps, 2) - 1,
        "several": torch.stack([torch.randint(3, (4, num_steps)), torch.randint(4, (4, num_steps))], -1),
    }[name]
    return model, Context(observations, actions, torch.rand(4, num_steps))


@torch.no_grad()
@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("tokens_per_step", [1, 3])
def test_cached_steps_equal_one_pass_in_any_space(name, tokens_per_step):
    model, context = of_space(name, 15, tokens_per_step=tokens_per_step)
    parameters = model(context)
    assert parameters.shape == (4, 15, {"image": 5, "vector": 4, "several": 7}[name])
    torch.testing.assert_close(act_through(model, context), parameters, rtol=1e-4, atol=2e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", SPACES)
def test_absolute_positions_in_any_space(name):
    model, context = of_space(name, 6, positions="absolute")
    torch.testing.assert_close(act_through(model, context), model(context), rtol=1e-4, atol=2e-5)


@torch.no_grad()
@pytest.mark.parametrize("settings", SHAPES, ids=str)
def test_parameters_of_actions_are_read_off_features(settings):
    model, context = model_and_context(12, **settings)
    features = model.encode(context)
    assert features.shape == (4, 12, model.width)
    torch.testing.assert_close(model.action_head(features), model(context))
    first = model.encode_step(context.observations[:, 0], None, model.new_cache(4))
    torch.testing.assert_close(first, features[:, 0], rtol=1e-4, atol=2e-5)


@torch.no_grad()
@pytest.mark.parametrize("settings", [*SHAPES, {"positions": "absolute"}], ids=str)
@pytest.mark.parametrize("at_step", [0, 3, 44])
def test_attention_weights_are_those_the_model_acts_by(settings, at_step):
    """Those of the last layer, times its values, must reproduce what it adds at that step."""
    model, context = model_and_context(47 if settings["positions"] != "absolute" else 46, **settings)
    block, inputs = model.blocks[-1], []
    block.attention.register_forward_hook(lambda module, args, output: inputs.append((args[0], output)))
    weights = model.attention_weights(context, at_step)
    assert weights.shape == (4, 3, 4, at_step + 1)
    torch.testing.assert_close(weights.sum(-1), torch.ones(4, 3, 4))
    read, output = inputs[-1]
    per_step = model.tokens_per_step
    _, _, values = block.attention._heads(read)
    tokens = block.attention.weights(read, read.shape[1] - 1)
    joined = (tokens[:, :, None] @ every_head(values, tokens.shape[1]))[:, :, 0].flatten(1)
    torch.testing.assert_close(block.attention.out_projection(joined), output[:, -1], rtol=1e-4, atol=1e-5)
    # Tokens of a step are added up, the last step having its observation alone.
    by_step = torch.nn.functional.pad(tokens, (0, per_step - 1)).unflatten(-1, (-1, per_step)).sum(-1)
    seen = by_step.shape[-1]
    torch.testing.assert_close(weights[:, -1, :, -seen:], by_step)
    assert bool((weights[..., : at_step + 1 - seen] == 0).all())


@torch.no_grad()
@pytest.mark.parametrize("settings", SHAPES, ids=str)
def test_attention_weights_of_a_whole_lifetime_and_of_what_reaches_agree(settings):
    """Features at a step need no more of the lifetime than attention weights are computed from."""
    model, context = model_and_context(80, **settings)
    inputs = []
    model.blocks[-1].attention.register_forward_hook(lambda module, args, output: inputs.append(args[0]))
    model.attention_weights(context, 70)
    model.encode(Context(context.observations[:, :71], context.actions[:, :71], context.rewards[:, :71]))
    cut, whole = inputs
    assert cut.shape[1] < whole.shape[1]
    torch.testing.assert_close(cut[:, -1], whole[:, -1], rtol=1e-4, atol=1e-4)


def test_attention_at_a_step_that_was_not_lived_is_refused():
    model, context = model_and_context(10)
    with pytest.raises(ValueError, match="at_step must be from 0 to 9, got 10"):
        model.attention_weights(context, 10)
