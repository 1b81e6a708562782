"""Pong from pictures: a small model trained on a scripted player's recording, and whether it reaches its mean return.

    OMP_NUM_THREADS=1 python tools/record_pong.py --out runs/pong.store
    OMP_NUM_THREADS=1 python results/pong.py --data runs/pong.store --recipe dmm-dc --updates 1500

The recording is local: a script that reads the game's memory, with noise, cut at 3,000 steps an episode. It is not
DQN-replay data, and scores of the papers do not compare. The model is the recipe's Atari form (`scanrl.models.atari`)
with three layers instead of six, no dropout and standardised pixels (rows without that setting: pixels divided by 255,
from which nothing was learned; see docs/log.md); `bc` is itself, one picture stack at a time, and `--top-fraction`
trains on the best episodes only. Its last checkpoint plays `EPISODES` episodes cut at the same length,
asked for the best return of the data, on the window it was trained on and with the state carried, each with the
likeliest actions and with actions drawn. Each call adds one row to `results/pong.jsonl`. Windows and batch may be given
(`--context`, `--batch`); rows are all kept, so that what was tried is seen.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from scanrl.data import load
from scanrl.evaluation import library_versions, normalize
from scanrl.models.atari import ATARI
from scanrl.policy import Policy
from scanrl.rollout import rollout
from scanrl.run import open_run
from scanrl.settings import run_config
from scanrl.training import run_training

ROWS = Path(__file__).with_suffix(".jsonl")
ENV, EPISODES, EVAL_SEED, MAX_STEPS = "scanrl/Pong-v0", 8, 1000, 3000
LAYERS = 3


def settings(recipe: str, updates: int, seed: int, context: int, batch: int, top: float) -> dict[str, Any]:
    """Changes to the recipe's own, by dotted key."""
    model = {**ATARI.get(recipe, {}), "dropout": 0.0, "context": context, "pixels": "standardised"}
    if "pattern" in model:
        model["pattern"] = model["pattern"].replace("*6", f"*{LAYERS}")
    train = {
        "steps": updates,
        "batch_size": batch,
        "learning_rate": 1e-3,
        "clip_norm": 1.0,
        "checkpoint_every": updates,
        "top_fraction": top,
        "seed": seed,
    }
    return {**{f"model.{k}": v for k, v in model.items()}, **{f"train.{k}": v for k, v in train.items()}}


def train_and_score(
    data: Path, recipe: str, updates: int, seed: int, context: int, batch: int, top: float, out: Path | None
) -> dict[str, Any]:
    """One run: the row of the table."""
    torch.set_num_threads(1)
    dataset = load(f"store:{data}")
    changes = settings(recipe, updates, seed, context, batch, top)
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        if out is not None and out.exists():
            run, spent = open_run(out), None  # trained before, only to be scored
        else:
            run = run_training(run_config(recipe, {}, changes), dataset, out=out or Path(folder) / "run")
            spent = round(time.process_time() - began, 1)
        validation = [line["val/loss"] for line in run.metrics() if "val/loss" in line]
        model = run.checkpoint().model()
    acted = {}
    for memory, sample in ((context, False), (context, True), ("recurrent", False), ("recurrent", True)):
        policy = Policy(model, context=memory, sample=sample, seed=seed)
        how = "state carried" if memory == "recurrent" else f"window of {context}"
        name = f"{how}, {'drawn' if sample else 'likeliest'}"
        played = rollout(policy, ENV, episodes=EPISODES, seed=EVAL_SEED, num_envs=EPISODES, max_steps=MAX_STEPS)
        acted[name] = {"returns": [e.total_reward for e in played], "lengths": [len(e) for e in played]}
    return {
        "recipe": recipe,
        "parameters": model.parameter_count(),
        "dataset": dataset.name,
        "fingerprint": dataset.fingerprint,
        "data_steps": dataset.steps,
        "data_return_mean": float(dataset.returns.mean()),
        "data_return_max": float(dataset.returns.max()),
        "seed": seed,
        "env": ENV,
        "max_steps": MAX_STEPS,
        "target_return": float(dataset.returns.max()),
        "eval_seed": EVAL_SEED,
        "updates": updates,
        "cpu_seconds": spent,
        "validation_losses": [round(value, 4) for value in validation],
        "settings": changes,
        "acted": acted,
        "versions": library_versions(),
        "machine": f"{platform.machine()}, {platform.system()}, one thread",
        "revision": subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
        ).stdout.strip(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the store that tools/record_pong.py wrote")
    parser.add_argument("--recipe", choices=(*ATARI, "bc"), default="dmm-dc")
    parser.add_argument("--updates", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--context", type=int, default=8, help="steps of a window")
    parser.add_argument("--batch", type=int, default=40, help="windows of an update")
    parser.add_argument("--top-fraction", type=float, default=1.0, help="of the steps: the best episodes that hold it")
    parser.add_argument("--out", type=Path, help="folder to keep the run in; a run that is there is scored")
    chosen = parser.parse_args()
    sizes = (chosen.context, chosen.batch, chosen.top_fraction)
    row = train_and_score(chosen.data, chosen.recipe, chosen.updates, chosen.seed, *sizes, chosen.out)
    with ROWS.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(f"data: mean return {row['data_return_mean']:.2f}, best {row['data_return_max']:.0f}")
    for name, acted in row["acted"].items():
        mean = sum(acted["returns"]) / len(acted["returns"])
        print(f"{row['recipe']}, {name} actions: mean {mean:.2f}, normalised {float(normalize(ENV, mean)):.1f}")  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
