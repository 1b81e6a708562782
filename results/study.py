"""The command that studies share: `plan`, `run` and `page`, with rows in a file beside the script.

A run is a process of its own that prints its row, so that a study goes on where it was stopped and makes none twice.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

from results.equal_time import append_missing, missing, read_rows

__all__ = ["Study", "command", "named"]


class Study(NamedTuple):
    """What is planned and made.

    Attributes:
        script: the script; rows and page stand beside it, with its name.
        planned: all runs of some seeds, the first seed of each before the second of any; a run has `name` and `seed`.
        row: the row of a run, made in this process: what it is called, and what came out; of a study with `files` it
            also takes the folder they are in.
        page: the rows as Markdown.
        files: of a run, the name of its recording, which the folder `--data` has to hold; `None` without recordings.
        also: the rows to what other files say, pictures among them.
    """

    script: Path
    planned: Callable[[Iterable[int]], list[Any]]
    row: Callable[..., dict[str, Any]]
    page: Callable[[Sequence[dict[str, Any]]], str]
    files: Callable[[Any], str] | None = None
    also: Callable[[Sequence[dict[str, Any]]], dict[Path, str]] | None = None


def named(runs: Iterable[Any], patterns: Sequence[str]) -> list[Any]:
    """The runs whose names the patterns leave over; all without any."""
    return [run for run in runs if not patterns or any(fnmatch(run.name, pattern) for pattern in patterns)]


def command(study: Study, doc: str, words: Sequence[str] | None = None) -> None:
    """Plans, runs, or writes the page."""
    from scanrl.seeds import read_seeds

    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("plan", "run", "one", "page"))
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="runs of these names, with *")
    parser.add_argument("--seeds", type=read_seeds, default=(0, 1, 2))
    parser.add_argument("--workers", type=int, default=1, help="runs at a time, on one thread each")
    parser.add_argument("--rows", type=Path, default=study.script.with_suffix(".jsonl"), help="where the rows are")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    if study.files is not None:
        parser.add_argument("--data", type=Path, help="folder of the recordings")
    chosen = parser.parse_args(words)
    if chosen.what == "page":
        rows = read_rows(chosen.rows)
        pages = {study.script.with_suffix(".md"): study.page(rows), **(study.also(rows) if study.also else {})}
        for file, text in pages.items():
            file.write_text(text, encoding="utf-8")
        return
    if chosen.what == "one":
        [run] = [run for run in study.planned(chosen.seeds) if run.name == chosen.run]
        folder = () if study.files is None else (chosen.data,)
        print(json.dumps({**run._asdict(), **study.row(run, *folder)}))
        return
    left = missing(named(study.planned(chosen.seeds), chosen.only), read_rows(chosen.rows))
    if chosen.what == "plan":
        print("\n".join(f"{run.name}, seed {run.seed}" for run in left))
        return
    words = ["-m", f"results.{study.script.stem}", "one"]
    if study.files is not None:
        fault = _fault(chosen.data, {study.files(run) for run in left})
        if fault:
            parser.error(fault)
        words += ["--data", str(chosen.data.absolute())]
    jobs = [(f"{run.name}, seed {run.seed}", [*words, "--seeds", str(run.seed), "--run", run.name]) for run in left]
    sys.exit(1 if append_missing(jobs, chosen.rows, chosen.workers) else 0)


def _fault(folder: Path | None, files: Iterable[str]) -> str:
    """What is wrong with the folder of the recordings; nothing if it holds these files."""
    if folder is None:
        return "--data: expected the folder of the recordings, got none"
    absent = sorted(file for file in files if not (folder / file).is_file())
    return f"--data: {folder}: expected {', '.join(absent)}, found none (leave them out with --only)" if absent else ""
