"""Which implementation of a kernel runs: one rule for the scan and the convolution.

`reference` (torch, any device, also float64) is the definition; `native` (C, float32 on the CPU) is the fast one;
`gpu` is reserved. SCANRL_SCAN forces one for the process, `impl=` for a call; a forced one that cannot run raises. Left
alone, the choice is `native` where it can run, else `reference`; only a missing C extension is worth a warning, and it
comes once.
"""

import os
import warnings
from functools import cache
from typing import Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor

from scanrl.kernels import native

__all__ = ["Impl", "ScanChoice", "choose", "scan_choice"]

Impl = Literal["reference", "native", "gpu"]

_GPU_MISSING = "the gpu kernels are not available in this version; use impl='reference' or leave the choice open"
_GET_NATIVE = "install a C compiler, then run in the clone: pip install --force-reinstall --no-deps ."


class ScanChoice(NamedTuple):
    """Which implementation runs, why, and on what (instruction set, threads)."""

    impl: str
    reason: str
    detail: str


def scan_choice(device: str | torch.device = "cpu") -> ScanChoice:
    """What `selective_scan` and `causal_conv` run for float32 tensors on `device`, and why.

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


def choose(name: str, x: Tensor, impl: Impl | None) -> Impl:
    """The implementation for a call whose first argument, `name`, is x; raises if it was forced and cannot run."""
    if impl is not None and impl not in get_args(Impl):
        raise ValueError(f"impl: expected one of {', '.join(get_args(Impl))}, got {impl!r}")
    chosen = impl or _forced()
    if chosen is None:
        chosen = _automatic(x.device.type, x.dtype)
        if chosen == "reference" and native.extension()[0] is None:
            _warn_slow()
    else:
        _require(chosen, x.device.type, x.dtype, name)
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


def _require(impl: Impl, device: str, dtype: torch.dtype, name: str = "u") -> None:
    """Raises if `impl` cannot run."""
    if impl == "gpu":
        raise RuntimeError(_GPU_MISSING)
    if impl == "reference":
        return
    module, why = native.extension()
    if module is None:
        raise RuntimeError(f"the native implementation was asked for, but {why}; {_GET_NATIVE}")
    if device != "cpu" or dtype == torch.float64:
        takes = "the native implementation takes float32 and half precision on the CPU"
        raise ValueError(f"{name}: {takes}, got {dtype} on {device}; use impl='reference' or leave the choice open")
    native.isa()


@cache
def _warn_slow() -> None:
    """Warns of the slow implementation, once per process: the cache remembers that it did."""
    _, why = native.extension()
    slow = "their references run instead and are many times slower"
    message = f"selective_scan, causal_conv: {why}; {slow}. To change that, {_GET_NATIVE}"
    warnings.warn(message, RuntimeWarning, stacklevel=4)
