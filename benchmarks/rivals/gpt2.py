"""GPT-2 of `transformers`, from a configuration, as a backbone."""

from torch import Tensor, nn
from transformers import GPT2Config, GPT2Model


class GPT2(nn.Module):
    """`transformers.GPT2Model` over embedded steps; it adds its own learned positions.

    Args:
        width: of it.
        num_layers: of it.
        num_heads: of each layer.
        num_steps: positions that are learned.
        activation: by its name in `transformers`: ``gelu_new``, its own approximation, or the exact ``gelu``.
    """

    def __init__(self, *, width: int, num_layers: int, num_heads: int, num_steps: int, activation: str) -> None:
        super().__init__()
        config = GPT2Config(
            vocab_size=1,  # words are not read, steps come embedded
            n_positions=num_steps,
            n_embd=width,
            n_layer=num_layers,
            n_head=num_heads,
            n_inner=4 * width,
            activation_function=activation,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            use_cache=False,
            bos_token_id=None,
            eos_token_id=None,
        )
        self.model = GPT2Model(config)
        # The table of words gets no gradient, and an optimiser should not go through it.
        self.model.wte.weight.requires_grad_(False)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T, W) to (B, T, W)."""
        encoded: Tensor = self.model(inputs_embeds=tokens).last_hidden_state
        return encoded
