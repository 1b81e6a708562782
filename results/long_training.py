"""Train long, act recurrently: context lengths and whole episodes x ways to act, at equal processor time.

    python -m results.long_training run --data DIR [--workers 2] [--seeds 0-2] [--only 'hopper-medium/*']
    python -m results.long_training page       # writes results/long_training.md from results/long_training.jsonl
    python -m results.long_training plan       # what `run` would do

A run is `DATASET/RECIPE/FORM`, e.g. `walker2d-medium/dmm-dc/64`; `--only` takes such names with `*`, several of them.
A run that has its row is not made again. Seeds go in turn: a study stopped early has whole ones.

Protocol. Every run trains on one thread for the same processor time (`--seconds`; the cost of an update is measured
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

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

if __package__ in (None, ""):  # run as a file: the repository is not yet on the path
    sys.path.insert(0, str(Path(__file__).parents[1]))

from results.equal_time import TASKS, append_missing, interval_cell, missing, read_rows, scores, train_and_score

ROWS = Path(__file__).with_suffix(".jsonl")
PAGE = Path(__file__).with_suffix(".md")
SECONDS = 90.0
STEPS = 2048  # environment steps of a batch
CHUNK = 64


RECIPES = ("dmm-dc", "dt")
FORMS: dict[str, dict[str, Any]] = {
    str(context): {"model.context": context, "train.batch_size": STEPS // context} for context in (8, 20, 64, 256)
}
FORMS["episodes"] = {"model.context": CHUNK, "train.batch_size": STEPS // CHUNK, "train.sequences": "episodes"}


WAYS = ("recurrent", "window")
NOT_RECOMPUTED = {("dt", "256")}


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


def planned(seeds: Iterable[int], only: Sequence[str] = (), seconds: float = SECONDS) -> list[Run]:
    """All runs that the names leave over, the first seed of each before the second of any."""
    found = [Run(d, r, f, seed, seconds) for seed in seeds for d in TASKS for r in RECIPES for f in FORMS]
    return [run for run in found if not only or any(fnmatch(run.name, pattern) for pattern in only)]


def one_run(run: Run, folder: Path) -> dict[str, Any]:
    """The row of a run, which is made in this process."""
    from scanrl.data import load

    task, changes = TASKS[run.dataset], FORMS[run.form]
    found = train_and_score(
        run.recipe,
        {**changes, "train.seed": run.seed},
        load(folder / task.file),
        task.env,
        seconds=run.seconds,
        target=task.target,
        contexts=("recurrent", *(() if (run.recipe, run.form) in NOT_RECOMPUTED else (changes["model.context"],))),
    )
    return {**run._asdict(), **found}


def run_all(folder: Path, runs: Sequence[Run], file: Path, workers: int) -> int:
    """Makes the runs that have no row yet; tells how many failed."""
    absent = sorted({TASKS[run.dataset].file for run in runs if not (folder / TASKS[run.dataset].file).is_file()})
    if absent:
        raise SystemExit(f"{folder}: expected {', '.join(absent)}, found none (leave them out with --only)")
    jobs = [
        (
            f"{run.name}, seed {run.seed}",
            ["-m", "results.long_training", "one", "--data", str(folder.absolute()), "--run", json.dumps(run)],
        )
        for run in missing(runs, read_rows(file))
    ]
    return append_missing(jobs, file, workers)


def page(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: for each data set what every recipe and form scores, and what carrying the state is worth."""
    lines = ["# Train long, act recurrently", ""]
    budgets = sorted({row["seconds"] for row in rows})
    lines += [f"Processor seconds of training: {', '.join(f'{b:g}' for b in budgets)}. Protocol and command: "]
    lines[-1] += (
        "`results/long_training.py`; rows: `results/long_training.jsonl`. Scores are normalised, means over seeds "
    )
    lines[-1] += "with the 95 % interval of the mean; the difference is taken seed by seed."
    for dataset in TASKS:
        there = [row for row in rows if row["dataset"] == dataset]
        if there:
            lines += ["", f"**local/{dataset}**", "", *_table(there)]
    return "\n".join(lines) + "\n"


def _table(rows: Sequence[dict[str, Any]]) -> list[str]:
    head = ("recipe", "trained on", "state carried", "95 %", "window", "95 %", "carried - window", "95 %")
    head += ("seeds", "updates", "loss in windows", "loss carried")
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for recipe in RECIPES:
        for form in FORMS:
            mine = [row for row in rows if (row["recipe"], row["form"]) == (recipe, form)]
            if not mine:
                continue
            carried, window = (
                [scores(row, way) for row in mine if len(row["acted"]) > i] for i, way in enumerate(WAYS)
            )
            ahead = [a - b for a, b in zip(carried, window, strict=False)]
            cells = [recipe, "whole episodes" if form == "episodes" else f"{form} steps"]
            for values in (carried, window, ahead):
                cells += [f"{np.mean(values):.1f}", interval_cell(values)] if values else ["-", "-"]
            cells += [str(len(mine)), f"{np.mean([row['updates'] for row in mine]):.0f}"]
            for loss in ("validation_loss", "validation_loss_recurrent"):
                cells.append(f"{np.mean([row[loss] for row in mine]):.4f}")
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def main(words: Sequence[str] | None = None) -> None:
    """The command."""
    from scanrl.seeds import read_seeds

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "one", "plan", "page"))
    parser.add_argument("--data", type=Path, help="folder of the HDF5 files")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="such as 'hopper-*/dm*/64'")
    parser.add_argument("--seeds", type=read_seeds, default=(0, 1, 2))
    parser.add_argument("--seconds", type=float, default=SECONDS, help="processor time of a run's training")
    parser.add_argument("--workers", type=int, default=1, help="runs at a time, on one thread each")
    parser.add_argument("--rows", type=Path, default=ROWS, help="where the rows are")
    parser.add_argument("--run", type=json.loads, help=argparse.SUPPRESS)
    chosen = parser.parse_args(words)
    runs = planned(chosen.seeds, chosen.only, chosen.seconds)
    if chosen.what in ("run", "one") and chosen.data is None:
        parser.error("--data: expected the folder of the HDF5 files")
    if chosen.what == "page":
        PAGE.write_text(page(read_rows(chosen.rows)), encoding="utf-8")
    elif chosen.what == "one":
        print(json.dumps(one_run(Run(*chosen.run), chosen.data)))
    elif chosen.what == "plan":
        for run in missing(runs, read_rows(chosen.rows)):
            print(f"{run.name}, seed {run.seed}, {run.seconds:g} s")
    else:
        sys.exit(1 if run_all(chosen.data, runs, chosen.rows, chosen.workers) else 0)


if __name__ == "__main__":
    main()
