"""The Gymnasium faces of a task: the checker, autoreset, and the vector environment against single ones."""

import math
import subprocess
import sys
import warnings

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import batch_space
from gymnasium.wrappers.vector import ClipReward, DictInfoToList, RecordEpisodeStatistics

import distillery.tasks  # noqa: F401, registers the environments
from distillery.core.records import Transition
from distillery.core.specs import Box, Discrete, TaskSpec
from distillery.tasks.base import TaskBatch, TaskDistribution
from distillery.tasks.dark_room import DarkRoom
from distillery.tasks.gymnasium_env import COLOURS, TaskEnv, TaskVectorEnv

ID = "distillery/DarkRoom-v0"
STAY = 4
VARIANTS = [
    {},
    {"task_id": 13},
    {"split": "held_out", "start": "random"},
    {"reward": "once", "walls": "wrap"},
    {"termination": "at_goal", "start": "random", "width": 4, "height": 3, "num_validation": 2, "num_held_out": 2},
]


def make_vec(num_envs: int, **settings) -> TaskVectorEnv:
    return gymnasium.make_vec(ID, num_envs=num_envs, vectorization_mode="vector_entry_point", **settings)


@pytest.mark.parametrize("settings", VARIANTS)
def test_the_checker_finds_nothing(settings: dict) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gymnasium.make(ID, **settings).unwrapped)


@pytest.mark.parametrize("render_mode", ["ansi", "rgb_array"])
def test_the_checker_finds_nothing_when_rendering(render_mode: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gymnasium.make(ID, render_mode=render_mode).unwrapped)


def test_a_distribution_can_be_given_ready_made() -> None:
    env = TaskEnv(DarkRoom(width=3, height=4), task_id=0)
    assert env.observation_space == gymnasium.spaces.MultiDiscrete([3, 4])
    with pytest.raises(ValueError, match="width"):
        TaskEnv(DarkRoom(), width=3)


def heavy_modules_after(code: str) -> set[str]:
    """Which of the heavy packages a fresh interpreter has imported once it ran `code`."""
    command = [sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules)"]
    return {"torch", "gymnasium"} & set(
        subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    )


def test_importing_the_package_does_not_import_torch() -> None:
    assert heavy_modules_after("import distillery") == set()


def test_registering_does_not_import_torch() -> None:
    assert heavy_modules_after(f"import gymnasium, distillery.tasks; gymnasium.spec('{ID}')") == {"gymnasium"}


def test_an_episode_of_one_environment() -> None:
    env = gymnasium.make(ID, task_id=3 + 9 * 4)
    observation, info = env.reset(seed=0)
    assert observation.tolist() == [4, 4]
    assert info == {"task_id": 39}
    observation, reward, terminated, truncated, info = env.step(0)
    assert observation.tolist() == [3, 4]
    assert observation in env.observation_space
    assert (reward, terminated, truncated, info) == (1.0, False, False, {"task_id": 39})
    for _ in range(18):
        assert env.step(STAY)[1:4] == (1.0, False, False)
    assert env.step(STAY)[1:4] == (1.0, False, True)


def test_an_episode_that_ends_at_the_goal() -> None:
    env = gymnasium.make(ID, task_id=40, termination="at_goal")
    env.reset()
    assert env.step(STAY)[1:4] == (1.0, True, False)


def test_tasks_are_drawn_from_the_split_by_the_seed() -> None:
    def drawn(seed: int, split: str) -> list[int]:
        env = gymnasium.make(ID, split=split)
        ids = [env.reset(seed=seed)[1]["task_id"]]
        return ids + [env.reset()[1]["task_id"] for _ in range(60)]

    assert drawn(0, "train") == drawn(0, "train") != drawn(1, "train")
    assert set(drawn(0, "validation")) == set(DarkRoom().task_ids("validation"))
    assert set(drawn(0, "held_out")) <= set(DarkRoom().task_ids("held_out"))


def test_reset_options_choose_the_task_of_one_episode() -> None:
    env = gymnasium.make(ID, task_id=5)
    assert env.reset(options={"task_id": 7})[1] == {"task_id": 7}
    assert env.reset()[1] == {"task_id": 5}
    envs = make_vec(2, task_id=5)
    assert envs.reset(options={"task_id": [7, 8]})[1]["task_id"].tolist() == [7, 8]
    assert envs.reset()[1]["task_id"].tolist() == [5, 5]


@pytest.mark.parametrize(
    ("settings", "shown"),
    [
        ({"task_id": 81}, "81"),
        ({"task_id": -1}, "-1"),
        ({"task_id": 1.5}, "1.5"),
        ({"task_id": [1, 2, 3]}, r"\[1, 2, 3\]"),
        ({"split": "test"}, "'test'"),
        ({"num_held_out": 0}, "num_held_out=0"),
        ({"walls": "bounce"}, "'bounce'"),
    ],
)
def test_bad_settings_are_named(settings: dict, shown: str) -> None:
    with pytest.raises(ValueError, match=shown):
        gymnasium.make(ID, **settings)
    with pytest.raises(ValueError, match=shown):
        make_vec(2, **settings)


@pytest.mark.parametrize("face", [TaskEnv, TaskVectorEnv])
def test_other_mistakes_are_named(face: type) -> None:
    with pytest.raises(ValueError, match="'human'"):
        face(DarkRoom(), render_mode="human")
    env = face(DarkRoom())
    with pytest.raises(ResetNeeded):
        env.step(env.action_space.sample())
    env.reset(seed=0)
    for wrong in (5, -1, 0.5, [5], [-1], [0.5], [0, 0]):
        with pytest.raises(ValueError, match="action"):
            env.step(wrong)
    with pytest.raises(ValueError, match="goal"):
        env.reset(options={"goal": 3})
    with pytest.raises(ValueError, match="99"):
        env.reset(options={"task_id": 99})
    with pytest.raises(ValueError, match=r"num_envs.*0"):
        TaskVectorEnv(DarkRoom(), num_envs=0)


def test_rendering_as_text() -> None:
    settings = {"width": 3, "height": 3, "task_id": 0, "start": [2, 1], "render_mode": "ansi"}
    env = gymnasium.make(ID, **settings)
    env.reset()
    assert env.render() == "G . .\n. . A\n. . .\n"
    for action in (0, 0, 2):
        env.step(action)
    assert env.render() == "@ . .\n. . .\n. . .\n"


def test_rendering_as_pixels() -> None:
    env = gymnasium.make(ID, width=3, height=2, task_id=0, start=[2, 1], render_mode="rgb_array")
    env.reset()
    frame = env.render()
    assert frame.shape == (2 * 16, 3 * 16, 3)
    assert frame.dtype == np.uint8
    cells = {(x, y): tuple(frame[16 * y + 8, 16 * x + 8]) for x in range(3) for y in range(2)}
    goal, agent = cells.pop((0, 0)), cells.pop((2, 1))
    (floor,) = set(cells.values())
    assert len({goal, agent, floor}) == 3


def test_vector_rendering() -> None:
    envs = make_vec(2, task_id=[0, 80], render_mode="ansi")
    envs.reset()
    first, second = envs.render()
    assert first.startswith("G")
    assert second.endswith("G\n")


def test_the_vector_spaces_are_batched() -> None:
    envs = make_vec(3)
    assert envs.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert envs.single_observation_space == gymnasium.spaces.MultiDiscrete([9, 9])
    assert envs.single_action_space == gymnasium.spaces.Discrete(5)
    assert envs.observation_space == batch_space(envs.single_observation_space, 3)
    assert envs.action_space == batch_space(envs.single_action_space, 3)
    assert envs.spec.id == ID
    assert gymnasium.make_vec(envs.spec).num_envs == 3


@pytest.mark.parametrize("settings", VARIANTS)
def test_what_the_vector_environment_returns(settings: dict) -> None:
    envs = make_vec(5, **settings)
    envs.action_space.seed(0)
    observations, info = envs.reset(seed=0)
    kept = []
    for _ in range(45):
        assert observations in envs.observation_space
        assert observations.dtype == envs.observation_space.dtype
        assert info["task_id"].shape == (5,)
        assert info["_task_id"].all()
        kept.append((observations, observations.copy()))
        observations, rewards, terminated, truncated, info = envs.step(envs.action_space.sample())
        assert rewards.shape == (5,)
        assert rewards.dtype == np.float64
        assert terminated.shape == truncated.shape == (5,)
        assert terminated.dtype == truncated.dtype == bool
        done = terminated | truncated
        assert ("final_obs" in info) == done.any()
        if done.any():
            np.testing.assert_array_equal(info["_final_obs"], done)
            np.testing.assert_array_equal(info["_final_info"], done)
            for env in range(5):
                last = info["final_obs"][env]
                assert last in envs.single_observation_space if done[env] else last is None
    for returned, copied in kept:
        np.testing.assert_array_equal(returned, copied)


def test_the_vector_environment_repeats_from_a_seed() -> None:
    def rollout(seed: int) -> list:
        envs = make_vec(4, start="random", split="validation")
        envs.action_space.seed(0)
        return [envs.reset(seed=seed), *(envs.step(envs.action_space.sample()) for _ in range(45))]

    assert data_equivalence(rollout(0), rollout(0), exact=True)
    assert not data_equivalence(rollout(0), rollout(1), exact=True)


@pytest.mark.parametrize("termination", ["never", "at_goal"])
@pytest.mark.parametrize("reward", ["every_step", "once"])
@pytest.mark.parametrize("walls", ["clip", "wrap"])
def test_the_vector_environment_equals_single_ones(termination: str, reward: str, walls: str) -> None:
    settings = {"termination": termination, "reward": reward, "walls": walls, "width": 4, "height": 3}
    task_ids = [0, 5, 6, 7, 11]
    envs = make_vec(5, task_id=task_ids, **settings)
    apart = SyncVectorEnv(
        [lambda task_id=task_id: gymnasium.make(ID, task_id=task_id, **settings) for task_id in task_ids],
        autoreset_mode=AutoresetMode.SAME_STEP,
    )
    envs.action_space.seed(1)
    assert data_equivalence(envs.reset(seed=0), apart.reset(seed=0), exact=True)
    num_ends = 0
    for _ in range(65):
        actions = envs.action_space.sample()
        ours, theirs = envs.step(actions), apart.step(actions)
        assert data_equivalence(ours, theirs, exact=True)
        num_ends += (ours[2] | ours[3]).sum()
    assert num_ends >= 15


def test_drawn_tasks_and_starts_equal_single_environments() -> None:
    settings = {"termination": "at_goal", "width": 4, "height": 3, "num_validation": 2, "num_held_out": 2}

    def apart(observation: np.ndarray, task_id: int) -> gymnasium.Env:
        env = gymnasium.make(ID, task_id=int(task_id), start=observation.tolist(), **settings)
        env.reset()
        return env

    envs = make_vec(6, start="random", **settings)
    envs.action_space.seed(2)
    observations, info = envs.reset(seed=0)
    singles = [apart(*pair) for pair in zip(observations, info["task_id"], strict=True)]
    seen_tasks = set(info["task_id"])
    for _ in range(60):
        actions = envs.action_space.sample()
        observations, rewards, terminated, truncated, info = envs.step(actions)
        for env, action in enumerate(actions):
            single = singles[env].step(action)
            done = terminated[env] or truncated[env]
            np.testing.assert_array_equal(info["final_obs"][env] if done else observations[env], single[0])
            assert single[1:4] == (rewards[env], terminated[env], truncated[env])
            task_id = (info["final_info"] if done else info)["task_id"][env]
            assert single[4] == {"task_id": task_id}
            if done:
                singles[env] = apart(observations[env], info["task_id"][env])
                seen_tasks.add(info["task_id"][env])
    assert seen_tasks == set(DarkRoom(start="random", **settings).task_ids("train"))


def test_episode_statistics_are_recorded() -> None:
    envs = RecordEpisodeStatistics(make_vec(3, task_id=[40, 0, 40]))
    envs.reset(seed=0)
    for episode in range(2):
        for _ in range(19):
            assert "episode" not in envs.step(np.full(3, STAY))[4]
        info = envs.step(np.full(3, STAY))[4]
        assert info["_episode"].all()
        assert info["episode"]["r"].tolist() == [20, 0, 20], episode
        assert info["episode"]["l"].tolist() == [20, 20, 20], episode


def test_other_vector_wrappers_work() -> None:
    envs = DictInfoToList(make_vec(2, task_id=[40, 1], termination="at_goal"))
    envs.reset(seed=0)
    infos = envs.step(np.full(2, STAY))[4]
    assert infos[0]["final_obs"].tolist() == [4, 4]
    assert infos[0]["final_info"] == {"task_id": 40}
    assert infos[1] == {"task_id": 1}
    clipped = ClipReward(make_vec(2, task_id=[40, 1]), max_reward=0.5)
    clipped.reset(seed=0)
    assert clipped.step(np.full(2, STAY))[1].tolist() == [0.5, 0.0]


class Panel(TaskDistribution):
    """A counter shown in every way there is: as an image, as numbers and as a dial, changed by two switches."""

    spec = TaskSpec(
        {
            "dial": Discrete((4, 50)),
            "image": Box((5, 6, 3), 0, 255, "uint8"),
            "needle": Box((2,), -math.inf, math.inf),
        },
        Discrete((3, 2)),
        6,
    )
    num_tasks = 4

    def __init__(self, spec: TaskSpec | None = None) -> None:
        super().__init__(num_validation=1, num_held_out=1, split_seed=0)
        self.spec = spec or self.spec

    def batch(self, task_ids: np.ndarray, *, seed: int, device: torch.device | str = "cpu") -> "PanelBatch":
        return PanelBatch(self.spec, task_ids)

    def oracle_returns(self) -> np.ndarray:
        return np.ones(4)


class PanelBatch(TaskBatch):
    """Counts up by its action, from the task's number; ends at 9."""

    can_terminate = True

    def __init__(self, spec: TaskSpec, task_ids: np.ndarray) -> None:
        self.spec, self.task_ids = spec, torch.as_tensor(task_ids)
        self.count, self.elapsed = self.task_ids.clone(), torch.zeros_like(self.task_ids)

    def seen(self) -> torch.Tensor:
        count = self.count.float()[:, None]
        whole = {
            "dial": torch.cat([count % 4, count], 1),
            "image": (count + torch.arange(90)) % 256,
            "needle": torch.cat([count / 2, -count], 1),
        }
        return torch.cat([whole[name] for name in self.spec.observation], 1).to(self.spec.observation_dtype)

    def reset(self, where: torch.Tensor | None = None) -> torch.Tensor:
        where = torch.ones_like(self.count, dtype=torch.bool) if where is None else where
        self.count = torch.where(where, self.task_ids, self.count)
        self.elapsed = self.elapsed * ~where
        return self.seen()

    def step(self, actions: torch.Tensor) -> Transition:
        self.count = self.count + actions.reshape(len(self.count), -1).sum(1).abs().ceil().long()
        self.elapsed = self.elapsed + 1
        terminated = self.count >= 9
        return Transition(self.seen(), self.count.float(), terminated, (self.elapsed >= 6) & ~terminated)


IMAGE_ONLY = TaskSpec({"image": Panel.spec.observation["image"]}, Box((2,), -1, 1), 6)
NEEDLE_ONLY = TaskSpec({"needle": Panel.spec.observation["needle"]}, Discrete((3,)), 6)
PANELS = {"all": None, "image": IMAGE_ONLY, "needle": NEEDLE_ONLY}


@pytest.mark.parametrize("spec", PANELS.values(), ids=PANELS.keys())
def test_the_checker_finds_nothing_in_any_space(spec: TaskSpec | None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*(infinity|symmetric).*")  # an unbounded box is what is checked
        env = TaskEnv(Panel(spec))
        env.spec = gymnasium.spec(ID)
        check_env(env, skip_close_check=True)


def test_any_space_has_its_gymnasium_form() -> None:
    env = TaskEnv(Panel(), task_id=3)
    spaces = gymnasium.spaces
    assert env.observation_space == spaces.Dict(
        {
            "dial": spaces.MultiDiscrete([4, 50]),
            "image": spaces.Box(0, 255, (5, 6, 3), np.uint8),
            "needle": spaces.Box(-np.inf, np.inf, (2,), np.float32),
        }
    )
    assert env.action_space == spaces.MultiDiscrete([3, 2])
    env.reset(seed=0)
    observation, reward, terminated, truncated, info = env.step(np.array([2, 1]))
    assert observation in env.observation_space
    assert observation["dial"].tolist() == [2, 6]
    assert observation["image"].ravel().tolist() == list(range(6, 96))
    assert observation["needle"].tolist() == [3.0, -6.0]
    assert (reward, terminated, truncated, info) == (6.0, False, False, {"task_id": 3})
    assert TaskEnv(Panel(IMAGE_ONLY)).action_space == spaces.Box(-1, 1, (2,))


@pytest.mark.parametrize("spec", PANELS.values(), ids=PANELS.keys())
def test_the_vector_environment_equals_single_ones_in_any_space(spec: TaskSpec | None) -> None:
    task_ids = [0, 3, 1]
    envs = TaskVectorEnv(Panel(spec), num_envs=3, task_id=task_ids)
    apart = SyncVectorEnv(
        [lambda task_id=task_id: TaskEnv(Panel(spec), task_id=task_id) for task_id in task_ids],
        autoreset_mode=AutoresetMode.SAME_STEP,
    )
    assert envs.observation_space == apart.observation_space
    assert envs.action_space == apart.action_space
    envs.action_space.seed(0)
    assert data_equivalence(envs.reset(seed=0), apart.reset(seed=0), exact=True)
    ends = np.zeros(2)
    for _ in range(40):
        actions = envs.action_space.sample()
        ours, theirs = envs.step(actions), apart.step(actions)
        assert ours[0] in envs.observation_space
        assert data_equivalence(ours, theirs, exact=True)
        ends += [ours[2].sum(), ours[3].sum()]
    assert ends[0] >= 3


@pytest.mark.parametrize(
    ("spec", "wrong"),
    [
        (None, [3, 0]),
        (None, [0, -1]),
        (None, 1),
        (None, [0.5, 0.0]),
        (IMAGE_ONLY, [0.0, 1.5]),
        (IMAGE_ONLY, [0.0, float("nan")]),
        (IMAGE_ONLY, [0.0]),
    ],
)
def test_wrong_actions_of_any_space_are_named(spec: TaskSpec | None, wrong) -> None:
    for env in (TaskEnv(Panel(spec)), TaskVectorEnv(Panel(spec))):
        env.reset(seed=0)
        with pytest.raises(ValueError, match="the action must be"):
            env.step([wrong] if isinstance(env, TaskVectorEnv) else wrong)


def test_images_render_as_themselves() -> None:
    env = TaskEnv(Panel(), task_id=2, render_mode="rgb_array")
    observation, _ = env.reset()
    np.testing.assert_array_equal(env.render(), observation["image"])
    observation, *_ = env.step(np.array([1, 1]))
    np.testing.assert_array_equal(env.render(), observation["image"])
    envs = TaskVectorEnv(Panel(IMAGE_ONLY), num_envs=2, task_id=[1, 2], render_mode="rgb_array")
    envs.reset()
    assert [frame[0, 0, 0] for frame in envs.render()] == [1, 2]
    grey = TaskSpec({"image": Box((15, 6, 1), 0, 255, "uint8")}, Discrete((2,)), 6)
    env = TaskEnv(Panel(grey), task_id=2, render_mode="rgb_array")
    env.reset()
    assert env.render().shape == (15, 6, 3)


@pytest.mark.parametrize(("spec", "render_mode"), [(None, "ansi"), (NEEDLE_ONLY, "rgb_array")])
def test_what_cannot_be_rendered_says_so(spec: TaskSpec | None, render_mode: str) -> None:
    for env in (TaskEnv(Panel(spec), render_mode=render_mode), TaskVectorEnv(Panel(spec), render_mode=render_mode)):
        env.reset()
        with pytest.raises(ValueError, match=f"Panel cannot be rendered as {render_mode}"):
            env.render()


def test_keys_and_doors_have_colours() -> None:
    assert {"K", "D"} <= set(COLOURS)
    assert len(set(COLOURS.values())) == len(COLOURS)
