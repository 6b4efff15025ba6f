"""One battery over all sources: seeding, independence, records, frozen episodes and episodes that end early.

It finds the sources by their configurations.
"""

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import distillery
from distillery.core.records import EpisodeBatch
from distillery.sources.a2c import A2C
from distillery.sources.base import Learners, Source
from distillery.sources.explorer import Explorer
from distillery.sources.noise_annealed import NoiseAnnealed
from distillery.sources.q_learning import QLearning
from distillery.sources.thompson import ThompsonSampling
from distillery.sources.ucb import UCB
from distillery.tasks.adversarial_bandit import AdversarialBandit
from distillery.tasks.base import TaskDistribution
from distillery.tasks.dark_room import DarkRoom, DarkRoomBatch

CONF = Path(distillery.__file__).parent / "conf" / "sources"
# What makes a source small; one that is not named here runs as it is configured.
SMALL = {
    "q_learning": {"epsilon_start": 1.0, "epsilon_fraction": 0.5, "initial_value": 0.0},
    "a2c": {"num_actors": 3, "rollout_steps": 7, "num_layers": 2, "hidden_size": 16, "learning_rate": 1e-2},
    "dqn": {
        "num_actors": 3,
        "rollout_steps": 7,
        "overlap_steps": 3,
        "batch_size": 4,
        "replay_steps": 400,
        "updates_per_rollout": 1,
        "hidden_size": 16,
        "learning_rate": 1e-2,
    },
    "ppo": {"num_actors": 3, "num_epochs": 2, "num_minibatches": 2, "hidden_size": 16, "learning_rate": 1e-2},
}
FOR_BANDITS = ("thompson", "ucb")
# For families of their own, with tests of their own.
ELSEWHERE = ("pose_searcher",)


def configured() -> dict[str, Source]:
    """A small source of each configuration that names a class."""
    found = {}
    for file in sorted(CONF.glob("*.yaml")):
        settings = yaml.safe_load(file.read_text())
        if "_target_" in settings and file.stem not in ELSEWHERE:
            module, _, name = settings.pop("_target_").rpartition(".")
            source = getattr(importlib.import_module(module), name)
            found[file.stem] = source(**settings | {"num_episodes": 8} | SMALL.get(file.stem, {}))
    return found


SOURCES = configured() | {
    "q_learning_optimistic": QLearning(num_episodes=8, initial_value=20.0, epsilon_start=0.3),
    "q_learning_backward": QLearning(num_episodes=8, replay="backward", epsilon_start=0.3),
}
ROOM_SOURCES = {name: source for name, source in SOURCES.items() if name not in FOR_BANDITS}
ROOM = {"width": 5, "height": 4, "num_validation": 3, "num_held_out": 4}
ROOMS = {
    "lasting": DarkRoom(**ROOM),
    "ending": DarkRoom(**ROOM, termination="at_goal"),
}
BANDIT = AdversarialBandit(
    num_arms=5, num_pulls=20, num_train=12, num_validation=3, num_held_out=5, num_uniform=0, num_seen=0
)
TASK_IDS = np.array([13, 2, 19, 7])
PAIRS = {f"{name}-{room}": (source, ROOMS[room]) for name, source in ROOM_SOURCES.items() for room in ROOMS} | {
    f"{name}-bandit": (SOURCES[name], BANDIT) for name in FOR_BANDITS
}

for_all_pairs = pytest.mark.parametrize(("source", "tasks"), PAIRS.values(), ids=PAIRS.keys())
for_room_sources = pytest.mark.parametrize("source", ROOM_SOURCES.values(), ids=ROOM_SOURCES.keys())
for_all_rooms = pytest.mark.parametrize("room", ROOMS.values(), ids=ROOMS.keys())


def equal(one: EpisodeBatch, other: EpisodeBatch) -> bool:
    return all(torch.equal(value, vars(other)[name]) for name, value in vars(one).items())


def part(episode: EpisodeBatch, streams: slice) -> EpisodeBatch:
    return EpisodeBatch(**{name: value[streams] for name, value in vars(episode).items()})


def real_steps(episode: EpisodeBatch) -> torch.Tensor:
    return torch.arange(episode.actions.shape[1]) < episode.num_steps[:, None]


def play(learners: Learners, num_episodes: int) -> list[EpisodeBatch]:
    return [learners.episode() for _ in range(num_episodes)]


@for_all_pairs
def test_a_run_repeats_bit_for_bit(source: Source, tasks: TaskDistribution) -> None:
    first, again = (list(source.run(tasks, TASK_IDS, seed=4)) for _ in range(2))
    assert len(first) == source.num_episodes
    assert all(equal(*pair) for pair in zip(first, again, strict=True))
    other = list(source.run(tasks, TASK_IDS, seed=5))
    assert not all(equal(*pair) for pair in zip(first, other, strict=True))


@for_all_pairs
def test_a_learner_does_not_feel_the_others(source: Source, tasks: TaskDistribution) -> None:
    # With the same seed each learner is given the same draws, so that the first can differ only by what leaks to it
    # from the others, who are given other goals.
    learners, beside_others = (source.start(tasks, ids, seed=0) for ids in (TASK_IDS, np.array([13, 12, 8, 8])))
    own = slice(0, len(learners.task_ids) // len(TASK_IDS))
    others = slice(own.stop, None)
    for _ in range(3):
        first, second = play(learners, 4), play(beside_others, 4)
        for one, other in zip(first, second, strict=True):
            assert equal(part(one, own), part(other, own))
        # They did learn other things.
        assert not all(equal(part(x, others), part(y, others)) for x, y in zip(first, second, strict=True))


@for_all_pairs
def test_what_an_episode_holds(source: Source, tasks: TaskDistribution) -> None:
    learners = source.start(tasks, TASK_IDS, seed=0)
    num_streams = len(learners.task_ids)
    num_actors = num_streams // len(TASK_IDS)
    np.testing.assert_array_equal(learners.task_ids, np.repeat(TASK_IDS, num_actors))
    for frozen in (False, True):
        episode = learners.episode(frozen=frozen)
        expected = {
            "observations": ((num_streams, 20, tasks.spec.observation_width), torch.uint8),
            "actions": ((num_streams, 20), torch.uint8),
            "rewards": ((num_streams, 20), torch.float32),
            "terminated": ((num_streams,), torch.bool),
            "num_steps": ((num_streams,), torch.int64),
        }
        assert {name: (tuple(x.shape), x.dtype) for name, x in vars(episode).items()} == expected
        assert episode.actions.max() < 5
        assert not episode.observations.requires_grad
        assert not episode.rewards.requires_grad


@for_room_sources
@for_all_rooms
def test_observations_follow_from_actions(source: Source, room: DarkRoom) -> None:
    learners = source.start(room, TASK_IDS, seed=0)
    next_state, goals = torch.as_tensor(room.next_state), torch.as_tensor(learners.task_ids)
    for episode in play(learners, 3):
        x, y = episode.observations.long().unbind(-1)
        states = x + room.width * y  # (E, T)
        assert (states[:, 0] == room.start_states[0]).all()
        reached = next_state[states, episode.actions.long()]
        real = real_steps(episode)
        assert torch.equal(states[:, 1:][real[:, 1:]], reached[:, :-1][real[:, 1:]])
        assert torch.equal(episode.rewards[real], (reached == goals[:, None]).float()[real])


@for_all_pairs
def test_frozen_episodes_learn_nothing(source: Source, tasks: TaskDistribution) -> None:
    learners, interrupted = (source.start(tasks, TASK_IDS, seed=0) for _ in range(2))
    for expected in play(learners, 6):
        for _ in range(2):
            interrupted.episode(frozen=True)
        assert equal(interrupted.episode(), expected)


@for_room_sources
def test_episodes_end_at_the_goal(source: Source) -> None:
    learners = source.start(ROOMS["ending"], np.arange(20), seed=1)
    episodes = play(learners, 4)
    assert any(episode.terminated.any() for episode in episodes)
    for episode in episodes:
        real = real_steps(episode)
        paid = (episode.rewards > 0) & real
        assert torch.equal(paid.any(1), episode.terminated)
        assert torch.equal(episode.returns, episode.terminated.float())
        first_paid = paid.float().argmax(1)
        ends = torch.where(episode.terminated, first_paid + 1, 20)
        assert torch.equal(ends, episode.num_steps)


class PoisonedBatch(DarkRoomBatch):
    """Pays a fortune in the corner to whoever goes on after the end of an episode."""

    def reset(self, where: torch.Tensor | None = None) -> torch.Tensor:
        self._over = torch.zeros_like(self.state, dtype=torch.bool)
        return super().reset(where)

    def advance(self, actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        rewards, terminated, truncated = super().advance(actions)
        rewards = torch.where(self._over, 1000.0, rewards)
        self.state = torch.where(self._over, 0, self.state)
        self._over = self._over | terminated
        return rewards, terminated, truncated


class PoisonedRoom(DarkRoom):
    """Dark Room whose padding is a trap."""

    def batch(self, task_ids: np.ndarray, *, seed: int, device: torch.device | str = "cpu") -> PoisonedBatch:
        return PoisonedBatch(self, np.asarray(task_ids), seed=seed, device=device)


@for_room_sources
def test_padding_is_not_learned_from(source: Source) -> None:
    ids = np.arange(20)
    poisoned_room = PoisonedRoom(**ROOM, termination="at_goal")
    learners, poisoned = (source.start(room, ids, seed=0) for room in (ROOMS["ending"], poisoned_room))
    for one, other in zip(play(learners, 12), play(poisoned, 12), strict=True):
        real = real_steps(one)
        assert torch.equal(one.num_steps, other.num_steps)
        for name in ("observations", "actions", "rewards"):
            assert torch.equal(vars(one)[name][real], vars(other)[name][real])


@pytest.mark.parametrize(
    ("source", "settings"),
    [
        (QLearning, {"num_episodes": 0}),
        (QLearning, {"learning_rate": 1.5}),
        (QLearning, {"discount": -0.1}),
        (QLearning, {"epsilon_start": 2}),
        (QLearning, {"epsilon_end": -1}),
        (QLearning, {"epsilon_fraction": 1.01}),
        (Explorer, {"num_episodes": -2}),
        (Explorer, {"num_sweeps": 0}),
        (Explorer, {"discount": 1.2}),
        (Explorer, {"optimism": 0.0}),
        (Explorer, {"optimism": 7}),
        (A2C, {"num_episodes": 0}),
        (A2C, {"num_actors": 0}),
        (A2C, {"rollout_steps": -1}),
        (A2C, {"num_layers": 0}),
        (A2C, {"hidden_size": 0}),
        (A2C, {"learning_rate": 0.0}),
        (A2C, {"learning_rate": float("nan")}),
        (A2C, {"discount": 1.5}),
        (A2C, {"return_lambda": -0.5}),
        (A2C, {"entropy_weight": -0.01}),
        (A2C, {"value_weight": -2}),
        (A2C, {"adam_betas": [0.9, 1.0]}),
        (A2C, {"adam_betas": [0.9]}),
        (A2C, {"adam_epsilon": 0.0}),
        (A2C, {"max_gradient_norm": 0.0}),
        (UCB, {"num_episodes": 0}),
        (UCB, {"confidence": -0.1}),
        (UCB, {"confidence": float("inf")}),
        (ThompsonSampling, {"num_episodes": -1}),
        (NoiseAnnealed, {"num_episodes": 0}),
        (NoiseAnnealed, {"epsilon_start": 1.1}),
        (NoiseAnnealed, {"epsilon_end": -0.5}),
        (NoiseAnnealed, {"epsilon_fraction": 2}),
        (NoiseAnnealed, {"schedule": "square"}),
        (NoiseAnnealed, {"anneal_every": "day"}),
    ],
)
def test_bad_settings_are_named(source: type, settings: dict) -> None:
    ((name, value),) = settings.items()
    shown = str(value).replace("[", r"\[").replace("0.0", r"0(\.0)?")
    with pytest.raises(ValueError, match=f"{name}.*{shown}"):
        source(**{"num_episodes": 10} | settings)


@for_all_pairs
def test_no_tasks_or_unknown_tasks_are_refused(source: Source, tasks: TaskDistribution) -> None:
    for ids in ([], [20]):
        with pytest.raises(ValueError, match="task ids"):
            source.start(tasks, np.array(ids, dtype=int), seed=0)
