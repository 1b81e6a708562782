"""The selective scan as public code writes it, and ours: `(u, dt, A, B, C, D, z, dt_bias) -> y`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from scanrl.bench.equality import require_equal
from scanrl.kernels import selective_scan

__all__ = ["SCAN_SHAPES", "classic_loop", "our_scan", "require_equal_scans", "scan_arguments", "train_scan"]

SCAN_SHAPES = {  # batch, tokens, channels, states
    "W1": (64, 24, 128, 16),  # 8 steps of 3 tokens, width 64
    "W2": (64, 60, 256, 16),  # 20 steps of 3 tokens, width 128
    "W3": (4, 2048, 256, 16),
    "W4": (1, 20000, 256, 16),
    "W5": (64, 90, 256, 16),  # Atari
    "W6": (64, 192, 128, 16),  # 64 steps of 3 tokens, width 64
}


def classic_loop(u, dt, A, B, C, D, z, dt_bias) -> Tensor:
    """The eager loop of the public minimal implementations: whole-sequence coefficients, a slice per step."""
    delta = F.softplus(dt + dt_bias)
    dA = torch.exp(delta.unsqueeze(-1) * A)  # (B, L, E, N)
    dBu = (delta * u).unsqueeze(-1) * B.unsqueeze(2)
    h, ys = torch.zeros_like(dA[:, 0]), []
    for t in range(u.shape[1]):
        h = dA[:, t] * h + dBu[:, t]
        ys.append((h * C[:, t, None]).sum(-1))
    return (torch.stack(ys, 1) + D * u) * F.silu(z)


def our_scan(impl, u, dt, A, B, C, D, z, dt_bias) -> Tensor:
    return selective_scan(u, dt, A, B, C, D=D, z=z, dt_bias=dt_bias, impl=impl)[0]


def scan_arguments(batch: int, length: int, channels: int, states: int) -> list[Tensor]:
    """u, dt, A, B, C, D, z, dt_bias as a freshly built Mamba layer has them, gradients wanted."""
    normal = partial(torch.randn, generator=torch.Generator().manual_seed(0))
    A = -torch.arange(1.0, states + 1).repeat(channels, 1)
    wide, narrow = (batch, length, channels), (batch, length, states)
    inputs, dt = normal(wide), normal(wide)
    B, C = normal(narrow), normal(narrow)
    x = [inputs, dt, A, B, C, normal(channels), normal(wide), normal(channels) - 4]
    return [tensor.requires_grad_() for tensor in x]


def train_scan(function: Callable[..., Tensor], x: list[Tensor], weights: Tensor) -> tuple[Tensor, ...]:
    """Forward and backward: the output and the gradient of every argument."""
    y = function(*x)
    return y.detach(), *torch.autograd.grad(y, x, weights)


def require_equal_scans(functions: dict[str, Callable[..., Tensor]], x: list[Tensor], weights: Tensor) -> None:
    """Compares outputs and gradients with the float64 reference; two rows of the batch will tell.

    Raises:
        Differs: a candidate strays by more than 1e-4.
    """
    rows = [t.detach()[:2] if t.ndim == 3 else t.detach() for t in x]
    exact = [t.double().requires_grad_() for t in rows]
    truth = train_scan(partial(our_scan, "reference"), exact, weights[:2].double())
    for name, function in functions.items():
        found = train_scan(function, [t.requires_grad_() for t in rows], weights[:2])
        require_equal(name, found, truth, 1e-4)
