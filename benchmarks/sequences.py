"""Times whole training updates on windows and on whole episodes whose state is carried, against the steps of a chunk.

    python -m benchmarks.sequences [--json] [--threads N] [--repeats N] [--recipe NAME]

Batches are cut from recordings with episodes of 1,000 steps, of about as many tokens whatever the length (`TOKENS`);
the sampler is part of the update, as in a training run. `us_per_token` is for a whole update; `ratio` is the windows'
median over the row's own, so that it says what carrying the state costs.
"""

import argparse
import sys
from pathlib import Path

import torch

if __package__ in (None, ""):  # run as a file: the repository is not yet on the path
    sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.timing import measure, print_rows
from scanrl.bench.batches import recording
from scanrl.bench.timing import heading, rows_of
from scanrl.kernels import keep_memory
from scanrl.learner import Learner
from scanrl.run import Run
from scanrl.settings import run_config
from scanrl.stats import Stats

RECIPES = ("dmm-dc", "dmm-dl", "dmm26", "dm", "dt")
CONTEXTS = (8, 20, 64, 256)  # steps
TOKENS = 6144  # of a batch: 32 windows of 64 steps


def learner(recipe: str, context: int, sequences: str) -> Learner:
    """One run, of which nothing is written."""
    data = recording()
    model = {"model.context": context}
    rows = max(1, TOKENS // (context * run_config(recipe).model.period))
    config = run_config(recipe, model, {"train.sequences": sequences, "train.batch_size": rows})
    return Learner(Run(Path(), config), data, Stats.fit(data))


def rows(recipe: str, context: int, repeats: int) -> list[dict]:
    """Of one recipe and length, taken in turns."""
    both = {sequences: learner(recipe, context, sequences) for sequences in ("windows", "episodes")}
    timings = measure({name: one.update for name, one in both.items()}, repeats)
    one = both["windows"]
    tokens = one.settings.batch_size * context * one.model.config.period
    cost = {name: 1e3 * timing.median_ms / tokens for name, timing in timings.items()}
    shape = f"{one.settings.batch_size} x {context} steps"
    return rows_of(recipe, timings, "windows", us_per_token=cost, shape=shape)


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object per row")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=8, help="turns per candidate")
    parser.add_argument("--recipe", action="append", choices=RECIPES)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    keep_memory()
    if not chosen.json:
        print(heading())
    for recipe in chosen.recipe or RECIPES:
        print_rows([row for context in CONTEXTS for row in rows(recipe, context, chosen.repeats)], chosen.json)


if __name__ == "__main__":
    main()
