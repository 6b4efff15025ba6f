"""Thompson sampling for bandits whose arms pay 1 or 0, all learners advanced together.

Source: Thompson, On the Likelihood that One Unknown Probability Exceeds Another in View of the Evidence of Two
Samples (1933), Biometrika 25:285-294; Chapelle and Li, An Empirical Evaluation of Thompson Sampling (2011).

    arm <- argmax_a  theta(a),   theta(a) ~ Beta(1 + rewards(a), 1 + pulls(a) - rewards(a))

The prior is uniform. Ours differs in nothing; rewards between 0 and 1 count as parts of a success. Draws from Beta are
ratios of draws from Gamma, made as by Marsaglia and Tsang, A Simple Method for Generating Gamma Variables (2000), ACM
TOMS 26:363-372. It rejects at most one candidate in twenty; all learners are given `NUM_CANDIDATES` of them, needed or
not, so that no learner's draws depend on the others' needs.

Letters: E learners, A arms.
"""

import numpy as np
import torch
from torch import Tensor

from distillery.core.protocols import TaskDistribution
from distillery.sources.base import Source, require_counts
from distillery.sources.ucb import BanditLearners

# All of them are rejected once in 60 million draws; the last one is then taken as it is.
NUM_CANDIDATES = 6


class ThompsonSampling(Source):
    """Pulls each arm as often as it is likely to be the best.

    Args:
        num_episodes: length of one history, in episodes; what was learned in one is kept in the next.
    """

    def __init__(self, *, num_episodes: int) -> None:
        require_counts("thompson", num_episodes=num_episodes)
        self.num_episodes = num_episodes

    def score(self, pulls: Tensor, sums: Tensor, generator: torch.Generator) -> Tensor:
        """(E, A) draws from the beliefs about each arm, given pulls and summed rewards, both (E, A)."""
        # X / (X + Y) is Beta(a, b) where X is Gamma(a) and Y Gamma(b).
        successes, failures = gamma_draws(1 + torch.stack([sums, pulls - sums]), generator)
        return successes / (successes + failures)

    def start(
        self, tasks: TaskDistribution, task_ids: np.ndarray, *, seed: int, device: torch.device | str = "cpu"
    ) -> BanditLearners:
        """See `Source.start`.

        Raises:
            ValueError: the tasks are no bandits.
        """
        return BanditLearners("thompson", self.score, tasks, task_ids, seed=seed, device=device)


def gamma_draws(shapes: Tensor, generator: torch.Generator) -> Tensor:
    """(...) draws from Gamma of the given shapes, (...), none of which is below 1, and of scale 1."""
    size = (NUM_CANDIDATES, *shapes.shape)
    normals = torch.randn(size, generator=generator, device=shapes.device)
    uniforms = torch.rand(size, generator=generator, device=shapes.device)
    d = shapes - 1 / 3
    v = (1 + normals / (9 * d).sqrt()) ** 3
    accepted = uniforms.log() < normals.square() / 2 + d * (1 - v + v.clamp(min=1e-30).log())
    accepted &= v > 0
    accepted[-1] = True
    first = accepted.byte().argmax(0, keepdim=True)
    return d * v.gather(0, first)[0].clamp(min=1e-30)
