"""The causal convolution in C on the CPU: memory for the kernels in `csrc/`, and their place in autograd.

Symbols as in `conv.py`. Everything is float32.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from scanrl.kernels import native
from scanrl.kernels.native import Plan, address, rows, strided
from scanrl.kernels.slices import each_slice

__all__ = ["conv"]

SMALL = 1 << 20  # B * L * D * w below which one thread is enough
TOKENS = 16  # tokens of a slab per row of gradients of kernel and bias, which each slab has to clear and to add


class _Inputs(NamedTuple):
    x: Tensor  # (B, L, D)
    kernel: Tensor  # (M, w, D)
    bias: Tensor  # (M, D)
    past: Tensor | None  # (B, w-1, D)
    place: Tensor | None  # (B,)


def _packed(x: _Inputs) -> _Inputs:
    """The arguments as the kernels read them."""
    past = None if x.past is None or not x.past.numel() else rows(x.past)
    place = None if x.place is None else x.place.contiguous()
    return _Inputs(rows(x.x), x.kernel.contiguous(), x.bias.contiguous(), past, place)


def _plan(x: _Inputs) -> Plan:
    batch, length, channels = x.x.shape
    places, window, _ = x.kernel.shape
    least = -(-TOKENS * places * (window + 1) // length)
    return native.plan(batch, channels, small=x.x.numel() * window < SMALL, least=min(least, batch))


def _integers(x: _Inputs, plan: Plan) -> tuple[int, ...]:
    """The leading arguments of both functions of the extension."""
    head = (native.isa().number, plan.threads, plan.slab, plan.group, *x.x.shape, *x.kernel.shape[:2])
    return (*head, *strided(x.x), *strided(x.past), address(x.kernel), address(x.bias), address(x.place))


def _forward(x: _Inputs) -> Tensor:
    y = torch.empty_like(x.x, memory_format=torch.contiguous_format)
    native.module().conv_forward(*_integers(x, _plan(x)), y.data_ptr())
    return y


def _backward(x: _Inputs, dy: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The gradients of x, kernel, bias and past."""
    plan = _plan(x)
    places, window, channels = x.kernel.shape
    dx = torch.empty_like(x.x, memory_format=torch.contiguous_format)
    dpast = None if x.past is None else torch.empty_like(x.past, memory_format=torch.contiguous_format)
    dkernel, dbias = torch.empty_like(x.kernel), torch.empty_like(x.bias)
    others = x.kernel.new_empty(plan.slabs - 1, places * (window + 1) * channels) if plan.slabs > 1 else None
    arrays = (*strided(dy), *map(address, (dx, dpast, dkernel, dbias, others)))
    native.module().conv_backward(*_integers(x, plan), *arrays)
    return dx, dkernel, dbias, dpast


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *tensors: Tensor | None) -> Tensor:
        x = _packed(_Inputs(*tensors))  # pyright: ignore[reportArgumentType]
        ctx.save_for_backward(*x)
        return _forward(x)

    @staticmethod
    def backward(ctx: Any, dy: Tensor):
        if torch.is_grad_enabled():  # create_graph=True; once_differentiable would let some wrong results pass
            message = "the native convolution has no second derivative; use impl='reference' with create_graph=True"
            raise RuntimeError(message)
        return *_backward(_Inputs(*ctx.saved_tensors), rows(dy)), None


@each_slice
def conv(x: Tensor, kernel: Tensor, bias: Tensor, past: Tensor | None, place: Tensor | None) -> Tensor:
    """All tokens of float32 CPU tensors, none of them empty but perhaps `past`. Returns y (B, L, D)."""
    arguments = _Inputs(x, kernel, bias, past, place)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in arguments):
        return _Conv.apply(*arguments)  # pyright: ignore[reportReturnType]
    return _forward(_packed(arguments))
