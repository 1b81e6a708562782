"""The matrix product in C on the CPU: memory for the kernel in `csrc/`.

Everything is float32. An operand may have one or two leading axes, batch and tokens, with any strides: a view of a
wider sequence or of overlapping windows is read in place.
"""

from functools import cache

from torch import Tensor

from scanrl.kernels import native

__all__ = ["halves", "outer", "times"]

SMALL = 1 << 20  # multiply-adds below which one thread is enough
DEPTH = 256  # as in csrc/product.h
PANEL = 64  # columns of the widest panel there is


@cache
def halves() -> bool:
    """Whether there is a form for operands in bfloat16 here."""
    return native.module().halves(native.isa().number)


def times(
    a: Tensor,
    b: Tensor,
    bias: Tensor | None = None,
    *,
    out: Tensor | None = None,
    add: bool = False,
    half: bool = False,
) -> Tensor:
    """`a b + bias` of a (..., K) and b (K, N); into `out` (..., N), or added to what is there.

    With `half`, a and b are rounded to bfloat16 on the way; sums are float32.
    """
    if out is None:
        out = a.new_empty(*a.shape[:-1], b.shape[1])
    return _product(a, False, b, out, bias, add, half)


def outer(a: Tensor, b: Tensor, total: Tensor | None = None, *, half: bool = False) -> Tensor:
    """`sum_t a_t^T b_t` of a (..., M) and b (..., N), (M, N); added to the `total` of an earlier call, if given."""
    if a.shape[-1] > b.shape[-1]:  # the wider one is the cheaper one to copy
        return outer(b, a, None if total is None else total.t(), half=half).t()
    out = a.new_empty(a.shape[-1], b.shape[-1]) if total is None else total
    return _product(a, True, b, out, None, total is not None, half)


def _product(a: Tensor, turned: bool, b: Tensor, out: Tensor, bias: Tensor | None, add: bool, half: bool) -> Tensor:
    left = (*_column(a), *_rows(a)) if turned else (*_rows(a), *_column(a))
    m, n, k = _count(out), b.shape[-1], _count(b)
    if not k and not add:
        return out.zero_() if bias is None else out.copy_(bias.expand_as(out))
    panels = out.new_empty(-(-n // PANEL) * PANEL * min(DEPTH, k))
    threads = native.threads() if m * n * k >= SMALL else 1
    head = (native.isa().number, threads, int(half), m, n, k, a.data_ptr(), *left, b.data_ptr(), *_rows(b), *_column(b))
    end = (out.data_ptr(), *_rows(out), native.address(bias), int(add), panels.data_ptr())
    native.module().product(*head, *end)
    return out


def _count(x: Tensor) -> int:
    return x.shape[0] if x.ndim == 2 else x.shape[0] * x.shape[1]


def _rows(x: Tensor) -> tuple[int, int, int]:
    """Inner length, outer and inner stride of the leading axes."""
    if x.ndim == 2:
        return x.shape[0], 0, x.stride(0)
    batch, outer, inner = x.shape[1], x.stride(0), x.stride(1)
    return (x.shape[0] * batch, 0, inner) if outer == batch * inner else (batch, outer, inner)


def _column(x: Tensor) -> tuple[int, int, int]:
    return x.shape[-1], 0, x.stride(-1)
