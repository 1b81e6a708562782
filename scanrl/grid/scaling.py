"""The scaling study: what width, depth and amount of data are worth, from the runs of a grid that differ in them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from scanrl.config import to_values
from scanrl.grid.table import Line, lines_of
from scanrl.nn import MIXERS
from scanrl.nn.mixer import parse_pattern
from scanrl.report.charts import Line as Curve
from scanrl.report.charts import line_chart
from scanrl.report.learning import PANEL, STYLES, panels
from scanrl.settings import run_config
from scanrl.types import DataError

__all__ = ["AXES", "Scaling", "draw_scaling", "scaling"]

AXES = ("width", "depth", "data")
"""Embedding width; repeats of the smallest group of mixers that the pattern is made of; `train.data_share`."""


class Scaling(NamedTuple):
    """Runs that differ in one size and in their seeds alone.

    Attributes:
        recipe, task, budget, context: of all of them; `recipe` is its name in `RECIPES`.
        axis: the size, of `AXES`.
        others: the two other sizes, e.g. `depth 3, data 0.5`.
        sizes: `(P,)`, ascending.
        parameters: `(P,)`.
        losses: `(P, S)` held-out losses of the last checkpoints, by seed; NaN without held-out data or without the run.
        scores: `(P, S)` what those scored, mean over episodes; NaN without the run.
        seeds: `(S,)`.
        unit: of the scores, `score` (normalised) or `return`.
    """

    recipe: str
    task: str
    budget: str
    context: str
    axis: str
    others: str
    sizes: np.ndarray
    parameters: np.ndarray
    losses: np.ndarray
    scores: np.ndarray
    seeds: np.ndarray
    unit: str


class _Runs(NamedTuple):
    """The runs of one line of a grid's table, by seed."""

    line: Line
    rows: dict[int, Mapping[str, Any]]
    recipe: str
    sizes: tuple[float, float, float]
    rest: str


def scaling(rows: Iterable[Mapping[str, Any]]) -> list[Scaling]:
    """Every set of at least two sizes that a grid has runs of, all else being equal.

    Args:
        rows: of `bench run`, see `read_rows`.

    Raises:
        DataError: no runs differ in one size alone, or runs of one line of the table were made on different data.

    Reference: the section on scaling in MambaDM, arXiv 2406.02013.
    """
    done = [row for row in rows if row["status"] == "done"]
    lines = [line for line in lines_of(done) if line.about]
    runs = [_runs(line, done) for line in lines]
    found = []
    for axis, name in enumerate(AXES):
        groups: dict[tuple[Any, ...], list[_Runs]] = {}
        for one in runs:
            others = tuple(size for place, size in enumerate(one.sizes) if place != axis)
            groups.setdefault((one.recipe, *one.line.keys[1:], others, one.rest), []).append(one)
        found += [_scaling(name, members) for members in groups.values() if len({m.sizes for m in members}) > 1]
    if not found:
        wanted = (
            "expected runs that differ in model.width, in the repeats of model.pattern or in train.data_share alone"
        )
        raise DataError(f"analyse scaling: {wanted}, got {len(lines)} lines without")
    return found


def _runs(line: Line, rows: Sequence[Mapping[str, Any]]) -> _Runs:
    mine = [row for row in rows if (row["recipe"], row["task"], row["budget"]) == line.keys[:3]]
    asked = mine[0]["asked"]
    config = run_config(asked["recipe"], asked["settings"], mine[0].get("settings") or {})
    block, depth = _block(config.model.pattern)
    sizes = (float(config.model.width), float(depth), config.train.data_share)
    rest = to_values(config)  # with what is not said as it stands by default
    del rest["model"]["width"], rest["model"]["pattern"], rest["train"]["data_share"]
    return _Runs(line, {row["seed"]: row for row in mine}, asked["recipe"], sizes, json.dumps([block, rest]))


def _block(pattern: str) -> tuple[list[str], int]:
    """The smallest group of mixers whose repeats are the pattern, and how many there are."""
    words = [f"{term.name}:{term.residual}" for term in parse_pattern(pattern, tuple(MIXERS))]
    size = next(k for k in range(1, len(words) + 1) if words[:k] * (len(words) // k) == words)
    return words[:size], len(words) // size


def _scaling(axis: str, members: Sequence[_Runs]) -> Scaling:
    place = AXES.index(axis)
    members = sorted(members, key=lambda one: one.sizes[place])
    for one, other in itertools.pairwise(members):
        if one.sizes == other.sizes:
            names = f"{one.line.keys[0]!r} and {other.line.keys[0]!r}"
            raise DataError(f"analyse scaling: expected each size once, got the same model and data as {names}")
    seeds = sorted({seed for one in members for seed in one.line.seeds})
    losses, scores = np.full((2, len(members), len(seeds)), np.nan)
    for row, one in enumerate(members):
        last = one.line.cells["last"]
        assert last is not None
        for number, seed in enumerate(one.line.seeds):
            loss = one.rows[seed]["checkpoints"][-1]["validation_loss"]
            losses[row, seeds.index(seed)] = np.nan if loss is None else loss
            scores[row, seeds.index(seed)] = last.scores[number, 0]
    first = members[0]
    others = ", ".join(f"{name} {size:g}" for name, size in zip(AXES, first.sizes, strict=True) if name != axis)
    return Scaling(
        first.recipe,
        *first.line.keys[1:],
        axis=axis,
        others=others,
        sizes=np.array([one.sizes[place] for one in members]),
        parameters=np.array([one.rows[one.line.seeds[0]]["parameters"] for one in members]),
        losses=losses,
        scores=scores,
        seeds=np.array(seeds),
        unit=first.line.unit,
    )


def draw_scaling(found: Sequence[Scaling]) -> Markup:
    """Held-out loss and score against size, mean and range of the seeds: a row of drawings for each task and size.

    Recipes share a drawing where task, budget and way to remember are the same.

    Args:
        found: from `scaling`.
    """
    groups: dict[tuple[str, ...], list[Scaling]] = {}
    for one in found:
        groups.setdefault((one.axis, one.task, one.budget, one.context), []).append(one)
    rows = []
    for (axis, task, budget, context), members in groups.items():
        rows.append((f"{axis}: {task}, {budget}, {context}", [_chart(members, "losses"), _chart(members, "scores")]))
    return panels([(title, [chart for chart in charts if chart is not None]) for title, charts in rows])


def _chart(members: Sequence[Scaling], name: str) -> Markup | None:
    curves = []
    for place, one in enumerate(members):
        values: np.ndarray = getattr(one, name)
        there = ~np.isnan(values).all(1)
        if there.any():
            mean, low, high = (f(values[there], 1) for f in (np.nanmean, np.nanmin, np.nanmax))
            several = [one.recipe == other.recipe for other in members].count(True) > 1
            told = f"{one.recipe}, {one.others}" if several else one.recipe
            ends = (low, high) if len(one.seeds) > 1 else (None, None)
            curves.append(Curve(told, one.sizes[there], mean, STYLES[min(place, len(STYLES) - 1)], *ends, dots=True))
    if not curves:
        return None
    y_name = "held-out loss" if name == "losses" else members[0].unit
    x_name = "share of the training episodes" if members[0].axis == "data" else members[0].axis
    title = f"{y_name} against {x_name}"
    sizes = {float(size): f"{size:g}" for one in members for size in one.sizes}
    return line_chart(
        curves,
        width=PANEL[0],
        height=PANEL[1],
        title=title,
        y_name=y_name,
        x_name=x_name,
        x_labels=sizes,
        log_x=True,
    )
