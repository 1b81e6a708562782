"""The dense matrix over a window with one matrix per place in the step, without copying windows.

    y_t = W^m concat(x_{t-w+1}, ..., x_t),    m = t mod M

`B` batch, `L` tokens, `D` channels, `w` window in tokens, `M` places in the step; rows start at place 0, after zeros or
after the `w-1` tokens of a past.
Consecutive windows overlap in memory, so that those of one place are a matrix with strides of its own.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from scanrl.kernels.products import half_of, outer, slabs, times
from scanrl.kernels.slices import each_slice

__all__ = ["Backward", "forward", "local_linear"]


def local_linear(x: Tensor, weight: Tensor, past: Tensor | None = None) -> Tensor:
    """y (B, L, D) of float32 x (B, L, D), the weight (M, D, wD) and the tokens before x (B, w-1, D); None is zeros.

    Gradients of first order flow to all of them. Under autocast the products run in its dtype.
    """
    return _local_linear(half_of(x), x, weight, past)


@each_slice
def _local_linear(half: torch.dtype | None, x: Tensor, weight: Tensor, past: Tensor | None) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return _LocalLinear.apply(half, x, weight, past)  # pyright: ignore[reportReturnType]


class _LocalLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, half: torch.dtype | None, x: Tensor, weight: Tensor, past: Tensor | None) -> Tensor:
        ctx.half = half
        ctx.save_for_backward(x, weight, past)
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        for rows in slabs(x, 2 * x.shape[2]):
            forward(x[rows], weight, half, y[rows], None if past is None else past[rows])
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[None, Tensor, Tensor, Tensor | None]:
        x, weight, past = ctx.saved_tensors
        gradients, dx = Backward(weight, ctx.half), torch.empty_like(x, memory_format=torch.contiguous_format)
        for rows in slabs(x, 2 * x.shape[2]):
            gradients.rows(x[rows], dy[rows], dx[rows], None if past is None else past[rows])
        return None, dx, gradients.dweight(), gradients.dpast(dy) if ctx.needs_input_grad[3] else None


def forward(
    x: Tensor, weight: Tensor, half: torch.dtype | None, y: Tensor | None = None, past: Tensor | None = None
) -> Tensor:
    """y (B, L, D) in float32, of x (B, L, D) and the weight (M, D, wD); products in `half`, or in float32 if None.

    A `y` that is given says where it belongs; `past` (B, w-1, D) is what came before x.
    """
    padded = _behind(x, weight, past)
    out = x.new_empty(x.shape) if y is None else y
    for m, matrix in enumerate(weight):
        times(_windows(padded, weight, m, x.shape[1]), matrix.t(), out=out[:, m :: len(weight)], half=half)
    return out


class Backward:
    """The gradients, for as many slabs of rows as there are: that of the weight adds up."""

    def __init__(self, weight: Tensor, half: torch.dtype | None) -> None:
        self.weight, self.half = weight, half
        self.turned = _turned(weight)
        self.totals: list[Tensor | None] = [None] * len(weight)

    def rows(self, x: Tensor, dy: Tensor, dx: Tensor, past: Tensor | None = None) -> None:
        """Writes the gradient of x (B, L, D) to `dx`."""
        places, length = len(self.weight), x.shape[1]
        behind = _behind(x, self.weight, past)
        for m, total in enumerate(self.totals):
            self.totals[m] = outer(dy[:, m::places], _windows(behind, self.weight, m, length), total, half=self.half)
        # x_t is in the windows of the next w outputs: its gradient is the same over windows of dy, which look ahead.
        ahead = _ahead(dy, self.weight)
        for p, matrix in enumerate(self.turned):
            times(_windows(ahead, self.weight, p, length), matrix, out=dx[:, p::places], half=self.half)

    def dpast(self, dy: Tensor) -> Tensor:
        """The gradient of the tokens before x (B, w-1, D): only the first outputs have seen them."""
        memory, width = _window(self.weight) - 1, dy.shape[2]
        dpast = dy.new_zeros(len(dy), memory, width)
        for t in range(min(memory, dy.shape[1])):
            seen = self.weight[t % len(self.weight), :, : (memory - t) * width]
            dpast[:, t:] += (dy[:, t] @ seen).view(len(dy), memory - t, width)
        return dpast

    def dweight(self) -> Tensor:
        """The gradient of the weight (M, D, wD)."""
        return torch.stack([total for total in self.totals if total is not None])


def _behind(x: Tensor, weight: Tensor, past: Tensor | None) -> Tensor:
    """x behind its past, or w-1 zeros, contiguous."""
    if past is not None:
        return torch.cat([past, x], 1)
    return F.pad(x, (0, 0, _window(weight) - 1, 0)).contiguous()


def _ahead(dy: Tensor, weight: Tensor) -> Tensor:
    """dy with w-1 zeros behind it, contiguous."""
    return F.pad(dy, (0, 0, 0, _window(weight) - 1)).contiguous()


def _window(weight: Tensor) -> int:
    return weight.shape[2] // weight.shape[1]


def _windows(padded: Tensor, weight: Tensor, m: int, length: int) -> Tensor:
    """The windows of the tokens at place m, (B, about L / M, wD), in place."""
    batch, total, width = padded.shape
    places = len(weight)
    size = (batch, len(range(m, length, places)), weight.shape[2])
    return padded.as_strided(size, (total * width, places * width, 1), padded.storage_offset() + m * width)


def _turned(weight: Tensor) -> Tensor:
    """(M, wD, D): for every place p, what the gradients of the tokens t, t+1, ... t+w-1 give to x_t."""
    places, width, _ = weight.shape
    window = _window(weight)
    blocks = weight.unflatten(2, (window, width)).transpose(1, 2)  # (M, w, out, in)
    p, j = torch.arange(places)[:, None], torch.arange(window)
    return blocks[(p + j) % places, window - 1 - j].flatten(1, 2)
