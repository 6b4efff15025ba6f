"""How a dataset learns: mean returns along its histories, gathered shard by shard."""

import numpy as np
import polars as pl


class LearningCurves:
    """Mean return of every episode number, mean reward of every step number, and the tenths that learning shows in.

    Args:
        num_episodes: the longest history, at most.
        episode_steps: the longest episode, at most.
    """

    def __init__(self, num_episodes: int, episode_steps: int) -> None:
        self._returns, self._histories = np.zeros(num_episodes), np.zeros(num_episodes, dtype=np.int64)
        self._rewards, self._first_episodes = np.zeros(episode_steps), np.zeros(episode_steps, dtype=np.int64)
        self._tenths_by_episodes, self._tenths_by_steps = np.zeros(2), np.zeros(2)

    def add(self, frame: pl.DataFrame) -> None:
        """Takes in a shard that obeys the schema."""
        episode, step, reward = (frame[name].to_numpy() for name in ("episode", "step", "reward"))
        episode_starts = np.flatnonzero(step == 0)
        number = episode[episode_starts]
        returns = np.add.reduceat(reward, episode_starts, dtype=np.float64)
        self._returns += np.bincount(number, returns, minlength=len(self._returns))
        self._histories += np.bincount(number, minlength=len(self._histories))
        self._tenths_by_episodes += _tenths(returns, np.flatnonzero(number == 0)).sum(1)
        first = episode == 0
        self._rewards += np.bincount(step[first], reward[first], minlength=len(self._rewards))
        self._first_episodes += np.bincount(step[first], minlength=len(self._first_episodes))
        history_starts = episode_starts[number == 0]
        steps = np.diff(history_starts, append=len(reward))
        self._tenths_by_steps += (_tenths(reward, history_starts) * steps).sum(1)

    @property
    def num_episodes(self) -> int:
        """Episodes of the longest history so far."""
        return int(np.count_nonzero(self._histories))

    @property
    def min_episodes(self) -> int:
        """Episodes of the shortest history so far."""
        return int(np.count_nonzero(self._histories == self._histories[0]))

    @property
    def mean_returns(self) -> np.ndarray:
        """(N,) mean return of each episode number over the histories that have that episode."""
        return self._returns[: self.num_episodes] / self._histories[: self.num_episodes]

    @property
    def mean_step_rewards(self) -> np.ndarray | None:
        """(T,) mean reward of each step number over the histories that have that step; None past one episode."""
        if self.num_episodes > 1:
            return None
        length = np.count_nonzero(self._first_episodes)
        return self._rewards[:length] / self._first_episodes[:length]

    @property
    def mean_tenths(self) -> tuple[float, float]:
        """Mean return of the first and of the last tenth of each history's own episodes.

        Means over episode numbers would not do where histories differ in length: the last numbers belong to a few of
        them. Where all histories are single episodes: of the tenths of their steps, scaled to whole episodes.
        """
        sums = self._tenths_by_steps if self.num_episodes == 1 else self._tenths_by_episodes
        first, last = sums / self._histories[0]
        return float(first), float(last)


def _tenths(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """(2, stretches) means of the first and of the last tenth of each stretch, each of at least one value."""
    sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    edges = np.append(starts, len(values))
    tenth = np.maximum(1, np.diff(edges) // 10)
    first = sums[edges[:-1] + tenth] - sums[edges[:-1]]
    last = sums[edges[1:]] - sums[edges[1:] - tenth]
    return np.stack([first, last]) / tenth
