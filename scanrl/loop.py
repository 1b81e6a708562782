"""The loop: updates of one run or of several side by side, and what is logged, saved and measured between them."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path

from scanrl import randomness
from scanrl.console import TrainingBar
from scanrl.kernels import keep_memory
from scanrl.learner import Learner
from scanrl.run import Metrics
from scanrl.signals import stop_signals
from scanrl.stacked import Stacked, stacking_pays

__all__ = ["Interrupted", "fit"]


class Interrupted(RuntimeError):
    """A signal asked to stop; a checkpoint of the last whole update was written."""

    def __init__(self, number: int, path: Path) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}; continue with: scanrl resume {path}")
        self.exit_code = 128 + number


def fit(path: Path, learners: Sequence[Learner], progress: bool) -> None:
    """Train to the end.

    Args:
        path: what is to be resumed after an interruption: the run, or the folder of several.
        learners: those that are not finished; they may stand at different steps.
        progress: draw a progress bar.

    Raises:
        Interrupted: a signal asked to stop.
        Diverged: a loss, gradient or weight of one of them is not finite.
    """
    settings, recipe = learners[0].settings, learners[0].run.config.recipe
    label = recipe if len(learners) == 1 else f"{recipe}, {len(learners)} seeds"
    keep_memory()
    bar = TrainingBar(settings.steps, min(one.step for one in learners), label, progress)
    with ExitStack() as stack:
        files = [(one.run.path, one.step, one.settings.tensorboard) for one in learners]
        loop = _Loop(path, learners, [stack.enter_context(closing(Metrics(*file))) for file in files], bar)
        stack.enter_context(randomness.forked(settings.device))
        stack.enter_context(stop_signals(loop.stop))
        stack.enter_context(bar)
        loop.run()


class _Loop:
    """Updates of one run or of several side by side, and what is logged, saved and measured between them.

    Runs may stand at different steps: those furthest behind are always the next to move.
    """

    def __init__(self, path: Path, learners: Sequence[Learner], metrics: Sequence[Metrics], bar: TrainingBar) -> None:
        self.path, self.learners, self.bar = path, learners, bar
        self.metrics = dict(zip(learners, metrics, strict=True))
        self.paces = {learner: _Pace(learner.step) for learner in learners}
        self.stacked: Stacked | None = None
        self.stop: list[int] = []

    def run(self) -> None:
        """To the end, or until a signal asks to stop. Torch's default generators are ours meanwhile."""
        for learner in self.learners:
            self._look(learner)
        while unfinished := [one for one in self.learners if one.step < one.settings.steps]:
            step = min(one.step for one in unfinished)
            moving = [one for one in unfinished if one.step == step]
            if self.stacked is None and len(moving) == len(unfinished) and stacking_pays(moving):
                self.stacked = Stacked(moving)  # and from here on they all move together
            self._update(moving)

    def _update(self, moving: Sequence[Learner]) -> None:
        """One update of each, and what is due after it."""
        found = [one.update() for one in moving] if self.stacked is None else self.stacked.update()
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
            metrics.write(step, one.validate())
            self._pause()
        every = config.eval.every
        due = step > 0 and ((last and every >= 0) or (every > 0 and step % every == 0))
        if due and config.env is not None and (step, "eval/return_mean") not in metrics.recorded:
            self.bar.note("evaluating")
            metrics.write(step, one.evaluate(config.env, self._pause))


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


class _Pace:
    """Updates per second since the last time it was asked."""

    def __init__(self, step: int) -> None:
        self.step, self.time = step, time.perf_counter()

    def rate(self, step: int) -> float:
        now = time.perf_counter()
        rate = (step - self.step) / max(now - self.time, 1e-9)
        self.step, self.time = step, now
        return round(rate, 3)
