"""Scores on the local Hopper sets: recipes x training windows x data sets x seeds, at equal CPU time, last checkpoint.

    python -m results.hopper_scores run --data DIR --seeds 0-7 [--workers 2]  # a run with a row is not made again
    python -m results.hopper_scores page                                       # writes results/hopper_scores.md
    python -m results.hopper_scores plan --seeds 0-7                           # what `run` would do

A run is `DATASET/MODEL`, e.g. `hopper-medium/bc`; `--only` takes such names with `*`. `SEEDS` has the number of seeds.

Protocol: every run trains on one thread for the CPU time stated in `BUDGET` (the number of updates is measured first),
on all episodes but a tenth, and its LAST checkpoint plays 20 episodes of Hopper-v4 with target return 3600, once with
the state carried and once recomputing the last K steps. No checkpoint, seed or
target is selected by looking at a score. The settings are not blind: step sizes were chosen by held-out loss on
hopper-medium, with more tries for `dmm-dc` than for `dt`, while single runs of `dmm-dc` (seed 0, same set) were also
played; `dmm-dl` on 64 steps, and 64 windows to a batch for `dmm-dc` and `dt`, were tried on seeds 0 to 2 after the
other rows had been seen. Seeds from 3 on were run once, with settings fixed before; seeds 5 to 7 on hopper-medium were
added because five had left `dmm-dc` against behaviour cloning open there. `bc10` was added last, as it is. Each row
names its revision. Some runs shared the machine with other work, which costs updates: the time is processor time, the
column `updates` tells.
The data sets are made from stored agents in the D4RL schema; they are not D4RL's, and their scores belong in no column
with D4RL's.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

if __package__ in (None, ""):  # run as a file: the repository is not yet on the path
    sys.path.insert(0, str(Path(__file__).parents[1]))

from results import equal_time
from results.equal_time import interval_cell, train_and_score
from results.study import Study, command

TARGET, ENV = 3600.0, "Hopper-v4"
BUDGET = {"bc": 60.0, "bc10": 60.0}  # CPU seconds of training; the others get DEFAULT_BUDGET
DEFAULT_BUDGET = 180.0
# Recipe and settings that differ from its own.
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "bc": ("bc", {}),
    "bc10": ("bc10", {}),
    "dt, 20 steps, batch 16": ("dt", {"train.batch_size": 16}),
    "dt, 20 steps, batch 64": ("dt", {"train.batch_size": 64}),
    "dmm-dc, 8 steps, batch 64": ("dmm-dc", {"model.context": 8, "train.batch_size": 64}),
    "dmm-dc, 64 steps, batch 16": ("dmm-dc", {"model.context": 64, "train.batch_size": 16}),
    "dmm-dc, 64 steps, batch 64": ("dmm-dc", {"model.context": 64, "train.batch_size": 64}),
    "dmm-dl, 8 steps, batch 64": ("dmm-dl", {"model.context": 8, "train.batch_size": 64}),
    "dmm-dl, 64 steps, batch 16": ("dmm-dl", {"model.context": 64, "train.batch_size": 16}),
}
BC, BEST = "bc", "bc10"
DT, DC, DL = "dt, 20 steps, batch 64", "dmm-dc, 64 steps, batch 64", "dmm-dl, 64 steps, batch 16"
SEEDS = {  # three of every model, more of what is compared
    "hopper-medium": {BC: 8, BEST: 5, DT: 5, DC: 8, DL: 5},
    "hopper-medium-replay": {BC: 5, BEST: 5, DT: 5, DC: 5, DL: 5},
}


Row = dict[str, Any]


class Run(NamedTuple):
    """One run of the study."""

    model: str
    dataset: str
    """The name of its file."""
    seed: int

    @property
    def name(self) -> str:
        return f"{_task(self.dataset)}/{self.model}"


def _task(file: str) -> str:
    return file.removesuffix("-v4.hdf5")


def planned(seeds: Iterable[int]) -> list[Run]:
    """All runs of these seeds, the first seed of each before the second of any."""
    return [
        Run(model, f"{task}-v4.hdf5", seed)
        for seed in seeds
        for task, more in SEEDS.items()
        for model in SETTINGS
        if seed < more.get(model, 3)
    ]


def one_run(run: Run, folder: Path) -> Row:
    """The row of a run, which is made in this process."""
    from scanrl.data import load
    from scanrl.models.recipes import recipe
    from scanrl.types import Context

    name, changes = SETTINGS[run.model]
    model = recipe(name).model
    window = changes.get("model.context", model.context)
    contexts: tuple[Context, ...] = ("recurrent",) if window == 1 else ("recurrent", window)
    return train_and_score(
        name,
        {**changes, "train.seed": run.seed},
        load(folder / run.dataset),
        ENV,
        seconds=BUDGET.get(name, DEFAULT_BUDGET),
        target=TARGET if model.takes_target else None,
        contexts=contexts,
    )


def page(rows: Sequence[Row]) -> str:
    """Markdown: mean over seeds of the mean normalised return, the seeds, and the interval over seeds."""
    lines = []
    for task in SEEDS:
        lines += [f"**{task}**", "", "| model | acting | mean | 95 % over seeds | seeds | updates | held-out loss |"]
        lines += ["|---|---|---|---|---|---|---|"]
        for model in SETTINGS:
            found = _of(rows, model, task)
            for mode in found[0]["acted"] if found else ():
                per_seed = _scores(found, mode)
                cells = (
                    model,
                    "state carried" if mode == "recurrent" else f"window of {mode}",
                    f"{np.mean(per_seed):.1f}",
                    interval_cell(per_seed),
                    ", ".join(f"{score:.1f}" for score in per_seed),
                    f"{np.mean([r['updates'] for r in found]):.0f}",
                    f"{np.mean([r['validation_loss'] for r in found]):.4f}",
                )
                lines.append("| " + " | ".join(cells) + " |")
        lines += ["", *differences(rows, task), ""]
    return "\n".join(lines) + "\n"


def _of(rows: Sequence[Row], model: str, task: str) -> list[Row]:
    """The runs of a model on a data set, in the order of their seeds."""
    found = [row for row in rows if row["model"] == model and _task(row["dataset"]) == task]
    return sorted(found, key=lambda row: row["seed"])


def _scores(rows: Sequence[Row], mode: str) -> list[float]:
    """Mean normalised return of each of these runs."""
    return [equal_time.scores(row, "recurrent" if mode == "recurrent" else "window") for row in rows]


def differences(rows: Sequence[Row], task: str) -> list[str]:
    """How far Decision MetaMamba is ahead, over as many seeds as both have (below eight: Welch's interval)."""
    from scanrl.intervals import mean, stratified_bootstrap

    lines = ["| state carried | points ahead | 95 % | seeds |", "|---|---|---|---|"]
    for ours in (DC, DL):
        for other in (BC, BEST, DT):
            a, b = (_scores(_of(rows, model, task), "recurrent") for model in (ours, other))
            count = min(len(a), len(b))
            pairs = np.stack([a[:count], [-x for x in b[:count]]], 1)  # half the difference is the mean over both
            interval = stratified_bootstrap(pairs, statistic=mean)
            assert interval is not None
            shown = f"{2 * interval[0]:.1f} to {2 * interval[1]:.1f}"
            lines.append(f"| {ours}, than {other} | {2 * pairs.mean():.1f} | {shown} | {count} |")
    return lines


STUDY = Study(Path(__file__), planned, one_run, page, lambda run: run.dataset)

if __name__ == "__main__":
    command(STUDY, __doc__)
