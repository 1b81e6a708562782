"""What studies share: one run of training and acting, for equal processor time; rows in a file, cells of tables.

A study is a list of jobs; each is a process of its own and ends with one row, so that a study goes on where it was
stopped and never makes a run twice.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple, TypeVar

import numpy as np

from scanrl.data import Dataset
from scanrl.grid.records import Records
from scanrl.types import Context

__all__ = [
    "TASKS",
    "Job",
    "Task",
    "append_missing",
    "interval_cell",
    "missing",
    "provenance",
    "read_rows",
    "scores",
    "train_and_score",
]

ROOT = Path(__file__).parents[1]
EPISODES, EVAL_SEED = 20, 1000


class Task(NamedTuple):
    """A local data set with where it is played."""

    file: str
    env: str
    target: float


TASKS = {
    "hopper-medium": Task("hopper-medium-v4.hdf5", "Hopper-v4", 3600.0),
    "hopper-medium-replay": Task("hopper-medium-replay-v4.hdf5", "Hopper-v4", 3600.0),
    "walker2d-medium": Task("walker2d-medium-v4.hdf5", "Walker2d-v4", 5000.0),
    "antmaze-umaze-diverse": Task("antmaze-umaze-diverse-v4.hdf5", "antmaze-umaze-diverse-v4", 1.0),
}

Job = tuple[str, Sequence[str]]
"""What it is called, and the words behind `python` that print its row as their last line."""


def train_and_score(
    recipe: str,
    changes: dict[str, Any],
    dataset: Dataset,
    env: str,
    *,
    seconds: float,
    target: float | None,
    contexts: Sequence[Context],
) -> dict[str, Any]:
    """One run in this process, on one thread: what the row says of it, without what it is called.

    It trains for about `seconds` of processor time (the cost of an update is measured first), and its last checkpoint
    plays `EPISODES` episodes in each of the ways to act.
    """
    import torch

    from scanrl.evaluation import evaluate
    from scanrl.settings import run_config
    from scanrl.training import run_training, time_update

    torch.set_num_threads(1)
    changes = {**changes, "env": env}
    steps = max(1, int(seconds / time_update(run_config(recipe, changes), dataset, clock=time.process_time)))
    once = {"train.checkpoint_every": steps, "train.validate_every": steps, "eval.episodes": 1}
    config = run_config(recipe, changes, {"train.steps": steps, **once})
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        run = run_training(config, dataset, out=Path(folder) / "run")
        spent, acted = time.process_time() - began, {}
        for context in contexts:
            policy = run.policy(target_return=target, context=context)
            scores = evaluate(policy, env, episodes=EPISODES, seed=EVAL_SEED, num_envs=EPISODES).scores[0]
            acted[str(context)] = {"returns": scores.returns.tolist(), "lengths": scores.lengths.tolist()}
        losses = {name: value for line in run.metrics() for name, value in line.items() if name.startswith("val/")}
    return {
        "fingerprint": dataset.fingerprint,
        "env": env,
        "target_return": target,
        "episodes": EPISODES,
        "eval_seed": EVAL_SEED,
        "updates": steps,
        "cpu_seconds": round(spent, 1),
        "validation_loss": losses["val/loss"],
        "validation_loss_recurrent": losses.get("val/loss_recurrent"),
        "settings": changes,
        "acted": acted,
        **provenance(),
    }


def provenance() -> dict[str, Any]:
    """What a row says of where it was made, on one thread."""
    from scanrl.evaluation import library_versions

    words = ["git", "rev-parse", "--short", "HEAD"]
    return {
        "versions": library_versions(),
        "machine": f"{platform.machine()}, {platform.system()}, one thread",
        "revision": subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=False).stdout.strip(),
    }


def read_rows(file: Path) -> list[dict[str, Any]]:
    """The rows there are; a last line that was cut off in writing is none."""
    return Records(file).read()


Planned = TypeVar("Planned", bound=NamedTuple)


def missing(runs: Iterable[Planned], rows: Iterable[dict[str, Any]]) -> list[Planned]:
    """Those without a row, which has the fields of its run."""
    found, done = list(runs), list(rows)
    return [run for run in found if not any(all(row[k] == v for k, v in run._asdict().items()) for row in done)]


def scores(row: dict[str, Any], way: str) -> float:
    """Mean normalised score of a row, acting `"recurrent"` or on the `"window"`."""
    from scanrl.evaluation import normalize

    [key] = [key for key in row["acted"] if (key == "recurrent") == (way == "recurrent")]
    normalised = normalize(row["env"], row["acted"][key]["returns"])
    assert normalised is not None, row["env"]
    return float(np.mean(normalised))


def append_missing(jobs: Sequence[Job], file: Path, workers: int) -> int:
    """Runs the jobs, some of them at a time, and appends their rows; tells the number of those that failed."""
    lock, failed, rows = Lock(), [], Records(file)

    def one(job: Job) -> None:
        name, words = job
        found = subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=ROOT, check=False)
        with lock:
            if found.returncode:
                failed.append(name)
                print(f"{name}: failed: {found.stderr.strip()[-500:]}", file=sys.stderr, flush=True)
                return
            rows.append(json.loads(found.stdout.splitlines()[-1]))
            print(f"{name}: done", flush=True)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(one, jobs))
    return len(failed)


def interval_cell(values: Sequence[float], digits: int = 1) -> str:
    """The 95 % interval of the mean of some seeds, as a table shows it."""
    from scanrl.intervals import mean, stratified_bootstrap

    interval = stratified_bootstrap(np.array(values), statistic=mean)
    return "1 seed" if interval is None else f"{interval[0]:.{digits}f} to {interval[1]:.{digits}f}"
