"""The demonstration: bundled recordings to a policy in its environment and a report, in one call.

The data is real: episodes of Hopper-v5 that the project recorded itself (see `scanrl/bundled/provenance.json`).
"""

from __future__ import annotations

import shutil
import time
from importlib.resources import as_file, files
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from scanrl.config import override, to_yaml
from scanrl.data import Dataset, load
from scanrl.evaluation import Evaluation, evaluate, library_versions, normalize
from scanrl.report import Curve, NextStep, Report, Row, describe_machine, write_report
from scanrl.rollout import RandomActor, environment_spec
from scanrl.run import Run
from scanrl.settings import RunConfig, run_config
from scanrl.training import run_training, time_update
from scanrl.types import DataError

__all__ = ["ENV", "RECIPE", "bundled", "run_demo"]

ENV = "Hopper-v5"
RECIPE = "dmm-dc"
CLONING_SHARE = 1 / 3  # of the time, which is more updates than the sequence model makes


def bundled(name: str = "hopper-medium") -> Dataset:
    """A data set that ships with the package: `hopper-medium` or `hopper-replay`, Hopper-v5.

    Raises:
        DataError: there is no such data set.
    """
    folder = files("scanrl") / "bundled"
    known = sorted(entry.name.removesuffix(".hdf5") for entry in folder.iterdir() if entry.name.endswith(".hdf5"))
    if name not in known:
        raise DataError(f"bundled: expected one of {', '.join(known)}, got {name!r}")
    with as_file(folder / f"{name}.hdf5") as path:
        return load(f"d4rl:{path}")


def run_demo(out: Path, *, seconds: float = 75.0, episodes: int = 20, seed: int = 0) -> Path:
    """Train, play, compare, write `out/report.html`; returns its path.

    Args:
        out: folder of the run; one that an earlier demo left is replaced.
        seconds: wall clock for training the sequence model.
        episodes: episodes per policy.
        seed: seed of weights, windows and episodes.

    Raises:
        DataError: MuJoCo is missing, or `out` holds something that is no demo.
    """
    console, began = Console(), time.perf_counter()
    if find_spec("mujoco") is None:
        raise DataError(f"demo: expected MuJoCo for {ENV}: pip install 'scanrl[mujoco]'")
    _clear(out)
    dataset = bundled()
    console.print(f"[bold]1/4[/] {dataset.name}: {len(dataset)} recorded episodes, {dataset.steps:,} steps of {ENV}")
    console.print("[bold]2/4[/] Decision MetaMamba")
    run = _train(dataset, run_config(RECIPE, {"train.seed": seed}), out / "run", seconds, console)
    console.print("[bold]3/4[/] behaviour cloning, for comparison")
    cloning = _train(
        dataset, run_config("bc", {"train.seed": seed}), out / "behaviour-cloning", CLONING_SHARE * seconds, console
    )
    console.print(f"[bold]4/4[/] playing {episodes} episodes of {ENV} with each, and with random actions")
    played = {
        "policy": _play(run, episodes, seed),
        "cloning": _play(cloning, episodes, seed),
        "random": evaluate(RandomActor(environment_spec(ENV), seed), ENV, episodes=episodes, seed=seed),
    }
    report = _report(run, dataset, played, seed)
    path = out / "report.html"
    write_report(path, report)
    _tell(console, report, path, run, time.perf_counter() - began)
    return path


def _clear(out: Path) -> None:
    """Make room: only folders that look like a demo's own are removed."""
    if not out.exists():
        return
    strange = [p.name for p in out.iterdir() if p.name not in ("run", "behaviour-cloning", "report.html")]
    if strange:
        raise DataError(f"{out}: expected a new folder or an earlier demo, got one that holds {strange[0]!r}")
    for name in ("run", "behaviour-cloning"):
        shutil.rmtree(out / name, ignore_errors=True)


def _train(dataset: Dataset, config: RunConfig, out: Path, seconds: float, console: Console) -> Run:
    """A run of as many updates as fit into `seconds` on this machine, with one thread or all, whichever is faster."""
    every = torch.get_num_threads()
    pace = {}
    for threads in {1, every}:
        torch.set_num_threads(threads)
        pace[threads] = time_update(config, dataset)
    best = min(pace, key=lambda threads: pace[threads])
    torch.set_num_threads(best)
    steps = max(20, int(seconds / pace[best]))
    config = override(config, {"train.steps": steps, "train.checkpoint_every": steps})
    context = config.model.context
    console.print(f"    training {config.recipe}: {steps} updates on windows of {context} step{'s' * (context > 1)}")
    try:
        return run_training(config, dataset, out=out, progress=True)
    finally:
        torch.set_num_threads(every)


def _play(run: Run, episodes: int, seed: int) -> Evaluation:
    policy = run.policy()  # asks for the best return of the data
    return evaluate(
        policy, ENV, episodes=episodes, seed=seed, num_envs=episodes, dataset=run.checkpoint().about["fingerprint"]
    )


def _report(run: Run, dataset: Dataset, played: dict[str, Evaluation], seed: int) -> Report:
    rows = [
        Row.of("Decision MetaMamba", "policy", played["policy"].trajectories[0], RECIPE),
        Row.of("Behaviour cloning", "baseline", played["cloning"].trajectories[0], "MLP on the same data"),
        Row("Data", "data", dataset.returns, dataset.lengths, "the recorded episodes"),
        Row.of("Random", "random", played["random"].trajectories[0], "uniform actions"),
    ]
    metrics, target = run.metrics(), played["policy"].scores[0].target_return
    return Report(
        title=f"Decision MetaMamba on {ENV}",
        env_id=ENV,
        rows=rows,
        target_return=target,
        train_loss=_curve(metrics, "train/loss"),
        validation_loss=_curve(metrics, "val/loss"),
        config=to_yaml(run.config),
        provenance={
            "data": f"{dataset.name}, {len(dataset)} episodes, {dataset.steps} steps",
            "data fingerprint": dataset.fingerprint,
            "environment": ENV,
            "acting": f"state carried, target return {target:g} (the best of the data)",
            "seeds": f"training {seed}, episodes {seed}",
            "versions": ", ".join(f"{k} {v}" for k, v in library_versions().items()),
            "machine": describe_machine(),
        },
        next_steps=[
            NextStep("Train longer", f"scanrl demo --seconds 600 --out {run.path.parent}-long"),
            NextStep("Ask for other returns", f"scanrl eval {run.path} --env {ENV} --sweep-targets"),
            NextStep("Train on your own logs", "scanrl train dmm-dc --data d4rl:your_file.hdf5"),
        ],
    )


def _curve(metrics: list[dict[str, float]], name: str) -> Curve:
    lines = [line for line in metrics if name in line]
    return Curve(np.array([line["step"] for line in lines]), np.array([line[name] for line in lines]))


def _tell(console: Console, report: Report, path: Path, run: Run, seconds: float) -> None:
    table = Table("", "return", "normalised", "episode length", "episodes", title=f"{ENV}, {seconds:.0f} s in all")
    for row in report.rows:
        normalised = normalize(ENV, row.returns)
        assert normalised is not None and row.lengths is not None
        cells = (f"{row.returns.mean():.0f} ± {row.returns.std():.0f}", f"{normalised.mean():.1f}")
        table.add_row(row.name, *cells, f"{row.lengths.mean():.0f}", str(len(row.returns)))
    console.print(table)
    console.print(f"report: {path}")
    console.print(f"policy: {run.path}")
    console.print("try next:")
    for step in report.next_steps:
        console.print(f"  {step.text}: [bold]{step.command}[/]")
