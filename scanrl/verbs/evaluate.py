"""`eval`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from scanrl.console import print_json, print_table
from scanrl.evaluation import EPISODES, NUM_ENVS, SEED, Scores
from scanrl.types import Context, DataError
from scanrl.verbs.options import RunPath, check

__all__ = ["evaluate"]

SHORT_WINDOW = 32
"""A state carried through a whole episode is far from what windows of fewer steps have trained."""


def evaluate(
    run: RunPath,
    env: str | None = None,
    episodes: int = EPISODES,
    target_return: tuple[float | Literal["auto"], ...] = ("auto",),
    sweep_targets: bool = False,
    context: int | Literal["recurrent", "elastic"] = "recurrent",
    sample: bool = False,
    seed: int = SEED,
    num_envs: int = NUM_ENVS,
    save: Path | None = None,
    new_tasks: int = 0,
    tasks: tuple[int, ...] = (),
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
            that predicts its return: the window whose predicted return is highest.
        sample: draw actions from the head's distribution instead of taking the likeliest (new tasks always do).
        seed: decides the initial state of each episode.
        num_envs: environments stepped side by side.
        save: also write the episodes as a store into this folder.
        new_tasks: learn in context instead: play that many tasks which no history is of, --episodes of each in a row,
            without forgetting in between, and show return against episode.
        tasks: the same on tasks of these numbers.
        json: print one JSON object instead of a table.
    """
    check("eval", 1, episodes=episodes, num_envs=num_envs)
    check("eval", 0, seed=seed, new_tasks=new_tasks)
    if new_tasks or tasks:
        if new_tasks and tasks:
            raise DataError(f"eval: expected --new-tasks or --tasks, got both (--new-tasks {new_tasks})")
        return _learn(run, env, tasks or new_tasks, episodes, context, seed, save, json)
    from scanrl.scoring import score_run

    wanted: tuple[float | Literal["auto"], ...] | None = None if sweep_targets else target_return
    how = {"context": context, "sample": sample, "seed": seed, "num_envs": num_envs}
    found = score_run(run, env, wanted, episodes=episodes, save=save, **how)
    if json:
        return print_json([scores.to_json() for scores in found])
    _show(found, context, seed)
    return 0


def _show(found: Sequence[Scores], context: Context, seed: int) -> None:
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
    if context == "recurrent" and window is not None and window < SHORT_WINDOW:
        steps = f"{window} step{'s' * (window > 1)}"
        print(
            f"trained on windows of {steps}: --context {window} recomputes that window and may score very differently"
        )


def _learn(
    run: Path,
    env: str | None,
    tasks: Sequence[int] | int,
    episodes: int,
    context: Context,
    seed: int,
    save: Path | None,
    json: bool,
) -> int:
    """Return against episode, on tasks side by side."""
    from scanrl.scoring import score_learning

    found = score_learning(run, env, tasks, episodes=episodes, context=context, seed=seed, save=save)
    if json:
        return print_json(found.to_json())
    shown = sorted({*range(min(5, episodes)), *range(9, episodes, 10), episodes - 1})
    rows = []
    for episode in shown:
        interval, share = found.interval(episode), found.share(episode)
        between = "-" if interval is None else f"{interval[0]:.2f} to {interval[1]:.2f}"
        rows.append(
            (episode + 1, f"{found.curve[episode]:.2f}", between, "-" if share is None else f"{100 * share:.0f}")
        )
    print_table(("episode", "return", "95 % interval", "normalised"), rows, right=(0, 1, 2, 3))
    known = "" if found.optimal is None else f"; random {found.random:.2f}, optimal {found.optimal:.2f}"
    print(f"{found.env_id}, {len(found.tasks)} tasks, context {found.context}, seed {seed}{known}")
    return 0
