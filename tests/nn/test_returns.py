"""Expectile regression against closed forms, the classes of returns, and the head with an entropy's temperature."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from scanrl.nn.entropy import EntropyGaussianHead
from scanrl.nn.returns import expectile_loss, return_bin_edges
from tests.conftest import BOX, make_stats


def minimiser(values: Tensor, weights: Tensor, expectile: float) -> float:
    """Where the derivative of the mean loss is 0, by bisection; the loss is convex."""
    low, high = float(values.min()), float(values.max())
    for _ in range(60):
        middle = torch.tensor((low + high) / 2, dtype=torch.float64, requires_grad=True)
        (weights * expectile_loss(values - middle, expectile)).sum().backward()
        low, high = (middle.item(), high) if middle.grad < 0 else (low, middle.item())  # type: ignore[operator]
    return low


@pytest.mark.parametrize("expectile", [0.01, 0.5, 0.7, 0.99])
def test_the_loss_is_smallest_at_the_expectile_of_a_uniform_distribution(expectile: float) -> None:
    n = 100_000
    values = (torch.arange(n, dtype=torch.float64) + 0.5) / n  # tau (1 - e)^2 = (1 - tau) e^2
    expected = math.sqrt(expectile) / (math.sqrt(expectile) + math.sqrt(1 - expectile))
    assert minimiser(values, torch.full((n,), 1 / n), expectile) == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("expectile", [0.1, 0.5, 0.99])
@pytest.mark.parametrize("share", [0.2, 0.9])
def test_the_loss_is_smallest_at_the_expectile_of_two_points(expectile: float, share: float) -> None:
    values, weights = torch.tensor([0.0, 1.0], dtype=torch.float64), torch.tensor([1 - share, share])
    expected = expectile * share / (expectile * share + (1 - expectile) * (1 - share))
    assert minimiser(values, weights.double(), expectile) == pytest.approx(expected, abs=1e-6)


def test_errors_weigh_more_where_the_target_is_above_the_prediction() -> None:
    loss = expectile_loss(torch.tensor([-2.0, 0.0, 2.0]), 0.9)
    torch.testing.assert_close(loss, torch.tensor([0.4, 0.0, 3.6]))


@pytest.mark.parametrize(
    ("mean", "best", "low", "high"), [(10.0, 25.0, 0.0, 25.0), (-40.0, -10.0, -70.0, 0.0), (-40.0, 20.0, -100.0, 20.0)]
)
def test_bins_go_from_zero_to_the_best_return_or_as_far_below_it_as_returns_are(
    mean: float, best: float, low: float, high: float
) -> None:
    stats = replace(make_stats(BOX), return_mean=mean, return_max=best)
    edges = return_bin_edges(stats, 5) * stats.return_scale
    torch.testing.assert_close(edges, torch.linspace(low, high, 6)[1:-1])


def test_data_of_nothing_but_zero_returns_have_bins_too() -> None:
    edges = return_bin_edges(replace(make_stats(BOX), return_mean=0.0, return_max=0.0), 4)
    assert (edges.diff() > 0).all()


def entropy_head() -> tuple[EntropyGaussianHead, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    head = EntropyGaussianHead(6, 3)
    with torch.no_grad():
        head.log_std.copy_(torch.tensor([-1.0, 0.0, 0.5]))
    mask = torch.tensor([[True, True, False], [True, False, False]])
    return head, torch.randn(2, 3, 6), torch.rand(2, 3, 3) * 2 - 1, mask


def test_the_entropy_heads_loss_is_likelihood_and_entropy_of_a_normal_distribution() -> None:
    head, hidden, actions, mask = entropy_head()
    normal = Normal(head.linear(hidden).tanh(), head.log_std.exp().expand(2, 3, 3))
    nll, entropy = -normal.log_prob(actions).sum(-1)[mask].mean(), normal.entropy().sum(-1).mean()
    torch.testing.assert_close(head.loss(hidden, actions, mask), nll - 0.1 * entropy)


@pytest.mark.parametrize("log_std", [-3.0, 0.0])
def test_the_temperature_rises_where_the_entropy_is_below_minus_the_action_size(log_std: float) -> None:
    head, hidden, actions, mask = entropy_head()
    with torch.no_grad():
        head.log_std.fill_(log_std)
    head.loss(hidden, actions, mask).backward()
    entropy = 3 * (log_std + 0.5 * math.log(2 * math.pi * math.e))
    assert head.log_temperature.grad is not None
    assert head.log_temperature.grad.item() == pytest.approx(0.1 * (entropy + 3), rel=1e-5)
    assert (head.log_temperature.grad < 0) == (entropy < -3)


def test_fitted_deviations_are_those_of_the_data() -> None:
    head, hidden, actions, mask = entropy_head()
    with torch.no_grad():
        head.log_temperature.fill_(-50.0)
    errors = (actions - head.linear(hidden).tanh())[mask]
    with torch.no_grad():
        head.log_std.copy_((errors**2).mean(0).log() / 2)
    head.loss(hidden, actions, mask).backward()
    assert head.log_std.grad is not None
    torch.testing.assert_close(head.log_std.grad, torch.zeros(3), rtol=0, atol=1e-6)


def test_draws_have_the_deviation_of_the_head_and_stay_in_range() -> None:
    head = EntropyGaussianHead(6, 2)
    with torch.no_grad():
        head.log_std.copy_(torch.tensor([-2.0, 2.0]))
        head.linear.weight.zero_()
        head.linear.bias.zero_()
    drawn = head.act(torch.zeros(20_000, 6), torch.Generator().manual_seed(0))
    assert drawn[:, 0].std().item() == pytest.approx(math.exp(-2), rel=0.03)
    assert drawn.abs().max() == 1.0
    assert torch.equal(head.act(torch.zeros(1, 6)), torch.zeros(1, 2))
