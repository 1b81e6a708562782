"""The selective scan in C on the CPU: memory for the kernels in `csrc/`, and their place in autograd.

Symbols as in `reference.py`. Everything is float32. Inside, states are (B, N, E) and A is (N, E), so that channels
are contiguous.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from scanrl.kernels import native
from scanrl.kernels.inputs import Inputs
from scanrl.kernels.native import Plan, address, rows, strided
from scanrl.kernels.slices import each_slice

__all__ = ["Gradients", "Outputs", "backward", "forward", "outputs", "pack", "scan"]

LOG2E = 1.4426950408889634
SMALL = 1 << 15  # B * L * E * N below which one thread is enough


def _plan(x: Inputs) -> Plan:
    return native.plan(x.u.shape[0], x.u.shape[2], small=x.u.numel() * x.A.shape[0] < SMALL)


def _by_state(x: Tensor | None) -> Tensor | None:
    """(B, E, N) as (B, N, E); no copy for a state that a previous call returned."""
    return None if x is None else x.transpose(1, 2).contiguous()


def pack(x: Inputs) -> Inputs:
    """The arguments as the kernels read them: A is (N, E) and times log2(e), the state (B, N, E)."""
    A = (x.A.detach().t() * LOG2E).contiguous()
    D, bias = (None if v is None else v.contiguous() for v in (x.D, x.dt_bias))
    z = None if x.z is None else rows(x.z)
    return Inputs(rows(x.u), rows(x.dt), A, rows(x.B), rows(x.C), D, z, bias, _by_state(x.h))


def _integers(x: Inputs, plan: Plan, softplus: bool) -> tuple[int, ...]:
    """The leading arguments of both functions of the extension, from packed inputs."""
    head = (native.isa().number, plan.threads, plan.slab, plan.group, *x.u.shape, x.A.shape[0], int(softplus))
    sequences = (*strided(x.u), *strided(x.dt), *strided(x.z), *strided(x.B), *strided(x.C))
    return (*head, *sequences, *map(address, (x.A, x.D, x.dt_bias, x.h)))


class Outputs(NamedTuple):
    """What forward fills."""

    y: Tensor  # (B, L, E)
    last: Tensor  # (B, N, E)
    checkpoints: Tensor | None  # (B, chunks, N, E), the states before every chunk, for backward


def outputs(x: Tensor, A: Tensor, keep: bool) -> Outputs:
    """Memory for the results for as many tokens as in x (B, L, *), with checkpoints or without; `A` is packed."""
    batch, length, _ = x.shape
    states, channels = A.shape
    chunks = -(-length // native.module().chunk)
    checkpoints = A.new_empty(batch, chunks, states, channels) if keep else None
    return Outputs(A.new_empty(batch, length, channels), A.new_empty(batch, states, channels), checkpoints)


def forward(x: Inputs, softplus: bool, to: Outputs) -> None:
    """Scans packed inputs and fills `to`."""
    integers = _integers(x, _plan(x), softplus)
    native.module().forward(*integers, *map(address, to), 0)


def _carried(x: Inputs, softplus: bool, h: Tensor) -> tuple[Tensor, Tensor]:
    """y (B, L, E) and the float64 state (B, E, N) after it, from the state h before."""
    last = h.transpose(1, 2).clone(memory_format=torch.contiguous_format)
    y = x.u.new_empty(x.u.shape)
    native.module().forward(*_integers(x, _plan(x), softplus), y.data_ptr(), 0, 0, last.data_ptr())
    return y, last.transpose(1, 2)


class Gradients(NamedTuple):
    """What backward fills. Where tasks add up there is a part per group or slab; the first ends up as the sum."""

    du: Tensor
    ddt: Tensor
    dz: Tensor | None
    dB: Tensor  # (groups, B, L, padded N)
    dC: Tensor
    dchannel: Tensor  # (slabs, N + 2, E): dA for each of the N states, dD, ddt_bias
    dh: Tensor  # (B, N, E)


def backward(
    x: Inputs,
    softplus: bool,
    checkpoints: Tensor,
    dy: Tensor,
    dlast: Tensor | None,
    dz: Tensor | None = None,
    *,
    reuse: bool = False,
) -> Gradients:
    """Every gradient from those of y and the last state (B, N, E).

    `dz` says where that of z belongs. With `reuse`, those of u and dt take the memory of `dy` and dt, both contiguous:
    each token is read before it is written, and no new memory has to come into the caches.
    """
    batch, length, channels = x.u.shape
    states = x.A.shape[0]
    plan, tile = _plan(x), native.isa().tile
    padded = -(-states // tile) * tile
    du, ddt = (dy, x.dt) if reuse else (x.u.new_empty(x.u.shape), x.u.new_empty(x.u.shape))
    dz = x.u.new_empty(x.u.shape) if dz is None and x.z is not None else dz
    dB, dC = x.u.new_empty(2, plan.groups, batch, length, padded)
    dchannel = x.u.new_empty(plan.slabs, states + 2, channels)
    gradients = Gradients(du, ddt, dz, dB, dC, dchannel, x.u.new_empty(batch, states, channels))
    given = (checkpoints.data_ptr(), *strided(dy), address(dlast))
    found = (address(du), address(ddt), *strided(dz), *map(address, gradients[3:]))
    native.module().backward(*_integers(x, plan, softplus), *given, *found)
    return gradients


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, softplus: bool, *tensors: Tensor | None):
        x = pack(Inputs(*tensors))  # pyright: ignore[reportArgumentType]
        y, last, checkpoints = to = outputs(x.u, x.A, keep=True)
        forward(x, softplus, to)
        ctx.softplus = softplus
        ctx.has_state = x.h is not None
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(checkpoints, *x[:-1])  # the first checkpoint is the initial state
        return y, last.transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dlast: Tensor | None):
        if torch.is_grad_enabled():  # create_graph=True; once_differentiable would let some wrong results pass
            raise RuntimeError("the native scan has no second derivative; use impl='reference' with create_graph=True")
        checkpoints, *saved = ctx.saved_tensors
        x = Inputs(*saved)
        dy = rows(torch.zeros_like(x.u) if dy is None else dy)
        g = backward(x, ctx.softplus, checkpoints, dy, _by_state(dlast))
        dB, dC, dchannel = g.dB[0, ..., : x.A.shape[0]], g.dC[0, ..., : x.A.shape[0]], g.dchannel[0]
        dA, dD, dbias, dh = dchannel[:-2].t(), dchannel[-2], dchannel[-1], g.dh.transpose(1, 2)
        given = (True,) * 5 + (x.D is not None, True, x.dt_bias is not None, ctx.has_state)
        every = (g.du, g.ddt, dA, dB, dC, dD, g.dz, dbias, dh)
        return None, *(gradient if has else None for gradient, has in zip(every, given, strict=True))


def scan(x: Inputs, softplus: bool) -> tuple[Tensor, Tensor]:
    """All tokens of float32 CPU tensors, none of them empty. Returns y (B, L, E) and the last state (B, E, N).

    A float64 state is carried in two floats, unless a gradient is wanted: then it is float32 on the way.
    """
    return _scan(softplus, *x)


@each_slice
def _scan(softplus: bool, *tensors: Tensor | None) -> tuple[Tensor, Tensor]:
    x = Inputs(*tensors)  # pyright: ignore[reportArgumentType]
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in x):
        h = None if x.h is None else x.h.float()
        y, last = _Scan.apply(softplus, *x._replace(h=h))  # pyright: ignore[reportGeneralTypeIssues]
        return y, last if x.h is None else last.to(x.h.dtype)
    if x.h is not None and x.h.dtype == torch.float64:
        return _carried(pack(x._replace(h=None)), softplus, x.h)
    x = pack(x)
    y, last, _ = to = outputs(x.u, x.A, keep=False)
    forward(x, softplus, to)
    return y, last.transpose(1, 2)
