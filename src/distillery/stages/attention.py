"""What a trained model attends to late in a lifetime on held-out tasks."""

from typing import Any

import numpy as np
from omegaconf import DictConfig

from distillery.core.protocols import TaskDistribution
from distillery.core.seeding import stream_seed
from distillery.evaluation.attention_maps import attention_map, record_steps, summarise_attention
from distillery.stages.entry import build, checkpoint_folder
from distillery.stages.evaluate import load_model
from distillery.stages.evaluated import evaluated_tasks


def mapped_attention(config: DictConfig, at_step: int) -> dict[str, Any]:
    """Numbers of the attention at one step, and one lifetime's weights over the steps before it.

    Returns:
        what `distillery.evaluation.attention_maps.summarise_attention` tells, and of the first lifetime, for each step
        of the window: `weights` (mean over layers and heads), `rewarded` and `episode_starts` (places in it).
    """
    tasks: TaskDistribution = build(config.tasks)
    device = config.runtime.device
    model = load_model(checkpoint_folder(config, config.agent), tasks).to(device)
    steps = record_steps(
        model,
        tasks,
        evaluated_tasks(config, tasks, "held_out"),
        num_steps=at_step + 1,
        seed=stream_seed(config.seed, "attention"),
        device=device,
    )
    attention = attention_map(model, steps, at_step)
    window = slice(max(0, at_step + 1 - model.context_length), at_step + 1)
    return {
        **summarise_attention(attention),
        "weights": attention.weights[0, :, :, window].mean((0, 1)).tolist(),
        "rewarded": np.flatnonzero(attention.rewarded[0, window]).tolist(),
        "episode_starts": np.flatnonzero(attention.episode_starts[0, window]).tolist(),
    }
