"""`ReturnHead`: a model that predicts its own return-to-go, by expectile regression at the observation token.

Symbols: `B` batch, `T` steps, `D` width, `O`/`A` observation/action entries. Returns are in units of the return scale.

The expectile `tau` of a return near 1 is close to the best that the data show from this history on: acting on it asks
for no more than that, and nobody has to choose a target.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scanrl.nn.config import ModelConfig
from scanrl.nn.heads import masked_mean
from scanrl.stats import Stats
from scanrl.types import DataError, Spec

__all__ = ["ReturnHead", "expectile_loss", "return_bin_edges"]


def expectile_loss(errors: Tensor, expectile: float) -> Tensor:
    """`|tau - 1(e < 0)| e^2` for every entry of `errors` = target - prediction.

    The constant that makes its mean smallest is the `tau`-expectile of the targets; the mean, for 0.5.

    Reference: Newey and Powell 1987, Econometrica 55(4).
    """
    return torch.where(errors < 0, 1.0 - expectile, expectile) * errors**2


def return_bin_edges(stats: Stats, bins: int) -> Tensor:
    """The `bins - 1` inner edges `(bins - 1,)` of equal bins; what lies outside counts to the first or the last.

    They go from 0 to the best return of the data. Where the mean return is negative, from twice as far below the best
    as the mean is, to 0 or the best.
    """
    low, high = 0.0, max(0.0, stats.return_max)
    if stats.return_mean < 0:
        low = 2 * stats.return_mean - stats.return_max
    if high <= low:
        high = low + stats.return_scale
    return torch.linspace(low, high, bins + 1)[1:-1] / stats.return_scale


class ReturnHead(nn.Module):
    """Return-to-go from the hidden state at the observation token, and what else is predicted along with it.

    The loss is `return_weight * expectile + bins_weight * cross-entropy + state_weight * squared error`, each a mean
    over valid steps: the expectile of the return-to-go; its class among equal bins; the next observation, from the
    hidden state at which the action is read and the action predicted there. The last two shape the hidden states only.

    Reference: Wu et al. 2023, arXiv 2307.02484 (all three); Zhuang et al. 2024, arXiv 2405.08740 (the first, with
    errors relative to the mean |R| of the batch).
    """

    def __init__(self, config: ModelConfig, spec: Spec, stats: Stats) -> None:
        super().__init__()
        self.config = config
        self.value = nn.Linear(config.width, 1)
        self.bins = nn.Linear(config.width, config.return_bins) if config.bins_weight else None
        if config.state_weight and (spec.is_image or spec.action_parts):
            what = "pictures" if spec.is_image else "actions of several parts"
            raise DataError(f"model.state_weight: expected 0 with {what}, got {config.state_weight:g}")
        wide = config.width + spec.action_size
        self.state = nn.Linear(wide, spec.observation_size) if config.state_weight else None
        self.register_buffer("edges", return_bin_edges(stats, config.return_bins), persistent=False)

    edges: Tensor

    def forward(self, hidden: Tensor) -> Tensor:
        """Predicted returns `(...)` for hidden states `(..., D)` at observation tokens."""
        return self.value(hidden)[..., 0]

    def loss(self, hidden: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
        """Weighted losses of value and class for `hidden` and `returns` `(B, T)`."""
        errors = returns - self(hidden)
        if self.config.return_loss == "relative":
            errors = errors / masked_mean(returns.abs(), mask).clamp(min=1e-6)
        loss = self.config.return_weight * masked_mean(expectile_loss(errors, self.config.expectile), mask)
        if self.bins is not None:
            classes = torch.bucketize(returns, self.edges, right=True)
            entropy = F.cross_entropy(self.bins(hidden).flatten(0, 1), classes.flatten(), reduction="none")
            loss = loss + self.config.bins_weight * masked_mean(entropy.view(mask.shape), mask)
        return loss

    def state_loss(self, hidden: Tensor, actions: Tensor, observations: Tensor, followed: Tensor) -> Tensor:
        """Weighted squared error of the next observation; 0 without that head.

        Args:
            hidden: where the action is read `(B, T, D)`.
            actions: predicted there `(B, T, A)`: the mode if continuous, logits if discrete.
            observations: standardised `(B, T, O)`.
            followed: `(B, T)`: steps with a next one in the window; never the last.
        """
        assert self.state is not None
        predicted = self.state(torch.cat([hidden, actions], -1)[:, :-1])
        return self.config.state_weight * masked_mean((observations[:, 1:] - predicted) ** 2, followed[:, :-1])
