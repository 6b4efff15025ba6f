"""Which episodes of packed histories are read, in which order, and how much a history improves along them."""

from collections.abc import Iterator

import numpy as np

from distillery.histories.packed import PackedHistories

# Improvements are drawn from in proportion; none counts less than this part of the largest.
IMPROVEMENT_FLOOR = 0.01
# Whose rewards are held in memory together.
STEPS_AT_ONCE = 1 << 22


def kept_episodes(histories: PackedHistories, keep_every_episode: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the kept episodes, in order, and where each history starts among them, with the end."""
    counts = np.diff(histories.history_starts)
    kept_counts = -(-counts // keep_every_episode)
    kept_starts = np.concatenate([[0], np.cumsum(kept_counts)])
    within = np.arange(kept_starts[-1]) - np.repeat(kept_starts[:-1], kept_counts)
    return np.repeat(histories.history_starts[:-1], kept_counts) + within * keep_every_episode, kept_starts


def shuffled_episodes(episodes: np.ndarray, kept_starts: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """The same episodes of each history, in a random order."""
    history = np.repeat(np.arange(len(kept_starts) - 1), np.diff(kept_starts))
    order: np.ndarray = np.lexsort((generator.random(len(episodes)), history))
    return episodes[order]


class KeptSteps:
    """The steps of the kept episodes, numbered in order. What is held grows with the episodes, not with the steps.

    Args:
        histories: whose steps they are.
        episodes: (kept,) numbers of the kept episodes, in order.
        kept_starts: (histories + 1,) where each history starts among them, and the end.

    Attributes:
        history_starts: (histories + 1,) int64, the kept step that each history starts with, and the end.
    """

    def __init__(self, histories: PackedHistories, episodes: np.ndarray, kept_starts: np.ndarray) -> None:
        lengths = np.diff(histories.episode_starts)[episodes]
        self._episode_starts = np.concatenate([[0], np.cumsum(lengths)])
        self._offsets = histories.episode_starts[episodes] - self._episode_starts[:-1]
        self.history_starts = self._episode_starts[kept_starts]

    def rows(self, kept: np.ndarray) -> np.ndarray:
        """Rows of `PackedHistories.steps` that hold the kept steps of these numbers, of any shape."""
        episode = np.searchsorted(self._episode_starts, kept, side="right") - 1
        rows: np.ndarray = kept + self._offsets[episode]
        return rows


def improvements(histories: PackedHistories, episodes: np.ndarray, kept_starts: np.ndarray) -> np.ndarray:
    """(histories,) mean return of the last third of the kept episodes minus that of the first third.

    Of a history's only kept episode: of the thirds of its steps, scaled to a whole episode.
    """
    steps = KeptSteps(histories, episodes, kept_starts)
    lengths = np.diff(histories.episode_starts)[episodes]
    parts = []
    for some in _whole_histories(steps.history_starts, STEPS_AT_ONCE):
        starts, kept = steps.history_starts[some], kept_starts[some]
        rows = steps.rows(np.arange(starts[0], starts[-1]))
        rewards = np.concatenate([[0.0], np.cumsum(histories.steps["reward"][rows], dtype=np.float64)])
        # (kept + 1,) rewards before each kept episode
        before_episode = rewards[np.concatenate([[0], np.cumsum(lengths[kept[0] : kept[-1]])])]
        by_episodes = _mean_change(before_episode, kept - kept[0])
        by_steps = _mean_change(rewards, starts - starts[0]) * np.diff(starts)
        parts.append(np.where(np.diff(kept) == 1, by_steps, by_episodes))
    return np.concatenate(parts)


def _whole_histories(starts: np.ndarray, num_steps: int) -> Iterator[slice]:
    """Stretches of starts that divide histories into groups of about so many steps, each with its end."""
    first, last = 0, len(starts) - 1
    while first < last:
        end = int(np.searchsorted(starts, starts[first] + num_steps, side="right")) - 1
        end = min(max(end, first + 1), last)
        yield slice(first, end + 1)
        first = end


def _mean_change(sums: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Of each stretch of a running sum: the mean increment in its last third minus that in its first."""
    third = np.maximum(1, np.diff(starts) // 3)
    first = sums[starts[:-1] + third] - sums[starts[:-1]]
    last = sums[starts[1:]] - sums[starts[1:] - third]
    return (last - first) / third


def best_of_each_task(improvement: np.ndarray, task_ids: np.ndarray, fraction: float) -> np.ndarray:
    """Numbers of the histories that improve most: of each task the given fraction, at least one."""
    order = np.lexsort((-improvement, task_ids))
    _, first, counts = np.unique(task_ids[order], return_index=True, return_counts=True)
    rank = np.arange(len(order)) - np.repeat(first, counts)
    # The subtraction keeps 0.1 of 30 from becoming 4.
    wanted = np.maximum(1, np.ceil(counts * fraction - 1e-9))
    return np.sort(order[rank < np.repeat(wanted, counts)])


def cumulative_weights(improvement: np.ndarray) -> np.ndarray:
    """Running sum of the probabilities that histories are drawn with; equal ones where none improves."""
    largest = max(0.0, float(improvement.max()))
    weights = np.maximum(improvement, IMPROVEMENT_FLOOR * largest) if largest else np.ones(len(improvement))
    sums = np.cumsum(weights)
    return sums / sums[-1]
