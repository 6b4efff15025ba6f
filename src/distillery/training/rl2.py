"""RL²: a sequence model learns by reinforcement to explore and then exploit, over trials of several episodes.

Sources: Duan et al., RL²: Fast Reinforcement Learning via Slow Reinforcement Learning (2016), arXiv 1611.02779; Wang
et al., Learning to reinforcement learn (2016), arXiv 1611.05763; the update is PPO's, Schulman et al. (2017),
arXiv 1707.06347. A trial is N consecutive episodes on one task; the context is never reset inside it, and the return
of the whole trial is what is maximised:

    L = - mean[ min(w_t A_t, clip(w_t, 1 - c, 1 + c) A_t) ] + value_weight / 2 * mean[ (V_t - G_t)^2 / s^2 ]
        - entropy_weight * mean[ entropy(pi_t) ]
    w_t = pi(a_t | trial before t, o_t) / pi_old(...),      G_t = A_t + V_t
    A_t = r_t + discount * V_t+1 - V_t + discount * gae_lambda * A_t+1,      A = V = 0 beyond the trial's last step

Values and advantages run on over the ends of episodes, for what an episode reveals is worth something in the next;
only the end of the trial is an end. Gradients run through the whole trial, from the first step on.

Ours differs in that any sequence model may be trained, not a recurrent one alone; in PPO where Duan et al. used TRPO
and Wang et al. A3C; in that each batch holds every training task equally often, as nearly as it can; and in scaling:

- Advantages are normalised over each batch (mean 0, deviation 1). Rewards are left alone.
- The value head predicts returns less their running mean over their running deviation s, and is rewritten whenever
  these move so that its values stay what they were (PopArt: van Hasselt et al., 2016, arXiv 1602.07714). So settings
  fit tasks of any scale of reward, and the value's error never drowns the policy's gradient.

The policy that is improved is exactly the one that acted: dropout is off in both.

With ``models=lstm_rl2 training=rl2`` on Dark Room, whose oracle gets 16.54, about two updates a second on one core of
a CPU; mean return of a trial's first and tenth episode:

    updates                50     100     150     200     225
    first episode         2.7     3.0     3.1     3.2     3.3
    tenth episode         6.3    11.7    14.5    15.4    15.5

These are training goals, 57 of 81. On goals it never saw rewarded the same model gets 5 of 16.56 in the tenth episode
and no more later: it finds them, and does not come back. Many tasks, and selection by validation, matter here.

Letters: B trials, T environment steps of a trial, N episodes, W width, P parameters of an action, D numbers of an
observation, K numbers of an action (absent where it is one whole number).
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distillery.core.protocols import SequenceModel, TaskBatch, TaskDistribution
from distillery.core.records import Context
from distillery.core.seeding import numpy_generator, stream_seed, torch_generator
from distillery.layers.actions import entropy, log_probability, sample
from distillery.layers.activation_checkpointing import activation_checkpointing
from distillery.layers.precision import bfloat16_products
from distillery.layers.value_head import ValueHead
from distillery.training.distributed import Workers
from distillery.training.sharding import blocks_of
from distillery.training.trials import Trials, estimate_advantages

ADAM_EPSILON = 1e-5


class RL2Learner:
    """Plays trials on training tasks and updates the model by PPO; see the module's text.

    Attributes:
        plays: draws its own trials, by `play`, from the tasks it was given, and reads no histories.

    Args:
        model: what is trained; it is moved to `device`. Its value head belongs to the learner.
        num_updates: length of the schedules of learning rate and entropy weight.
        tasks: gives the training tasks.
        seed: of tasks, actions and minibatches; an update's draws do not depend on the updates before it.
        batch_tasks: B, trials of one update; several processes share them.
        episodes_per_trial: N.
        learning_rate: of Adam, at first.
        final_fraction: of the learning rate, where its linear fall ends.
        discount: per step, across the ends of episodes.
        gae_lambda: see `estimate_advantages`.
        clip: c, how far a step's probability may move.
        entropy_weight: of the bonus for undecided policies, at first.
        final_entropy_weight: where its linear course ends; None keeps it as it is.
        value_weight: of the value's error.
        num_epochs: passes over the trials of one update.
        num_minibatches: parts of each pass, of whole trials.
        gradient_clip: global norm.
        device: `cpu`, `cuda`, ...
        bfloat16: updates multiply in bfloat16; acting stays in float32.
        compile: compile the pass over trials with `torch.compile`; acting stays as it is.
        fused: use Adam's fused kernel.
        activation_checkpointing: see `distillery.layers.activation_checkpointing`.
        fsdp: refused, since acting needs the whole model in every process.
        workers: the processes that train together; None is this one alone. Each plays its own tasks and normalises
            its own advantages, so that the result depends on their number.

    Raises:
        ValueError: a setting is out of range.
    """

    plays = True

    def __init__(
        self,
        model: SequenceModel,
        *,
        num_updates: int,
        tasks: TaskDistribution,
        seed: int,
        batch_tasks: int = 256,
        episodes_per_trial: int = 10,
        learning_rate: float = 4e-3,
        final_fraction: float = 0.1,
        discount: float = 0.99,
        gae_lambda: float = 0.95,
        clip: float = 0.2,
        entropy_weight: float = 0.01,
        final_entropy_weight: float | None = None,
        value_weight: float = 0.5,
        num_epochs: int = 2,
        num_minibatches: int = 8,
        gradient_clip: float = 1.0,
        device: torch.device | str = "cpu",
        bfloat16: bool = False,
        compile: bool = False,
        fused: bool = False,
        activation_checkpointing: bool = False,
        fsdp: bool = False,
        workers: Workers | None = None,
    ) -> None:
        if fsdp:
            raise ValueError("runtime.fsdp is for learners from histories; one that plays needs the model whole")
        if activation_checkpointing:
            blocks_of(model, "runtime.activation_checkpointing")
        self._workers = workers or Workers()
        final_entropy_weight = entropy_weight if final_entropy_weight is None else final_entropy_weight
        _require_at_least(1, num_updates=num_updates, batch_tasks=batch_tasks, episodes_per_trial=episodes_per_trial)
        _require_at_least(1, num_epochs=num_epochs, num_minibatches=num_minibatches)
        _require_at_least(0, entropy_weight=entropy_weight, final_entropy_weight=final_entropy_weight)
        _require_at_least(0, value_weight=value_weight)
        for name, value in (("discount", discount), ("gae_lambda", gae_lambda), ("final_fraction", final_fraction)):
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"training {name} must be from 0 to 1, got {value}")
        for name, value in (("learning_rate", learning_rate), ("clip", clip), ("gradient_clip", gradient_clip)):
            if not value > 0.0:
                raise ValueError(f"training {name} must be above 0, got {value}")
        if batch_tasks % (num_minibatches * self._workers.count):
            raise ValueError(
                f"training batch_tasks={batch_tasks} cannot be divided over num_minibatches={num_minibatches} parts "
                f"of {self._workers.count} processes; choose a multiple of {num_minibatches * self._workers.count}"
            )
        self.device = torch.device(device)
        self.model = model.to(self.device)
        self.value_head = ValueHead(model.width).to(self.device)
        self._both = nn.ModuleList([self.model, self.value_head])
        self._encode = torch.compile(model.encode) if compile else model.encode
        self._tasks, self._seed, self._num_updates = tasks, seed, num_updates
        self._train_ids = tasks.task_ids("train")
        self._num_trials, self._num_episodes = batch_tasks // self._workers.count, episodes_per_trial
        self._learning_rate, self._final_fraction = learning_rate, final_fraction
        self._discount, self._gae_lambda, self._clip = discount, gae_lambda, clip
        self._entropy_weights, self._value_weight = (entropy_weight, final_entropy_weight), value_weight
        self._num_epochs, self._num_minibatches = num_epochs, num_minibatches
        self._gradient_clip, self._bfloat16 = gradient_clip, bfloat16
        self._activation_checkpointing = activation_checkpointing
        self._optimiser = torch.optim.Adam(
            self._both.parameters(), lr=learning_rate, eps=ADAM_EPSILON, fused=fused or None
        )

    # Playing

    def play(self, update: int) -> Trials:
        """The trials of the given update, counted from 0, played by the model as it is now."""
        names = ("rl2", update, self._workers.rank)
        generator = torch_generator(self._seed, *names, "actions", device=self.device)
        batch = self._tasks.batch(
            self._draw_tasks(update), seed=stream_seed(self._seed, *names, "tasks"), device=self.device
        )
        observations, actions, rewards, parameters, values, episodes = (
            torch.stack(steps, 1) for steps in zip(*self._act_out(batch, generator), strict=True)
        )
        weights = (episodes < self._num_episodes).float()
        return Trials(
            Context(observations, actions, rewards * weights, weights=weights),
            log_probability(batch.spec.action, parameters, actions),
            values,
            episodes,
            self._num_episodes,
        )

    def _draw_tasks(self, update: int) -> np.ndarray:
        """(B,) training tasks, each as often as any other, or once more."""
        generator = numpy_generator(self._seed, "rl2", update, self._workers.rank, "draw")
        rounds = -(-self._num_trials // len(self._train_ids))
        return np.concatenate([generator.permutation(self._train_ids) for _ in range(rounds)])[: self._num_trials]

    @torch.inference_mode()
    def _act_out(self, batch: TaskBatch, generator: torch.Generator) -> list[tuple[Tensor, ...]]:
        """What every step was: observations, actions, rewards, parameters of the actions, values, episodes."""
        self.model.eval()
        steps: list[tuple[Tensor, ...]] = []
        cache = self.model.new_cache(len(batch.task_ids))
        observations, previous = batch.reset(), None
        episodes = torch.zeros_like(batch.task_ids)
        while bool((episodes < self._num_episodes).any()):
            features = self.model.encode_step(observations, previous, cache)
            parameters = self.model.action_head(features)
            actions = sample(batch.spec.action, parameters, generator)
            transition = batch.step(actions)
            steps.append((observations, actions, transition.rewards, parameters, self.value_head(features), episodes))
            previous = (actions, transition.rewards)
            ended = transition.terminated | transition.truncated
            # A new episode starts in the very step that ends the old one; the context runs on. Trials that are over
            # go on, uncounted, until the last one is.
            observations = batch.reset(ended) if bool(ended.any()) else transition.observations
            episodes = (episodes + ended).clamp(max=self._num_episodes)
        return steps

    # Updating

    def update(self, trials: Trials, update: int) -> dict[str, Tensor]:
        """Several epochs over the trials; returns means of the losses, and the returns, still on the device."""
        self._without_dropout()
        progress = update / self._num_updates
        first, last = self._entropy_weights
        entropy_weight = first + (last - first) * progress
        for group in self._optimiser.param_groups:
            group["lr"] = self._learning_rate * (1 - (1 - self._final_fraction) * progress)
        if self._bfloat16:
            trials = self._read_again(trials)
        advantages, targets = self._advantages(trials)
        generator = torch_generator(self._seed, "rl2", update, self._workers.rank, "minibatches")
        metrics = []
        for _ in range(self._num_epochs):
            order = torch.randperm(self._num_trials, generator=generator).to(self.device)
            for part in order.chunk(self._num_minibatches):
                metrics.append(self._improve(trials, part, advantages, targets, entropy_weight))
        means = {name: torch.stack([one[name] for one in metrics]).mean() for name in metrics[0]}
        returns = trials.returns
        return {**means, "return": returns.mean(), "final_return": returns[:, -1].mean()}

    def _without_dropout(self) -> None:
        self.model.eval()
        for module in self.model.modules():
            if isinstance(module, nn.RNNBase):  # whose gradient cuDNN computes in training mode only
                module.train()

    @torch.no_grad()
    def _read_again(self, trials: Trials) -> Trials:
        """The trials with log-probabilities and values as the less precise pass has them: no policy has moved yet."""
        parts = []
        for part in torch.arange(self._num_trials, device=self.device).chunk(self._num_minibatches):
            parameters, features = self._read(trials, part)
            taken = log_probability(self.model.spec.action, parameters, trials.context.actions[part])
            parts.append((taken, self.value_head(features)))
        log_probabilities, values = (torch.cat(column) for column in zip(*parts, strict=True))
        return Trials(trials.context, log_probabilities, values, trials.episodes, trials.num_episodes)

    def _advantages(self, trials: Trials) -> tuple[Tensor, Tensor]:
        """(B, T) normalised advantages, and (B, T) returns as the value head shall predict them, on its scale."""
        weights = trials.weights
        advantages = estimate_advantages(
            trials.context.rewards, trials.values, weights, discount=self._discount, gae_lambda=self._gae_lambda
        )
        targets = advantages + trials.values
        moments = torch.stack([_mean(targets, weights), _mean(targets.square(), weights)]).tolist()
        # The first process's, so that the value heads stay alike.
        self.value_head.observe(*self._workers.from_first(moments))
        centred = advantages - _mean(advantages, weights)
        deviation = _mean(centred.square(), weights).sqrt()
        return centred / (deviation + 1e-8), (targets - self.value_head.mean) / self.value_head.deviation

    def _read(self, trials: Trials, part: Tensor) -> tuple[Tensor, Tensor]:
        """(b, T, P) parameters of actions and (b, T, W) features of some trials."""
        context = trials.context
        with (
            bfloat16_products(self.device.type, enabled=self._bfloat16),
            activation_checkpointing(enabled=self._activation_checkpointing),
        ):
            features = self._encode(Context(context.observations[part], context.actions[part], context.rewards[part]))
            return self.model.action_head(features), features

    def _improve(
        self, trials: Trials, part: Tensor, advantages: Tensor, targets: Tensor, entropy_weight: float
    ) -> dict[str, Tensor]:
        """One optimisation step on some trials."""
        parameters, features = self._read(trials, part)
        space, weights = self.model.spec.action, trials.weights[part]
        ratio = (
            log_probability(space, parameters, trials.context.actions[part]) - trials.log_probabilities[part]
        ).exp()
        clipped = ratio.clamp(1 - self._clip, 1 + self._clip)
        policy_loss = -_mean(torch.minimum(ratio * advantages[part], clipped * advantages[part]), weights)
        value_loss = _mean((self.value_head.scaled(features) - targets[part]).square(), weights) / 2
        undecided = _mean(entropy(space, parameters), weights)
        loss = policy_loss + self._value_weight * value_loss - entropy_weight * undecided
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self._workers.average_gradients(self._both)
        norm = nn.utils.clip_grad_norm_(self._both.parameters(), self._gradient_clip)
        self._optimiser.step()
        clipped_part = _mean((ratio.detach() != clipped.detach()).float(), weights)
        losses = {"loss": loss, "policy_loss": policy_loss, "value_loss": value_loss, "entropy": undecided}
        losses = {name: value.detach() for name, value in losses.items()}
        return {**losses, "clipped_fraction": clipped_part, "gradient_norm": norm}

    def whole_model(self) -> SequenceModel:
        """The model, which every process has whole."""
        return self.model

    def state_dict(self) -> dict[str, Any]:
        """Weights and optimiser state, for exact resume; every update's draws are seeded anew."""
        return {"networks": self._both.state_dict(), "optimiser": self._optimiser.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self._both.load_state_dict(state["networks"])
        self._optimiser.load_state_dict(state["optimiser"])


def _require_at_least(least: int, **settings: float) -> None:
    """Refuses settings below `least`.

    Raises:
        ValueError: naming the setting.
    """
    for name, value in settings.items():
        if value < least:
            raise ValueError(f"training {name} must be at least {least}, got {value}")


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean over all steps."""
    return (values * weights).sum() / weights.sum()
