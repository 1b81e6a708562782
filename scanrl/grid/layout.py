"""The table of a grid as text: CSV, Markdown, LaTeX and HTML, and the lines a terminal draws."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from scanrl.grid.facts import KEYS, NOTE, ONE, provenance
from scanrl.grid.page import to_html
from scanrl.grid.table import COLUMNS, Cell, Line

__all__ = ["LAYOUTS", "failures", "show", "to_csv", "to_latex", "to_markdown"]

LATEX = {sign: rf"\{sign}" for sign in "&%_#${}"} | {
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
}
PIPED = 160  # columns where there is no terminal whose width could be asked for


def to_csv(lines: Sequence[Line], failed: Sequence[str] = ()) -> str:
    """One record per line, every statistic and everything the numbers depend on in a column of its own.

    What `failed` is in no record: a recipe of which nothing is done has no statistics.
    """
    about = list(dict.fromkeys(name for line in lines for name in line.about))
    statistics = ("mean", "low", "high", "iqm", "iqm_low", "iqm_high", "seeds")
    head = [*KEYS, "seeds", "unit", *(f"{column}_{name}" for column in COLUMNS for name in statistics), *about]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    for line in lines:
        cells = [value for column in COLUMNS for value in _statistics(line.cells[column])]
        seeds = " ".join(map(str, line.seeds))
        writer.writerow([*line.keys, seeds, line.unit, *cells, *(line.about.get(name, "") for name in about)])
    return text.getvalue()


def to_markdown(lines: Sequence[Line], failed: Sequence[str] = ()) -> str:
    """A table for people, the note that explains it, what the numbers depend on, and what failed."""
    rows = [
        [*line.keys, str(len(line.seeds)), line.unit, *(_cell(line.cells[c], "; ") for c in COLUMNS)] for line in lines
    ]
    head = [*KEYS, "seeds", "unit", *COLUMNS]
    text = [_row(head), _row(["---"] * len(head)), *(_row([_escaped(cell) for cell in row]) for row in rows)]
    return "\n".join([*text, "", NOTE, "", *(f"* {_escaped(line)}" for line in [*provenance(lines), *failed])]) + "\n"


def to_latex(lines: Sequence[Line], failed: Sequence[str] = ()) -> str:
    """A `tabular` in the style of `booktabs`: mean and interval of each column; what failed as remarks before it."""
    head = [*KEYS, "seeds", *COLUMNS]
    rows = [[*line.keys, str(len(line.seeds)), *(_short(line.cells[c]) for c in COLUMNS)] for line in lines]
    body = [" & ".join(_latex(cell) for cell in row) + r" \\" for row in rows]
    top = [rf"% {NOTE}", *(rf"% {line}" for line in failed)]
    top += [rf"\begin{{tabular}}{{llll{'r' * (len(head) - 4)}}}", r"\toprule", " & ".join(head) + r" \\"]
    return "\n".join([*top, r"\midrule", *body, r"\bottomrule", r"\end{tabular}"]) + "\n"


LAYOUTS: Mapping[str, Callable[[Sequence[Line], Sequence[str]], str]] = {
    "csv": to_csv,
    "markdown": to_markdown,
    "latex": to_latex,
    "html": to_html,
}
"""Ways to write the table besides the terminal's."""


def show(lines: Sequence[Line]) -> None:
    """Draw the table on the terminal, the note and what the numbers depend on under it."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else PIPED)
    table = Table(box=SIMPLE_HEAD)
    for name in (*KEYS, "seeds", "unit", *COLUMNS):
        table.add_column(name, justify="right" if name in ("seeds", *COLUMNS) else "left")
    for line in lines:
        cells = [*line.keys, str(len(line.seeds)), line.unit, *(_cell(line.cells[c], "\n") for c in COLUMNS)]
        table.add_row(*map(Text, cells))  # a name in brackets is no markup
    console.print(table)
    for text in (NOTE, *provenance(lines)):
        console.print(text, highlight=False, markup=False)


def failures(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line for each run that failed."""
    return [
        f"failed: {row['recipe']}, {row['task']}, {row['budget']}, seed {row['seed']}: {row['reason']}"
        for row in rows
        if row["status"] == "failed"
    ]


def _statistics(cell: Cell | None) -> list[Any]:
    if cell is None:
        return [""] * 7
    low, high = cell.interval or ("", "")
    iqm_low, iqm_high = cell.iqm_interval or ("", "")
    seeds = " ".join(f"{float(value):.6g}" for value in cell.scores.mean(axis=1))
    return [
        *(value if value == "" else f"{value:.6g}" for value in (cell.mean, low, high, cell.iqm, iqm_low, iqm_high)),
        seeds,
    ]


def _short(cell: Cell | None) -> str:
    if cell is None:
        return "-"
    interval = cell.interval
    return f"{cell.mean:.1f}" + ("" if interval is None else f" [{interval[0]:.1f}, {interval[1]:.1f}]")


def _cell(cell: Cell | None, between: str) -> str:
    if cell is None:
        return "no held-out data"
    if cell.interval is None:
        return f"{cell.mean:.1f}{between}{ONE}"
    return f"{_short(cell)}{between}IQM {cell.iqm:.1f}"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escaped(cell: str) -> str:
    """As Markdown shows it: no column of its own, no HTML."""
    return cell.replace("&", "&amp;").replace("<", "&lt;").replace("|", r"\|")


def _latex(cell: str) -> str:
    return "".join(LATEX.get(sign, sign) for sign in cell)
