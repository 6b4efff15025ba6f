"""Learners as plain Python loops over one environment, the way they are first written down.

Each returns the undiscounted return of every episode, so that a test can see it learn.
"""

from typing import Any

import gymnasium
import numpy as np

import distillery.tasks  # noqa: F401  registers the environments
from distillery.tasks.adversarial_bandit import AdversarialBandit
from distillery.tasks.dark_room import DarkRoom

# One environment, of any spaces.
Env = gymnasium.Env[Any, Any]

GOAL = 12
DISCOUNT, RATE, EPSILON = 0.97, 0.99, 0.5


def bare(env_id: str, **settings: Any) -> Env:
    """An environment without Gymnasium's checks around it, which only cost time."""
    env: Env = gymnasium.make(env_id, **settings).unwrapped
    return env


def dark_room() -> Env:
    """Dark Room with the one goal of these loops."""
    return bare("distillery/DarkRoom-v0", task_id=GOAL)


def q_learning_over_env(env: Env, num_episodes: int) -> list[float]:
    """Tabular Q-learning over one Gymnasium environment of Dark Room."""
    table, random, returns = np.zeros((81, 5)), np.random.default_rng(0), []
    for _ in range(num_episodes):
        observation, _ = env.reset()
        truncated, total = False, 0.0
        while not truncated:
            state = observation[0] + 9 * observation[1]
            action = random.integers(5) if random.random() < EPSILON else int(table[state].argmax())
            observation, reward, _, truncated, _ = env.step(action)
            ahead = table[observation[0] + 9 * observation[1]].max()
            table[state, action] += RATE * (reward + DISCOUNT * ahead - table[state, action])
            total += float(reward)
        returns.append(total)
    return returns


def q_learning_over_tables(room: DarkRoom, num_episodes: int) -> list[float]:
    """The same without an environment class: the fastest plain loop, on lists."""
    random, returns = np.random.default_rng(0), []
    moves, table = room.next_state.tolist(), [[0.0] * 5 for _ in range(81)]
    explore = (random.random((num_episodes, 20)) < EPSILON).tolist()
    actions = random.integers(5, size=(num_episodes, 20)).tolist()
    for episode in range(num_episodes):
        state, total = 40, 0
        for step in range(20):
            row = table[state]
            action = actions[episode][step] if explore[episode][step] else row.index(max(row))
            after = moves[state][action]
            reward = after == GOAL
            row[action] += RATE * (reward + DISCOUNT * max(table[after]) - row[action])
            state, total = after, total + reward
        returns.append(float(total))
    return returns


def _pulled(pull_means: np.ndarray, choose: str, num_pulls: int, random: np.random.Generator) -> float:
    """One run on a bandit, by upper confidence bounds or by Thompson sampling, on lists."""
    means, num_arms = pull_means.tolist(), len(pull_means)
    pulls, sums, total = [0] * num_arms, [0.0] * num_arms, 0.0
    for step in range(num_pulls):
        if choose == "ucb":
            bonus = 0.5 * np.log(max(step, 1)) ** 0.5
            scores = [sums[a] / pulls[a] + bonus * pulls[a] ** -0.5 if pulls[a] else np.inf for a in range(num_arms)]
        else:
            scores = [random.beta(1 + sums[a], 1 + pulls[a] - sums[a]) for a in range(num_arms)]
        arm = scores.index(max(scores))
        reward = float(random.random() < means[arm])
        pulls[arm] += 1
        sums[arm] += reward
        total += reward
    return total


def bandits(tasks: AdversarialBandit, choose: str, num_runs: int) -> list[float]:
    """Runs of `ucb` or `thompson` on training bandits, one after another."""
    random = np.random.default_rng(0)
    chosen = tasks.task_ids("train")[:num_runs]
    return [_pulled(tasks.means[task], choose, tasks.spec.episode_steps, random) for task in chosen]


def random_steps(env: Env, num_steps: int) -> int:
    """Steps of one environment under random actions; no learner in such a loop is faster."""
    env.reset(seed=0)
    actions = [env.action_space.sample() for _ in range(num_steps)]
    for action in actions:
        _, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            env.reset()
    return num_steps
