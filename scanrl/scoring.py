"""Scoring a finished run: load its policy, choose target returns, play, keep the episodes if asked."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from scanrl.checkpoint import Checkpoint, load_checkpoint
from scanrl.data import Dataset, write_store
from scanrl.data.histories import HistoryOrder
from scanrl.envs import ENVS
from scanrl.envs.ids import base_id
from scanrl.envs.make import environment_spec
from scanrl.evaluation import EPISODES, NUM_ENVS, SEED, Scores, evaluate
from scanrl.in_context import TaskScores, held_out_tasks, score_streams, score_tasks
from scanrl.policy import Policy
from scanrl.stats import Stats
from scanrl.types import Context, DataError, Spec

__all__ = ["goes_on", "score_learning", "score_run"]

SWEEP = (0.0, 1 / 3, 2 / 3, 1.0)
"""Where a sweep asks: 0 is the mean return of the data, 1 the best. Returns may be negative, so that a share of the
best alone could ask for more than it."""


def score_run(
    path: Path,
    env: str | None = None,
    targets: Sequence[float | Literal["auto"]] | None = ("auto",),
    *,
    episodes: int = EPISODES,
    context: Context | None = None,
    sample: bool = False,
    seed: int = SEED,
    num_envs: int = NUM_ENVS,
    save: Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Scores]:
    """Scores of a run's latest policy, one per target.

    Args:
        path: a run folder or a checkpoint folder.
        env: Gymnasium id; `None` takes the one the run was trained with.
        targets: returns to ask for, raw units; `"auto"` is the best of the data, `None` sweeps from its mean to its
            best. A model that takes no target plays once, whichever of these two is asked for.
        context: how the policy remembers; `None` is the run's `eval.context`.
        sample: draw actions instead of taking the likeliest.
        save: a folder for the episodes of all targets, as a store.
        progress: called after every step with the number of finished episodes; what it raises ends the evaluation.

    Raises:
        DataError: no checkpoint, no environment or one that does not fit, or a number for a model without target.
    """
    checkpoint, env, spec = _fitting(path, env, save)
    for target in targets or ():
        if target != "auto" and not math.isfinite(target):
            raise DataError(f"target_return: expected a finite number or auto, got {target}")
    if targets is not None and not targets:
        raise DataError("target_return: expected at least one, got none")
    own: Context = checkpoint.about.get("acting", "recurrent")
    policy = Policy(checkpoint.model(), context=own if context is None else context, sample=sample, seed=seed)
    result = evaluate(
        policy,
        env,
        episodes=episodes,
        seed=seed,
        targets=_wanted(targets, checkpoint.stats, policy),
        num_envs=num_envs,
        dataset=checkpoint.about.get("fingerprint"),
        progress=progress,
        like=checkpoint.spec,
    )
    if save is not None:
        played = [episode for group in result.trajectories for episode in group]
        write_store(Dataset.from_trajectories(played, spec=spec, env_id=env, name=f"{path.name}-{env}"), save)
    window = None if checkpoint.about.get("sequences") == "episodes" else checkpoint.config.context
    known = {"checkpoint_step": checkpoint.step, "trained_context": window, "sample": sample}
    return [replace(scores, **known) for scores in result.scores]


def score_learning(
    path: Path,
    env: str | None,
    tasks: Sequence[int] | int | None,
    *,
    episodes: int,
    context: Context | None = None,
    rescan: int | None = None,
    rescan_order: HistoryOrder = "learning",
    seed: int = SEED,
    streams: int = NUM_ENVS,
    save: Path | None = None,
) -> TaskScores:
    """Return against episode of a run's latest policy, which forgets nothing between the episodes of a task.

    Actions are drawn from the head's distribution: a policy that always takes the most likely one does not explore.

    Args:
        path: a run folder or a checkpoint folder.
        env: Gymnasium id; `None` takes the one the run was trained with.
        tasks: their numbers, or how many of those that no history is of; `None` where the environment is a single task.
        episodes: of each task or stream.
        context: see `Policy`, also for `rescan` and `rescan_order`; `None` carries the state.
        streams: side by side, where the environment is a single task.
        save: a folder for the episodes, as a store of learning histories.

    Raises:
        DataError: as `score_run`; also if there are not as many tasks.
    """
    checkpoint, env, spec = _fitting(path, env, save)
    model, memory = checkpoint.model(), {"rescan": rescan, "rescan_order": rescan_order}
    policy = Timed(model, context=context or "recurrent", sample=True, seed=seed, forget="task", **memory)  # type: ignore[arg-type]
    common = {"episodes": episodes, "seed": seed, "like": checkpoint.spec}
    if tasks is None:
        numbers = np.zeros(streams, np.int64)
        scores, played = score_streams(policy, env, streams, **common)
    else:
        numbers = held_out_tasks(env, tasks) if isinstance(tasks, int) else np.asarray(tasks, np.int64)
        scores, played = score_tasks(policy, env, numbers, **common)
    if save is not None:
        every = [episode for own in played for episode in own]
        dataset = Dataset.from_trajectories(every, spec=spec, env_id=env, name=f"{path.name}-{env}")
        rows = np.arange(len(numbers)).repeat(episodes)
        write_store(dataset.with_histories(numbers[rows], rows), save)
    cost = {"step_ms": policy.step_ms, "state_kb": policy.state_bytes() / 1024 / len(numbers)}
    return replace(scores, learner=tuple(checkpoint.about.get("learner", ())), **cost)


class Timed(Policy):
    """A policy that knows how long its steps take."""

    seconds, steps = 0.0, 0

    def act(self, *observed: Any, **more: Any) -> Any:
        began = time.perf_counter()
        try:
            return super().act(*observed, **more)
        finally:
            self.seconds += time.perf_counter() - began
            self.steps += 1

    @property
    def step_ms(self) -> float:
        """Mean over the steps so far."""
        return 1e3 * self.seconds / max(self.steps, 1)


def goes_on(path: Path, env: str | None) -> bool:
    """Whether a run's policy is to remember its episodes though nobody names a task: it has learned from histories of a
    single one. Our own environments draw a task for every episode.

    Raises:
        DataError: there is no checkpoint at `path`.
    """
    about = load_checkpoint(path).about
    return about.get("tasks") == 1 and base_id(env or about.get("env") or "") not in ENVS


def _fitting(path: Path, env: str | None, save: Path | None) -> tuple[Checkpoint, str, Spec]:
    """The latest checkpoint, the environment to play in and its spec, after checking that the two fit."""
    checkpoint = load_checkpoint(path)
    env = env or checkpoint.about.get("env") or checkpoint.spec.env_id
    if not env:
        raise DataError(f"{path}: env: expected an environment (the run was trained without one), got none")
    spec = environment_spec(env, like=checkpoint.spec)
    difference = checkpoint.spec.difference(spec)
    if difference is not None:
        raise DataError(f"{path}: {difference} (from {env})")
    if save is not None and save.exists() and (not save.is_dir() or any(save.iterdir())):
        raise DataError(f"{save}: expected a new or empty folder, got one in use")
    return checkpoint, env, spec


def _wanted(targets: Sequence[float | Literal["auto"]] | None, stats: Stats, policy: Policy) -> Sequence[float] | None:
    """The returns to ask for; `None` for a policy that takes none."""
    mean, best = stats.return_mean, stats.return_max
    if policy.target_return is None:
        numbers = [target for target in targets or () if target != "auto"]
        return numbers or None  # which `evaluate` refuses
    if targets is None:
        return [mean + share * (best - mean) for share in SWEEP]
    return [best if target == "auto" else target for target in targets]
