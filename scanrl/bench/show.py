"""The tables of `scanrl bench speed`."""

from __future__ import annotations

import sys
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

__all__ = ["show"]

LEGEND = (
    "ratio: how many times faster than the line of its group whose ratio is 1; of limit: the least time that the "
    "limits above allow over the time taken, where one can be told. What is timed was first compared with a definition."
)
PIPED = 140  # columns where there is no terminal whose width could be asked for


def show(found: dict[str, Any]) -> None:
    """Prints machine, limits and rows of what `speed` has found."""
    console = Console(width=None if sys.stdout.isatty() else PIPED)
    at = found["machine"]
    numbers = ", ".join(f"{name} {number}" for name, number in at["versions"].items() if number)
    line = f"{at['processor']}, {at['cores']} cores, load {at['load']}; {at['kernels']}; {numbers}"
    console.print(line, highlight=False)
    if at["slow"]:
        console.print(f"slow: {at['slow']}", style="yellow", highlight=False)
    console.print(_limits(found["limits"]))
    console.print(_rows(found["rows"]))
    busy = at["load"] > 0.5 * at["cores"]
    note = "The machine was busy: read the ratios, not the times. " if busy else ""
    console.print(f"{note}{LEGEND}", highlight=False)


def _limits(limits: list[dict[str, Any]]) -> Table:
    table = Table(box=SIMPLE_HEAD, title="Limits of this machine", title_justify="left")
    for name in ("limit", "rate", "unit", "threads", "measured as"):
        table.add_column(name, justify="right" if name in ("rate", "threads") else "left")
    for limit in limits:
        table.add_row(limit["name"], f"{limit['rate']:.3g}", limit["unit"], str(limit["threads"]), limit["how"])
    return table


def _rows(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=SIMPLE_HEAD, title="Times", title_justify="left")
    left = ("what", "shape", "how")
    for name in (*left, "median ms", "p10 to p90", "ratio", "of limit", "threads"):
        table.add_column(name, justify="left" if name in left else "right", no_wrap=name not in left)
    group = None
    for row in rows:
        this = (row["case"], row["shape"])
        if group not in (None, this):
            table.add_section()
        what, shape = this if this != group else ("", "")
        group = this
        table.add_row(
            what,
            shape,
            row["impl"],
            f"{row['median_ms']:.3g}",
            f"{row['p10_ms']:.3g} to {row['p90_ms']:.3g}",
            "-" if row["ratio"] is None else f"{row['ratio']:.3g}",
            "-" if row["of_limit"] is None else f"{row['of_limit']:.2g}",
            str(row["threads"]),
        )
    return table
