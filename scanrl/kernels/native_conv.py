"""The causal convolution in C on the CPU: memory for the kernels in `csrc/`, and their place in autograd.

Symbols as in `conv.py`. Everything is float32.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from scanrl.kernels import native
from scanrl.kernels.native import Plan, address, rows, strided
from scanrl.kernels.slices import each_slice

__all__ = ["Inputs", "backward", "conv", "forward", "fusible", "pack"]

SMALL = 1 << 20  # B * L * D * w below which one thread is enough
TAPS = 8  # as in csrc/conv_kernel.h
TOKENS = 16  # tokens of a slab per row of gradients of kernel and bias, which each slab has to clear and to add


class Inputs(NamedTuple):
    x: Tensor  # (B, L, D)
    kernel: Tensor  # (M, w, D)
    bias: Tensor  # (M, D)
    past: Tensor | None  # (B, w-1, D)
    place: Tensor | None  # (B,)


def pack(x: Inputs) -> Inputs:
    """The arguments as the kernels read them."""
    past = None if x.past is None or not x.past.numel() else rows(x.past)
    place = None if x.place is None else x.place.contiguous()
    return Inputs(rows(x.x), x.kernel.contiguous(), x.bias.contiguous(), past, place)


def _plan(x: Inputs) -> Plan:
    batch, length, channels = x.x.shape
    places, window, _ = x.kernel.shape
    least = -(-TOKENS * places * (window + 1) // length)
    return native.plan(batch, channels, small=x.x.numel() * window < SMALL, least=min(least, batch))


def fusible(kernel: Tensor) -> bool:
    """Whether the C form can apply SiLU to what it computes from these taps, and take its gradient, in one go."""
    _, window, channels = kernel.shape
    return window <= TAPS and channels % native.isa().lanes == 0


def _integers(x: Inputs, plan: Plan, silu: bool) -> tuple[int, ...]:
    """The leading arguments of both functions of the extension."""
    head = (native.isa().number, plan.threads, plan.slab, plan.group, *x.x.shape, *x.kernel.shape[:2], int(silu))
    return (*head, *strided(x.x), *strided(x.past), address(x.kernel), address(x.bias), address(x.place))


def forward(x: Inputs, silu: bool = False, y: Tensor | None = None) -> Tensor:
    """y (B, L, D) of packed inputs, or silu(y); a contiguous `y` that is given says where it belongs."""
    out = torch.empty_like(x.x, memory_format=torch.contiguous_format) if y is None else y
    native.module().conv_forward(*_integers(x, _plan(x), silu), out.data_ptr())
    return out


def backward(
    x: Inputs, dy: Tensor, silu: bool = False, dx: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The gradients of x, kernel, bias and past of packed inputs; `dx` (B, L, D) says where the first belongs."""
    plan = _plan(x)
    places, window, channels = x.kernel.shape
    dx = torch.empty_like(x.x, memory_format=torch.contiguous_format) if dx is None else dx
    dpast = None if x.past is None else torch.empty_like(x.past, memory_format=torch.contiguous_format)
    dkernel, dbias = torch.empty_like(x.kernel), torch.empty_like(x.bias)
    others = x.kernel.new_empty(plan.slabs - 1, places * (window + 1) * channels) if plan.slabs > 1 else None
    arrays = (*strided(dy), *strided(dx), *map(address, (dpast, dkernel, dbias, others)))
    native.module().conv_backward(*_integers(x, plan, silu), *arrays)
    return dx, dkernel, dbias, dpast


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *tensors: Tensor | None) -> Tensor:
        x = pack(Inputs(*tensors))  # pyright: ignore[reportArgumentType]
        ctx.save_for_backward(*x)
        return forward(x)

    @staticmethod
    def backward(ctx: Any, dy: Tensor):
        if torch.is_grad_enabled():  # create_graph=True; once_differentiable would let some wrong results pass
            message = "the native convolution has no second derivative; use impl='reference' with create_graph=True"
            raise RuntimeError(message)
        return *backward(Inputs(*ctx.saved_tensors), rows(dy)), None


@each_slice
def conv(x: Tensor, kernel: Tensor, bias: Tensor, past: Tensor | None, place: Tensor | None) -> Tensor:
    """All tokens of float32 CPU tensors, none of them empty but perhaps `past`. Returns y (B, L, D)."""
    arguments = Inputs(x, kernel, bias, past, place)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in arguments):
        return _Conv.apply(*arguments)  # pyright: ignore[reportReturnType]
    return forward(pack(arguments))
