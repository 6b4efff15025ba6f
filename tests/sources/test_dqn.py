"""Q(lambda) targets by hand, stacked networks beside ordinary ones, the replay, and learning from pixels."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from distillery.core.records import EpisodeBatch, Transition
from distillery.core.specs import SOLE, Box, TaskSpec
from distillery.sources.dqn import DQN, DQNLearners
from distillery.sources.replay import Sequences
from distillery.tasks.base import TaskBatch
from distillery.tasks.dark_room import DarkRoom, DarkRoomBatch

SMALL = {
    "num_episodes": 40,
    "num_actors": 4,
    "rollout_steps": 8,
    "overlap_steps": 4,
    "replay_steps": 4000,
    "updates_per_rollout": 1,
    "target_every_updates": 20,
    "epsilon_start": 1.0,
    "epsilon_end": 0.05,
    "epsilon_fraction": 0.5,
    "learning_rate": 1e-3,
    "channels": (8,),
    "num_residual_blocks": 1,
    "hidden_size": 32,
}


class PictureBatch(TaskBatch):
    """Dark Rooms seen from above, as 8x8 grey pixels: a white square of 3x3 where the agent is, and no goal."""

    def __init__(self, spec: TaskSpec, rooms: DarkRoomBatch) -> None:
        self.spec, self.rooms = spec, rooms
        self.can_terminate, self.task_ids = rooms.can_terminate, rooms.task_ids
        x, y = rooms.observe(torch.arange(len(rooms.next_state))).unbind(1)
        pixels = torch.arange(8)
        in_row, in_column = ((pixels >= corner[:, None]) & (pixels < corner[:, None] + 3) for corner in (y, x))
        self.pictures = (255 * (in_row[:, :, None] & in_column[:, None, :])).to(torch.uint8).flatten(1)  # (S, 64)

    def reset(self, where: Tensor | None = None) -> Tensor:
        self.rooms.reset(where)
        return self.pictures[self.rooms.state]

    def step(self, actions: Tensor) -> Transition:
        rewards, terminated, truncated = self.rooms.advance(actions)
        return Transition(self.pictures[self.rooms.state], rewards, terminated, truncated)


class PictureRoom(DarkRoom):
    def __init__(self, **settings: object) -> None:
        super().__init__(width=5, height=5, episode_steps=12, num_validation=2, num_held_out=2, **settings)
        self.spec = replace(self.spec, observation={SOLE: Box((8, 8, 1), 0, 255, "uint8")})

    def batch(self, task_ids: np.ndarray, *, seed: int, device: torch.device | str = "cpu") -> PictureBatch:
        return PictureBatch(self.spec, super().batch(task_ids, seed=seed, device=device))


def played(termination: str, *, num_episodes: int) -> tuple[DQNLearners, list[EpisodeBatch], Sequences]:
    """Random play, and one sequence of all that is replayed of the first actor of each of two learners."""
    settings = SMALL | {"epsilon_end": 1.0, "learning_rate": 1e-12}
    learners = DQN(**settings).start(PictureRoom(termination=termination), np.array([13, 11]), seed=0)
    episodes = [learners.episode() for _ in range(num_episodes)]
    first = torch.zeros(2, 1, dtype=torch.int64)
    return learners, episodes, learners._replay.sequences(first, first, learners._replay.num_entries)


@pytest.mark.parametrize("termination", ["never", "at_goal"])
def test_every_step_and_every_last_look_is_replayed(termination: str) -> None:
    _, episodes, entries = played(termination, num_episodes=3)
    assert entries.acted.shape == (2, 1, 3 * 13)
    for number, whole in enumerate(episodes):
        here = slice(13 * number, 13 * number + 12)
        episode = whole.select(slice(0, 8, 4))
        assert torch.equal(entries.observations[:, 0, here], episode.observations)
        assert torch.equal(entries.actions[:, 0, here], episode.actions.long())
        assert torch.equal(entries.rewards[:, 0, here], episode.rewards)
        real = torch.arange(13) < episode.num_steps[:, None]
        assert torch.equal(entries.acted[:, 0, here.start : here.stop + 1], real)
    if termination == "at_goal":
        assert any(episode.terminated.any() for episode in episodes)


@pytest.mark.parametrize("trace", ["peng", "watkins"])
@pytest.mark.parametrize("termination", ["never", "at_goal"])
def test_targets_and_losses_equal_the_formula_step_by_step(termination: str, trace: str) -> None:
    learners, _, entries = played(termination, num_episodes=3)
    learners._source = DQN(**SMALL, trace=trace, discount=0.9, return_lambda=0.75)
    with torch.no_grad():
        learners._target._head.parameters[:, -5:] = torch.randn(2, 5, generator=torch.Generator().manual_seed(1))
    ahead, now = learners._target(entries.observations[:, 0]), learners._networks(entries.observations[:, 0])
    targets, losses = learners._targets(entries)[:, 0], learners._losses(entries)
    for learner in range(2):
        target, squares = None, []
        for entry in reversed(range(3 * 13 - 1)):
            acted, action = bool(entries.acted[learner, 0, entry]), int(entries.actions[learner, 0, entry])
            value = ahead[learner, entry + 1].max()
            next_action = int(entries.actions[learner, 0, entry + 1])
            likes = trace == "peng" or next_action == int(ahead[learner, entry + 1].argmax())
            if target is not None and entries.acted[learner, 0, entry + 1] and likes:
                value = 0.25 * value + 0.75 * target
            if not entries.continues[learner, 0, entry]:
                value = torch.tensor(0.0)
            target = entries.rewards[learner, 0, entry] + 0.9 * value
            if acted:
                torch.testing.assert_close(targets[learner, entry], target)
                squares.append(0.5 * (target - now[learner, entry, action]) ** 2)
        torch.testing.assert_close(losses[learner], torch.stack(squares).mean())


def test_one_learners_loss_reaches_no_other_weights() -> None:
    learners = DQN(**SMALL).start(PictureRoom(), np.array([3, 10, 18]), seed=0)
    learners.episode()
    losses = learners._losses(learners._draw_sequences(0))
    for part in learners._networks.parts:
        (gradient,) = torch.autograd.grad(losses[1], part.parameters, retain_graph=True)
        assert gradient[1].any()
        assert not gradient[0].any()
        assert not gradient[2].any()


def test_gradients_are_clipped_learner_by_learner() -> None:
    learners = DQN(**SMALL | {"max_gradient_norm": 0.01}).start(PictureRoom(), np.array([3, 10]), seed=0)
    for _ in range(3):
        learners.episode()
    taken: list[Tensor] = []
    for adam in learners._adams:
        adam.step = lambda gradient, active: taken.append(gradient)
    learners._update(learners._draw_sequences(0))
    norms = torch.cat(taken, 1).norm(dim=1)
    assert (norms <= 0.01 + 1e-6).all()
    assert norms.max() > 0.009


def test_new_sequences_take_their_share_and_their_turn() -> None:
    learners = DQN(**SMALL | {"batch_size": 4, "replay_fraction": 0.5}).start(PictureRoom(), np.array([3]), seed=0)
    for _ in range(2):
        learners.episode()
    newest = learners._replay.sequences(torch.arange(4)[None], torch.full((1, 4), 26 - 9), 9)
    for update in range(4):
        drawn, actors = learners._draw_sequences(update), [2 * update % 4, 2 * update % 4 + 1]
        assert drawn.actions.shape == (1, 4, 9)
        assert torch.equal(drawn.actions[:, 2:], newest.actions[:, actors])


def test_the_target_network_follows_in_steps() -> None:
    learners = DQN(**SMALL | {"target_every_updates": 3}).start(PictureRoom(), np.array([3]), seed=0)
    while learners._num_updates < 4:
        learners.episode()

    def is_behind() -> bool:
        pairs = zip(learners._networks.parts, learners._target.parts, strict=True)
        return not all(torch.equal(mine.parameters, theirs.parameters) for mine, theirs in pairs)

    for _ in range(6):
        learners._update(learners._draw_sequences(0))
        assert is_behind() == (learners._num_updates % 3 != 0)


@pytest.mark.parametrize("termination", ["never", "at_goal"])
def test_it_learns_from_pixels(termination: str) -> None:
    room, goals = PictureRoom(termination=termination), np.array([3, 10, 18])
    learners = DQN(**SMALL).start(room, goals, seed=0)
    np.testing.assert_array_equal(learners.task_ids, goals.repeat(4))
    episodes = [learners.episode() for _ in range(40)]
    returns = torch.stack([episode.returns for episode in episodes])
    oracle = torch.as_tensor(room.oracle_returns()[goals], dtype=torch.float32)
    assert returns[:5].mean() < 0.4 * oracle.mean()
    assert returns[-5:].mean() > 0.8 * oracle.mean()
    assert learners.episode(frozen=True).returns.mean() > 0.9 * oracle.mean()
    assert episodes[0].observations.dtype == torch.uint8


@pytest.mark.parametrize("termination", ["never", "at_goal"])
def test_a_run_repeats_bit_for_bit_and_frozen_episodes_learn_nothing(termination: str) -> None:
    room, source = PictureRoom(termination=termination), DQN(**SMALL | {"num_episodes": 6})
    first = list(source.run(room, np.array([3, 10]), seed=4))
    again = source.start(room, np.array([3, 10]), seed=4)
    for expected in first:
        again.episode(frozen=True)
        episode = again.episode()
        assert all(torch.equal(value, vars(expected)[name]) for name, value in vars(episode).items())


def test_a_learner_does_not_feel_the_others() -> None:
    first, second = (DQN(**SMALL).start(PictureRoom(), np.array([13, other]), seed=0) for other in (3, 18))
    for _ in range(6):
        one, other = first.episode(), second.episode()
        assert torch.equal(one.actions[:4], other.actions[:4])
        assert torch.equal(one.rewards[:4], other.rewards[:4])


def test_whole_numbers_need_no_picture() -> None:
    room, goals = DarkRoom(width=5, height=5, num_validation=2, num_held_out=2, episode_steps=12), np.array([3, 10])
    source = DQN(**SMALL | {"hidden_size": 64})
    returns = torch.stack([episode.returns for episode in source.run(room, goals, seed=0)])
    assert returns[-5:].mean() > 0.8 * room.oracle_returns()[goals].mean()


@pytest.mark.parametrize(
    "settings",
    [
        {"num_episodes": 0},
        {"num_actors": 0},
        {"rollout_steps": 0},
        {"overlap_steps": 40},
        {"batch_size": 0},
        {"replay_fraction": 1.5},
        {"replay_steps": 640},
        {"updates_per_rollout": 0},
        {"target_every_updates": 0},
        {"discount": -0.1},
        {"return_lambda": 2},
        {"trace": "tree"},
        {"epsilon_start": 1.1},
        {"learning_rate": 0},
        {"adam_betas": (0.9,)},
        {"max_gradient_norm": -1},
        {"channels": ()},
        {"num_residual_blocks": -1},
        {"num_layers": 0},
        {"hidden_size": 0},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_bad_settings_are_named(settings: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        DQN(**{"num_episodes": 10} | settings)


def test_several_actions_at_a_time_are_refused() -> None:
    room = PictureRoom()
    room.spec = replace(room.spec, action=Box((2,), -1.0, 1.0))
    with pytest.raises(ValueError, match="one of a number of actions"):
        DQN(**SMALL).start(room, np.array([3]), seed=0)
