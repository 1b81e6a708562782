"""The linear layer and the MLP: functions of autograd over what `products.py` and C compute."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from scanrl.kernels import native_activation
from scanrl.kernels.choice import choose
from scanrl.kernels.products import half_of, outer, slabs, times
from scanrl.kernels.slices import each_slice

__all__ = ["Activation", "fast", "linear", "mlp"]

Activation = Literal["relu", "gelu", "silu"]

FEW = 160
"""Tokens below which, without gradients, calling a fused function costs more than it saves: when acting on a recomputed
window, where torch's layers are up to twice as fast (at 24 tokens; level near 150)."""

_TORCH = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu}
_NATIVE = {"gelu": native_activation.GELU, "silu": native_activation.SILU}


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x W^T + b` of x (..., K), weight (N, K) and bias (N,).

    Where the fast kernels run, results stay float32 under autocast, whose dtype only the operands of the products take.
    Elsewhere it is `torch.nn.functional.linear`.
    """
    if not fast(x, weight) or x.ndim not in (2, 3):
        return F.linear(x, weight, bias)
    return _applied(_Linear, half_of(x), x.float(), weight, bias)


def fast(x: Tensor, weight: Tensor) -> bool:
    """Whether the fused functions take x: the C form was chosen, the weights are float32, and it is worth its calls."""
    few = x.numel() < FEW * x.shape[-1] and not torch.is_grad_enabled()
    return weight.dtype == torch.float32 and not few and choose("x", x, None) == "native" and x.numel() > 0


@each_slice
def _applied(function: type[torch.autograd.Function], *arguments: Any) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return function.apply(*arguments)  # pyright: ignore[reportReturnType]


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, half: torch.dtype | None, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.half, ctx.has_bias = half, bias is not None
        ctx.save_for_backward(x, weight)
        return times(x, weight.t(), None if bias is None else bias.contiguous(), half=half)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor):
        x, weight = ctx.saved_tensors
        dx = times(dy, weight, half=ctx.half) if ctx.needs_input_grad[1] else None
        dbias = dy.flatten(0, -2).sum(0) if ctx.has_bias else None
        return None, dx, outer(dy, x, half=ctx.half), dbias


def mlp(x: Tensor, up: Tensor, up_bias: Tensor, name: Activation, down: Tensor, down_bias: Tensor) -> Tensor:
    """`down act(up x + up_bias) + down_bias` of x (B, L, D), up (F, D) and down (D, F); dtypes as in `linear`."""
    if name not in _NATIVE or x.ndim != 3 or not fast(x, up):
        return linear(_TORCH[name](linear(x, up, up_bias)), down, down_bias)
    return _applied(_MLP, half_of(x), _NATIVE[name], x.float(), up, up_bias, down, down_bias)


class _MLP(torch.autograd.Function):
    """In slabs of rows; the nonlinearity is computed again in backward, which is cheaper than keeping what it gives."""

    @staticmethod
    def forward(ctx: Any, half: torch.dtype | None, kind: int, x: Tensor, up: Tensor, up_bias: Tensor, *tail: Tensor):
        down, down_bias = tail
        hidden, out = x.new_empty(*x.shape[:2], len(up)), x.new_empty(x.shape)
        for rows in slabs(x, len(up)):
            times(x[rows], up.t(), up_bias, out=hidden[rows], half=half)
            a = native_activation.forward(kind, hidden[rows])
            times(a, down.t(), down_bias, out=out[rows], half=half)
        ctx.half, ctx.kind = half, kind
        ctx.save_for_backward(x, hidden, up, down)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor):
        x, hidden, up, down = ctx.saved_tensors
        half, kind = ctx.half, ctx.kind
        dx, dup, ddown = hidden.new_empty(x.shape), None, None
        dup_bias = hidden.new_zeros(len(up))
        for rows in slabs(x, len(up)):
            dy = dout[rows]
            ddown = outer(dy, native_activation.forward(kind, hidden[rows]), ddown, half=half)
            d = times(dy, down, half=half)
            d = native_activation.backward(kind, hidden[rows], d, d)
            dup_bias += d.sum((0, 1))
            dup = outer(d, x[rows], dup, half=half)
            times(d, up, out=dx[rows], half=half)
        return None, None, dx, dup, dup_bias, ddown, dout.sum((0, 1))
