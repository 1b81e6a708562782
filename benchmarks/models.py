"""What the model benchmarks share: a recipe at Hopper's shapes, random windows, and other scans put in its place."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from benchmarks.scan import classic_loop, parallel_scan
from scanrl.batch import Batch
from scanrl.models.decision import DecisionModel
from scanrl.models.recipes import recipe
from scanrl.nn import mamba
from scanrl.stats import Stats
from scanrl.types import Spec

__all__ = ["OTHER_SCANS", "hopper_model", "scan_replaced", "windows"]

HOPPER = Spec((11,), "continuous", 3, (-1.0,) * 3, (1.0,) * 3, "Hopper-v5")
OTHER_SCANS: dict[str, Callable[..., Tensor]] = {"classic loop": classic_loop, "mambapy": parallel_scan}


def hopper_model(name: str, **changes: object) -> DecisionModel:
    """A recipe for Hopper with unit statistics and seed 0; `changes` go to its `ModelConfig`."""
    zeros, bounds = np.zeros(11, np.float32), np.ones(3, np.float32)
    stats = Stats(zeros, zeros + 1, 1000.0, -bounds, bounds, 1000, 3600.0, 1500.0)
    return DecisionModel(replace(recipe(name).model, **changes), HOPPER, stats)  # type: ignore[arg-type]


def windows(batch: int, steps: int) -> Batch:
    """Random full windows."""
    g = torch.Generator().manual_seed(0)
    return Batch(
        observations=torch.randn(batch, steps, 11, generator=g),
        actions=torch.rand(batch, steps, 3, generator=g) * 2 - 1,
        rewards=torch.randn(batch, steps, generator=g),
        returns_to_go=1000 * torch.randn(batch, steps, generator=g),
        timesteps=torch.arange(steps).expand(batch, steps),
        mask=torch.ones(batch, steps, dtype=torch.bool),
    )


@contextmanager
def scan_replaced(function: Callable[..., Tensor] | None) -> Iterator[None]:
    """Mamba runs on another scan meanwhile; only for whole windows, whose last state nobody asks for."""
    if function is None:
        yield
        return

    def other(u, dt, A, B, C, *, D, z, dt_bias, h=None):
        assert h is None
        return function(u, dt, A, B, C, D, z, dt_bias), torch.empty(0)

    ours, mamba.selective_scan = mamba.selective_scan, other
    try:
        yield
    finally:
        mamba.selective_scan = ours
