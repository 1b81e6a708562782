"""The whole Mamba mixer on the CPU as one function of autograd round its matrix products.

    (p, z) = W_in x,  u = silu(inner(p)),  (dt, B, C) = W_x u,  y = scan(u, W_dt dt, A, B, C) silu(z),  out = W_out y

`B` batch, `L` tokens, `D` width, `E` inner width, `N` states per channel, `r` rank of the step size. The batch is taken
in slabs of rows, and long rows in slabs of tokens, that stay in the caches. Between the products nothing of the size of
a sequence is copied: p and z, and their gradients, stay two halves of one tensor. What is cheap to compute again
(W_dt dt) is not kept for backward.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from scanrl.kernels import native, native_scan
from scanrl.kernels.inputs import Inputs
from scanrl.kernels.native_inner import Inner, InnerBackward, mix
from scanrl.kernels.native_scan import LOG2E
from scanrl.kernels.products import half_of, outer, slabs, spans, times
from scanrl.kernels.slices import each_slice

__all__ = ["Inner", "Weights", "mamba"]


class Weights(NamedTuple):
    """Float32, as `torch.nn.Linear` keeps them."""

    in_proj: Tensor  # (2E, D)
    x_proj: Tensor  # (r + 2N, E)
    dt_proj: Tensor  # (E, r)
    dt_bias: Tensor  # (E,)
    A_log: Tensor  # (E, N)
    D: Tensor  # (E,)
    out_proj: Tensor  # (D, E)


def mamba(x: Tensor, weights: Weights, inner: Inner, h: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """All tokens of float32 CPU tensors, none of them empty.

    Args:
        x: inputs (B, L, D); at least the w-1 tokens that the inner mixer remembers.
        weights: of the mixer.
        inner: the mixer before the scan.
        h: the state before the first token (B, E, N); None is zeros.

    Returns:
        The outputs (B, L, D), the last w-1 inputs of the inner mixer (B, w-1, E), and the last state (B, E, N).
        First-order gradients flow to every floating-point tensor and from all results. Under autocast the products with
        `in_proj` and `out_proj` and of a dense inner mixer run in its dtype, everything else in float32.
    """
    return _mamba(half_of(x), x, *weights, *inner, h)


@each_slice
def _mamba(half: torch.dtype | None, x: Tensor, *tensors: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    with torch.autocast("cpu", enabled=False):
        return _Mamba.apply(half, x, *tensors)  # pyright: ignore[reportReturnType]


class _Saved(NamedTuple):
    """What backward needs besides the weights."""

    x: Tensor  # (B, L, D)
    pz: Tensor  # (B, L, 2E)
    mixed: Tensor | None  # (B, L, E), what SiLU makes u of, if it was in memory
    u: Tensor  # (B, L, E)
    coefficients: Tensor  # (B, L, r + 2N)
    y: Tensor  # (B, L, E)
    checkpoints: Tensor  # (B, chunks, N, E)
    A: Tensor  # (N, E), times log2(e)


def _memory(x: Tensor, w: Weights, inner: Inner) -> tuple[_Saved, Tensor]:
    """What forward fills: what it saves, and the last states (B, N, E)."""
    batch, length, _ = x.shape
    A = (torch.exp(w.A_log).t() * -LOG2E).contiguous()
    scan = native_scan.outputs(x, A, keep=True)
    assert scan.checkpoints is not None
    u = torch.empty_like(scan.y)
    saved = _Saved(
        x=x,
        pz=x.new_empty(batch, length, 2 * u.shape[2]),
        mixed=None if inner.fused else torch.empty_like(u),
        u=u,
        coefficients=x.new_empty(batch, length, w.x_proj.shape[0]),
        y=scan.y,
        checkpoints=scan.checkpoints,
        A=A,
    )
    return saved, scan.last


class _Slab(NamedTuple):
    """Some rows; some of their tokens where it is one row."""

    rows: slice
    tokens: slice

    @property
    def chunks(self) -> slice:
        """Of the scan: where its checkpoints are."""
        size = native.module().chunk
        return slice(self.tokens.start // size, -(-self.tokens.stop // size))


def _slabs(s: _Saved, inner: Inner) -> list[_Slab]:
    """In the order of forward."""
    width = s.u.shape[2]
    dense = inner.kernel is not None and inner.bias is None  # starts at place 0
    cut = [slice(0, s.x.shape[1])] if dense else spans(s.x, width, native.module().chunk, inner.memory)
    return [_Slab(rows, tokens) for rows in slabs(s.x, width) for tokens in cut]


class _Mamba(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, half: torch.dtype | None, x: Tensor, *tensors: Tensor | None):
        w, inner, h = Weights(*tensors[:7]), Inner(*tensors[7:11]), tensors[11]  # pyright: ignore[reportArgumentType]
        s, last = _memory(x, w, inner)
        before = None if h is None else h.transpose(1, 2).contiguous()
        p = s.pz.chunk(2, -1)[0]
        out = x.new_empty(x.shape)
        for slab in _slabs(s, inner):
            rows, tokens = slab
            times(x[slab], w.in_proj.t(), out=s.pz[slab], half=half)
            mixed = None if s.mixed is None else s.mixed[slab]
            mix(p[slab], inner.part(rows, tokens.start, p), half, s.u[slab], mixed)
            times(s.u[slab], w.x_proj.t(), out=s.coefficients[slab])
            carried = last if tokens.start else before
            scan = _scan(w, s, slab, None if carried is None else carried[rows])
            to = native_scan.Outputs(s.y[slab], last[rows], s.checkpoints[rows, slab.chunks])
            native_scan.forward(scan, True, to)
            times(s.y[slab], w.out_proj.t(), out=out[slab], half=half)
        ctx.half, ctx.has_state = half, h is not None
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*s, *w, *inner)
        return out, p[:, p.shape[1] - inner.memory :].clone(), last.transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, dout: Tensor | None, dtail: Tensor | None, dlast: Tensor | None):
        if torch.is_grad_enabled():
            raise RuntimeError("the native mixer has no second derivative; use impl='reference' with create_graph=True")
        tensors = ctx.saved_tensors
        s, w, inner = _Saved(*tensors[:8]), Weights(*tensors[8:15]), Inner(*tensors[15:])
        dout = s.pz.new_zeros(s.x.shape) if dout is None else dout
        dlast = None if dlast is None else dlast.transpose(1, 2).contiguous()
        whole = _Backward(s, w, inner, ctx.half)
        for slab in reversed(_slabs(s, inner)):
            whole.slab(slab, dout, dtail, dlast)
        dweights, dinner = whole.gradients()
        return None, whole.dx, *dweights, *dinner, whole.dh.transpose(1, 2) if ctx.has_state else None


class _Backward:
    """All gradients: those of the weights add up over the slabs. Of a row that is cut, the later part comes first."""

    def __init__(self, s: _Saved, w: Weights, inner: Inner, half: torch.dtype | None) -> None:
        self.s, self.w, self.inner, self.half = s, w, inner, half
        self.mixing = InnerBackward(inner, half)
        self.dx = s.pz.new_empty(s.x.shape)
        self.dh = s.pz.new_empty(len(s.x), *s.A.shape)  # before the last slab of every row, at the end before the first
        self.dpast = s.u.new_empty(len(s.x), inner.memory, s.u.shape[2])  # of the inner mixer, likewise
        self.totals: dict[str, Tensor] = {}
        self.dchannel: Tensor | None = None

    def slab(self, slab: _Slab, dout: Tensor, dtail: Tensor | None, dlast: Tensor | None) -> None:
        """The gradients of a slab from all those of outputs, last inputs of the inner mixer, and last states."""
        s, w, half, rows = self.s, self.w, self.half, slab.rows
        rank, states = w.dt_proj.shape[1], w.A_log.shape[1]
        if slab.tokens.stop < s.x.shape[1]:
            dtail, dlast = self.dpast, self.dh
        dy = dout[slab]
        self._add("out_proj", dy, s.y[slab], half)
        dpz = torch.empty_like(s.pz[slab])
        dp, dz = dpz.chunk(2, -1)
        dstate = None if dlast is None else dlast[rows]
        scan, dy = _scan(w, s, slab, None), times(dy, w.out_proj, half=half)
        g = native_scan.backward(scan, True, s.checkpoints[rows, slab.chunks], dy, dstate, dz, reuse=True)
        self.dh[rows] = g.dh
        self.dchannel = g.dchannel[0] if self.dchannel is None else self.dchannel.add_(g.dchannel[0])
        coefficients = s.coefficients[slab]
        dcoefficients = torch.empty_like(coefficients)
        times(g.ddt, w.dt_proj, out=dcoefficients[..., :rank])
        dcoefficients[..., rank : rank + states] = g.dB[0, ..., :states]
        dcoefficients[..., rank + states :] = g.dC[0, ..., :states]
        self._add("dt_proj", g.ddt, coefficients[..., :rank])
        self._add("x_proj", dcoefficients, s.u[slab])
        du = times(dcoefficients, w.x_proj, out=g.du, add=True)
        self._mix(slab, du, dp, dtail)
        self._add("in_proj", dpz, s.x[slab], half)
        times(dpz, w.in_proj, out=self.dx[slab], half=half)

    def _mix(self, slab: _Slab, du: Tensor, dp: Tensor, dtail: Tensor | None) -> None:
        """Through the inner mixer to `dp`; `dtail` is what comes back from tokens behind the slab."""
        p, (rows, tokens) = self.s.pz.chunk(2, -1)[0], slab
        mixed = None if self.s.mixed is None else self.s.mixed[slab]
        part = self.inner.part(rows, tokens.start, p)
        dpast = self.mixing.slab(p[slab], mixed, part, du, dp)
        if dtail is not None:
            dp[:, dp.shape[1] - dtail.shape[1] :] += dtail[rows]
        if dpast is not None:
            self.dpast[rows] = dpast

    def gradients(self) -> tuple[Weights, Inner]:
        """Of all weights and of the inner mixer."""
        assert self.dchannel is not None
        *dA, dD, dt_bias = self.dchannel.split([len(self.s.A), 1, 1])
        # A = -exp(A_log) is its own derivative.
        channels = {"A_log": (dA[0] * self.s.A).t() / LOG2E, "D": dD[0], "dt_bias": dt_bias[0]}
        inner = self.mixing.gradients(None if self.inner.past is None else self.dpast)
        return Weights(**self.totals, **channels), inner

    def _add(self, name: str, a: Tensor, b: Tensor, half: torch.dtype | None = None) -> None:
        self.totals[name] = outer(a, b, self.totals.get(name), half=half)


def _scan(w: Weights, s: _Saved, slab: _Slab, h: Tensor | None) -> Inputs:
    """The scan of a slab as `native_scan.pack` would leave it; h is (B, N, E)."""
    states, coefficients = w.A_log.shape[1], s.coefficients[slab]
    dt, B, C = coefficients.split([w.dt_proj.shape[1], states, states], -1)
    z = s.pz[slab].chunk(2, -1)[1]
    return Inputs(s.u[slab], times(dt, w.dt_proj.t()), s.A, B, C, w.D.contiguous(), z, w.dt_bias.contiguous(), h)
