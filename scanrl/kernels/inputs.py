"""The tensor arguments of a selective scan: one tuple for all implementations, and the check that they fit."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Inputs", "check", "widen"]


class Inputs(NamedTuple):
    """Arguments of a scan over L tokens; of one token, the axis L is missing."""

    u: Tensor  # (B, L, E)
    dt: Tensor  # (B, L, E)
    A: Tensor  # (E, N)
    B: Tensor  # (B, L, N)
    C: Tensor  # (B, L, N)
    D: Tensor | None = None  # (E,)
    z: Tensor | None = None  # (B, L, E)
    dt_bias: Tensor | None = None  # (E,)
    h: Tensor | None = None  # (B, E, N)


def check(x: Inputs, axes: str) -> None:
    """Raises unless all dtypes, devices and shapes fit `u` and `A`; `axes` are those of u: "BLE" or "BE".

    Raises: TypeError for a dtype, ValueError for a shape or a device; both name the argument.
    """
    for name, tensor in zip(x._fields, x, strict=True):
        if tensor is not None or name in "uABC" or name == "dt":
            _check_floating(name, tensor)
    if x.u.ndim != len(axes):
        raise ValueError(f"u: expected shape ({', '.join(axes)}), got {tuple(x.u.shape)}")
    *rows, channels = x.u.shape
    if x.A.ndim != 2 or x.A.shape[0] != channels:
        raise ValueError(f"A: expected shape (E, N) with E = {channels} as in u, got {tuple(x.A.shape)}")
    wide, narrow, state = (*rows, channels), (*rows, x.A.shape[1]), (rows[0], *x.A.shape)
    shapes = (wide, wide, tuple(x.A.shape), narrow, narrow, (channels,), wide, (channels,), state)
    for name, tensor, shape in zip(x._fields, x, shapes, strict=True):
        if tensor is not None:
            _check_against(name, tensor, x.u, shape)


def widen(x: Inputs) -> Inputs:
    """Half precision as float32, in which it is computed."""
    wide = (torch.float32, torch.float64)
    return Inputs(*(t if t is None or t.dtype in wide else t.float() for t in x))


def _check_floating(name: str, x: Any) -> None:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        found = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"{name}: expected a floating-point tensor, got {found}")


def _check_against(name: str, x: Tensor, u: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(x.shape) != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {tuple(x.shape)}")
    if x.device != u.device:
        raise ValueError(f"{name}: expected device {u.device} as u, got {x.device}")
    if (x.dtype == torch.float64) != (u.dtype == torch.float64):
        raise TypeError(f"{name}: float64 does not mix with other dtypes: u is {u.dtype}, {name} is {x.dtype}")
    if name == "h" and x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"h: the state is kept in float32, got {x.dtype}; convert it with .float()")
