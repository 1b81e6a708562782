"""The selective scan in C on the CPU: memory for the kernels in `csrc/`, and their place in autograd.

Symbols as in `reference.py`. Everything is float32. Inside, states are (B, N, E) and A is (N, E), so that channels
are contiguous.
"""

import os
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

import torch  # before _native: torch brings the OpenMP runtime that the extension then shares
from torch import Tensor

from scanrl.kernels.inputs import Inputs

__all__ = ["Isa", "extension", "isa", "scan", "threads"]

LOG2E = 1.4426950408889634
TASKS = 32  # pieces of work to aim at: enough for any sensible number of threads, few enough to add up
SMALL = 1 << 15  # B * L * E * N below which waking a second thread costs more than it saves


class Isa(NamedTuple):
    """One build of the kernel: `lanes` channels per vector, `tile` states at a time."""

    number: int  # the argument `isa` of the extension
    name: str
    lanes: int
    tile: int


@cache
def extension() -> tuple[ModuleType | None, str]:
    """The compiled module, or None and why it cannot be used."""
    # The extension is optional, so its absence is an ordinary state and not an error.
    try:
        from scanrl.kernels import _native  # pyright: ignore[reportAttributeAccessIssue]
    except ImportError as error:
        return None, f"the C extension is not available ({error})"
    return _native, ""


def _module() -> ModuleType:
    module, why = extension()
    if module is None:
        raise RuntimeError(why)
    return module


@cache
def isa() -> Isa:
    """The instruction set used: the best one this processor has, or what SCANRL_ISA names.

    Raises: RuntimeError if SCANRL_ISA names one that is unknown or that this processor lacks.
    """
    builds = _module().isas()
    here = [Isa(i, name, lanes, tile) for i, (name, lanes, tile, runs) in enumerate(builds) if runs]
    wanted = os.environ.get("SCANRL_ISA", "")
    for found in here:
        if wanted in ("", found.name):
            return found
    known = wanted in [name for name, *_ in builds]
    problem = "this processor lacks it" if known else "there is no such instruction set"
    raise RuntimeError(f"SCANRL_ISA={wanted}: {problem}; use {' or '.join(found.name for found in here)}, or unset it")


def threads() -> int:
    """How many threads a scan may use: torch's setting, or 1 if the extension was built without OpenMP."""
    return torch.get_num_threads() if _module().openmp else 1


class _Plan(NamedTuple):
    """How the work is cut: `slab` batch rows times `group` channel blocks make one task. Shapes alone decide."""

    slab: int
    group: int
    slabs: int
    groups: int
    threads: int


def _plan(x: Inputs) -> _Plan:
    batch, _, channels = x.u.shape
    blocks = -(-channels // isa().lanes)
    slab = max(1, batch // TASKS)
    slabs = -(-batch // slab)
    group = -(-blocks // min(blocks, -(-TASKS // slabs)))
    small = x.u.numel() * x.A.shape[0] < SMALL
    return _Plan(slab, group, slabs, -(-blocks // group), 1 if small else threads())


def _rows(x: Tensor) -> Tensor:
    """x (B, L, *) as the kernels can read it: any strides, but a contiguous last axis."""
    return x if x.stride(2) == 1 or x.shape[2] == 1 else x.contiguous()


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def _strided(x: Tensor | None) -> tuple[int, int, int]:
    return (0, 0, 0) if x is None else (x.data_ptr(), x.stride(0), x.stride(1))


def _by_state(x: Tensor | None) -> Tensor | None:
    """(B, E, N) as (B, N, E); no copy for a state that a previous call returned."""
    return None if x is None else x.transpose(1, 2).contiguous()


def _packed(x: Inputs) -> Inputs:
    """The arguments as the kernels read them: A is (N, E) and times log2(e), the state (B, N, E)."""
    A = (x.A.detach().t() * LOG2E).contiguous()
    D, bias = (None if v is None else v.contiguous() for v in (x.D, x.dt_bias))
    z = None if x.z is None else _rows(x.z)
    return Inputs(_rows(x.u), _rows(x.dt), A, _rows(x.B), _rows(x.C), D, z, bias, _by_state(x.h))


def _integers(x: Inputs, plan: _Plan, softplus: bool) -> tuple[int, ...]:
    """The leading arguments of both functions of the extension, from packed inputs."""
    head = (isa().number, plan.threads, plan.slab, plan.group, *x.u.shape, x.A.shape[0], int(softplus))
    rows = (*_strided(x.u), *_strided(x.dt), *_strided(x.z), *_strided(x.B), *_strided(x.C))
    return (*head, *rows, *map(_address, (x.A, x.D, x.dt_bias, x.h)))


def _forward(x: Inputs, softplus: bool, keep: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """y (B, L, E), the last state (B, N, E) and, to `keep` for backward, the states before every chunk."""
    module = _module()
    batch, length, channels = x.u.shape
    states = x.A.shape[0]
    y = x.u.new_empty(x.u.shape)
    last = x.u.new_empty(batch, states, channels)
    checkpoints = x.u.new_empty(batch, -(-length // module.chunk), states, channels) if keep else None
    plan = _plan(x)
    module.forward(*_integers(x, plan, softplus), y.data_ptr(), last.data_ptr(), _address(checkpoints))
    return y, last, checkpoints


class _Gradients(NamedTuple):
    """What backward fills. Shared tensors have a part per group or slab of the plan; the first ends up as the sum."""

    du: Tensor
    ddt: Tensor
    dz: Tensor | None
    dB: Tensor  # (groups, B, L, padded N)
    dC: Tensor
    dchannel: Tensor  # (slabs, N + 2, E): dA for each of the N states, dD, ddt_bias
    dh: Tensor  # (B, N, E)


def _backward(x: Inputs, softplus: bool, checkpoints: Tensor, dy: Tensor, dlast: Tensor | None) -> _Gradients:
    batch, length, channels = x.u.shape
    states = x.A.shape[0]
    plan, tile = _plan(x), isa().tile
    padded = -(-states // tile) * tile
    du, ddt = x.u.new_empty(x.u.shape), x.u.new_empty(x.u.shape)
    dz = None if x.z is None else x.u.new_empty(x.u.shape)
    dB, dC = x.u.new_empty(2, plan.groups, batch, length, padded)
    dchannel = x.u.new_empty(plan.slabs, states + 2, channels)
    gradients = _Gradients(du, ddt, dz, dB, dC, dchannel, x.u.new_empty(batch, states, channels))
    given = (checkpoints.data_ptr(), *_strided(dy), _address(dlast))
    _module().backward(*_integers(x, plan, softplus), *given, *map(_address, gradients))
    return gradients


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, softplus: bool, *tensors: Tensor | None):
        x = _packed(Inputs(*tensors))  # pyright: ignore[reportArgumentType]
        y, last, checkpoints = _forward(x, softplus, keep=True)
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
        dy = _rows(torch.zeros_like(x.u) if dy is None else dy)
        g = _backward(x, ctx.softplus, checkpoints, dy, _by_state(dlast))
        dB, dC, dchannel = g.dB[0, ..., : x.A.shape[0]], g.dC[0, ..., : x.A.shape[0]], g.dchannel[0]
        dA, dD, dbias, dh = dchannel[:-2].t(), dchannel[-2], dchannel[-1], g.dh.transpose(1, 2)
        given = (True,) * 5 + (x.D is not None, True, x.dt_bias is not None, ctx.has_state)
        every = (g.du, g.ddt, dA, dB, dC, dD, g.dz, dbias, dh)
        return None, *(gradient if has else None for gradient, has in zip(every, given, strict=True))


def scan(x: Inputs, softplus: bool) -> tuple[Tensor, Tensor]:
    """All tokens of float32 CPU tensors, none of them empty. Returns y (B, L, E) and the last state (B, E, N)."""
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in x):
        return _Scan.apply(softplus, *x)  # pyright: ignore[reportReturnType]
    y, last, _ = _forward(_packed(x), softplus, keep=False)
    return y, last.transpose(1, 2)
