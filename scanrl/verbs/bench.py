"""`bench speed`."""

from __future__ import annotations

from scanrl.console import print_json
from scanrl.verbs.options import check

__all__ = ["bench_speed"]


def bench_speed(threads: int | None = None, json: bool = False) -> int:
    """Time scan, training, acting and batches beside this machine's own limits (about a minute).

    Args:
        threads: for scan, mixer and training, by default as torch decides; acting and batches are timed on one.
        json: print one JSON object instead of tables.
    """
    if threads is not None:
        check("bench speed", 1, threads=threads)
    from scanrl.bench.show import show
    from scanrl.bench.speed import speed

    found = speed(threads, progress=True)
    if json:
        return print_json(found)
    show(found)
    return 0
