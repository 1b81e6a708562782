"""Several seeds of one run: how they are written, the folder they share, and the table of what they reached.

`PARENT/seeds.yaml` says which seeds there are, `PARENT/seed-N/` is an ordinary run each; `PARENT/data/` holds the
episodes where they were handed over in memory.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from scanrl.config import read_yaml
from scanrl.intervals import bootstrap_interval
from scanrl.run import Run, claim, new_run, open_run, point_at
from scanrl.settings import LARGEST, RunConfig
from scanrl.types import DataError

__all__ = ["check_seeds", "is_seeds_folder", "new_seed_runs", "open_seed_runs", "read_seeds", "seed_path", "seed_table"]

FILE = "seeds.yaml"
MOST = 1000
"""Seeds of one run: more are taken for a slip of the pen."""
TOLD = ("train/loss", "val/loss", "eval/return_mean", "eval/normalized_score", "eval/success_rate")
"""Metrics in the table."""


def read_seeds(text: str) -> tuple[int, ...]:
    """The seeds that `0-4`, `0,3,7` or `0-2,7` names.

    Raises:
        DataError: the text is something else, or `check_seeds` refuses them.
    """
    seeds: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d{1,19})(?:-(\d{1,19}))?\s*", part, re.ASCII)
        if not found:
            raise DataError(f"seeds: expected a range such as 0-4 or a list such as 0,3,7, got {text!r}")
        first, last = int(found[1]), int(found[2] or found[1])
        if last < first:
            raise DataError(f"seeds: expected a range that rises, got {part.strip()!r}")
        if last - first >= MOST:
            raise DataError(f"seeds: expected at most {MOST}, got {last - first + 1}")
        seeds += range(first, last + 1)
    return check_seeds(seeds)


def check_seeds(seeds: Iterable[int]) -> tuple[int, ...]:
    """The seeds as a tuple, in the order given.

    Raises:
        DataError: there are none or too many, one is there twice, or one is no integer from 0 to 2^63 - 1.
    """
    found = tuple(seeds)
    if not 1 <= len(found) <= MOST:
        raise DataError(f"seeds: expected 1 to {MOST} of them, got {len(found)}")
    for seed in found:
        if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed <= LARGEST:
            raise DataError(f"seeds: expected integers from 0 to {LARGEST}, got {seed!r}")
    twice = next((seed for index, seed in enumerate(found) if seed in found[:index]), None)
    if twice is not None:
        raise DataError(f"seeds: expected each one once, got {twice} twice")
    return tuple(int(seed) for seed in found)


def seed_path(parent: Path, seed: int) -> Path:
    """The run folder of one seed."""
    return parent / f"seed-{seed}"


def new_seed_runs(parent: Path, configs: Sequence[RunConfig]) -> list[Run]:
    """Create the folder of several seeds with a run folder for each configuration.

    Raises:
        DataError: the folder exists and is not empty, or cannot be written.
    """
    claim(parent)
    runs = [new_run(seed_path(parent, config.train.seed), config) for config in configs]
    scratch = parent / "seeds.tmp"
    scratch.write_text(f"seeds: {[config.train.seed for config in configs]}\n", encoding="utf-8")
    os.replace(scratch, parent / FILE)
    point_at(parent)
    return runs


def is_seeds_folder(path: str | Path) -> bool:
    """Whether runs of several seeds are there."""
    return (Path(path) / FILE).is_file()


def open_seed_runs(path: str | Path) -> list[Run]:
    """The runs of a folder of seeds, in the order they were given.

    Raises:
        DataError: `path` is no such folder, a run is missing, or they differ in more than their seed.
    """
    path = Path(path)
    if not is_seeds_folder(path):
        raise DataError(
            f"{path}: expected a folder of seeds (with {FILE}), got {'none' if path.exists() else 'nothing'}"
        )
    listed = read_yaml(path / FILE).get("seeds")
    try:
        seeds = check_seeds(listed if isinstance(listed, list) else [])
    except DataError as error:
        raise DataError(f"{path / FILE}: {error}") from None
    runs = [open_run(seed_path(path, seed)) for seed in seeds]
    for seed, run in zip(seeds, runs, strict=True):
        expected = replace(runs[0].config, train=replace(runs[0].config.train, seed=seed))
        if run.config != expected:
            wanted = f"the settings of {runs[0].path.name} with seed {seed}"
            alone = f"(scanrl resume {run.path} continues it alone)"
            raise DataError(f"{run.path / 'config.yaml'}: expected {wanted}, got others {alone}")
    return runs


def seed_table(runs: Sequence[Run]) -> tuple[list[str], list[list[str]]]:
    """Head and rows: the last value of each metric that all runs have, by seed, then mean, deviation and interval.

    The deviation divides by the number of seeds. The interval is that of the mean over seeds at 95 %, see
    `scanrl.intervals`.
    """
    last = [_last_values(run.metrics()) for run in runs]
    names = [name for name in TOLD if all(name in values for values in last)]
    columns = [np.array([values[name] for values in last]) for name in names]
    rows = [
        [str(run.config.train.seed), *(f"{column[index]:.6g}" for column in columns)] for index, run in enumerate(runs)
    ]
    intervals = [bootstrap_interval(column) for column in columns]
    rows += [
        ["mean", *(f"{column.mean():.6g}" for column in columns)],
        ["std", *(f"{column.std():.3g}" for column in columns)],
        ["95 % interval", *(f"{low:.5g} to {high:.5g}" for low, high in intervals)],
    ]
    return ["seed", *names], rows


def _last_values(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {name: value for line in lines for name, value in line.items()}
