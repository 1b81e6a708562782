"""Learning in context: return against episode on tasks that no history is of, at equal processor time.

    python -m results.in_context run [--seeds 0-2] [--only 'darkroom/*']
    python -m results.in_context page       # results/in_context.md and docs/pictures/in_context-*.svg
    python -m results.in_context plan       # what `run` would do

A run is `WORLD/RECIPE`; `--only` takes such names with `*`, several of them. A run that has its row is not made again.

Protocol. The histories are of the learner `posterior` on the training tasks of a world, made anew for each seed, two
episodes longer than a context; nothing of them is on a held-out task. Every run trains on one thread for the same
processor time (the cost of an update is measured first, so that the number of updates follows) with its recipe's own
step size and schedule; worlds of long episodes take smaller batches. The LAST checkpoint plays each held-out task (at
most `MOST_TASKS`), `EACH` times over, with sampled actions, and keeps its memory from episode to episode: Mamba its
state, attention as many steps as a context has. Nothing is selected by looking at a score, but what the recipes have by
default: their step sizes, and the learner, were chosen on seed 0 of `darkroom`.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

if __package__ in (None, ""):  # run as a file: the repository is not yet on the path
    sys.path.insert(0, str(Path(__file__).parents[1]))

from results.equal_time import interval_cell
from results.study import Study, command
from scanrl.report.learning import draw_learning

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
LEARNER, MORE = "posterior", 2  # and by how many episodes its histories are longer than a context
RECIPES = ("ad", "ad-mamba", "dmh", "dmh-5")  # the last has a sub-goal every 5 steps, the paper's number
SHOWN = (1, 5, 10, 20, 30, 40, 60)  # episodes in the table
EACH, MOST_TASKS, EVAL_SEED = 3, 20, 1000


class World(NamedTuple):
    """Where a run learns and plays.

    Attributes:
        env: Gymnasium id.
        title: of its picture.
        episodes: of a context.
        batch: contexts of an update.
        played: episodes of each held-out task.
        tasks: training tasks that have histories.
        steps: of the histories of each.
    """

    env: str
    title: str
    episodes: int
    batch: int
    played: int
    tasks: int
    steps: int
    seconds: float = 150.0


WORLDS = {
    "darkroom": World("Darkroom-v0", "Darkroom, 9 x 9", 10, 32, 60, 65, 20_000),
    "darkroom-hard": World("DarkroomHard-v0", "Darkroom Hard, 9 x 9", 10, 32, 60, 65, 20_000),
    "darkroom-dynamic": World("DarkroomDynamic-v0", "Darkroom Dynamic", 4, 16, 40, 100, 20_000),
    "key-to-door": World("KeyToDoor-v0", "Key-to-Door, 9 x 9", 4, 32, 40, 1000, 4_000),
    "darkroom-large": World("DarkroomLarge-v0", "Darkroom, 40 x 40", 10, 4, 20, 500, 4_800),
}


class Run(NamedTuple):
    """One run of the study."""

    world: str
    recipe: str
    seed: int
    seconds: float

    @property
    def name(self) -> str:
        return f"{self.world}/{self.recipe}"


def planned(seeds: Iterable[int]) -> list[Run]:
    """All runs, the first seed of each before the second of any."""
    found = [Run(w, r, seed, world.seconds) for seed in seeds for w, world in WORLDS.items() for r in RECIPES]
    return [run for run in found if run.recipe != "dmh-5" or run.world != "darkroom-large"]  # the paper's there is 20


def settings(world: World, recipe: str, seed: int, steps: int) -> dict[str, Any]:
    """What a run changes of its recipe; `steps` are those of an episode."""
    changes = {
        "train.seed": seed,
        "train.context_episodes": world.episodes,
        "train.batch_size": world.batch,
        "model.context": world.episodes * steps,
    }
    return changes | ({"model.subgoal_steps": 5} if recipe == "dmh-5" else {})


def one_run(run: Run) -> dict[str, Any]:
    """The row of a run, which is made in this process."""
    import torch

    from results.equal_time import provenance
    from scanrl.collecting import collect_histories
    from scanrl.data.histories import learning_curve
    from scanrl.in_context import held_out_tasks, score_tasks
    from scanrl.policy import Policy
    from scanrl.settings import run_config
    from scanrl.training import run_training, time_update

    torch.set_num_threads(1)
    world = WORLDS[run.world]
    recipe = run.recipe.removesuffix("-5")
    data = collect_histories(
        world.env, LEARNER, tasks=world.tasks, steps=world.steps, episodes=world.episodes + MORE, seed=run.seed
    )
    changes = settings(world, run.recipe, run.seed, int(data.lengths.max()))
    updates = int(run.seconds / time_update(run_config(recipe, changes), data, clock=time.process_time))
    once = {"train.steps": updates, "train.checkpoint_every": updates, "train.validate_every": updates}
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        trained = run_training(run_config(recipe, changes, once), data, out=Path(folder) / "run")
        spent, metrics = time.process_time() - began, trained.metrics()
        model = trained.checkpoint().model()
    tasks = np.tile(held_out_tasks(world.env, MOST_TASKS, fewer=True), EACH)
    curves, by_task, acting = {}, {}, {}
    for way, memory in ways(world, run.recipe).items():
        policy = Policy(model, sample=True, seed=EVAL_SEED, forget="task", **memory)
        began = time.process_time()
        scores, played = score_tasks(policy, world.env, tasks, episodes=world.played, seed=EVAL_SEED)
        steps = sum(len(episode) for own in played for episode in own)
        acting[way] = round(1e3 * (time.process_time() - began) / steps, 4)
        curves[way] = np.round(scores.curve, 4).tolist()
        last = scores.returns.reshape(EACH, -1, world.played)[:, :, -5:]
        by_task[way] = np.round(last.mean(axis=(0, 2)), 3).tolist()
    return {
        "fingerprint": data.fingerprint,
        "env": world.env,
        "settings": changes,
        "updates": updates,
        "cpu_seconds": round(spent, 1),
        "acting_ms": acting,
        "validation_loss": [line["val/loss"] for line in metrics if "val/loss" in line][-1],
        "history": np.round(learning_curve(data), 4).tolist(),
        "tasks": len(set(tasks.tolist())),
        "each": EACH,
        "episodes": world.played,
        "eval_seed": EVAL_SEED,
        "curves": curves,
        "by_task": by_task,
        "optimal": scores.optimal,
        "random": scores.random,
        **provenance(),
    }


def ways(world: World, recipe: str) -> dict[str, dict[str, Any]]:
    """How a recipe may remember: what it is called, and arguments of `Policy`."""
    found: dict[str, dict[str, Any]] = {"all": {}}
    if recipe != "ad":
        found["last"] = {"rescan": world.episodes - 1}
    return found


def page(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: one table for each world, and its picture."""
    lines = ["# Learning in context", "", "Protocol and command: `results/in_context.py`; rows: "]
    lines[-1] += (
        "`results/in_context.jsonl`. Mean return of an episode on held-out tasks, means over seeds; the interval"
    )
    lines[-1] += " is the 95 % one of the mean over seeds of the last episode. `last` scans as many episodes anew, at "
    lines[-1] += (
        "the start of each, as a context of the training had before; otherwise the state goes on for ever, and "
    )
    lines[-1] += "attention acts on its cached window."
    for name, world in WORLDS.items():
        there = [row for row in rows if row["world"] == name]
        if there:
            lines += ["", f"## {world.title}", "", *_table(world, there)]
            lines += ["", f"![Return against episode](../docs/pictures/{_file(name)})"]
    return "\n".join(lines) + "\n"


def pictures(rows: Sequence[dict[str, Any]]) -> dict[Path, str]:
    """The picture of each world that has rows."""
    worlds = {name: [row for row in rows if row["world"] == name] for name in WORLDS}
    return {PICTURES / _file(name): _picture(WORLDS[name], there) for name, there in worlds.items() if there}


def _file(world: str) -> str:
    return f"in_context-{world}.svg"


def _table(world: World, rows: Sequence[dict[str, Any]]) -> list[str]:
    shown = [episode for episode in SHOWN if episode <= world.played]
    head = ["recipe", *(f"episode {episode}" for episode in shown), "95 %", "of optimal", "seeds", "updates"]
    head += ["training, CPU s", "held-out loss", "acting, ms a step"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for recipe, way in _kinds(world):
        mine = [row for row in rows if row["recipe"] == recipe]
        if not mine:
            continue
        curves = np.array([row["curves"][way] for row in mine])
        cells = [_called(recipe, way), *(f"{curves[:, episode - 1].mean():.2f}" for episode in shown)]
        cells += [interval_cell(curves[:, -1], 2), f"{100 * curves[:, -1].mean() / mine[0]['optimal']:.0f} %"]
        cells += [str(len(mine)), f"{np.mean([row['updates'] for row in mine]):.0f}"]
        for key, digits in (("cpu_seconds", 0), ("validation_loss", 4)):
            cells.append(f"{np.mean([row[key] for row in mine]):.{digits}f}")
        cells.append(f"{np.mean([row['acting_ms'][way] for row in mine]):.3f}")
        lines.append("| " + " | ".join(cells) + " |")
    first = rows[0]
    lines += [
        "",
        f"Optimal {first['optimal']:.2f}, random {first['random']:.3f}; the learner of the histories ends at ",
    ]
    lines[-1] += (
        f"{first['history'][-1]:.2f}. {first['tasks']} held-out tasks, each {first['each']} times; contexts of "
    )
    lines[-1] += f"{world.episodes} episodes."
    return lines


def _kinds(world: World) -> list[tuple[str, str]]:
    return [(recipe, way) for recipe in RECIPES for way in ways(world, recipe)]


def _called(recipe: str, way: str) -> str:
    return recipe if way == "all" else f"{recipe}, {way}"


def _picture(world: World, rows: Sequence[dict[str, Any]]) -> str:
    curves = {recipe: np.array([row["curves"]["all"] for row in rows if row["recipe"] == recipe]) for recipe in RECIPES}
    first = rows[0]
    return draw_learning(
        world.title,
        {name: curve for name, curve in curves.items() if len(curve)},
        np.array(first["history"]),
        {"optimal": first["optimal"], "random": first["random"]},
    )


STUDY = Study(Path(__file__), planned, one_run, page, also=pictures)

if __name__ == "__main__":
    command(STUDY, __doc__)
