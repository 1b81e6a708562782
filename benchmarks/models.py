"""What the model benchmarks share: a recipe at Hopper's shapes, random windows, and other scans put in its place."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from benchmarks.scan import parallel_scan
from scanrl.bench.models import hopper_model, windows
from scanrl.bench.scans import classic_loop
from scanrl.kernels import layers
from scanrl.nn import local, mamba

__all__ = ["OTHER_SCANS", "hopper_model", "plain_layers", "scan_replaced", "windows"]

OTHER_SCANS: dict[str, Callable[..., Tensor]] = {"classic loop": classic_loop, "mambapy": parallel_scan}


@contextmanager
def scan_replaced(function: Callable[..., Tensor] | None) -> Iterator[None]:
    """Mamba runs on another scan meanwhile, and everything else on torch's own layers but for the convolutions.

    Only for whole windows, whose last state nobody asks for.
    """
    if function is None:
        yield
        return

    def other(u, dt, A, B, C, *, D, z, dt_bias, h=None):
        assert h is None
        return function(u, dt, A, B, C, D, z, dt_bias), torch.empty(0)

    ours, mamba.selective_scan = mamba.selective_scan, other
    try:
        with plain_layers():
            yield
    finally:
        mamba.selective_scan = ours


@contextmanager
def plain_layers() -> Iterator[None]:
    """Layers are compositions of torch's own functions meanwhile, round our scan and convolutions."""
    modules: list[Any] = [mamba, local, layers]
    ours = layers.fast
    for module in modules:
        module.fast = lambda *_: False
    try:
        yield
    finally:
        for module in modules:
            module.fast = ours
