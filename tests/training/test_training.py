"""Training repeats, resumes exactly, selects by validation, and divides over processes without changing the result."""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from distillery.core.records import Context
from distillery.core.specs import Box, Discrete, TaskSpec
from distillery.histories.contexts import Contexts
from distillery.histories.reader import open_packed
from distillery.layers.actions import log_probability
from distillery.models.causal_transformer import CausalTransformer
from distillery.models.linear_transformer import LinearTransformer
from distillery.models.lstm import LSTMModel
from distillery.tasks.dark_room import DarkRoom
from distillery.training.checkpoints import (
    FORMAT_VERSION,
    CheckpointError,
    CheckpointInfo,
    load_weights,
    read_checkpoint_info,
    save_checkpoint,
)
from distillery.training.distributed import Workers
from distillery.training.loop import Schedule, fit
from distillery.training.muon import BatchedMuon, orthogonal
from distillery.training.supervised import SupervisedLearner

SPEC = TaskSpec.of_sizes((5, 5), 5, 8)
SMALL = {"context_length": 16, "width": 16, "num_layers": 2, "num_heads": 2, "feedforward_width": 32}


def small_learner(num_updates: int = 8, **settings) -> SupervisedLearner:
    torch.manual_seed(1)
    model = CausalTransformer(SPEC, **SMALL, dropout=0.1)
    return SupervisedLearner(model, num_updates=num_updates, **settings)


def fake_score(model) -> dict[str, float]:
    """A score that depends on the weights."""
    return {"score": sum(float(tensor.abs().sum()) for tensor in model.state_dict().values())}


@pytest.fixture
def draw(dataset, tmp_path):
    _, packed = open_packed(dataset, tmp_path / "packed")
    return Contexts(packed, sequence_length=32, batch_size=8).batch


class Killed(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_a_killed_training_resumes_exactly(draw, tmp_path, optimiser):
    schedule = Schedule(num_updates=8, validate_every_updates=2)
    whole = small_learner(optimiser=optimiser)
    expected = fit(whole, draw, schedule, fake_score, show_progress=False)

    def draw_until_killed(update: int) -> Context:
        if update == 5:
            raise Killed
        return draw(update)

    files = {"state_file": tmp_path / "state.pt", "fingerprint": "same", "show_progress": False}
    with pytest.raises(Killed):
        fit(small_learner(optimiser=optimiser), draw_until_killed, schedule, fake_score, **files)
    torch.manual_seed(99)  # the new process starts with other random states
    resumed = small_learner(optimiser=optimiser)
    updates = []
    progress = fit(resumed, lambda update: (updates.append(update), draw(update))[1], schedule, fake_score, **files)
    assert updates == [4, 5, 6, 7]
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name
    assert progress.curves == expected.curves
    assert progress.best_update == expected.best_update


def test_a_state_of_another_configuration_is_not_resumed(draw, tmp_path):
    schedule = Schedule(num_updates=2, validate_every_updates=1)
    files = {"state_file": tmp_path / "state.pt", "show_progress": False}
    fit(small_learner(2), draw, schedule, fake_score, fingerprint="one", **files)
    updates = []
    fit(small_learner(2), lambda u: (updates.append(u), draw(u))[1], schedule, fake_score, fingerprint="two", **files)
    assert updates == [0, 1]


def test_a_truncated_state_starts_afresh(draw, tmp_path):
    schedule = Schedule(num_updates=2, validate_every_updates=1)
    files = {"state_file": tmp_path / "state.pt", "fingerprint": "same", "show_progress": False}
    fit(small_learner(2), draw, schedule, fake_score, **files)
    content = files["state_file"].read_bytes()
    files["state_file"].write_bytes(content[: len(content) // 2])
    progress = fit(small_learner(2), draw, schedule, fake_score, **files)
    assert progress.update == 2


def test_the_best_validation_is_kept_and_a_plateau_stops(draw):
    scores = iter([0.1, 0.5, 0.4, 0.3, 0.9])
    snapshots = []

    def validate(model):
        snapshots.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return {"score": next(scores)}

    schedule = Schedule(num_updates=10, validate_every_updates=1, patience_validations=2)
    progress = fit(small_learner(10), draw, schedule, validate, show_progress=False)
    assert (progress.update, progress.best_update, progress.best_score) == (4, 2, 0.5)
    for name, tensor in progress.best_weights.items():
        assert torch.equal(tensor, snapshots[1][name])


def test_the_last_weights_are_kept_where_scores_tell_nothing(draw):
    scores = iter([0.1, 0.5, 0.4])
    learner = small_learner(3)
    schedule = Schedule(num_updates=3, validate_every_updates=1, keeps="last")
    progress = fit(learner, draw, schedule, lambda model: {"score": next(scores)}, show_progress=False)
    assert (progress.update, progress.best_update, progress.best_score) == (3, 3, 0.4)
    for name, tensor in learner.whole_model().state_dict().items():
        assert torch.equal(tensor, progress.best_weights[name])
    with pytest.raises(ValueError, match="set it to null, or keeps to best"):
        Schedule(num_updates=3, validate_every_updates=1, keeps="last", patience_validations=2)
    with pytest.raises(ValueError, match="keeps must be best or last, got 'first'"):
        Schedule(num_updates=3, validate_every_updates=1, keeps="first")


def test_training_loss_falls_and_seeded_runs_repeat(draw):
    losses = []
    for _ in range(2):
        learner = small_learner(30, learning_rate=1e-2)
        losses.append([float(learner.update(draw(update), update)["loss"]) for update in range(30)])
    assert losses[0] == losses[1]
    assert losses[0][-1] < losses[0][0] - 0.1


def test_loss_is_the_cross_entropy_of_every_step_with_label_smoothing(draw):
    learner = small_learner(label_smoothing=0.2)
    learner.model.eval()
    context = draw(0)
    log_probabilities = learner.model(context).log_softmax(-1)
    targets = 0.8 * F.one_hot(context.actions, 5) + 0.2 / 5
    expected = -(targets * log_probabilities).sum(-1).mean()
    torch.testing.assert_close(learner.loss(context), expected)


def test_targets_of_their_own_are_predicted_instead_of_what_was_done(draw):
    learner, context = small_learner(), draw(0)
    learner.model.eval()
    targets = (context.actions + 1) % 5
    asked = Context(context.observations, context.actions, context.rewards, targets)
    expected = F.cross_entropy(learner.model(context).flatten(0, 1), targets.flatten())
    torch.testing.assert_close(learner.loss(asked), expected)
    told = Context(context.observations, context.actions, context.rewards, context.actions)
    torch.testing.assert_close(learner.loss(told), learner.loss(context))


def test_the_loss_is_the_weighted_mean(draw):
    learner, context = small_learner(), draw(0)
    learner.model.eval()
    weights = torch.rand(context.rewards.shape).round(decimals=1)
    weights[2] = 0
    parts = (context.observations, context.actions, context.rewards)
    losses = F.cross_entropy(learner.model(context).flatten(0, 1), context.actions.flatten(), reduction="none")
    torch.testing.assert_close(
        learner.loss(Context(*parts, weights=weights)), (losses * weights.flatten()).sum() / weights.sum()
    )
    ones = learner.loss(Context(*parts, weights=torch.ones_like(weights)))
    torch.testing.assert_close(ones, learner.loss(context))
    assert learner.loss(Context(*parts, weights=torch.zeros_like(weights))).item() == 0.0


def test_an_update_follows_targets_and_weights(draw):
    """What weights leave out changes nothing; what they keep moves the weights as the loss says."""
    context = draw(0)
    targets, weights = (context.actions + 1) % 5, torch.zeros(context.rewards.shape)
    weights[:, :10] = 1
    other = torch.where(weights > 0, targets, context.actions)
    learners = [small_learner() for _ in range(2)]
    for learner, asked in zip(learners, (targets, other), strict=True):
        torch.manual_seed(3)
        learner.update(Context(context.observations, context.actions, context.rewards, asked, weights), 0)
    one, two = (learner.model.state_dict() for learner in learners)
    assert all(torch.equal(one[name], two[name]) for name in one)
    plain = small_learner()
    torch.manual_seed(3)
    plain.update(context, 0)
    assert any(not torch.equal(one[name], tensor) for name, tensor in plain.model.state_dict().items())


SPACES = {
    "several": TaskSpec({"speed": Box((3,), -1.0, 1.0)}, Discrete((3, 4)), 8),
    "continuous": TaskSpec({"view": Box((4, 6, 3), 0, 255, "uint8")}, Box((2,), -1.0, 1.0), 8),
}


@pytest.mark.parametrize("name", SPACES)
def test_any_space_is_learned(name):
    spec = SPACES[name]
    torch.manual_seed(1)
    learner = SupervisedLearner(CausalTransformer(spec, **SMALL), num_updates=30, learning_rate=1e-2)
    if name == "several":
        observations = 2 * torch.rand(8, 12, 3) - 1
        actions = torch.stack([(observations[..., 0] > 0).long(), 2 + (observations[..., 1] > 0).long()], -1)
    else:
        observations = torch.randint(2, (8, 12, 1)).mul(255).expand(8, 12, 4 * 6 * 3).to(torch.uint8)
        actions = (observations[..., :2].float() / 255) - 0.5
    context = Context(observations, actions, torch.zeros(8, 12))
    losses = [float(learner.update(context, update)["loss"]) for update in range(30)]
    parameters = learner.model.eval()(context)
    torch.testing.assert_close(learner.loss(context), -log_probability(spec.action, parameters, actions).mean())
    assert losses[-1] < losses[0] - 1.0


def test_smoothing_of_continuous_actions_is_refused():
    model = CausalTransformer(SPACES["continuous"], **SMALL)
    with pytest.raises(ValueError, match=r"label_smoothing=0\.2 is for discrete actions"):
        SupervisedLearner(model, num_updates=1, label_smoothing=0.2)


def test_the_learning_rate_rises_then_falls():
    learner = small_learner(100, warmup_fraction=0.1, initial_fraction=0.0, final_fraction=0.1)
    rates = [learner.rate_fraction(update) for update in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.1 + 0.9 * 0.5)
    assert rates[100] == pytest.approx(0.1)


def test_batched_muon_steps_as_torchs_own():
    shapes = [(24, 8), (8, 8), (8, 32), (32, 8), (24, 8), (8, 8), (5, 7)]
    results = []
    for kind in (torch.optim.Muon, BatchedMuon):
        torch.manual_seed(0)
        parameters = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
        parameters[1].requires_grad_(False)  # one without a gradient
        optimiser = kind(parameters, lr=0.05, weight_decay=0.1)
        for _ in range(4):
            for parameter in parameters:
                parameter.grad = torch.randn(parameter.shape) if parameter.requires_grad else None
            optimiser.step()
        results.append((parameters, optimiser.state_dict()))
    (plain, plain_state), (batched, batched_state) = results
    for one, other in zip(plain, batched, strict=True):
        # A step of 0.05 goes along a matrix in bfloat16.
        torch.testing.assert_close(one, other, rtol=0, atol=4 * 0.05 * 2**-6)
    assert plain_state["param_groups"] == batched_state["param_groups"]
    for name, state in plain_state["state"].items():
        torch.testing.assert_close(state, batched_state["state"][name])


def test_an_orthogonal_matrix_has_singular_values_near_one():
    torch.manual_seed(0)
    matrices = torch.randn(6, 16, 40)
    found = orthogonal(matrices, coefficients=(3.4445, -4.7750, 2.0315), num_steps=5, epsilon=1e-7)
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.6 and values.max() < 1.3
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    assert (found * (left @ right)).sum() > 0.95 * found.norm() * (left @ right).norm()


def test_muon_gets_the_block_matrices_and_adamw_the_rest():
    muon, adamw = small_learner(optimiser="muon")._optimisers
    assert all(parameter.ndim == 2 for group in muon.param_groups for parameter in group["params"])
    counts = [sum(len(group["params"]) for group in optimiser.param_groups) for optimiser in (muon, adamw)]
    assert counts[0] == 2 * 4
    assert sum(counts) == len(list(small_learner().model.parameters()))


def test_muon_leaves_kernels_over_time_alone():
    model = LinearTransformer(
        DarkRoom().spec, context_length=8, width=16, num_layers=2, num_heads=2, feedforward_width=32
    )
    muon, _ = SupervisedLearner(model, num_updates=2, optimiser="muon")._optimisers
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    given = [names[id(parameter)] for group in muon.param_groups for parameter in group["params"]]
    assert given and all(name.endswith(".weight") for name in given)
    assert any(name.endswith("kernel") for name in names.values()) and not any("kernel" in name for name in given)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimiser": "sgd"}, "got 'sgd'"),
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
        ({"num_updates": 0}, "num_updates must be at least 1, got 0"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SupervisedLearner(CausalTransformer(SPEC, **SMALL), **{"num_updates": 1, **settings})


def test_divergence_is_told(draw):
    learner = small_learner(30)
    with torch.no_grad():
        learner.model.action_head.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"loss is nan at update 1; lower training\.learner\.learning_rate"):
        fit(learner, draw, Schedule(30, 10, log_every_updates=1), fake_score, show_progress=False)


def test_a_batch_that_processes_cannot_divide_is_refused():
    Workers(1, 4).check_batch_size(8)
    with pytest.raises(ValueError, match="batch_size=8 cannot be divided over 3"):
        Workers(0, 3).check_batch_size(8)


_PROCESSES = """
import sys, torch
from pathlib import Path
from distillery.histories.contexts import Contexts
from distillery.histories.reader import open_packed
from distillery.training.distributed import join_workers, leave_workers
from distillery.training.loop import Schedule, fit
from tests.training.test_training import EVERY_UPDATE, fake_score, small_learner, unevenly, without_dropout
dataset, folder, num_updates, fsdp = sys.argv[1:]
workers = join_workers("cpu")
_, packed = open_packed(dataset, folder + "/packed")
contexts = Contexts(packed, sequence_length=32, batch_size=8)
draw = lambda update: unevenly(contexts.batch(update), workers)
learner = without_dropout(small_learner(8, fsdp=bool(int(fsdp)), workers=workers))
draws, update = [], learner.update
def drawing(batch, number):
    draws.append(torch.rand(()).item())
    return update(batch, number)
learner.update = drawing
# Other processes may be on machines without the first one's disk.
state = Path(folder, "state.pt") if workers.rank == 0 else Path(folder, "elsewhere.pt")
schedule = Schedule(int(num_updates), **EVERY_UPDATE)
progress = fit(learner, draw, schedule, fake_score, state_file=state, fingerprint="any", workers=workers,
               show_progress=False)
assert not Path(folder, "elsewhere.pt").exists()
torch.save(draws, f"{folder}/draws{workers.rank}.pt")
if workers.rank == 0:
    torch.save(progress.best_weights, folder + "/best.pt")
    torch.save(progress.curves, folder + "/curves.pt")
leave_workers(workers)
"""
EVERY_UPDATE = {"validate_every_updates": 2, "log_every_updates": 1}


def unevenly(context: Context, workers: Workers) -> Context:
    """A process's part of a batch in which one process has far more to learn from than the other."""
    weights = torch.ones(context.rewards.shape)
    weights[1::2, 3:] = 0
    weighted = Context(context.observations, context.actions, context.rewards, weights=weights)
    return weighted.apply(lambda values: values[workers.rank :: workers.count])


def run_processes(count: int, num_updates: int, dataset, folder, *, fsdp: bool) -> tuple[dict, dict]:
    """Trains up to an update in new processes; returns the curves and the best weights."""
    folder.mkdir(exist_ok=True)
    script = folder / "train.py"
    script.write_text(_PROCESSES)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
    ended = subprocess.run(
        [*launcher, str(script), str(dataset), str(folder), str(num_updates), str(int(fsdp))],
        timeout=120,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([os.getcwd(), *sys.path])},
    )
    assert ended.returncode == 0, ended.stderr
    return torch.load(folder / "curves.pt"), torch.load(folder / "best.pt")


def without_dropout(learner: SupervisedLearner) -> SupervisedLearner:
    """The same learner, its dropout off: processes draw their own."""
    for module in learner.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return learner


@pytest.fixture
def alone(draw) -> tuple[dict, dict]:
    """Curves and best weights of one process."""
    learner = without_dropout(small_learner(8))
    schedule = Schedule(8, **EVERY_UPDATE)
    progress = fit(learner, lambda u: unevenly(draw(u), Workers()), schedule, fake_score, show_progress=False)
    return progress.curves, progress.best_weights


def require_same_training(found: tuple[dict, dict], expected: tuple[dict, dict]) -> None:
    """Losses, norms, scores and weights agree but for rounding."""
    for name, points in expected[0].items():
        assert [update for update, _ in found[0][name]] == [update for update, _ in points]
        values = [torch.tensor([value for _, value in curve]) for curve in (found[0][name], points)]
        torch.testing.assert_close(*values, rtol=1e-4, atol=1e-5)
    losses = [value for _, value in expected[0]["loss"]]
    assert losses[-1] < losses[0] - 0.01
    # Attention does not change with the offset of its keys, whose gradient is what rounding leaves.
    weights = [
        {name: tensor for name, tensor in state.items() if "in_projection.bias" not in name}
        for _, state in (found, expected)
    ]
    torch.testing.assert_close(*weights, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("fsdp", [False, True])
def test_two_processes_train_as_one(dataset, tmp_path, alone, fsdp):
    require_same_training(run_processes(2, 8, dataset, tmp_path / "two", fsdp=fsdp), alone)
    first, second = (torch.load(tmp_path / "two" / f"draws{rank}.pt") for rank in (0, 1))
    assert len({*first, *second}) == 16


@pytest.mark.parametrize("counts", [(1, 2, True), (2, 1, True), (2, 1, False)], ids=str)
def test_a_training_goes_on_with_another_number_of_processes(dataset, tmp_path, alone, counts):
    before, after, sharded_first = counts
    run_processes(before, 4, dataset, tmp_path / "some", fsdp=sharded_first and before > 1)
    assert len(torch.load(tmp_path / "some" / "curves.pt")["loss"]) == 4
    found = run_processes(after, 8, dataset, tmp_path / "some", fsdp=after > 1)
    require_same_training(found, alone)


def test_what_cannot_be_spread_is_refused():
    with pytest.raises(ValueError, match="optimiser=muon"):
        small_learner(optimiser="muon", fsdp=True)
    for setting in ("fsdp", "activation_checkpointing"):
        with pytest.raises(ValueError, match=f"runtime.{setting} works block by block, and LSTMModel has no blocks"):
            SupervisedLearner(
                LSTMModel(SPEC, context_length=16), num_updates=1, workers=Workers(0, 2), **{setting: True}
            )


def test_one_process_has_nothing_to_spread(draw):
    learners = [without_dropout(small_learner(fsdp=fsdp)) for fsdp in (False, True)]
    losses = [learner.update(draw(0), 0)["loss"] for learner in learners]
    assert torch.equal(*losses)


def test_what_is_random_in_an_update_depends_on_its_number_and_the_seed(draw):
    drawn: list[float] = []

    class Drawing(SupervisedLearner):
        def update(self, context, update):
            drawn.append(torch.rand(()).item())
            return super().update(context, update)

    for seed in (3, 4, 3):
        learner = Drawing(CausalTransformer(SPEC, **SMALL), num_updates=2)
        fit(learner, draw, Schedule(2, 2), fake_score, seed=seed, show_progress=False)
    assert drawn[:2] == drawn[4:]
    assert len(set(drawn)) == 4


def test_bfloat16_trains_like_float32(draw):
    learner = small_learner(4, bfloat16=True)
    plain = small_learner(4)
    for update in range(2):
        loss = float(learner.update(draw(update), update)["loss"])
        expected = float(plain.update(draw(update), update)["loss"])
        assert loss == pytest.approx(expected, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"activation_checkpointing": True}, {"bfloat16": True}], ids=str)
def test_a_compiled_model_equals_a_plain_one(draw, settings):
    compiled, plain = small_learner(4, compile=True, **settings), small_learner(4)
    results = []
    for learner in (compiled, plain):
        without_dropout(learner)
        for update in range(2):
            results.append({name: value.item() for name, value in learner.update(draw(update), update).items()})
    for found, expected in zip(results[:2], results[2:], strict=True):
        assert found == pytest.approx(expected, rel=0.05 if settings.get("bfloat16") else 1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_cuda_trains_like_the_cpu(draw):
    losses = {}
    for device in ("cpu", "cuda"):
        learner = small_learner(4, device=device)
        learner.model.eval()
        losses[device] = float(learner.loss(draw(0).to(device)))
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=1e-4)


def checkpoint(folder, model) -> None:
    save_checkpoint(folder, model, CheckpointInfo({"_target_": "x", **SMALL}, SPEC, {"seed": 0}))


def test_a_checkpoint_comes_back(tmp_path):
    model, other = small_learner().model, CausalTransformer(SPEC, **SMALL)
    checkpoint(tmp_path / "ad", model)
    load_weights(tmp_path / "ad", other)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])
    assert read_checkpoint_info(tmp_path / "ad").spec == SPEC


@pytest.mark.parametrize("name", SPACES)
def test_a_checkpoint_tells_any_space(tmp_path, name):
    model = CausalTransformer(SPACES[name], **SMALL)
    save_checkpoint(tmp_path / "ad", model, CheckpointInfo({"_target_": "x", **SMALL}, SPACES[name], {}))
    info = read_checkpoint_info(tmp_path / "ad")
    assert info.spec == SPACES[name]
    load_weights(tmp_path / "ad", CausalTransformer(info.spec, **SMALL))


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path):
    checkpoint(tmp_path / "ad", small_learner().model)
    wider = CausalTransformer(SPEC, **{**SMALL, "width": 32})
    with pytest.raises(CheckpointError, match=r"another architecture.*action_head.*\(5, 16\) instead of \(5, 32\)"):
        load_weights(tmp_path / "ad", wider)


def test_a_damaged_checkpoint_and_another_format_are_refused(tmp_path):
    model = small_learner().model
    checkpoint(tmp_path / "ad", model)
    weights = tmp_path / "ad" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-50])
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read"):
        load_weights(tmp_path / "ad", model)
    info = tmp_path / "ad" / "model.json"
    info.write_text(info.read_text().replace(f'"format_version": {FORMAT_VERSION}', '"format_version": 7'))
    with pytest.raises(CheckpointError, match=f"format version 7, this code reads {FORMAT_VERSION}"):
        read_checkpoint_info(tmp_path / "ad")
    with pytest.raises(CheckpointError, match="does not exist; train it"):
        read_checkpoint_info(tmp_path / "none")
