"""Making datasets: episodes of a policy, and learning histories of learners on many tasks.

A learning history is the ordered list of episodes of one learner on one task; see `scanrl.data.histories` for how they
are read and docs/in_context.md for what they are good for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from scanrl.data import Dataset
from scanrl.envs import ENVS
from scanrl.envs.ids import base_id, split_id
from scanrl.envs.make import EnvSource, environment_spec, make_environment
from scanrl.envs.sources import LEARNERS, learn_histories
from scanrl.envs.task import TaskFamily
from scanrl.envs.task_env import make_family
from scanrl.learned import ALGORITHMS, LoadedActor, learn_episodes
from scanrl.policy import Policy
from scanrl.rollout import Actor, RandomActor, rollout
from scanrl.types import DataError

__all__ = ["EPISODES_OF_A_HISTORY", "EXPLORE_UNTIL", "collect_episodes", "collect_histories"]

EPISODES_OF_A_HISTORY = {"q": 100, "noise": 20, "random": 20, "posterior": 12}
"""Episodes of the full horizon after which the next learner starts, by learner: about what each needs to get good."""

EXPLORE_UNTIL = {"q": 1.0, "noise": 0.5, "random": 1.0, "posterior": 1.0}
"""Where in a history random actions end, by learner. Whoever learns from noise to the end keeps some of it."""


def collect_episodes(
    env: str,
    policy: str = "random",
    *,
    episodes: int,
    seed: int = 0,
    num_envs: int = 16,
    options: Mapping[str, Any] | None = None,
) -> Dataset:
    """Whole episodes of one policy.

    Args:
        env: Gymnasium id.
        policy: `random`, a run or checkpoint folder, or `sb3:FILE.zip`, a model of Stable-Baselines3 with an MLP
            policy, whose file is named after its algorithm; its pickles are not read.
        episodes: how many.
        seed: of the initial states and of what the random policy draws.
        num_envs: environments side by side.
        options: of the environment, as `gymnasium.make` takes them.

    Raises:
        DataError: the environment or the policy is not there, or they do not fit.
    """
    make = _maker(env, options or {})
    spec = environment_spec(make)
    actor = _actor(policy, make, spec, seed)
    played = rollout(actor, make, episodes=episodes, seed=seed, num_envs=num_envs)
    dataset = Dataset.from_trajectories(played, spec=spec, name=f"{env}-{Path(policy).name}")
    dataset.source = _source(env, options, policy=policy, seed=seed)
    return dataset


def collect_histories(
    env: str,
    learner: str = "q",
    *,
    tasks: int,
    steps: int,
    episodes: int | None = None,
    explore_until: float | None = None,
    optimal: bool = False,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
) -> Dataset:
    """Learning histories on the training tasks of an environment, none of them on a held-out one.

    Args:
        env: Gymnasium id. The tabular learners play the tasks of our own environments; those of Stable-Baselines3 any
            environment, which is made with `task=0`, `task=1` and so on if there is more than one task.
        learner: `q`, `noise` or `random` (see `scanrl.envs.sources`), or an algorithm of Stable-Baselines3.
        tasks: how many tasks.
        steps: environment steps per task.
        episodes: length of a history of `q`, `noise` or `random`, in episodes of the full horizon; further learners
            start afresh until the steps are used up. The default is what the learner needs to get good.
        explore_until: where in a history of `q` or `noise` random actions end, as a fraction of its steps; by default
            at the end for `q`, and for `noise` at the half.
        optimal: also record what the optimal policy would do at every step, which environments of ours know.
        seed: of everything random, and of which training tasks are taken.
        options: of the environment, as `gymnasium.make` takes them.

    Raises:
        DataError: the learner is unknown or does not serve the environment, or there are not as many training tasks.
    """
    if learner == "random" and explore_until is not None:
        raise DataError(f"explore_until: expected none for random, which is so to the end, got {explore_until:g}")
    plan = {"episodes": episodes, "explore_until": explore_until}
    if learner in ALGORITHMS:
        for name in [name for name, value in plan.items() if value is not None]:
            raise DataError(f"{name}: expected none for {learner}, which has its own way, got {plan[name]:g}")
        if optimal:
            known = ", ".join(LEARNERS)
            raise DataError(
                f"optimal: expected one of the learners {known}, who know the optimal policy, got {learner}"
            )
        dataset = _stable_histories(env, learner, tasks, steps, seed, options or {})
    elif learner in LEARNERS:
        dataset = _tabular_histories(env, learner, tasks, steps, plan, optimal, seed, options or {})
    else:
        raise DataError(f"learner: expected one of {', '.join([*LEARNERS, *ALGORITHMS])}, got {learner!r}")
    dataset.source = _source(env, options, learner=learner, seed=seed, **({"optimal": True} if optimal else {}))
    return dataset


def _tabular_histories(
    env: str,
    learner: str,
    tasks: int,
    steps: int,
    plan: Mapping[str, Any],
    optimal: bool,
    seed: int,
    options: Mapping[str, Any],
) -> Dataset:
    if base_id(env) not in ENVS:
        known = ", ".join(ENVS)
        raise DataError(
            f"{env}: expected one of {known} for the learner {learner}; for others: {', '.join(ALGORITHMS)}"
        )
    family = _family(env, options)
    if plan["explore_until"] is not None and not LEARNERS[learner].explores:
        raise DataError(f"explore_until: expected none for {learner}, which does not explore, got a fraction")
    usual = {"episodes": EPISODES_OF_A_HISTORY[learner], "explore_until": EXPLORE_UNTIL[learner]}
    plan = usual | {name: value for name, value in plan.items() if value is not None}
    length = plan["episodes"]
    repeats = steps // (length * family.horizon)
    if repeats < 1:
        raise DataError(f"steps: expected at least {length * family.horizon} (one history of {length} episodes)")
    chosen = _training_tasks(family, tasks, seed)
    found = learn_histories(family, chosen, learner=learner, repeats=repeats, optimal=optimal, seed=seed, **plan)
    columns = found._asdict()
    offsets = columns.pop("offsets")
    owners = {name: columns.pop(name) for name in ("tasks", "histories", "optimal_actions")}
    return Dataset(columns, offsets, environment_spec(_maker(env, options)), f"{env}-{learner}", **owners)


def _family(env: str, options: Mapping[str, Any]) -> TaskFamily:
    return make_family(ENVS[base_id(env)], {**split_id(env)[1], **options})


def _training_tasks(family: TaskFamily, count: int, seed: int) -> np.ndarray:
    training, _ = family.split()
    if not 1 <= count <= len(training):
        raise DataError(f"tasks: expected 1 to {len(training)} (the training tasks), got {count}")
    return np.sort(np.random.default_rng(seed).permutation(training)[:count])


def _stable_histories(env: str, learner: str, tasks: int, steps: int, seed: int, options: Mapping[str, Any]) -> Dataset:
    if base_id(env) in ENVS:
        chosen = _training_tasks(_family(env, options), tasks, seed).tolist()
    else:
        chosen = list(range(tasks))
    named = base_id(env) in ENVS or tasks > 1
    histories = []
    for index, task in enumerate(chosen):
        make = _maker(env, {**options, "task": task} if named else options)
        episodes = learn_episodes(learner, make, steps, seed + index)
        if not episodes:
            raise DataError(f"steps: expected enough for an episode of {env}, got {steps}")
        histories.append(episodes)
    counts = [len(episodes) for episodes in histories]
    spec = environment_spec(_maker(env, options))
    every = [episode for episodes in histories for episode in episodes]
    dataset = Dataset.from_trajectories(every, spec=spec, name=f"{env}-{learner}")
    return dataset.with_histories(np.repeat(chosen, counts), np.repeat(np.arange(len(counts)), counts))


def _maker(env: str, options: Mapping[str, Any]) -> EnvSource:
    """What makes the environment with options; without any, its id."""
    return (lambda: make_environment(env, options)) if options else env


def _actor(policy: str, make: EnvSource, spec: Any, seed: int) -> Actor:
    if policy == "random":
        return RandomActor(spec, seed)
    if policy.startswith("sb3:"):
        return LoadedActor(policy.removeprefix("sb3:"), make)
    if not Path(policy).exists():
        raise DataError(f"policy: expected random, sb3:FILE.zip or a run folder, got {policy!r}")
    loaded = Policy.load(policy)
    difference = loaded.spec.difference(spec)
    if difference is not None:
        raise DataError(f"{policy}: {difference} (from {spec.env_id})")
    return loaded


def _source(env: str, options: Mapping[str, Any] | None, **more: Any) -> dict[str, str]:
    """How to make the dataset again."""
    return {"env": env, "options": json.dumps(dict(options or {}), sort_keys=True)} | {
        k: str(v) for k, v in more.items()
    }
