"""Times an update of several seeds: one seed after the other, in turn, and as one stacked model.

    python -m benchmarks.seeds [--json] [--threads N] [--repeats N] [--case W1] [--seeds 5] [--device cuda]

`one after the other` makes all updates with one seed, as runs that follow each other do; `in turn` changes the seed
with every update, which is what `train --seeds` does on a CPU; `stacked` is what it does on a GPU. `ratio` is the
median of the first over the row's own. An update is the whole of it: windows, loss, backward, clipping, optimiser.
Before anything is timed, losses and gradients of the stacked seeds are compared with those in turn.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

if __package__ in (None, ""):  # run as a file: the repository is not yet on the path
    sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.training import CASES
from scanrl.bench.batches import recording
from scanrl.bench.equality import require_equal
from scanrl.bench.timing import heading, measure, print_rows, rows_of
from scanrl.data import Dataset
from scanrl.learner import Learner
from scanrl.run import Run
from scanrl.settings import run_config
from scanrl.stacked import Stacked
from scanrl.stats import Stats

__all__ = ["learners", "require_equal_seeds"]


def learners(case: str, seeds: int, device: str, dataset: Dataset, **changes: object) -> list[Learner]:
    """Fresh ones of a case, with seeds from 0 on; `changes` go to the model's settings."""
    recipe, batch, context = CASES[case]
    stats = Stats.fit(dataset)
    settings = {"train.batch_size": batch, "model.context": context, "train.device": device}
    settings |= {f"model.{name}": value for name, value in changes.items()}
    configs = [run_config(recipe, {**settings, "train.seed": seed}) for seed in range(seeds)]
    return [Learner(Run(Path(), config), dataset, stats) for config in configs]


def require_equal_seeds(turns: Sequence[Learner], stacked: Stacked) -> None:
    """Compares the first update of the stacked seeds with that of the seeds in turn; raises `Differs`."""
    truth, found = [one.update() for one in turns], stacked.update()
    for one, same, expected, values in zip(turns, stacked.learners, truth, found, strict=True):
        name = f"stacked, seed {one.settings.seed}"
        require_equal(name, _numbers(same, values), _numbers(one, expected), 1e-3)


def _numbers(one: Learner, values: tuple[float, float]) -> list[Tensor]:
    """Loss, gradient norm, and the first moments, which after one update are a tenth of the gradients."""
    states = (one.optimizer.state.get(parameter, {}) for parameter in one.model.parameters())
    return [*map(torch.tensor, values), *(state["exp_avg"] for state in states if state)]


def run(case: str, seeds: int, device: str, repeats: int) -> list[dict]:
    recipe, batch, context = CASES[case]
    dataset = recording()
    [single], turns, others = (learners(case, count, device, dataset) for count in (1, seeds, seeds))
    stacked = Stacked(others)
    require_equal_seeds(turns, stacked)

    def finished(update: Callable[[], object]) -> Callable[[], None]:
        def call() -> None:
            update()
            if device != "cpu":
                torch.cuda.synchronize(device)

        return call

    ways = {
        "one after the other": finished(lambda: [single.update() for _ in range(seeds)]),
        "in turn": finished(lambda: [one.update() for one in turns]),
        "stacked": finished(stacked.update),
    }
    timings = measure(ways, repeats, budget_s=60.0)
    tokens = seeds * batch * context * single.run.config.model.period
    each = {name: 1e3 * t.median_ms / tokens for name, t in timings.items()}
    facts = {"model": recipe, "seeds": seeds, "device": device, "us_per_token": each}
    return rows_of(case, timings, "one after the other", **facts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", choices=CASES, help="default: W1 and W6")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true", help="one JSON object per row")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=10)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    if not chosen.json:
        print(heading())
    for case in chosen.case or ["W1", "W6"]:
        with torch.random.fork_rng(devices=[]):
            print_rows(run(case, chosen.seeds, chosen.device, chosen.repeats), chosen.json)


if __name__ == "__main__":
    main()
