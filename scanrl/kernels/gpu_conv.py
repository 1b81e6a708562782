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
from scanrl.kernels.slices import all_slices

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
        ctx.forms = (kernel.dtype, kernel.shape), (bias.dtype, bias.shape)
        (batch, length, width), (places, window, _) = x.shape, kernel.shape[-3:]
        x, bias = rows(x), bias.float().contiguous()
        kernel = kernel.float().contiguous().view(-1, places, window, width)  # (S, M, w, D), mostly S = 1
        past = None if past is None or window == 1 else rows(past)
        place = None if place is None else place.contiguous()
        ctx.save_for_backward(x, kernel, past, place)
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        launch(
            kernels.forward, _tiles(batch, length, width),
            x, kernel, bias, past, place, y, *_strides(x), *_strides(past), batch // len(kernel), length, width, places,
            WINDOW=window, T=TOKENS, D=CHANNELS,
        )  # fmt: skip
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor):
        if torch.is_grad_enabled():  # create_graph=True; once_differentiable would let some wrong results pass
            message = "the gpu convolution has no second derivative; use impl='reference' with create_graph=True"
            raise RuntimeError(message)
        x, kernel, past, place = ctx.saved_tensors
        (batch, length, width), (stacks, places, window, _), dy = x.shape, kernel.shape, rows(dy)
        constants = {"WINDOW": window, "T": TOKENS, "D": CHANNELS}
        dx = torch.empty_like(x, memory_format=torch.contiguous_format)
        dpast = None if past is None else torch.empty_like(past, memory_format=torch.contiguous_format)
        launch(
            kernels.backward_inputs, _tiles(batch, length + window - 1, width),
            kernel, place, dy, dx, dpast, *_strides(dy), batch // stacks, length, width, places, **constants,
        )  # fmt: skip
        pieces = batch // stacks * triton.cdiv(triton.cdiv(length, places), TOKENS)
        each = triton.cdiv(pieces, PARTS)
        per = triton.cdiv(pieces, each)
        parts = kernel.new_empty(stacks, per, places, window + 1, width)
        launch(
            kernels.backward_weights, (stacks * per, places * (window + 1), triton.cdiv(width, CHANNELS)),
            x, past, place, dy, parts, *_strides(x), *_strides(past), *_strides(dy),
            batch // stacks, length, width, places, each, per, **constants,
        )  # fmt: skip
        weights = parts.sum(1)
        pairs = zip((weights[:, :, :window], weights[:, :, window]), ctx.forms, strict=True)
        return dx, *(v.to(dtype).reshape(shape) for v, (dtype, shape) in pairs), dpast, None


@all_slices(parameters=(1, 2))
def conv(x: Tensor, kernel: Tensor, bias: Tensor, past: Tensor | None, place: Tensor | None) -> Tensor:
    """All tokens, none of the tensors empty but perhaps `past`. Returns y (B, L, D) in the dtype of x.

    Or S convolutions at once: the rows of all are one batch, and kernel and bias have an axis S in front.
    """
    with torch.cuda.device_of(x):  # Triton launches on the current device
        return _Conv.apply(x, kernel, bias, past, place)  # pyright: ignore[reportReturnType]
