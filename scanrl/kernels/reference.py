"""The selective scan in torch: the definition that every other implementation is tested against.

    delta_t = softplus(dt_t + dt_bias)
    h_t     = exp(delta_t A) h_{t-1} + delta_t u_t B_t
    y_t     = (C_t . h_t + D u_t) silu(z_t)

`u, dt, z` (B, L, E) channels over time; `A` (E, N) decay rates; `B, C` (B, L, N) what to write and read; `h` (B, E, N)
state; `D, dt_bias` (E,). N is the number of states per channel. Works in float32 and float64 on any device, and with a
float64 state beside float32 arguments.

Reference: Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", 2023, arXiv 2312.00752.
B is discretised by Euler's rule, delta_t B_t, as in the authors' code; their equation 4 prints the zero-order hold.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from scanrl.kernels.inputs import Inputs

__all__ = ["scan", "step"]


def step(x: Inputs, softplus: bool) -> tuple[Tensor, Tensor]:
    """One token, x without the axis L. Returns y (B, E) and the new state (B, E, N)."""
    u, dt, A, B, C, D, z, dt_bias, h = x
    assert h is not None
    delta = dt if dt_bias is None else dt + dt_bias
    if softplus:
        delta = F.softplus(delta)
    # In the dtype of h: a decay of 1 - 1e-6, rounded to float32, is off by a hundredth of the 1e-6 in every step.
    decay = torch.exp(delta.to(h.dtype).unsqueeze(-1) * A)
    h = decay * h + (delta * u).unsqueeze(-1) * B.unsqueeze(1)  # (B, E, N)
    y = (h.to(u.dtype) * C.unsqueeze(1)).sum(-1)  # (B, E)
    if D is not None:
        y = y + D * u
    if z is not None:
        y = y * F.silu(z)
    return y, h


def scan(x: Inputs, softplus: bool) -> tuple[Tensor, Tensor]:
    """All tokens, one after the other. Returns y (B, L, E) and the last state (B, E, N)."""
    h = x.u.new_zeros(x.u.shape[0], *x.A.shape) if x.h is None else x.h
    gates = [None] * x.u.shape[1] if x.z is None else x.z.unbind(1)
    # unbind, not indexing: backward of a slice per step would fill a gradient of the whole sequence per step.
    tokens = zip(x.u.unbind(1), x.dt.unbind(1), x.B.unbind(1), x.C.unbind(1), gates, strict=True)
    ys = []
    for u, dt, B, C, z in tokens:
        y, h = step(Inputs(u, dt, x.A, B, C, x.D, z, x.dt_bias, h), softplus)
        ys.append(y)
    return (torch.stack(ys, 1) if ys else x.u.new_zeros(x.u.shape)), h
