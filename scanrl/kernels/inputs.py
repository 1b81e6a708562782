"""The tensor arguments of a selective scan: one tuple for all implementations; and checks that arguments fit."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Inputs", "check", "check_fits", "check_floating", "widen"]

WIDE = (torch.float32, torch.float64)


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
            check_floating(name, tensor)
    if x.u.ndim != len(axes):
        raise ValueError(f"u: expected shape ({', '.join(axes)}), got {tuple(x.u.shape)}")
    *rows, channels = x.u.shape
    if x.A.ndim != 2 or x.A.shape[0] != channels:
        raise ValueError(f"A: expected shape (E, N) with E = {channels} as in u, got {tuple(x.A.shape)}")
    wide, narrow, state = (*rows, channels), (*rows, x.A.shape[1]), (rows[0], *x.A.shape)
    shapes = (wide, wide, tuple(x.A.shape), narrow, narrow, (channels,), wide, (channels,), state)
    for name, tensor, shape in zip(x._fields, x, shapes, strict=True):
        if tensor is not None and name == "h" and tensor.dtype == torch.float64:  # a state may be, whatever u is
            _check_form(name, tensor, shape, "u", x.u)
        elif tensor is not None:
            check_fits(name, tensor, shape, "u", x.u)
    if x.h is not None and x.h.dtype not in WIDE:
        raise TypeError(f"h: the state is kept in float32 or float64, got {x.h.dtype}; convert it with .float()")


def widen(x: Tensor | None) -> Any:
    """Half precision as float32, in which it is computed."""
    return x if x is None or x.dtype in WIDE else x.float()


def check_floating(name: str, x: Any) -> None:
    """Raises TypeError unless x is a floating-point tensor."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        found = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"{name}: expected a floating-point tensor, got {found}")


def check_fits(name: str, x: Tensor, shape: tuple[int, ...], first_name: str, first: Tensor) -> None:
    """Raises unless x has the shape, the device of the `first` argument, and float64 if and only if that has it."""
    _check_form(name, x, shape, first_name, first)
    if (x.dtype == torch.float64) != (first.dtype == torch.float64):
        found = f"{first_name} is {first.dtype}, {name} is {x.dtype}"
        raise TypeError(f"{name}: float64 does not mix with other dtypes: {found}")


def _check_form(name: str, x: Tensor, shape: tuple[int, ...], first_name: str, first: Tensor) -> None:
    if tuple(x.shape) != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {tuple(x.shape)}")
    if x.device != first.device:
        raise ValueError(f"{name}: expected device {first.device} as {first_name}, got {x.device}")
