"""The scaling study: width, depth and amount of data, at equal numbers of updates.

    python -m results.scaling run --data DIR [--workers 2] [--seeds 0-2] [--only 'hopper-medium/dmm-dc/*']
    python -m results.scaling page       # writes results/scaling.md from results/scaling.jsonl
    python -m results.scaling plan       # what `run` would do

A run is `DATASET/RECIPE/SIZE`; `--only` takes such names with `*`. A run that has its row is not made again.

Each size differs from `base` in one thing: `width x2` (of the recipe's), `depth 6` (layers; the recipe has three), or
`data x0.5`. The base takes half of the file's episodes, drawn once, so that there is twice as much for `data x2`;
smaller shares are parts of larger ones. MambaDM reports that larger models gain nothing and more data does (on Atari).

Every run makes the same number of updates with its recipe's own step size and batch, on one thread, on all of its
episodes but a tenth. Its LAST checkpoint plays 20 episodes with the state carried and 20 on the window.

Reference: MambaDM, arXiv 2406.02013, section on scaling.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

if __package__ in (None, ""):  # run as a file: the repository is not yet on the path
    sys.path.insert(0, str(Path(__file__).parents[1]))

from results.equal_time import TASKS, interval_cell, scores, train_and_score
from results.study import Study, command
from scanrl.data import Dataset

UPDATES = 1000
DATASETS = ("hopper-medium", "hopper-medium-replay")
RECIPES = ("dmm-dc", "dm")
SIZES = ("base", "width x0.5", "width x2", "depth 1", "depth 6", "depth 9", "data x0.25", "data x0.5", "data x2")


class Run(NamedTuple):
    """One run of the study."""

    dataset: str
    recipe: str
    size: str
    seed: int
    updates: int

    @property
    def name(self) -> str:
        return f"{self.dataset}/{self.recipe}/{self.size}"


def planned(seeds: Iterable[int]) -> list[Run]:
    """All runs, the first seed of each before the second of any."""
    return [Run(d, r, s, seed, UPDATES) for seed in seeds for d in DATASETS for r in RECIPES for s in SIZES]


def settings(run: Run) -> dict[str, Any]:
    """What a run changes of its recipe."""
    from scanrl.models.recipes import recipe

    model = recipe(run.recipe).model
    changes: dict[str, Any] = {"train.seed": run.seed}
    if run.size.startswith("width x"):
        changes["model.width"] = int(model.width * float(run.size[7:]))
    if run.size.startswith("depth "):
        changes["model.pattern"] = re.sub(r"\)\*3$", f")*{run.size[6:]}", model.pattern)
    return changes


def share(dataset: Dataset, size: str) -> Dataset:
    """The episodes that a size is trained on."""
    factor = float(size[6:]) if size.startswith("data x") else 1.0
    order = np.random.default_rng(0).permutation(len(dataset))
    return dataset.select(np.sort(order[: max(2, round(len(dataset) * factor / 2))]))


def one_run(run: Run, folder: Path) -> dict[str, Any]:
    """The row of a run, which is made in this process."""
    from scanrl.data import load
    from scanrl.models.decision import DecisionModel
    from scanrl.models.recipes import recipe
    from scanrl.settings import run_config
    from scanrl.stats import Stats

    task, changes = TASKS[run.dataset], settings(run)
    data = share(load(folder / task.file), run.size)
    config = run_config(run.recipe, changes).model
    found = train_and_score(
        run.recipe,
        changes,
        data,
        task.env,
        seconds=None,
        updates=run.updates,
        target=task.target,
        contexts=("recurrent", recipe(run.recipe).model.context),
    )
    parameters = DecisionModel(config, data.spec, Stats.fit(data)).parameter_count()
    return {**found, **run._asdict(), "parameters": parameters, "steps": data.steps}


def page(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: one table for each data set."""
    lines = ["# Scaling", "", "Protocol and command: `results/scaling.py`; rows: `results/scaling.jsonl`. Scores are "]
    lines[-1] += "normalised, means over seeds with the 95 % interval of the mean."
    head = ("recipe", "size", "parameters", "steps of data", "state carried", "95 %", "window", "95 %")
    head += ("seeds", "updates", "held-out loss", "CPU seconds")
    for dataset in DATASETS:
        there = [row for row in rows if row["dataset"] == dataset]
        if there:
            lines += ["", f"**local/{dataset}**", "", "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
        for recipe in RECIPES:
            for size in SIZES:
                mine = [row for row in there if (row["recipe"], row["size"]) == (recipe, size)]
                if mine:
                    lines.append("| " + " | ".join(_cells(mine)) + " |")
    return "\n".join(lines) + "\n"


def _cells(rows: Sequence[dict[str, Any]]) -> list[str]:
    """One line: the seeds of one size."""
    first = rows[0]
    cells = [first["recipe"], first["size"], f"{first['parameters']:,}", f"{first['steps']:,}"]
    for way in ("recurrent", "window"):
        values = [scores(row, way) for row in rows]
        cells += [f"{np.mean(values):.1f}", interval_cell(values)]
    loss, seconds = (np.mean([row[key] for row in rows]) for key in ("validation_loss", "cpu_seconds"))
    return [*cells, str(len(rows)), str(first["updates"]), f"{loss:.4f}", f"{seconds:.0f}"]


STUDY = Study(Path(__file__), planned, one_run, page, lambda run: TASKS[run.dataset].file)

if __name__ == "__main__":
    command(STUDY, __doc__)
