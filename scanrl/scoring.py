"""Scoring a finished run: load its policy, choose target returns, play, keep the episodes if asked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from scanrl.checkpoint import load_checkpoint
from scanrl.data import Dataset, write_store
from scanrl.envs.make import environment_spec
from scanrl.evaluation import Scores, evaluate
from scanrl.policy import Context, Policy
from scanrl.types import DataError

__all__ = ["score_run"]

SWEEP = (0.25, 0.5, 0.75, 1.0)
"""Shares of the data's best return that a sweep asks for."""


def score_run(
    path: Path,
    env: str | None = None,
    targets: Sequence[float | Literal["auto"]] | None = ("auto",),
    *,
    episodes: int = 20,
    context: Context = "recurrent",
    seed: int = 1000,
    num_envs: int = 20,
    save: Path | None = None,
) -> list[Scores]:
    """Scores of a run's latest policy, one per target.

    Args:
        path: a run folder or a checkpoint folder.
        env: Gymnasium id; `None` takes the one the run was trained with.
        targets: returns to ask for, raw units; `"auto"` is the best of the data, `None` sweeps over shares of it.
        save: a folder for the episodes of all targets, as a store.

    Raises:
        DataError: no checkpoint, no environment, or one that does not fit the model.
    """
    checkpoint = load_checkpoint(path)
    env = env or checkpoint.about.get("env") or checkpoint.spec.env_id
    if not env:
        raise DataError(f"{path}: env: expected an environment (the run was trained without one), got none")
    spec = environment_spec(env)
    difference = checkpoint.spec.difference(spec)
    if difference is not None:
        raise DataError(f"{path}: {difference} (from {env})")
    if save is not None and save.exists() and (not save.is_dir() or any(save.iterdir())):
        raise DataError(f"{save}: expected a new or empty folder, got one in use")
    for target in targets or ():
        if target != "auto" and not math.isfinite(target):
            raise DataError(f"target_return: expected a finite number or auto, got {target}")
    best = checkpoint.stats.return_max
    if targets is not None and not targets:
        raise DataError("target_return: expected at least one, got none")
    wanted = [best * share for share in SWEEP] if targets is None else [best if t == "auto" else t for t in targets]
    policy = Policy(checkpoint.model(), target_return=wanted[0], context=context)
    result = evaluate(
        policy,
        env,
        episodes=episodes,
        seed=seed,
        targets=wanted,
        num_envs=num_envs,
        dataset=checkpoint.about.get("fingerprint"),
    )
    if save is not None:
        played = [episode for group in result.trajectories for episode in group]
        write_store(Dataset.from_trajectories(played, spec=spec, env_id=env, name=f"{path.name}-{env}"), save)
    return result.scores
