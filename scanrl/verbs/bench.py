"""`bench speed`, `bench run` and `bench report`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import tyro
from tyro.conf import Positional

from scanrl.console import print_json
from scanrl.types import DataError
from scanrl.verbs.options import Folders, check

__all__ = ["bench_report", "bench_run", "bench_speed"]

Spec: TypeAlias = Annotated[Positional[Path | None], tyro.conf.arg(metavar="SPEC")]

BENCH = Path("outputs/bench")


def bench_speed(threads: int | None = None, json: bool = False) -> int:
    """Time scan, training, acting and batches beside this machine's own limits (about a minute).

    Args:
        threads: for scan, mixer and training, by default as torch decides; acting and batches are timed on one.
        json: print one JSON object instead of tables.
    """
    if threads is not None:
        check("bench speed", 1, threads=threads)
    from scanrl.bench.show import show
    from scanrl.bench.speed import speed

    found = speed(threads, progress=True)
    if json:
        return print_json(found)
    show(found)
    return 0


def bench_run(
    spec: Spec = None,
    preset: str | None = None,
    data: str | None = None,
    seeds: str | None = None,
    updates: int | None = None,
    out: Path | None = None,
    jobs: int = 1,
    retry_failed: bool = False,
) -> int:
    """Run a grid of recipes, data sets, seeds and budgets; the same command continues what was interrupted.

    Args:
        spec: a YAML file (docs/experiments.md describes it), or --preset.
        preset: RECIPE/TASK as `scanrl presets` lists them.
        data: where the preset's episodes are; by default D4RL's file in the current folder.
        seeds: how many, or a range such as 0-4, or a list such as 0,3,7; by default the file's, or 1.
        updates: of every run, instead of the file's or the preset's budgets.
        out: the folder of the grid; by default outputs/bench and the name of the file or preset.
        jobs: runs side by side, each in a process of its own with its share of the cores.
        retry_failed: run again what has failed.
    """
    check("bench run", 1, jobs=jobs, updates=1 if updates is None else updates)
    if (spec is None) == (preset is None):
        raise DataError(f"bench run: expected SPEC or --preset, got {'neither' if spec is None else 'both'}")
    if preset is None and data is not None:
        raise DataError("bench run: --data: expected with --preset alone (a file names its own data)")
    from scanrl.grid.reading import changed, preset_grid, read_grid
    from scanrl.grid.schedule import run_grid

    if spec is not None:
        grid, name = read_grid(spec), spec.stem
    else:
        assert preset is not None
        grid, name = preset_grid(preset, data), preset.replace("/", "-")
    folder = BENCH / name if out is None else out
    grid = changed(grid, seeds, updates)
    ends = run_grid(grid, folder, processes=jobs, retry_failed=retry_failed, progress=sys.stderr.isatty())
    failed = f", {ends.failed} failed (--retry-failed runs them again)" if ends.failed else ""
    print(f"{ends.done} runs done{failed}; next: scanrl bench report {folder}")
    return 1 if ends.failed else 0


def bench_report(folders: Folders, layout: Literal["table", "csv", "markdown", "latex", "html"] = "table") -> int:
    """Show what the runs of grids scored: last, selected and best, with intervals over seeds.

    Args:
        folders: folders that `scanrl bench run` filled.
        layout: a table for the terminal, or text for a file.
    """
    from scanrl.grid.layout import LAYOUTS, failures, show
    from scanrl.grid.schedule import read_rows
    from scanrl.grid.table import lines_of

    rows = [row for folder in folders for row in read_rows(folder)]
    if not folders:
        raise DataError("bench report: expected DIR, got none")
    lines, failed = lines_of(rows), failures(rows)
    if not rows:
        raise DataError(f"{', '.join(map(str, folders))}: expected rows of runs, got none yet")
    if layout == "table":
        if lines:
            show(lines)
        for text in failed:
            print(text)
        return 0
    print(LAYOUTS[layout](lines, failed), end="")
    if layout == "csv":
        for text in failed:
            print(text, file=sys.stderr)
    return 0
