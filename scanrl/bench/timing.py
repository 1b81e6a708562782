"""Side-by-side timing: the candidates take turns in one process, so that a busy machine slows all of them alike."""

from __future__ import annotations

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch

from scanrl.kernels import scan_choice

__all__ = ["Timing", "heading", "installed", "measure", "print_rows", "rows_of", "versions"]

PEERS = ("mambapy", "transformers")


class Timing(NamedTuple):
    """Milliseconds per call: median, 10th and 90th percentile."""

    median_ms: float
    p10: float
    p90: float


def measure(
    functions: Mapping[str, Callable[[], object]], repeats: int, budget_s: float = 60.0, turn_s: float = 0.05
) -> dict[str, Timing]:
    """Times every function in `repeats` turns, taken in alternation, after an untimed round that warms up.

    In its turn a function runs for about `turn_s` seconds. The first call of a turn pays for what the other functions
    did to the caches and the allocator, so it counts only if there was time for no other. A function that has used
    `budget_s` seconds sits out the remaining turns, but has at least one.
    """
    spent, times = dict.fromkeys(functions, 0.0), {name: [] for name in functions}
    for turn in range(repeats + 1):
        for name, function in functions.items():
            if turn > 1 and spent[name] > budget_s:
                continue
            calls = _turn(function, turn_s)
            spent[name] += sum(calls) / 1e3
            if turn:
                times[name] += calls[1:] or calls
    return {name: summary(values) for name, values in times.items()}


def _turn(function: Callable[[], object], seconds: float) -> list[float]:
    """Milliseconds of each call in one turn."""
    calls = []
    while sum(calls) < 1e3 * seconds:
        start = time.perf_counter()
        function()
        calls.append(1e3 * (time.perf_counter() - start))
    return calls


def summary(milliseconds: Sequence[float]) -> Timing:
    """Median and spread of some calls."""
    if len(milliseconds) < 2:
        return Timing(milliseconds[0], milliseconds[0], milliseconds[0])
    tenths = statistics.quantiles(milliseconds, n=10, method="inclusive")
    return Timing(statistics.median(milliseconds), tenths[0], tenths[-1])


def rows_of(case: str, timings: Mapping[str, Timing], base: str, **facts: Any) -> list[dict[str, Any]]:
    """One row per candidate. `ratio` is the median of candidate `base` over the row's own, `None` where it is missing.

    `facts` (shape, repeats, ...) go into every row; one that is a mapping gives each candidate its own value.
    """
    slow = timings.get(base)
    return [
        {
            "case": case,
            "impl": name,
            "median_ms": t.median_ms,
            "p10_ms": t.p10,
            "p90_ms": t.p90,
            "ratio": slow.median_ms / t.median_ms if slow else None,
            **{key: value.get(name) if isinstance(value, Mapping) else value for key, value in facts.items()},
            "threads": torch.get_num_threads(),
        }
        for name, t in timings.items()
    ]


def print_rows(rows: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    """Prints one JSON object per row, or a table with the keys of the first row as its head."""
    if as_json:
        for row in rows:
            print(json.dumps(row), flush=True)
        return
    if not rows:
        return
    table = [list(rows[0]), *([_cell(row.get(key)) for key in rows[0]] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def heading() -> str:
    """One line above a table: processor, kernels, threads, versions."""
    numbers = ", ".join(f"{name} {number or 'not installed'}" for name, number in versions().items())
    choice = scan_choice()
    return f"{platform.machine()}, {choice.impl} ({choice.detail}), {torch.get_num_threads()} threads; {numbers}"


def versions() -> dict[str, str | None]:
    """Of Python, torch and the peers; `None` for a peer that is not there."""
    numbers: dict[str, str | None] = {"python": platform.python_version(), "torch": torch.__version__}
    return numbers | {name: metadata.version(name) if find_spec(name) else None for name in PEERS}


@cache
def installed(peer: str) -> bool:
    """Whether a candidate's library is there; if not, says once on standard error that it is left out."""
    if find_spec(peer):
        return True
    print(f"left out: {peer}: not installed (pip install 'scanrl[bench]')", file=sys.stderr)
    return False
