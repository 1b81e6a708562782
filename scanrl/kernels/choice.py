"""Which implementation of a kernel runs: one rule for the scan and the convolution.

`reference` (torch, any device, also float64) is the definition; `native` (C, float32 on the CPU) and `gpu` (Triton,
float32 and half precision on CUDA) are the fast ones. SCANRL_SCAN forces one for the process, `impl=` for a call; a
forced one that cannot run raises. Left alone, the choice is the fast one of the device where it can run, else
`reference`; only a missing C extension or triton is worth a warning, and it comes once.
"""

import os
import warnings
from functools import cache
from typing import Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor

from scanrl.kernels import gpu, native

__all__ = ["Impl", "ScanChoice", "choose", "scan_choice"]

Impl = Literal["reference", "native", "gpu"]

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
        detail = _detail(impl, device)
    except (RuntimeError, ValueError) as error:
        return ScanChoice("none", str(error), "")
    if forced:
        return ScanChoice(impl, "forced by SCANRL_SCAN", detail)
    if impl != "reference":
        return ScanChoice(impl, f"the fastest on {'the CPU' if kind == 'cpu' else kind}", detail)
    return ScanChoice(impl, _slow(kind) or f"runs on {kind}", detail)


def choose(name: str, x: Tensor, impl: Impl | None) -> Impl:
    """The implementation for a call whose first argument, `name`, is x; raises if it was forced and cannot run."""
    if impl is not None and impl not in get_args(Impl):
        raise ValueError(f"impl: expected one of {', '.join(get_args(Impl))}, got {impl!r}")
    chosen = impl or _forced()
    if chosen is None:
        chosen = _automatic(x.device.type, x.dtype)
        if chosen == "reference" and x.dtype != torch.float64 and not torch.compiler.is_compiling():
            _warn_slow(x.device.type)
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
    if dtype == torch.float64 or device not in ("cpu", "cuda") or torch.compiler.is_compiling() or _slow(device):
        return "reference"
    return "native" if device == "cpu" else "gpu"


def _slow(device: str) -> str:
    """Why the fast implementation of a device is not there, and how to get it; empty if it is or there is none."""
    if device == "cuda":
        return gpu.found().why
    module, why = native.extension() if device == "cpu" else (None, "")
    return f"{why}; {_GET_NATIVE}" if why and module is None else ""


def _require(impl: Impl, device: str, dtype: torch.dtype, name: str = "u") -> None:
    """Raises if `impl` cannot run."""
    if impl == "reference":
        return
    takes = {"native": "the CPU", "gpu": "CUDA"}[impl]
    why = _slow("cpu" if impl == "native" else "cuda")
    if why:
        raise RuntimeError(f"the {impl} implementation was asked for, but {why}")
    here = device == "cpu" if impl == "native" else device == "cuda" or (device == "cpu" and gpu.found().interpreted)
    if not here or dtype == torch.float64:
        takes = f"the {impl} implementation takes float32 and half precision on {takes}"
        raise ValueError(f"{name}: {takes}, got {dtype} on {device}; use impl='reference' or leave the choice open")
    if impl == "native":
        native.isa()


def _detail(impl: Impl, device: str | torch.device) -> str:
    if impl == "native":
        return f"{native.isa().name}, {native.threads()} threads"
    return gpu.detail(device) if impl == "gpu" else f"torch {torch.__version__}"


@cache
def _warn_slow(device: str) -> None:
    """Warns of the slow implementation, once per process: the cache remembers that it did."""
    if why := _slow(device):
        slow = "their references run instead and are many times slower"
        warnings.warn(f"selective_scan, causal_conv: {slow}: {why}", RuntimeWarning, stacklevel=4)
