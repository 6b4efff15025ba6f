"""The explorer wastes no step, learns at the known speed, and ends at the oracle."""

import numpy as np
import pytest
import torch

from distillery.sources.a2c import A2C
from distillery.sources.base import Source
from distillery.sources.explorer import Explorer
from distillery.sources.q_learning import QLearning
from distillery.tasks.adversarial_bandit import AdversarialBandit
from distillery.tasks.dark_key_to_door import DarkKeyToDoor
from distillery.tasks.dark_room import DarkRoom, DarkRoomBatch


def test_the_first_episode_enters_a_new_cell_whenever_one_is_near() -> None:
    room = DarkRoom(width=31, height=31)  # the goal, a corner, is out of reach
    learners = Explorer(num_episodes=1).start(room, np.zeros(200, dtype=int), seed=0)
    episode = learners.episode()
    x, y = episode.observations.long().unbind(-1)
    states, actions = (x + 31 * y).numpy(), episode.actions.long().numpy()
    num_cornered = 0
    for learner in range(len(states)):
        entered: set[int] = set()  # the first cell counts once a step has ended on it
        for state, action in zip(states[learner], actions[learner], strict=True):
            reached = room.next_state[state, action]
            if set(room.next_state[state]) <= entered:
                num_cornered += 1
            else:
                assert reached not in entered
            entered.add(reached)
    assert num_cornered < 0.02 * states.size


def test_later_episodes_make_for_what_is_left() -> None:
    room = DarkRoom(width=3, height=3, num_validation=1, num_held_out=1, episode_steps=4)
    learners = Explorer(num_episodes=3).start(room, np.zeros(100, dtype=int), seed=0)
    episodes = [learners.episode() for _ in range(5)]
    # Nine cells at four steps a time: whoever never goes where it has been, but to start again, is through in four.
    assert (episodes[-1].returns > 0).all()


def test_the_curve_of_the_published_room() -> None:
    room = DarkRoom()
    task_ids = np.tile(np.arange(81), 20)
    returns = [episode.returns.mean().item() for episode in Explorer(num_episodes=12).run(room, task_ids, seed=0)]
    assert returns[:3] == pytest.approx([2.5, 6.7, 10.4], abs=0.4)
    oracle = room.oracle_returns().mean()
    assert returns[:6] == sorted(returns[:6])
    assert returns[9:] == pytest.approx([oracle] * 3, abs=1e-3)


@pytest.mark.parametrize("settings", [{"reward": "once"}, {"termination": "at_goal"}, {"walls": "wrap"}])
def test_it_reaches_the_oracle_in_every_variant(settings: dict) -> None:
    room = DarkRoom(**settings)
    learners = Explorer(num_episodes=12).start(room, np.arange(81), seed=0)
    for _ in range(12):
        learners.episode()
    expected = torch.as_tensor(room.oracle_returns(), dtype=torch.float32)
    for frozen in (False, True):
        torch.testing.assert_close(learners.episode(frozen=frozen).returns, expected)


def test_a_goal_that_pays_once_is_remembered() -> None:
    learners = Explorer(num_episodes=3).start(DarkRoom(reward="once"), np.array([40]), seed=0)
    ones, zeros = torch.ones(1), torch.zeros(1)
    goal, stay, right = torch.tensor([40]), torch.tensor([4]), torch.tensor([1])
    for reward in (ones, zeros):
        learners._learn(goal, stay, reward, goal, zeros.bool(), None)
    assert learners._rewards[40].item() == 1.0
    learners._learn(goal, right, zeros, torch.tensor([41]), zeros.bool(), None)
    assert learners._rewards[41].item() == 0.0


def test_it_learns_where_the_key_leads_and_leaves_other_states_alone() -> None:
    room = DarkKeyToDoor(width=3, height=3, num_train=None, num_validation=1, num_held_out=1)
    learners = Explorer(num_episodes=1).start(room, np.array([4, 4]), seed=0)
    # The first learner walks from cell 3 onto the key in 4, the second from 3 into the wall.
    states, actions, rewards = torch.tensor([3, 3]), torch.tensor([1, 0]), torch.tensor([1.0, 0.0])
    over = torch.zeros(2, dtype=torch.bool)
    learners._learn(states, actions, rewards, torch.tensor([4 + 9, 3]), over, None)
    assert learners._arrival is not None
    expected = torch.arange(27)[:, None].repeat(1, 2)
    expected[4, 0] = 4 + 9
    assert torch.equal(learners._arrival, expected)
    assert learners._rewards[4].tolist() == pytest.approx([1.0, 0.1])
    assert learners._rewards[3].tolist() == pytest.approx([0.1, 0.0])
    # Whoever was through before is not listened to.
    learners._learn(states, actions, rewards, torch.tensor([20, 20]), over, torch.tensor([False, False]))
    assert torch.equal(learners._arrival, expected)


def test_worth_flows_back_through_the_key() -> None:
    room = DarkKeyToDoor(width=3, height=1, num_train=None, num_validation=1, num_held_out=1)
    source = Explorer(num_episodes=1, discount=0.5, optimism=0.25, num_sweeps=100)
    learners = source.start(room, np.array([2]), seed=0)  # the key at the right
    over = torch.zeros(1, dtype=torch.bool)
    for state, action, reward, reached in ((0, 4, 0.0, 0), (0, 1, 0.0, 1), (1, 1, 1.0, 5)):
        one = (torch.tensor([state]), torch.tensor([action]), torch.tensor([reward]), torch.tensor([reached]))
        learners._learn(*one, over, None)
    learners._plan()
    # With the key nothing is known: 0.25 + 0.125 + ... = 0.5. To the key, 1 + 0.5 * 0.5; one step before, half of it.
    torch.testing.assert_close(learners._values[:6, 0], torch.tensor([0.625, 1.25, 1.25, 0.5, 0.5, 0.5]))


def test_the_curve_of_key_and_door() -> None:
    room = DarkKeyToDoor()
    task_ids = np.random.default_rng(0).choice(room.num_tasks, 200, replace=False)
    learners = Explorer(num_episodes=6, optimism=0.02).start(room, task_ids, seed=0)
    returns = torch.stack([learners.episode().returns for _ in range(6)])
    assert returns.mean(1)[:3].tolist() == pytest.approx([0.75, 1.55, 1.9], abs=0.1)
    assert returns[4:].mean() > 1.995
    assert learners.episode(frozen=True).returns.mean() > 1.995


def test_without_drawn_ties_what_a_learner_does_follows_from_what_it_has_seen() -> None:
    room = DarkRoom(reward="once")
    task_ids = np.arange(81)
    first, again, drawn = (
        torch.stack([e.actions for e in Explorer(num_episodes=12, tie_break=tie_break).run(room, task_ids, seed=seed)])
        for tie_break, seed in (("first", 0), ("first", 1), ("random", 0))
    )
    assert torch.equal(first, again)  # every episode of this room starts in its centre
    assert not torch.equal(first, drawn)
    assert (first[0, :, 0] == 0).all()  # all is unseen: the lowest action
    learners = Explorer(num_episodes=12, tie_break="first").start(room, task_ids, seed=0)
    for _ in range(12):
        learners.episode()
    assert learners.episode(frozen=True).returns.min() == 1.0


def test_each_learner_keeps_an_order_of_its_own() -> None:
    room = DarkRoom(reward="once")
    task_ids = np.repeat(np.arange(81), 5)
    learners = Explorer(num_episodes=12, tie_break="kept").start(room, task_ids, seed=0)
    episodes = [learners.episode() for _ in range(12)]
    first = episodes[0].actions[:, 0]
    assert first.unique().tolist() == [0, 1, 2, 3, 4]  # all is unseen: the one that each likes best
    orders = learners._preference.argsort(1, descending=True)
    assert torch.equal(orders[:, 0], first.long())
    assert len({tuple(order) for order in orders.tolist()}) > 80  # of 120
    assert learners.episode(frozen=True).returns.min() == 1.0


def test_no_arrivals_are_learned_where_moves_lead_where_they_should() -> None:
    learners = Explorer(num_episodes=2).start(DarkRoom(termination="at_goal"), np.arange(81), seed=0)
    for _ in range(2):
        learners.episode()
    assert learners._arrival is None


def test_means_and_bonuses_worked_by_hand() -> None:
    source = Explorer(num_episodes=1, bonus="visit", bonus_weight=0.6, optimism=0.5)
    learners = source.start(DarkRoom(), np.array([40, 40]), seed=0)
    assert learners._rewards[41].tolist() == pytest.approx([1.1, 1.1])
    states, actions, over = torch.full((2,), 40), torch.full((2,), 1), torch.zeros(2, dtype=torch.bool)
    for reward in (1.0, 0.0, 0.0, 1.0):
        alive = torch.tensor([True, reward == 1.0])
        learners._learn(states, actions, torch.full((2,), reward), torch.full((2,), 41), over, alive)
    # Means 1/2 of four visits and 1 of two, with bonuses 0.6 / 2 and 0.6 / sqrt(2).
    assert learners._rewards[41].tolist() == pytest.approx([0.8, 1.4242640])


def test_bonuses_find_the_best_arm_of_a_bandit() -> None:
    bandit = AdversarialBandit(num_train=300)
    task_ids = bandit.task_ids("train")
    settings = {"num_episodes": 1, "reward_of": "action", "optimism": 1.0}
    with_bonus, without = (
        Explorer(**settings, bonus=bonus).start(bandit, task_ids, seed=0).episode().returns.mean().item()
        for bonus in ("visit", None)
    )
    oracle = bandit.oracle_returns()[task_ids].mean()
    assert with_bonus > 0.88 * oracle
    assert with_bonus > 1.1 * without


def test_moves_that_are_not_shared_are_learned() -> None:
    room = DarkRoom(num_action_permutations=120, num_train=None, num_validation=40, num_held_out=80)
    task_ids = np.random.default_rng(0).choice(room.num_tasks, 200, replace=False)
    learners = Explorer(num_episodes=35, optimism=0.8).start(room, task_ids, seed=0)
    returns = np.stack([learners.episode().returns.numpy() for _ in range(35)], 1)
    parts = returns / room.oracle_returns()[task_ids, None]
    assert parts[:, -5:].mean() > 0.97 and (parts[:, -5:].mean(1) > 0.5).all()
    by_q_learning = QLearning(num_episodes=35, initial_value=20.0).run(room, task_ids, seed=0)
    assert parts.mean() > 1.3 * np.mean(
        [(episode.returns.numpy() / room.oracle_returns()[task_ids]).mean() for episode in by_q_learning]
    )
    # What is taken to be known of the moves is so; what is not, is not read off the room.
    tried = learners._rewards != np.float32(0.8)
    truth = torch.as_tensor(room.next_state[np.arange(81)[:, None, None], room.permutations[task_ids // 81].T[None]])
    own = torch.arange(81).repeat_interleave(5)[:, None].expand_as(tried)
    assert torch.equal(learners._leads, torch.where(tried, truth.flatten(0, 1), own))


@pytest.mark.parametrize(
    "source",
    [Explorer(num_episodes=1), QLearning(num_episodes=1), A2C(num_episodes=1)],
    ids=lambda x: type(x).__name__,
)
def test_tasks_without_numbered_states_are_refused(source: Source) -> None:
    class Unnumbered(DarkRoom):
        def batch(self, task_ids: np.ndarray, *, seed: int, device: torch.device | str = "cpu") -> DarkRoomBatch:
            batch = super().batch(task_ids, seed=seed, device=device)
            del batch.next_state
            return batch

    with pytest.raises(ValueError, match="DarkRoomBatch.*ppo, dqn or noise_annealed"):
        source.start(Unnumbered(), np.array([3]), seed=0)


@pytest.mark.parametrize(
    "settings", [{"bonus": "count"}, {"bonus_weight": -1.0}, {"reward_of": "state"}, {"tie_break": "last"}]
)
def test_bad_settings_are_named(settings: dict) -> None:
    ((name, value),) = settings.items()
    with pytest.raises(ValueError, match=f"{name}.*{value}"):
        Explorer(num_episodes=1, **settings)
