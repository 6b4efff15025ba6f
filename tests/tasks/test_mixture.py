"""Several families in one: numbering, splits, and every environment as in its own family."""

import numpy as np
import pytest
import torch

from distillery.core.protocols import TabularTaskBatch
from distillery.core.rollouts import play_episode
from distillery.evaluation.in_context import InContextEvaluation
from distillery.models.causal_transformer import CausalTransformer
from distillery.tasks.dark_room import DarkRoom
from distillery.tasks.gymnasium_env import TaskVectorEnv
from distillery.tasks.mixture import MixedTasks

SIZE = {"width": 4, "height": 3, "num_validation": 2, "num_held_out": 2}
ROOM = "distillery.tasks.dark_room.DarkRoom"
FAMILIES = [
    {"_target_": ROOM, **SIZE},
    {"_target_": ROOM, **SIZE, "walls": "wrap", "num_held_out": 3, "split_seed": 5},
    {"_target_": ROOM, **SIZE, "termination": "at_goal"},
]
ROOMS = [DarkRoom(**{name: value for name, value in family.items() if name != "_target_"}) for family in FAMILIES]


def mixed() -> MixedTasks:
    return MixedTasks(families=FAMILIES)


def test_tasks_are_numbered_family_by_family() -> None:
    tasks = mixed()
    assert tasks.num_tasks == 36
    assert tasks.spec == ROOMS[0].spec
    assert tasks.family_of(np.array([0, 11, 12, 23, 24, 35])).tolist() == [0, 0, 1, 1, 2, 2]
    np.testing.assert_array_equal(tasks.oracle_returns(), np.concatenate([room.oracle_returns() for room in ROOMS]))
    np.testing.assert_array_equal(tasks.difficulty(), np.concatenate([room.difficulty() for room in ROOMS]))
    assert (tasks.num_validation, tasks.num_held_out) == (6, 7)
    np.testing.assert_array_equal(tasks.draw(17, 2), ROOMS[1].draw(5, 2))


def test_each_family_keeps_its_split() -> None:
    splits = mixed().splits()
    for split, task_ids in splits.items():
        expected = np.concatenate([room.splits()[split] + 12 * number for number, room in enumerate(ROOMS)])
        np.testing.assert_array_equal(task_ids, expected)
    assert sorted(np.concatenate(list(splits.values()))) == list(range(36))


def test_environments_behave_as_in_their_own_family() -> None:
    task_ids = np.array([13, 0, 35, 12, 3, 26, 26, 23])
    batch = mixed().batch(task_ids, seed=0)
    apart = [ROOMS[task_id // 12].batch(np.array([task_id % 12]), seed=0) for task_id in task_ids]
    assert batch.can_terminate
    assert torch.equal(batch.reset(), torch.cat([one.reset() for one in apart]))
    generator, num_ends = torch.Generator().manual_seed(0), 0
    for _ in range(60):
        assert torch.equal(batch.oracle_actions(), torch.cat([one.oracle_actions() for one in apart]))
        actions = torch.randint(5, (8,), generator=generator)
        after = batch.step(actions)
        parts = [one.step(action[None]) for one, action in zip(apart, actions, strict=True)]
        for name, value in vars(after).items():
            assert torch.equal(value, torch.cat([vars(part)[name] for part in parts])), name
        ended = after.terminated | after.truncated
        num_ends += int(ended.sum())
        seen = batch.reset(ended)
        again = [
            one.reset() if over else part.observations for one, over, part in zip(apart, ended, parts, strict=True)
        ]
        assert torch.equal(seen, torch.cat(again))
    assert num_ends > 20


def test_expert_actions_come_from_the_families() -> None:
    tasks, task_ids = mixed(), np.array([30, 1, 14, 9])
    batch, generator = tasks.batch(task_ids, seed=0), torch.Generator().manual_seed(0)
    episode = play_episode(batch, lambda step, seen: torch.randint(5, (4,), generator=generator))
    expected = [
        ROOMS[task_id // 12].expert_actions(episode.select(slice(env, env + 1)), np.array([task_id % 12]))
        for env, task_id in enumerate(task_ids)
    ]
    assert torch.equal(tasks.expert_actions(episode, task_ids), torch.cat(expected))


def test_slots_move_between_families() -> None:
    tasks = mixed()
    batch = tasks.batch(np.array([0, 1, 12, 2]), seed=0)
    batch.reset()
    generator = np.random.default_rng(0)
    torch_generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        where = torch.as_tensor(generator.random(4) < 0.5)
        ids = torch.as_tensor(generator.integers(36, size=4))
        kept = batch.oracle_actions()
        expected_ids = torch.where(where, ids, batch.task_ids)
        batch.assign(ids, where)
        seen = batch.reset(where)
        assert torch.equal(batch.task_ids, expected_ids)
        assert torch.equal(batch.oracle_actions()[~where], kept[~where])
        # Where an episode has just begun, the next step is that of a fresh environment of the new task.
        actions = torch.randint(5, (4,), generator=torch_generator)
        fresh = tasks.batch(expected_ids.numpy(), seed=0)
        assert torch.equal(seen[where], fresh.reset()[where])
        after, expected = batch.step(actions), fresh.step(actions)
        for name, value in vars(after).items():
            assert torch.equal(value[where], vars(expected)[name][where])
    # Environments that are not used any more are used again: never more of a family than there are slots.
    for family in range(3):
        assert sum(len(group.slots) for group in batch._groups if group.family == family) <= 4


def test_it_serves_gymnasium() -> None:
    envs = TaskVectorEnv(mixed(), num_envs=6)
    envs.action_space.seed(0)
    envs.reset(seed=0)
    families = set()
    for _ in range(100):
        observations, *_, info = envs.step(envs.action_space.sample())
        assert observations in envs.observation_space
        families |= set(info["task_id"] // 12)
    assert families == {0, 1, 2}


def test_states_have_no_common_numbers() -> None:
    assert not isinstance(mixed().batch(np.array([0, 12]), seed=0), TabularTaskBatch)


def test_built_families_and_mixtures_may_be_mixed() -> None:
    tasks = MixedTasks(families=[{"_target_": "distillery.tasks.mixture.MixedTasks", "families": FAMILIES}, ROOMS[0]])
    assert tasks.num_tasks == 48
    assert torch.equal(tasks.batch(np.array([40]), seed=0).reset(), ROOMS[0].batch(np.array([4]), seed=0).reset())


def test_episodes_may_be_of_different_lengths() -> None:
    families = [{"_target_": ROOM, **SIZE, "episode_steps": 9}, {"_target_": ROOM, **SIZE}]
    tasks, apart = MixedTasks(families=families), [DarkRoom(**SIZE, episode_steps=9), DarkRoom(**SIZE)]
    task_ids = np.array([5, 17, 0])
    assert tasks.spec.episode_steps == 20
    np.testing.assert_array_equal(tasks.oracle_returns()[task_ids], [
        apart[0].oracle_returns()[5], apart[1].oracle_returns()[5], apart[0].oracle_returns()[0],
    ])  # fmt: skip
    batch = tasks.batch(task_ids, seed=0)
    episode = play_episode(batch, lambda step, seen: batch.oracle_actions())
    assert episode.num_steps.tolist() == [9, 20, 9] and episode.terminated.tolist() == [True, False, True]
    np.testing.assert_allclose(episode.returns, tasks.oracle_returns()[task_ids])
    torch.manual_seed(0)
    model = CausalTransformer(tasks.spec, context_length=12, width=16, num_layers=1, num_heads=2)
    lived = InContextEvaluation(num_episodes=3, num_seeds=1).run(model, tasks, task_ids, seed=0)
    assert lived.num_steps.tolist() == [[9] * 3, [20] * 3, [9] * 3]


@pytest.mark.parametrize(
    ("families", "shown"),
    [
        ([], "at least one family"),
        ([ROOMS[0], {"_target_": ROOM, "width": 5, "height": 3}], r"families\[1\].*sizes=\(4, 3\).*sizes=\(5, 3\)"),
        ([{"_target_": "os.system"}], "os.system"),
        ([{"width": 3}], "None"),
        ([{"_target_": "distillery.tasks.dark_room.Dark"}], r"dark_room\.Dark"),
        ([{"_target_": "distillery.tasks.nowhere.DarkRoom"}], "nowhere"),
        ([{"_target_": "distillery.tasks.base.TaskBatch"}], "TaskBatch"),
        ([{"_target_": ROOM, "breadth": 3}], "breadth"),
        ([{"_target_": ROOM, "walls": "bounce"}], "bounce"),
    ],
    ids=[
        "none",
        "other room",
        "no class",
        "no target",
        "no such class",
        "no such module",
        "no family",
        "no such setting",
        "no such value",
    ],
)
def test_bad_families_are_named(families: list, shown: str) -> None:
    with pytest.raises(ValueError, match=shown):
        MixedTasks(families=families)


def test_unknown_tasks_are_refused() -> None:
    with pytest.raises(ValueError, match="from 0 to 35"):
        mixed().batch(np.array([36]), seed=0)
