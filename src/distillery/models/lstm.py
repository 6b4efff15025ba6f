"""A recurrent network over histories that run across episodes.

Sources: Hochreiter & Schmidhuber, Long Short-Term Memory (1997); as the model of Algorithm Distillation (AD-LSTM),
Laskin et al., In-context Reinforcement Learning with Algorithm Distillation (2022), arXiv 2210.14215, appendix; as the
agent of RL², Duan et al. (2016), arXiv 1611.02779.

    h_t = LSTM((o_0, a_0, r_0), ..., (o_t-1, a_t-1, r_t-1)),      P(a_t | history before t, o_t) = head(MLP(h_t, o_t))

Observation, action and reward are embedded apart and laid side by side. Ours differs in its sizes, made for a CPU (the
paper's are 512 units, and two layers of 256 in the MLP), in an orthogonal first recurrence with open forget gates,
and in a first policy that is nearly uniform; none of these is printed in the paper.

Letters: B batch, T environment steps, D numbers of an observation, E embedding width, H hidden units, W width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distillery.core.protocols import SequenceModel
from distillery.core.records import Context
from distillery.core.specs import TaskSpec
from distillery.layers.actions import num_action_parameters
from distillery.layers.embeddings import IMAGE_CHANNELS, StepEmbedding

FIRST_POLICY_GAIN = 0.01


@dataclass
class LSTMCache:
    """What B lifetimes remember.

    Attributes:
        hidden: (num_layers, B, H), after every step before the current one.
        cell: (num_layers, B, H).
        seen: (B, E), the current observation, embedded: it enters the state with its action and reward, one step
            later. None before the first.
    """

    hidden: Tensor
    cell: Tensor
    seen: Tensor | None = None


class LSTMModel(SequenceModel):
    """See the module's text.

    Args:
        spec: spaces of observations and actions.
        context_length: environment steps it is trained on. It limits nothing: the state runs on for ever, and what is
            older fades by itself.
        hidden_size: H, units of each recurrent layer.
        num_layers: recurrent layers.
        embedding_width: E, of observations, actions and rewards each.
        mlp_depth: layers between the state and the action head.
        mlp_width: W, units of each of them.
        observation_embedding: `factored` or `joint`.
        image_channels: of each convolution, for parts of observations that are images.

    Raises:
        ValueError: a setting is out of range.
    """

    action_head: nn.Linear
    has_window = False

    def __init__(
        self,
        spec: TaskSpec,
        *,
        context_length: int,
        hidden_size: int = 256,
        num_layers: int = 1,
        embedding_width: int = 64,
        mlp_depth: int = 1,
        mlp_width: int = 128,
        observation_embedding: str = "factored",
        image_channels: Sequence[int] = IMAGE_CHANNELS,
    ) -> None:
        super().__init__()
        if context_length < 1:
            raise ValueError(f"context_length must be at least 1 environment step, got {context_length}")
        sizes = {"hidden_size": hidden_size, "num_layers": num_layers, "embedding_width": embedding_width}
        for name, size in {**sizes, "mlp_depth": mlp_depth, "mlp_width": mlp_width}.items():
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        self.spec, self.context_length, self.width = spec, context_length, mlp_width
        self.embedding = StepEmbedding(spec, embedding_width, observation_embedding, image_channels=image_channels)
        self.lstm = nn.LSTM(3 * embedding_width, hidden_size, num_layers, batch_first=True)
        widths = [hidden_size + embedding_width, *[mlp_width] * mlp_depth]
        self.mlp = nn.Sequential()
        for size_in, size_out in pairwise(widths):
            self.mlp.extend([nn.Linear(size_in, size_out), nn.ReLU()])
        self.action_head = nn.Linear(mlp_width, num_action_parameters(spec.action))
        self._initialise()

    def _initialise(self) -> None:
        for name, parameter in self.lstm.named_parameters():
            if name.startswith("weight_ih"):
                nn.init.xavier_uniform_(parameter)
            elif name.startswith("weight_hh"):
                nn.init.orthogonal_(parameter)
            else:
                nn.init.zeros_(parameter)
                if name.startswith("bias_ih"):  # the second quarter opens the forget gates (Gers et al., 2000)
                    nn.init.ones_(parameter.chunk(4)[1])
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)
        nn.init.orthogonal_(self.action_head.weight, FIRST_POLICY_GAIN)
        nn.init.zeros_(self.action_head.bias)

    def _inputs(self, seen: Tensor, actions: Tensor, rewards: Tensor) -> Tensor:
        """(..., 3 E): whole steps, from embedded observations, (..., E)."""
        return torch.cat([seen, self.embedding.actions(actions), self.embedding.rewards(rewards)], -1)

    def _features(self, states: Tensor, seen: Tensor) -> Tensor:
        """(..., W), from states, (..., H), and embedded observations, (..., E)."""
        features: Tensor = self.mlp(torch.cat([states, seen], -1))
        return features

    def encode(self, context: Context) -> Tensor:
        """See `SequenceModel.encode`."""
        seen = self.embedding.observations(context.observations)  # (B, T, E)
        num_past = seen.shape[1] - 1
        states = seen.new_zeros(*seen.shape[:2], self.lstm.hidden_size)
        if num_past > 0:
            inputs = self._inputs(seen[:, :-1], context.actions[:, :num_past], context.rewards[:, :num_past])
            # The state of a step holds the steps before it: nothing, at the first.
            states = F.pad(self.lstm(inputs)[0], (0, 0, 1, 0))  # (B, T, H)
        return self._features(states, seen)

    def new_cache(self, batch_size: int) -> LSTMCache:
        """See `SequenceModel.new_cache`."""
        like = self.action_head.weight
        hidden = like.new_zeros(self.lstm.num_layers, batch_size, self.lstm.hidden_size)
        return LSTMCache(hidden, torch.zeros_like(hidden))

    def encode_step(self, observations: Tensor, previous: tuple[Tensor, Tensor] | None, cache: LSTMCache) -> Tensor:
        """See `SequenceModel.encode_step`."""
        if previous is not None:
            assert cache.seen is not None, "a lifetime's first step has no previous one"
            inputs = self._inputs(cache.seen, *previous)[:, None]  # (B, 1, 3 E)
            _, (cache.hidden, cache.cell) = self.lstm(inputs, (cache.hidden, cache.cell))
        cache.seen = self.embedding.observations(observations)
        return self._features(cache.hidden[-1], cache.seen)
