"""Times a whole training step: loss, backward, clipping, optimiser; the same model on our scan and on others.

    python -m benchmarks.training [--json] [--threads N] [--repeats N] [--case W1]

`ratio` is the classic loop's median over the row's own. Before anything is timed, loss and gradients of every candidate
are compared with those on the float64 reference. Batches are assembled outside; see `benchmarks.batches`.
"""

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

if __package__ in (None, ""):  # run as a file: the repository is not yet on the path
    sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.models import OTHER_SCANS, hopper_model, scan_replaced, windows
from benchmarks.timing import measure, print_rows
from scanrl.batch import Batch
from scanrl.models.decision import DecisionModel

CASES = {
    "W1": ("dmm-dc", 64, 8),  # 24 tokens, width 64
    "W2": ("dm", 64, 20),  # 60 tokens, width 128
    "W6": ("dmm-dc", 64, 64),  # 192 tokens, width 64
    "DT": ("dt", 64, 20),
}


class Step:
    """One model with its optimiser, on one scan."""

    def __init__(self, name: str, scan: str, batch: Batch) -> None:
        self.name, self.scan, self.batch = name, OTHER_SCANS.get(scan), batch
        self.model = hopper_model(name, context=batch.rewards.shape[1])
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)

    def __call__(self) -> None:
        with scan_replaced(self.scan):
            loss = self.model.loss(self.batch)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 0.25)
        self.optimizer.step()


def gradients(model: DecisionModel, batch: Batch) -> list[Tensor]:
    model.eval()  # dropout would differ between candidates
    loss = model.loss(batch)
    found = torch.autograd.grad(loss, [p for n, p in model.named_parameters() if not n.startswith("extras.")])
    model.train()
    return [loss.detach(), *found]


def refuse_unless_equal(steps: dict[str, Step]) -> None:
    """Exits if a candidate's loss or gradients stray from the float64 reference."""
    for name, step in steps.items():
        batch = Batch(*(x[:4] for x in step.batch))
        exact = hopper_model(step.name, context=batch.rewards.shape[1]).double()
        truth = gradients(exact, Batch(*(x.double() if x.is_floating_point() else x for x in batch)))
        with scan_replaced(step.scan):
            found = gradients(step.model, batch)
        worst = max(((f - t).abs().max() / t.abs().max()).item() for f, t in zip(found, truth, strict=True))
        if not worst < 1e-3:
            sys.exit(f"{name}: differs from the float64 reference by {worst:.1e} of the largest entry; not timed")


def run(case: str, threads: int, repeats: int) -> list[dict]:
    recipe, batch, context = CASES[case]
    data = windows(batch, context)
    names = ["ours"]
    if recipe != "dt" and case != "W6":  # W6: the loop's backward is quadratic in the tokens
        names += ["classic loop", *(["mambapy"] if find_spec("mambapy") else [])]
    steps = {name: Step(recipe, name, data) for name in names}
    refuse_unless_equal(steps)
    timings = measure(steps, repeats, budget_s=40.0)
    base = timings.get("classic loop")
    return [
        {
            "case": case,
            "model": recipe,
            "impl": name,
            "median_ms": t.median_ms,
            "p10_ms": t.p10,
            "p90_ms": t.p90,
            "ratio": base.median_ms / t.median_ms if base else None,
            "us_per_token": 1e3 * t.median_ms / (batch * context * 3),
            "threads": threads,
        }
        for name, t in timings.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Times a whole training step.")
    parser.add_argument("--case", action="append", choices=CASES, help="default: W1 and DT")
    parser.add_argument("--json", action="store_true", help="one JSON object per row")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=10)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    rows = [row for case in chosen.case or ["W1", "DT"] for row in run(case, chosen.threads, chosen.repeats)]
    print_rows(rows, chosen.json)


if __name__ == "__main__":
    main()
