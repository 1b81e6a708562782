"""`Head`: from the hidden state at the observation token to an action, with the loss that trains it.

Symbols: `B` batch, `T` steps, `D` width, `A` action size. Continuous actions are scaled to [-1, 1] (see `Tokens`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scanrl.nn.program import LAST, NoNativeStep, Program, Register
from scanrl.types import ActionPart

__all__ = [
    "CategoricalHead",
    "GaussianHead",
    "Head",
    "PartsHead",
    "RegressionHead",
    "draw_normal",
    "masked_mean",
]


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` `(B, T, ...)` over the entries where `mask` `(B, T)` is true; 0 (and no gradient) if none is."""
    weight = mask.to(values.dtype).view(*mask.shape, *(1,) * (values.ndim - mask.ndim))
    entries = mask.sum() * (values.numel() // mask.numel() if mask.numel() else 1)
    return (values * weight).sum() / entries.clamp(min=1)


def draw_normal(mean: Tensor, std: Tensor, generator: torch.Generator) -> Tensor:
    """Draws from Gaussians around `mean`, cut to [-1, 1], the range of scaled actions."""
    noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
    return (mean + std * noise).clamp(-1.0, 1.0)


class Head(nn.Module, ABC):
    """One linear layer and a distribution over actions (a point, for regression)."""

    kind: str
    """The action kind it serves: `continuous` or `discrete`. Actions of several parts have one head for each."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, outputs)

    @abstractmethod
    def loss(self, hidden: Tensor, actions: Tensor, mask: Tensor) -> Tensor:
        """Mean loss over valid steps. `hidden` `(B, T, D)`, `actions` `(B, T, A)` or `(B, T)`, `mask` `(B, T)`."""

    def act(self, hidden: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Actions `(B, A)` or `(B,)` for `hidden` `(B, D)`: the mode, or a sample if a generator is given."""
        return self.choose(self.outputs(hidden), generator)

    def outputs(self, hidden: Tensor) -> Tensor:
        """What `choose` chooses from."""
        return self.linear(hidden)

    @abstractmethod
    def choose(self, outputs: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """`act` from the outputs of the linear layer."""

    def lower(self, program: Program, hidden: Register) -> Register | None:
        """Appends the mode to the program; gives its register, or None where the program ends with a choice.

        Raises:
            NoNativeStep: it has no such form; the policy then steps in torch.
        """
        raise NoNativeStep(f"{type(self).__name__} has no native step")

    def lower_outputs(self, program: Program, hidden: Register) -> Register:
        """Appends the linear layer to the program."""
        return program.linear(hidden, self.linear.weight, self.linear.bias, LAST)


class RegressionHead(Head):
    """`tanh(W h)`, squared error averaged over valid steps and action entries. Deterministic."""

    kind = "continuous"

    def __init__(self, width: int, action_size: int) -> None:
        super().__init__(width, action_size)

    def loss(self, hidden: Tensor, actions: Tensor, mask: Tensor) -> Tensor:
        return masked_mean((torch.tanh(self.linear(hidden)) - actions) ** 2, mask)

    def choose(self, outputs: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return torch.tanh(outputs)

    def lower(self, program: Program, hidden: Register) -> Register:
        actions = self.lower_outputs(program, hidden)
        program.activate(actions, "tanh", LAST)
        return actions


class CategoricalHead(Head):
    """Softmax over the choices, cross-entropy."""

    kind = "discrete"

    def __init__(self, width: int, action_size: int) -> None:
        super().__init__(width, action_size)

    def loss(self, hidden: Tensor, actions: Tensor, mask: Tensor) -> Tensor:
        logits = self.linear(hidden)
        entropy = F.cross_entropy(logits.flatten(0, -2), actions.flatten().long(), reduction="none")
        return masked_mean(entropy.view(actions.shape), mask)

    def choose(self, outputs: Tensor, generator: torch.Generator | None = None) -> Tensor:
        if generator is None:
            return outputs.argmax(-1)
        return torch.multinomial(outputs.softmax(-1), 1, generator=generator)[:, 0]

    def lower(self, program: Program, hidden: Register) -> None:
        program.argmax(self.lower_outputs(program, hidden))


class GaussianHead(Head):
    """Diagonal Gaussian with mean `tanh(W h)` and a state-dependent deviation; negative log-likelihood.

    Samples are cut to [-1, 1], the range of scaled actions.
    """

    kind = "continuous"
    LOG_STD_MIN, LOG_STD_MAX = -5.0, 2.0

    def __init__(self, width: int, action_size: int) -> None:
        super().__init__(width, 2 * action_size)

    def loss(self, hidden: Tensor, actions: Tensor, mask: Tensor) -> Tensor:
        mean, log_std = self._moments(self.linear(hidden))
        nll = 0.5 * ((actions - mean) / log_std.exp()) ** 2 + log_std + 0.5 * math.log(2 * math.pi)
        return masked_mean(nll, mask)

    def choose(self, outputs: Tensor, generator: torch.Generator | None = None) -> Tensor:
        mean, log_std = self._moments(outputs)
        return mean if generator is None else draw_normal(mean, log_std.exp(), generator)

    def lower(self, program: Program, hidden: Register) -> Register:
        actions = self.lower_outputs(program, hidden)
        actions = actions[: actions.size // 2]
        program.activate(actions, "tanh", LAST)
        return actions

    def _moments(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = outputs.chunk(2, -1)
        return torch.tanh(mean), log_std.clamp(self.LOG_STD_MIN, self.LOG_STD_MAX)


class PartsHead(Head):
    """One head for each part of an action: a softmax for every choice, `continuous` for real entries; losses added.

    Args:
        width: of the hidden state, D.
        parts: what the entries of an action are.
        continuous: the head of real entries.
    """

    kind = "mixed"

    def __init__(self, width: int, parts: Sequence[ActionPart], continuous: type[Head]) -> None:
        nn.Module.__init__(self)  # no linear layer of its own
        heads: list[Head] = []
        self._entries: list[slice | int] = []
        self._outputs: list[int] = []
        begin = 0
        for part in parts:
            if part.choices:
                heads += [CategoricalHead(width, size) for size in part.choices]
                self._entries += range(begin, begin + part.size)
            else:
                heads.append(continuous(width, part.size))
                self._entries.append(slice(begin, begin + part.size))
            begin += part.size
        self.heads = nn.ModuleList(heads)
        self._outputs = [head.linear.out_features for head in heads]

    def loss(self, hidden: Tensor, actions: Tensor, mask: Tensor) -> Tensor:
        losses = [head.loss(hidden, actions[..., entry], mask) for head, entry in self._pairs()]
        return torch.stack(losses).sum()

    def outputs(self, hidden: Tensor) -> Tensor:
        return torch.cat([head.outputs(hidden) for head, _ in self._pairs()], -1)

    def choose(self, outputs: Tensor, generator: torch.Generator | None = None) -> Tensor:
        chosen = []
        for (head, entry), values in zip(self._pairs(), outputs.split(self._outputs, -1), strict=True):
            actions = head.choose(values, generator)
            chosen.append(actions[:, None] if isinstance(entry, int) else actions)
        return torch.cat([actions.to(outputs.dtype) for actions in chosen], -1) if self._real else torch.cat(chosen, -1)

    def lower_outputs(self, program: Program, hidden: Register) -> Register:
        raise NoNativeStep("actions of several parts have no native step")

    @property
    def _real(self) -> bool:
        return any(isinstance(entry, slice) for entry in self._entries)

    def _pairs(self) -> list[tuple[Head, slice | int]]:
        return [(cast(Head, head), entry) for head, entry in zip(self.heads, self._entries, strict=True)]
