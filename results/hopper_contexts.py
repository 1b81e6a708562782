"""Contexts of several episodes on Hopper: Decision Mamba-Hybrid and `ad-mamba` beside `dt` and `dmm-dc`, on the same
data.

    python -m results.hopper_contexts run --data DIR [--seeds 0-2] [--only 'dmh']
    python -m results.hopper_contexts page       # writes results/hopper_contexts.md from the rows
    python -m results.hopper_contexts plan       # what `run` would do

The data is local/hopper-medium-replay, many agents of all qualities, as one history. `dmh` and `ad-mamba` are trained
on contexts of four episodes of it, any four, the worst first, with a sub-goal every 20 steps (the paper's numbers);
they are asked for no return. They play ten episodes in a row without forgetting, `STREAMS` times; the paper reports the
last of the ten, and here is the first as well. `dt` and `dmm-dc` are themselves: windows of 20 and 64 steps, the state
carried through an episode, a return of 3600 asked for, 20 episodes. Every run trains on one thread for the same
processor time, on all episodes but a tenth (a single history: nothing held out), and its LAST checkpoint plays.

The data sets are made from stored agents in the D4RL schema; they are not D4RL's, and their scores belong in no column
with D4RL's.
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

from results.equal_time import TASKS, interval_cell, provenance, scores, train_and_score
from results.study import Study, command

RECIPES = ("dmh", "ad-mamba", "dt", "dmm-dc")
IN_CONTEXT = ("dmh", "ad-mamba")
TASK, SECONDS = TASKS["hopper-medium-replay"], 180.0
CONTEXT, BATCH, EPISODES, STREAMS, SEED = 4, 4, 10, 10, 1000


class Run(NamedTuple):
    """One run of the study."""

    recipe: str
    seed: int
    seconds: float

    @property
    def name(self) -> str:
        return self.recipe


def planned(seeds: Iterable[int]) -> list[Run]:
    """All runs, the first seed of each before the second of any."""
    return [Run(recipe, seed, SECONDS) for seed in seeds for recipe in RECIPES]


def settings(recipe: str, seed: int) -> dict[str, Any]:
    """What a run changes of its recipe."""
    if recipe not in IN_CONTEXT:
        return {"train.seed": seed}
    return {
        "train.seed": seed,
        "train.context_episodes": CONTEXT,
        "train.context_order": "return",
        "train.batch_size": BATCH,
        "train.validation": 0.0,
    }


def one_run(run: Run, folder: Path) -> dict[str, Any]:
    """The row of a run, which is made in this process."""
    from scanrl.data import load

    data, changes = load(folder / TASK.file), settings(run.recipe, run.seed)
    if run.recipe in IN_CONTEXT:
        return _in_context(run, data, changes)
    return train_and_score(
        run.recipe, changes, data, TASK.env, seconds=run.seconds, target=TASK.target, contexts=("recurrent",)
    )


def _in_context(run: Run, data: Any, changes: dict[str, Any]) -> dict[str, Any]:
    import torch

    from scanrl.data.histories import replay_history
    from scanrl.evaluation import normalize
    from scanrl.scoring import score_learning
    from scanrl.settings import run_config
    from scanrl.training import run_training, time_update

    torch.set_num_threads(1)
    history = replay_history(data, "return")
    updates = int(run.seconds / time_update(run_config(run.recipe, changes), history, clock=time.process_time))
    once = {"train.steps": updates, "train.checkpoint_every": updates}
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        trained = run_training(run_config(run.recipe, changes, once), history, out=Path(folder) / "run")
        spent = time.process_time() - began
        found = score_learning(trained.path, TASK.env, None, episodes=EPISODES, streams=STREAMS, seed=SEED)
    normalised = normalize(TASK.env, found.returns)
    assert normalised is not None
    return {
        "fingerprint": data.fingerprint,
        "env": TASK.env,
        "updates": updates,
        "cpu_seconds": round(spent, 1),
        "settings": changes,
        "curve": np.round(normalised.mean(axis=0), 2).tolist(),
        "streams": STREAMS,
        "eval_seed": SEED,
        **provenance(),
    }


def page(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: one table."""
    head = ("recipe", "first episode", "95 %", "tenth episode", "95 %", "seeds", "updates", "training, CPU s")
    lines = [
        "# Contexts of several episodes on Hopper",
        "",
        "Protocol and command: `results/hopper_contexts.py`; rows: ",
    ]
    lines[-1] += (
        "`results/hopper_contexts.jsonl`. Normalised scores, means over seeds with the 95 % interval of the mean;"
    )
    lines[-1] += " `dt` and `dmm-dc` keep nothing from episode to episode and have one number."
    lines += ["", "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for recipe in RECIPES:
        mine = [row for row in rows if row["recipe"] == recipe]
        if not mine:
            continue
        cells = [recipe]
        if recipe in IN_CONTEXT:
            for episode in (0, -1):
                values = [row["curve"][episode] for row in mine]
                cells += [f"{np.mean(values):.1f}", interval_cell(values)]
        else:
            values = [scores(row, "recurrent") for row in mine]
            cells += [f"{np.mean(values):.1f}", interval_cell(values), "-", "-"]
        cells += [str(len(mine)), *(f"{np.mean([row[key] for row in mine]):.0f}" for key in ("updates", "cpu_seconds"))]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


STUDY = Study(Path(__file__), planned, one_run, page, lambda run: TASK.file)

if __name__ == "__main__":
    command(STUDY, __doc__)
