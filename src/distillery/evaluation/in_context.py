"""In-context evaluation: one lifetime per task and seed, all of them in one batch.

Source: Laskin et al. (2022), arXiv 2210.14215, section 3: weights are frozen, the context starts empty, and it is
never reset between episodes, so whatever is learned is learned in context.

Letters: L lifetimes, N episodes, T environment steps, D observation dimensions, A actions.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from distillery.core.protocols import SequenceModel, TaskDistribution
from distillery.core.records import Lifetimes
from distillery.core.seeding import stream_seed, torch_generator
from distillery.core.specs import TaskSpec


def weights_checksum(model: torch.nn.Module) -> str:
    """Hex SHA-256 over all parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class InContextEvaluation:
    """How lifetimes are run.

    Attributes:
        num_episodes: N, episodes per lifetime.
        num_seeds: lifetimes per task.
        greedy: take the likeliest action instead of sampling.
        batch_lifetimes: how many lifetimes share one batch; bounds memory, changes nothing but the draws.
    """

    num_episodes: int
    num_seeds: int
    greedy: bool = False
    batch_lifetimes: int = 1024

    def __post_init__(self) -> None:
        for name in ("num_episodes", "num_seeds", "batch_lifetimes"):
            if getattr(self, name) < 1:
                raise ValueError(f"evaluation {name} must be at least 1, got {getattr(self, name)}")

    def run(
        self,
        model: SequenceModel,
        tasks: TaskDistribution,
        task_ids: np.ndarray,
        *,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> Lifetimes:
        """Runs `num_seeds` lifetimes of every task.

        Args:
            model: acts with its weights frozen.
            tasks: the distribution the task ids belong to.
            task_ids: which tasks, each once.
            seed: of the tasks and of the sampled actions.
            device: where the lifetimes run; the model must be there.

        Raises:
            RuntimeError: the weights changed while the model acted.
        """
        was_training = model.training
        model.eval()
        before = weights_checksum(model)
        ids = np.repeat(np.asarray(task_ids), self.num_seeds)
        seeds = np.tile(np.arange(self.num_seeds), len(task_ids))
        parts = [
            self._run_batch(model, tasks, ids[chunk], stream_seed(seed, "lifetimes", number), device)
            for number, chunk in enumerate(_chunks(len(ids), self.batch_lifetimes))
        ]
        model.train(was_training)
        if weights_checksum(model) != before:
            raise RuntimeError("the model's weights changed during evaluation; they must stay frozen")
        returns, observations, actions, num_steps = (np.concatenate(part) for part in zip(*parts, strict=True))
        return Lifetimes(ids, seeds, returns, observations, actions, num_steps)

    @torch.inference_mode()
    def _run_batch(
        self,
        model: SequenceModel,
        tasks: TaskDistribution,
        task_ids: np.ndarray,
        seed: int,
        device: torch.device | str,
    ) -> tuple[np.ndarray, ...]:
        batch = tasks.batch(task_ids, seed=seed, device=device)
        generator = torch_generator(seed, "actions", device=device)
        record = LifetimeRecord(len(task_ids), self.num_episodes, tasks.spec, device)
        cache = model.new_cache(len(task_ids))
        observations, previous = batch.reset(), None
        for _ in range(self.num_episodes * tasks.spec.episode_steps):
            logits = model.act(observations, previous, cache)
            actions = logits.argmax(-1) if self.greedy else sample_actions(logits, generator)
            transition = batch.step(actions)
            ended = transition.terminated | transition.truncated
            record.add(observations, actions, transition.rewards, ended)
            previous = (actions, transition.rewards)
            # A new episode starts in the very step that ends the old one; the context runs on.
            observations = batch.reset(ended) if bool(ended.any()) else transition.observations
            if record.finished():
                break
        return record.arrays()


class LifetimeRecord:
    """Files every step of L lifetimes under its episode; lifetimes may be in different episodes."""

    def __init__(self, num_lifetimes: int, num_episodes: int, spec: TaskSpec, device: torch.device | str) -> None:
        self._lifetimes = torch.arange(num_lifetimes, device=device)
        self._episode = torch.zeros(num_lifetimes, dtype=torch.int64, device=device)
        self._step = torch.zeros_like(self._episode)
        self._num_episodes = num_episodes
        # One episode more than asked for: lifetimes that are done first go on there, unrecorded.
        self._returns = torch.zeros(num_lifetimes, num_episodes + 1, device=device)
        self._num_steps = torch.zeros(num_lifetimes, num_episodes + 1, dtype=torch.int64, device=device)
        steps = (num_lifetimes, num_episodes + 1, spec.episode_steps)
        self._actions = torch.zeros(steps, dtype=torch.uint8, device=device)
        dimensions = len(spec.observation_sizes)
        self._observations = torch.zeros(*steps, dimensions, dtype=torch.uint8, device=device)

    def add(self, observations: Tensor, actions: Tensor, rewards: Tensor, ended: Tensor) -> None:
        """Files one step of every lifetime."""
        where = (self._lifetimes, self._episode)
        self._returns[where] += rewards
        self._num_steps[where] += 1
        self._actions[(*where, self._step)] = actions.to(torch.uint8)
        self._observations[(*where, self._step)] = observations.to(torch.uint8)
        self._episode = (self._episode + ended).clamp_(max=self._num_episodes)
        self._step = (self._step + 1) * ~ended

    def finished(self) -> bool:
        """Whether every lifetime has all its episodes."""
        return bool((self._episode >= self._num_episodes).all())

    def arrays(self) -> tuple[np.ndarray, ...]:
        """Returns (L, N), observations (L, N, T, D), actions (L, N, T) and steps (L, N)."""
        kept = (self._returns, self._observations, self._actions, self._num_steps)
        return tuple(x[:, : self._num_episodes].cpu().numpy() for x in kept)


def sample_actions(logits: Tensor, generator: torch.Generator) -> Tensor:
    """(L,) actions drawn from (L, A) logits."""
    return torch.multinomial(logits.float().softmax(-1), 1, generator=generator)[:, 0]


def _chunks(total: int, size: int) -> Iterator[slice]:
    for first in range(0, total, size):
        yield slice(first, min(first + size, total))
