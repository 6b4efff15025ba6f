"""Contexts are cut from kept episodes of one history, as often and in the order that the settings say."""

import hashlib
import itertools
import tracemalloc

import numpy as np
import pytest
import torch

from distillery.core.records import Context
from distillery.core.specs import TaskSpec
from distillery.histories import kept
from distillery.histories.contexts import Contexts, check_context_settings
from distillery.histories.kept import KeptSteps, best_of_each_task, cumulative_weights, improvements, kept_episodes
from distillery.histories.packed import PackedHistories, step_dtype
from distillery.histories.reader import open_packed
from tests.histories.conftest import ACTIONS, OBSERVATIONS, packed_histories


def test_contexts_are_cut_from_kept_episodes_of_one_history(dataset, tmp_path, learning_episodes):
    _, episodes = learning_episodes
    _, packed = open_packed(dataset, tmp_path)
    contexts = Contexts(packed, sequence_length=24, batch_size=64, keep_every_episode=10)
    batch = contexts.batch(3)
    kept = torch.stack([episodes[e].actions for e in (0, 10, 20)], 1).flatten(1)  # (E, 24)
    rows = {tuple(row.tolist()) for row in kept}
    assert {tuple(row.tolist()) for row in batch.actions} <= rows
    torch.testing.assert_close(contexts.batch(3).observations, batch.observations)
    assert not torch.equal(contexts.batch(4).observations, batch.observations)


def test_random_starts_stay_inside_a_history(dataset, tmp_path, learning_episodes):
    _, episodes = learning_episodes
    _, packed = open_packed(dataset, tmp_path)
    whole = torch.stack([batch.actions for batch in episodes], 1).flatten(1)  # (E, 240)
    windows = {tuple(row.tolist()) for row in whole.unfold(1, 100, 1).flatten(0, 1)}
    contexts = Contexts(packed, sequence_length=100, batch_size=256, start="random")
    drawn = {tuple(row.tolist()) for row in contexts.batch(0).actions}
    assert drawn <= windows
    assert len(drawn) > 200


def test_a_context_longer_than_a_history_is_refused(dataset, tmp_path):
    _, packed = open_packed(dataset, tmp_path)
    with pytest.raises(ValueError, match=r"sequence_length=25 .* 24 steps .* 10-th"):
        Contexts(packed, sequence_length=25, batch_size=1, keep_every_episode=10)


def digest(batch: Context) -> str:
    values = (batch.observations, batch.actions, batch.rewards)
    return hashlib.sha256(b"".join(value.numpy().tobytes() for value in values)).hexdigest()[:16]


def numbered(
    lengths: list[list[int]], task_ids: list[int] | None = None, rewards: list[list[float]] | None = None
) -> PackedHistories:
    """Histories whose steps hold their own number as observation; `rewards` is one reward of each episode."""
    spec = TaskSpec.of_sizes((10_000,), 5, 100)
    flat = np.array([length for history in lengths for length in history])
    steps = np.zeros(flat.sum(), step_dtype(spec))
    steps["observation"][:, 0] = np.arange(1, len(steps) + 1)
    steps["action"], steps["reward"] = 4, 1.0
    if rewards is not None:
        steps["reward"] = np.repeat([reward for history in rewards for reward in history], flat)
    return PackedHistories(
        spec=spec,
        steps=steps,
        episode_starts=np.concatenate([[0], np.cumsum(flat)]),
        history_starts=np.concatenate([[0], np.cumsum([len(history) for history in lengths])]),
        task_ids=np.array(task_ids or range(len(lengths))),
        terminated=np.zeros(len(flat), dtype=bool),
    )


@pytest.mark.parametrize(("start", "expected"), [("beginning", "7905b6b7ecf54ec9"), ("random", "16c108a37ff405ff")])
def test_a_seed_draws_what_it_always_drew(start, expected):
    contexts = Contexts(numbered([[4, 4, 4]] * 6), sequence_length=5, batch_size=7, start=start, seed=11)
    assert digest(contexts.batch(2)) == expected


@pytest.mark.parametrize("lengths", [[4, 4, 4], [3]], ids=["whole", "padded"])
def test_the_parts_of_several_processes_are_the_batch(lengths):
    contexts = Contexts(
        numbered([[4, 4, 4]] * 6 + [lengths]), sequence_length=5, batch_size=12, start="random", seed=11
    )
    whole = contexts.batch(2)
    parts = [contexts.batch(2, rank=rank, count=3) for rank in range(3)]
    for name in ("observations", "actions", "rewards", "weights"):
        every, of_parts = getattr(whole, name), [getattr(part, name) for part in parts]
        if every is None:
            assert of_parts == [None] * 3
        else:
            assert torch.equal(torch.stack(of_parts, 1).flatten(0, 1), every)


# Shorter histories


@pytest.mark.parametrize("start", ["beginning", "random"])
def test_a_shorter_history_is_padded_with_zeros_of_weight_zero(start):
    histories = numbered([[3], [4, 4], [6]])
    targets = np.full(len(histories.steps), 2, dtype=np.uint8)
    contexts = Contexts(histories, sequence_length=6, batch_size=64, start=start, targets=targets)
    batch = contexts.batch(0)
    assert batch.weights is not None
    assert batch.targets is not None
    real = batch.weights.bool()
    assert set(real.sum(1).tolist()) == {3, 6}
    assert not (real[:, 1:] & ~real[:, :-1]).any()  # padded at the end
    numbers = batch.observations[..., 0]
    assert torch.equal(numbers > 0, real)
    assert ((numbers[:, 1:] - numbers[:, :-1] == 1) | ~real[:, 1:]).all()
    for values, value in ((batch.actions, 4), (batch.targets, 2), (batch.rewards, 1.0)):
        assert torch.equal(values == value, real)
        assert not values[~real].any()


def test_weights_are_absent_where_nothing_is_padded():
    assert Contexts(numbered([[6], [4, 4]]), sequence_length=6, batch_size=4).batch(0).weights is None


def test_padded_histories_of_any_space(tmp_path):
    spec = TaskSpec(OBSERVATIONS["image"], ACTIONS["multi_discrete"], 6)
    packed, _ = packed_histories(tmp_path, spec, np.array([[6, 6], [2, 1]]))
    batch = Contexts(packed, sequence_length=10, batch_size=16).batch(0)
    assert batch.weights is not None
    assert set(batch.weights.sum(1).tolist()) == {3.0, 10.0}
    assert not batch.observations[~batch.weights.bool()].any()


# Order


def test_shuffled_episodes_stay_whole_and_in_their_history():
    histories = numbered([[2, 3, 1, 4, 2], [3, 3, 3, 3, 3]] * 20)
    learning, shuffled = (
        Contexts(histories, sequence_length=12, batch_size=200, episode_order=order, seed=5).batch(0)
        for order in ("learning", "shuffled")
    )
    assert not torch.equal(learning.observations, shuffled.observations)
    starts = set((histories.episode_starts[:-1] + 1).tolist())
    first_steps = np.repeat(histories.episode_starts[histories.history_starts[:-1]], np.diff(histories.history_starts))
    history_of_step = np.repeat(
        np.searchsorted(np.unique(first_steps), first_steps), np.diff(histories.episode_starts)
    )
    for before, after in zip(
        learning.observations[..., 0].tolist(), shuffled.observations[..., 0].tolist(), strict=True
    ):
        assert len({history_of_step[number - 1] for number in before + after}) == 1
        assert len(set(after)) == 12
        assert after[0] in starts
        assert all(two == one + 1 or two in starts for one, two in itertools.pairwise(after))


def test_the_shuffled_order_is_seeded_and_keeps_the_kept():
    histories = numbered([[2] * 20] * 3)

    def order(seed: int) -> torch.Tensor:
        settings = {"sequence_length": 20, "batch_size": 8, "keep_every_episode": 2, "episode_order": "shuffled"}
        return Contexts(histories, **settings, seed=seed).batch(0).observations[..., 0]

    assert torch.equal(order(1), order(1))
    assert not torch.equal(order(1).sort(0).values, order(2).sort(0).values)
    kept = {
        number + 40 * history for history in range(3) for n in range(0, 20, 2) for number in (2 * n + 1, 2 * n + 2)
    }
    assert set(order(1).flatten().tolist()) <= kept
    assert all(len(set(row)) == 20 for row in order(1).tolist())


# Improvement


@pytest.mark.parametrize("steps_at_once", [1, 13, 1000])
def test_improvement_is_the_last_third_minus_the_first(monkeypatch, steps_at_once):
    monkeypatch.setattr(kept, "STEPS_AT_ONCE", steps_at_once)
    histories = numbered(
        [[2] * 6, [2] * 3, [2] * 2, [6], [1]],
        rewards=[[0, 1, 5, 5, 2, 3], [1, 9, 0.5], [1, 2], [1], [7]],
    )
    histories.steps["reward"][22:28] = [0, 1, 5, 5, 2, 3]  # the only episode of the fourth history
    episodes, starts = kept_episodes(histories, 1)
    expected = [2 * (2.5 - 0.5), 2 * (0.5 - 1), 2 * (2 - 1), 6 * (2.5 - 0.5), 0.0]
    np.testing.assert_allclose(improvements(histories, episodes, starts), expected)
    episodes, starts = kept_episodes(histories, 2)
    np.testing.assert_allclose(improvements(histories, episodes, starts)[0], 2 * (2 - 0))


def test_histories_are_drawn_in_proportion_to_their_improvement():
    rewards = [[0.0, 3.0], [0.0, 1.0], [5.0, 0.0]]
    histories = numbered([[2, 2]] * 3, rewards=rewards)
    contexts = Contexts(histories, sequence_length=4, batch_size=40_000, history_weighting="improvement")
    drawn = np.bincount((contexts.batch(0).observations[:, 0, 0].numpy() - 1) // 4, minlength=3) / 40_000
    np.testing.assert_allclose(drawn, np.array([3, 1, 0.03]) / 4.03, atol=0.01)
    np.testing.assert_allclose(cumulative_weights(np.array([-1.0, -2.0])), [0.5, 1.0])


def test_only_the_best_of_each_task_are_drawn():
    task_ids = np.array([7, 3, 7, 7, 3, 7, 1])
    improvement = np.array([1.0, 0.0, 3.0, 2.0, 5.0, 2.0, -1.0])
    np.testing.assert_array_equal(best_of_each_task(improvement, task_ids, 0.5), [2, 3, 4, 6])
    np.testing.assert_array_equal(best_of_each_task(improvement, task_ids, 0.01), [2, 4, 6])
    np.testing.assert_array_equal(best_of_each_task(improvement, task_ids, 0.51), [1, 2, 3, 4, 5, 6])
    assert len(best_of_each_task(np.arange(30.0), np.zeros(30), 0.1)) == 3
    histories = numbered([[2, 2]] * 7, task_ids=task_ids.tolist(), rewards=[[0.0, value / 2] for value in improvement])
    for weighting in ("none", "improvement"):
        contexts = Contexts(
            histories, sequence_length=4, batch_size=3000, keep_best_fraction=0.5, history_weighting=weighting
        )
        drawn = set(((contexts.batch(0).observations[:, 0, 0] - 1) // 4).tolist())
        assert drawn == {2, 3, 4, 6}


# Mistakes


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"start": "middle"}, r"start must be beginning or random, got 'middle'"),
        ({"episode_order": "sorted"}, r"episode_order must be learning or shuffled, got 'sorted'"),
        ({"history_weighting": "length"}, r"history_weighting must be none or improvement, got 'length'"),
        ({"keep_best_fraction": 0.0}, r"keep_best_fraction must be above 0 and to 1, got 0\.0"),
        ({"keep_best_fraction": 1.1}, r"keep_best_fraction must be above 0 and to 1, got 1\.1"),
        ({"batch_size": 0}, r"batch_size must be at least 1, got 0"),
    ],
)
def test_bad_settings_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        check_context_settings(**{"sequence_length": 4, "batch_size": 2, **settings})
    with pytest.raises(ValueError, match=words):
        Contexts(numbered([[6]]), **{"sequence_length": 4, "batch_size": 2, **settings})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"episode_order": "shuffled"}, "episode_order=shuffled has nothing to shuffle"),
        ({"episode_order": "shuffled", "keep_every_episode": 2}, "episode_order=shuffled has nothing to shuffle"),
        ({"keep_best_fraction": 0.5}, r"keep_best_fraction=0\.5 keeps every history of every task.*runs_per_task"),
    ],
)
def test_a_control_that_would_change_nothing_is_refused(settings, words):
    histories = numbered([[6, 6]] * 3 if "keep_every_episode" in settings else [[6]] * 3)
    with pytest.raises(ValueError, match=words):
        Contexts(histories, sequence_length=4, batch_size=2, **settings)


def test_targets_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"targets must be of shape \(6,\), an action for every step, got \(5,\)"):
        Contexts(numbered([[6]]), sequence_length=4, batch_size=2, targets=np.zeros(5))


@pytest.mark.parametrize("keep_every_episode", [1, 2, 3])
def test_rows_of_kept_steps_are_those_of_a_plain_walk(keep_every_episode):
    histories = numbered([[3, 1, 4, 1], [5], [9, 2, 6, 5, 3, 5]])
    expected, history_starts = [], [0]
    for first, end in itertools.pairwise(histories.history_starts):
        for episode in range(first, end, keep_every_episode):
            expected += range(histories.episode_starts[episode], histories.episode_starts[episode + 1])
        history_starts.append(len(expected))
    steps = KeptSteps(histories, *kept_episodes(histories, keep_every_episode))
    np.testing.assert_array_equal(steps.history_starts, history_starts)
    np.testing.assert_array_equal(steps.rows(np.arange(len(expected))), expected)


def test_what_contexts_hold_does_not_grow_with_the_length_of_episodes():
    held = []
    for length in (100, 10_000):
        histories = numbered([[length] * 20] * 5)
        tracemalloc.start()
        contexts = Contexts(histories, sequence_length=50, batch_size=2, keep_every_episode=2, start="random")
        held.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
        assert contexts.batch(0).actions.shape == (2, 50)
    assert held[1] == pytest.approx(held[0], rel=0.2)
