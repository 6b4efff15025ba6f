"""Noise that fades: its schedules by hand, how often it strikes, and any kind of action."""

import numpy as np
import pytest
import torch

from distillery.core.records import EpisodeBatch, Transition
from distillery.core.seeding import torch_generator
from distillery.core.specs import SOLE, Box, Discrete, Space, TaskSpec
from distillery.sources.noise_annealed import NoiseAnnealed
from distillery.tasks.adversarial_bandit import AdversarialBandit
from distillery.tasks.base import TaskBatch, TaskDistribution
from distillery.tasks.dark_key_to_door import DarkKeyToDoor
from distillery.tasks.dark_room import DarkRoom


class TargetBatch(TaskBatch):
    """Pays for what is close to the task's own target; two numbers are seen, a draw and the time."""

    can_terminate = False

    def __init__(self, spec: TaskSpec, task_ids: np.ndarray, seed: int) -> None:
        self.spec, self.task_ids = spec, torch.as_tensor(task_ids)
        self._generator = torch_generator(seed, "target")
        self._elapsed = torch.zeros(len(task_ids))

    def _observe(self) -> torch.Tensor:
        draws = torch.rand(len(self.task_ids), generator=self._generator)
        return torch.stack([draws, self._elapsed], 1)

    def reset(self, where: torch.Tensor | None = None) -> torch.Tensor:
        self._elapsed = torch.zeros_like(self._elapsed)
        return self._observe()

    def oracle_actions(self) -> torch.Tensor:
        best = (self.task_ids % 2)[:, None].repeat(1, self.spec.action.width)
        return best.to(self.spec.action_dtype)

    def step(self, actions: torch.Tensor) -> Transition:
        rewards = -(actions - self.oracle_actions()).abs().float().sum(1)
        self._elapsed = self._elapsed + 1
        ended = self._elapsed >= self.spec.episode_steps
        return Transition(self._observe(), rewards, torch.zeros_like(ended), ended)


class Targets(TaskDistribution):
    """Four tasks with several numbers as an action."""

    def __init__(self, action: Space) -> None:
        super().__init__(num_validation=1, num_held_out=1, split_seed=0)
        self.spec = TaskSpec({SOLE: Box((2,), 0.0, 100.0)}, action, 5)
        self.num_tasks = 4

    def batch(self, task_ids: np.ndarray, *, seed: int, device: torch.device | str = "cpu") -> TargetBatch:
        return TargetBatch(self.spec, np.asarray(task_ids), seed)

    def oracle_returns(self) -> np.ndarray:
        return np.zeros(4)


def test_schedules_by_hand() -> None:
    def epsilons(schedule: str, **settings) -> list[float]:
        source = NoiseAnnealed(num_episodes=10, epsilon_fraction=0.8, schedule=schedule, **settings)
        return [source.epsilon(episode, step, 4) for episode, step in ((0, 0), (2, 0), (4, 2), (8, 0), (9, 3))]

    assert epsilons("linear") == pytest.approx([1.0, 0.75, 0.4375, 0.0, 0.0])
    assert epsilons("linear", anneal_every="episode") == pytest.approx([1.0, 0.75, 0.5, 0.0, 0.0])
    assert epsilons("linear", epsilon_start=0.6, epsilon_end=0.2) == pytest.approx([0.6, 0.5, 0.375, 0.2, 0.2])
    halving = epsilons("exponential", epsilon_end=1 / 16)
    assert halving == pytest.approx([1.0, 0.5, 2**-2.25, 1 / 16, 1 / 16])
    cosine = epsilons("cosine")
    assert cosine == pytest.approx([1.0, 0.5 + 0.5**1.5, 0.5 - 0.5 * np.sin(np.pi / 16), 0.0, 0.0])


def test_a_schedule_of_no_length_is_over_at_once() -> None:
    assert NoiseAnnealed(num_episodes=3, epsilon_fraction=0.0, epsilon_end=0.1).epsilon(0, 0, 20) == pytest.approx(0.1)


@pytest.mark.parametrize(("start", "end"), [(1.0, 0.0), (0.0, 0.5)])
def test_no_factor_leads_to_nothing(start: float, end: float) -> None:
    with pytest.raises(ValueError, match=f"epsilon_start={start}.*epsilon_end={end}.*linear"):
        NoiseAnnealed(num_episodes=5, schedule="exponential", epsilon_start=start, epsilon_end=end)


def deviations(room: DarkRoom, episode: EpisodeBatch, task_ids: np.ndarray) -> torch.Tensor:
    """(T,) share of actions that are not the oracle's."""
    return (episode.actions != room.expert_actions(episode, task_ids)).float().mean(0)


@pytest.mark.parametrize("epsilon", [1.0, 0.4])
def test_epsilon_is_the_chance_of_a_random_action(epsilon: float) -> None:
    room, task_ids = DarkRoom(), np.tile(np.arange(81), 250)
    source = NoiseAnnealed(num_episodes=1, epsilon_start=epsilon, epsilon_end=epsilon)
    episode = source.start(room, task_ids, seed=0).episode()
    # One of five random actions is the oracle's.
    torch.testing.assert_close(
        deviations(room, episode, task_ids), torch.full((20,), 0.8 * epsilon), atol=0.015, rtol=0.0
    )


def test_noise_fades_within_an_episode_or_only_between() -> None:
    room, task_ids = DarkRoom(), np.tile(np.arange(81), 250)
    settings = {"num_episodes": 2, "epsilon_fraction": 1.0}
    by_step = [deviations(room, e, task_ids) for e in NoiseAnnealed(**settings).run(room, task_ids, seed=0)]
    expected = 0.8 * (1 - torch.arange(40) / 40)
    torch.testing.assert_close(torch.cat(by_step), expected, atol=0.015, rtol=0.0)
    source = NoiseAnnealed(**settings, anneal_every="episode")
    by_episode = [deviations(room, e, task_ids).mean().item() for e in source.run(room, task_ids, seed=0)]
    assert by_episode == pytest.approx([0.8, 0.4], abs=0.01)


@pytest.mark.parametrize(
    "tasks",
    [
        DarkRoom(),
        DarkRoom(num_action_permutations=5),
        DarkKeyToDoor(termination="at_door"),
        AdversarialBandit(num_train=50, num_validation=1, num_held_out=1),
    ],
    ids=["room", "permuted", "door", "bandit"],
)
def test_histories_rise_from_the_random_level_to_the_oracle(tasks: TaskDistribution) -> None:
    task_ids = np.resize(tasks.task_ids("train"), 400)
    returns = torch.stack(
        [e.returns for e in NoiseAnnealed(num_episodes=20).run(tasks, task_ids, seed=0)], 1
    )  # (E, N)
    oracle = tasks.oracle_returns()[task_ids].mean()
    assert returns[:, 0].mean() < 0.6 * oracle
    assert returns[:, -2:].mean().item() == pytest.approx(oracle, rel=0.01)
    quarters = returns.view(400, 4, 5).mean((0, 2))
    assert (quarters.diff() > 0).all()


def test_frozen_episodes_have_the_last_noise() -> None:
    room, task_ids = DarkRoom(), np.tile(np.arange(81), 100)
    learners = NoiseAnnealed(num_episodes=5).start(room, task_ids, seed=0)
    np.testing.assert_array_equal(learners.episode(frozen=True).returns.numpy(), room.oracle_returns()[task_ids])
    learners = NoiseAnnealed(num_episodes=5, epsilon_end=0.5).start(room, task_ids, seed=0)
    frozen = learners.episode(frozen=True)
    assert deviations(room, frozen, task_ids).mean().item() == pytest.approx(0.4, abs=0.01)
    assert not torch.equal(frozen.actions, learners.episode(frozen=True).actions)


@pytest.mark.parametrize("action", [Box((3,), -1.0, 3.0), Discrete((2, 5, 2))], ids=["continuous", "several"])
def test_any_kind_of_action(action: Space) -> None:
    tasks, task_ids = Targets(action), np.tile(np.arange(4), 200)
    episodes = list(NoiseAnnealed(num_episodes=8, epsilon_fraction=0.75).run(tasks, task_ids, seed=0))
    again = list(NoiseAnnealed(num_episodes=8, epsilon_fraction=0.75).run(tasks, task_ids, seed=0))
    assert all(torch.equal(one.actions, other.actions) for one, other in zip(episodes, again, strict=True))
    first, last = episodes[0], episodes[-1]
    assert first.actions.shape == (800, 5, 3)
    assert first.actions.numpy().dtype == action.stored_dtype
    best = torch.as_tensor(task_ids % 2)[:, None, None].expand(800, 5, 3)
    assert torch.equal(last.actions.long(), best)
    assert (last.returns == 0).all()
    # All numbers of an action are random together, or none is.
    touched = (first.actions != best).any(-1)
    if isinstance(action, Box):
        assert torch.equal(touched, (first.actions != best).all(-1))
        assert -1 <= first.actions.min() < -0.9
        assert 2.9 < first.actions.max() <= 3
    assert touched.float().mean() > 0.8


def test_a_family_without_an_oracle_is_refused() -> None:
    class Clueless(TargetBatch):
        oracle_actions = TaskBatch.oracle_actions

    class CluelessTargets(Targets):
        def batch(self, task_ids: np.ndarray, *, seed: int, device: torch.device | str = "cpu") -> TargetBatch:
            return Clueless(self.spec, np.asarray(task_ids), seed)

    learners = NoiseAnnealed(num_episodes=2).start(CluelessTargets(Box((1,), 0.0, 1.0)), np.array([0]), seed=0)
    with pytest.raises(ValueError, match="Clueless knows no best actions"):
        learners.episode()


# A policy that was learned


def noisy_q_learning(**settings) -> NoiseAnnealed:
    q_learning = {"_target_": "distillery.sources.q_learning.QLearning", "num_episodes": 60, "initial_value": 0.05}
    return NoiseAnnealed(**{"num_episodes": 20, "policy": q_learning, **settings})


def test_a_learned_policy_plays_better_as_its_noise_fades():
    room = DarkRoom(width=5, height=5, episode_steps=8, num_validation=2, num_held_out=2)
    ids = room.task_ids("train")
    episodes = list(noisy_q_learning().run(room, ids, seed=0))
    returns = torch.stack([episode.returns for episode in episodes], 1).mean(0)
    assert returns[-3:].mean() > 0.9 * room.oracle_returns()[ids].mean()
    assert returns[:3].mean() < 0.5 * returns[-3:].mean()
    random = NoiseAnnealed(num_episodes=3, epsilon_end=1.0)
    drawn = torch.stack([episode.returns for episode in random.run(room, ids, seed=0)], 1).mean(0)
    assert abs(float(returns[0] - drawn.mean())) < 0.6


def test_the_actions_told_are_those_that_moved_the_environment():
    room = DarkRoom(width=5, height=5, episode_steps=8, num_validation=2, num_held_out=2)
    ids = room.task_ids("train")
    episode = next(iter(noisy_q_learning(epsilon_end=0.5).run(room, ids, seed=1)))
    batch = room.batch(ids, seed=0)
    seen = batch.reset()
    for step in range(8):
        assert torch.equal(episode.observations[:, step].long(), seen.long())
        transition = batch.step(episode.actions[:, step].long())
        assert torch.equal(episode.rewards[:, step], transition.rewards)
        seen = transition.observations


def test_noise_strikes_as_often_as_it_should_and_never_while_the_policy_learns():
    room = DarkRoom(width=5, height=5, episode_steps=8, num_validation=2, num_held_out=2)
    ids = np.repeat(room.task_ids("train"), 20)
    still = noisy_q_learning(epsilon_start=0.0).start(room, ids, seed=0)
    noisy = noisy_q_learning(epsilon_start=0.5, epsilon_end=0.5).start(room, ids, seed=0)
    one, other = still.episode().actions[:, 0], noisy.episode().actions[:, 0]
    # Of five actions, one in five that are drawn is the policy's own.
    assert abs(float((one != other).float().mean()) - 0.5 * 0.8) < 0.06


def test_frozen_episodes_leave_a_history_as_it_is():
    room = DarkRoom(width=5, height=5, episode_steps=8, start="random", num_validation=2, num_held_out=2)
    ids = room.task_ids("train")
    plain, watched = (noisy_q_learning().start(room, ids, seed=3) for _ in range(2))
    for _ in range(3):
        watched.episode(frozen=True)
        one, other = plain.episode(), watched.episode()
        assert torch.equal(one.actions, other.actions) and torch.equal(one.observations, other.observations)


@pytest.mark.parametrize("policy", ["ppo.PPO", "dqn.DQN"])
def test_any_source_can_be_the_policy(policy):
    room = DarkRoom(width=5, height=5, episode_steps=8, num_validation=2, num_held_out=2)
    settings = {"_target_": f"distillery.sources.{policy}", "num_episodes": 2}
    episodes = list(NoiseAnnealed(num_episodes=3, policy=settings).run(room, room.task_ids("train"), seed=0))
    assert len(episodes) == 3 and torch.isfinite(episodes[-1].returns).all()


def test_a_policy_that_is_no_source_is_refused():
    with pytest.raises(ValueError, match="policy must be a source of distillery.sources, got _target_='os.system'"):
        NoiseAnnealed(num_episodes=3, policy={"_target_": "os.system"})
