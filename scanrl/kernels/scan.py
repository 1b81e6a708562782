"""The selective scan: one function, three implementations, one rule for choosing.

    delta_t = softplus(dt_t + dt_bias)
    h_t     = exp(delta_t A) h_{t-1} + delta_t u_t B_t
    y_t     = (C_t . h_t + D u_t) silu(z_t)

`B` batch, `L` tokens, `E` channels, `N` states per channel. `reference` (torch, any device, also float64) is the
definition; `native` (C, float32 on the CPU) and `gpu` (Triton, on CUDA) are the fast ones; `choice.py` says which of
them runs.
"""

import torch
from torch import Tensor

from scanrl.kernels import native_scan, reference
from scanrl.kernels.choice import Impl, choose
from scanrl.kernels.inputs import Inputs, check, widen

__all__ = ["selective_scan", "selective_step"]


def selective_scan(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    h: Tensor | None = None,
    softplus: bool = True,
    impl: Impl | None = None,
) -> tuple[Tensor, Tensor]:
    """Runs a selective state space over a chunk of tokens; returns the outputs and the last state.

    Args:
        u: inputs (B, L, E).
        dt: step sizes (B, L, E), before the bias and the softplus.
        A: decay rates (E, N), negative, per unit of step size.
        B: input weights (B, L, N).
        C: output weights (B, L, N).
        D: skip weights (E,).
        z: gates (B, L, E); the output is multiplied by silu(z).
        dt_bias: added to dt (E,).
        h: the state before the first token (B, E, N), float32 or, for a state that is carried over many thousand
            tokens, float64; None is zeros.
        softplus: delta = softplus(dt + dt_bias); without it delta = dt + dt_bias.
        impl: force an implementation; None follows SCANRL_SCAN, then the automatic choice.

    Returns:
        y (B, L, E) in the dtype of u, and the last state (B, E, N) in the dtype of h (without h, float32, or float64
        if u is). Half precision is computed in float32; only the state is computed in float64 where it is float64
        (native: in two floats; in float32 where a gradient is wanted). Gradients, of first order, flow to every
        argument and from both results.

    Raises:
        TypeError: an argument is no floating-point tensor or mixes float64 with other dtypes, or h is half precision.
        ValueError: a shape or device does not fit, or `impl` or SCANRL_SCAN names no implementation.
        RuntimeError: a forced implementation cannot run here.

    Reference: Gu and Dao, "Mamba", 2023, algorithm 2, https://arxiv.org/abs/2312.00752. B is discretised by Euler's
    rule, delta_t B_t, as in the authors' code; their equation 4 prints the zero-order hold.
    """
    x = Inputs(u, dt, A, B, C, D, z, dt_bias, h)
    check(x, "BLE")
    chosen = choose("u", u, impl) if u.numel() and A.numel() else "reference"  # which says what nothing gives
    if chosen == "gpu":
        from scanrl.kernels import gpu_scan  # triton comes with the first tensor that wants it

        return gpu_scan.scan(x, softplus)
    x = Inputs(*map(widen, x))
    if chosen == "native":
        y, last = native_scan.scan(x, softplus)
    else:
        with torch.autocast(u.device.type, enabled=False):
            y, last = reference.scan(x, softplus)
    return y.to(u.dtype), last


def selective_step(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    h: Tensor,
    softplus: bool = True,
) -> tuple[Tensor, Tensor]:
    """Runs a selective state space over one token: `u, dt, z` (B, E), `B, C` (B, N), the rest as in `selective_scan`.

    Plain torch, so that it can be compiled and exported. Returns y (B, E) and a new state (B, E, N); h is not changed.

    Raises: TypeError, ValueError as `selective_scan`.

    Reference: as `selective_scan`.
    """
    if h is None:
        raise TypeError("h: expected a floating-point tensor, got NoneType; start from zeros (B, E, N)")
    x = Inputs(u, dt, A, B, C, D, z, dt_bias, h)
    check(x, "BE")
    x = Inputs(*map(widen, x))
    with torch.autocast(u.device.type, enabled=False):
        y, last = reference.step(x, softplus)
    return y.to(u.dtype), last
