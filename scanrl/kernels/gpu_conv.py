"""The causal convolution in Triton: how the work is cut, memory for the kernels, and their place in autograd.

Symbols as in `conv.py`. Gradients of kernel and bias are sums of parts, added in a fixed order: results are the same
bits every time.
"""

from typing import Any

import torch
import triton
from torch import Tensor

from scanrl.kernels import gpu_conv_kernels as kernels
from scanrl.kernels.gpu import launch
from scanrl.kernels.native import rows

__all__ = ["conv"]

TOKENS, CHANNELS = 16, 32  # of a program; powers of two
PARTS = 32  # of a sum over rows and tokens, at most


def _tiles(batch: int, length: int, width: int) -> tuple[int, int]:
    return batch * triton.cdiv(length, TOKENS), triton.cdiv(width, CHANNELS)


def _strides(x: Tensor | None) -> tuple[int, int]:
    return (0, 0) if x is None else (x.stride(0), x.stride(1))


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor, bias: Tensor, past: Tensor | None, place: Tensor | None) -> Tensor:
        ctx.dtypes = kernel.dtype, bias.dtype
        (batch, length, width), (places, window, _) = x.shape, kernel.shape
        x, kernel, bias = rows(x), kernel.float().contiguous(), bias.float().contiguous()
        past = None if past is None or window == 1 else rows(past)
        place = None if place is None else place.contiguous()
        ctx.save_for_backward(x, kernel, past, place)
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        launch(
            kernels.forward, _tiles(batch, length, width),
            x, kernel, bias, past, place, y, *_strides(x), *_strides(past), length, width, places,
            WINDOW=window, T=TOKENS, D=CHANNELS,
        )  # fmt: skip
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor):
        if torch.is_grad_enabled():  # create_graph=True; once_differentiable would let some wrong results pass
            message = "the gpu convolution has no second derivative; use impl='reference' with create_graph=True"
            raise RuntimeError(message)
        x, kernel, past, place = ctx.saved_tensors
        (batch, length, width), (places, window, _), dy = x.shape, kernel.shape, rows(dy)
        constants = {"WINDOW": window, "T": TOKENS, "D": CHANNELS}
        dx = torch.empty_like(x, memory_format=torch.contiguous_format)
        dpast = None if past is None else torch.empty_like(past, memory_format=torch.contiguous_format)
        launch(
            kernels.backward_inputs, _tiles(batch, length + window - 1, width),
            kernel, place, dy, dx, dpast, *_strides(dy), length, width, places, **constants,
        )  # fmt: skip
        pieces = batch * triton.cdiv(triton.cdiv(length, places), TOKENS)
        each = triton.cdiv(pieces, PARTS)
        parts = kernel.new_empty(triton.cdiv(pieces, each), places, window + 1, width)
        launch(
            kernels.backward_weights, (len(parts), places * (window + 1), triton.cdiv(width, CHANNELS)),
            x, past, place, dy, parts, *_strides(x), *_strides(past), *_strides(dy), batch, length, width, places, each,
            **constants,
        )  # fmt: skip
        weights = parts.sum(0)
        dkernel, dbias = weights[:, :window].to(ctx.dtypes[0]), weights[:, window].to(ctx.dtypes[1])
        return dx, dkernel, dbias, dpast, None


def conv(x: Tensor, kernel: Tensor, bias: Tensor, past: Tensor | None, place: Tensor | None) -> Tensor:
    """All tokens, none of the tensors empty but perhaps `past`. Returns y (B, L, D) in the dtype of x."""
    with torch.cuda.device_of(x):  # Triton launches on the current device
        return _Conv.apply(x, kernel, bias, past, place)  # pyright: ignore[reportReturnType]
