"""Foreign environments as tasks: step by step against a plain loop over the raw ones, varied physics, splits."""

import math

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit

from distillery.core.rollouts import play_episode, random_actions
from distillery.core.seeding import numpy_generator, torch_generator
from distillery.core.specs import Box, Discrete
from distillery.tasks.gymnasium_family import GymnasiumBatch, GymnasiumFamily
from distillery.tasks.variations import draw_variations

FEW = {"num_train": 4, "num_validation": 1, "num_held_out": 1}
CARTPOLE = {
    "env_id": "CartPole-v1",
    "best_return": 40,
    "episode_steps": 40,
    "variations": {
        "gravity": {"low": 5.0, "high": 15.0},
        "masspole": {"low": 0.05, "high": 0.5},
        "length": {"low": 0.3, "high": 1.0},
        "tau": {"low": 0.01, "high": 0.04},
        "force_mag": [-10.0, 10.0],
    },
}
FAMILIES = {
    "cartpole": CARTPOLE,
    "pendulum": {
        "env_id": "Pendulum-v1",
        "best_return": 1,
        "episode_steps": 15,
        "variations": {"g": {"low": 5.0, "high": 12.0}, "m": [0.5, 1.5]},
    },
    "frozen_lake": {
        "env_id": "FrozenLake-v1",
        "best_return": 1,
        "episode_steps": 12,
        "make": {"map_name": "8x8"},
        "variations": {"success_rate": {"low": 0.3, "high": 0.9}},
    },
    "acrobot": {
        "env_id": "Acrobot-v1",
        "best_return": 1,
        "episode_steps": 15,
        "variations": {"AVAIL_TORQUE": [[-1.0, 0.0, 1.0], [1.0, 0.0, -1.0]], "LINK_MASS_1": [0.8, 1.0, 1.2]},
    },
    "taxi": {"env_id": "Taxi-v4", "best_return": 20, "episode_steps": 9, "fixed_reset_seed": True},
}
for_all_families = pytest.mark.parametrize("settings", FAMILIES.values(), ids=FAMILIES.keys())


class Stopper(gymnasium.Env):
    """Ends after so many steps, by truncation of its own or by termination; shows how many are left."""

    observation_space = spaces.Discrete(100)
    action_space = spaces.Discrete(3)

    def __init__(self, lasts: int = 3, terminates: bool = True, num_actions: int = 3) -> None:
        self.lasts, self.terminates = lasts, terminates
        self.action_space = spaces.Discrete(num_actions)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left, self.num_steps_taken = self.lasts, 0
        return self.left, {}

    def step(self, action):
        assert self.left > 0, "stepped beyond its end"
        self.left -= 1
        over = self.left == 0
        return self.left, 1.0, over and self.terminates, over and not self.terminates, {}


gymnasium.register("distillery_tests/Stopper-v0", entry_point=Stopper)
STOPPER = {"env_id": "distillery_tests/Stopper-v0", "best_return": 5, "episode_steps": 5}


def raw_env(family: GymnasiumFamily, settings: dict, task_id: int) -> gymnasium.Env:
    """The task without any of our code, physics set by hand."""
    varied = family.variations[task_id]
    made = {"success_rate"} & set(varied)
    arguments = settings.get("make", {}) | {name: varied[name] for name in made}
    env = gymnasium.make(settings["env_id"], max_episode_steps=settings["episode_steps"], **arguments)
    assert isinstance(env, TimeLimit)
    for name in set(varied) - made:
        setattr(env.unwrapped, name, varied[name])
    if settings["env_id"] == "CartPole-v1":
        env.unwrapped.total_mass = varied["masspole"] + 1.0
        env.unwrapped.polemass_length = varied["masspole"] * varied["length"]
    return env


@for_all_families
def test_every_transition_is_the_raw_environments(settings: dict) -> None:
    family = GymnasiumFamily(**settings, **FEW)
    task_ids = np.array([0, 3, 3, 5])
    batch = family.batch(task_ids, seed=7)
    seeds = numpy_generator(7, "gymnasium").integers(2**31, size=4).tolist()
    raw = [raw_env(family, settings, task_id) for task_id in task_ids]
    fixed = family.reset_seeds
    if fixed is not None:
        seeds = [int(fixed[task_id]) for task_id in task_ids]
    observations = batch.reset()
    expected = [env.reset(seed=seed)[0] for env, seed in zip(raw, seeds, strict=True)]
    generator, num_ends = torch_generator(0, "actions"), np.zeros(2, int)
    for _ in range(70):
        for row, observation in zip(observations, expected, strict=True):
            np.testing.assert_array_equal(row.numpy(), np.ravel(observation))
        actions = random_actions(batch, generator)
        after = batch.step(actions)
        ended = (after.terminated | after.truncated).tolist()
        for slot, env in enumerate(raw):
            action = actions[slot].numpy() if batch.spec.action_shape else int(actions[slot])
            observation, reward, terminated, truncated, _ = env.step(action)
            np.testing.assert_array_equal(after.observations[slot].numpy(), np.ravel(observation))
            assert after.rewards[slot].item() == np.float32(reward)
            assert after.terminated[slot].item() == terminated
            assert after.truncated[slot].item() == (truncated and not terminated)
            num_ends += [terminated, truncated]
            if terminated or truncated:
                observation, _ = env.reset(seed=None if fixed is None else seeds[slot])
            expected[slot] = observation
        observations = batch.reset(torch.tensor(ended)) if any(ended) else after.observations
    assert num_ends.sum() >= 4
    if settings["env_id"] in ("CartPole-v1", "FrozenLake-v1"):
        assert num_ends[0] > 0


def test_episodes_of_other_lengths_become_one_record() -> None:
    family = GymnasiumFamily(**CARTPOLE, **FEW)
    batch = family.batch(np.array([0, 1, 2, 3, 4, 4]), seed=0)
    generator = torch_generator(0, "actions")
    seen = []
    episode = play_episode(
        batch,
        lambda step, observations: torch.randint(2, (6,), generator=generator) if step > 3 else torch.ones(6).long(),
        lambda observations, actions, transition, alive: seen.append((alive, transition)),
    )
    assert episode.observations.shape == (6, 40, 4) and episode.observations.dtype == torch.float32
    assert episode.actions.dtype == torch.uint8
    lengths = torch.stack([alive for alive, _ in seen], 1).sum(1)
    assert torch.equal(episode.num_steps, lengths)
    assert len(set(lengths.tolist())) > 2
    assert torch.equal(episode.returns, lengths.float())
    angles = torch.stack([after.observations[:, 2] for _, after in seen], 1)  # (E, T)
    fallen = angles[torch.arange(6), lengths - 1].abs() > 12 * 2 * math.pi / 360
    assert torch.equal(episode.terminated, fallen) and fallen.any()
    assert torch.equal(episode.terminated, lengths < 40)
    # Padding stands still and pays nothing.
    padded = torch.arange(40) >= lengths[:, None]
    assert (episode.rewards[padded] == 0).all()
    for env in range(6):
        for step in range(int(lengths[env]), 39):
            assert torch.equal(seen[step][1].observations[env], seen[int(lengths[env]) - 1][1].observations[env])


def test_termination_at_the_last_step_is_termination() -> None:
    family = GymnasiumFamily(**STOPPER | {"make": {"lasts": 5}}, **FEW)
    episode = play_episode(family.batch(np.array([0, 1]), seed=0), lambda step, seen: torch.zeros(2).long())
    assert episode.terminated.all() and (episode.num_steps == 5).all()
    longer = GymnasiumFamily(**STOPPER | {"make": {"lasts": 6}}, **FEW)
    episode = play_episode(longer.batch(np.array([0, 1]), seed=0), lambda step, seen: torch.zeros(2).long())
    assert not episode.terminated.any() and (episode.num_steps == 5).all()
    assert episode.observations[0, :, 0].tolist() == [6, 5, 4, 3, 2]


def test_an_episode_cut_short_by_the_environment_is_refused() -> None:
    family = GymnasiumFamily(**STOPPER | {"make": {"terminates": False}}, **FEW)
    with pytest.raises(ValueError, match="cut an episode short after 3 of 5 steps"):
        play_episode(family.batch(np.array([0]), seed=0), lambda step, seen: torch.zeros(1).long())


def test_carts_obey_their_own_physics() -> None:
    family = GymnasiumFamily(**CARTPOLE, **FEW)
    batch = family.batch(np.arange(6), seed=0)
    batch.reset()
    start = np.array([0.1, -0.2, 0.05, 0.3])
    for env in batch.envs:
        env.unwrapped.state = start
    after = batch.step(torch.ones(6).long()).observations
    _, speed, angle, spin = start
    for env, varied in enumerate(family.variations):
        mass = varied["masspole"] + 1.0
        swing = varied["masspole"] * varied["length"]
        push = (varied["force_mag"] + swing * spin**2 * math.sin(angle)) / mass
        pull = varied["length"] * (4 / 3 - varied["masspole"] * math.cos(angle) ** 2 / mass)
        turn = (varied["gravity"] * math.sin(angle) - math.cos(angle) * push) / pull
        drive = push - swing * turn * math.cos(angle) / mass
        expected = start + varied["tau"] * np.array([speed, drive, spin, turn])
        np.testing.assert_allclose(after[env].numpy(), expected, rtol=1e-5)
    assert len(set(after[:, 1].tolist())) == 6


def test_a_varied_attribute_is_not_overwritten_by_its_derivation() -> None:
    family = GymnasiumFamily(**CARTPOLE | {"variations": {"total_mass": {"low": 2.0, "high": 3.0}}}, **FEW)
    env = family.make_env(2).unwrapped
    assert env.total_mass == family.variations[2]["total_mass"]
    assert env.polemass_length == env.masspole * env.length


def test_arguments_come_before_attributes() -> None:
    # FrozenLake works out its transitions when it is made; the attribute alone would change nothing.
    settings = {"env_id": "FrozenLake-v1", "best_return": 1, "variations": {"desc": [["SFG"], ["SHG"], ["SGG"]]}}
    family = GymnasiumFamily(**settings, num_train=1, num_validation=1, num_held_out=1)
    for task_id, varied in enumerate(family.variations):
        env = family.make_env(task_id).unwrapped
        ends = {entry[3] for entry in env.P[0][2]}
        assert ends == ({True, False} if varied["desc"] != ["SFG"] else {False})


def test_tasks_depend_on_settings_alone() -> None:
    first, again = (GymnasiumFamily(**CARTPOLE, **FEW).variations for _ in range(2))
    assert first == again
    assert first != GymnasiumFamily(**CARTPOLE, **FEW, split_seed=1).variations
    gravity = {"gravity": CARTPOLE["variations"]["gravity"]}
    alone = GymnasiumFamily(**CARTPOLE | {"variations": gravity}, **FEW).variations
    assert [task["gravity"] for task in alone] == [task["gravity"] for task in first]
    drawn = draw_variations(CARTPOLE["variations"], 500, seed=0, distinct=True)
    for name, values in CARTPOLE["variations"].items():
        column = [task[name] for task in drawn]
        low, high = (values["low"], values["high"]) if isinstance(values, dict) else (-10.0, 10.0)
        assert low <= min(column) < low + 0.05 * (high - low)
        assert high >= max(column) > high - 0.05 * (high - low)


def test_tasks_from_lists_are_all_different() -> None:
    lists = {"gravity": [1.0, 2.0, 3.0], "length": [0.1, 0.2]}
    drawn = draw_variations(lists, 6, seed=0, distinct=True)
    assert len({tuple(task.values()) for task in drawn}) == 6
    with pytest.raises(ValueError, match="6 combinations, too few for 7"):
        draw_variations(lists, 7, seed=0, distinct=True)
    assert len(draw_variations(lists, 7, seed=0, distinct=False)) == 7
    assert draw_variations({}, 2, seed=0, distinct=True) == [{}, {}]


def test_splits_and_oracle() -> None:
    family = GymnasiumFamily(**CARTPOLE, num_train=10, num_validation=2, num_held_out=3)
    splits = family.splits()
    assert [len(ids) for ids in splits.values()] == [10, 2, 3]
    assert sorted(np.concatenate(list(splits.values()))) == list(range(15))
    assert family.oracle_returns().tolist() == [40.0] * 15
    with pytest.raises(ValueError, match="knows no best actions"):
        family.batch(np.array([0]), seed=0).oracle_actions()


@pytest.mark.parametrize(
    "changes",
    [
        {"variations": {"gravity": {"low": 5.0, "high": 15.0}}},
        {
            "variations": {
                "gravity": [1.0 * gravity for gravity in range(1, 10)],
                "length": [0.1 * i for i in range(1, 8)],
            }
        },
        {"variations": {"gravity": {"low": 5.0, "high": 15.0}, "force_mag": [-10.0, 5.0, 10.0]}},
        {"variations": {"force_mag": [-10.0, 5.0, 10.0]}, "fixed_reset_seed": True},
    ],
    ids=("range", "lists", "both", "layouts"),
)
def test_held_out_tasks_do_not_depend_on_how_many_are_trained_on(changes: dict) -> None:
    few, many = (
        GymnasiumFamily(**CARTPOLE | changes, num_train=num_train, num_validation=8, num_held_out=8)
        for num_train in (16, 32)
    )

    def tasks(family: GymnasiumFamily, split: str) -> list[tuple]:
        seeds = np.zeros(family.num_tasks) if family.reset_seeds is None else family.reset_seeds
        return [(seeds[task], *family.variations[task].values()) for task in family.task_ids(split)]

    for split in ("held_out", "validation"):
        assert np.array_equal(few.task_ids(split), many.task_ids(split))
        assert tasks(few, split) == tasks(many, split)
        assert not set(tasks(few, split)) & set(tasks(many, "train"))
    assert not set(tasks(many, "held_out")) & set(tasks(many, "validation"))
    assert tasks(few, "train") == tasks(many, "train")[:16]
    assert len(set(tasks(many, "train"))) == 32


@pytest.mark.parametrize("fixed", [True, False])
def test_a_fixed_reset_seed_repeats_the_start(fixed: bool) -> None:
    family = GymnasiumFamily(env_id="Taxi-v4", best_return=20, fixed_reset_seed=fixed, **FEW)
    batch = family.batch(np.array([0, 0, 1, 2]), seed=0)
    starts = torch.stack([batch.reset() for _ in range(8)])[..., 0]  # (8, E)
    assert (len(set(starts[:, 0].tolist())) == 1) == fixed
    assert torch.equal(starts[:, 0], starts[:, 1]) == fixed
    if fixed:
        assert torch.equal(family.batch(np.array([0, 0, 1, 2]), seed=9).reset()[:, 0], starts[0])
        assert len(set(starts[0].tolist())) == 3


@for_all_families
def test_a_batch_repeats_from_its_seed(settings: dict) -> None:
    family = GymnasiumFamily(**settings, **FEW)

    def rollout(seed: int) -> list[torch.Tensor]:
        batch, generator = family.batch(np.array([0, 1, 2]), seed=seed), torch_generator(0, "actions")
        episodes = [play_episode(batch, lambda *_: random_actions(batch, generator)) for _ in range(3)]
        return [value for episode in episodes for value in vars(episode).values()]

    first, again, other = rollout(0), rollout(0), rollout(1)
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))
    if not settings.get("fixed_reset_seed"):
        assert not all(torch.equal(*pair) for pair in zip(first, other, strict=True))


def test_environments_can_be_given_other_tasks() -> None:
    family = GymnasiumFamily(**CARTPOLE, **FEW)
    batch = family.batch(np.array([0, 1, 2]), seed=0)
    batch.reset()
    kept = batch.envs[:2]
    where = torch.tensor([False, True, True])
    batch.assign(torch.tensor([5, 1, 4]), where)
    batch.reset(where)
    assert batch.task_ids.tolist() == [0, 1, 4]
    assert batch.envs[:2] == kept
    for env, task_id in zip(batch.envs, (0, 1, 4), strict=True):
        assert env.unwrapped.gravity == family.variations[task_id]["gravity"]
    batch.step(torch.zeros(3).long())


def test_rewards_are_shifted_and_scaled() -> None:
    family = GymnasiumFamily(**STOPPER, make={"lasts": 9}, reward_offset=-0.5, reward_scale=4.0, **FEW)
    episode = play_episode(family.batch(np.array([0]), seed=0), lambda step, seen: torch.zeros(1).long())
    assert episode.rewards[0].tolist() == [2.0, 2.0, 2.0, 2.0, 2.0]


@pytest.mark.parametrize("lasts", [1, 3, 5, 9])
def test_shifting_rewards_adds_the_same_to_every_episode(lasts: int) -> None:
    family = GymnasiumFamily(**STOPPER, make={"lasts": lasts}, reward_offset=-0.5, reward_scale=4.0, **FEW)
    episode = play_episode(family.batch(np.array([0]), seed=0), lambda step, seen: torch.zeros(1).long())
    assert episode.returns.tolist() == [4.0 * (min(lasts, 5) - 0.5 * 5)]
    assert episode.rewards[0, : min(lasts, 5) - 1].tolist() == [2.0] * (min(lasts, 5) - 1)


def test_specs() -> None:
    taxi = GymnasiumFamily(env_id="Taxi-v4", best_return=20, **FEW).spec
    assert (taxi.observation_sizes, taxi.num_actions, taxi.episode_steps) == ((500,), 6, 200)
    pendulum = GymnasiumFamily(**FAMILIES["pendulum"], **FEW).spec
    assert pendulum.action == Box((1,), -2.0, 2.0)
    cartpole = GymnasiumFamily(**CARTPOLE | {"episode_steps": None}, **FEW).spec
    assert (cartpole.observation_width, cartpole.action, cartpole.episode_steps) == (4, Discrete((2,)), 500)


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"env_id": "CartPoll-v1"}, "CartPoll-v1.*modules"),
        ({"env_id": "Blackjack-v1", "variations": None}, "is a Tuple"),
        ({"best_return": 0.0}, "best_return.*0.0.*reward_offset"),
        ({"reward_scale": 0.0}, "reward_scale.*0"),
        ({"reward_offset": math.nan}, "reward_offset.*nan"),
        ({"modules": ["no_such_module"]}, r"'no_such_module'.*pip install -e '\.\[environments\]'"),
        ({"variations": {"colour": [1.0, 2.0]}, "fixed_reset_seed": True}, "'colour'.*neither"),
        ({"variations": {"gravity": {"low": 3.0, "high": 2.0}}}, "gravity.*low below high"),
        ({"variations": {"gravity": {"low": 3.0}}}, "gravity"),
        ({"variations": {"gravity": []}}, "gravity"),
        ({"variations": {"gravity": 9.8}}, r"gravity.*9\.8"),
        ({"variations": {"gravity": [1.0, 2.0]}}, "2 combinations"),
        ({"make": {"max_episode_steps": 3}}, "set episode_steps"),
        ({"make": {"wheels": 3}}, "wheels"),
        ({"drop_observation_parts": ["sound"]}, "sound"),
        ({"num_held_out": 0}, "'held_out' would have 0 tasks"),
        ({"num_train": 0}, "'train' would have 0 tasks"),
        ({"episode_steps": 0}, "episode_steps"),
    ],
    ids=str,
)
def test_bad_settings_are_named(changes: dict, shown: str) -> None:
    with pytest.raises(ValueError, match=shown):
        GymnasiumFamily(**CARTPOLE | FEW | changes)


def test_tasks_must_look_alike() -> None:
    varied = {"variations": {"num_actions": [2, 3, 4, 5, 6, 7]}}
    family = GymnasiumFamily(**STOPPER | varied, **FEW)
    with pytest.raises(ValueError, match="must look alike.*action space"):
        family.batch(np.arange(6), seed=0)


def test_an_environment_without_a_limit_needs_one() -> None:
    with pytest.raises(ValueError, match="set episode_steps"):
        GymnasiumFamily(**STOPPER | {"episode_steps": None}, **FEW)


@pytest.mark.parametrize("task_ids", [[], [6], [-1], [0.5]])
def test_unknown_tasks_are_refused(task_ids: list) -> None:
    with pytest.raises(ValueError, match="task ids"):
        GymnasiumFamily(**CARTPOLE, **FEW).batch(np.array(task_ids), seed=0)


def minigrid_family(**settings) -> GymnasiumFamily:
    pytest.importorskip("minigrid")
    defaults = {
        "env_id": "MiniGrid-Empty-Random-6x6-v0",
        "best_return": 1,
        "fixed_reset_seed": True,
        "drop_observation_parts": ["mission"],
        "modules": ["minigrid"],
    }
    return GymnasiumFamily(**defaults | settings, **FEW)


def test_minigrid_tasks_are_layouts() -> None:
    family = minigrid_family(episode_steps=8)
    assert family.spec.observation == {"direction": Discrete((4,)), "image": Box((7, 7, 3), 0, 255, "uint8")}
    assert family.spec.observation_dtype == torch.uint8
    batch = family.batch(np.array([0, 0, 1, 2]), seed=0)
    raw = [gymnasium.make("MiniGrid-Empty-Random-6x6-v0") for _ in range(4)]
    first = batch.reset()
    assert torch.equal(first[0], first[1])
    generator = torch_generator(0, "actions")
    for _ in range(3):
        seen = batch.reset()
        assert torch.equal(seen, first)
        expected = [
            env.reset(seed=int(family.reset_seeds[task]))[0] for env, task in zip(raw, (0, 0, 1, 2), strict=True)
        ]
        for _ in range(8):
            for row, observation in zip(seen, expected, strict=True):
                assert row[0] == observation["direction"]
                np.testing.assert_array_equal(row[1:].numpy(), observation["image"].ravel())
            actions = random_actions(batch, generator)
            seen = batch.step(actions).observations
            expected = [env.step(int(action))[0] for env, action in zip(raw, actions, strict=True)]


def test_minigrid_counts_for_itself() -> None:
    assert minigrid_family().spec.episode_steps == 144
    with pytest.raises(ValueError, match=r"episode_steps=200 is beyond the 144 .*make\.max_steps=200"):
        minigrid_family(episode_steps=200)
    assert minigrid_family(episode_steps=200, make={"max_steps": 200}).spec.episode_steps == 200
    with pytest.raises(ValueError, match="'mission'.*drop_observation_parts"):
        minigrid_family(drop_observation_parts=[])


def test_a_batch_is_a_batch_of_python_objects() -> None:
    family = GymnasiumFamily(**CARTPOLE, **FEW)
    batch = family.batch(np.array([0, 1]), seed=0)
    assert isinstance(batch, GymnasiumBatch) and len(batch.envs) == 2
    with pytest.raises(gymnasium.error.ResetNeeded):
        batch.step(torch.zeros(2).long())
