"""Environments without a learner: a batch of them beside a loop over one, and beside Gymnasium's own vector of many.

Every family is stepped under random actions that were drawn before; episodes that are over begin anew.
"""

from functools import partial

import gymnasium
import numpy as np
import torch

import distillery.tasks  # noqa: F401  registers the environments
from benchmarks.cases import Case, Conditions, Row, compare
from benchmarks.collection import random_loop
from benchmarks.timing import Side, Variant, Work
from distillery.core.protocols import TaskDistribution
from distillery.core.rollouts import random_actions
from distillery.core.seeding import torch_generator
from distillery.tasks.adversarial_bandit import AdversarialBandit
from distillery.tasks.dark_key_to_door import DarkKeyToDoor
from distillery.tasks.dark_room import DarkRoom
from distillery.tasks.watermaze import Watermaze

FAMILIES: dict[str, type] = {
    "AdversarialBandit": AdversarialBandit,
    "DarkRoom": DarkRoom,
    "DarkKeyToDoor": DarkKeyToDoor,
    "Watermaze": Watermaze,
}


def batched(tasks: TaskDistribution, num_envs: int, num_steps: int, device: str) -> Work:
    """Steps of many environments at once."""
    ids = np.resize(tasks.task_ids("train"), num_envs)
    batch = tasks.batch(ids, seed=0, device=device)
    generator = torch_generator(0, "actions", device=device)
    actions = [random_actions(batch, generator) for _ in range(num_steps)]
    batch.reset()

    def work() -> int:
        for action in actions:
            transition = batch.step(action)
            ended = transition.terminated | transition.truncated
            if bool(ended.any()):
                batch.reset(ended)
        return num_envs * num_steps

    return work


def vectorised(env_id: str, num_envs: int, num_steps: int) -> Work:
    """Steps of as many single environments, one after another, as Gymnasium vectorises any."""
    envs = gymnasium.make_vec(env_id, num_envs=num_envs, vectorization_mode="sync")
    envs.reset(seed=0)
    size = int(envs.single_action_space.n)  # type: ignore[attr-defined]
    actions = torch.randint(size, (num_steps, num_envs), generator=torch.Generator().manual_seed(0)).numpy()

    def work() -> int:
        for action in actions:
            envs.step(action)
        return num_envs * num_steps

    return work


def stepping(name: str, conditions: Conditions) -> list[Row]:
    """Environment steps per second of one family."""
    tasks, env_id = FAMILIES[name](), f"distillery/{name}-v0"
    pixels = name == "Watermaze"
    num_envs = conditions.size(64 if pixels else 4096, quick=4, cuda=4096 if pixels else 262_144)
    num_steps = conditions.size(4 if pixels else 50, quick=2)
    return compare(
        f"{name}, random actions",
        "steps/s",
        Side(
            "ours",
            [Variant(partial(batched, tasks, num_envs, num_steps, conditions.device), {"environments": num_envs})],
        ),
        [
            random_loop(env_id, conditions.size(200 if pixels else 2000, quick=5)),
            Side(
                "Gymnasium's SyncVectorEnv",
                [
                    Variant(
                        partial(vectorised, env_id, 8, conditions.size(10 if pixels else 100, quick=2)),
                        {"environments": 8, "device": "cpu"},
                    )
                ],
            ),
        ],
        conditions,
    )


CASES = [Case(f"stepping/{name}", f"{name}, random actions", partial(stepping, name)) for name in FAMILIES]
