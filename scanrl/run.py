"""`Run`: the folder of a training run: its configuration, metrics and checkpoints, and the lock that keeps it ours.

`config.yaml`, `metrics.jsonl` (one JSON object per line, each with `step`), `checkpoints/step-N/`; `data/` where
the episodes were handed over in memory, `tensorboard/` where it was asked for.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

from scanrl.checkpoint import Checkpoint, checkpoints_of, load_checkpoint, sweep
from scanrl.config import from_values, read_yaml, to_yaml
from scanrl.policy import Policy
from scanrl.settings import RunConfig
from scanrl.types import Context, DataError

__all__ = [
    "Metrics",
    "Run",
    "claim",
    "free_path",
    "is_finished",
    "latest_checkpoint",
    "locked",
    "new_run",
    "open_run",
    "point_at",
    "write_config",
]

OUTPUTS = Path("outputs/train")


class Run:
    """A training run on disk.

    Attributes:
        path: the folder.
        config: what it was started with.
    """

    def __init__(self, path: Path, config: RunConfig) -> None:
        self.path, self.config = path, config

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`, oldest first; a line torn by a kill is left out."""
        return list(_lines(self.path / "metrics.jsonl"))

    def checkpoint(self) -> Checkpoint:
        """The latest good checkpoint."""
        return load_checkpoint(self.path)

    def policy(self, *, target_return: float | None = None, context: Context = "recurrent") -> Policy:
        """The latest policy, on the CPU; `Policy.load(run.path, ...)` has the other options."""
        return Policy.load(self.path, target_return=target_return, context=context)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, recipe={self.config.recipe!r})"


def free_path(recipe: str, name: str) -> Path:
    """The first folder `outputs/train/<recipe>-<name>-<number>` that does not exist; `name` is the data's."""
    return next(p for n in count() if not (p := OUTPUTS / f"{recipe}-{name}-{n}").exists())


def claim(path: Path) -> None:
    """Raises `DataError` unless `path` is a new or empty folder."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise DataError(
            f"{path}: expected a new or empty folder, got one in use (scanrl resume {path} continues a run)"
        )


def new_run(path: Path, config: RunConfig) -> Run:
    """Create the folder of a run and write its configuration.

    Raises:
        DataError: the folder exists and is not empty, or cannot be written.
    """
    claim(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{path}: expected a folder that can be written, got: {error.strerror}") from None
    run = write_config(path, config)
    point_at(path)
    return run


def write_config(path: Path, config: RunConfig) -> Run:
    """Write the configuration of a run into its folder, in the place of an earlier one if there is one.

    Raises:
        DataError: the folder cannot be written; an earlier configuration is still there.
    """
    scratch = path / "config.tmp"
    try:
        with scratch.open("w", encoding="utf-8") as file:
            file.write(to_yaml(config))
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path / "config.yaml")
    except OSError as error:
        raise DataError(f"{path}: expected a folder that can be written, got: {error.strerror}") from None
    return Run(path, config)


def point_at(path: Path) -> None:
    """Let `outputs/train/last` point at a new folder, if that is where it is and links are allowed there."""
    link = OUTPUTS / "last"
    if path.parent == OUTPUTS:
        with contextlib.suppress(OSError):
            if link.is_symlink() or not link.exists():
                link.unlink(missing_ok=True)
                link.symlink_to(path.name, target_is_directory=True)


def open_run(path: str | Path) -> Run:
    """An existing run.

    Raises:
        DataError: `path` is no run folder, or its configuration does not fit this version.
    """
    path = Path(path)
    file = path / "config.yaml"
    if not file.is_file():
        raise DataError(
            f"{path}: expected a run folder (with config.yaml), got {'none' if path.exists() else 'nothing'}"
        )
    try:
        return Run(path, from_values(RunConfig, read_yaml(file)))
    except DataError as error:
        raise DataError(f"{file}: {error}") from None


def latest_checkpoint(run: Run) -> Checkpoint | None:
    """The latest good checkpoint; none if the run was killed before its first: it begins anew."""
    sweep(run.path)
    return run.checkpoint() if checkpoints_of(run.path) else None


def is_finished(run: Run, checkpoint: Checkpoint) -> bool:
    """Whether nothing is left to do: all updates were made, and what is measured after the last one is recorded."""
    recorded = {key for line in run.metrics() if line["step"] == checkpoint.step for key in line}
    if run.config.env is not None and run.config.eval.every >= 0:
        measured = "eval/return_mean" in recorded  # it comes after the validation loss
    else:
        measured = "val/loss" in recorded or run.config.train.validation == 0
    return checkpoint.step >= run.config.train.steps and measured


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the run folder for this process. The system lets go of the lock when the process ends, however it ends.

    Raises:
        DataError: another process holds it; it is named.
    """
    try:
        import fcntl
    except ImportError:  # Windows has no flock: two writers in one folder are then the user's care
        yield
        return
    with (path / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise DataError(f"{path}: expected a free run folder, got one locked by {file.read().strip()}") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


class Metrics:
    """Appends lines to `metrics.jsonl`, and to TensorBoard if asked.

    Args:
        path: the run folder.
        step: the step the run continues from; what was recorded after it, before a kill, is dropped.
        tensorboard: also write event files.
    """

    def __init__(self, path: Path, step: int, tensorboard: bool = False) -> None:
        file = path / "metrics.jsonl"
        self._events = _summary_writer(path, step) if tensorboard else None
        kept = [json.dumps(line) + "\n" for line in _lines(file) if line["step"] <= step]
        scratch = file.with_suffix(".tmp")
        scratch.write_text("".join(kept), encoding="utf-8")
        os.replace(scratch, file)
        self.recorded = {(line["step"], key) for line in map(json.loads, kept) for key in line}
        self._file = file.open("a", encoding="utf-8")

    def write(self, step: int, values: dict[str, float]) -> None:
        """One line: `step` and the values."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        if self._events is not None:
            for name, value in values.items():
                self._events.add_scalar(name, value, step)

    def close(self) -> None:
        self._file.close()
        if self._events is not None:
            self._events.close()


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    if not file.exists():
        return
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            values = json.loads(line)
            if isinstance(values, dict) and isinstance(values.get("step"), int):
                yield values


def _summary_writer(path: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise DataError("train.tensorboard: expected the package tensorboard: pip install 'scanrl[track]'") from None
    return SummaryWriter(str(path / "tensorboard"), purge_step=step + 1)
