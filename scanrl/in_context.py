"""Learning in context: a policy plays several episodes of tasks it has never seen, and nothing but its memory changes.

Symbols: `N` tasks, or streams on an environment that is a single task, `n` episodes of each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from scanrl.envs.make import make_environment
from scanrl.envs.reference_scores import reference_score
from scanrl.envs.task_env import TaskEnv
from scanrl.evaluation import library_versions
from scanrl.intervals import bootstrap_interval
from scanrl.rollout import Actor, _checked, _Row
from scanrl.types import Context, DataError, Spec, Trajectory

__all__ = ["TaskScores", "held_out_tasks", "play_streams", "play_tasks", "score_streams", "score_tasks"]


@dataclass(frozen=True, eq=False)
class TaskScores:
    """Return against episode, on tasks side by side or in streams on one.

    Attributes:
        returns: `(N, n)` float64, undiscounted; column `i` are the episodes number `i`.
        tasks: `(N,)` int64; `None` where the environment is a single task.
        env_id: Gymnasium id with version.
        context: how the policy remembered.
        seed: of the rollout.
        optimal: mean return of the optimal policy on these tasks, where the environment knows it, else what stands for
            it on the environment's scale (`reference_score`), if there is one.
        random: mean return of the uniformly random policy on all tasks, likewise.
        rescan: episodes from which the memory was made anew at the start of each; `None` if it went on for ever.
        rescan_order: the order of these.
        versions: version of each library that matters.
        learner: mean return of the learner that the policy imitates, by the number of its episode; empty if not known.
        step_ms: wall time of the policy for a step of all tasks or streams together, the mean over steps; `None` if not
            measured. What the environments take is not in it.
        state_kb: memory of one stream at the end.
    """

    returns: np.ndarray
    tasks: np.ndarray | None
    env_id: str
    context: Context
    seed: int
    optimal: float | None = None
    random: float | None = None
    rescan: int | None = None
    rescan_order: str = "learning"
    versions: dict[str, str] = field(default_factory=dict)
    learner: tuple[float, ...] = ()
    step_ms: float | None = None
    state_kb: float | None = None

    @property
    def curve(self) -> np.ndarray:
        """`(n,)` mean over tasks."""
        return self.returns.mean(axis=0)

    def interval(self, episode: int) -> tuple[float, float] | None:
        """95 % interval of the mean over tasks of one trained model; `None` for one task or stream."""
        return bootstrap_interval(self.returns[:, episode]) if len(self.returns) > 1 else None

    def error(self, episode: int) -> float | None:
        """Standard error of the mean over tasks; `None` for one."""
        count = len(self.returns)
        return float(self.returns[:, episode].std(ddof=1) / count**0.5) if count > 1 else None

    @property
    def memory(self) -> str:
        """How the policy remembered, in words."""
        if self.rescan is None:
            return f"context {self.context}"
        order = ", the worst first" if self.rescan_order == "return" else ""
        return f"state anew from the last {self.rescan} episodes{order}"

    def share(self, episode: int) -> float | None:
        """How far from random, 0, to optimal, 1, the mean is; `None` where these are not known."""
        if self.optimal is None or self.random is None:
            return None
        return float((self.curve[episode] - self.random) / (self.optimal - self.random))

    def summary(self, prefix: str = "eval") -> dict[str, float]:
        """Metric names and values: `eval/return_mean` over all episodes, `eval/return_first` and `eval/return_last`."""
        curve, last = self.curve, self.share(self.returns.shape[1] - 1)
        found = {"return_mean": curve.mean(), "return_first": curve[0], "return_last": curve[-1]}
        if last is not None:
            found["share_last"] = last
        return {f"{prefix}/{name}": float(value) for name, value in found.items()} | {
            f"{prefix}/{'streams' if self.tasks is None else 'tasks'}": len(self.returns)
        }

    def to_json(self) -> dict[str, Any]:
        """Plain values: what was measured and what it depends on."""
        return {
            "env_id": self.env_id,
            "context": self.context,
            "rescan": self.rescan,
            "rescan_order": self.rescan_order,
            "seed": self.seed,
            "tasks": None if self.tasks is None else self.tasks.tolist(),
            "returns": self.returns.tolist(),
            "curve": self.curve.tolist(),
            "intervals": [self.interval(episode) for episode in range(self.returns.shape[1])],
            "optimal": self.optimal,
            "random": self.random,
            "learner": list(self.learner),
            "step_ms": self.step_ms,
            "state_kb": self.state_kb,
            "versions": self.versions,
        }


def held_out_tasks(
    env: str, count: int, options: Mapping[str, Any] | None = None, *, fewer: bool = False
) -> np.ndarray:
    """The first `count` of the tasks that `scanrl collect` keeps out of histories, int64; all of them if `fewer`.

    Raises:
        DataError: the environment is none of ours, or has fewer and that is not allowed.
    """
    family = _family(env, options or {})
    if family is None:
        raise DataError(f"{env}: tasks: expected their numbers (which tasks were trained on is not known), got none")
    _, found = family.split()
    if not 1 <= count <= len(found) and not fewer:
        raise DataError(f"{env}: tasks: expected 1 to {len(found)} held-out ones, got {count}")
    return found[:count]


def play_tasks(
    actor: Actor,
    env: str,
    tasks: Sequence[int] | np.ndarray,
    *,
    episodes: int,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    progress: Callable[[int], None] | None = None,
    like: Spec | None = None,
) -> list[list[Trajectory]]:
    """Plays `episodes` episodes of each task, one row for each task from its first episode to its last.

    The actor is reset once, at the beginning. At the start of an episode its row is flagged `first` and the reward is
    what the last action of the episode before earned: a `Policy` needs `forget="task"` to remember that episode.

    Args:
        actor: chooses the actions.
        env: Gymnasium id; the environment is made with `task=...`.
        tasks: their numbers.
        episodes: how many of each task.
        seed: of the initial states.
        options: further options of the environment.
        progress: called after every step with the number of finished episodes; what it raises ends the play.
        like: see `scanrl.rollout.rollout`.

    Returns:
        For each task its episodes in order.

    Raises:
        DataError: no task or episode, or an environment that cannot be made with a task.
        RolloutError: it fails while running.
    """
    if len(tasks) < 1 or episodes < 1:
        raise DataError(f"play_tasks: expected at least one task and one episode, got {len(tasks)} and {episodes}")
    each = [{**(options or {}), "task": int(task)} for task in tasks]
    return _play_each(actor, env, each, episodes, seed, progress, like)


def play_streams(
    actor: Actor,
    env: str,
    streams: int,
    *,
    episodes: int,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    progress: Callable[[int], None] | None = None,
    like: Spec | None = None,
) -> list[list[Trajectory]]:
    """`play_tasks` on an environment that is a single task, `streams` times side by side; it is made without `task`."""
    if streams < 1 or episodes < 1:
        raise DataError(f"play_streams: expected at least one stream and one episode, got {streams} and {episodes}")
    return _play_each(actor, env, [options or {}] * streams, episodes, seed, progress, like)


def _play_each(
    actor: Actor,
    env: str,
    options: Sequence[Mapping[str, Any]],
    episodes: int,
    seed: int,
    progress: Callable[[int], None] | None,
    like: Spec | None,
) -> list[list[Trajectory]]:
    rows: list[_Row] = []
    try:
        for own in options:
            rows.append(_Row(make_environment(env, own), None, like))
        return _play(actor, rows, episodes, seed, progress)
    finally:
        for row in rows:
            row.env.close()


def _play(
    actor: Actor, rows: Sequence[_Row], episodes: int, seed: int, progress: Callable[[int], None] | None
) -> list[list[Trajectory]]:
    played: list[list[Trajectory]] = [[] for _ in rows]
    for index, row in enumerate(rows):
        row.start(index * episodes, seed)
    actor.reset(len(rows))
    while any(row.episode is not None for row in rows):
        observations = np.stack([row.observation for row in rows])
        rewards = np.array([row.reward for row in rows], np.float32)
        actions = _checked(actor.act(observations, rewards, np.array([row.first for row in rows])), rows)
        for row, action, own in zip(rows, actions, played, strict=True):
            if row.episode is None or not row.step(action):
                continue
            own.append(row.trajectory())
            following = row.episode + 1 if len(own) < episodes else None
            earned = row.reward
            row.start(following, seed)
            row.reward = earned
        if progress is not None:
            progress(sum(map(len, played)))
    return played


def score_tasks(
    actor: Any,
    env: str,
    tasks: Sequence[int] | np.ndarray,
    *,
    episodes: int,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    progress: Callable[[int], None] | None = None,
    like: Spec | None = None,
) -> tuple[TaskScores, list[list[Trajectory]]]:
    """`play_tasks`, and the returns beside those of a random and of the optimal policy."""
    common = {"episodes": episodes, "seed": seed, "options": options, "progress": progress, "like": like}
    played = play_tasks(actor, env, tasks, **common)
    family, optimal, random = _family(env, options or {}), None, None
    numbers = np.asarray(tasks, np.int64)
    if family is not None:
        optimal = float(family.optimal_returns(numbers).mean())
        random = float(family.random_returns(max(1, _RANDOM_STEPS // family.horizon)).mean())
    return _scores(actor, env, numbers, played, seed, (random, optimal)), played


def score_streams(
    actor: Any,
    env: str,
    streams: int,
    *,
    episodes: int,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    progress: Callable[[int], None] | None = None,
    like: Spec | None = None,
) -> tuple[TaskScores, list[list[Trajectory]]]:
    """`play_streams`, and the returns beside those of the environment's scale."""
    common = {"episodes": episodes, "seed": seed, "options": options, "progress": progress, "like": like}
    played = play_streams(actor, env, streams, **common)
    return _scores(actor, env, None, played, seed, (None, None)), played


def _scores(
    actor: Any,
    env: str,
    tasks: np.ndarray | None,
    played: Sequence[Sequence[Trajectory]],
    seed: int,
    ends: tuple[float | None, float | None],
) -> TaskScores:
    """`ends` are the returns of the random and of the optimal policy, where they are known."""
    scale = reference_score(env) if ends[0] is None else None
    random, optimal = ends if scale is None else (scale.low, scale.high)
    return TaskScores(
        returns=np.array([[episode.total_reward for episode in own] for own in played]),
        tasks=tasks,
        env_id=env,
        context=getattr(actor, "context", 0),
        seed=seed,
        optimal=optimal,
        random=random,
        rescan=getattr(actor, "rescan", None),
        rescan_order=getattr(actor, "rescan_order", "learning"),
        versions=library_versions(),
    )


_RANDOM_STEPS = 2_000_000


def _family(env: str, options: Mapping[str, Any]) -> Any:
    made = make_environment(env, options)
    try:
        return made.unwrapped.family if isinstance(made.unwrapped, TaskEnv) else None
    finally:
        made.close()
