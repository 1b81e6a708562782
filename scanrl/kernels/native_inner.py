"""What stands before the scan in a Mamba mixer, `u = silu(inner(p))`, for slabs, both ways; no autograd.

`B` batch, `L` tokens, `E` channels, `w` window in tokens, `M` places in the step.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from scanrl.kernels import native_activation, native_conv, native_local
from scanrl.kernels.native_activation import SILU

__all__ = ["Inner", "InnerBackward", "mix"]


class Inner(NamedTuple):
    """The mixer inside: a convolution, a dense matrix over a window (then no bias), or nothing (then no kernel).

    A dense matrix starts at place 0.
    """

    kernel: Tensor | None = None  # (M, w, E), or (M, E, wE)
    bias: Tensor | None = None  # (M, E)
    past: Tensor | None = None  # (B, w-1, E)
    place: Tensor | None = None  # (B,)

    @property
    def memory(self) -> int:
        """Tokens that the mixer remembers, w-1."""
        if self.kernel is None:
            return 0
        _, second, third = self.kernel.shape
        return (third // second if self.bias is None else second) - 1

    @property
    def fused(self) -> bool:
        """Whether SiLU is computed along with the mixer, so that what it is applied to is never in memory."""
        return self.kernel is None or (self.bias is not None and native_conv.fusible(self.kernel))

    def part(self, rows: slice, start: int, p: Tensor) -> Inner:
        """The same for a slab of `rows` from token `start` on, of all inputs `p` (B, L, E)."""
        if self.bias is None:  # nothing, or a dense matrix, whose rows are never cut
            return self._replace(past=None if self.past is None else self.past[rows])
        place = None if self.place is None else self.place[rows]
        if not start:
            return self._replace(past=None if self.past is None else self.past[rows], place=place)
        past = p[rows, start - self.memory : start]
        place = torch.zeros(len(past), dtype=torch.int64) if place is None else place
        return self._replace(past=past, place=place + start)


def mix(p: Tensor, inner: Inner, half: torch.dtype | None, u: Tensor, mixed: Tensor | None) -> None:
    """Fills `u` (B, L, E) from `p`, and `mixed`, what SiLU is applied to, unless it is fused."""
    target = u if mixed is None else mixed
    if inner.kernel is None:
        native_activation.forward(SILU, p, u)
    elif inner.bias is not None:
        native_conv.forward(_conv(p, inner), inner.fused, target)
    else:
        native_local.forward(p, inner.kernel, half, target, inner.past)
    if mixed is not None:
        native_activation.forward(SILU, mixed, u)


class InnerBackward:
    """The gradients of the inner mixer: those of its weights add up over the slabs."""

    def __init__(self, inner: Inner, half: torch.dtype | None) -> None:
        self.dkernel = self.dbias = None
        dense = inner.kernel is not None and inner.bias is None
        self.local = native_local.Backward(inner.kernel, half) if dense else None

    def slab(self, p: Tensor, mixed: Tensor | None, inner: Inner, du: Tensor, dp: Tensor) -> Tensor | None:
        """From the gradient of u, which is overwritten, to that of p, `dp` (B, L, E); returns that of `inner.past`."""
        if mixed is not None:
            native_activation.backward(SILU, mixed, du, du)
        if self.local is not None:
            self.local.rows(p, du, dp, inner.past)
            return None if inner.past is None else self.local.dpast(du)
        if inner.kernel is None:
            native_activation.backward(SILU, p, du, dp)
        else:
            _, dkernel, dbias, dpast = native_conv.backward(_conv(p, inner), du, inner.fused, dp)
            self.dkernel = dkernel if self.dkernel is None else self.dkernel.add_(dkernel)
            self.dbias = dbias if self.dbias is None else self.dbias.add_(dbias)
            return dpast
        return None

    def gradients(self, dpast: Tensor | None) -> Inner:
        """Of the tensors of `Inner`."""
        return Inner(self.local.dweight() if self.local else self.dkernel, self.dbias, dpast)


def _conv(p: Tensor, inner: Inner) -> native_conv.Inputs:
    assert inner.kernel is not None
    assert inner.bias is not None
    return native_conv.pack(native_conv.Inputs(p, inner.kernel, inner.bias, inner.past, inner.place))
