"""stable-baselines3 on Dark Room: PPO, DQN and A2C on its vectorised environments, or on ours behind its interface.

Letters: E environments, I inputs, F features.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.preprocessing import get_flattened_obs_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor, nn

import distillery.tasks  # noqa: F401  registers the environments
from benchmarks.timing import Work

ENV_ID = "distillery/DarkRoom-v0"
GOAL = 12
ALGORITHMS: dict[str, type[BaseAlgorithm]] = {"PPO": PPO, "DQN": DQN, "A2C": A2C}


class BatchedEnvs(VecEnv):
    """Our batched environments as stable-baselines3 wants them: the fastest that it can be given.

    Args:
        num_envs: how many.
    """

    def __init__(self, num_envs: int) -> None:
        self._envs = gymnasium.make_vec(
            ENV_ID, num_envs=num_envs, vectorization_mode="vector_entry_point", task_id=GOAL
        )
        self._actions = np.zeros(num_envs, np.int64)
        super().__init__(num_envs, self._envs.single_observation_space, self._envs.single_action_space)

    def reset(self) -> np.ndarray:
        observations: np.ndarray = self._envs.reset()[0]
        return observations

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = actions

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        observations, rewards, terminated, truncated, info = self._envs.step(self._actions)
        done = terminated | truncated
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for env in np.flatnonzero(done):
            infos[env] = {"terminal_observation": info["final_obs"][env], "TimeLimit.truncated": bool(truncated[env])}
        return observations, rewards.astype(np.float32), done, infos

    def close(self) -> None:
        self._envs.close()

    def _each(self, value: Any, indices: Any) -> Iterator[Any]:
        return iter([value] * len(list(self._get_indices(indices))))

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return list(self._each(getattr(self._envs, attr_name), indices))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        setattr(self._envs, attr_name, value)

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        return list(self._each(getattr(self._envs, method_name)(*method_args, **method_kwargs), indices))

    def env_is_wrapped(self, wrapper_class: type[gymnasium.Wrapper], indices: Any = None) -> list[bool]:
        return list(self._each(False, indices))


class SharedLayers(BaseFeaturesExtractor):
    """Layers of ReLU units that policy and values share, as in the lab's actor-critic.

    Args:
        observation_space: of one environment.
        hidden_sizes: units of each layer.
    """

    def __init__(self, observation_space: gymnasium.Space[Any], hidden_sizes: Sequence[int]) -> None:
        super().__init__(observation_space, hidden_sizes[-1])
        widths = [get_flattened_obs_dim(observation_space), *hidden_sizes]
        pairs = zip(widths, hidden_sizes, strict=False)
        self.layers = nn.Sequential(*(layer for pair in pairs for layer in (nn.Linear(*pair), nn.ReLU())))

    def forward(self, inputs_EI: Tensor) -> Tensor:
        """Features (E, F) of observations that stand one-hot, one dimension after another."""
        features_EF: Tensor = self.layers(inputs_EI.flatten(1))
        return features_EF


def shared_network(hidden_sizes: Sequence[int]) -> dict[str, Any]:
    """Settings of a policy whose layers policy and values share, each with a linear layer of its own on top."""
    return {
        "net_arch": [],
        "features_extractor_class": SharedLayers,
        "features_extractor_kwargs": {"hidden_sizes": list(hidden_sizes)},
    }


def environments(kind: str, num_envs: int) -> VecEnv:
    """Dark Room with one goal: `own`, its vectorised environments, or `batched`, ours."""
    if kind == "batched":
        return BatchedEnvs(num_envs)
    envs: VecEnv = make_vec_env(ENV_ID, n_envs=num_envs, env_kwargs={"task_id": GOAL})
    return envs


def learning(
    algorithm: str,
    *,
    kind: str,
    num_envs: int,
    num_steps: int,
    hidden_sizes: Sequence[int] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Callable[[], Work]:
    """Learning on, by so many environment steps at a time.

    Args:
        algorithm: one of `ALGORITHMS`.
        kind: see `environments`.
        num_envs: environments at once.
        num_steps: at least so many a call; a rollout is never cut.
        hidden_sizes: layers that policy and values share; None leaves the network as it comes.
        settings: of the algorithm, where they are not its defaults.
    """

    def prepare() -> Work:
        envs = environments(kind, num_envs)
        policy = {} if hidden_sizes is None else {"policy_kwargs": shared_network(hidden_sizes)}
        model = ALGORITHMS[algorithm]("MlpPolicy", envs, device="cpu", seed=0, **policy, **(settings or {}))

        def work() -> int:
            before = model.num_timesteps
            model.learn(num_steps, reset_num_timesteps=False)
            return int(model.num_timesteps - before)

        return work

    return prepare
