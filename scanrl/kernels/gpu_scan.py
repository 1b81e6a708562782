"""The selective scan in Triton: how the work is cut, memory for the kernels, and their place in autograd.

Symbols as in `reference.py`. Two algorithms with the same kernels. Short sequences: every program walks through all
tokens of a block of channels. Long ones in a small batch would leave most of the device idle, so they are cut into
segments and scanned in three passes: every segment alone from zero; the carries from one segment to the next, which
need only its last states and the sum of its step sizes, since prod_t exp(delta_t A) = exp(A sum_t delta_t); and every
segment again from the state it really starts with. Backward likewise, from the end. Shapes alone decide on the cut, and
sums over programs are taken in a fixed order, so that results are the same bits every time.

Reference for the three passes: Blelloch, "Prefix sums and their applications", 1990.
"""

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from scanrl.kernels import gpu_scan_kernels as kernels
from scanrl.kernels.gpu import launch
from scanrl.kernels.inputs import Inputs
from scanrl.kernels.native import rows
from scanrl.kernels.slices import all_slices

__all__ = ["scan"]

LOG2E = 1.4426950408889634
CHUNK = 8  # tokens between two checkpoints
SHORT = 256  # tokens up to which a sequence is one segment
SEGMENT = 64  # tokens of a segment at least
PROGRAMS = 1024  # programs beyond which another cut would only add work
REGISTERS = 256  # states of a program of one warp: eight per thread


class Plan(NamedTuple):
    """How the work is cut; N and the block are powers of two."""

    N: int
    block: int  # channels of a program
    blocks: int
    warps: int
    segment: int  # tokens
    segments: int


def plan(batch: int, length: int, channels: int, states: int) -> Plan:
    """The cut of a scan, by its shapes."""
    N = triton.next_power_of_2(states)
    block = min(64, max(16, REGISTERS // N))
    blocks = triton.cdiv(channels, block)
    warps = min(16, max(1, N * block // REGISTERS))
    segment = length
    if length > SHORT and batch * blocks < PROGRAMS:
        segment = max(SEGMENT, triton.next_power_of_2(triton.cdiv(length * batch * blocks, PROGRAMS)))
    return Plan(N, block, blocks, warps, segment, triton.cdiv(length, segment))


def _options(p: Plan, softplus: bool) -> dict[str, Any]:
    return {"N": p.N, "BLOCK": p.block, "CHUNK": CHUNK, "SOFTPLUS": softplus, "num_warps": p.warps}


def _strides(*sequences: Tensor | None) -> list[int]:
    """The strides of the first two axes of sequences (B, L, *), whose last axis is contiguous."""
    return [stride for x in sequences for stride in ((0, 0) if x is None else x.stride()[:2])]


def _cut(x: Inputs, p: Plan) -> tuple[int, ...]:
    """Sizes, in the order of the kernels' arguments."""
    return x.u.shape[1], x.u.shape[2], x.A.shape[1], p.segment, p.segments, len(x.u) // len(x.A)


def _by_state(x: Tensor | None) -> Tensor | None:
    """(B, E, N) as (B, N, E); no copy for a state that a previous call returned."""
    return None if x is None else x.transpose(1, 2).contiguous()


def _packed(x: Inputs) -> Inputs:
    """As the kernels read them: A is (S, N, E) and times log2(e), the state (B, N, E), the last axis contiguous."""
    A = x.A.detach()[None] if x.A.ndim == 2 else x.A.detach()
    wide = torch.float32 if x.h is None else x.h.dtype
    rates = torch.empty(*A.shape[:1], *A.shape[:0:-1], dtype=wide, device=A.device)
    torch.mul(A.to(wide).transpose(1, 2), LOG2E, out=rates)
    D, bias = (None if v is None else v.float().contiguous() for v in (x.D, x.dt_bias))
    z = None if x.z is None else rows(x.z)
    return Inputs(rows(x.u), rows(x.dt), rates, rows(x.B), rows(x.C), D, z, bias, _by_state(x.h))


def _carried(x: Inputs, p: Plan, local: Tensor, sums: Tensor, start: Tensor | None, *, reverse: bool) -> Tensor:
    """What goes into every segment: (B, segments, N, E)."""
    carried, (batch, _, channels), states = torch.empty_like(local), x.u.shape, x.A.shape[1]
    launch(
        kernels.carry, (batch * p.blocks,),
        x.A, local, sums, start, carried, channels, states, p.segments, batch // len(x.A),
        N=p.N, BLOCK=p.block, REVERSE=reverse, num_warps=p.warps,
    )  # fmt: skip
    return carried


class _Kept(NamedTuple):
    """What forward leaves for backward besides its arguments."""

    checkpoints: Tensor  # (B, chunks, N, E): states before every chunk
    sums: Tensor | None  # (B, segments, E): of the step sizes; None if there is one segment


def _forward(x: Inputs, softplus: bool, keep: bool) -> tuple[Tensor, Tensor, _Kept | None]:
    """y (B, L, E), the last state (B, N, E) and, to `keep` for backward, the states."""
    (batch, length, channels), states = x.u.shape, x.A.shape[1]
    p = plan(batch, length, channels, states)
    grid = (batch * p.segments * p.blocks,)
    sequences = (x.u, x.dt, x.A, x.B, x.C, x.D, x.z, x.dt_bias)
    shape = (*_strides(x.u, x.dt, x.B, x.C, x.z), length, channels, states, p.segment, p.segments, batch // len(x.A))
    options = _options(p, softplus)

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=x.A.dtype, device=x.u.device)

    start, sums = x.h, None
    if p.segments > 1:
        local, sums = empty(batch, p.segments, states, channels), empty(batch, p.segments, channels)
        launch(kernels.forward, grid, *sequences, None, None, local, None, sums, *shape, **options)
        start = _carried(x, p, local, sums, x.h, reverse=False)
    y = torch.empty_like(x.u, memory_format=torch.contiguous_format)
    last = empty(batch, states, channels)
    checkpoints = empty(batch, triton.cdiv(length, CHUNK), states, channels) if keep else None
    launch(kernels.forward, grid, *sequences, start, y, last, checkpoints, None, *shape, **options)
    return y, last, None if checkpoints is None else _Kept(checkpoints, sums)


class _Gradients(NamedTuple):
    """In the shapes of the arguments, but for the state (B, N, E) and what belongs to channels."""

    du: Tensor
    ddt: Tensor
    dz: Tensor | None
    dB: Tensor
    dC: Tensor
    dchannel: Tensor  # (S, N + 2, E): dA for each of the N states, dD, ddt_bias
    dh: Tensor


def _backward(x: Inputs, softplus: bool, kept: _Kept, dy: Tensor, dlast: Tensor | None) -> _Gradients:
    (batch, length, channels), states = x.u.shape, x.A.shape[1]
    p = plan(batch, length, channels, states)
    grid = (batch * p.segments * p.blocks,)
    cut = _cut(x, p)
    options = _options(p, softplus)
    if p.segments > 1:
        local = kept.checkpoints.new_empty(batch, p.segments, states, channels)
        strides = _strides(x.dt, x.C, x.z, dy)
        launch(kernels.local_backward, grid, x.dt, x.A, x.C, x.z, x.dt_bias, dy, local, *strides, *cut, **options)
        dlast = _carried(x, p, local, kept.sums, dlast, reverse=True)  # pyright: ignore[reportArgumentType]
    du, ddt = (torch.empty_like(v, memory_format=torch.contiguous_format) for v in (x.u, x.dt))
    dz = None if x.z is None else torch.empty_like(x.z, memory_format=torch.contiguous_format)
    dBC = kept.checkpoints.new_empty(2, p.blocks, batch, length, states)
    dchannel = kept.checkpoints.new_empty(batch * p.segments, states + 2, channels)
    dh = kept.checkpoints.new_empty(batch, states, channels)
    launch(
        kernels.backward, grid,
        x.u, x.dt, x.A, x.B, x.C, x.D, x.z, x.dt_bias, kept.checkpoints, dy, dlast,
        du, ddt, dz, dBC[0], dBC[1], dchannel, dh,
        *_strides(x.u, x.dt, x.B, x.C, x.z, dy), *cut, batch, **options,
    )  # fmt: skip
    dB, dC = dBC.sum(1) if p.blocks > 1 else dBC[:, 0]
    return _Gradients(du, ddt, dz, dB, dC, dchannel.view(len(x.A), -1, states + 2, channels).sum(1), dh)


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, softplus: bool, *tensors: Tensor | None):
        x = _packed(Inputs(*tensors))  # pyright: ignore[reportArgumentType]
        y, last, kept = _forward(x, softplus, keep=True)
        ctx.softplus = softplus
        ctx.forms = [None if t is None else (t.dtype, t.shape) for t in tensors]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*kept, *x[:-1])  # pyright: ignore[reportOptionalIterable]
        return y, last.transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dlast: Tensor | None):
        if torch.is_grad_enabled():  # create_graph=True; once_differentiable would let some wrong results pass
            raise RuntimeError("the gpu scan has no second derivative; use impl='reference' with create_graph=True")
        checkpoints, sums, *saved = ctx.saved_tensors
        x = Inputs(*saved)
        dy = rows(torch.zeros_like(x.u) if dy is None else dy)
        g = _backward(x, ctx.softplus, _Kept(checkpoints, sums), dy, _by_state(dlast))
        dA, dD, dbias = g.dchannel[:, :-2].transpose(1, 2), g.dchannel[:, -2], g.dchannel[:, -1]
        every = (g.du, g.ddt, dA, g.dB, g.dC, dD, g.dz, dbias, g.dh.transpose(1, 2))
        pairs = zip(every, ctx.forms, strict=True)
        return None, *(None if form is None or v is None else v.to(form[0]).reshape(form[1]) for v, form in pairs)


def scan(x: Inputs, softplus: bool) -> tuple[Tensor, Tensor]:
    """All tokens, none of the tensors empty; float32 or half precision, on the GPU or, in the interpreter, anywhere.

    Returns y (B, L, E) in the dtype of u and the last state (B, E, N) in that of h, or float32 without. The state is
    computed in float64 if h is, unless a gradient is wanted: then it is float32 on the way.
    """
    return _scan(softplus, *x)


@all_slices(parameters=(3, 6, 8))
def _scan(softplus: bool, *tensors: Tensor | None) -> tuple[Tensor, Tensor]:
    """`scan`, or S of them at once: the rows of all are one batch, and A, D and dt_bias have an axis S in front."""
    x = Inputs(*tensors)  # pyright: ignore[reportArgumentType]
    with torch.cuda.device_of(x.u):  # Triton launches on the current device
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in x):
            h = None if x.h is None else x.h.float()
            y, last = _Scan.apply(softplus, *x._replace(h=h))  # pyright: ignore[reportGeneralTypeIssues]
            return y, last if x.h is None else last.to(x.h.dtype)
        y, last, _ = _forward(_packed(x), softplus, keep=False)
    return y, last.transpose(1, 2)
