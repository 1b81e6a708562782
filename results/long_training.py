"""Train long, act recurrently: context lengths and whole episodes x ways to act, at equal processor time.

    python -m results.long_training run --data DIR [--workers 2] [--seeds 0-2] [--only 'hopper-medium/*']
    python -m results.long_training page       # writes results/long_training.md, and table and picture of docs/
    python -m results.long_training plan       # what `run` would do

A run is `DATASET/RECIPE/FORM`, e.g. `walker2d-medium/dmm-dc/64`; `--only` takes such names with `*`, several of them.
A run that has its row is not made again. Seeds go in turn: a study stopped early has whole ones.

Protocol. Every run trains on one thread for the same processor time (`SECONDS`; the cost of an update is measured
first, so that the number of updates follows), on all episodes but a tenth, with its recipe's own step size and
schedule. Its LAST checkpoint plays 20 episodes twice: with the state carried through the episode, and recomputing the
last K steps at every step. Nothing is selected by looking at a score.

FORM is the number of steps K of the windows a run is trained on, or `episodes`: whole episodes in chunks of 64 steps
whose state is carried (`train.sequences: episodes`); the window it acts on is then 64 steps as well. Every batch holds
about the same number of steps, `STEPS`, whatever K is: 256 windows of 8, 102 of 20, 32 of 64, 8 of 256, 32 rows of
chunks. Long windows then mean fewer independent places in a batch, not fewer tokens; to hold the number of windows
instead would give a run on 256 steps a thirtieth of the updates of one on 8 in the same time. Attention sees K steps
back in all forms; with its window of 256 steps it only plays with the keys kept, because recomputing them at every step
takes longer than the training.

The data sets are made from stored agents in the D4RL schema; they are not D4RL's, and their scores belong in no column
with D4RL's.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

if __package__ in (None, ""):  # run as a file: the repository is not yet on the path
    sys.path.insert(0, str(Path(__file__).parents[1]))

from results.equal_time import TASKS, interval_cell, scores, train_and_score
from results.marked import replace_marked
from results.study import Study, command

SECONDS = 90.0
STEPS = 2048  # environment steps of a batch
CHUNK = 64
DOCS = Path(__file__).parents[1] / "docs"
PICTURE, DOCUMENT = DOCS / "pictures" / "long_training.svg", DOCS / "long_training.md"

DRAWN = ("dmm-dc", "dt")
RECIPES = (*DRAWN, "dm")
FORMS: dict[str, dict[str, Any]] = {
    str(context): {"model.context": context, "train.batch_size": STEPS // context} for context in (8, 20, 64, 256)
}
FORMS["episodes"] = {"model.context": CHUNK, "train.batch_size": STEPS // CHUNK, "train.sequences": "episodes"}
FEW = {"dm": ("20", "64")}
"""Recipes that are tried in some forms only: another Mamba, to see whether what holds for the first holds for it."""

WAYS = ("recurrent", "window")
NOT_RECOMPUTED = {("dt", "256")}
PAPERS = {"dmm-dc": "8", "dt": "20", "dm": "20"}
"""The windows that the papers train on; they act by recomputing them."""

INTRODUCTION = (
    "Processor seconds of training: {budgets}. Protocol and command: `results/long_training.py`; rows: "
    "`results/long_training.jsonl`. Scores are normalised, means over seeds with the 95 % interval of the mean; the "
    "difference is taken seed by seed."
)
OVERALL = (
    "**All data sets**: means over the sets; differences in pairs of the same set and seed, with the 95 % interval of "
    "their mean and how many of them are above zero. *The papers' way* is to train on windows of {papers} and to "
    "recompute the window at every step."
)


Scores = dict[tuple[str, int], float]
"""The score of one recipe, form and way to act, by data set and seed."""


class Run(NamedTuple):
    """One run of the study."""

    dataset: str
    recipe: str
    form: str
    seed: int
    seconds: float

    @property
    def name(self) -> str:
        return f"{self.dataset}/{self.recipe}/{self.form}"


def planned(seeds: Iterable[int]) -> list[Run]:
    """All runs, the first seed of each before the second of any."""
    return [
        Run(task, recipe, form, seed, SECONDS)
        for seed in seeds
        for task in TASKS
        for recipe in RECIPES
        for form in FEW.get(recipe, FORMS)
    ]


def one_run(run: Run, folder: Path) -> dict[str, Any]:
    """The row of a run, which is made in this process."""
    from scanrl.data import load

    task, changes = TASKS[run.dataset], FORMS[run.form]
    return train_and_score(
        run.recipe,
        {**changes, "train.seed": run.seed},
        load(folder / task.file),
        task.env,
        seconds=run.seconds,
        target=task.target,
        contexts=("recurrent", *(() if (run.recipe, run.form) in NOT_RECOMPUTED else (changes["model.context"],))),
    )


def page(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: for each data set what every recipe and form scores, and what carrying the state is worth."""
    budgets = ", ".join(f"{seconds:g}" for seconds in sorted({row["seconds"] for row in rows}))
    papers = ", ".join(f"{steps} steps (`{recipe}`)" for recipe, steps in PAPERS.items())
    lines = [
        "# Train long, act recurrently",
        "",
        INTRODUCTION.format(budgets=budgets),
        "",
        OVERALL.format(papers=papers),
    ]
    lines += ["", *_overall(rows)]
    for dataset in TASKS:
        there = [row for row in rows if row["dataset"] == dataset]
        if there:
            lines += ["", f"**local/{dataset}**", "", *_table(there)]
    return "\n".join(lines) + "\n"


def also(rows: Sequence[dict[str, Any]]) -> dict[Path, str]:
    """The picture, and the page of docs/ with its table made anew."""
    document = DOCUMENT.read_text(encoding="utf-8")
    for name, lines in (("overall", _overall(rows)), ("pooled", _pooled(rows))):
        made_by = "python -m results.long_training page"
        document = replace_marked(document, name, made_by, "\n".join(lines), DOCUMENT.name)
    return {PICTURE: drawing(rows), DOCUMENT: document}


def _overall(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each recipe and form: what it scores, and its differences over all data sets."""
    head = ["recipe", "trained on", "state carried", "window"]
    for what in ("carried - window", "carried - the papers' way", "window - the papers' way"):
        head += [what, "95 %", "above"]
    lines = []
    for recipe in RECIPES:
        played = {form: [_by_pair(rows, recipe, form, way) for way in WAYS] for form in FORMS}
        papers = played[PAPERS[recipe]][1]
        for form, (carried, window) in played.items():
            if carried:
                cells = [recipe, _trained_on(form), _mean_of_sets(carried), _mean_of_sets(window)]
                for pair in ((carried, window), (carried, papers), (window, papers)):
                    cells += _difference([] if pair[0] is pair[1] else _apart(*pair))
                lines.append(cells)
    return _lines(head, lines)


def _pooled(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What carrying the state costs after short and after long windows, two lengths to a line."""
    lines = []
    for recipe in RECIPES:
        for forms in (("8", "20"), ("64", "256")):
            ways = [[_by_pair(rows, recipe, form, way) for way in WAYS] for form in forms]
            apart = [value for carried, window in ways for value in _apart(carried, window)]
            if apart:
                used = " or ".join(form for form, (_, window) in zip(forms, ways, strict=True) if window)
                lines.append([recipe, _trained_on(used), *_difference(apart)])
    return _lines(["recipe", "trained on", "carried - window", "95 %", "above"], lines)


def _apart(first: Scores, second: Scores) -> list[float]:
    return [first[pair] - second[pair] for pair in first if pair in second]


def _lines(head: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *cells)]


def _by_pair(rows: Sequence[dict[str, Any]], recipe: str, form: str, way: str) -> Scores:
    """The score of one way to act, by data set and seed."""
    mine = [row for row in rows if (row["recipe"], row["form"]) == (recipe, form)]
    return {(row["dataset"], row["seed"]): scores(row, way) for row in mine if len(row["acted"]) > WAYS.index(way)}


def _mean_of_sets(found: Scores) -> str:
    """Every set counts the same, however many seeds it has."""
    names = dict.fromkeys(name for name, _ in found)
    sets = [np.mean([value for (its, _), value in found.items() if its == name]) for name in names]
    return f"{np.mean(sets):.1f}" if sets else "-"


def _difference(values: Sequence[float]) -> list[str]:
    if not values:
        return ["-", "-", "-"]
    return [f"{np.mean(values):+.1f}", interval_cell(values), f"{sum(v > 0 for v in values)} of {len(values)}"]


def _trained_on(form: str) -> str:
    return "whole episodes" if form == "episodes" else f"{form} steps"


def drawing(rows: Sequence[dict[str, Any]]) -> str:
    """An SVG file: for each data set scores against what was trained on, and what carrying the state is worth."""
    from scanrl.report.learning import panels

    drawn = []
    for dataset in TASKS:
        there = [row for row in rows if row["dataset"] == dataset]
        if there:
            drawn.append((f"local/{dataset}", [_chart(there, False), _chart(there, True)]))
    return panels(drawn)


def _chart(rows: Sequence[dict[str, Any]], difference: bool) -> Markup:
    """Mean and range of the seeds: of both ways to act, or of what carrying the state is worth."""
    from scanrl.report.charts import Line, line_chart
    from scanrl.report.learning import PANEL, STYLES

    curves = []
    for recipe in DRAWN:
        for number, way in enumerate(("carried - window",) if difference else WAYS):
            points = [(place, _values(rows, recipe, form, way)) for place, form in enumerate(FORMS)]
            there = [(place, values) for place, values in points if values]
            if there:
                places = np.array([float(place) for place, _ in there])
                mean, low, high = (np.array([f(values) for _, values in there]) for f in (np.mean, np.min, np.max))
                style = STYLES[2 * DRAWN.index(recipe) + number]
                name = recipe if difference else f"{recipe}, {'carried' if way == 'recurrent' else way}"
                curves.append(Line(name, places, mean, style, low, high, dots=True))
    what = "carried less window, points" if difference else "normalised score"
    return line_chart(
        curves,
        width=PANEL[0],
        height=PANEL[1],
        title=f"{what} against training windows",
        y_name=what,
        x_name="steps of the windows trained on",
        x_labels={float(place): "whole" if form == "episodes" else form for place, form in enumerate(FORMS)},
    )


def _values(rows: Sequence[dict[str, Any]], recipe: str, form: str, way: str) -> list[float]:
    """Scores of one way to act, or their difference where a run has both, by seed."""
    if way in WAYS:
        return list(_by_pair(rows, recipe, form, way).values())
    return _apart(*(_by_pair(rows, recipe, form, each) for each in WAYS))


def _table(rows: Sequence[dict[str, Any]]) -> list[str]:
    head = ("recipe", "trained on", "state carried", "95 %", "window", "95 %", "carried - window", "95 %")
    head += ("seeds", "updates", "loss in windows", "loss carried")
    lines = []
    for recipe in RECIPES:
        for form in FORMS:
            mine = [row for row in rows if (row["recipe"], row["form"]) == (recipe, form)]
            if not mine:
                continue
            cells = [recipe, _trained_on(form)]
            for way in (*WAYS, "carried - window"):
                values = _values(rows, recipe, form, way)
                cells += [f"{np.mean(values):.1f}", interval_cell(values)] if values else ["-", "-"]
            cells += [str(len(mine)), f"{np.mean([row['updates'] for row in mine]):.0f}"]
            for loss in ("validation_loss", "validation_loss_recurrent"):
                cells.append(f"{np.mean([row[loss] for row in mine]):.4f}")
            lines.append(cells)
    return _lines(head, lines)


STUDY = Study(Path(__file__), planned, one_run, page, lambda run: TASKS[run.dataset].file, also)

if __name__ == "__main__":
    command(STUDY, __doc__)
