"""Mamba-2: a state space with one decay per head, whose parallel form is made of matrix products.

Symbols: `B` batch, `L` tokens, `D` width, `E` inner width, `N` state size, `H` heads, `P = E / H` channels per head,
`Q` tokens per chunk.
"""

from __future__ import annotations

import math
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scanrl.nn.config import ModelConfig
from scanrl.nn.local import LocalConv
from scanrl.nn.mamba import step_size_bias
from scanrl.nn.mixer import Mixer, State, carried_dtype
from scanrl.types import DataError

__all__ = ["Mamba2", "Mamba2State", "chunked_scan"]

A_MIN, A_MAX = 1.0, 16.0
CHUNK = 16
"""Tokens whose products are one matrix. On a CPU 16 to 24 are fastest: 2.4 times as fast as 64 at 192 tokens."""
EPSILON = 1e-5


class Mamba2State(NamedTuple):
    """Inputs that the convolution still needs, and the state of the heads."""

    conv: State
    h: Tensor  # (B, H, P, N); float64 when carried from `initial_state`, float32 without


class Mamba2(Mixer):
    r"""Structured state-space duality: a scalar decay per head, B and C shared by all heads.

    With `(z, p, dt) = W_in x`, `(u, B, C) = silu(conv4(p))` and `dt = softplus(dt + b)` `(H,)`:
    `h_t = exp(dt_t A) h_{t-1} + dt_t u_t B_t^T`, `y_t = h_t C_t + D u_t`, output `W_out RMSNorm(y * silu(z))`.

    Reference: Dao and Gu 2024, arXiv 2405.21060.

    Raises:
        DataError: if the heads do not divide the inner width.
    """

    undecayed = ("A_log", "D", "dt_bias")

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, inner, states = config.width, config.inner_width, config.state_size
        if inner % config.head_size:
            raise DataError(f"model.head_size: expected a divisor of expand * width = {inner}, got {config.head_size}")
        heads = inner // config.head_size
        self.sizes = [inner, inner + 2 * states, heads]
        self.in_proj = nn.Linear(width, sum(self.sizes), bias=False)
        self.conv = LocalConv(config, width=self.sizes[1], window=4, split=False)
        self.dt_bias = nn.Parameter(step_size_bias(heads))
        self.A_log = nn.Parameter(torch.empty(heads).uniform_(A_MIN, A_MAX).log())
        self.D = nn.Parameter(torch.ones(heads))
        self.norm = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, width, bias=False)
        self.states = states

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        before = cast("Mamba2State | None", state)
        z, p, dt = self.in_proj(x).split(self.sizes, -1)
        p, conv = self.conv(p, None if before is None else before.conv)
        with torch.autocast(x.device.type, enabled=False):
            u, dt, A, B, C = self._coefficients(p, dt)
            y, h = chunked_scan(u, dt, A, B, C, None if before is None else before.h)
            y = self._normed(y, u, z)
        return self.out_proj(y.to(x.dtype)), Mamba2State(conv, h)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        conv, h = cast(Mamba2State, state)
        z, p, dt = self.in_proj(x).split(self.sizes, -1)
        p, conv = self.conv.step(p, conv)
        with torch.autocast(x.device.type, enabled=False):
            u, dt, A, B, C = self._coefficients(p, dt)
            decay = (dt * A).exp()[..., None, None]
            h = decay.to(h.dtype) * h + ((dt[..., None] * u)[..., None] * B[:, None, None]).to(h.dtype)
            y = (h.to(u.dtype) * C[:, None, None]).sum(-1)
            y = self._normed(y, u, z)
        return self.out_proj(y.to(x.dtype)), Mamba2State(conv, h)

    def initial_state(self, batch: int) -> Mamba2State:
        heads = len(self.D)
        shape = (batch, heads, len(self.norm) // heads, self.states)
        return Mamba2State(self.conv.initial_state(batch), self.D.new_zeros(shape, dtype=carried_dtype(self.D)))

    def _coefficients(self, p: Tensor, dt: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """u `(..., H, P)`, dt `(..., H)`, A `(H,)`, B and C `(..., N)`; never in half precision."""
        wide = torch.promote_types(p.dtype, torch.float32)
        u, B, C = F.silu(p.to(wide)).split([self.sizes[0], self.states, self.states], -1)
        return (
            u.unflatten(-1, (len(self.D), -1)),
            F.softplus(dt.to(wide) + self.dt_bias.to(wide)),
            -self.A_log.to(wide).exp(),
            B,
            C,
        )

    def _normed(self, y: Tensor, u: Tensor, z: Tensor) -> Tensor:
        """Skip, gate and root-mean-square norm: `(..., H, P)` to `(..., E)`."""
        y = (y + self.D.to(y.dtype)[:, None] * u).flatten(-2) * F.silu(z.to(y.dtype))
        return y * torch.rsqrt(y.square().mean(-1, keepdim=True) + EPSILON) * self.norm.to(y.dtype)


def chunked_scan(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, h: Tensor | None = None, chunk: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """`h_t = exp(dt_t A) h_{t-1} + dt_t u_t B_t^T`, `y_t = h_t C_t` with one loop, over chunks of tokens.

    Inside a chunk, outputs are a lower triangular matrix times inputs, as in attention. Its entries are exponentials of
    sums of `dt A` between two tokens, never quotients of products from the start, which underflow.

    Args:
        u: inputs (B, L, H, P).
        dt: step sizes (B, L, H), positive.
        A: decay rates (H,), negative, per unit of step size.
        B: input weights (B, L, N).
        C: output weights (B, L, N).
        h: the state before the first token (B, H, P, N), float32 or float64; None is zeros.
        chunk: tokens per chunk, Q.

    Returns:
        y (B, L, H, P), and the last state (B, H, P, N) in the dtype of h (without h, of u).

    Reference: Dao and Gu 2024, arXiv 2405.21060, section 6.
    """
    length = u.shape[1]
    chunk = min(chunk, length)
    extra = -length % chunk
    if extra:  # tokens with a step size of zero change no state
        u, dt, B, C = (F.pad(t, (0, 0) * (t.ndim - 2) + (0, extra)) for t in (u, dt, B, C))
    u, dt, B, C = (t.unflatten(1, (-1, chunk)) for t in (u * dt[..., None], dt, B, C))  # (B, c, Q, ...)
    log = (dt * A).transpose(2, 3)  # (B, c, H, Q)
    decay = _between(log).exp()  # (B, c, H, Q, Q)
    u = u.transpose(2, 3)  # (B, c, H, Q, P)
    y = ((C @ B.transpose(-1, -2))[:, :, None] * decay) @ u
    written = (u * decay[..., -1, :, None]).transpose(-1, -2) @ B[:, :, None]  # (B, c, H, P, N)
    since = log.cumsum(-1).exp()  # (B, c, H, Q), from the start of the chunk
    state = torch.zeros_like(written[:, 0]) if h is None else h
    starts = []
    for index in range(written.shape[1]):
        starts.append(state.to(u.dtype))
        state = since[:, index, :, -1, None, None].to(state.dtype) * state + written[:, index].to(state.dtype)
    earlier = C[:, :, None] @ torch.stack(starts, 1).transpose(-1, -2)  # (B, c, H, Q, P)
    y = (y + earlier * since[..., None]).transpose(2, 3).flatten(1, 2)
    return y[:, :length], state


def _between(log: Tensor) -> Tensor:
    r"""`\sum_{k=j+1}^{i} log_k` for `i >= j`, else minus infinity: `(..., Q) -> (..., Q, Q)`.

    Summed anew for every `j`: differences of one running sum would lose what a chunk of fast decays leaves of it.
    """
    size = log.shape[-1]
    ones = torch.ones(size, size, dtype=torch.bool, device=log.device)
    steps = log[..., :, None].expand(*log.shape, size).masked_fill(~ones.tril(-1), 0)
    return steps.cumsum(-2).masked_fill(~ones.tril(), -math.inf)
