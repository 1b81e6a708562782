"""`Head`: from the hidden state at the observation token to an action, with the loss that trains it.

Symbols: `B` batch, `T` steps, `D` width, `A` action size. Continuous actions are scaled to [-1, 1] (see `Tokens`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["CategoricalHead", "GaussianHead", "Head", "RegressionHead", "masked_mean"]


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` `(B, T, ...)` over the entries where `mask` `(B, T)` is true; 0 (and no gradient) if none is."""
    weight = mask.to(values.dtype).view(*mask.shape, *(1,) * (values.ndim - mask.ndim))
    entries = mask.sum() * (values.numel() // mask.numel() if mask.numel() else 1)
    return (values * weight).sum() / entries.clamp(min=1)


class Head(nn.Module, ABC):
    """One linear layer and a distribution over actions (a point, for regression)."""

    kind: str
    """The action kind it serves: `continuous` or `discrete`."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, outputs)

    @abstractmethod
    def loss(self, hidden: Tensor, actions: Tensor, mask: Tensor) -> Tensor:
        """Mean loss over valid steps. `hidden` `(B, T, D)`, `actions` `(B, T, A)` or `(B, T)`, `mask` `(B, T)`."""

    @abstractmethod
    def act(self, hidden: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Actions `(B, A)` or `(B,)` for `hidden` `(B, D)`: the mode, or a sample if a generator is given."""


class RegressionHead(Head):
    """`tanh(W h)`, squared error averaged over valid steps and action entries. Deterministic."""

    kind = "continuous"

    def __init__(self, width: int, action_size: int) -> None:
        super().__init__(width, action_size)

    def loss(self, hidden: Tensor, actions: Tensor, mask: Tensor) -> Tensor:
        return masked_mean((torch.tanh(self.linear(hidden)) - actions) ** 2, mask)

    def act(self, hidden: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return torch.tanh(self.linear(hidden))


class CategoricalHead(Head):
    """Softmax over the choices, cross-entropy."""

    kind = "discrete"

    def __init__(self, width: int, action_size: int) -> None:
        super().__init__(width, action_size)

    def loss(self, hidden: Tensor, actions: Tensor, mask: Tensor) -> Tensor:
        logits = self.linear(hidden)
        entropy = F.cross_entropy(logits.flatten(0, -2), actions.flatten(), reduction="none")
        return masked_mean(entropy.view(actions.shape), mask)

    def act(self, hidden: Tensor, generator: torch.Generator | None = None) -> Tensor:
        logits = self.linear(hidden)
        if generator is None:
            return logits.argmax(-1)
        return torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]


class GaussianHead(Head):
    """Diagonal Gaussian with mean `tanh(W h)` and a state-dependent deviation; negative log-likelihood.

    Samples are cut to [-1, 1], the range of scaled actions.
    """

    kind = "continuous"
    LOG_STD_MIN, LOG_STD_MAX = -5.0, 2.0

    def __init__(self, width: int, action_size: int) -> None:
        super().__init__(width, 2 * action_size)

    def loss(self, hidden: Tensor, actions: Tensor, mask: Tensor) -> Tensor:
        mean, log_std = self._moments(hidden)
        nll = 0.5 * ((actions - mean) / log_std.exp()) ** 2 + log_std + 0.5 * math.log(2 * math.pi)
        return masked_mean(nll, mask)

    def act(self, hidden: Tensor, generator: torch.Generator | None = None) -> Tensor:
        mean, log_std = self._moments(hidden)
        if generator is None:
            return mean
        noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
        return (mean + log_std.exp() * noise).clamp(-1.0, 1.0)

    def _moments(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = self.linear(hidden).chunk(2, -1)
        return torch.tanh(mean), log_std.clamp(self.LOG_STD_MIN, self.LOG_STD_MAX)
