"""`collect`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from scanrl.envs.ids import options_from
from scanrl.types import DataError
from scanrl.verbs.options import OutPath, check

if TYPE_CHECKING:
    from scanrl.data import Dataset

__all__ = ["collect"]


def collect(
    out: OutPath,
    env: str | None = None,
    policy: str = "random",
    episodes: int = 100,
    histories: bool = False,
    learner: str = "q",
    tasks: int = 60,
    steps: int = 1_000_000,
    history_episodes: int | None = None,
    explore_until: float | None = None,
    optimal: bool = False,
    replay: str | None = None,
    order: Literal["recorded", "return"] = "recorded",
    env_options: tuple[str, ...] = (),
    seed: int = 0,
    num_envs: int = 16,
    overwrite: bool = False,
) -> int:
    """Record episodes of a policy, or with --histories what learners live through on many tasks, as a store.

    Args:
        out: the folder to write.
        env: Gymnasium id; ours are Darkroom-v0, DarkroomHard-v0, DarkroomDynamic-v0, KeyToDoor-v0, TMaze-v0 and more.
        policy: random, a run folder, or sb3:FILE.zip, a model of Stable-Baselines3 named after its algorithm.
        episodes: episodes of the policy.
        histories: record learners instead of a policy: ordered episodes of each, task by task.
        learner: q (tabular Q-learning), posterior (posterior sampling), noise (the optimal policy with ever fewer
            random actions) or random on our own environments; a2c, ddpg, dqn, ppo, sac or td3 of Stable-Baselines3.
        tasks: tasks to learn, of those that are not held out; another environment than ours is made with task=0, 1, ...
        steps: environment steps per task.
        history_episodes: episodes of the full horizon after which the next learner of ours starts afresh.
        explore_until: where in a history of q or noise random actions end, as a fraction of it (q: 1, noise: 0.5).
        optimal: also record what the optimal policy would do at every step, from which dpt learns.
        replay: make one history of this dataset's episodes instead, a recording of somebody who learned.
        order: of the episodes of --replay: as recorded, or ascending by return.
        env_options: options of the environment, e.g. size=17 start=corner, or --env ID@size=17,start=corner.
        seed: of everything random.
        num_envs: environments stepped side by side for a policy.
        overwrite: replace a store that is already there.
    """
    given = {} if history_episodes is None else {"history_episodes": history_episodes}
    check("collect", 1, episodes=episodes, tasks=tasks, steps=steps, num_envs=num_envs, **given)
    check("collect", 0, seed=seed)
    _check_source(env, replay, histories, optimal)
    options = options_from(env_options, "collect: --env-options")
    from scanrl.data.store import check_target, write_store

    check_target(out, overwrite)  # before the work and not after
    if env is None:
        dataset = _replayed(str(replay), order)
    elif histories:
        plan = {"episodes": history_episodes, "explore_until": explore_until, "options": options}
        dataset = _learned(env, learner, tasks=tasks, steps=steps, optimal=optimal, seed=seed, **plan)
    else:
        dataset = _played(env, policy, episodes, seed, num_envs, options)
    write_store(dataset, out, overwrite=overwrite)
    _tell(out, dataset)
    return 0


def _tell(out: Path, dataset: Dataset) -> None:
    count = 0 if dataset.tasks is None else len(set(dataset.tasks.tolist()))
    of = f" of {count} task{'s' * (count != 1)}" if count else ""
    print(f"{out}: {len(dataset)} episodes{of}, {dataset.steps} steps, mean return {dataset.returns.mean():.4g}")


def _check_source(env: str | None, replay: str | None, histories: bool, optimal: bool) -> None:
    if (env is None) == (replay is None):
        raise DataError(f"collect: expected --env or --replay, got {'neither' if env is None else 'both'}")
    if replay is not None and not histories:
        raise DataError("collect: --replay: expected --histories with it, got none")
    if optimal and not (histories and replay is None):
        told = "--replay" if replay is not None else "no --histories"
        raise DataError(f"collect: --optimal: expected --histories of a learner with it, got {told}")


def _replayed(uri: str, order: Literal["recorded", "return"]) -> Dataset:
    from scanrl.data import load
    from scanrl.data.histories import replay_history

    return replay_history(load(uri), order)


def _learned(env: str, learner: str, **settings: Any) -> Dataset:
    from scanrl.collecting import collect_histories

    return collect_histories(env, learner, **settings)


def _played(env: str, policy: str, episodes: int, seed: int, num_envs: int, options: dict[str, Any]) -> Dataset:
    from scanrl.collecting import collect_episodes

    return collect_episodes(env, policy, episodes=episodes, seed=seed, num_envs=num_envs, options=options)
