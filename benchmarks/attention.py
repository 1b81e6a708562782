"""Times attention where a user would have it: is ours a fair opponent, and what does it cost beside Mamba?

    python -m benchmarks.attention [--json] [--threads N] [--repeats N] [--case CASE]

`train W1`, `W2`, `W6`: a whole training step (loss, backward, clipping, AdamW) at equal windows and width. W2 holds
our Decision Transformer against transformers' `DecisionTransformerModel` with the same weights, whose actions and
gradients are compared first; W1 and W6 an attention stack against `dmm-dc`. `window`: one forward over a window of 20
steps without gradients, what acting by recomputation costs. `ratio` is our attention's median over the row's own.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

if __package__ in (None, ""):  # run as a file: the repository is not yet on the path
    sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.peers import DecisionTransformerPeer
from scanrl.batch import Batch
from scanrl.bench.equality import require_equal
from scanrl.bench.models import hopper_model, windows
from scanrl.bench.timing import heading, installed, measure, print_rows, rows_of
from scanrl.bench.updates import training_step

BATCH = 64
# Steps of a window, width, the model beside the attention stack; each as in the workload of the name.
TRAINED = {"W1": (8, 64, "dmm-dc"), "W2": (20, 128, "dm"), "W6": (64, 64, "dmm-dc")}
WINDOWS = {"window, 1 stream": 1, "window, 64 streams": 64}
OURS = "attention stack"


def stacks(context: int, width: int) -> dict[str, Any]:
    """Our attention stack and, where it is installed, transformers' with the same weights."""
    ours = hopper_model("dt", context=context, width=width)
    found: dict[str, Any] = {OURS: ours}
    if installed("transformers"):
        for kind in ("sdpa", "eager"):
            found[f"transformers {kind}"] = DecisionTransformerPeer(ours, kind)
    return found


def module_of(model: Any) -> nn.Module:
    return model.model if isinstance(model, DecisionTransformerPeer) else model


def require_equal_stacks(found: dict[str, Any], batch: Batch) -> None:
    """Actions, loss and the gradients of the embeddings, through which all others have passed, against ours."""

    def results(model: Any) -> list[Tensor]:
        loss = model.loss(batch)
        tokens = model.tokens.embeddings if model is found[OURS] else None
        names = ("return_to_go", "observation", "action") if tokens else ("embed_return", "embed_state", "embed_action")
        embeddings = [(tokens or module_of(model)).get_submodule(name) for name in names]
        gradients = torch.autograd.grad(loss, [p for module in embeddings for p in module.parameters()])
        return [model.actions(batch).detach(), loss.detach(), *gradients]

    truth = results(found[OURS])
    for name, model in found.items():
        require_equal(name, results(model), truth, 1e-4)


def train_rows(case: str, repeats: int) -> list[dict[str, Any]]:
    context, width, other = TRAINED[case]
    batch = windows(BATCH, context)
    found = stacks(context, width)
    require_equal_stacks(found, Batch(*(x[:4] for x in batch)))
    if case != "W2":
        found = {OURS: found[OURS]}
    found[other] = hopper_model(other, context=context, width=width)
    steps = {name: training_step(model.loss, module_of(model).parameters(), batch) for name, model in found.items()}
    timings = measure(steps, repeats, budget_s=30)
    tokens = BATCH * context * 3
    each = {name: 1e3 * t.median_ms / tokens for name, t in timings.items()}
    return rows_of(f"train {case}", timings, OURS, shape=f"{BATCH}x{3 * context}x{width}", us_per_token=each)


def window_rows(case: str, repeats: int) -> list[dict[str, Any]]:
    batch = windows(WINDOWS[case], 20)
    found = stacks(20, 128)
    require_equal_stacks(found, batch)
    for model in found.values():
        module_of(model).eval()
    with torch.inference_mode():
        calls = {name: (lambda model=model: model.actions(batch)) for name, model in found.items()}
        timings = measure(calls, repeats)
    return rows_of(case, timings, OURS, shape=f"{WINDOWS[case]}x60x128", us_per_token=None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object per row")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=10, help="turns of each candidate")
    parser.add_argument("--case", action="append", choices=[*TRAINED, *WINDOWS], help="default: all")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    if not chosen.json:
        print(heading())
    for case in chosen.case or [*TRAINED, *WINDOWS]:
        rows = train_rows(case, chosen.repeats) if case in TRAINED else window_rows(case, chosen.repeats)
        print_rows(rows, chosen.json)


if __name__ == "__main__":
    main()
