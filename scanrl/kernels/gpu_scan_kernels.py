"""The selective scan as Triton kernels: what one program computes; `gpu_scan.py` cuts the work and allocates.

Symbols as in `reference.py`. Several scans of equal shapes run as one: the rows are then S times `each` rows, and
A (S, N, E), D and dt_bias (S, E) have an entry for every `each` of them. A program holds the states (N, E) of a block
of channels of one row in registers and walks through the tokens of one segment, one after the other; N and the block
are powers of two, the rest is masked. States in memory are (.., N, E), so that neighbouring threads touch neighbouring
channels. Inputs may be half precision; all arithmetic is float32, but for a float64 state (`rates` is float64 then).

Tokens are taken `CHUNK` at a time in a loop that is unrolled and stores nothing but at its end: loads then need not
wait for stores that might alias them, and are under way while the states are computed. `channels` is not specialised:
knowing it to be a multiple of 16, the compiler would give a thread neighbouring channels, and compute what belongs to a
channel as often as there are threads along the states.

Every sum over programs is left to the caller as a sum of parts: atomics would add in another order each time.
"""

# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false
import triton
import triton.language as tl

__all__ = ["backward", "carry", "forward", "local_backward"]

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
AHEAD = tl.constexpr(8)  # segments that `carry` loads at a time


@triton.jit
def _softplus(x):
    """softplus(x), accurate relative to its own size, and its derivative."""
    e = tl.exp2(-tl.abs(x) * LOG2E)
    s = e / (2.0 + e)  # log(1 + e) = 2 artanh(s), s <= 1/3: the series converges fast and nothing cancels
    q = s * s
    series = 1.0 / 15
    for i in tl.static_range(1, 8):
        series = series * q + 1.0 / (15 - 2 * i)
    return tl.maximum(x, 0.0) + 2.0 * s * series, tl.where(x >= 0, 1.0, e) / (1.0 + e)


@triton.jit
def _silu(x):
    """x sigmoid(x) and its derivative."""
    e = tl.exp2(-tl.abs(x) * LOG2E)
    s = tl.where(x >= 0, 1.0, e) / (1.0 + e)
    return x * s, s * (1.0 + x * (1.0 - s))


@triton.jit
def _row(x, row, t, stride_row, stride_t, i, mask):
    """x[row, t, i] in float32, and 0 where masked."""
    return tl.load(x + row * stride_row + t * stride_t + i, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _delta(dt, shift, live, SOFTPLUS: tl.constexpr):
    """The step size, 0 for tokens past the end (which leave the state as it is), and its derivative."""
    x = dt + shift
    if SOFTPLUS:
        delta, slope = _softplus(x)
    else:
        delta, slope = x, tl.where(live, 1.0, 0.0)
    return tl.where(live, delta, 0.0), slope


@triton.jit
def _decay(delta, rate):
    """exp(delta A) (N, block), in the dtype of the rates."""
    return tl.exp2(delta.to(rate.dtype)[None, :] * rate)


@triton.jit
def _place(channels, segments, segment, BLOCK: tl.constexpr):
    """Of this program: its part (row and segment), row, first token, block of channels, and the channels themselves."""
    pid = tl.program_id(0)
    blocks = tl.cdiv(channels, BLOCK)
    part = (pid // blocks).to(tl.int64)  # whatever is multiplied by it may pass 2**31
    block = pid % blocks
    return part, part // segments, (part % segments) * segment, block, block * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def _square(e, channels, states, N: tl.constexpr):
    """Offsets of the states (N, E) of channels e, and which of them exist."""
    n = tl.arange(0, N)
    exists = (n < states)[:, None] & (e < channels)[None, :]
    return n[:, None] * channels + e[None, :], exists


@triton.jit
def _optional(x, e, mask):
    """x[e], or zeros for None."""
    if x is None:
        value = tl.zeros(e.shape, tl.float32)
    else:
        value = tl.load(x + e, mask=mask, other=0.0)
    return value


@triton.jit
def _optional_state(h, at, exists, rate):
    """The states at `h + at`, or zeros for None, in the dtype of the rates."""
    if h is None:
        value = tl.zeros(exists.shape, rate.dtype)
    else:
        value = tl.load(h + at, mask=exists, other=0.0)
    return value


@triton.jit
def _store_chunk(x, values, row, t0, e, length, channels, CHUNK: tl.constexpr):
    """Puts values (CHUNK, block) into x (B, L, E) from token t0 on."""
    i = tl.arange(0, CHUNK)
    at = (row * length + t0) * channels + i[:, None] * channels + e[None, :]
    here = (t0 + i < length)[:, None] & (e < channels)[None, :]
    tl.store(x + at, values.to(x.dtype.element_ty), mask=here)


@triton.jit
def _store_channels(x, dA, dD, dbias, at, exists, size, e, channels):
    """Puts the gradients of what belongs to channels into x (N + 2, E)."""
    tl.store(x + at, dA, mask=exists)
    tl.store(x + size + e, dD, mask=e < channels)
    tl.store(x + size + channels + e, dbias, mask=e < channels)


@triton.jit
def _put(chunk, i, values):
    """The chunk (CHUNK, block) with `values` as its row i."""
    return tl.where((tl.arange(0, chunk.shape[0]) == i)[:, None], values[None, :], chunk)


@triton.jit
def _chunk_again(
    u, dt, B, u0, u1, dt0, dt1, B0, B1, row, t0, h, rate, shift, e, in_e, n, in_n, length,
    CHUNK: tl.constexpr, SOFTPLUS: tl.constexpr,
):  # fmt: skip
    """From the state h before a chunk: per token, the state before it, u, the step size and its derivative."""
    before, xs, deltas, slopes = (), (), (), ()
    for i in tl.static_range(CHUNK):
        t = t0 + i
        live, live_n = in_e & (t < length), in_n & (t < length)
        x = _row(u, row, t, u0, u1, e, live)
        delta, slope = _delta(_row(dt, row, t, dt0, dt1, e, live), shift, live, SOFTPLUS)
        before, xs, deltas, slopes = before + (h,), xs + (x,), deltas + (delta,), slopes + (slope,)
        if i < CHUNK - 1:
            b = _row(B, row, t, B0, B1, n, live_n)
            h = _decay(delta, rate) * h + (delta * x)[None, :] * b[:, None]
    return before, xs, deltas, slopes


@triton.jit(do_not_specialize=["channels"])
def forward(
    u, dt, rates, B, C, D, z, bias, start,
    y, last, checkpoints, sums,
    u0, u1, dt0, dt1, B0, B1, C0, C1, z0, z1,
    length, channels, states, segment, segments, each,
    N: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr, SOFTPLUS: tl.constexpr,
):  # fmt: skip
    """One segment from the states in `start` (parts, N, E).

    With `y`: outputs, states before every chunk (if `checkpoints`), and the last states of the row (B, N, E). Without:
    the last states of every segment (parts, N, E) and the sums of its step sizes (parts, E).
    """
    part, row, first, _block, e = _place(channels, segments, segment, BLOCK)
    n = tl.arange(0, N)
    at, exists = _square(e, channels, states, N)
    in_e, in_n, size = e < channels, n < states, tl.cast(states, tl.int64) * channels
    own = row // each
    rate = tl.load(rates + own * size + at, mask=exists, other=0.0)
    shift, skip = _optional(bias, own * channels + e, in_e), _optional(D, own * channels + e, in_e)
    h = _optional_state(start, part * size + at, exists, rate)
    total = tl.zeros([BLOCK], rate.dtype)
    for chunk in range(tl.cdiv(tl.minimum(segment, length - first), CHUNK)):
        t0 = first + chunk * CHUNK
        if checkpoints is not None:
            tl.store(checkpoints + (row * tl.cdiv(length, CHUNK) + t0 // CHUNK) * size + at, h, mask=exists)
        ys = tl.zeros([CHUNK, BLOCK], tl.float32)
        for i in tl.static_range(CHUNK):
            t = t0 + i
            live, live_n = in_e & (t < length), in_n & (t < length)
            x = _row(u, row, t, u0, u1, e, live)
            delta, _slope = _delta(_row(dt, row, t, dt0, dt1, e, live), shift, live, SOFTPLUS)
            b = _row(B, row, t, B0, B1, n, live_n)
            h = _decay(delta, rate) * h + (delta * x)[None, :] * b[:, None]
            if y is None:
                total += delta
            else:
                out = tl.sum(h.to(tl.float32) * _row(C, row, t, C0, C1, n, live_n)[:, None], 0) + skip * x
                if z is not None:
                    gate, _slope = _silu(_row(z, row, t, z0, z1, e, live))
                    out *= gate
                ys = _put(ys, i, out)
        if y is not None:
            _store_chunk(y, ys, row, t0, e, length, channels, CHUNK)
    if y is None:
        tl.store(last + part * size + at, h, mask=exists)
        tl.store(sums + part * channels + e, total, mask=in_e)
    elif first + segment >= length:
        tl.store(last + row * size + at, h, mask=exists)


@triton.jit(do_not_specialize=["channels"])
def carry(
    rates, local, sums, start, carried, channels, states, segments, each,
    N: tl.constexpr, BLOCK: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """The state before every segment (parts, N, E) from those that the segments reach alone; or, in reverse, after it.

    One program for a block of channels of one row. h <- exp(A sum of step sizes) h + local.
    """
    _, row, _first, _block, e = _place(channels, 1, 0, BLOCK)
    at, exists = _square(e, channels, states, N)
    in_e, size = e < channels, tl.cast(states, tl.int64) * channels
    own = row // each
    rate = tl.load(rates + own * size + at, mask=exists, other=0.0)
    h = _optional_state(start, row * size + at, exists, rate)
    for k0 in range(0, segments, AHEAD):
        locals_, totals = (), ()
        for i in tl.static_range(AHEAD):
            k = segments - 1 - (k0 + i) if REVERSE else k0 + i
            here = (k >= 0) & (k < segments)
            part = row * segments + k
            locals_ = locals_ + (tl.load(local + part * size + at, mask=exists & here, other=0.0),)
            totals = totals + (tl.load(sums + part * channels + e, mask=in_e & here, other=0.0),)
        for i in tl.static_range(AHEAD):
            k = segments - 1 - (k0 + i) if REVERSE else k0 + i
            here = (k >= 0) & (k < segments)
            tl.store(carried + (row * segments + k) * size + at, h, mask=exists & here)
            h = _decay(totals[i], rate) * h + locals_[i]


@triton.jit(do_not_specialize=["channels"])
def local_backward(
    dt, rates, C, z, bias, dy, local,
    dt0, dt1, C0, C1, z0, z1, dy0, dy1,
    length, channels, states, segment, segments, each,
    N: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr, SOFTPLUS: tl.constexpr,
):  # fmt: skip
    """The gradient of the state before a segment (parts, N, E) if that of the state after it were zero."""
    part, row, first, _block, e = _place(channels, segments, segment, BLOCK)
    n = tl.arange(0, N)
    at, exists = _square(e, channels, states, N)
    in_e, in_n, size = e < channels, n < states, tl.cast(states, tl.int64) * channels
    own = row // each
    rate = tl.load(rates + own * size + at, mask=exists, other=0.0)
    shift = _optional(bias, own * channels + e, in_e)
    dh = tl.zeros([N, BLOCK], tl.float32)
    chunks = tl.cdiv(tl.minimum(segment, length - first), CHUNK)
    for chunk in range(chunks):
        t0 = first + (chunks - 1 - chunk) * CHUNK
        for i in tl.static_range(CHUNK - 1, -1, -1):
            t = t0 + i
            live, live_n = in_e & (t < length), in_n & (t < length)
            delta, _slope = _delta(_row(dt, row, t, dt0, dt1, e, live), shift, live, SOFTPLUS)
            g = _row(dy, row, t, dy0, dy1, e, live)
            if z is not None:
                gate, _slope = _silu(_row(z, row, t, z0, z1, e, live))
                g *= gate
            dh += _row(C, row, t, C0, C1, n, live_n)[:, None] * g[None, :]
            dh *= _decay(delta, rate)
    tl.store(local + part * size + at, dh, mask=exists)


@triton.jit(do_not_specialize=["channels"])
def backward(
    u, dt, rates, B, C, D, z, bias, checkpoints, dy, dlast, du, ddt, dz, dB, dC, dchannel, dstart,
    u0, u1, dt0, dt1, B0, B1, C0, C1, z0, z1, dy0, dy1, length, channels, states, segment, segments, each, rows,
    N: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr, SOFTPLUS: tl.constexpr,
):  # fmt: skip
    """All gradients of one segment, given that of the state after it, `dlast` (parts, N, E).

    The states of a chunk are computed again from its checkpoint and kept in registers. `dB, dC` (blocks, B, L, N) and
    `dchannel` (parts, N + 2, E: dA for each of the N states, dD, dbias) are parts of sums.
    """
    part, row, first, block, e = _place(channels, segments, segment, BLOCK)
    n = tl.arange(0, N)
    at, exists = _square(e, channels, states, N)
    in_e, in_n, size = e < channels, n < states, tl.cast(states, tl.int64) * channels
    own = row // each
    rate = tl.load(rates + own * size + at, mask=exists, other=0.0)
    shift, skip = _optional(bias, own * channels + e, in_e), _optional(D, own * channels + e, in_e)
    dh = _optional_state(dlast, part * size + at, exists, rate)
    dA, dD, dbias = tl.zeros([N, BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    chunks = tl.cdiv(tl.minimum(segment, length - first), CHUNK)
    for chunk in range(chunks):
        t0 = first + (chunks - 1 - chunk) * CHUNK
        h = tl.load(checkpoints + (row * tl.cdiv(length, CHUNK) + t0 // CHUNK) * size + at, mask=exists, other=0.0)
        before, xs, deltas, slopes = _chunk_again(
            u, dt, B, u0, u1, dt0, dt1, B0, B1, row, t0, h, rate, shift, e, in_e, n, in_n, length, CHUNK, SOFTPLUS
        )
        dus = tl.zeros([CHUNK, BLOCK], tl.float32)
        ddts, dzs = dus, dus
        for i in tl.static_range(CHUNK - 1, -1, -1):
            t = t0 + i
            live, live_n = in_e & (t < length), in_n & (t < length)
            x, delta = xs[i], deltas[i]
            b, c = _row(B, row, t, B0, B1, n, live_n), _row(C, row, t, C0, C1, n, live_n)
            g = _row(dy, row, t, dy0, dy1, e, live)
            a = _decay(delta, rate)
            kept = a * before[i]
            h = kept + (delta * x)[None, :] * b[:, None]
            if z is not None:
                gate, slope = _silu(_row(z, row, t, z0, z1, e, live))
                dzs = _put(dzs, i, g * slope * (tl.sum(h * c[:, None], 0) + skip * x))
                g *= gate
            dh += c[:, None] * g[None, :]
            dBC = (block * rows + row) * length * states + t * states + n
            tl.store(dC + dBC, tl.sum(h * g[None, :], 1), mask=live_n)
            tl.store(dB + dBC, tl.sum(dh * (delta * x)[None, :], 1), mask=live_n)
            dx = tl.sum(dh * b[:, None], 0)
            flow = dh * kept
            ddelta = (dx * x + LN2 * tl.sum(flow * rate, 0)) * slopes[i]
            dA += flow * delta[None, :]
            dD += g * x
            dbias += tl.where(live, ddelta, 0.0)
            dus, ddts = _put(dus, i, dx * delta + g * skip), _put(ddts, i, ddelta)
            dh *= a
        _store_chunk(du, dus, row, t0, e, length, channels, CHUNK)
        _store_chunk(ddt, ddts, row, t0, e, length, channels, CHUNK)
        if z is not None:
            _store_chunk(dz, dzs, row, t0, e, length, channels, CHUNK)
    _store_channels(dchannel + part * (size + 2 * channels), dA, dD, dbias, at, exists, size, e, channels)
    if first == 0:
        tl.store(dstart + row * size + at, dh, mask=exists)
