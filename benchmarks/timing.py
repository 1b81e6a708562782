"""Side-by-side timing: the candidates take turns in one process, so that a busy machine slows all of them alike."""

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

__all__ = ["Timing", "measure", "print_rows"]


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
    return {name: _summary(values) for name, values in times.items()}


def _turn(function: Callable[[], object], seconds: float) -> list[float]:
    """Milliseconds of each call in one turn."""
    calls = []
    while sum(calls) < 1e3 * seconds:
        start = time.perf_counter()
        function()
        calls.append(1e3 * (time.perf_counter() - start))
    return calls


def _summary(values: list[float]) -> Timing:
    if len(values) < 2:
        return Timing(values[0], values[0], values[0])
    tenths = statistics.quantiles(values, n=10, method="inclusive")
    return Timing(statistics.median(values), tenths[0], tenths[-1])


def print_rows(rows: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    """Prints one JSON object per row, or a table with the keys of the first row as its head."""
    if as_json:
        for row in rows:
            print(json.dumps(row))
        return
    if not rows:
        return
    table = [list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
