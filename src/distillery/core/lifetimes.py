"""What all who measure lifetimes agree on.

Letters: N episodes.
"""

import numpy as np

# Agents that train nothing: what learned ones are held against.
BASELINES = ("source", "random", "oracle")
# The end of a lifetime, whose mean return is its level.
FINAL_EPISODES = 10
_ROUNDING = 1e-9


def episodes_to(curve: np.ndarray, level: float) -> int | None:
    """First episode e of an (N,) curve, counted from 1, that returns `level` itself and begins ten that average it.

    The mean of ten alone would count from an episode that is still below; one episode alone might be luck.
    """
    if len(curve) < FINAL_EPISODES:
        return None
    averages = np.convolve(curve, np.full(FINAL_EPISODES, 1 / FINAL_EPISODES), "valid")
    reached = np.flatnonzero(np.minimum(averages, curve[: len(averages)]) >= level - _ROUNDING)
    return int(reached[0]) + 1 if len(reached) else None
