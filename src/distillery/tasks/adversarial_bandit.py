"""Adversarial Bandit: ten arms whose good half is another one at test time than in training.

Source: Laskin et al., In-context Reinforcement Learning with Algorithm Distillation (2022), arXiv 2210.14215,
section 4. 10 arms, 100 pulls, and one episode is the whole run. In 95 % of the training tasks the odd arms pay, in
95 % of the held-out ones the even arms do.

The paper prints no law of rewards; ours is that of Sinii et al., In-Context Reinforcement Learning for Variable
Action Spaces (2023), arXiv 2312.13327: arms pay 1 or 0, the favoured ones with chances drawn from U[1/2, 1], the
others with chances from U[0, 1/2]. Arms are counted from 1, as people do, so that the odd ones are actions 0, 2, ...;
counted from 0 the two halves only change their names.

Tasks are a finite, numbered list, and what each arm of each task pays is a function of the settings alone. Each split
has draws of its own, so that more tasks in one change none in another.

Letters: E parallel environments, T environment steps, A arms.
"""

import numpy as np
import torch
from torch import Tensor

from distillery.core.records import EpisodeBatch
from distillery.core.seeding import numpy_generator, torch_generator
from distillery.core.specs import TaskSpec
from distillery.tasks.base import SPLITS, TabularTaskBatch, TaskDistribution, require_task_ids

# Which half is favoured in most tasks of each split; None says neither.
FAVOURED = {"train": "odd", "validation": "odd", "held_out": "even", "uniform": None, "seen": "odd"}


class AdversarialBandit(TaskDistribution):
    """Bernoulli bandits in five splits, numbered one split after another.

    Besides the three splits that every family has there are two: `uniform`, all of whose chances are drawn from
    U[0, 1] (which is also what a fair coin for each arm between the two laws gives), and `seen`, fresh bandits of the
    training distribution. `validation` has that distribution too: what selects a checkpoint must not know the flip.

    Args:
        num_arms: A.
        num_pulls: steps of the one episode.
        favoured_probability: of a task whose split favours odd (even) arms to do so; otherwise it favours the others.
        num_train: tasks to train on.
        num_validation: tasks that select checkpoints and hyper-parameters.
        num_held_out: tasks that are reported.
        num_uniform: tasks of the split `uniform`.
        num_seen: tasks of the split `seen`.
        split_seed: seed of what the arms pay.

    Raises:
        ValueError: a setting is out of range.
    """

    def __init__(
        self,
        *,
        num_arms: int = 10,
        num_pulls: int = 100,
        favoured_probability: float = 0.95,
        num_train: int = 20_000,
        num_validation: int = 100,
        num_held_out: int = 200,
        num_uniform: int = 200,
        num_seen: int = 200,
        split_seed: int = 0,
    ) -> None:
        super().__init__(
            num_train=num_train, num_validation=num_validation, num_held_out=num_held_out, split_seed=split_seed
        )
        if num_arms < 2:
            raise ValueError(f"adversarial_bandit num_arms must be at least 2, got {num_arms}")
        if not 0.0 <= favoured_probability <= 1.0:
            raise ValueError(
                f"adversarial_bandit favoured_probability must be from 0 to 1, got {favoured_probability}"
            )
        sizes = (num_train, num_validation, num_held_out, num_uniform, num_seen)
        self._sizes = dict(zip(FAVOURED, sizes, strict=True))
        for split, size in self._sizes.items():
            least = 1 if split in SPLITS else 0
            if size < least:
                raise ValueError(f"adversarial_bandit num_{split} must be at least {least}, got {size}")
        self.num_arms, self.num_pulls, self.favoured_probability = num_arms, num_pulls, favoured_probability
        self.spec = TaskSpec.of_sizes((1,), num_arms, num_pulls)
        self.num_tasks = sum(sizes)
        self.means = np.concatenate([self._draw_means(split) for split in FAVOURED])

    def _draw_means(self, split: str) -> np.ndarray:
        """(num_tasks of the split, A) float64: what each arm pays on average."""
        draws = numpy_generator(self.split_seed, "adversarial_bandit", split).random(
            (self._sizes[split], 1 + self.num_arms)
        )
        coins, means = draws[:, :1], draws[:, 1:]
        if FAVOURED[split] is None:
            return means
        odd_arms_pay = (coins < self.favoured_probability) == (FAVOURED[split] == "odd")
        is_odd = np.arange(self.num_arms) % 2 == 0  # counted from 1
        return means / 2 + 0.5 * (is_odd == odd_arms_pay)

    def splits(self) -> dict[str, np.ndarray]:
        """Task ids of each of the five splits; see `TaskDistribution.splits`. A split of no tasks is left out."""
        ends = np.cumsum(list(self._sizes.values()))
        ids = {split: np.arange(end - self._sizes[split], end) for split, end in zip(self._sizes, ends, strict=True)}
        return {split: tasks for split, tasks in ids.items() if len(tasks)}

    def oracle_returns(self) -> np.ndarray:
        """Pull the best arm and no other."""
        return self.num_pulls * self.means.max(1)

    def expert_actions(self, episode: EpisodeBatch, task_ids: np.ndarray) -> Tensor:
        """See `TaskDistribution.expert_actions`: the best arm at every step."""
        best = torch.as_tensor(self.means[task_ids].argmax(1), device=episode.rewards.device)
        return best[:, None].expand(episode.rewards.shape)

    def draw(self, task_id: int, state: int) -> np.ndarray:
        """See `TaskDistribution.draw`: the arms side by side, ``G`` the best one."""
        return np.where(np.arange(self.num_arms) == self.means[task_id].argmax(), "G", ".")[None]

    def batch(
        self, task_ids: np.ndarray, *, seed: int, device: torch.device | str = "cpu"
    ) -> "AdversarialBanditBatch":
        """Bandits for the given tasks."""
        return AdversarialBanditBatch(self, np.asarray(task_ids), seed=seed, device=device)


class AdversarialBanditBatch(TabularTaskBatch):
    """E bandits pulled as one array program. There is one state, in which every pull leaves them."""

    can_terminate = False

    def __init__(
        self, bandit: AdversarialBandit, task_ids: np.ndarray, *, seed: int, device: torch.device | str
    ) -> None:
        require_task_ids(task_ids, bandit.num_tasks)
        self.spec = bandit.spec
        self.task_ids = torch.as_tensor(task_ids, dtype=torch.int64, device=device)
        self._means = torch.as_tensor(bandit.means, device=device)  # (tasks, A) float64
        self._means_flat = self._means.flatten()
        self.state = torch.zeros_like(self.task_ids)
        self.next_state = torch.zeros(1, bandit.num_arms, dtype=torch.int64, device=device)
        self._generator = torch_generator(seed, "adversarial_bandit", device=device)
        self._elapsed = torch.zeros_like(self.task_ids)
        self._never = torch.zeros_like(self.task_ids, dtype=torch.bool)

    def reset(self, where: Tensor | None = None) -> Tensor:
        """See `TaskBatch.reset`."""
        self._elapsed = torch.zeros_like(self._elapsed) if where is None else self._elapsed * ~where
        return self.observe(self.state)

    def observe(self, states: Tensor) -> Tensor:
        """See `TaskBatch.observe`: always 0, there is nothing to see."""
        return torch.zeros_like(states)[..., None]

    def oracle_actions(self) -> Tensor:
        """See `TaskBatch.oracle_actions`: the best arm."""
        return self._means[self.task_ids].argmax(1)

    def advance(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `TaskBatch.advance`."""
        means = self._means_flat[self.task_ids * self.spec.num_actions + actions]
        draws = torch.rand(means.shape, generator=self._generator, dtype=means.dtype, device=means.device)
        self._elapsed = self._elapsed + 1
        return (draws < means).float(), self._never, self._elapsed >= self.spec.episode_steps
