"""Prompts are the stretches they say they are, and the model takes them in before it acts."""

import numpy as np
import pytest
import torch

from distillery.core.records import EpisodeBatch
from distillery.core.specs import TaskSpec
from distillery.evaluation.in_context import InContextEvaluation
from distillery.evaluation.prompting import Prompt, prompt_at_fraction
from distillery.models.causal_transformer import CausalTransformer
from distillery.models.linear_transformer import LinearTransformer
from distillery.tasks.dark_room import DarkRoom

SPEC = TaskSpec.of_sizes((9,), 5, 4)


def source(returns: list[list[float]], num_steps: list[list[int]] | None = None) -> list[EpisodeBatch]:
    """Episodes of 4 steps with the given (E, N) returns; observations count a stream's episodes."""
    streams, episodes = len(returns), []
    for number in range(len(returns[0])):
        steps = torch.tensor([row[number] for row in num_steps] if num_steps else [4] * streams)
        rewards = torch.zeros(streams, 4)
        rewards[torch.arange(streams), (steps - 1).clamp(min=0)] = torch.tensor(
            [float(row[number]) for row in returns]
        )
        episodes.append(
            EpisodeBatch(
                observations=torch.full((streams, 4, 1), number, dtype=torch.uint8),
                actions=torch.arange(4, dtype=torch.uint8).expand(streams, 4),
                rewards=rewards,
                terminated=steps < 4,
                num_steps=steps,
            )
        )
    return episodes


def prompt(episodes: list[EpisodeBatch], stream_tasks: list[int], **settings) -> Prompt:
    values = {"task_ids": np.array([0]), "num_seeds": 1, "oracle_returns": np.full(9, 10.0), "num_steps": 8}
    return prompt_at_fraction(episodes, np.array(stream_tasks), SPEC, **{**values, "fraction": 0.5, **settings})


def test_the_episodes_nearest_to_the_fraction_are_found_and_kept_in_order():
    found = prompt(source([[6, 0, 1, 9, 4, 10]]), [0])
    assert found.observations[0, :, 0].tolist() == [0] * 4 + [4] * 4  # 6 and 4; 5 was asked for
    assert found.actions[0].tolist() == [0, 1, 2, 3] * 2
    assert found.rewards[0].tolist() == [0, 0, 0, 6, 0, 0, 0, 4]
    assert found.mean_returns.tolist() == [5]
    assert found.observations.dtype == torch.int64
    assert prompt(source([[0, 1, 3, 6, 9, 10]]), [0], fraction=1.0).observations[0, :, 0].tolist() == [4] * 4 + [5] * 4
    assert prompt(source([[0, 1, 3, 6, 9, 10]]), [0], fraction=0.0).observations[0, :, 0].tolist() == [0] * 4 + [1] * 4


def test_no_episode_shows_the_learning_that_lies_between_levels():
    """Half the best on average is what learning passes through; of a prompt every episode is at half the best."""
    found = prompt(source([[0, 0, 5, 10, 10], [0, 5, 10, 10, 10]]), [0, 0])
    assert found.rewards[0].view(2, 4).sum(1).tolist() == [5, 5]


def test_episodes_are_dealt_out_to_the_seeds_of_their_task():
    episodes = source([[0, 2], [5, 5], [9, 9], [4, 5]])
    found = prompt(episodes, [0, 0, 1, 0], task_ids=np.array([1, 0]), num_seeds=2, num_steps=4)
    assert found.mean_returns.tolist() == [9, 9, 5, 5]
    found = prompt(episodes, [0, 0, 1, 0], num_seeds=3)  # of 5 5 5 4 2 0, every third
    assert found.mean_returns.tolist() == [4.5, 3.5, 2.5]
    assert prompt(episodes, [0, 0, 1, 0], num_seeds=9).num_steps == 8  # fewer episodes than seeds: all have all


def test_a_prompt_may_begin_within_an_episode():
    found = prompt(source([[1, 5, 5, 1]]), [0], num_steps=6)
    assert found.num_steps == 6
    assert found.observations[0, :, 0].tolist() == [1] * 2 + [2] * 4
    assert prompt(source([[1, 5, 5, 1]]), [0], num_steps=2).observations[0, :, 0].tolist() == [1, 1]


def test_episodes_that_ended_early_and_histories_that_were_over():
    episodes = source([[0, 4, 6, 0], [9, 9, 0, 0]], [[4, 2, 1, 0], [3, 2, 0, 0]])
    found = prompt(episodes, [0, 0], num_steps=3)
    assert found.observations[0, :, 0].tolist() == [1, 1, 2]
    assert found.rewards[0].tolist() == [0, 4, 6]
    assert found.mean_returns.tolist() == [5]
    assert prompt(episodes, [0, 0], num_steps=99).num_steps == 12  # all real steps, and no padded one


def test_no_prompt_is_longer_than_every_task_can_give():
    found = prompt(source([[1, 2], [1, 2]], [[4, 4], [2, 1]]), [0, 1], task_ids=np.array([0, 1]), num_steps=50)
    assert found.num_steps == 3  # the second task has no more


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fraction": 1.5}, "from 0 to 1, got 1.5"),
        ({"num_steps": 0}, "num_steps must be at least 1, got 0"),
        ({"task_ids": np.array([0, 3])}, r"no episodes to prompt with of tasks \[3\]"),
    ],
)
def test_mistakes_are_told(settings, message):
    with pytest.raises(ValueError, match=message):
        prompt(source([[1, 2]]), [0], **settings)


def test_parts_of_other_lengths_are_refused():
    with pytest.raises(ValueError, match=r"must be \(L, P, ...\) alike"):
        Prompt(torch.zeros(2, 3, 1), torch.zeros(2, 3), torch.zeros(2, 4))


def models(room: DarkRoom):
    torch.manual_seed(0)
    size = {"context_length": 6, "width": 16, "num_layers": 2, "num_heads": 2, "feedforward_width": 16}
    yield CausalTransformer(room.spec, **size)
    yield CausalTransformer(room.spec, **size, positions="absolute", tokens_per_step=3)
    yield LinearTransformer(room.spec, **size)


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_a_lifetime_goes_on_from_its_prompt(room, kind):
    """Its own first episodes as a prompt: the model then acts as it would have had it lived them."""
    model = list(models(room))[kind]
    ids, evaluation = np.arange(5), InContextEvaluation(num_episodes=6, num_seeds=2, greedy=True)
    whole = evaluation.run(model, room, ids, seed=0)
    steps = room.spec.episode_steps
    batch, rewards = room.batch(whole.task_ids, seed=0), []
    for episode in range(2):
        batch.reset()
        for step in range(steps):
            actions = torch.from_numpy(whole.actions[:, episode, step]).long()
            rewards.append(batch.step(actions).rewards)
    lived = Prompt(
        torch.from_numpy(whole.observations[:, :2]).flatten(1, 2),
        torch.from_numpy(whole.actions[:, :2]).flatten(1, 2),
        torch.stack(rewards, 1),
    )
    shorter = InContextEvaluation(num_episodes=4, num_seeds=2, greedy=True, batch_lifetimes=3)
    prompted = shorter.run(model, room, ids, seed=0, prompt=lived)
    np.testing.assert_array_equal(prompted.actions, whole.actions[:, 2:])
    np.testing.assert_array_equal(prompted.returns, whole.returns[:, 2:])


def test_a_prompt_of_other_lifetimes_is_refused(room):
    model = next(models(room))
    prompt = Prompt(torch.zeros(3, 4, 2), torch.zeros(3, 4), torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"of 3 lifetimes and 2 tasks of num_seeds=2 have 4"):
        InContextEvaluation(num_episodes=1, num_seeds=2).run(model, room, np.arange(2), seed=0, prompt=prompt)


def test_a_source_at_half_its_best_is_a_prompt(room, learning_episodes):
    """From real learning histories: the mean return is near what was asked for."""
    stream_tasks, episodes = learning_episodes
    ids, oracle = room.task_ids("train")[:4], room.oracle_returns()
    found = prompt_at_fraction(
        episodes,
        stream_tasks,
        room.spec,
        task_ids=ids,
        num_seeds=2,
        oracle_returns=oracle,
        fraction=0.5,
        num_steps=2 * room.spec.episode_steps,
    )
    assert found.observations.shape == (8, 16, 2)
    assert np.abs(found.mean_returns / oracle[np.repeat(ids, 2)] - 0.5).max() < 0.3
