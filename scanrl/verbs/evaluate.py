"""`eval`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, cast

import tyro

from scanrl.console import print_json, print_table
from scanrl.evaluation import EPISODES, NUM_ENVS, SEED, Scores
from scanrl.types import Context, DataError
from scanrl.verbs.learning import learn
from scanrl.verbs.options import RunPath, check

__all__ = ["evaluate"]

Way: TypeAlias = Annotated[str, tyro.conf.arg(metavar="{own,recurrent,elastic}|INT")]
SHORT_WINDOW = 32
"""A state carried through a whole episode is far from what windows of fewer steps have trained."""


def evaluate(
    run: RunPath,
    env: str | None = None,
    episodes: int = EPISODES,
    target_return: tuple[float | Literal["auto"], ...] = ("auto",),
    sweep_targets: bool = False,
    context: Way = "own",
    sample: bool = False,
    seed: int = SEED,
    num_envs: int = NUM_ENVS,
    save: Path | None = None,
    new_tasks: int = 0,
    tasks: tuple[int, ...] = (),
    rescan: int = 0,
    rescan_order: Literal["learning", "return"] = "learning",
    plot: Path | None = None,
    json: bool = False,
) -> int:
    """Play episodes with a trained policy and score them.

    Args:
        run: a run folder (its latest checkpoint) or a checkpoint folder.
        env: Gymnasium id; by default the run's own.
        episodes: episodes per target return.
        target_return: returns to ask for, raw units; auto is the best return of the training data.
        sweep_targets: ask for the data's mean return, its best, and two in between instead.
        context: recurrent, or the number of steps whose window is recomputed at every step, or elastic, for a model
            that predicts its return: the window whose predicted return is highest. own is what the run was trained
            with as eval.context, and recurrent when learning in context.
        sample: draw actions from the head's distribution instead of taking the likeliest (new tasks always do).
        seed: decides the initial state of each episode.
        num_envs: environments stepped side by side. A run on histories of a single task, such as a replay buffer, plays
            --episodes in a row in each without forgetting in between, and shows return against episode.
        save: also write the episodes as a store into this folder.
        new_tasks: learn in context instead: play that many tasks which no history is of, --episodes of each in a row,
            without forgetting in between, and show return against episode.
        tasks: the same on tasks of these numbers.
        rescan: when learning in context, make the state anew at the start of every episode from so many of the last
            ones; 0 carries it on for ever.
        rescan_order: of those: learning, as they were played, or return, the worst first.
        plot: also draw return against episode into this SVG file.
        json: print one JSON object instead of a table.
    """
    check("eval", 1, episodes=episodes, num_envs=num_envs)
    check("eval", 0, seed=seed, new_tasks=new_tasks, rescan=rescan)
    if new_tasks and tasks:
        raise DataError(f"eval: expected --new-tasks or --tasks, got both (--new-tasks {new_tasks})")
    from scanrl.scoring import goes_on, score_run

    way = _way(context)
    if new_tasks or tasks or (target_return == ("auto",) and not sweep_targets and goes_on(run, env)):
        memory = {"context": way, "rescan": rescan or None, "rescan_order": rescan_order}
        sizes = {"episodes": episodes, "streams": num_envs, "seed": seed, "save": save}
        return learn(run, env, tasks or new_tasks or None, plot, json, **sizes, **memory)
    _only_learning(rescan=rescan, plot=plot)
    how = {"context": way, "sample": sample, "seed": seed, "num_envs": num_envs}
    found = score_run(run, env, None if sweep_targets else target_return, episodes=episodes, save=save, **how)
    return print_json([scores.to_json() for scores in found]) if json else _show(found, seed)


def _way(context: str) -> Context | None:
    """How to remember; `None` as the run was trained to act."""
    if context in ("own", "recurrent", "elastic"):
        return None if context == "own" else cast(Context, context)
    if not context.isdecimal() or int(context) < 1:
        raise DataError(f"eval: --context: expected own, recurrent, elastic or a number of steps, got {context!r}")
    return int(context)


def _only_learning(**options: Any) -> None:
    """Raises for options that mean nothing where a policy forgets between episodes."""
    for name, given in options.items():
        if given:
            raise DataError(f"eval: --{name}: expected --new-tasks or --tasks with it, got --{name} {given} alone")


def _show(found: Sequence[Scores], seed: int) -> int:
    """One line per target."""
    print_table(
        ("target", "return", "95 % interval", "normalised", "length", "episodes"),
        [
            (
                "-" if s.target_return is None else f"{s.target_return:g}",
                f"{s.mean:.1f} ± {s.std:.1f}",
                "-" if s.interval is None else f"{s.interval[0]:.1f} to {s.interval[1]:.1f}",
                "-" if s.normalized is None else f"{s.normalized.mean():.1f}",
                f"{s.lengths.mean():.0f}",
                s.episodes,
            )
            for s in found
        ],
        right=(0, 1, 2, 3, 4, 5),
    )
    drawn = ", actions drawn" if found[0].sample else ""
    print(f"{found[0].env_id}, context {found[0].context}, seed {seed}{drawn}; 1 training run: no interval over seeds")
    window = found[0].trained_context
    if found[0].context == "recurrent" and window is not None and 1 < window < SHORT_WINDOW:
        print(
            f"trained on windows of {window} steps: --context {window} recomputes that window and may score very "
            "differently"
        )
    return 0
