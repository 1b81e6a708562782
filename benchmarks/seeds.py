"""Times an update of several seeds: as one stacked model, and one seed after the other; and of one seed alone.

    python -m benchmarks.seeds [--json] [--threads N] [--repeats N] [--case W1] [--seeds 5] [--device cuda]

`ratio` is the median of the seeds in turn over the row's own. An update is the whole of it: windows, loss, backward,
clipping, optimiser. Before anything is timed, losses and gradients of the stacked seeds are compared with the others'.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

if __package__ in (None, ""):  # run as a file: the repository is not yet on the path
    sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.batches import recording
from benchmarks.timing import measure, print_rows
from benchmarks.training import CASES
from scanrl.data import Dataset
from scanrl.learner import Learner
from scanrl.run import Run
from scanrl.settings import run_config
from scanrl.stacked import Stacked
from scanrl.stats import Stats


def learners(case: str, seeds: int, device: str, dataset: Dataset) -> list[Learner]:
    recipe, batch, context = CASES[case]
    stats = Stats.fit(dataset)
    changes = {"train.batch_size": batch, "model.context": context, "train.device": device}
    configs = [run_config(recipe, {**changes, "train.seed": seed}) for seed in range(seeds)]
    return [Learner(Run(Path(), config), dataset, stats) for config in configs]


def refuse_unless_equal(turns: Sequence[Learner], stacked: Stacked) -> None:
    """Exits if the first update of the stacked seeds is not that of the seeds in turn."""
    expected, found = [one.update() for one in turns], stacked.update()
    worst = max(abs(a - b) / abs(b) for x, y in zip(found, expected, strict=True) for a, b in zip(x, y, strict=True))
    for one, other in zip(turns, stacked.learners, strict=True):
        names = zip(one.model.named_parameters(), other.model.parameters(), strict=True)
        for (_, parameter), same in names:
            if parameter in one.optimizer.state:  # after one update the first moment is a tenth of the gradient
                truth, moment = (o.optimizer.state[p]["exp_avg"] for o, p in ((one, parameter), (other, same)))
                worst = max(worst, ((moment - truth).abs().max() / truth.abs().max().clamp(min=1e-12)).item())
    if not worst < 1e-3:
        sys.exit(f"stacked: differs from the seeds in turn by {worst:.1e} of the largest entry; not timed")


def run(case: str, seeds: int, device: str, threads: int, repeats: int) -> list[dict]:
    recipe, batch, context = CASES[case]
    dataset = recording()
    turns, others, single = (learners(case, count, device, dataset) for count in (seeds, seeds, 1))
    stacked = Stacked(others)
    refuse_unless_equal(turns, stacked)

    def finished(update: Callable[[], object]) -> Callable[[], None]:
        def call() -> None:
            update()
            if device != "cpu":
                torch.cuda.synchronize(device)

        return call

    candidates = {
        "in turn": finished(lambda: [one.update() for one in turns]),
        "stacked": finished(stacked.update),
        "one seed": finished(single[0].update),
    }
    with torch.random.fork_rng(devices=[]):
        timings = measure(candidates, repeats, budget_s=60.0)
    return [
        {
            "case": case,
            "model": recipe,
            "impl": name,
            "seeds": 1 if name == "one seed" else seeds,
            "median_ms": t.median_ms,
            "p10_ms": t.p10,
            "p90_ms": t.p90,
            "ratio": timings["in turn"].median_ms / t.median_ms,
            "us_per_token": 1e3 * t.median_ms / (batch * context * 3 * (1 if name == "one seed" else seeds)),
            "device": device,
            "threads": threads,
        }
        for name, t in timings.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Times an update of several seeds.")
    parser.add_argument("--case", action="append", choices=CASES, help="default: W1 and W6")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true", help="one JSON object per row")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=10)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    rows = [
        row
        for case in chosen.case or ["W1", "W6"]
        for row in run(case, chosen.seeds, chosen.device, chosen.threads, chosen.repeats)
    ]
    print_rows(rows, chosen.json)


if __name__ == "__main__":
    main()
