"""Lambda-returns by hand, with one discount and lambda for all steps and with one for each."""

import pytest
import torch

from distillery.core.returns import lambda_returns


def test_lambda_returns_worked_by_hand() -> None:
    rewards, ahead = torch.tensor([1.0, 0.0, 2.0]), torch.tensor([10.0, 20.0, 30.0])
    returns = lambda_returns(rewards, ahead, None, discount=0.5, return_lambda=0.5)
    # 2 + 15 = 17;   0 + 0.5 * (10 + 8.5) = 9.25;   1 + 0.5 * (5 + 4.625) = 5.8125
    torch.testing.assert_close(returns, torch.tensor([5.8125, 9.25, 17.0]))


def test_lambda_returns_stop_where_the_task_ends() -> None:
    rewards, ahead = torch.tensor([[1.0, 0.0, 2.0]]), torch.tensor([[10.0, 20.0, 30.0]])
    continues = torch.tensor([[True, False, True]])
    returns = lambda_returns(rewards, ahead, continues, discount=0.5, return_lambda=0.5)
    # 17 as before;   0;   1 + 0.5 * (5 + 0) = 3.5
    torch.testing.assert_close(returns, torch.tensor([[3.5, 0.0, 17.0]]))


def test_lambda_returns_between_one_step_and_all_rewards() -> None:
    rewards, ahead = torch.tensor([1.0, 1.0, 1.0]), torch.tensor([4.0, 4.0, 8.0])
    one_step = lambda_returns(rewards, ahead, None, discount=0.5, return_lambda=0.0)
    torch.testing.assert_close(one_step, torch.tensor([3.0, 3.0, 5.0]))
    all_rewards = lambda_returns(rewards, ahead, None, discount=0.5, return_lambda=1.0)
    torch.testing.assert_close(all_rewards, torch.tensor([1 + 0.5 + 0.25 + 1, 1 + 0.5 + 2, 5.0]))


def test_lambda_returns_with_a_lambda_of_each_step() -> None:
    rewards, ahead = torch.tensor([1.0, 0.0, 2.0]), torch.tensor([10.0, 20.0, 30.0])
    # The first step looks no further than the value after it, 1 + 0.5 * 10. What the last one would trust is not read.
    for last in (0.0, 0.5, 1.0):
        returns = lambda_returns(rewards, ahead, discount=0.5, return_lambda=torch.tensor([0.0, 0.5, last]))
        torch.testing.assert_close(returns, torch.tensor([6.0, 9.25, 17.0]))


def test_lambda_returns_with_a_discount_of_each_step() -> None:
    rewards, ahead = torch.tensor([1.0, 0.0, 2.0]), torch.tensor([10.0, 20.0, 30.0])
    # The task ends with the second step: 0, and 1 + 0.5 * (5 + 0).
    returns = lambda_returns(rewards, ahead, discount=torch.tensor([0.5, 0.0, 0.5]), return_lambda=0.5)
    torch.testing.assert_close(returns, torch.tensor([3.5, 0.0, 17.0]))


@pytest.mark.parametrize("return_lambda", [0.0, 0.3, 0.75, 1.0])
def test_one_for_all_steps_is_the_same_as_one_for_each(return_lambda: float) -> None:
    generator = torch.Generator().manual_seed(0)
    rewards, ahead = torch.randn(2, 4, 5, 20, generator=generator)
    continues = torch.rand(4, 5, 20, generator=generator) < 0.8
    for_all = lambda_returns(rewards, ahead, continues, discount=0.9, return_lambda=return_lambda)
    for_each = lambda_returns(
        rewards, ahead, discount=0.9 * continues, return_lambda=torch.full_like(rewards, return_lambda)
    )
    torch.testing.assert_close(for_each, for_all)
