"""What the command shows on a terminal: tables, JSON, the training bar. Rich is imported only when it draws."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from statistics import fmean, pstdev
from types import TracebackType
from typing import Any

__all__ = ["TrainingBar", "print_json", "print_table", "text"]


class TrainingBar:
    """A live line: updates done, loss, updates per second, time left. Draws nothing unless asked."""

    def __init__(self, total: int, done: int, label: str, shown: bool) -> None:
        self._bar = _rich_bar() if shown else None
        if self._bar is not None:
            self._task = self._bar.add_task(label, total=total, completed=done, loss="", note="")
            self._loss: tuple[float, ...] | None = None

    def __enter__(self) -> TrainingBar:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, step: int, losses: Sequence[float]) -> None:
        """Show that `step` updates are done; `losses`, one per run, are smoothed for the eye: mean and spread."""
        if self._bar is not None:
            found = (fmean(losses), pstdev(losses))
            before = self._loss or found
            self._loss = tuple(0.98 * old + 0.02 * new for old, new in zip(before, found, strict=True))
            spread = f" ± {self._loss[1]:.4f}" if len(losses) > 1 else ""
            self._bar.update(self._task, completed=step, loss=f"loss {self._loss[0]:.4f}{spread}", note="")

    def note(self, text: str) -> None:
        """Say what goes on instead of training."""
        if self._bar is not None:
            self._bar.update(self._task, note=text)


def _rich_bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    class Speed(TextColumn):
        def render(self, task: Any) -> Any:
            task.fields["speed"] = f"{task.speed:.0f} steps/s" if task.speed else ""
            return super().render(task)

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        Speed("{task.fields[speed]}"),
        TextColumn("left"),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}"),
        console=Console(file=sys.stderr),
        refresh_per_second=4,
    )


def print_json(values: Any) -> int:
    print(json.dumps(values, indent=1))
    return 0


def print_table(head: Sequence[str], rows: Sequence[Sequence[Any]], right: Sequence[int] = ()) -> None:
    """Plain columns: they survive a pipe, a narrow window and a copy into a mail."""
    cells = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    for row in cells:
        padded = [c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        print("  ".join(padded).rstrip())


def text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return " ".join(text(v) for v in value)
    return str(value)
