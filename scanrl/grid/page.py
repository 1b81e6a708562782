"""The table of a grid as one HTML file that loads nothing, with the looks of a run's report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from scanrl.grid.facts import KEYS, NOTE, ONE, provenance
from scanrl.grid.table import COLUMNS, Cell, Line
from scanrl.report.charts import interval_bar
from scanrl.report.scales import number
from scanrl.report.template import render

__all__ = ["to_html"]

OTHERS = COLUMNS[1:]  # columns beside `last`, which has the bar

UNITS = {
    "score": "Score: 0 is a random policy, 100 an expert; percent of successes in a maze.",
    "return": "Return of an episode, undiscounted.",
}


def to_html(lines: Sequence[Line], failed: Sequence[str] = ()) -> str:
    """One table per task, its recipes in the order of the grid; bars share the scale of their table.

    Args:
        lines: as `lines_of` gives them.
        failed: one line for each run that failed.
    """
    tasks: dict[str, list[Line]] = {}
    for line in lines:
        tasks.setdefault(line.keys[1], []).append(line)
    return render(
        "grid.html",
        title=_counted(len({line.keys[0] for line in lines}), "recipe") + ", " + _runs(lines),
        headline=_headline(tasks),
        failed=failed,
        note=NOTE,
        others=OTHERS,
        tasks=[_task(name, members) for name, members in tasks.items()],
        facts=[fact.split(": ", 1) for fact in provenance(lines)],
    )


def _runs(lines: Sequence[Line]) -> str:
    return _counted(sum(len(line.seeds) for line in lines if line.about), "score")


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" + ("s" if count != 1 else "")


def _headline(tasks: Mapping[str, Sequence[Line]]) -> str:
    if not tasks:
        return "No run is done yet."
    if len(tasks) == 1:
        return " ".join(f"{task}: {_highest(lines)}" for task, lines in tasks.items())
    recipes = {line.keys[0] for lines in tasks.values() for line in lines}
    single = [task for task, lines in tasks.items() if any(line.about for line in lines)]
    return f"{_counted(len(recipes), 'recipe')} on {_counted(len(single), 'task')}"


def _highest(lines: Sequence[Line]) -> str:
    """Of each budget the recipe with the highest mean of last checkpoints, and how many others it is not ahead of."""
    said = []
    budgets = dict.fromkeys(line.keys[2] for line in lines)
    for budget in budgets:
        found = [(c.mean, x.keys[0], c) for x in lines if x.keys[2] == budget and (c := x.cells["last"]) is not None]
        mean, recipe, best = max(found, key=lambda one: one[0])
        others = {name for _, name, _ in found} - {recipe}
        near = {name for _, name, cell in found if name != recipe and _ends(cell)[-1] >= min(_ends(best))}
        after = f" after {budget}" if len(budgets) > 1 else ""
        text = f"{recipe} has the highest mean{after}, {number(mean)}"
        if others and best.interval is None:
            text += " (1 seed: what chance does is not known)"
        elif others:
            text += f"; intervals of {len(near)} of {_counted(len(others), 'other')} reach its own"
        said.append(f"{text}.")
    return " ".join(said)


def _task(name: str, lines: Sequence[Line]) -> Mapping[str, Any]:
    """Keys that are the same in all lines go without a column."""
    shown = [k for k in (0, 2, 3) if k == 0 or len({line.keys[k] for line in lines}) > 1]
    ends = [v for line in lines for v in _ends(line.cells["last"])]
    spare = 0.04 * (max(ends) - min(ends)) or 1.0
    domain = (min(ends) - spare, max(ends) + spare)
    said = [f"{KEYS[k]}: {lines[0].keys[k]}" for k in (2, 3) if k not in shown]
    return {
        "name": name,
        "highest": _highest(lines),
        "unit": " ".join([UNITS[lines[0].unit], *(f"{text[:1].upper()}{text[1:]}." for text in said)]),
        "labels": [KEYS[k] for k in shown],
        "rows": [_row(line, shown, domain) for line in lines],
    }


def _row(line: Line, shown: Sequence[int], domain: tuple[float, float]) -> Mapping[str, Any]:
    last = line.cells["last"]
    assert last is not None
    return {
        "labels": [line.keys[k] for k in shown],
        "last": number(last.mean),
        "interval": _interval(last) or ONE,
        "bar": interval_bar(last.mean, last.interval, domain, "policy"),
        "iqm": number(last.iqm),
        "others": [_other(line.cells[column]) for column in OTHERS],
        "seeds": len(line.seeds),
    }


def _other(cell: Cell | None) -> Mapping[str, str]:
    if cell is None:
        return {"mean": "–", "note": "no held-out data"}
    return {"mean": number(cell.mean), "note": _interval(cell)}


def _interval(cell: Cell) -> str:
    """Empty for one seed."""
    interval = cell.interval
    return "" if interval is None else f"{number(interval[0])} to {number(interval[1])}"


def _ends(cell: Cell | None) -> list[float]:
    assert cell is not None
    return [cell.mean, *(cell.interval or ())]
