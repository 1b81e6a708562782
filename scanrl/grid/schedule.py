"""All runs of a grid, each once: what is done is skipped, what was cut is continued, what fails is recorded."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import torch

from scanrl.data import load
from scanrl.failures import describe_failure
from scanrl.grid.attempt import Stopped, attempt, failed_row, run_path, tidy
from scanrl.grid.records import Records
from scanrl.grid.spec import Grid, Job, Task, differs, every_setting, other_setting, within
from scanrl.preflight import bounded
from scanrl.run import locked
from scanrl.signals import stop_signals
from scanrl.training import Interrupted, check_run
from scanrl.types import DataError

__all__ = ["ROWS", "Outcome", "read_rows", "run_grid"]

ROWS = "rows.jsonl"
"""In the folder of a grid: one line for each finished or failed run."""

Tell = Callable[[str], object]


class Outcome(NamedTuple):
    """How the runs of a grid stand: those that are done, and those whose latest attempt failed."""

    done: int
    failed: int


def read_rows(folder: str | Path) -> list[dict[str, Any]]:
    """The latest row of each run of a grid, in the order in which they were first recorded.

    Raises:
        DataError: the folder holds no rows.
        CorruptFile: a line is none.
    """
    file = Path(folder) / ROWS
    if not file.is_file():
        raise DataError(f"{folder}: expected the folder of a grid (with {ROWS}), got none")
    return list(_latest(_records(file)).values())


def run_grid(
    grid: Grid,
    folder: str | Path,
    *,
    processes: int = 1,
    retry_failed: bool = False,
    tell: Tell = print,
    progress: bool = False,
) -> Outcome:
    """Run what the folder does not hold yet.

    Args:
        folder: new, or of an earlier call; the grid may have grown since. Interrupted runs continue.
        processes: runs side by side, the machine's cores divided among them; 1 runs them in this process.
        retry_failed: also run again what has failed.
        tell: gets one line at each start and end of a run, with the time left for the whole grid.
        progress: draw the training bar of the run (one process only).

    Raises:
        DataError: a setting, environment or data set cannot be used, the folder's rows were made with other settings,
            or another process works in it. Nothing has been run then.
        Stopped: a signal asked to stop; the same call continues.
    """
    folder = Path(folder)
    jobs = grid.jobs()
    rows = _records(folder / ROWS)
    _check(_waiting(rows, jobs, retry_failed))
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        waiting = _waiting(rows, jobs, retry_failed)
        board = _Board(jobs, waiting, processes, tell)
        received: list[int] = []
        with stop_signals(received):
            if processes > 1:
                _side_by_side(waiting, folder, rows, board, processes, received)
            else:
                _one_by_one(waiting, folder, rows, board, progress, received)
        status = {label: row["status"] for label, row in _latest(rows).items()}
    ends = [status.get(job.label) for job in jobs]
    return Outcome(ends.count("done"), ends.count("failed"))


def _check(jobs: Sequence[Job]) -> None:
    """What would fail in every one of its runs is refused before anything is written."""
    tasks: dict[Task, dict[str, Job]] = {}
    for job in jobs:
        tasks.setdefault(job.task, {})[job.label[0]] = job
    for task, recipes in tasks.items():
        dataset = bounded(load(task.data), task.env)
        for name, job in recipes.items():
            within(f"recipes: {name}", check_run, job.config(1), dataset)


def _records(file: Path) -> Records:
    return Records(file, ("recipe", "task", "budget", "seed", "status", "asked"))


def _latest(rows: Records) -> dict[tuple[Any, ...], dict[str, Any]]:
    """The latest row of each run, by recipe, task, budget and seed as the grid calls them."""
    return {(row["recipe"], row["task"], row["budget"], row["seed"]): row for row in rows.read()}


def _waiting(rows: Records, jobs: Sequence[Job], retry_failed: bool) -> list[Job]:
    """The jobs to run."""
    latest = _latest(rows)
    done = {label[:3]: row for label, row in latest.items() if row["status"] == "done"}
    waiting = []
    for job in jobs:
        row = done.get(job.label[:3])  # of any seed: the runs of a line of the table differ in nothing else
        if row is not None:
            _same(rows, job, row)
        row = latest.get(job.label)
        # What failed as it was asked for then may be asked for otherwise now.
        if row is None or (row["status"] == "failed" and (retry_failed or row["asked"] != job.asked)):
            waiting.append(job)
    return waiting


def _same(rows: Records, job: Job, row: Mapping[str, Any]) -> None:
    """Raises where a run would not be of the same kind as the one that is recorded, whatever their seeds."""
    asked = {**row["asked"], "seed": job.seed}
    other, since = differs(job.asked, asked), ""
    if other is None:
        changed = other_setting(every_setting(job.config(1)), row)
        if changed is None:
            return
        other, now, before = changed
        since = f" since {job.recipe} has changed"
    else:
        before, now = asked.get(other), job.asked.get(other)
    if other == "settings":
        settings = asked["settings"]
        other = differs(job.settings, settings) or other
        before, now = settings.get(other, "its default"), job.settings.get(other, "its default")
    raise DataError(
        f"{rows.path}: {job}: {other}: expected {before!r} as in its row, got {now!r}{since} "
        "(another name or --out keeps both)"
    )


class _Board:
    """What is told about the grid as a whole: how far it is, and how long the rest will take."""

    def __init__(self, jobs: Sequence[Job], waiting: Sequence[Job], processes: int, tell: Tell) -> None:
        self.total, self.processes, self.tell = len(jobs), processes, tell
        self.left, self.begun = list(waiting), len(jobs) - len(waiting)
        self.took: list[tuple[tuple[str, ...], float]] = []
        before = self.total - len(waiting)
        self.tell(f"{self.total} runs, {len(waiting)} to go" + (f", {before} recorded before" if before else ""))

    def started(self, job: Job) -> None:
        self.begun += 1
        self.tell(f"run {self.begun} of {self.total}: {job}{self._rest()}")

    def ended(self, job: Job, seconds: float, what: str) -> None:
        self.left.remove(job)
        self.took.append((job.label[:3], seconds))
        done = f"{self.total - len(self.left)} of {self.total} done"
        self.tell(f"{done}: {job}: {what}, {_span(seconds)}{self._rest()}")

    def _rest(self) -> str:
        """Time left: of like runs the mean so far, of others the mean of all."""
        if not self.left or not self.took:
            return ""
        overall = sum(seconds for _, seconds in self.took) / len(self.took)
        expected = 0.0
        for job in self.left:
            like = [seconds for label, seconds in self.took if label == job.label[:3]]
            expected += sum(like) / len(like) if like else overall
        return f"; about {_span(expected / self.processes)} left"


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _one_by_one(
    jobs: Sequence[Job], folder: Path, rows: Records, board: _Board, progress: bool, received: list[int]
) -> None:
    """Run the jobs in this process."""
    for job in jobs:
        if received:
            raise Stopped(received[0])
        began = time.perf_counter()
        board.started(job)
        try:
            row = attempt(job, folder, progress=progress, stop=received)
        except Stopped:
            raise
        except Interrupted as error:
            raise Stopped(error.exit_code - 128) from None
        except Exception as error:
            row = failed_row(job, describe_failure(error)[1])
        _record(job, row, folder, rows, board, time.perf_counter() - began)


def _record(job: Job, row: dict[str, Any], folder: Path, rows: Records, board: _Board, seconds: float) -> None:
    """Write the row down and say what came out."""
    rows.append(row)
    if row["status"] == "failed":
        board.ended(job, seconds, f"failed: {row['reason']}")
    else:
        tidy(folder, job, row)
        board.ended(job, seconds, _result(row))


def _result(row: dict[str, Any]) -> str:
    """The last checkpoint's first score, for the eye."""
    summary = row["checkpoints"][-1]["played"][0]["scores"][0]["summary"]
    score = summary.get("eval/normalized_score")
    return f"return {summary['eval/return_mean']:.1f}" + ("" if score is None else f", score {score:.1f}")


def _side_by_side(
    jobs: Sequence[Job], folder: Path, rows: Records, board: _Board, processes: int, received: list[int]
) -> None:
    """Run the jobs in processes of their own, so many at a time."""
    spawn = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    threads = max(1, min(torch.get_num_threads(), (os.cpu_count() or 1) // processes))
    waiting = list(jobs)
    running: dict[Connection, tuple[Job, BaseProcess, float]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < processes and not received:
                job, (ours, theirs) = waiting.pop(0), spawn.Pipe(duplex=False)
                process = spawn.Process(target=_child, args=(job, folder, theirs, threads))
                board.started(job)
                process.start()
                theirs.close()  # so that a child that dies is the end of the pipe
                running[ours] = (job, process, time.perf_counter())
            for ours in wait(list(running), timeout=0.2):
                assert isinstance(ours, Connection)
                job, process, began = running.pop(ours)
                row = _from_child(job, ours, process, run_path(folder, job))
                if row is not None:
                    _record(job, row, folder, rows, board, time.perf_counter() - began)
            if received:
                raise Stopped(received[0])
    finally:
        for _, process, _ in running.values():
            process.terminate()
        for _, process, _ in running.values():
            process.join()


def _from_child(job: Job, ours: Connection, process: BaseProcess, path: Path) -> dict[str, Any] | None:
    """The row a child sent; `None` if a signal stopped it, which is no failure of the run."""
    row = failed_row(job, "")
    with suppress(EOFError):
        row = ours.recv()
    process.join()
    if row is not None and row.get("reason") == "":
        code = process.exitcode or 0
        cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        row["reason"] = f"{path}: its process ended without a result: {cause}"
    return row


def _child(job: Job, folder: Path, theirs: Connection, threads: int) -> None:
    """A process of one job. It stops with its parent, so that nothing goes on unseen in a folder that looks free."""
    torch.set_num_threads(threads)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=follow, daemon=True).start()
    received: list[int] = []
    with stop_signals(received):
        try:
            row: dict[str, Any] | None = attempt(job, folder, stop=received)
        except (Stopped, Interrupted, KeyboardInterrupt):
            row = None
        except Exception as error:
            row = failed_row(job, describe_failure(error)[1])
        with suppress(OSError):  # the parent may be gone
            theirs.send(row)
