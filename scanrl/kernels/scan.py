"""The selective scan: one function, three implementations, one rule for choosing.

    delta_t = softplus(dt_t + dt_bias)
    h_t     = exp(delta_t A) h_{t-1} + delta_t u_t B_t
    y_t     = (C_t . h_t + D u_t) silu(z_t)

`B` batch, `L` tokens, `E` channels, `N` states per channel. `reference` (torch, any device, also float64) is the
definition; `native` (C, float32 on the CPU) is the fast one; `gpu` is reserved. SCANRL_SCAN forces one for the
process, `impl=` for a call; a forced one that cannot run raises. Left alone, the choice is `native` where it can run,
else `reference`; only a missing C extension is worth a warning, and it comes once.
"""

import os
import warnings
from functools import cache
from typing import Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor

from scanrl.kernels import native, reference
from scanrl.kernels.inputs import Inputs, check, widen

__all__ = ["Impl", "ScanChoice", "scan_choice", "selective_scan", "selective_step"]

Impl = Literal["reference", "native", "gpu"]

_GPU_MISSING = "the gpu scan is not available in this version; use impl='reference' or leave the choice open"
_GET_NATIVE = "install a C compiler, then: pip install --force-reinstall --no-deps --no-binary scanrl scanrl"


class ScanChoice(NamedTuple):
    """Which implementation runs, why, and on what (instruction set, threads)."""

    impl: str
    reason: str
    detail: str


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
        h: the state before the first token (B, E, N), float32 (float64 if u is); None is zeros.
        softplus: delta = softplus(dt + dt_bias); without it delta = dt + dt_bias.
        impl: force an implementation; None follows SCANRL_SCAN, then the automatic choice.

    Returns:
        y (B, L, E) in the dtype of u, and the last state (B, E, N), float32 (float64 if u is). Half precision is
        computed in float32. Gradients, of first order, flow to every argument and from both results.

    Raises:
        TypeError: an argument is no floating-point tensor or mixes float64 with other dtypes, or h is half precision.
        ValueError: a shape or device does not fit, or `impl` or SCANRL_SCAN names no implementation.
        RuntimeError: a forced implementation cannot run here.

    Reference: Gu and Dao, "Mamba", 2023, algorithm 2, https://arxiv.org/abs/2312.00752. B is discretised by Euler's
    rule, delta_t B_t, as in the authors' code; their equation 4 prints the zero-order hold.
    """
    x = Inputs(u, dt, A, B, C, D, z, dt_bias, h)
    check(x, "BLE")
    if _choose(u, impl) == "native" and u.numel() and A.numel():  # the definition says what nothing gives
        y, last = native.scan(widen(x), softplus)
    else:
        with torch.autocast(u.device.type, enabled=False):
            y, last = reference.scan(widen(x), softplus)
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
    with torch.autocast(u.device.type, enabled=False):
        y, last = reference.step(widen(x), softplus)
    return y.to(u.dtype), last


def scan_choice(device: str | torch.device = "cpu") -> ScanChoice:
    """What `selective_scan` runs for float32 tensors on `device`, and why.

    Never raises: what would stop it is the reason, and `impl` is then "none".
    """
    try:
        kind = torch.device(device).type
        forced = _forced()
        impl = forced or _automatic(kind, torch.float32)
        _require(impl, kind, torch.float32)
        detail = (
            f"{native.isa().name}, {native.threads()} threads" if impl == "native" else f"torch {torch.__version__}"
        )
    except (RuntimeError, ValueError) as error:
        return ScanChoice("none", str(error), "")
    module, why = native.extension()
    if forced:
        return ScanChoice(impl, "forced by SCANRL_SCAN", detail)
    if impl == "native":
        return ScanChoice(impl, "the fastest on the CPU", detail)
    return ScanChoice(impl, f"{why}; {_GET_NATIVE}" if kind == "cpu" and not module else f"runs on {kind}", detail)


def _choose(u: Tensor, impl: Impl | None) -> Impl:
    """The implementation for this call; raises if it was forced and cannot run."""
    if impl is not None and impl not in get_args(Impl):
        raise ValueError(f"impl: expected one of {', '.join(get_args(Impl))}, got {impl!r}")
    chosen = impl or _forced()
    if chosen is None:
        chosen = _automatic(u.device.type, u.dtype)
        if chosen == "reference" and native.extension()[0] is None:
            _warn_slow()
    else:
        _require(chosen, u.device.type, u.dtype)
    return chosen


@cache
def _forced() -> Impl | None:
    """What SCANRL_SCAN says; read once per process."""
    name = os.environ.get("SCANRL_SCAN") or None
    if name is not None and name not in get_args(Impl):
        raise ValueError(f"SCANRL_SCAN: expected one of {', '.join(get_args(Impl))}, got {name!r}")
    return cast("Impl | None", name)


def _automatic(device: str, dtype: torch.dtype) -> Impl:
    # A graph being traced has no addresses to hand to C; float64 and other devices are the reference's own ground.
    if device != "cpu" or dtype == torch.float64 or torch.compiler.is_compiling():
        return "reference"
    return "native" if native.extension()[0] else "reference"


def _require(impl: Impl, device: str, dtype: torch.dtype) -> None:
    """Raises if `impl` cannot run."""
    if impl == "gpu":
        raise RuntimeError(_GPU_MISSING)
    if impl == "reference":
        return
    module, why = native.extension()
    if module is None:
        raise RuntimeError(f"the native scan was asked for, but {why}; {_GET_NATIVE}")
    if device != "cpu" or dtype == torch.float64:
        takes = "the native scan takes float32 and half precision on the CPU"
        raise ValueError(f"u: {takes}, got {dtype} on {device}; use impl='reference' or leave the choice open")
    native.isa()


@cache
def _warn_slow() -> None:
    """Warns of the slow implementation, once per process: the cache remembers that it did."""
    _, why = native.extension()
    message = (
        f"selective_scan: {why}; the reference runs instead and is many times slower. To change that, {_GET_NATIVE}"
    )
    warnings.warn(message, RuntimeWarning, stacklevel=4)
