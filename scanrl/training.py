"""Training a recipe on data: runs are begun, trained to the end, and resumed.

A resumed run equals an uninterrupted one bit for bit on the CPU (same machine, threads and torch): weights, optimiser,
random generators and sampler are all in the checkpoint, and nothing else decides.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

from scanrl import randomness
from scanrl.data import Dataset, load, write_store
from scanrl.learner import Diverged, Learner
from scanrl.loop import Interrupted, fit
from scanrl.preflight import bounded, check_machine, warn_of_short_table
from scanrl.run import Run, claim, free_path, is_finished, latest_checkpoint, locked, new_run, open_run, write_config
from scanrl.seeds import check_seeds, is_seeds_folder, new_seed_runs, open_seed_runs, seed_path
from scanrl.settings import RunConfig, check_acting, run_config
from scanrl.stats import Stats
from scanrl.types import DataError

__all__ = [
    "Diverged",
    "Interrupted",
    "check_run",
    "data_source",
    "resume",
    "resume_seeds",
    "run_seeds",
    "run_training",
    "time_update",
    "train",
]


@overload
def train(
    recipe: str,
    data: str | Path | Dataset,
    *,
    env: str | None = None,
    steps: int | None = None,
    seed: int | None = None,
    seeds: None = None,
    out: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> Run: ...


@overload
def train(
    recipe: str,
    data: str | Path | Dataset,
    *,
    env: str | None = None,
    steps: int | None = None,
    seeds: Iterable[int],
    out: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> list[Run]: ...


def train(
    recipe: str,
    data: str | Path | Dataset,
    *,
    env: str | None = None,
    steps: int | None = None,
    seed: int | None = None,
    seeds: Iterable[int] | None = None,
    out: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> Run | list[Run]:
    """Train a recipe on recorded episodes.

    Args:
        recipe: a name from `scanrl.models.recipes.RECIPES`, e.g. `"dmm-dc"`.
        data: a dataset, or where to load one (see `scanrl.load`).
        env: Gymnasium id to evaluate in; `None` trains without.
        steps: optimiser updates.
        seed: of weights, windows, dropout and the held-out split.
        seeds: several of them, e.g. `range(5)`, trained side by side: a run folder for each, in one folder. Each run
            equals the one that its seed gives alone; on a GPU, where all are one model, up to rounding.
        out: the run folder, or the folder of several; by default the first free one under `outputs/train/`.
        overrides: further settings by dotted key, e.g. `{"model.context": 64, "eval.episodes": 100}`.
        progress: draw a progress bar.

    Returns:
        The finished run; with `seeds` a list of them, in their order.

    Raises:
        DataError: data, settings or environment cannot be used; nothing has been written then.
        Interrupted: SIGTERM or Ctrl-C arrived; the run can be resumed.
        Diverged: the loss is no longer finite.
    """
    if seed is not None and seeds is not None:
        raise DataError(f"seeds: expected seed or seeds, got both (seed {seed})")
    short = {"env": env, "train.steps": steps, "train.seed": seed}
    changes = {k: v for k, v in short.items() if v is not None}
    config = run_config(recipe, changes, overrides or {})
    if seeds is None:
        return run_training(config, data, out=out, progress=progress)
    return run_seeds(config, seeds, data, out=out, progress=progress)


def run_training(
    config: RunConfig, data: str | Path | Dataset, *, out: str | Path | None = None, progress: bool = False
) -> Run:
    """`train` for a complete configuration."""
    return _start([config], data, out, progress)[0]


def run_seeds(
    config: RunConfig,
    seeds: Iterable[int],
    data: str | Path | Dataset,
    *,
    out: str | Path | None = None,
    progress: bool = False,
) -> list[Run]:
    """`train` with `seeds` for a complete configuration, whose own seed does not count. One seed is an ordinary run."""
    configs = [replace(config, train=replace(config.train, seed=seed)) for seed in check_seeds(seeds)]
    return _start(configs, data, out, progress)


def _start(
    configs: Sequence[RunConfig], data: str | Path | Dataset, out: str | Path | None, progress: bool
) -> list[Run]:
    """New runs that differ in their seed, trained to the end."""
    first, several = configs[0], len(configs) > 1
    check_acting(first)
    dataset = bounded(data if isinstance(data, Dataset) else load(data), first.env)
    path = free_path(first.recipe, Path(dataset.name).stem) if out is None else Path(out)
    # Data that lives only in memory is kept with the run: resuming needs nothing but the folder.
    kept = path.absolute() / "data"
    source = f"store:{kept}" if isinstance(data, Dataset) else _absolute(str(data))
    configs = [replace(config, data=source) for config in configs]
    claim(path)
    planned = [Run(seed_path(path, c.train.seed) if several else path, c) for c in configs]
    learners = _learners(planned, dataset)
    warn_of_short_table(learners[0].model)
    runs = new_seed_runs(path, configs) if several else [new_run(path, configs[0])]
    with _all_locked(runs):
        if isinstance(data, Dataset):
            write_store(data, kept)
        fit(path, learners, progress)
    return runs


def resume(path: str | Path, *, data: str | Path | None = None, progress: bool = False) -> Run:
    """Continue a run from its latest good checkpoint; a finished run is returned as it is, without its data.

    Args:
        path: the run folder.
        data: where its data is now, if that has moved; the run remembers it.

    Raises:
        DataError: `path` is no run, its data is gone or changed, or another process is training it.
        CorruptFile: no checkpoint is good.
    """
    if is_seeds_folder(path):
        raise DataError(f"{path}: expected a run folder, got one of several seeds: scanrl.resume_seeds continues them")
    run = _moved(open_run(path), data)
    _continue(run.path, [run], progress)
    return run


def resume_seeds(path: str | Path, *, data: str | Path | None = None, progress: bool = False) -> list[Run]:
    """Continue the runs that `train` with `seeds` began. One that is behind the others catches up first.

    `data` as for `resume`. Raises: as `resume`; DataError also if the runs differ in more than their seed.
    """
    runs = [_moved(run, data) for run in open_seed_runs(path)]
    _continue(Path(path), runs, progress)
    return runs


def _moved(run: Run, data: str | Path | None) -> Run:
    """The run with another place of its data."""
    return run if data is None else Run(run.path, replace(run.config, data=_absolute(str(data))))


def _continue(path: Path, runs: Sequence[Run], progress: bool) -> None:
    """The unfinished ones of `runs` to the end."""
    with _all_locked(runs):
        found = [(run, latest_checkpoint(run)) for run in runs]
        unfinished = [(run, at) for run, at in found if at is None or not is_finished(run, at)]
        if not unfinished:
            return
        first = unfinished[0][0]
        dataset = bounded(load(data_source(first)), first.config.env)
        learners = _learners([run for run, _ in unfinished], dataset)
        for learner, (_, checkpoint) in zip(learners, unfinished, strict=True):
            if checkpoint is not None:
                learner.restore(checkpoint)
        for run, _ in unfinished:  # their data are the right ones
            if run.config.data != open_run(run.path).config.data:
                write_config(run.path, run.config)
        fit(path, learners, progress)


def data_source(run: Run) -> str:
    """Where the episodes of a run are. Data kept with the run is found there even if the whole folder was moved."""
    parent = run.path.absolute().parent
    places = [run.path, *([parent] if is_seeds_folder(parent) else [])]
    return next((f"store:{place / 'data'}" for place in places if (place / "data").is_dir()), run.config.data)


def _learners(runs: Sequence[Run], dataset: Dataset) -> list[Learner]:
    check_machine(runs[0].config.train)
    stats = Stats.fit(dataset)
    return [Learner(run, dataset, stats) for run in runs]


@contextmanager
def _all_locked(runs: Sequence[Run]) -> Iterator[None]:
    with ExitStack() as stack:
        for run in runs:
            stack.enter_context(locked(run.path))
        yield


def check_run(config: RunConfig, dataset: Dataset) -> None:
    """Builds what such a run would begin with, and nothing on disk.

    Raises:
        DataError: the data lacks what the recipe learns from, or the model cannot be built.
    """
    _learners([Run(Path(), config)], dataset)


def time_update(
    config: RunConfig, dataset: Dataset, updates: int = 12, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Seconds of one update of this run on this machine: the median of a few by `clock`; nothing is kept."""
    learner = Learner(Run(Path(), config), dataset, Stats.fit(dataset))
    times = []
    with randomness.forked(config.train.device):
        for _ in range(updates):
            began = clock()
            learner.update()
            times.append(clock() - began)
    return sorted(times)[updates // 2]


def _absolute(uri: str) -> str:
    """The same data from another working directory."""
    scheme, colon, rest = uri.partition(":")
    if scheme == "minari" and colon:
        return uri
    path = Path(rest if colon and not Path(uri).exists() else uri).absolute()
    return f"{scheme}:{path}" if colon and not Path(uri).exists() else str(path)
