"""Training: one loop of updates, with held-out loss, evaluation and checkpoints it can be resumed from.

A resumed run equals an uninterrupted one bit for bit on the CPU (same machine, threads and torch): weights, optimiser,
random generators and sampler are all in the checkpoint, and nothing else decides.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from scanrl.console import TrainingBar
from scanrl.data import Dataset, load, write_store
from scanrl.learner import Diverged, Learner
from scanrl.preflight import bounded, check_machine, warn_of_short_table
from scanrl.run import Metrics, Run, free_path, is_finished, latest_checkpoint, locked, new_run, open_run
from scanrl.settings import RunConfig, run_config
from scanrl.signals import stop_signals
from scanrl.stats import Stats

__all__ = ["Diverged", "Interrupted", "resume", "run_training", "time_update", "train"]


class Interrupted(RuntimeError):
    """A signal asked to stop; a checkpoint of the last whole update was written."""

    def __init__(self, number: int, path: Path) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}; continue with: scanrl resume {path}")
        self.exit_code = 128 + number


def train(
    recipe: str,
    data: str | Path | Dataset,
    *,
    env: str | None = None,
    steps: int | None = None,
    seed: int | None = None,
    out: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> Run:
    """Train a recipe on recorded episodes.

    Args:
        recipe: a name from `scanrl.models.recipes.RECIPES`, e.g. `"dmm-dc"`.
        data: a dataset, or where to load one (see `scanrl.load`).
        env: Gymnasium id to evaluate in; `None` trains without.
        steps: optimiser updates.
        seed: of weights, windows, dropout and the held-out split.
        out: the run folder; by default the first free one under `outputs/train/`.
        overrides: further settings by dotted key, e.g. `{"model.context": 64, "eval.episodes": 100}`.
        progress: draw a progress bar.

    Returns:
        The finished run.

    Raises:
        DataError: data, settings or environment cannot be used; nothing has been written then.
        Interrupted: SIGTERM or Ctrl-C arrived; the run can be resumed.
        Diverged: the loss is no longer finite.
    """
    short = {"env": env, "train.steps": steps, "train.seed": seed}
    changes = {k: v for k, v in short.items() if v is not None}
    return run_training(run_config(recipe, changes, overrides or {}), data, out=out, progress=progress)


def run_training(
    config: RunConfig, data: str | Path | Dataset, *, out: str | Path | None = None, progress: bool = False
) -> Run:
    """`train` for a complete configuration."""
    dataset = bounded(data if isinstance(data, Dataset) else load(data), config.env)
    path = free_path(config.recipe, Path(dataset.name).stem) if out is None else Path(out)
    # Data that lives only in memory is kept with the run: resuming needs nothing but the folder.
    kept = path.absolute() / "data"
    source = f"store:{kept}" if isinstance(data, Dataset) else _absolute(str(data))
    config = replace(config, data=source)
    check_machine(config.train)
    learner = Learner(Run(path, config), dataset, Stats.fit(dataset))
    warn_of_short_table(learner.model)
    run = new_run(path, config)
    with locked(run.path):
        if isinstance(data, Dataset):
            write_store(data, kept)
        _fit(path, [learner], progress)
    return run


def resume(path: str | Path, *, progress: bool = False) -> Run:
    """Continue a run from its latest good checkpoint; a finished run is returned as it is, without its data.

    Raises:
        DataError: `path` is no run, its data is gone or changed, or another process is training it.
        CorruptFile: no checkpoint is good.
    """
    run = open_run(path)
    kept = run.path / "data"
    with locked(run.path):
        checkpoint = latest_checkpoint(run)
        if checkpoint is not None and is_finished(run, checkpoint):
            return run
        # Data kept with the run is found there even if the whole folder was moved.
        dataset = bounded(load(f"store:{kept}" if kept.is_dir() else run.config.data), run.config.env)
        check_machine(run.config.train)
        learner = Learner(run, dataset, Stats.fit(dataset))
        if checkpoint is not None:
            learner.restore(checkpoint)
        _fit(run.path, [learner], progress)
    return run


def time_update(
    config: RunConfig, dataset: Dataset, updates: int = 12, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Seconds of one update of this run on this machine: the median of a few by `clock`; nothing is kept."""
    learner = Learner(Run(Path(), config), dataset, Stats.fit(dataset))
    times = []
    with torch.random.fork_rng(devices=[]):
        for _ in range(updates):
            began = clock()
            learner.update()
            times.append(clock() - began)
    return sorted(times)[updates // 2]


class _Loop:
    """Updates of one run or of several side by side, and what is logged, saved and measured between them.

    Runs may stand at different steps: those furthest behind are always the next to move.
    """

    def __init__(self, path: Path, learners: Sequence[Learner], metrics: Sequence[Metrics], bar: TrainingBar) -> None:
        self.path, self.learners, self.bar = path, learners, bar
        self.metrics = dict(zip(learners, metrics, strict=True))
        self.paces = {learner: _Pace(learner.step) for learner in learners}
        self.stop: list[int] = []

    def run(self) -> None:
        """To the end, or until a signal asks to stop. Torch's global generator is ours meanwhile."""
        for learner in self.learners:
            self._look(learner)
        while unfinished := [one for one in self.learners if one.step < one.settings.steps]:
            step = min(one.step for one in unfinished)
            self._update([one for one in unfinished if one.step == step])

    def _update(self, moving: Sequence[Learner]) -> None:
        """One update of each, and what is due after it."""
        found = [one.update() for one in moving]
        for one, (loss, norm) in zip(moving, found, strict=True):
            if one.step % one.settings.log_every == 0 or one.step == one.settings.steps:
                speed = self.paces[one].rate(one.step)
                values = {"train/loss": loss, "train/grad_norm": norm, "perf/steps_per_s": speed}
                self.metrics[one].write(one.step, values)
        self.bar.advance(moving[0].step, [loss for loss, _ in found])
        _save([x for x in moving if x.step % x.settings.checkpoint_every == 0 or x.step == x.settings.steps])
        self._pause()
        for one in moving:
            self._look(one)

    def _pause(self, *_: object) -> None:
        """Where a signal asked to stop: out, with checkpoints of the last whole updates."""
        if self.stop:
            _save([one for one in self.learners if one.saved != one.step])
            raise Interrupted(self.stop[0], self.path)

    def _look(self, one: Learner) -> None:
        """Validation and evaluation, where due and not recorded yet (a run may have been stopped in between)."""
        settings, config, step, metrics = one.settings, one.run.config, one.step, self.metrics[one]
        last = step == settings.steps
        validate_every = settings.validate_every or max(1, settings.steps // 10)
        due = step > 0 and (step % validate_every == 0 or last)
        if due and one.held_out is not None and (step, "val/loss") not in metrics.recorded:
            metrics.write(step, {"val/loss": one.validation_loss()})
            self._pause()
        due = step > 0 and (last or (config.eval.every > 0 and step % config.eval.every == 0))
        if due and config.env is not None and (step, "eval/return_mean") not in metrics.recorded:
            self.bar.note("evaluating")
            metrics.write(step, one.evaluate(config.env, self._pause))


def _fit(path: Path, learners: Sequence[Learner], progress: bool) -> None:
    """Train to the end; `path` is what a message of interruption tells to resume."""
    first = learners[0]
    bar = TrainingBar(first.settings.steps, first.step, first.run.config.recipe, progress)
    with ExitStack() as stack:
        files = [(one.run.path, one.step, one.settings.tensorboard) for one in learners]
        loop = _Loop(path, learners, [stack.enter_context(closing(Metrics(*file))) for file in files], bar)
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(stop_signals(loop.stop))
        stack.enter_context(bar)
        loop.run()


def _save(learners: Sequence[Learner]) -> None:
    """A checkpoint of each. One that cannot be written keeps none of the others from it, and costs no earlier one."""
    failure: Exception | None = None
    for one in learners:
        try:
            one.save()
        except Exception as error:
            failure = failure or error
    if failure is not None:
        raise failure
    for one in learners:
        one.prune()


def _absolute(uri: str) -> str:
    """The same data from another working directory."""
    scheme, colon, rest = uri.partition(":")
    if scheme == "minari" and colon:
        return uri
    path = Path(rest if colon and not Path(uri).exists() else uri).absolute()
    return f"{scheme}:{path}" if colon and not Path(uri).exists() else str(path)


class _Pace:
    """Updates per second since the last time it was asked."""

    def __init__(self, step: int) -> None:
        self.step, self.time = step, time.perf_counter()

    def rate(self, step: int) -> float:
        now = time.perf_counter()
        rate = (step - self.step) / max(now - self.time, 1e-9)
        self.step, self.time = step, now
        return round(rate, 3)
