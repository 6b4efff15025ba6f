"""Plain ways to write the same transformer and the same training step.

Every network adds up the same embeddings of observation, previous action and previous reward, sends the sum through
its own backbone, and reads actions off by a linear map; the backbones have the same width, layers, heads and
feed-forward width, no dropout, learned positions and full causal attention. GELU is exact, but for GPT-2 as it comes.

Letters: B batch, T environment steps, W width, A actions.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distillery.core.records import Context
from distillery.core.specs import TaskSpec
from distillery.layers.embeddings import StepEmbedding


class Network(nn.Module):
    """Embeddings, a backbone from (B, T, W) to (B, T, W), and a head.

    Args:
        spec: of the tasks.
        backbone: sees no later step.
        width: W.
    """

    def __init__(self, spec: TaskSpec, backbone: nn.Module, *, width: int) -> None:
        super().__init__()
        self.embedding = StepEmbedding(spec, width)
        self.backbone = backbone
        self.action_head = nn.Linear(width, spec.num_actions)

    def forward(self, context: Context) -> Tensor:
        """(B, T, A) logits."""
        tokens = self.embedding.tokens(context.observations, context.actions, context.rewards, per_step=1)
        logits: Tensor = self.action_head(self.backbone(tokens))
        return logits


class TorchEncoder(nn.Module):
    """`torch.nn.TransformerEncoder` under a causal mask, which it recognises and then need not read.

    Args:
        width: W.
        num_layers: of it.
        num_heads: of each layer.
        num_steps: T, positions that are learned.
    """

    def __init__(self, *, width: int, num_layers: int, num_heads: int, num_steps: int) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            width, num_heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, num_layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.positions = nn.Embedding(num_steps, width)
        self.mask: Tensor
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(num_steps), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T, W) to (B, T, W)."""
        num_steps = tokens.shape[1]
        x = tokens + self.positions.weight[:num_steps]
        encoded: Tensor = self.encoder(x, mask=self.mask[:num_steps, :num_steps], is_causal=True)
        return encoded


class PlainTraining:
    """A training step as it is usually written: autocast, cross-entropy, gradients cut to a norm of 1, AdamW.

    Args:
        network: what is trained.
        device: where.
        bfloat16: autocast to bfloat16.
        compile: compile the network with `torch.compile`.
    """

    def __init__(self, network: nn.Module, *, device: str, bfloat16: bool, compile: bool) -> None:
        self.network = network.to(device).train()
        self._forward = torch.compile(self.network) if compile else self.network
        self._device_type, self._bfloat16 = torch.device(device).type, bfloat16
        self._optimiser = torch.optim.AdamW(
            self.network.parameters(), lr=3e-3, betas=(0.9, 0.99), weight_decay=0.01, fused=device != "cpu" or None
        )

    def update(self, context: Context) -> Tensor:
        """One step; returns the loss, still on the device."""
        self._optimiser.zero_grad(set_to_none=True)
        with torch.autocast(self._device_type, torch.bfloat16, enabled=self._bfloat16):
            logits = self._forward(context)
            loss = F.cross_entropy(logits.flatten(0, 1).float(), context.actions.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self._optimiser.step()
        return loss.detach()
