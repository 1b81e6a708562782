"""Models at the shapes of Hopper, random windows for them, and how much arithmetic a step of them is."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from scanrl.batch import Batch
from scanrl.models.decision import DecisionModel
from scanrl.models.recipes import recipe
from scanrl.nn.mamba import Mamba
from scanrl.stats import Stats
from scanrl.types import Spec

__all__ = ["HOPPER", "Work", "hopper_model", "windows", "work_of"]

HOPPER = Spec((11,), "continuous", 3, (-1.0,) * 3, (1.0,) * 3, "Hopper-v5")


def hopper_model(name: str, **changes: object) -> DecisionModel:
    """A recipe for Hopper with unit statistics and seed 0; `changes` go to its `ModelConfig`."""
    zeros, bounds = np.zeros(11, np.float32), np.ones(3, np.float32)
    stats = Stats(zeros, zeros + 1, 1000.0, -bounds, bounds, 1000, 3600.0, 1500.0)
    return DecisionModel(replace(recipe(name).model, **changes), HOPPER, stats)  # type: ignore[arg-type]


def windows(batch: int, steps: int, seed: int = 0) -> Batch:
    """Random full windows of `steps` steps for Hopper."""
    g = torch.Generator().manual_seed(seed)
    return Batch(
        observations=torch.randn(batch, steps, 11, generator=g),
        actions=torch.rand(batch, steps, 3, generator=g) * 2 - 1,
        rewards=torch.randn(batch, steps, generator=g),
        returns_to_go=1000 * torch.randn(batch, steps, generator=g),
        timesteps=torch.arange(steps).expand(batch, steps),
        mask=torch.ones(batch, steps, dtype=torch.bool),
    )


class Work(NamedTuple):
    """Arithmetic of one token through the stack: products with weights, and exponentials of the scans.

    The least times take the faster of a matrix product of torch and of multiply-and-add in registers: torch's library
    does not always use the widest vectors that the processor has.
    """

    weights: int
    exps: int

    def training_ms(self, tokens: int, limits: dict[str, float]) -> float:
        """Least milliseconds of forward and backward: three matrix products per weight, two exponentials per state."""
        return 1e3 * tokens * (6 * self.weights / _products(limits) + 2 * self.exps / limits["exp2"])

    def acting_ms(self, tokens: int, limits: dict[str, float]) -> float:
        """Least milliseconds of one forward: for few tokens that is the time it takes to read the weights once."""
        products = max(2 * tokens * self.weights / _products(limits), 4 * self.weights / limits["cache"])
        return 1e3 * (products + tokens * self.exps / limits["exp2"])


def _products(limits: dict[str, float]) -> float:
    return max(limits["fma"], limits["gemm"])


def work_of(model: DecisionModel) -> Work:
    """Matrices and kernels count once per token, modal ones as one place; attention's own products are left out."""
    weights = exps = 0
    for module in model.stack.modules():
        if isinstance(module, nn.Linear):
            weights += module.weight.numel()
        elif isinstance(module, Mamba):
            exps += module.A_log.numel()
        else:
            weights += sum(p[0].numel() for p in module.parameters(recurse=False) if p.ndim == 3)
    return Work(weights, exps)
