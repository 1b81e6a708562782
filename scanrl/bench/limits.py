"""What this machine can do at most, measured in the same process as the timings that are held against it.

* exp2: `x = 2^(a x)` in registers, in the C extension's own instruction set: one exponential and one multiplication,
  what each state of a selective scan costs per token. Without the extension: `torch.exp` on data in the cache.
* fma: multiply and add in registers, two operations each, likewise; without the extension what `gemm` reaches.
* memory: a copy of 64 MB, bytes read plus bytes written.
* cache: the sum of 4 MB again and again, bytes read: what an environment step does with the weights of a small network.
* gemm, gemm bf16: `torch.mm` of two 1024 x 1024 matrices.

Reference: Williams, Waterman and Patterson 2009, "Roofline", https://doi.org/10.1145/1498765.1498785.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from scanrl.kernels import native, scan_choice

__all__ = ["Limit", "measure_limits", "table_of"]

SIDE = 1024  # of the matrices
COPIED = 1 << 24  # floats, 64 MB: larger than any cache that one core has to itself
REREAD = 1 << 20  # floats, 4 MB
CACHED = 1 << 12  # floats, 16 KB: fits the first-level cache with its result
ROUNDS = 1 << 16  # in registers; about a millisecond
SECONDS = 0.15  # per limit


class Limit(NamedTuple):
    """One limit: operations or bytes per second, and what was measured."""

    name: str
    rate: float  # in units of 1e9 per second
    unit: str
    how: str
    threads: int


def measure_limits(threads: int | None = None) -> list[Limit]:
    """All limits with so many threads (torch's setting by default), each the best of some tries: about a second."""
    threads = threads or torch.get_num_threads()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        gemm = Limit("gemm", *_gemm(torch.float32), threads)
        memory = [Limit("memory", *_copy(), threads), Limit("cache", *_reread(), threads)]
        return [*_registers(threads, gemm), *memory, gemm, Limit("gemm bf16", *_gemm(torch.bfloat16), threads)]
    finally:
        torch.set_num_threads(before)


def table_of(limits: list[Limit]) -> dict[str, float]:
    """Operations or bytes per second by name."""
    return {limit.name: 1e9 * limit.rate for limit in limits}


def _registers(threads: int, gemm: Limit) -> list[Limit]:
    if scan_choice().impl != "native":
        x = torch.linspace(-1, 0, CACHED)
        out = torch.empty_like(x)
        exps = CACHED * _best(lambda: torch.exp(x, out=out), 1000)
        said = "torch.exp on 16 KB, one thread (no C extension to measure with)"
        fma = Limit("fma", gemm.rate, gemm.unit, "as gemm (no C extension to measure with)", threads)
        return [Limit("exp2", exps, "G/s", said, 1), fma]
    module, isa = native.module(), native.isa()
    threads = min(threads, native.threads())

    def computed(what: int) -> int:
        return module.rate(isa.number, threads, what, ROUNDS)

    def rate(what: int) -> float:
        return computed(what) * _best(lambda: computed(what), 1)

    exp2 = Limit("exp2", rate(0), "G/s", f"2^(a x) in registers, {isa.name}", threads)
    return [exp2, Limit("fma", 2 * rate(1), "GFLOP/s", f"a x + 1 in registers, {isa.name}", threads)]


def _copy() -> tuple[float, str, str]:
    source, target = torch.ones(COPIED), torch.empty(COPIED)
    return 8 * COPIED * _best(lambda: target.copy_(source), 1), "GB/s", "copy of 64 MB, read plus written"


def _reread() -> tuple[float, str, str]:
    x = torch.ones(REREAD)
    return 4 * REREAD * _best(x.sum, 1), "GB/s", "sum of 4 MB, read"


def _gemm(dtype: torch.dtype) -> tuple[float, str, str]:
    a, b = (torch.randn(SIDE, SIDE, generator=torch.Generator().manual_seed(s)).to(dtype) for s in (0, 1))
    out = torch.empty_like(a)
    rate = 2 * SIDE**3 * _best(lambda: torch.mm(a, b, out=out), 1)
    return rate, "GFLOP/s", f"torch.mm, {SIDE} x {SIDE}, {str(dtype).removeprefix('torch.')}"


def _best(function: Callable[[], Any], calls: int) -> float:
    """1e-9 over the seconds of the fastest call, with `calls` of them timed together."""
    function()
    fastest, end = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        start = time.perf_counter()
        for _ in range(calls):
            function()
        fastest = min(fastest, (time.perf_counter() - start) / calls)
    return 1e-9 / fastest
