"""Lifetimes are what they say; metrics equal numbers worked by hand."""

import json
from functools import partial

import numpy as np
import polars as pl
import pytest
import torch

from distillery.core.lifetimes import episodes_to
from distillery.core.records import Lifetimes
from distillery.evaluation.baselines import run_oracle, run_random, run_source
from distillery.evaluation.in_context import InContextEvaluation, weights_checksum
from distillery.evaluation.metrics import (
    bootstrap_means,
    curve_rows,
    interval,
    summarise,
    task_rows,
    validation_score,
)
from distillery.evaluation.storage import write_evaluation
from distillery.models.causal_transformer import CausalTransformer
from distillery.models.linear_transformer import LinearTransformer
from distillery.models.lstm import LSTMModel
from distillery.sources.q_learning import QLearning
from distillery.tasks.dark_room import DarkRoom, DarkRoomBatch
from tests.evaluation.families import Points


def small_model(room: DarkRoom | Points, **settings) -> CausalTransformer:
    torch.manual_seed(0)
    return CausalTransformer(room.spec, context_length=12, width=16, num_layers=2, num_heads=2, **settings)


@pytest.mark.parametrize("termination", ["never", "at_goal"])
def test_recorded_lifetimes_replay_in_the_environment_and_in_the_model(termination):
    room = DarkRoom(width=5, height=5, episode_steps=6, termination=termination, num_validation=3, num_held_out=4)
    model = small_model(room)
    ids = room.task_ids("held_out")
    lifetimes = InContextEvaluation(num_episodes=5, num_seeds=2, greedy=True).run(model, room, ids, seed=3)
    assert lifetimes.returns.shape == (8, 5)
    for row in range(8):
        batch = room.batch(lifetimes.task_ids[row : row + 1], seed=0)
        cache, previous = model.eval().new_cache(1), None
        for episode in range(5):
            observation, total = batch.reset(), 0.0
            for step in range(int(lifetimes.num_steps[row, episode])):
                assert observation[0].tolist() == lifetimes.observations[row, episode, step].tolist()
                action = torch.tensor([int(lifetimes.actions[row, episode, step])])
                with torch.no_grad():
                    assert int(model.act(observation, previous, cache).argmax()) == int(action)
                transition = batch.step(action)
                previous, observation = (action, transition.rewards), transition.observations
                total += float(transition.rewards)
            assert bool(transition.terminated | transition.truncated)
            assert total == lifetimes.returns[row, episode]


def test_the_same_seed_gives_the_same_lifetimes_and_another_others(room):
    model, evaluation = small_model(room), InContextEvaluation(num_episodes=3, num_seeds=4)
    runs = [evaluation.run(model, room, np.arange(5), seed=seed) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(runs[0].actions, runs[1].actions)
    assert (runs[0].actions != runs[2].actions).any()


def test_weights_stay_frozen_and_a_change_is_noticed(room):
    model = small_model(room)
    before = weights_checksum(model)
    InContextEvaluation(num_episodes=2, num_seeds=1).run(model, room, np.arange(3), seed=0)
    assert weights_checksum(model) == before

    class Learning(CausalTransformer):
        def act(self, *arguments):
            with torch.no_grad():
                self.action_head.bias += 1
            return super().act(*arguments)

    model.__class__ = Learning
    with pytest.raises(RuntimeError, match="must stay frozen"):
        InContextEvaluation(num_episodes=1, num_seeds=1).run(model, room, np.arange(3), seed=0)


def test_the_context_is_empty_at_first_and_never_reset(room):
    calls = []

    class Watched(CausalTransformer):
        def act(self, observations, previous, cache):
            calls.append((previous is None, cache.num_tokens))
            return super().act(observations, previous, cache)

    model = small_model(room)
    model.__class__ = Watched
    InContextEvaluation(num_episodes=4, num_seeds=1).run(model, room, np.arange(2), seed=0)
    assert calls == [(step == 0, step) for step in range(4 * room.spec.episode_steps)]


def test_batches_bound_memory_and_keep_the_order(room):
    model = small_model(room)
    parts = InContextEvaluation(num_episodes=2, num_seeds=3, greedy=True, batch_lifetimes=4)
    whole = InContextEvaluation(num_episodes=2, num_seeds=3, greedy=True)
    np.testing.assert_array_equal(
        parts.run(model, room, np.arange(5), seed=0).returns, whole.run(model, room, np.arange(5), seed=0).returns
    )


MODELS = {
    "rotary": partial(CausalTransformer, context_length=12, width=16, num_layers=2, num_heads=4, num_key_heads=2),
    "alibi": partial(CausalTransformer, context_length=12, width=16, num_layers=2, num_heads=4, positions="alibi"),
    "absolute": partial(
        CausalTransformer, context_length=12, width=16, num_heads=2, positions="absolute", norm="post"
    ),
    "linear": partial(LinearTransformer, context_length=12, width=16, num_layers=2, num_heads=2),
    "lstm": partial(LSTMModel, context_length=12, hidden_size=16, embedding_width=8, mlp_width=16),
}


def test_acting_in_bfloat16_turns_positions_exactly(room):
    model = CausalTransformer(room.spec, context_length=12, width=64, num_layers=1, num_heads=2)
    seen = []

    class Watched(CausalTransformer):
        def act(self, observations, previous, cache):
            seen.append((dict(self.named_buffers()), {p.dtype for p in self.parameters()}, cache.layers[0].keys.dtype))
            return super().act(observations, previous, cache)

    model.__class__ = Watched
    InContextEvaluation(num_episodes=1, num_seeds=1, bfloat16=True).run(model, room, np.arange(2), seed=0)
    buffers, weights, keys = seen[0]
    assert weights == {torch.bfloat16} and keys == torch.bfloat16
    assert buffers.keys() == dict(model.named_buffers()).keys() and len(buffers) == 1
    assert all(torch.equal(buffers[name], buffer) for name, buffer in model.named_buffers())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("family", ["room", "image", "vector"])
def test_acting_in_bfloat16_is_acting_rounded(room, family, name):
    family = room if family == "room" else Points(family)
    torch.manual_seed(0)
    model = MODELS[name](family.spec)
    exact, rounded, played = [], [], []

    class Watched(type(model)):
        def act(self, observations, previous, cache):
            parameters = super().act(observations, previous, cache)
            (rounded if self is not model else exact).append(parameters)
            if self is not model:
                played.append((observations.clone(), None if previous is None else [x.clone() for x in previous]))
            return parameters

    model.__class__ = Watched
    before = weights_checksum(model)
    evaluation = InContextEvaluation(num_episodes=4, num_seeds=2, bfloat16=True)
    lifetimes = evaluation.run(model, family, np.arange(3), seed=0)
    assert weights_checksum(model) == before and next(model.parameters()).dtype == torch.float32
    assert {parameters.dtype for parameters in rounded} == {torch.bfloat16}
    np.testing.assert_array_equal(lifetimes.actions, evaluation.run(model, family, np.arange(3), seed=0).actions)
    del played[len(played) // 2 :], rounded[len(rounded) // 2 :]
    with torch.inference_mode():
        cache = model.eval().new_cache(6)
        for observations, previous in played:
            model.act(observations, previous, cache)
    exact, rounded = torch.stack(exact), torch.stack(rounded).float()
    assert not torch.equal(exact, rounded)
    assert (exact - rounded).abs().mean() < 0.03 * exact.abs().mean()


@pytest.mark.parametrize("name", ["image", "vector"])
@pytest.mark.parametrize("greedy", [False, True])
def test_lifetimes_in_any_space_replay(name, greedy):
    """Actions that were recorded lead to the returns that were recorded; what is too much to keep is not kept."""
    points = Points(name)
    model, ids = small_model(points), points.task_ids("train")
    evaluation = InContextEvaluation(num_episodes=4, num_seeds=2, greedy=greedy)
    lifetimes = evaluation.run(model, points, ids, seed=0)
    assert lifetimes.observations is None
    assert lifetimes.actions.shape == (8, 4, 6, 2)
    assert lifetimes.actions.dtype == points.spec.action.stored_dtype
    batch = points.batch(lifetimes.task_ids, seed=0)
    for episode in range(4):
        batch.reset()
        returns, alive = torch.zeros(8), torch.ones(8, dtype=torch.bool)
        for step in range(6):
            actions = torch.from_numpy(lifetimes.actions[:, episode, step]).to(points.spec.action_dtype)
            transition = batch.step(actions)
            returns += transition.rewards * alive
            assert alive.tolist() == (step < lifetimes.num_steps[:, episode]).tolist()
            alive = alive & ~transition.terminated
        np.testing.assert_allclose(lifetimes.returns[:, episode], returns, rtol=1e-5)
    again = evaluation.run(model, points, ids, seed=0)
    np.testing.assert_array_equal(lifetimes.actions, again.actions)


def test_an_evaluation_without_observations_on_disk(tmp_path):
    points = Points("image")
    run = InContextEvaluation(num_episodes=10, num_seeds=2).run(
        small_model(points), points, points.task_ids("held_out"), seed=0
    )
    write_evaluation(tmp_path / "ad", {"held_out": run}, points.oracle_returns(), agent="ad", weights="x")
    steps = np.load(tmp_path / "ad" / "steps.npz")
    assert sorted(steps) == ["actions", "num_steps", "returns", "task_ids"]
    np.testing.assert_array_equal(steps["actions"], run.actions[::2])


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="num_seeds must be at least 1, got 0"):
        InContextEvaluation(num_episodes=1, num_seeds=0)


def test_baselines_reach_their_levels():
    room = DarkRoom()
    everywhere = np.arange(81)
    oracle = run_oracle(room, everywhere, num_episodes=2, num_seeds=1, seed=0)
    np.testing.assert_allclose(oracle.returns, np.repeat(room.oracle_returns()[:, None], 2, 1))
    random = run_random(room, everywhere, num_episodes=50, num_seeds=20, seed=0)
    assert random.returns.mean() == pytest.approx(20 / 81, abs=0.01)
    source = QLearning(num_episodes=60, initial_value=20.0, epsilon_start=0.5)
    learned = run_source(room, everywhere, source=source, num_episodes=60, num_seeds=1, seed=0)
    assert learned.returns[:, -5:].mean() > learned.returns[:, :5].mean() + 5


class NotingRoom(DarkRoom):
    """Notes the devices on which it is asked to be played."""

    def __init__(self) -> None:
        super().__init__()
        self.devices: list[str] = []

    def batch(self, task_ids: np.ndarray, *, seed: int, device: torch.device | str = "cpu") -> DarkRoomBatch:
        self.devices.append(str(device))
        return super().batch(task_ids, seed=seed, device=device)


@pytest.mark.parametrize("run", [run_random, run_oracle, partial(run_source, source=QLearning(num_episodes=4))])
def test_baselines_play_on_the_device_they_are_told(run):
    room = NotingRoom()
    run(room, np.arange(3), num_episodes=2, num_seeds=1, seed=0, device=torch.device("cpu", 0))
    assert room.devices[-1] == "cpu:0"  # before, the oracle looks whether the family knows best actions


def test_episodes_to_reference_by_hand():
    level = 8.52
    curve = np.array([0.0] * 5 + [9.0] * 20)
    # Ten episodes with one zero average 8.1, with none 9.0: the first such stretch starts at the sixth episode.
    assert episodes_to(curve, level) == 6
    # Ten from the fifth average 8.6, but the fifth itself is below.
    assert episodes_to(np.array([0.0] * 4 + [5.0] + [9.0] * 20), level) == 6
    # One alone is luck: it begins no ten at the level.
    assert episodes_to(np.array([9.0] + [0.0] * 5 + [9.0] * 20), level) == 7
    assert episodes_to(np.full(12, 8.52), level) == 1
    assert episodes_to(np.full(12, 8.51), level) is None
    assert episodes_to(np.full(9, 10.0), level) is None


def hand_made() -> tuple[Lifetimes, np.ndarray]:
    returns = np.zeros((4, 20), np.float32)
    returns[0, 10:], returns[1, 10:], returns[2, 10:], returns[3, 10:] = 4, 6, 2, 0
    return Lifetimes(np.array([3, 3, 5, 5]), np.array([0, 1, 0, 1]), returns), np.array([0, 0, 0, 5.0, 0, 10.0])


def test_summary_by_hand():
    lifetimes, oracle = hand_made()
    summary = summarise(lifetimes, oracle)
    assert summary["final_return"] == 3.0
    assert summary["oracle_return"] == 7.5
    assert summary["oracle_fraction"] == pytest.approx(0.4)
    assert summary["nauc"] == pytest.approx(0.2)
    assert summary["return_at"] == {"1": 0.0, "10": 0.0}
    assert summary["failed_lifetimes"] == 0.5
    # Fractions are 0.8, 1.2, 0.2 and 0; without the lowest and the highest quarter, 0.2 and 0.8 remain.
    assert summary["oracle_fraction_iqm"] == pytest.approx(0.5)
    # A mean of 0 needs task 5 twice and its seed 1 four times, 1 in 64, which is less than 2.5 %; 0.5 is the next.
    assert summary["final_return_ci95"] == [0.5, 5.5]
    assert [row["task_id"] for row in task_rows(lifetimes, oracle)] == [5, 3]
    assert curve_rows(lifetimes)[-1] == {"episode": 20, "return": 3.0, "low": 0.5, "high": 5.5}
    assert validation_score(lifetimes, oracle)["score"] == pytest.approx(0.2)


def test_the_bootstrap_covers_the_mean_as_often_as_it_says():
    generator = np.random.default_rng(0)
    tasks = generator.normal(1.0, 2.0, size=(40, 1, 300))  # 300 experiments of 40 tasks
    samples = tasks + generator.normal(0.0, 1.0, size=(40, 5, 300))  # and 5 seeds each
    low, high = interval(bootstrap_means(samples)[0])
    assert 0.90 <= ((low <= 1.0) & (high >= 1.0)).mean() <= 0.98


def test_seeds_are_resampled_within_their_task():
    values = np.array([[0.0, 1.0], [10.0, 10.0]])
    means, drawn = bootstrap_means(values)
    only_second = (drawn == 1).all(1)
    assert set(means[only_second]) == {10.0}
    only_first = (drawn == 0).all(1)
    assert set(means[only_first]) == {0.0, 0.25, 0.5, 0.75, 1.0}


def test_an_agent_at_one_level_everywhere_has_a_tight_interval_of_the_fraction():
    oracle = np.linspace(13, 20, 16)
    returns = np.repeat(0.95 * oracle[:, None], 20, 1).astype(np.float32)
    summary = summarise(Lifetimes(np.arange(16), np.zeros(16, int), returns), oracle)
    assert summary["oracle_fraction_ci95"] == pytest.approx([0.95, 0.95], abs=1e-4)
    assert summary["final_return_ci95"][1] - summary["final_return_ci95"][0] > 1


def test_an_evaluation_on_disk_holds_every_return(tmp_path, room):
    runs = {
        split: run_random(room, room.task_ids(split), num_episodes=12, num_seeds=2, seed=0)
        for split in ("held_out", "train")
    }
    summary = write_evaluation(tmp_path / "random", runs, room.oracle_returns(), agent="random", weights=None)
    assert json.loads((tmp_path / "random" / "summary.json").read_text()) == summary
    frame = pl.read_parquet(tmp_path / "random" / "lifetimes.parquet")
    mean = frame.filter((pl.col("split") == "held_out") & (pl.col("episode") > 2))["return"].mean()
    assert mean == pytest.approx(summary["splits"]["held_out"]["final_return"])
    steps = np.load(tmp_path / "random" / "steps.npz")
    assert steps["observations"].shape == (4, 12, 8, 2)
    np.testing.assert_array_equal(steps["task_ids"], room.task_ids("held_out"))


def test_a_family_without_best_actions_has_its_level_for_an_oracle():
    from distillery.tasks.gymnasium_family import GymnasiumFamily

    family = GymnasiumFamily(
        env_id="CartPole-v1",
        best_return=30.0,
        variations={"gravity": {"low": 5.0, "high": 15.0}},
        episode_steps=30,
        num_train=4,
        num_validation=2,
        num_held_out=2,
    )
    ids = family.task_ids("held_out")
    oracle = run_oracle(family, ids, num_episodes=3, num_seeds=2, seed=0)
    assert oracle.returns.shape == (4, 3) and (oracle.returns == 30.0).all()
    assert oracle.task_ids.tolist() == np.repeat(ids, 2).tolist() and oracle.seeds.tolist() == [0, 1, 0, 1]
    assert oracle.actions is None
