"""What is timed must first compute the same: candidates against a truth, or no timing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["Differs", "gradients", "require_equal"]


class Differs(RuntimeError):
    """A candidate computes something else than the truth it was compared with."""


def require_equal(name: str, found: Sequence[Tensor], truth: Sequence[Tensor], tolerance: float) -> None:
    """Compares tensors one by one, each relative to the largest entry of the truth.

    Raises:
        Differs: an error above `tolerance`, a value that is not finite, or another number of tensors.
    """
    if len(found) != len(truth):
        raise Differs(f"{name}: expected {len(truth)} results, got {len(found)}; not timed")
    for index, (f, t) in enumerate(zip(found, truth, strict=True)):
        error = float((f - t).abs().max() / t.abs().max().clamp(min=1e-30)) if t.numel() else 0.0
        if not error <= tolerance:
            where = f"result {index} of {len(truth)}"
            raise Differs(
                f"{name}: {where} differs by {error:.1e} of the largest entry (at most {tolerance}); not timed"
            )


def gradients(function: Callable[[], Tensor], inputs: Sequence[Tensor], weights: Tensor | None = None) -> list[Tensor]:
    """The output and the gradient of every input, with `weights` (or ones) coming back at the output."""
    y = function()
    weights = torch.ones_like(y) if weights is None else weights
    return [y.detach(), *torch.autograd.grad(y, list(inputs), weights)]
