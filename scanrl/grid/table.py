"""The table of a grid: for each recipe and task what its runs scored, as `last`, `selected` and `best`.

`last` is the last checkpoint, `selected` the one with the lowest held-out loss: neither looks at a score. `best` is the
highest score over checkpoints and target returns: what many papers print, and a maximum over noise. With several
target returns, `last` and `selected` are those of the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scanrl.envs.reference_scores import score_source
from scanrl.grid.spec import differs, other_setting
from scanrl.intervals import interquartile_mean, mean, stratified_bootstrap
from scanrl.types import DataError

__all__ = ["COLUMNS", "Cell", "Line", "lines_of"]

COLUMNS = ("last", "selected", "best")


@dataclass(frozen=True)
class Cell:
    """One column of one line.

    Attributes:
        scores: `(runs, tasks)`, one mean over episodes each.
        mean, iqm: over all of them.
        interval, iqm_interval: 95 %, runs resampled within each task (below eight runs that of the mean is Student's);
            `None` for one run.
    """

    scores: np.ndarray

    @property
    def mean(self) -> float:
        return float(self.scores.mean())

    @property
    def iqm(self) -> float:
        return float(interquartile_mean(self.scores.ravel()))

    @property
    def interval(self) -> tuple[float, float] | None:
        return stratified_bootstrap(self.scores, statistic=mean)

    @property
    def iqm_interval(self) -> tuple[float, float] | None:
        return stratified_bootstrap(self.scores, statistic=interquartile_mean)


@dataclass(frozen=True)
class Line:
    """One line of the table: the runs of one recipe on one task that differ in their seed alone.

    Attributes:
        keys: recipe, task, budget and context, as shown.
        seeds: of its runs.
        unit: `score` (0 a random policy, 100 an expert; percent of successes in a maze) or `return`, raw.
        cells: by column; `None` where the runs have no held-out episodes to select by.
        about: what the numbers depend on, each as one text.
    """

    keys: tuple[str, str, str, str]
    seeds: tuple[int, ...]
    unit: str
    cells: Mapping[str, Cell | None]
    about: Mapping[str, str]


def lines_of(rows: Iterable[Mapping[str, Any]]) -> list[Line]:
    """Lines of the finished runs among `rows`, in the order in which their recipes appear; over several tasks also one
    line for each recipe with all of them, where every task has a normalised score.

    Raises:
        DataError: runs of one line were trained on different data or scored in different environments.
    """
    done = [row for row in rows if row["status"] == "done"]
    groups: dict[tuple[str, str, str, str], list[Mapping[str, Any]]] = {}
    for row in done:
        for context in _contexts(row):
            shown = context if isinstance(context, str) else f"window of {context}"
            groups.setdefault((row["recipe"], row["task"], row["budget"], shown), []).append(row)
    lines = [_line(keys, members) for keys, members in groups.items()]
    return sorted(lines, key=_order(lines)) + _over_tasks(lines)


def _line(keys: tuple[str, str, str, str], rows: Sequence[Mapping[str, Any]]) -> Line:
    for name in ("fingerprint", "env", "target_returns", "episodes", "eval_seed", "trained_context", "batch_size"):
        found = [row[name] for row in rows]
        if any(value != found[0] for value in found):
            raise DataError(f"{', '.join(keys)}: {name}: expected the same in all runs, got several")
    for row in rows:
        other = differs({**row["asked"], "seed": 0}, {**rows[0]["asked"], "seed": 0})
        if other is not None:
            values = f"{rows[0]['asked'].get(other)!r} and {row['asked'].get(other)!r}"
            raise DataError(f"{', '.join(keys)}: {other}: expected the same in all runs, got {values}")
        changed = other_setting(rows[0].get("settings") or {}, row)
        if changed is not None:
            name, first, here = changed
            raise DataError(f"{', '.join(keys)}: {name}: expected the same in all runs, got {first!r} and {here!r}")
    seeds = [row["seed"] for row in rows]
    if len(set(seeds)) < len(seeds):
        raise DataError(f"{', '.join(keys)}: seeds: expected each once, got {seeds} (the folders hold the same runs)")
    context = _context_of(keys[3])
    normalised = all("eval/normalized_score" in score["summary"] for row in rows for score in _scores(row, context))
    name = "eval/normalized_score" if normalised else "eval/return_mean"
    columns = [_columns(row, context, name) for row in rows]
    cells = {column: _cell([values[column] for values in columns]) for column in COLUMNS}
    return Line(keys, tuple(seeds), "score" if normalised else "return", cells, _about(rows))


def _cell(values: Sequence[float | None]) -> Cell | None:
    found = [value for value in values if value is not None]
    return Cell(np.array(found)[:, None]) if len(found) == len(values) else None


def _columns(row: Mapping[str, Any], context: int | str, name: str) -> dict[str, float | None]:
    """The three scores of one run."""
    played = [
        (one["validation_loss"], [score["summary"][name] for score in scores])
        for one in row["checkpoints"]
        for scores in [_played(one, context)]
    ]
    losses = [(loss, index) for index, (loss, _) in enumerate(played) if loss is not None]
    return {
        "last": played[-1][1][0],
        "selected": played[min(losses)[1]][1][0] if losses else None,
        "best": max(score for _, scores in played for score in scores),
    }


def _contexts(row: Mapping[str, Any]) -> list[int | str]:
    return [one["context"] for one in row["checkpoints"][-1]["played"]]


def _context_of(shown: str) -> int | str:
    return int(shown.removeprefix("window of ")) if shown.startswith("window of ") else shown


def _played(checkpoint: Mapping[str, Any], context: int | str) -> list[Mapping[str, Any]]:
    return next(one["scores"] for one in checkpoint["played"] if one["context"] == context)


def _scores(row: Mapping[str, Any], context: int | str) -> Iterable[Mapping[str, Any]]:
    return (score for checkpoint in row["checkpoints"] for score in _played(checkpoint, context))


def _about(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What runs share once, what differs between them side by side."""

    def shown(read: Callable[[Mapping[str, Any]], Any]) -> str:
        return ", ".join(dict.fromkeys(str(read(row)) for row in rows))

    return {
        "environment": shown(lambda row: row["env"]),
        "normalised by": shown(lambda row: row.get("normalized_by") or score_source(row["env"]) or "nothing"),
        "dataset": shown(lambda row: row["fingerprint"][:12]),
        "targets": shown(lambda row: " ".join(f"{x:g}" for x in row["target_returns"]) or "none"),
        "episodes": shown(lambda row: row["episodes"]),
        "evaluation seed": shown(lambda row: row["eval_seed"]),
        "checkpoints": shown(lambda row: len(row["checkpoints"])),
        "updates": shown(lambda row: row["updates"]),
        "windows": shown(lambda row: f"{row['batch_size']} of {row['trained_context']} steps"),
        "parameters": shown(lambda row: row["parameters"]),
        "machine": shown(lambda row: f"{row['machine']}, {row['device']}, {row['threads']} threads"),
        "versions": shown(lambda row: " ".join(f"{name} {number}" for name, number in row["versions"].items())),
        "revision": shown(lambda row: row["revision"] or "unknown"),
    }


def _order(lines: Sequence[Line]) -> Callable[[Line], tuple[int, ...]]:
    """Tasks together, recipes as they appear."""
    places = [list(dict.fromkeys(line.keys[index] for line in lines)) for index in range(4)]
    return lambda line: tuple(places[index].index(line.keys[index]) for index in (1, 2, 0, 3))


def _over_tasks(lines: Sequence[Line]) -> list[Line]:
    """One line for each recipe, budget and way to remember, over all tasks with the seeds they share."""
    groups: dict[tuple[str, str, str], list[Line]] = {}
    for line in lines:
        recipe, _, budget, context = line.keys
        groups.setdefault((recipe, budget, context), []).append(line)
    found = []
    for (recipe, budget, context), members in groups.items():
        seeds = [seed for seed in members[0].seeds if all(seed in line.seeds for line in members)]
        if len(members) < 2 or not seeds or any(line.unit != "score" for line in members):
            continue
        cells = {column: _stacked(members, column, seeds) for column in COLUMNS}
        keys = (recipe, f"all {len(members)} tasks", budget, context)
        found.append(Line(keys, tuple(seeds), "score", cells, {}))
    return found


def _stacked(lines: Sequence[Line], column: str, seeds: Sequence[int]) -> Cell | None:
    """`(runs, tasks)` of the seeds that all tasks have."""
    columns = []
    for line in lines:
        cell = line.cells[column]
        if cell is None:
            return None
        columns.append([cell.scores[line.seeds.index(seed), 0] for seed in seeds])
    return Cell(np.array(columns).T)
