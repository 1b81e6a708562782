"""Scoring a finished run: load its policy, choose target returns, play, keep the episodes if asked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from scanrl.checkpoint import load_checkpoint
from scanrl.data import Dataset, write_store
from scanrl.envs.make import environment_spec
from scanrl.evaluation import EPISODES, NUM_ENVS, SEED, Scores, evaluate
from scanrl.policy import Policy
from scanrl.stats import Stats
from scanrl.types import Context, DataError

__all__ = ["score_run"]

SWEEP = (0.0, 1 / 3, 2 / 3, 1.0)
"""Where a sweep asks: 0 is the mean return of the data, 1 the best. Returns may be negative, so that a share of the
best alone could ask for more than it."""


def score_run(
    path: Path,
    env: str | None = None,
    targets: Sequence[float | Literal["auto"]] | None = ("auto",),
    *,
    episodes: int = EPISODES,
    context: Context = "recurrent",
    seed: int = SEED,
    num_envs: int = NUM_ENVS,
    save: Path | None = None,
) -> list[Scores]:
    """Scores of a run's latest policy, one per target.

    Args:
        path: a run folder or a checkpoint folder.
        env: Gymnasium id; `None` takes the one the run was trained with.
        targets: returns to ask for, raw units; `"auto"` is the best of the data, `None` sweeps from its mean to its
            best. A model that takes no target plays once, whichever of these two is asked for.
        save: a folder for the episodes of all targets, as a store.

    Raises:
        DataError: no checkpoint, no environment or one that does not fit, or a number for a model without target.
    """
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
    for target in targets or ():
        if target != "auto" and not math.isfinite(target):
            raise DataError(f"target_return: expected a finite number or auto, got {target}")
    if targets is not None and not targets:
        raise DataError("target_return: expected at least one, got none")
    policy = Policy(checkpoint.model(), context=context)
    result = evaluate(
        policy,
        env,
        episodes=episodes,
        seed=seed,
        targets=_wanted(targets, checkpoint.stats, policy),
        num_envs=num_envs,
        dataset=checkpoint.about.get("fingerprint"),
        like=checkpoint.spec,
    )
    if save is not None:
        played = [episode for group in result.trajectories for episode in group]
        write_store(Dataset.from_trajectories(played, spec=spec, env_id=env, name=f"{path.name}-{env}"), save)
    window = None if checkpoint.about.get("sequences") == "episodes" else checkpoint.config.context
    known = {"checkpoint_step": checkpoint.step, "trained_context": window}
    return [replace(scores, **known) for scores in result.scores]


def _wanted(targets: Sequence[float | Literal["auto"]] | None, stats: Stats, policy: Policy) -> Sequence[float] | None:
    """The returns to ask for; `None` for a policy that takes none."""
    mean, best = stats.return_mean, stats.return_max
    if policy.target_return is None:
        numbers = [target for target in targets or () if target != "auto"]
        return numbers or None  # which `evaluate` refuses
    if targets is None:
        return [mean + share * (best - mean) for share in SWEEP]
    return [best if target == "auto" else target for target in targets]
