"""Returns that trust rewards for a while and values from there on.

Source: Sutton, Learning to Predict by the Methods of Temporal Differences (1988), Machine Learning 3:9-44, as the
returns of Watkins, Learning from delayed rewards (1989).

    G_t = r_t + discount * ((1 - lambda) * V_t+1 + lambda * G_t+1),      G = V beyond a stretch's last step

Letters: T environment steps.
"""

import torch
from torch import Tensor


def lambda_returns(
    rewards: Tensor,
    values_ahead: Tensor,
    continues: Tensor | None = None,
    *,
    discount: float | Tensor,
    return_lambda: float | Tensor,
) -> Tensor:
    """(..., T) what each step is worth, by rewards and by values of what they led to.

    Args:
        rewards: (..., T).
        values_ahead: (..., T) values of what was seen after each step; the last one closes the stretch.
        continues: (..., T) bool, False where the task ended; None says that it never did, or that `discount` says it.
        discount: from 0 to 1, or (..., T), one for each step.
        return_lambda: from 0, the next value is all that counts, to 1, the rewards are; or (..., T), one for each
            step. That of the last counts nothing.
    """
    returns = torch.empty_like(rewards)
    ahead = values_ahead[..., -1]
    for step in range(rewards.shape[-1] - 1, -1, -1):
        trust = return_lambda[..., step] if isinstance(return_lambda, Tensor) else return_lambda
        ahead = torch.lerp(values_ahead[..., step], ahead, trust)
        if continues is not None:
            ahead = ahead * continues[..., step]
        # Two ways to one number but for its last bit, on which whole histories depend: the second is one fused
        # operation, which rounds once.
        if isinstance(discount, Tensor):
            ahead = rewards[..., step] + discount[..., step] * ahead
        else:
            ahead = torch.add(rewards[..., step], ahead, alpha=discount)
        returns[..., step] = ahead
    return returns
