"""Times a whole training step: loss, backward, clipping, optimiser; ours beside what a user would have instead.

    python -m benchmarks.training [--json] [--threads N] [--repeats N] [--case W1]

`ratio` is the reference structure's median over the row's own (in W6 and DT that of torch's layers). The candidates:

- ours, and ours bf16 with products in bfloat16 (`train.precision`);
- arithmetic alone: the machine's own limit for the step, see `benchmarks.arithmetic`;
- torch's layers: the same model, composed of torch's own functions round our scan;
- classic loop, mambapy: the same on other scans;
- reference structure: the step as the released code has it, see `benchmarks.reference`.

Before anything is timed, loss and gradients of every candidate are compared with those on the float64 reference.
Batches are assembled outside; see `benchmarks.batches`. As in a training run, freed memory stays with the process.
"""

import argparse
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

if __package__ in (None, ""):  # run as a file: the repository is not yet on the path
    sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.arithmetic import arithmetic
from benchmarks.models import OTHER_SCANS, hopper_model, plain_layers, scan_replaced, windows
from benchmarks.reference import reference_loss
from benchmarks.timing import measure, print_rows
from scanrl.batch import Batch
from scanrl.kernels import keep_memory
from scanrl.models.decision import DecisionModel

CASES = {  # recipe, batch, steps of 3 tokens
    "W1": ("dmm-dc", 64, 8),
    "W2": ("dm", 64, 20),
    "W6": ("dmm-dc", 64, 64),
    "DT": ("dt", 64, 20),
}
LONGEST_LOOP = 60  # tokens: the backward pass of a loop that slices is quadratic in them


class Step:
    """One model with its optimiser, trained in one of the ways."""

    def __init__(self, case: str, kind: str) -> None:
        self.name, batch, steps = CASES[case]
        self.kind, self.batch = kind, windows(batch, steps)
        self.build = partial(hopper_model, self.name, context=steps)
        self.model = self.build()
        settings = {} if kind == "reference structure" else {"fused": True}
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, weight_decay=1e-4, **settings)

    def loss(self, model: DecisionModel, batch: Batch, dropout: float) -> Tensor:
        if self.kind == "reference structure":
            return reference_loss(model, batch, dropout)
        return model.loss(batch, half=torch.bfloat16 if self.kind == "ours bf16" else None)

    def layers(self) -> AbstractContextManager[None]:
        if self.kind == "torch's layers":
            return plain_layers()
        return scan_replaced(OTHER_SCANS[self.kind]) if self.kind in OTHER_SCANS else nullcontext()

    def __call__(self) -> None:
        with self.layers():
            loss = self.loss(self.model, self.batch, 0.1)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 0.25)
        self.optimizer.step()

    def gradients(self, model: DecisionModel, batch: Batch) -> list[Tensor]:
        """The loss, and its gradients, without dropout."""
        loss = self.loss(model, batch, 0.0)
        wanted = [p for n, p in model.named_parameters() if not n.startswith("extras.")]
        return [loss.detach(), *torch.autograd.grad(loss, wanted)]


def refuse_unless_equal(steps: dict[str, Step]) -> None:
    """Exits if a candidate's loss or gradients stray from the float64 reference."""
    for name, step in steps.items():
        batch = Batch(*(x[:4] for x in step.batch))
        double = Batch(*(x.double() if x.is_floating_point() else x for x in batch))
        model = step.build().double()
        loss = model.loss(double)
        wanted = [p for n, p in model.named_parameters() if not n.startswith("extras.")]
        truth = [loss.detach(), *torch.autograd.grad(loss, wanted)]
        with step.layers():
            found = step.gradients(step.model, batch)
        if name == "ours bf16":  # three digits: of the whole gradient
            apart, whole = (
                torch.cat([t.flatten() for t in part]).norm() for part in (differences(found, truth), truth)
            )
            if not apart < 0.05 * whole:
                sys.exit(f"{name}: the gradient differs by {apart / whole:.1e} from the float64 reference; not timed")
            continue
        worst = max(
            (d.abs().max() / t.abs().max()).item() for d, t in zip(differences(found, truth), truth, strict=True)
        )
        if not worst < 1e-3:
            sys.exit(f"{name}: differs from the float64 reference by {worst:.1e} of the largest entry; not timed")


def differences(found: list[Tensor], truth: list[Tensor]) -> list[Tensor]:
    return [f - t for f, t in zip(found, truth, strict=True)]


def candidates(case: str) -> list[str]:
    recipe, _, steps = CASES[case]
    names = ["ours", "ours bf16", "torch's layers"]
    if recipe == "dt":
        return names
    if 3 * steps <= LONGEST_LOOP:
        names += ["classic loop", "reference structure"]
    return names + (["mambapy"] if find_spec("mambapy") else [])


def run(case: str, threads: int, repeats: int, budget_s: float) -> list[dict]:
    recipe, batch, steps = CASES[case]
    found = {name: Step(case, name) for name in candidates(case)}
    refuse_unless_equal(found)
    functions: dict[str, Callable[[], object]] = dict(found)
    if recipe != "dt":
        functions["arithmetic alone"] = arithmetic(found["ours"].model, batch, 3 * steps)
    timings = measure(functions, repeats, budget_s=budget_s)
    base = timings.get("reference structure") or timings["torch's layers"]
    return [
        {
            "case": case,
            "model": recipe,
            "impl": name,
            "median_ms": t.median_ms,
            "p10_ms": t.p10,
            "p90_ms": t.p90,
            "ratio": base.median_ms / t.median_ms,
            "us_per_token": 1e3 * t.median_ms / (batch * steps * 3),
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
    parser.add_argument("--budget", type=float, default=40.0, help="seconds per candidate, roughly")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    keep_memory()
    cases = chosen.case or ["W1", "DT"]
    rows = [row for case in cases for row in run(case, chosen.threads, chosen.repeats, chosen.budget)]
    print_rows(rows, chosen.json)


if __name__ == "__main__":
    main()
