"""In-context evaluation: one lifetime per task and seed, all of them in one batch.

Source: Laskin et al. (2022), arXiv 2210.14215, section 3: weights are frozen, the context starts empty (or with a
prompt), and it is never reset between episodes, so whatever is learned is learned in context.

Letters: L lifetimes, N episodes, T environment steps, D numbers of an observation, K numbers of an action.
"""

import copy
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from distillery.core.protocols import SequenceModel, TaskBatch, TaskDistribution
from distillery.core.records import Lifetimes
from distillery.core.seeding import stream_seed, torch_generator
from distillery.core.specs import TaskSpec, torch_dtype
from distillery.evaluation.prompting import Prompt
from distillery.layers.actions import likeliest, sample

# Observations of more numbers than these are not kept: they are many, and no figure draws them.
WIDEST_KEPT = 16


def keeps_observations(spec: TaskSpec) -> bool:
    """Whether lifetimes of such tasks hold their observations."""
    return spec.is_discrete and spec.observation_width <= WIDEST_KEPT


def weights_checksum(model: torch.nn.Module) -> str:
    """Hex SHA-256 over all parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class LivedStep:
    """One step of L lifetimes.

    Attributes:
        observations: (L, D), seen before the action.
        actions: (L[, K]).
        rewards: (L,) float32, given after it.
        ended: (L,) bool, whether the episode ended with it.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    ended: Tensor


def live(
    model: SequenceModel, batch: TaskBatch, choose: Callable[[Tensor], Tensor], *, prompt: Prompt | None = None
) -> Iterator[LivedStep]:
    """Lifetimes without an end, step by step; to be run under `torch.inference_mode`.

    Args:
        model: acts with its weights frozen.
        batch: L environments.
        choose: from (L, P) parameters of actions to (L[, K]) actions.
        prompt: what the context is filled with first; None leaves it empty.
    """
    cache, previous = model.new_cache(len(batch.task_ids)), None
    if prompt is not None:
        previous = prompt.feed(model, cache, batch.task_ids.device)
    observations = batch.reset()
    while True:
        actions = choose(model.act(observations, previous, cache))
        transition = batch.step(actions)
        ended = transition.terminated | transition.truncated
        yield LivedStep(observations, actions, transition.rewards, ended)
        previous = (actions, transition.rewards)
        # A new episode starts in the very step that ends the old one; the context runs on.
        observations = batch.reset(ended) if bool(ended.any()) else transition.observations


def chooser(spec: TaskSpec, *, greedy: bool, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """From (L, P) parameters to actions: the likeliest ones, or drawn."""
    if greedy:
        return lambda parameters: likeliest(spec.action, parameters)
    return lambda parameters: sample(spec.action, parameters, generator)


@dataclass(frozen=True)
class InContextEvaluation:
    """How lifetimes are run.

    Attributes:
        num_episodes: N, episodes per lifetime.
        num_seeds: lifetimes per task.
        greedy: take the likeliest action instead of sampling.
        batch_lifetimes: how many lifetimes share one batch; bounds memory, changes nothing but the draws.
        bfloat16: act with weights and caches rounded to bfloat16, which halves the memory of keys and values.
    """

    num_episodes: int
    num_seeds: int
    greedy: bool = False
    batch_lifetimes: int = 1024
    bfloat16: bool = False

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
        prompt: Prompt | None = None,
    ) -> Lifetimes:
        """Runs `num_seeds` lifetimes of every task.

        Args:
            model: acts with its weights frozen.
            tasks: the distribution the task ids belong to.
            task_ids: which tasks, each once.
            seed: of the tasks and of the sampled actions.
            device: where the lifetimes run; the model must be there.
            prompt: what each lifetime's context begins with, the seeds of a task one after another; None is nothing.

        Raises:
            ValueError: the prompt is not of as many lifetimes.
            RuntimeError: the weights changed while the model acted.
        """
        ids = np.repeat(np.asarray(task_ids), self.num_seeds)
        seeds = np.tile(np.arange(self.num_seeds), len(task_ids))
        if prompt is not None and prompt.num_lifetimes != len(ids):
            raise ValueError(
                f"the prompt is of {prompt.num_lifetimes} lifetimes and {len(task_ids)} tasks of num_seeds="
                f"{self.num_seeds} have {len(ids)}; make one of as many"
            )
        was_training = model.training
        model.eval()
        acting = _rounded(model) if self.bfloat16 else model
        before = weights_checksum(acting)
        parts = [
            self._run_batch(
                acting,
                tasks,
                ids[chunk],
                stream_seed(seed, "lifetimes", number),
                device,
                None if prompt is None else prompt.select(chunk),
            )
            for number, chunk in enumerate(_chunks(len(ids), self.batch_lifetimes))
        ]
        model.train(was_training)
        if weights_checksum(acting) != before:
            raise RuntimeError("the model's weights changed during evaluation; they must stay frozen")
        returns, num_steps, actions = (np.concatenate([part[name] for part in parts]) for name in _RECORDED)
        observations = [part["observations"] for part in parts if "observations" in part]
        return Lifetimes(
            ids, seeds, returns, np.concatenate(observations) if observations else None, actions, num_steps
        )

    @torch.inference_mode()
    def _run_batch(
        self,
        model: SequenceModel,
        tasks: TaskDistribution,
        task_ids: np.ndarray,
        seed: int,
        device: torch.device | str,
        prompt: Prompt | None,
    ) -> dict[str, np.ndarray]:
        batch = tasks.batch(task_ids, seed=seed, device=device)
        choose = chooser(tasks.spec, greedy=self.greedy, generator=torch_generator(seed, "actions", device=device))
        record = LifetimeRecord(len(task_ids), self.num_episodes, tasks.spec, device)
        for step in live(model, batch, choose, prompt=prompt):
            record.add(step)
            if record.finished():
                break
        return record.arrays()


def _rounded(model: SequenceModel) -> SequenceModel:
    """A copy with weights in bfloat16; what positions are turned by stays exact."""
    rounded = copy.deepcopy(model)
    for parameter in rounded.parameters():
        parameter.data = parameter.data.bfloat16()
    return rounded


_RECORDED = ("returns", "num_steps", "actions")


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
        action_dtype = torch_dtype(spec.action.stored_dtype)
        self._actions = torch.zeros((*steps, *spec.action_shape), dtype=action_dtype, device=device)
        self._observations: Tensor | None = None
        if keeps_observations(spec):
            row = (*steps, spec.observation_width)
            self._observations = torch.zeros(row, dtype=torch_dtype(spec.stored_dtype), device=device)

    def add(self, step: LivedStep) -> None:
        """Files one step of every lifetime."""
        where = (self._lifetimes, self._episode)
        self._returns[where] += step.rewards
        self._num_steps[where] += 1
        self._actions[(*where, self._step)] = step.actions.to(self._actions.dtype)
        if self._observations is not None:
            self._observations[(*where, self._step)] = step.observations.to(self._observations.dtype)
        self._episode = (self._episode + step.ended).clamp_(max=self._num_episodes)
        self._step = (self._step + 1) * ~step.ended

    def finished(self) -> bool:
        """Whether every lifetime has all its episodes."""
        return bool((self._episode >= self._num_episodes).all())

    def arrays(self) -> dict[str, np.ndarray]:
        """`returns` (L, N), `num_steps` (L, N), `actions` (L, N, T[, K]); `observations` (L, N, T, D) where kept."""
        kept = {"returns": self._returns, "num_steps": self._num_steps, "actions": self._actions}
        if self._observations is not None:
            kept["observations"] = self._observations
        return {name: values[:, : self._num_episodes].cpu().numpy() for name, values in kept.items()}


def _chunks(total: int, size: int) -> Iterator[slice]:
    for first in range(0, total, size):
        yield slice(first, min(first + size, total))
