"""`eval` where a policy learns in context: return against episode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from scanrl.console import print_json, print_table
from scanrl.in_context import TaskScores
from scanrl.types import DataError

__all__ = ["learn"]


def learn(run: Path, env: str | None, tasks: Any, plot: Path | None, json: bool, **how: Any) -> int:
    """Return against episode as a table or JSON, and as a drawing."""
    from scanrl.scoring import score_learning

    if plot is not None and plot.suffix != ".svg":
        raise DataError(f"eval: --plot: expected a name that ends with .svg, got {plot}")
    found = score_learning(run, env, tasks, **how)
    if plot is not None:
        from scanrl.report.learning import draw_learning

        intervals = [found.interval(episode) for episode in range(found.returns.shape[1])]
        known = [interval for interval in intervals if interval is not None]
        marks = {"optimal": found.optimal, "random": found.random}
        drawn = draw_learning(
            f"{found.env_id}: mean return of {_count(found)}, 95 % interval",
            {"policy": found.curve[None]},
            history=np.array(found.learner) if found.learner else None,
            marks={name: value for name, value in marks.items() if value is not None},
            band=(np.array(known)[:, 0], np.array(known)[:, 1]) if len(known) == len(intervals) else None,
        )
        plot.parent.mkdir(parents=True, exist_ok=True)
        plot.write_text(drawn, encoding="utf-8")
    return print_json(found.to_json()) if json else _show_learning(found)


def _count(found: TaskScores) -> str:
    return f"{len(found.returns)} {'stream' if found.tasks is None else 'task'}{'s' * (len(found.returns) > 1)}"


def _show_learning(found: TaskScores) -> int:
    """Return against episode, on tasks or streams side by side."""
    episodes = found.returns.shape[1]
    shown = sorted({*range(min(5, episodes)), *range(9, episodes, 10), episodes - 1})
    rows = []
    for episode in shown:
        interval, share = found.interval(episode), found.share(episode)
        between = "-" if interval is None else f"{interval[0]:.2f} to {interval[1]:.2f}"
        rows.append(
            (episode + 1, f"{found.curve[episode]:.2f}", between, "-" if share is None else f"{100 * share:.0f}")
        )
    print_table(("episode", "return", "95 % interval", "normalised"), rows, right=(0, 1, 2, 3))
    best = "optimal" if found.tasks is not None else "expert"
    known = "" if found.optimal is None else f"; random {found.random:.2f}, {best} {found.optimal:.2f}"
    if found.learner:
        known += f", its learner {found.learner[0]:.2f} to {found.learner[-1]:.2f} in {len(found.learner)} episodes"
    print(f"{found.env_id}, {_count(found)}, {found.memory}, seed {found.seed}{known}")
    print(f"a step of {_count(found)} together {found.step_ms:.3g} ms, memory of each {found.state_kb:.0f} KB")
    if found.tasks is None:
        ends = [(0, "first")] if episodes == 1 else [(0, "first"), (episodes - 1, "last")]
        told = ((name, found.curve[episode], found.error(episode)) for episode, name in ends)
        said = (f"{name} {mean:.1f}" + ("" if error is None else f" ± {error:.1f}") for name, mean, error in told)
        print(f"of {episodes} episodes: {', '.join(said)} (mean and standard error over streams)")
    return 0
