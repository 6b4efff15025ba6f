"""What the lab aims at, as ratios that `results.json` holds by key: wall time decides, CPU time stands beside it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """A ratio to reach.

    Attributes:
        key: of the ratio.
        what: it is.
        bound: which values meet it, for the reader.
    """

    key: str
    what: str
    bound: str


TARGETS = (
    Target(
        "collection_tabular_vs_sb3",
        "collection, tabular, beside the faster of PPO and DQN on environments of stable-baselines3",
        "≥ 1000",
    ),
    Target(
        "collection_a2c_vs_sb3",
        "collection, actor-critic of 3x128, beside A2C of stable-baselines3 with the same network",
        "≥ 30",
    ),
    Target("training_vs_gpt2_width64", "training at width 64, 4 layers, 400 steps, beside GPT-2 as it comes", "≥ 1.5"),
    Target(
        "training_vs_gpt2_width256", "training at width 256, 8 layers, 512 steps, beside GPT-2 as it comes", "≥ 2.2"
    ),
    Target("evaluation_cached_vs_recompute_200", "acting with a cache beside recomputing, context 200", "≥ 20"),
    Target("evaluation_cached_vs_recompute_1000", "acting with a cache beside recomputing, context 1000", "≥ 80"),
    Target("lifetime_last_vs_first_tenth", "time of a step, last tenth of a lifetime beside the first", "≤ 1.1"),
    Target("lifetime_memory_last_vs_first_tenth", "memory, at the end of the last tenth beside the first", "1"),
    Target("windows_vs_training_step", "drawing a batch of windows, as a part of a training step", "≤ 0.05"),
    Target("view_vs_acting_step_18x24", "drawing a view, as a part of a step of acting in Watermaze, 18x24", "≤ 0.25"),
    Target("memory_4x_vs_1x", "peak memory of collection, four times the histories beside once", "1"),
    Target(
        "end_to_end_vs_before", "from empty folders to 14.1 in Dark Room, beside an older commit's way", "≤ 0.5, CPU"
    ),
    Target(
        "end_to_end_vs_same_before", "the same, the older commit with today's short preset", "as low as can be, CPU"
    ),
    Target(
        "training_25m_vs_bfloat16_limit_cuda", "training 25 M parameters at context 4096, of the bf16 limit", "≥ 0.4"
    ),
)
