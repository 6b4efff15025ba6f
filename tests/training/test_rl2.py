"""Advantages and gradients are what the formulas say, acting and reading agree, runs resume exactly, and it learns."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from distillery.core.protocols import SequenceModel
from distillery.core.records import Transition
from distillery.core.specs import Box, Discrete, TaskSpec
from distillery.evaluation.in_context import InContextEvaluation
from distillery.layers.actions import log_probability
from distillery.layers.value_head import ValueHead
from distillery.models.causal_transformer import CausalTransformer
from distillery.models.lstm import LSTMModel
from distillery.tasks.base import TaskBatch, TaskDistribution
from distillery.tasks.dark_room import DarkRoom
from distillery.training.distributed import Workers
from distillery.training.loop import Schedule, fit
from distillery.training.rl2 import RL2Learner
from distillery.training.trials import estimate_advantages

ROOM = {"width": 3, "height": 3, "episode_steps": 5, "num_validation": 1, "num_held_out": 1}
FEW = {"batch_tasks": 8, "episodes_per_trial": 3, "num_minibatches": 2, "seed": 4}


class Reach(TaskDistribution):
    """One step is an episode. It pays 1, less how far a continuous action is from a hidden point."""

    def __init__(self, actions: Box | Discrete) -> None:
        super().__init__(num_validation=1, num_held_out=1, split_seed=0)
        self.spec = TaskSpec({"observation": Box((1,), 0.0, 1.0)}, actions, 1)
        self.num_tasks = 8

    def batch(self, task_ids, *, seed, device="cpu"):
        return ReachBatch(self.spec, task_ids, device)

    def oracle_returns(self):
        return np.zeros(self.num_tasks)

    def difficulty(self):
        return np.zeros(self.num_tasks)


class ReachBatch(TaskBatch):
    can_terminate = False

    def __init__(self, spec, task_ids, device) -> None:
        self.spec, self.task_ids = spec, torch.as_tensor(task_ids, device=device)
        angles = self.task_ids * (2 * torch.pi / 8)
        self.goals = 0.7 * torch.stack([angles.cos(), angles.sin()], 1)

    def reset(self, where=None):
        return torch.zeros(len(self.task_ids), 1)

    def step(self, actions):
        ended = torch.ones_like(self.task_ids, dtype=torch.bool)
        distances = (actions - self.goals).square().sum(1) if isinstance(self.spec.action, Box) else 0 * actions
        return Transition(self.reset(), 1.0 - distances, ~ended, ended)


def lstm(spec: TaskSpec) -> LSTMModel:
    return LSTMModel(spec, context_length=20, hidden_size=16, embedding_width=8, mlp_width=16)


def transformer(spec: TaskSpec) -> CausalTransformer:
    size = {"width": 16, "num_layers": 1, "num_heads": 2, "feedforward_width": 32}
    return CausalTransformer(spec, context_length=6, dropout=0.3, **size)  # shorter than a trial


def learner_of(build=lstm, tasks: TaskDistribution | None = None, **settings) -> RL2Learner:
    torch.manual_seed(1)
    tasks = tasks or DarkRoom(**ROOM)
    return RL2Learner(build(tasks.spec), tasks=tasks, **{"num_updates": 8, **FEW, **settings})


def weights_of(learner: RL2Learner) -> dict[str, torch.Tensor]:
    return {**learner.model.state_dict(), **learner.value_head.state_dict()}


def advantages_of_one(rewards, values, discount: float, gae_lambda: float) -> list[float]:
    """One trial's advantages by the definition: discounted sums of surprises."""
    following = [*values[1:], 0.0]
    surprises = [r + discount * f - v for r, f, v in zip(rewards, following, values, strict=True)]
    return [
        sum((discount * gae_lambda) ** k * surprise for k, surprise in enumerate(surprises[step:]))
        for step in range(len(surprises))
    ]


# Advantages and values


def test_advantages_worked_by_hand():
    rewards, values = torch.tensor([[1.0, 0.0, 2.0, 9.0]]), torch.tensor([[0.5, 1.0, 2.0, 9.0]])
    weights = torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    # Surprises 1 + 0.5 * 1 - 0.5 = 1, 0 + 0.5 * 2 - 1 = 0 and 2 - 2 = 0; a step carries on a quarter of the next.
    advantages = estimate_advantages(rewards, values, weights, discount=0.5, gae_lambda=0.5)
    assert advantages.tolist() == [[1.0, 0.0, 0.0, 0.0]]
    values[0, 2] = 1.0  # surprises 1, -0.5, 1
    advantages = estimate_advantages(rewards, values, weights, discount=0.5, gae_lambda=0.5)
    assert advantages.tolist() == [[0.9375, -0.25, 1.0, 0.0]]


def test_advantages_of_trials_of_unequal_length_equal_a_plain_loop():
    torch.manual_seed(0)
    rewards, values = torch.rand(3, 12), torch.rand(3, 12)
    lengths = [12, 7, 1]
    weights = (torch.arange(12) < torch.tensor(lengths)[:, None]).float()
    advantages = estimate_advantages(rewards, values, weights, discount=0.9, gae_lambda=0.8)
    for trial, length in enumerate(lengths):
        expected = advantages_of_one(rewards[trial, :length].tolist(), values[trial, :length].tolist(), 0.9, 0.8)
        torch.testing.assert_close(advantages[trial], torch.tensor(expected + [0.0] * (12 - length)))


def test_the_value_head_follows_the_returns_and_keeps_its_values():
    torch.manual_seed(0)
    head, features = ValueHead(5), torch.randn(7, 5)
    torch.nn.init.normal_(head.linear.weight)
    before = head(features)
    for mean, mean_square in ((10.0, 109.0), (20.0, 421.0)):
        head.observe(mean, mean_square)
        torch.testing.assert_close(head(features), before, rtol=1e-4, atol=1e-4)
    assert (head.mean.item(), head.deviation.item()) == pytest.approx((15.0, (265 - 225) ** 0.5))


# Playing


@pytest.mark.parametrize("build", [lstm, transformer])
@pytest.mark.parametrize("termination", ["never", "at_goal"])
def test_reading_a_trial_gives_what_acting_gave(build, termination):
    learner = learner_of(build, DarkRoom(**ROOM, termination=termination))
    torch.nn.init.normal_(learner.model.action_head.weight)
    torch.nn.init.normal_(learner.value_head.linear.weight)
    trials = learner.play(0)
    learner.model.eval()
    features = learner.model.encode(trials.context)
    parameters = learner.model.action_head(features)
    read = log_probability(learner.model.spec.action, parameters, trials.context.actions)
    counted = trials.weights.bool()
    torch.testing.assert_close(trials.log_probabilities[counted], read[counted], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(trials.values[counted], learner.value_head(features)[counted], rtol=1e-4, atol=1e-4)


def test_a_trial_is_its_episodes_and_no_more():
    room = DarkRoom(**ROOM, termination="at_goal")
    trials = learner_of(tasks=room, batch_tasks=32, episodes_per_trial=4).play(0)
    lengths = trials.weights.sum(1)
    assert lengths.min() < lengths.max() == trials.weights.shape[1] <= 20
    assert torch.equal(trials.weights, (torch.arange(trials.weights.shape[1]) < lengths[:, None]).float())
    for trial in range(32):
        length, episodes = int(lengths[trial]), trials.episodes[trial]
        rewards = trials.context.rewards[trial]
        for episode in range(4):
            steps = (episodes == episode).nonzero().flatten()
            assert trials.context.observations[trial, steps[0]].tolist() == [1, 1]  # every episode starts afresh
            assert trials.returns[trial, episode] == rewards[steps].sum()
            assert rewards[steps[-1]] == 1 or len(steps) == 5  # at the goal, or out of time
            assert rewards[steps[:-1]].sum() == 0
        assert rewards[length:].sum() == 0
        assert (episodes[length:] == 4).all()


def test_only_training_tasks_are_played_each_about_as_often():
    drawn = []

    class Watched(DarkRoom):
        def batch(self, task_ids, **settings):
            drawn.append(task_ids)
            return super().batch(task_ids, **settings)

    learner = learner_of(tasks=Watched(**ROOM), batch_tasks=24)
    for update in range(2):
        learner.play(update)
    train = DarkRoom(**ROOM).task_ids("train")
    for ids in drawn:
        counts = np.bincount(ids, minlength=9)
        assert set(counts[train]) <= {3, 4}
        assert counts.sum() == counts[train].sum() == 24
    assert not np.array_equal(drawn[0], drawn[1])


def test_an_updates_trials_depend_on_seed_and_number_alone():
    first, second = learner_of(), learner_of()
    second.play(0)
    torch.manual_seed(77)
    assert torch.equal(first.play(3).context.actions, second.play(3).context.actions)
    assert not torch.equal(first.play(3).context.actions, first.play(4).context.actions)
    assert not torch.equal(first.play(3).context.actions, learner_of(seed=5).play(3).context.actions)
    others = learner_of(workers=Workers(1, 2), num_minibatches=1)
    ours = learner_of(workers=Workers(0, 2), num_minibatches=1)
    assert len(ours.play(3).values) == 4
    assert not torch.equal(ours.play(3).context.actions, others.play(3).context.actions)


# Updating


@pytest.mark.parametrize("build", [lstm, transformer])
def test_the_first_gradient_is_the_policy_gradient(build):
    """Before any step the ratio is 1, and the clipped objective's gradient is the advantage-weighted score."""
    once = {"num_epochs": 1, "num_minibatches": 1, "value_weight": 0.0, "entropy_weight": 0.0, "gradient_clip": 1e9}
    learner, twin = learner_of(build, **once), learner_of(build, **once).model.eval()
    trials = learner.play(0)
    metrics = learner.update(trials, 0)
    rewards, values = trials.context.rewards.tolist(), trials.values.tolist()
    rows = [advantages_of_one(*trial, 0.99, 0.95) for trial in zip(rewards, values, strict=True)]
    advantages = torch.tensor(rows)
    advantages = (advantages - advantages.mean()) / advantages.std(correction=0)
    taken = twin(trials.context).log_softmax(-1).gather(-1, trials.context.actions[..., None])[..., 0]
    (-(advantages * taken).mean()).backward()
    for (name, parameter), other in zip(learner.model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-3, atol=1e-5, msg=name)
    assert metrics["policy_loss"].item() == pytest.approx(0.0, abs=1e-5)
    assert metrics["clipped_fraction"].item() == 0.0


def test_values_come_to_predict_discounted_returns_over_episode_ends():
    learner = learner_of(tasks=Reach(Discrete((1,))), batch_tasks=16, episodes_per_trial=8, learning_rate=1e-2)
    for update in range(60):
        learner.update(learner.play(update), 0)
    remaining = 8 - torch.arange(8)  # steps, each an episode that pays 1
    expected = (1 - 0.99**remaining) / (1 - 0.99)
    torch.testing.assert_close(learner.play(60).values.mean(0), expected, rtol=0, atol=0.2)


def test_padding_counts_for_nothing():
    room = DarkRoom(**ROOM, termination="at_goal")
    learner, other = learner_of(tasks=room), learner_of(tasks=room)
    trials = learner.play(0)
    changed = other.play(0)
    beyond = changed.weights == 0
    assert beyond.any()
    changed.context.actions[beyond] = 0
    changed.context.observations[beyond] = 2
    changed.log_probabilities[beyond] = -3.0
    changed.values[beyond] = 50.0
    metrics, others = learner.update(trials, 0), other.update(changed, 0)
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(
        {name: value.item() for name, value in others.items()}, rel=1e-4, abs=1e-6
    )


def test_rates_and_entropy_weight_move_linearly():
    learner = learner_of(
        num_updates=4, learning_rate=1.0, final_fraction=0.2, entropy_weight=0.4, final_entropy_weight=0.0
    )
    used = []
    learner._improve = lambda *args: used.append(args[-1]) or {"loss": torch.zeros(())}
    rates = []
    for update in range(4):
        learner.update(learner.play(update), update)
        rates.append(learner._optimiser.param_groups[0]["lr"])
    assert rates == pytest.approx([1.0, 0.8, 0.6, 0.4])
    assert used[:: len(used) // 4] == pytest.approx([0.4, 0.3, 0.2, 0.1])


def test_seeded_runs_repeat():
    runs = []
    for _ in range(2):
        learner = learner_of(transformer)
        metrics = [learner.update(learner.play(update), update) for update in range(3)]
        runs.append(([{name: value.item() for name, value in one.items()} for one in metrics], weights_of(learner)))
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(tensor, runs[1][1][name]) for name, tensor in runs[0][1].items())


class Killed(Exception):
    """Stands for a kill."""


def test_a_killed_training_resumes_exactly(tmp_path):
    def fake_score(model: SequenceModel) -> dict[str, float]:
        return {"score": sum(float(tensor.abs().sum()) for tensor in model.state_dict().values())}

    schedule = Schedule(num_updates=6, validate_every_updates=2, log_every_updates=1)
    whole = learner_of()
    expected = fit(whole, whole.play, schedule, fake_score, show_progress=False)
    files = {"state_file": tmp_path / "state.pt", "fingerprint": "same", "show_progress": False}
    killed = learner_of()

    def play_until_killed(update: int):
        if update == 5:
            raise Killed
        return killed.play(update)

    with pytest.raises(Killed):
        fit(killed, play_until_killed, schedule, fake_score, **files)
    torch.manual_seed(99)
    resumed = learner_of()
    progress = fit(resumed, resumed.play, schedule, fake_score, **files)
    assert all(torch.equal(tensor, weights_of(resumed)[name]) for name, tensor in weights_of(whole).items())
    assert progress.curves == expected.curves


def test_bfloat16_updates_start_from_their_own_probabilities():
    learner = learner_of(transformer, bfloat16=True, num_epochs=1, num_minibatches=1, clip=1e-4)
    metrics = learner.update(learner.play(0), 0)
    assert metrics["clipped_fraction"].item() == 0.0
    assert all(value.isfinite() for value in metrics.values())


@pytest.mark.slow
def test_a_compiled_learner_equals_a_plain_one():
    metrics = []
    for compile in (True, False):
        learner = learner_of(transformer, compile=compile)
        found = learner.update(learner.play(0), 0)
        metrics.append({name: value.item() for name, value in found.items()})
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-3, abs=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("build", [lstm, transformer])
@pytest.mark.parametrize("bfloat16", [False, True])
def test_it_runs_on_cuda(build, bfloat16):
    learner = learner_of(build, device="cuda", bfloat16=bfloat16, fused=True)
    for update in range(2):
        metrics = learner.update(learner.play(update), update)
    assert all(value.isfinite() for value in metrics.values())


# Learning


def play_and_learn(learner: RL2Learner, num_updates: int) -> tuple[list[float], list[float]]:
    """Mean return of each episode of the trial, of the first five and the last five updates."""
    curves = []
    for update in range(num_updates):
        trials = learner.play(update)
        learner.update(trials, update)
        curves.append(trials.returns.mean(0))
    return torch.stack(curves[:5]).mean(0).tolist(), torch.stack(curves[-5:]).mean(0).tolist()


def test_an_lstm_learns_to_explore_a_room_and_to_come_back():
    settings = {"batch_tasks": 64, "learning_rate": 1e-2, "num_minibatches": 4}
    learner = learner_of(num_updates=60, **settings)
    first, last = play_and_learn(learner, 60)
    assert max(first) < 1.2
    assert last[2] > 2.0  # it found the goal in an episode before, and goes back
    assert last[2] > last[0] + 0.5
    room = DarkRoom(**ROOM)
    lifetimes = InContextEvaluation(num_episodes=3, num_seeds=8).run(
        learner.model, room, room.task_ids("train"), seed=0
    )
    assert lifetimes.returns[:, 2].mean() > 2.0  # frozen, in another wing's hands, it does the same


def test_continuous_actions_learn():
    settings = {"batch_tasks": 64, "episodes_per_trial": 6, "learning_rate": 1e-2, "num_minibatches": 4}
    first, last = play_and_learn(learner_of(tasks=Reach(Box((2,), -1.0, 1.0)), num_updates=40, **settings), 40)
    assert np.mean(last) > np.mean(first) + 0.4


@pytest.mark.slow
def test_a_transformer_learns_too():
    settings = {"batch_tasks": 64, "learning_rate": 1e-2, "num_minibatches": 4}

    def build(spec: TaskSpec) -> CausalTransformer:
        return CausalTransformer(spec, context_length=15, width=32, num_layers=2, num_heads=2, feedforward_width=64)

    first, last = play_and_learn(learner_of(build, num_updates=80, **settings), 80)
    assert max(first) < 1.2
    assert last[2] > 2.0


# Several processes

_TWO_PROCESSES = """
import sys, torch
from distillery.training.distributed import join_workers, leave_workers
from tests.training.test_rl2 import learner_of, weights_of
workers = join_workers("cpu")
learner = learner_of(workers=workers)
for update in range(2):
    learner.update(learner.play(update), update)
torch.save(weights_of(learner), f"{sys.argv[1]}/{workers.rank}.pt")
leave_workers(workers)
"""


@pytest.mark.slow
def test_two_processes_stay_alike(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(_TWO_PROCESSES)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    ended = subprocess.run(
        [*launcher, str(script), str(tmp_path)],
        timeout=120,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([os.getcwd(), *sys.path])},
    )
    assert ended.returncode == 0, ended.stderr
    one, two = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    untrained = weights_of(learner_of())
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    assert not torch.equal(one["action_head.weight"], untrained["action_head.weight"])


# Refusals


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"episodes_per_trial": 0}, "episodes_per_trial must be at least 1, got 0"),
        ({"discount": 1.5}, "discount must be from 0 to 1, got 1.5"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0, got 0.0"),
        ({"entropy_weight": -1.0}, "entropy_weight must be at least 0, got -1.0"),
        ({"batch_tasks": 9}, "batch_tasks=9 cannot be divided over num_minibatches=2 parts of 1 processes"),
        ({"workers": Workers(0, 8)}, "batch_tasks=8 .* 8 processes; choose a multiple of 16"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        learner_of(**settings)
