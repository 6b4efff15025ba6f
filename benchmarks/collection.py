"""Collecting histories: every source beside the same thing as a plain Python loop, and beside stable-baselines3.

A learner-step is one step of one learner and whatever it learns from it. Where no loop of the same algorithm is
written out, ours stands beside a loop over one Gymnasium environment that acts at random and learns nothing, which is
faster than any that learns. The share of the limit counts what must be moved or multiplied at least: of tables the
entries and the record of a step, of networks six operations a weight and sample.

Letters: S states, A actions.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from benchmarks.cases import Case, Conditions, Row, compare
from benchmarks.machine import Demand
from benchmarks.rivals import plain_loops
from benchmarks.timing import Side, Variant, Work
from distillery.core.protocols import Source, TaskDistribution
from distillery.sources.a2c import A2C
from distillery.sources.dqn import DQN
from distillery.sources.explorer import Explorer
from distillery.sources.pose_searcher import PoseSearcher
from distillery.sources.ppo import PPO
from distillery.sources.q_learning import QLearning
from distillery.sources.thompson import ThompsonSampling
from distillery.sources.ucb import UCB
from distillery.tasks.adversarial_bandit import AdversarialBandit
from distillery.tasks.dark_room import DarkRoom
from distillery.tasks.watermaze import Watermaze

STEPS = "learner-steps/s"
# A record is a reward, an action and two coordinates.
RECORD_BYTES = 4 + 1 + 2
NUM_STATES, NUM_ACTIONS, EPISODE_STEPS = 81, 5, 20
HIDDEN = [128, 128, 128]
SB3_AS_IT_COMES = ("stable-baselines3 PPO", "stable-baselines3 DQN")


def runs(source: Source, tasks: TaskDistribution, num_runs: int, conditions: Conditions) -> Variant:
    """Whole histories of so many runs, from the first episode to the last, spread over the training tasks."""
    task_ids = np.resize(tasks.task_ids("train"), num_runs)

    def work() -> int:
        episodes = source.run(tasks, task_ids, seed=0, device=conditions.device)
        return sum(int(episode.num_steps.sum()) for episode in episodes)

    return Variant(lambda: work, {"runs": num_runs, "episodes": source.num_episodes})


def loop(name: str, play: Callable[[int], list[float]], num_episodes: int, episode_steps: int) -> Side:
    """A plain loop over one environment."""
    return Side(name, [Variant(lambda: lambda: len(play(num_episodes)) * episode_steps, {"device": "cpu"})])


def env_loop(conditions: Conditions) -> Side:
    """Q-learning as a loop over one Gymnasium environment of Dark Room."""
    play = partial(plain_loops.q_learning_over_env, plain_loops.dark_room())
    return loop("loop over a Gymnasium env, Q-learning", play, conditions.size(60, quick=1), EPISODE_STEPS)


def random_loop(env_id: str, num_steps: int) -> Side:
    """A loop over one Gymnasium environment, without a learner."""

    def prepare() -> Work:
        return partial(plain_loops.random_steps, plain_loops.bare(env_id), num_steps)

    return Side("loop over a Gymnasium env, without learning", [Variant(prepare, {"device": "cpu"})])


def stable_baselines(
    algorithm: str, conditions: Conditions, hidden_sizes: Sequence[int] | None = None, **settings: Any
) -> list[Side]:
    """An algorithm of stable-baselines3 on Dark Room: on its own vectorised environments, and on our batched ones.

    Args:
        algorithm: `PPO`, `DQN` or `A2C`.
        conditions: of the run.
        hidden_sizes: layers that policy and values share; None leaves the network as it comes.
        **settings: of the algorithm, or functions of the number of environments that give them.
    """
    num_steps = conditions.size(4096, quick=64)

    def prepare(kind: str, num_envs: int) -> Work:
        from benchmarks.rivals.stable_baselines import learning

        own = {name: value(num_envs) if callable(value) else value for name, value in settings.items()}
        prepare_learning = learning(
            algorithm, kind=kind, num_envs=num_envs, num_steps=num_steps, hidden_sizes=hidden_sizes, settings=own
        )
        return prepare_learning()

    def side(name: str, kind: str) -> Side:
        variants = [
            Variant(partial(prepare, kind, num_envs), {"device": "cpu", "environments": num_envs})
            for num_envs in conditions.size((8, 100), quick=(4,))
        ]
        return Side(name, variants, ("stable_baselines3",))

    name = f"stable-baselines3 {algorithm}"
    return [side(name, "own"), side(f"{name} on our batched environments", "batched")]


def ppo_rival(conditions: Conditions, **settings: Any) -> list[Side]:
    """Its defaults, with as many steps between two updates as by default, however many environments there are."""
    rollout = conditions.size(2048, quick=64)

    def num_steps(num_envs: int) -> int:
        return 16 * -(-rollout // (16 * num_envs))  # whole minibatches of 64

    return stable_baselines("PPO", conditions, n_steps=num_steps, **settings)


def dqn_rival(conditions: Conditions) -> list[Side]:
    """Its defaults, with an update for every four environment steps, as by default with one environment."""
    return stable_baselines(
        "DQN",
        conditions,
        train_freq=1,
        gradient_steps=lambda num_envs: max(1, num_envs // 4),
        learning_starts=conditions.size(100, quick=8),
    )


def q_learning(conditions: Conditions) -> list[Row]:
    """Tabular Q-learning; of stable-baselines3 the faster algorithm counts."""
    room = DarkRoom()
    source = QLearning(num_episodes=conditions.size(50, quick=2), epsilon_start=0.5, initial_value=20.0)
    batches = conditions.size([1140, 4560, 18240], quick=[57], cuda=[18240, 291840, 1167360])
    rows = compare(
        "Q-learning in Dark Room",
        STEPS,
        Side("ours", [runs(source, room, num_runs, conditions) for num_runs in batches]),
        [
            env_loop(conditions),
            loop(
                "loop over plain tables, Q-learning",
                partial(plain_loops.q_learning_over_tables, room),
                conditions.size(1000, quick=5),
                EPISODE_STEPS,
            ),
            *ppo_rival(conditions),
            *dqn_rival(conditions),
        ],
        conditions,
        # The row of a state and of the next one are read, an entry is written, and so is the record.
        demand=Demand(bytes=(2 * NUM_ACTIONS + 1) * 4 + RECORD_BYTES),
    )
    beside = [row for row in rows if row.beside in SB3_AS_IT_COMES and row.ratio_wall is not None]
    nearest = min(beside, key=lambda row: row.ratio_wall or 0.0, default=None)
    return [replace(row, key="collection_tabular_vs_sb3") if row is nearest else row for row in rows]


def explorer(conditions: Conditions) -> list[Row]:
    """The optimistic explorer, whose planning goes over all states at every step."""
    source = Explorer(num_episodes=conditions.size(10, quick=2))
    num_runs = conditions.size(4560, quick=57, cuda=72960)
    return compare(
        "explorer in Dark Room",
        STEPS,
        Side("ours", [runs(source, DarkRoom(), num_runs, conditions)]),
        [
            env_loop(conditions),
            *ppo_rival(conditions),
        ],
        conditions,
        demand=Demand(bytes=RECORD_BYTES),
    )


def a2c(conditions: Conditions) -> list[Row]:
    """The actor-critic with the paper's network, which policy and values share on both sides."""
    source = A2C(num_episodes=conditions.size(2, quick=1), num_actors=conditions.size(100, quick=4))
    num_learners = conditions.size([57, 228], quick=[3], cuda=[228, 1824])
    inputs = 9 + 9
    weights = inputs * 128 + 2 * 128 * 128 + 128 * (NUM_ACTIONS + 1)
    samples = source.num_actors * source.rollout_steps
    return compare(
        "actor-critic of 3x128 in Dark Room",
        STEPS,
        Side("ours", [runs(source, DarkRoom(), number, conditions) for number in num_learners]),
        [
            *stable_baselines("A2C", conditions, HIDDEN, n_steps=source.rollout_steps),
            random_loop("distillery/DarkRoom-v0", conditions.size(2000, quick=20)),
        ],
        conditions,
        keys={"stable-baselines3 A2C": "collection_a2c_vs_sb3"},
        # The network is evaluated on all states once an update, whoever its samples are from.
        demand=Demand(operations=6 * weights * min(NUM_STATES, samples) / samples),
        more={"actors": source.num_actors, "rollout_steps": source.rollout_steps, "updates": "one a rollout"},
    )


def ppo(conditions: Conditions) -> list[Row]:
    """Proximal policy optimisation, as many passes over every sample on both sides; otherwise each's own defaults."""
    source = PPO(num_episodes=conditions.size(3, quick=1), num_actors=conditions.size(16, quick=4))
    return compare(
        "PPO in Dark Room",
        STEPS,
        Side("ours", [runs(source, DarkRoom(), conditions.size(57, quick=2, cuda=912), conditions)]),
        [
            *ppo_rival(conditions, n_epochs=source.num_epochs),
            random_loop("distillery/DarkRoom-v0", conditions.size(2000, quick=20)),
        ],
        conditions,
        keys={"stable-baselines3 PPO": "collection_ppo_vs_sb3"},
        more={"actors": source.num_actors, "epochs": source.num_epochs},
    )


def dqn(conditions: Conditions) -> list[Row]:
    """Deep Q-learning on positions; ours learns from sequences of 40 steps, the other from single steps."""
    source = DQN(
        num_episodes=conditions.size(6, quick=3),
        num_actors=conditions.size(16, quick=2),
        replay_steps=2000,
        hidden_size=conditions.size(64, quick=8),
    )
    return compare(
        "DQN in Dark Room",
        STEPS,
        Side("ours", [runs(source, DarkRoom(), conditions.size(57, quick=2, cuda=456), conditions)]),
        [*dqn_rival(conditions), random_loop("distillery/DarkRoom-v0", conditions.size(2000, quick=20))],
        conditions,
        keys={"stable-baselines3 DQN": "collection_dqn_vs_sb3"},
        more={"actors": source.num_actors, "updates_per_rollout": source.updates_per_rollout},
    )


def bandit(name: str, source: Callable[..., Source], conditions: Conditions) -> list[Row]:
    """A source of bandits beside the same one arm after another."""
    tasks = AdversarialBandit(num_train=conditions.size(20_000, quick=50))
    num_runs = conditions.size(10_000, quick=20, cuda=400_000)
    return compare(
        f"{name} on bandits",
        STEPS,
        Side("ours", [runs(source(num_episodes=1), tasks, num_runs, conditions)]),
        [
            loop(
                "loop over plain lists",
                partial(plain_loops.bandits, tasks, name),
                conditions.size(50, quick=2),
                tasks.spec.episode_steps,
            ),
            random_loop("distillery/AdversarialBandit-v0", conditions.size(2000, quick=20)),
        ],
        conditions,
        # Pulls and sums of all arms are read, one of each is written, and so is the record.
        demand=Demand(bytes=(2 * tasks.spec.num_actions + 2) * 4 + 6),
    )


def noise_annealed(conditions: Conditions) -> list[Row]:
    """An oracle under noise."""
    from distillery.sources.noise_annealed import NoiseAnnealed

    source = NoiseAnnealed(num_episodes=conditions.size(20, quick=1))
    return compare(
        "noise-annealed oracle in Dark Room",
        STEPS,
        Side("ours", [runs(source, DarkRoom(), conditions.size(4560, quick=57, cuda=291840), conditions)]),
        [random_loop("distillery/DarkRoom-v0", conditions.size(2000, quick=20))],
        conditions,
        demand=Demand(bytes=RECORD_BYTES),
    )


def pose_searcher(conditions: Conditions) -> list[Row]:
    """The searcher over poses, which sees no pixel, in a small Watermaze, whose every step is drawn."""
    source = PoseSearcher(num_episodes=conditions.size(4, quick=1))
    tasks = Watermaze(height=18, width=24)
    return compare(
        "searcher over poses in Watermaze, 18x24",
        STEPS,
        Side("ours", [runs(source, tasks, conditions.size(512, quick=4, cuda=8192), conditions)]),
        [random_loop("distillery/Watermaze-v0", conditions.size(200, quick=5))],
        conditions,
        # The pixels are written.
        demand=Demand(bytes=18 * 24 * 3),
    )


CASES = [
    Case("collection/q_learning", "Q-learning in Dark Room", q_learning),
    Case("collection/explorer", "explorer in Dark Room", explorer),
    Case("collection/a2c", "actor-critic of 3x128 in Dark Room", a2c),
    Case("collection/ppo", "PPO in Dark Room", ppo),
    Case("collection/dqn", "DQN in Dark Room", dqn),
    Case("collection/ucb", "UCB on bandits", partial(bandit, "ucb", UCB)),
    Case("collection/thompson", "Thompson sampling on bandits", partial(bandit, "thompson", ThompsonSampling)),
    # Its module imports hydra, to build the policy that a configuration names.
    Case("collection/noise_annealed", "noise-annealed oracle in Dark Room", noise_annealed, packages=("hydra",)),
    Case("collection/pose_searcher", "searcher over poses in Watermaze", pose_searcher),
]
