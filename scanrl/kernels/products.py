"""Matrix products as the fused functions of this folder use them: no autograd, float32 in and out, views read in place.

Where the C extension has vectors of eight floats or more its own product runs: torch's library takes 256-bit vectors on
processors of other makers than its own, even where they have 512. It also rounds to bfloat16 on the way, where the
processor multiplies that. Elsewhere torch's product runs.
"""

import torch
from torch import Tensor

from scanrl.kernels import native, native_product

__all__ = ["half_of", "outer", "slabs", "spans", "times"]

CACHED = 1 << 19  # numbers: two megabytes


def half_of(x: Tensor) -> torch.dtype | None:
    """The dtype in which products with x are to be computed: autocast's, if it is on, else None for that of x."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def times(
    a: Tensor,
    b: Tensor,
    bias: Tensor | None = None,
    *,
    out: Tensor | None = None,
    add: bool = False,
    half: torch.dtype | None = None,
) -> Tensor:
    """`a b + bias`, all of them float32.

    Args:
        a: (..., K).
        b: (K, N).
        bias: (N,).
        out: where to write it (..., N); a new tensor by default.
        add: add to what `out` holds instead.
        half: the dtype that a and b are rounded to; None is none. Sums are float32, or rounded once at the end.
    """
    if _native(a, half):
        return native_product.times(a, b, bias, out=out, add=add, half=half is not None)
    y = _torch(a, b, half)
    if bias is not None:
        y += bias
    if out is None:
        return y
    return out.add_(y) if add else out.copy_(y)


def outer(a: Tensor, b: Tensor, total: Tensor | None = None, *, half: torch.dtype | None = None) -> Tensor:
    """`sum_t a_t^T b_t` over the leading axes of a (..., M) and b (..., N), (M, N): the gradient of a weight.

    It is added to `total`, which an earlier call for the same weight returned, if that is given. Dtypes as in `times`.
    """
    if _native(a, half):
        return native_product.outer(a, b, total, half=half is not None)
    found = _torch(a.flatten(0, -2).t(), b.flatten(0, -2), half)
    return found if total is None else total.add_(found)


def slabs(x: Tensor, width: int) -> list[slice]:
    """Batch rows of x (B, L, *) cut into slabs, of which `width` numbers per token stay in the caches.

    What passes from one product to the next then never goes to memory and back. Shapes alone decide.
    """
    batch, length = x.shape[:2]
    rows = max(1, CACHED // (length * width))
    count = -(-batch // rows)
    rows = -(-batch // count)  # of about the same size
    return [slice(first, first + rows) for first in range(0, batch, rows)]


def spans(x: Tensor, width: int, chunk: int, least: int) -> list[slice]:
    """Tokens of x (B, L, *) cut likewise, where one row is more than a slab: multiples of `chunk`, at least `least`."""
    length = x.shape[1]
    size = max(1, CACHED // (width * chunk)) * chunk
    size = max(size, -(-least // chunk) * chunk)
    starts = list(range(0, length, size))
    if len(starts) > 1 and length - starts[-1] < least:
        starts.pop()
    return [slice(first, end) for first, end in zip(starts, [*starts[1:], length], strict=True)]


def _native(a: Tensor, half: torch.dtype | None) -> bool:
    if a.device.type != "cpu" or native.extension()[0] is None:
        return False
    return native.isa().lanes >= 8 if half is None else half == torch.bfloat16 and native_product.halves()


def _torch(a: Tensor, b: Tensor, half: torch.dtype | None) -> Tensor:
    return a @ b if half is None else (a.to(half) @ b.to(half)).float()
