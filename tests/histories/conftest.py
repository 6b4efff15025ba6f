"""Random histories of any space and of any lengths, and datasets of them."""

from pathlib import Path

import numpy as np
import torch

from distillery.core.records import EpisodeBatch
from distillery.core.specs import SOLE, Box, Discrete, Space, TaskSpec, torch_dtype
from distillery.histories.format import Metadata
from distillery.histories.packed import PackedHistories
from distillery.histories.reader import open_packed
from distillery.histories.writer import HistoryWriter

OBSERVATIONS = {
    "discrete": {SOLE: Discrete((7,))},
    "large_discrete": {SOLE: Discrete((1000, 3, 70_000))},
    "vector": {SOLE: Box((4,), -float("inf"), float("inf"))},
    "one_number": {SOLE: Box((1,), -0.1, 0.7)},
    "image": {SOLE: Box((3, 4, 3), 0, 255, "uint8")},
    "dictionary": {
        "image": Box((2, 2, 3), 0, 255, "uint8"),
        "position": Discrete((9, 300)),
        "speed": Box((3,), -0.1, 0.7),
    },
    "dictionary_of_small_numbers": {"picture": Box((5,), 0, 200, "uint8"), SOLE: Discrete((4, 4))},
}
ACTIONS = {
    "discrete": Discrete((5,)),
    "large_discrete": Discrete((300,)),
    "multi_discrete": Discrete((3, 2)),
    "box": Box((2,), -0.1, 0.3),
    "one_number": Box((1,), -1.0, 1.0),
}
SPLITS = {"train": np.arange(10), "validation": np.array([10]), "held_out": np.array([11])}


def draw(space: Space, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    """(*shape, width) elements of a space, its bounds among them."""
    if isinstance(space, Discrete):
        return np.stack([random.integers(size, size=shape) for size in space.sizes], -1)
    low, high = max(space.low, -1e6), min(space.high, 1e6)
    values = np.stack([random.uniform(low, high, shape) for _ in range(space.width)], -1).astype(space.dtype)
    values[random.random(values.shape) < 0.05] = low
    values[random.random(values.shape) < 0.05] = high
    return values


def random_episodes(spec: TaskSpec, num_steps: np.ndarray, seed: int = 0) -> list[EpisodeBatch]:
    """N batches of E episodes of the given (E, N) lengths; rewards grow with the episodes and their steps."""
    random = np.random.default_rng(seed)
    shape = (len(num_steps), spec.episode_steps)
    growth = np.arange(spec.episode_steps) / spec.episode_steps
    return [
        EpisodeBatch(
            observations=torch.from_numpy(
                np.concatenate([draw(space, shape, random) for space in spec.observation.values()], -1)
            ).to(torch_dtype(spec.stored_dtype)),
            actions=torch.from_numpy(draw(spec.action, shape, random))
            .reshape(*shape, *spec.action_shape)
            .to(torch_dtype(spec.action.stored_dtype)),
            rewards=torch.from_numpy((random.random(shape) + episode + growth).astype(np.float32)),
            terminated=torch.from_numpy(random.random(len(num_steps)) < 0.5),
            num_steps=torch.from_numpy(num_steps[:, episode]),
        )
        for episode in range(num_steps.shape[1])
    ]


def stored(
    folder: Path, spec: TaskSpec, episodes: list[EpisodeBatch], task_ids: np.ndarray | None = None, **kind: str
) -> Metadata:
    """Writes a dataset in two shards."""
    num_learners = len(episodes[0].num_steps)
    task_ids = np.arange(num_learners) % 10 if task_ids is None else task_ids
    folder.mkdir(parents=True)
    settings = {"kind": "learning", **kind}
    writer = HistoryWriter(folder, spec=spec, splits=SPLITS, num_episodes=len(episodes), **settings)
    for part in (slice(None, num_learners // 2), slice(num_learners // 2, None)):
        writer.append([batch.select(part) for batch in episodes], task_ids[part])
    return writer.seal(tasks={}, source={}, seed=0, selection={"rule": "all runs are kept"})


def packed_histories(
    folder: Path, spec: TaskSpec, num_steps: np.ndarray, task_ids: np.ndarray | None = None
) -> tuple[PackedHistories, list[EpisodeBatch]]:
    """Random histories of the given (E, N) lengths, written and read again; and the episodes."""
    episodes = random_episodes(spec, num_steps)
    stored(folder / "data", spec, episodes, task_ids)
    return open_packed(folder / "data", folder / "packed")[1], episodes


def real_steps(episodes: list[EpisodeBatch], name: str) -> np.ndarray:
    """One field of all real steps, history by history."""
    values = torch.stack([getattr(batch, name) for batch in episodes], 1)  # (E, N, T, ...)
    num_steps = torch.stack([batch.num_steps for batch in episodes], 1)
    return values[torch.arange(values.shape[2]) < num_steps[..., None]].numpy()
