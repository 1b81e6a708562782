"""The causal convolution as Triton kernels: what one program computes; `gpu_conv.py` cuts the work and allocates.

Symbols as in `conv.py`. Several convolutions of equal shapes run as one: the rows are then S times `rows` rows, and
kernel (S, M, w, D) and bias (S, M, D) have an entry for every `rows` of them. Inputs may be half precision; all
arithmetic is float32.
"""

import triton
import triton.language as tl

__all__ = ["backward_inputs", "backward_weights", "forward"]


@triton.jit
def _place_of(place, row, places):
    """The place of the row's first token, in 0 .. M-1 whatever the sign."""
    if place is None:
        m = row * 0
    else:
        m = (tl.load(place + row) % places + places) % places
    return m


@triton.jit
def _tile(length, T: tl.constexpr, D: tl.constexpr):
    """Of this program: its row, and the places in its tile of tokens and channels."""
    tiles = tl.cdiv(length, T)
    pid = tl.program_id(0)
    return (pid // tiles).to(tl.int64), pid % tiles * T + tl.arange(0, T), tl.program_id(1) * D + tl.arange(0, D)


@triton.jit
def forward(
    x, kernel, bias, past, place, y, x0, x1, past0, past1, rows, length, width, places,
    WINDOW: tl.constexpr, T: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """A tile (tokens, channels) of one row of y."""
    row, t, d = _tile(length, T, D)
    in_t, in_d = (t < length)[:, None], (d < width)[None, :]
    # Place number m of its own convolution is number `m` of all there are.
    m = (row // rows * places + (_place_of(place, row, places) + t) % places)[:, None]
    out = tl.load(bias + m * width + d[None, :], mask=in_t & in_d, other=0.0)
    for i in range(WINDOW):
        s = (t - (WINDOW - 1) + i)[:, None]
        tap = tl.load(kernel + (m * WINDOW + i) * width + d[None, :], mask=in_t & in_d, other=0.0)
        seen = tl.load(x + row * x0 + s * x1 + d[None, :], mask=in_t & in_d & (s >= 0), other=0.0).to(tl.float32)
        if past is not None:
            at = past + row * past0 + (s + (WINDOW - 1)) * past1 + d[None, :]
            seen += tl.load(at, mask=in_t & in_d & (s < 0), other=0.0).to(tl.float32)
        out += tap * seen
    at = y + row * length * width + t[:, None] * width + d[None, :]
    tl.store(at, out.to(y.dtype.element_ty), mask=in_t & in_d)


@triton.jit
def backward_inputs(
    kernel, place, dy, dx, dpast, dy0, dy1, rows, length, width, places,
    WINDOW: tl.constexpr, T: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """A tile of one row of the gradients of the past and, behind it, of x."""
    row, tile, d = _tile(length + WINDOW - 1, T, D)
    s = tile - (WINDOW - 1)
    in_d, first = (d < width)[None, :], _place_of(place, row, places)
    out = tl.zeros([T, D], tl.float32)
    for i in range(WINDOW):
        t = (s + (WINDOW - 1) - i)[:, None]
        here = (t >= 0) & (t < length) & in_d
        m = row // rows * places + (first + t) % places
        tap = tl.load(kernel + (m * WINDOW + i) * width + d[None, :], mask=here, other=0.0)
        out += tap * tl.load(dy + row * dy0 + t * dy1 + d[None, :], mask=here, other=0.0).to(tl.float32)
    s = s[:, None]
    at = dx + row * length * width + s * width + d[None, :]
    tl.store(at, out.to(dx.dtype.element_ty), mask=(s >= 0) & (s < length) & in_d)
    if dpast is not None:
        at = dpast + row * (WINDOW - 1) * width + (s + (WINDOW - 1)) * width + d[None, :]
        tl.store(at, out.to(dpast.dtype.element_ty), mask=(s < 0) & in_d)


@triton.jit
def backward_weights(
    x, past, place, dy, parts, x0, x1, past0, past1, dy0, dy1, rows, length, width, places, each, per,
    WINDOW: tl.constexpr, T: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """A part of the gradient of one tap (or of the bias, which is tap number w) of one place.

    A piece of work is one row and T tokens of that place; a part is the sum over `each` pieces; `per` parts belong to
    one convolution.
    """
    part, weight, d = tl.program_id(0), tl.program_id(1), tl.program_id(2) * D + tl.arange(0, D)
    m, i, in_d = weight // (WINDOW + 1), weight % (WINDOW + 1), (d < width)[None, :]
    tiles = tl.cdiv(tl.cdiv(length, places), T)
    total = tl.zeros([T, D], tl.float32)
    own, begin = part // per, part % per * each
    for piece in range(begin, tl.minimum(begin + each, rows * tiles)):
        row = (own * rows + piece // tiles).to(tl.int64)
        first = (m - _place_of(place, row, places) + places) % places
        t = (first + (piece % tiles * T + tl.arange(0, T)) * places)[:, None]
        here = (t < length) & in_d
        g = tl.load(dy + row * dy0 + t * dy1 + d[None, :], mask=here, other=0.0).to(tl.float32)
        if i < WINDOW:
            s = t - (WINDOW - 1) + i
            seen = tl.load(x + row * x0 + s * x1 + d[None, :], mask=here & (s >= 0), other=0.0).to(tl.float32)
            if past is not None:
                at = past + row * past0 + (s + (WINDOW - 1)) * past1 + d[None, :]
                seen += tl.load(at, mask=here & (s < 0), other=0.0).to(tl.float32)
            g = g * seen
        total += g
    at = parts + (part * places * (WINDOW + 1) + weight) * width + d
    tl.store(at, tl.sum(total, 0), mask=d < width)
