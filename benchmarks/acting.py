"""Times one environment step of a policy: carried state against recomputed windows, early and late in an episode.

    python -m benchmarks.acting [--json] [--threads N] [--steps N]

`growth` is the median of the last steps over the median of the first ones; `state_kb` what one stream carries; `ratio`
what the recomputed window of a Decision Transformer takes over the row's own. Before anything is timed, acting is
compared with the training forward.
"""

import argparse
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

if __package__ in (None, ""):  # run as a file: the repository is not yet on the path
    sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.models import hopper_model
from benchmarks.timing import print_rows
from scanrl.batch import Batch
from scanrl.policy import Policy
from scanrl.types import Context

CASES: list[tuple[str, Context]] = [
    ("dmm-dc", "recurrent"),
    ("dmm-dc", 20),
    ("dm", "recurrent"),
    ("dt", "recurrent"),
    ("dt", 20),
]
SAMPLE = 200
BASE = "dt 20"  # what a user of a Decision Transformer would pay


def state_bytes(tree: Any) -> int:
    if isinstance(tree, torch.Tensor):
        return tree.numel() * tree.element_size()
    return sum(state_bytes(part) for part in tree)


def refuse_unless_equal(policy: Policy, streams: int, steps: int = 12) -> None:
    """Exits if acting differs from the training forward on the same history."""
    rng = np.random.default_rng(0)
    seen = rng.normal(size=(steps, streams, 11)).astype(np.float32)
    policy.reset(streams)
    acted = np.stack([policy.act(x, 1.0) for x in seen], 1)
    batch = Batch(
        torch.from_numpy(seen).transpose(0, 1),
        torch.from_numpy(acted),
        torch.ones(streams, steps),
        (policy.target_return - torch.arange(steps)).float().expand(streams, steps),
        torch.arange(steps).expand(streams, steps),
        torch.ones(streams, steps, dtype=torch.bool),
    )
    with torch.inference_mode():
        worst = float((policy.model.actions(batch) - batch.actions).abs().max())
    if not worst < 1e-5:
        sys.exit(f"acting differs from the training forward by {worst:.1e}; not timed")


def run(name: str, context: Context, streams: int, steps: int) -> dict:
    policy = Policy(hopper_model(name, context=20), context=context)
    refuse_unless_equal(policy, streams)
    policy.reset(streams)
    seen, earned = np.zeros((streams, 11), np.float32), np.ones(streams, np.float32)
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        policy.act(seen, earned)
        times.append(1e3 * (time.perf_counter() - start))
    early, late = times[10 : 10 + SAMPLE], times[-SAMPLE:]
    carried = policy._state if context == "recurrent" else tuple(policy._history.columns.values())
    return {
        "case": f"{name} {context}",
        "impl": "carried" if context == "recurrent" else "window",
        "streams": streams,
        "steps": steps,
        "median_ms": median(times),
        "early_ms": median(early),
        "late_ms": median(late),
        "growth": median(late) / median(early),
        "state_kb": state_bytes(carried) / streams / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Times one environment step of a policy.")
    parser.add_argument("--json", action="store_true", help="one JSON object per row")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=2000, help="steps of the carried rows; windows get a tenth")
    parser.add_argument("--case", action="append", choices=[f"{n} {c}" for n, c in CASES], help="default: all")
    parser.add_argument("--streams", type=int, action="append", help="default: 1 and 64")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    rows = []
    for streams in chosen.streams or (1, 64):
        few = max(2 * SAMPLE, chosen.steps // 10)
        here = [
            run(name, context, streams, chosen.steps if context == "recurrent" else few)
            for name, context in CASES
            if f"{name} {context}" in (chosen.case or f"{name} {context}")
        ]
        base = next((row["median_ms"] for row in here if row["case"] == BASE), None)
        rows += [{**row, "ratio": base / row["median_ms"] if base else None} for row in here]
    print_rows(rows, chosen.json)


if __name__ == "__main__":
    main()
