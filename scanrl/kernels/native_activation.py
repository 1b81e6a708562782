"""SiLU and GELU in C on the CPU, on sequences (B, L, D) in float32 with any strides but a contiguous last axis."""

from torch import Tensor

from scanrl.kernels import native
from scanrl.kernels.native import strided

__all__ = ["GELU", "SILU", "backward", "forward"]

GELU, SILU = 1, 2  # as in csrc/activation.h
SMALL = 1 << 16  # entries below which one thread is enough


def forward(kind: int, x: Tensor, y: Tensor | None = None) -> Tensor:
    """y (B, L, D); a `y` that is given says where it belongs."""
    y = x.new_empty(x.shape) if y is None else y
    native.module().activation(*_head(kind, x), *strided(x), *strided(None), *strided(y))
    return y


def backward(kind: int, x: Tensor, dy: Tensor, dx: Tensor | None = None) -> Tensor:
    """The gradient of x (B, L, D); `dx` says where it belongs, which may be `dy` itself."""
    dx = x.new_empty(x.shape) if dx is None else dx
    native.module().activation(*_head(kind, x), *strided(x), *strided(dy), *strided(dx))
    return dx


def _head(kind: int, x: Tensor) -> tuple[int, ...]:
    return native.isa().number, native.threads() if x.numel() >= SMALL else 1, kind, *x.shape
