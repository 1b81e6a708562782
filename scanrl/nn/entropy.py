"""`EntropyGaussianHead`: a Gaussian over actions whose entropy a learned temperature keeps from falling too low.

Symbols: `B` batch, `T` steps, `D` width, `A` action size. Actions are scaled to [-1, 1] (see `Tokens`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from scanrl.nn.heads import Head, draw_normal, masked_mean
from scanrl.nn.program import LAST, Program, Register

__all__ = ["EntropyGaussianHead"]

TEMPERATURE = 0.1  # at the start


class EntropyGaussianHead(Head):
    """Diagonal Gaussian with mean `tanh(W h)` and one deviation per action entry, the same in every state.

    The loss is `NLL - temperature * H`, both summed over action entries. The temperature `alpha` itself goes down the
    gradient of `alpha (H + A)`, so that it grows while the entropy H is below `-A`; that term has a gradient but no
    value, since it measures no fit.

    Reference: Zheng et al. 2022 (Online Decision Transformer), arXiv 2202.05607; with a deviation that does not depend
    on the state by Zhuang et al. 2024 (Reinformer), arXiv 2405.08740.
    """

    kind = "continuous"
    LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0

    def __init__(self, width: int, action_size: int) -> None:
        super().__init__(width, action_size)
        self.log_std = nn.Parameter(torch.zeros(action_size))
        self.log_temperature = nn.Parameter(torch.tensor(math.log(TEMPERATURE)))

    def loss(self, hidden: Tensor, actions: Tensor, mask: Tensor) -> Tensor:
        log_std, temperature = self._log_std(), self.log_temperature.exp()
        error = (actions - torch.tanh(self.linear(hidden))) / log_std.exp()
        nll = (0.5 * error**2 + log_std + 0.5 * math.log(2 * math.pi)).sum(-1)
        entropy = (log_std + 0.5 * math.log(2 * math.pi * math.e)).sum()
        pull = temperature * (entropy.detach() + len(log_std))
        return masked_mean(nll - temperature.detach() * entropy + (pull - pull.detach()), mask)

    def choose(self, outputs: Tensor, generator: torch.Generator | None = None) -> Tensor:
        mean = torch.tanh(outputs)
        return mean if generator is None else draw_normal(mean, self._log_std().exp(), generator)

    def lower(self, program: Program, hidden: Register) -> Register:
        actions = self.lower_outputs(program, hidden)
        program.activate(actions, "tanh", LAST)
        return actions

    def _log_std(self) -> Tensor:
        return self.log_std.clamp(self.LOG_STD_MIN, self.LOG_STD_MAX)
