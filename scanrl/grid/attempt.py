"""One run of a grid: trained, or continued where it was cut, its checkpoints scored, and its row."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from scanrl.checkpoint import checkpoints_of, load_checkpoint
from scanrl.data import load
from scanrl.envs.reference_scores import score_source
from scanrl.evaluation import library_versions
from scanrl.grid.records import Records
from scanrl.grid.spec import Job, every_setting
from scanrl.preflight import bounded
from scanrl.run import Run, locked
from scanrl.scoring import score_run
from scanrl.training import resume, run_training, time_update
from scanrl.types import Context, DataError

__all__ = ["Stopped", "attempt", "failed_row", "run_path", "tidy"]

SCORES = "scores.jsonl"
"""In the run folder: what each checkpoint scored, one line for each way to remember and target return."""


class Stopped(RuntimeError):
    """A signal asked to stop during an evaluation; what was scored before is kept."""

    def __init__(self, number: int) -> None:
        super().__init__("stopped; the same command continues")
        self.exit_code = 128 + number


def run_path(folder: Path, job: Job) -> Path:
    """The run folder of a job in the folder of its grid."""
    return folder / "runs" / job.folder


def attempt(job: Job, folder: Path, *, progress: bool = False, stop: list[int] | None = None) -> dict[str, Any]:
    """Make a run and score it; what an earlier, interrupted attempt has done is not done again.

    Args:
        folder: the grid's; the run gets a folder of its own in it.
        progress: draw the training bar.
        stop: signals that arrived, see `scanrl.signals.stop_signals`; looked at after every step of an evaluation.

    Returns:
        The row: plain values, with everything the numbers depend on.

    Raises:
        Stopped, scanrl.training.Interrupted: a signal asked to stop; the next attempt continues.
        Exception: the run failed.
    """
    path = run_path(folder, job)
    resumed = (path / "config.yaml").exists()
    cpu, wall = time.process_time(), time.perf_counter()
    run = _trained(job, path, resumed, progress)
    spent = None if resumed else {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
    checkpoints = _scored(job, run, stop if stop is not None else [])
    return {**_about(job, run, checkpoints), "seconds": spent, "resumed": resumed, "checkpoints": checkpoints}


def failed_row(job: Job, reason: str) -> dict[str, Any]:
    """The row of a run that failed, with one line that says why."""
    return {**_named(job), "status": "failed", "reason": reason, "when": _now()}


def _trained(job: Job, path: Path, resumed: bool, progress: bool) -> Run:
    if resumed:
        _wait_until_free(path)
        try:
            return resume(path, data=job.task.data, progress=progress)
        except DataError as error:
            raise DataError(f"{error} (to make this run anew, delete {path})") from None
    shutil.rmtree(path, ignore_errors=True)  # killed before it had a configuration: nothing is lost
    return run_training(job.config(_steps(job)), job.task.data, out=path, progress=progress)


def _wait_until_free(path: Path, seconds: float = 30.0) -> None:
    """A process whose grid was killed stops after its update and may hold its run until then."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        try:
            with locked(path):
                return
        except DataError:
            time.sleep(0.2)


def _steps(job: Job) -> int:
    """Updates that the budget buys on this machine."""
    budget = job.budget
    if budget.updates is not None:
        return budget.updates
    dataset = bounded(load(job.task.data), job.task.env)
    clock = time.process_time if budget.cpu_seconds is not None else time.perf_counter
    seconds = budget.cpu_seconds if budget.cpu_seconds is not None else budget.wall_seconds
    assert seconds is not None
    return max(1, int(seconds / time_update(job.config(1), dataset, clock=clock)))


def _scored(job: Job, run: Run, stop: list[int]) -> list[dict[str, Any]]:
    """Held-out loss and scores of the checkpoints, in the order of their steps."""
    losses = {line["step"]: line["val/loss"] for line in run.metrics() if "val/loss" in line}
    players = [_Player(job, run, context, stop) for context in _contexts(job, run)]
    found = []
    for step in _steps_scored(job, run):
        lines = [{"context": player.context, "scores": player.scores(step)} for player in players]
        found.append({"step": step, "validation_loss": losses.get(step), "played": lines})
    return found


def _steps_scored(job: Job, run: Run) -> list[int]:
    """Of the checkpoints of a run those nearest to the places that divide it evenly; the last one is its end."""
    last, every, count = run.config.train.steps, run.config.train.checkpoint_every, job.scoring.count
    there = np.array(list(dict.fromkeys([*range(every, last + 1, every), last])))
    wanted = [last * part / count for part in range(1, count + 1)]
    return list(dict.fromkeys(int(there[np.abs(there - place).argmin()]) for place in wanted))


class _Player:
    """Scores of the checkpoints of a run that remembers in one way; each is written down once it is played.

    Args:
        stop: signals that arrived, looked at after every step.
    """

    def __init__(self, job: Job, run: Run, context: Context, stop: list[int]) -> None:
        self.job, self.run, self.stop = job, run, stop
        self.context: Context = context
        self.done = Records(run.path / SCORES, ("step", "context", "target", "score"))
        lines = [line for line in self.done.read() if line["context"] == context]
        self.known = {(line["step"], line["target"]): line["score"] for line in lines}

    def scores(self, step: int) -> list[dict[str, Any]]:
        """Of one checkpoint, one for each target; one alone for a policy that takes no target."""
        path = self.run.path / "checkpoints" / f"step-{step}"
        asked = self.job.task.targets if self.run.config.model.takes_target else ()
        return [self._score(path, step, target) for target in asked or ("auto",)]

    def _score(self, path: Path, step: int, target: float | Literal["auto"]) -> dict[str, Any]:
        self._pause()
        if (step, target) not in self.known:
            settings = self.run.config.eval
            (found,) = score_run(
                path,
                self.job.task.env,
                (target,),
                episodes=settings.episodes,
                context=self.context,
                sample=settings.sample,
                seed=settings.seed,
                num_envs=settings.num_envs,
                progress=self._pause,
            )
            score = _slim(found.to_json())
            self.done.append({"step": step, "context": self.context, "target": target, "score": score})
            self.known[step, target] = score
        return self.known[step, target]

    def _pause(self, *_: object) -> None:
        if self.stop:
            raise Stopped(self.stop[0])


def _slim(score: dict[str, Any]) -> dict[str, Any]:
    """What differs between the scores of a run; what they share stands in the row once."""
    return {name: score[name] for name in ("target_return", "returns", "lengths", "successes", "summary")}


def _contexts(job: Job, run: Run) -> list[Context]:
    """Ways to remember, each once."""
    found: list[Context] = []
    for context in job.scoring.contexts:
        if context == "own":
            found.append(run.config.eval.context)
        else:
            found.append(run.config.model.context if context == "window" else context)
    return list(dict.fromkeys(found))


def _about(job: Job, run: Run, checkpoints: list[dict[str, Any]]) -> dict[str, Any]:
    """What the numbers of a row depend on."""
    checkpoint, config = load_checkpoint(run.path), run.config
    asked = [score["target_return"] for score in checkpoints[-1]["played"][0]["scores"]]
    return {
        **_named(job),
        "status": "done",
        "fingerprint": checkpoint.about["fingerprint"],
        "env": config.env,
        "target_returns": [target for target in asked if target is not None],
        "normalized_by": score_source(config.env or ""),
        "episodes": config.eval.episodes,
        "eval_seed": config.eval.seed,
        "sample": config.eval.sample,
        "num_envs": config.eval.num_envs,
        "updates": config.train.steps,
        "batch_size": config.train.batch_size,
        "trained_context": config.model.context,
        "parameters": checkpoint.model().parameter_count(),
        "settings": every_setting(config),
        "versions": {**library_versions(), "python": platform.python_version()},
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "device": config.train.device,
        "revision": _revision(),
        "when": _now(),
    }


def _named(job: Job) -> dict[str, Any]:
    return {**dict(zip(("recipe", "task", "budget", "seed"), job.label, strict=True)), "id": job.id, "asked": job.asked}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _revision() -> str | None:
    """The git revision of the package, with `-dirty` where its files have changed; `None` outside a repository."""
    package = Path(__file__).parents[1]

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", *words], cwd=package, capture_output=True, text=True, check=False)
        except OSError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # A virtual environment may lie in somebody else's repository.
    if git("ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    # Files elsewhere in the repository, the rows of this grid among them, do not change what the package does.
    return f"{git('rev-parse', '--short', 'HEAD')}{'-dirty' if git('status', '--porcelain', '.') else ''}"


def tidy(folder: Path, job: Job, row: dict[str, Any]) -> None:
    """Remove a recorded run's checkpoints but the last one and the one with the lowest held-out loss."""
    losses = {one["step"]: one["validation_loss"] for one in row["checkpoints"] if one["validation_loss"] is not None}
    kept = {f"step-{step}" for step in (row["updates"], min(losses, key=losses.__getitem__, default=None))}
    for path in checkpoints_of(run_path(folder, job)):
        if path.name not in kept:
            aside = path.with_name(f".{path.name}.stale")  # what is half removed must not look like a checkpoint
            path.rename(aside)
            shutil.rmtree(aside, ignore_errors=True)
