"""Training: one loop over random windows, with held-out loss, evaluation and checkpoints it can be resumed from.

A resumed run equals an uninterrupted one bit for bit on the CPU (same machine, threads and torch): weights, optimiser,
random generators and sampler are all in the checkpoint, and nothing else decides.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scanrl import randomness
from scanrl.batch import Batch
from scanrl.checkpoint import Checkpoint, prune, save_checkpoint
from scanrl.console import TrainingBar
from scanrl.data import Dataset, load, write_store
from scanrl.data.windows import WindowSampler, iterate_windows
from scanrl.evaluation import evaluate, library_versions
from scanrl.graphs import CudaGraph, Replayed, graphs_wanted
from scanrl.models.decision import DecisionModel
from scanrl.optimizer import adamw, learning_rate, load_optimizer, optimizer_tensors, set_learning_rate
from scanrl.policy import Policy
from scanrl.preflight import bounded, check_machine, warn_of_short_table
from scanrl.run import Metrics, Run, free_path, is_finished, latest_checkpoint, locked, new_run, open_run
from scanrl.settings import RunConfig, TrainConfig, run_config
from scanrl.signals import stop_signals
from scanrl.stats import Stats
from scanrl.types import DataError

__all__ = ["Diverged", "Interrupted", "resume", "run_training", "time_update", "train"]


class Diverged(RuntimeError):
    """The loss or its gradient stopped being finite; the checkpoints hold the weights from before."""


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
    trainer = _Trainer(Run(path, config), dataset, _new_model(config, dataset), progress)
    warn_of_short_table(trainer.model)
    run = new_run(path, config)
    with locked(run.path):
        if isinstance(data, Dataset):
            write_store(data, kept)
        trainer.fit()
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
        trainer = _Trainer(run, dataset, _new_model(run.config, dataset), progress)
        if checkpoint is not None:
            trainer.restore(checkpoint)
        trainer.fit()
    return run


def time_update(
    config: RunConfig, dataset: Dataset, updates: int = 12, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Seconds of one update of this run on this machine: the median of a few by `clock`; nothing is kept."""
    trainer = _Trainer(Run(Path(), config), dataset, _new_model(config, dataset), False)
    times = []
    with randomness.forked(config.train.device):
        for _ in range(updates):
            began = clock()
            trainer._update()
            times.append(clock() - began)
    return sorted(times)[updates // 2]


class _Trainer:
    """Everything a run changes while it goes on."""

    def __init__(self, run: Run, dataset: Dataset, model: DecisionModel, progress: bool) -> None:
        self.run, self.dataset, self.progress = run, dataset, progress
        self.settings: TrainConfig = run.config.train
        check_machine(self.settings)
        self.model = model.to(self.settings.device).train()
        held_out = self.settings.validation > 0 and len(dataset) > 1
        parts = dataset.split(self.settings.validation, self.settings.seed) if held_out else (dataset, None)
        self.training, self.held_out = parts
        context = run.config.model.context
        self.sampler = WindowSampler(self.training, context, self.settings.batch_size, self.settings.seed)
        self.optimizer = adamw(self.model, self.settings)
        self.random = randomness.seeded(self.settings.seed, self.settings.device)  # as the last update left it
        device = torch.device(self.settings.device)
        wanted = graphs_wanted(device)
        self._replayed = Replayed(self._learn, "the training update", CudaGraph(device), device) if wanted else None
        self.step = self.saved = 0
        self.stop: list[int] = []

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take over the state of a checkpoint."""
        recorded, found = checkpoint.about.get("fingerprint"), self.dataset.fingerprint
        if recorded != found:
            raise DataError(f"{self.run.config.data}: fingerprint: expected {str(recorded)[:12]}…, got {found[:12]}…")
        if checkpoint.config != self.run.config.model:
            raise DataError(f"{self.run.path / 'config.yaml'}: model: expected the checkpoint's, got another network")
        _check_resumable(checkpoint, self.settings.device)
        self.model.load_state_dict(checkpoint.model().state_dict())
        load_optimizer(self.optimizer, self.model, checkpoint)
        self.random = {name: checkpoint.optimizer[name] for name in randomness.names(self.settings.device)}
        try:
            self.sampler.load_state_dict(checkpoint.progress["sampler"])
        except ValueError as error:
            raise DataError(f"{checkpoint.path / 'train/state.json'}: {error}") from None
        self.step = self.saved = checkpoint.step

    def fit(self) -> None:
        """The loop. Dropout draws from torch's global generator, so that one is ours while the loop runs."""
        settings, run = self.settings, self.run
        bar = TrainingBar(settings.steps, self.step, run.config.recipe, self.progress)
        validate_every = settings.validate_every or max(1, settings.steps // 10)
        pace = _Pace(self.step)
        with (
            closing(Metrics(run.path, self.step, settings.tensorboard)) as metrics,
            randomness.forked(settings.device),
            stop_signals(self.stop),
            bar,
        ):
            randomness.restore(self.random, settings.device)
            self._look(metrics, validate_every, bar)
            while self.step < settings.steps:
                loss, norm = self._update()
                if self.step % settings.log_every == 0 or self.step == settings.steps:
                    speed = pace.rate(self.step)
                    values = {"train/loss": loss, "train/grad_norm": norm, "perf/steps_per_s": speed}
                    metrics.write(self.step, values)
                bar.advance(self.step, loss)
                if self.step % settings.checkpoint_every == 0 or self.step == settings.steps:
                    self._save()
                self._pause()
                self._look(metrics, validate_every, bar)

    def _pause(self, *_: object) -> None:
        """Where a signal asked to stop: out, with a checkpoint of the last whole update."""
        if self.stop:
            if self.saved != self.step:
                self._save()
            raise Interrupted(self.stop[0], self.run.path)

    def _update(self) -> tuple[float, float]:
        """One optimiser step; the loss before it and the gradient's norm before clipping."""
        batch = self.sampler.sample()
        rate = learning_rate(self.step, self.settings)
        if self._replayed is None:
            loss, norm = self._gradients(batch.to(self.settings.device))
        else:
            set_learning_rate(self.optimizer, rate)
            loss, norm = self._replayed(*batch)
        value, size = torch.stack([loss, norm]).tolist()  # one wait for the device
        if not (math.isfinite(value) and math.isfinite(size)):
            problem = f"loss {value}, gradient norm {size}"
            raise Diverged(
                f"{self.run.path}: update {self.step + 1}: expected a finite loss and gradient, got {problem}"
            )
        if self._replayed is None:
            set_learning_rate(self.optimizer, rate)
            self.optimizer.step()
        self.step += 1
        self.random = randomness.states(self.settings.device)
        return value, size

    def _gradients(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Clipped gradients in the parameters; the loss, and the norm before clipping."""
        loss = self.model.loss(batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        return loss.detach(), torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)

    def _learn(self, *columns: Tensor) -> tuple[Tensor, Tensor]:
        """A whole update as it is recorded. It cannot stop half way, so that a loss that is not finite shows after."""
        loss, norm = self._gradients(Batch(*columns))
        self.optimizer.step()
        return loss, norm

    def _look(self, metrics: Metrics, validate_every: int, bar: TrainingBar) -> None:
        """Validation and evaluation, where due and not recorded yet (a run may have been stopped in between)."""
        settings, run, step = self.settings, self.run.config, self.step
        last = step == settings.steps
        due = step > 0 and (step % validate_every == 0 or last)
        if due and self.held_out is not None and (step, "val/loss") not in metrics.recorded:
            metrics.write(step, {"val/loss": self._validation_loss(self.held_out)})
            self._pause()
        due = step > 0 and (last or (run.eval.every > 0 and step % run.eval.every == 0))
        if due and run.env is not None and (step, "eval/return_mean") not in metrics.recorded:
            bar.note("evaluating")
            # An environment may draw from torch's global generator; neither updates nor checkpoints may notice.
            with randomness.forked(settings.device):
                metrics.write(step, self._evaluate(run.env))

    def _validation_loss(self, held_out: Dataset) -> float:
        """Mean loss over all held-out steps, each seen once."""
        total, count = 0.0, 0
        self.model.eval()
        with torch.inference_mode():
            for batch in iterate_windows(held_out, self.run.config.model.context, 4 * self.settings.batch_size):
                valid = int(batch.mask.sum())
                total += float(self.model.loss(batch.to(self.settings.device))) * valid
                count += valid
        self.model.train()
        return total / max(count, 1)

    def _evaluate(self, env: str) -> dict[str, float]:
        settings = self.run.config.eval
        policy = Policy(self.model, context=settings.context)
        scores = evaluate(
            policy,
            env,
            episodes=settings.episodes,
            seed=settings.seed,
            targets=settings.targets or None,  # none: the best of the data, or no target where the model takes none
            num_envs=settings.num_envs,
            progress=self._pause,
        )
        self.model.train()
        return scores.summary()

    def _save(self) -> None:
        for name, tensor in self.model.state_dict().items():
            if not tensor.isfinite().all():
                raise Diverged(f"{self.run.path}: update {self.step}: expected finite weights, got others in {name}")
        about = {
            "recipe": self.run.config.recipe,
            "data": self.run.config.data,
            "fingerprint": self.dataset.fingerprint,
            "env": self.run.config.env,
            "versions": library_versions(),
        }
        tensors = {**optimizer_tensors(self.optimizer, self.model), **self.random}
        save_checkpoint(
            self.run.path / "checkpoints", self.step, self.model, about, tensors, {"sampler": self.sampler.state_dict()}
        )
        self.saved = self.step
        prune(self.run.path, self.settings.keep, self.step)


def _new_model(config: RunConfig, dataset: Dataset) -> DecisionModel:
    return DecisionModel(config.model, dataset.spec, Stats.fit(dataset), seed=config.train.seed)


def _absolute(uri: str) -> str:
    """The same data from another working directory."""
    scheme, colon, rest = uri.partition(":")
    if scheme == "minari" and colon:
        return uri
    path = Path(rest if colon and not Path(uri).exists() else uri).absolute()
    return f"{scheme}:{path}" if colon and not Path(uri).exists() else str(path)


def _check_resumable(checkpoint: Checkpoint, device: str) -> None:
    """A run must not go on with half of its state: it would differ, silently, from one that was not interrupted."""
    there = {
        "optimizer": any(name.startswith("exp_avg/") for name in checkpoint.optimizer),
        "random": all(name in checkpoint.optimizer for name in randomness.names(device)),
        "sampler": "sampler" in checkpoint.progress,
    }
    missing = [name for name, found in there.items() if not found]
    if missing:
        raise DataError(f"{checkpoint.path / 'train'}: expected the state of {', '.join(there)}, got no {missing[0]}")


class _Pace:
    """Updates per second since the last time it was asked."""

    def __init__(self, step: int) -> None:
        self.step, self.time = step, time.perf_counter()

    def rate(self, step: int) -> float:
        now = time.perf_counter()
        rate = (step - self.step) / max(now - self.time, 1e-9)
        self.step, self.time = step, now
        return round(rate, 3)
