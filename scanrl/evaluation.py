"""Scoring a policy: episodes, statistics with intervals, and scores on a scale that environments share."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import metadata
from typing import Any, Protocol

import numpy as np

from scanrl.envs.ids import base_id, id_of
from scanrl.envs.reference_scores import reference_score
from scanrl.intervals import bootstrap_interval, describe_runs, interquartile_mean, stratified_bootstrap
from scanrl.rollout import Actor, EnvSource, make_environment, rollout
from scanrl.types import Context, DataError, Spec, Trajectory

__all__ = [
    "Evaluation",
    "ScoredActor",
    "Scores",
    "bootstrap_interval",
    "describe_runs",
    "evaluate",
    "interquartile_mean",
    "library_versions",
    "normalize",
    "stratified_bootstrap",
]

EPISODES, SEED, NUM_ENVS = 20, 1000, 20
"""What a score is made with unless told otherwise, in Python, on the command line and in a run's settings."""


class ScoredActor(Actor, Protocol):
    """An actor that can say what its score depends on; `scanrl.policy.Policy` is one."""

    @property
    def context(self) -> Context: ...

    @property
    def target_return(self) -> float | None:
        """The return it is asked for, raw units; `None` if it takes none."""
        ...

    def with_target(self, target: float, /) -> ScoredActor:
        """A copy that aims at another return (raw units)."""
        ...


@dataclass(frozen=True, eq=False)
class Scores:
    """What one policy with one target earned, and everything the numbers depend on.

    Attributes:
        returns: `(episodes,)` float64, undiscounted.
        lengths: `(episodes,)` int64, steps.
        env_id: Gymnasium id with version.
        context: how the policy remembered.
        seed: the seed of the rollout.
        target_return: what was asked for (raw units), `None` if the policy takes no target.
        num_envs: environments stepped side by side; a network rounds differently with another number.
        successes: `(episodes,)` bool, or `None` where success is not defined.
        dataset: fingerprint of the training data, where known.
        checkpoint_step: optimiser updates behind the policy, where known.
        sample: whether actions were drawn instead of the likeliest taken.
        trained_context: steps of the windows it was trained on, where known and where it was not on whole episodes.
        versions: version of each library that matters.
    """

    returns: np.ndarray
    lengths: np.ndarray
    env_id: str
    context: Context
    seed: int
    target_return: float | None = None
    num_envs: int | None = None
    successes: np.ndarray | None = None
    dataset: str | None = None
    checkpoint_step: int | None = None
    trained_context: int | None = None
    sample: bool = False
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def episodes(self) -> int:
        return len(self.returns)

    @property
    def env_version(self) -> int | None:
        """The 5 of `Hopper-v5`."""
        match = re.search(r"-v(\d+)$", base_id(self.env_id))
        return int(match[1]) if match else None

    @property
    def mean(self) -> float:
        return float(self.returns.mean())

    @property
    def std(self) -> float:
        """Spread of the episodes (divided by their number, as the literature reports it)."""
        return float(self.returns.std())

    @property
    def median(self) -> float:
        return float(np.median(self.returns))

    @property
    def iqm(self) -> float:
        return float(interquartile_mean(self.returns))

    @cached_property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the mean over episodes of this one training run; `None` for one episode."""
        return bootstrap_interval(self.returns) if self.episodes > 1 else None

    @property
    def normalized(self) -> np.ndarray | None:
        """`(episodes,)` returns with random at 0 and expert at 100, `None` where the environment has no scale."""
        return normalize(self.env_id, self.returns)

    @property
    def success_rate(self) -> float | None:
        return None if self.successes is None else float(self.successes.mean())

    def summary(self, prefix: str = "eval") -> dict[str, float]:
        """Metric names and values: `eval/return_mean`, `eval/return_std`, `eval/normalized_score` and so on."""
        low, high = self.interval or (None, None)
        values = {
            "return_mean": self.mean,
            "return_std": self.std,
            "return_median": self.median,
            "return_iqm": self.iqm,
            "return_low": low,
            "return_high": high,
            "normalized_score": None if self.normalized is None else float(self.normalized.mean()),
            "length_mean": float(self.lengths.mean()),
            "success_rate": self.success_rate,
            "episodes": self.episodes,
        }
        return {f"{prefix}/{name}": value for name, value in values.items() if value is not None}

    def to_json(self) -> dict[str, Any]:
        """Plain values: what was measured, the statistics and what they depend on."""
        reference = reference_score(self.env_id)
        return {
            "env_id": self.env_id,
            "env_version": self.env_version,
            "target_return": self.target_return,
            "context": self.context,
            "seed": self.seed,
            "num_envs": self.num_envs,
            "dataset": self.dataset,
            "checkpoint_step": self.checkpoint_step,
            "trained_context": self.trained_context,
            "sample": self.sample,
            "versions": self.versions,
            "returns": self.returns.tolist(),
            "lengths": self.lengths.tolist(),
            "successes": None if self.successes is None else self.successes.tolist(),
            "summary": self.summary(),
            "normalized_by": None if reference is None else f"{reference.source}; {reference.caution}".rstrip("; "),
        }

    def __repr__(self) -> str:
        target = "" if self.target_return is None else f", target={self.target_return:g}"
        return f"Scores({self.env_id}, mean={self.mean:.1f}, episodes={self.episodes}, context={self.context}{target})"


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Scores and the episodes behind them, one entry per target, in the order the targets were given."""

    scores: list[Scores]
    trajectories: list[list[Trajectory]]

    def summary(self) -> dict[str, float]:
        """The first target's metrics under plain names; with several, all also under `eval/target_3600/...`.

        The first, never the best: a maximum over targets is a choice made by looking at the test.
        """
        metrics = self.scores[0].summary()
        if len(self.scores) > 1:
            for scores in self.scores:
                metrics |= scores.summary(f"eval/target_{scores.target_return:g}")
        return metrics

    def to_json(self) -> list[dict[str, Any]]:
        return [scores.to_json() for scores in self.scores]


def evaluate(
    policy: ScoredActor,
    env: EnvSource,
    *,
    episodes: int = EPISODES,
    seed: int = SEED,
    targets: Sequence[float] | None = None,
    num_envs: int = NUM_ENVS,
    success: Callable[[Trajectory], bool] | None = None,
    dataset: str | None = None,
    progress: Callable[[int], None] | None = None,
    like: Spec | None = None,
) -> Evaluation:
    """Plays `episodes` episodes for each target and scores them.

    Args:
        policy: what acts.
        env: Gymnasium id, or a function that makes one environment.
        episodes: episodes per target. All targets meet the same initial states.
        seed: see `rollout`.
        targets: returns to ask for (raw units); `None` leaves the policy as it is.
        num_envs: environments side by side, at most `episodes`; does not change which episodes are played.
        success: tells whether an episode succeeded, e.g. `lambda episode: episode.total_reward > 0`, which is taken
            without asking where the environment pays for a goal and nothing else.
        dataset: fingerprint of the training data, to be kept beside the scores.
        progress: called after every step with the number of finished episodes, over all targets; see `rollout`.
        like: see `rollout`.

    Raises:
        DataError: see `rollout`; also if `targets` is empty or the policy takes none.
    """
    _check_targets(policy, targets)
    probe = make_environment(env)
    env_id = id_of(probe)
    probe.close()
    reference = reference_score(env_id)
    if success is None and reference is not None and reference.goal:
        success = _reached
    evaluation = Evaluation([], [])
    for actor in [policy] if targets is None else [policy.with_target(float(target)) for target in targets]:
        done = episodes * len(evaluation.scores)
        count = None if progress is None else (lambda finished, done=done, tell=progress: tell(done + finished))
        played = rollout(actor, env, episodes=episodes, seed=seed, num_envs=num_envs, progress=count, like=like)
        evaluation.trajectories.append(played)
        evaluation.scores.append(
            Scores(
                returns=np.array([x.total_reward for x in played]),
                lengths=np.array([len(x) for x in played]),
                env_id=env_id,
                context=actor.context,
                seed=seed,
                target_return=actor.target_return,
                num_envs=min(num_envs, episodes),
                successes=None if success is None else np.array([success(x) for x in played], bool),
                dataset=dataset,
                versions=library_versions(),
            )
        )
    return evaluation


def _check_targets(policy: ScoredActor, targets: Sequence[float] | None) -> None:
    if targets is not None and len(targets) == 0:
        raise DataError("evaluate: targets: expected at least one, got none")
    if targets is not None and policy.target_return is None:
        raise DataError(f"evaluate: targets: expected none (this policy takes no target return), got {list(targets)}")


def _reached(episode: Trajectory) -> bool:
    return episode.total_reward > 0


def normalize(env_id: str, returns: np.ndarray | Sequence[float] | float) -> np.ndarray | None:
    """`100 * (return - random) / (expert - random)`, float64, or `None` if the environment has no reference."""
    reference = reference_score(env_id)
    if reference is None:
        return None
    return 100.0 * (np.asarray(returns, np.float64) - reference.low) / (reference.high - reference.low)


def library_versions() -> dict[str, str]:
    """Installed versions of what a score depends on; what is not installed is left out."""
    versions = {}
    for name in ("scanrl", "torch", "numpy", "gymnasium", "mujoco", "gymnasium-robotics", "ale-py"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
