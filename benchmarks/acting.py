"""Times one environment step of a policy: carried state, native and in torch, against recomputed windows.

    python -m benchmarks.acting [--json] [--threads N] [--steps N] [--repeats N] [--case "dm recurrent"] [--streams N]

`native` and `torch` are `Policy.act` as a user calls it, `native call` is the C call alone. All candidates of one
number of streams take turns. `ratio` is what the recomputed window of a Decision Transformer of the same width takes
over the row's own; `gflops` counts the multiplications and additions with weights; `growth` is the median of the last
steps of an episode over that of the first ones, `state_kb` what one stream carries. Before anything is timed, acting is
compared with the training forward.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import torch

if __package__ in (None, ""):  # run as a file: the repository is not yet on the path
    sys.path.insert(0, str(Path(__file__).parents[1]))

from scanrl.bench.acting import require_equal_acting
from scanrl.bench.models import hopper_model
from scanrl.bench.timing import Timing, measure, print_rows
from scanrl.kernels import native
from scanrl.kernels.native_step import Code
from scanrl.policy import Policy
from scanrl.streams import NativeStreams
from scanrl.types import Context


class Case(NamedTuple):
    recipe: str
    width: int
    context: Context = "recurrent"

    @property
    def name(self) -> str:
        own = hopper_model(self.recipe).config.width
        return f"{self.recipe}{'' if self.width == own else f' width {self.width}'} {self.context}"


CASES = {
    case.name: case
    for case in (
        Case("dmm-dc", 64),
        Case("dmm-dc", 64, 20),
        Case("dm", 128),
        Case("dt", 128),
        Case("dt", 128, 20),
        Case("dt", 64, 20),
    )
}
BASES = {case.width: name for name, case in CASES.items() if case.recipe == "dt" and case.context == 20}
SAMPLE = 200


class Candidate(NamedTuple):
    case: Case
    impl: str  # native, native call, torch, window
    policy: Policy
    call: Callable[[], object]


def candidates(case: Case, streams: int) -> list[Candidate]:
    """Policies that have begun, each after its equality check."""
    found = []
    seen, earned = np.zeros((streams, 11), np.float32), np.ones(streams, np.float32)
    carried = case.context == "recurrent"
    impls = [*(["native"] if native.extension()[0] else []), "torch"] if carried else ["window"]
    for impl in impls:
        model = hopper_model(case.recipe, width=case.width, context=20)
        policy = Policy(model, context=case.context, impl="reference" if impl == "torch" else None)
        require_equal_acting(policy, streams)
        found.append(Candidate(case, impl, policy, lambda policy=policy: policy.act(seen, earned)))
        if isinstance(policy._streams, NativeStreams):
            step, nobody, late = policy._streams._native, np.zeros(streams, bool), np.full(streams, 12)
            arrays = (nobody, late, late + 1, earned, seen, np.zeros((streams, 3), np.float32), earned)
            found.append(Candidate(case, "native call", policy, lambda: step(*arrays)))  # noqa: B023
    return found


def multiplications(code: Code, streams: int) -> int:
    """Weights used in one step, each as often as there are tokens for it."""
    ops, total = native.module().step_ops(), 0
    for op, rows, *operands in code.instructions.tolist():
        if ops[op] == "linear":
            _, inputs, _, width, *_ = operands
            total += inputs * width * streams * (code.places if rows == 0 else 1)
    return total


def growth(candidate: Candidate, streams: int, steps: int) -> tuple[float, float]:
    """Milliseconds per step early and late in one episode."""
    candidate.policy.reset(streams)
    times = []
    for _ in range(max(steps, 2 * SAMPLE)):
        start = time.perf_counter()
        candidate.call()
        times.append(1e3 * (time.perf_counter() - start))
    return median(times[10 : 10 + SAMPLE]), median(times[-SAMPLE:])


def row(x: Candidate, streams: int, steps: int, timing: Timing, base: Timing | None) -> dict:
    found: dict = {
        "case": x.case.name,
        "impl": x.impl,
        "streams": streams,
        "median_ms": timing.median_ms,
        "p10_ms": timing.p10,
        "p90_ms": timing.p90,
        "ratio": base.median_ms / timing.median_ms if base else None,
        "ratio_p10": base.p10 / timing.p10 if base else None,
        "gflops": None,
    }
    if x.impl == "native call":
        code = x.policy.model.lower()
        assert isinstance(code, Code)
        found["gflops"] = 2e-6 * multiplications(code, streams) / timing.median_ms
    few = steps if x.impl == "native" else 2 * SAMPLE
    early, late = (None, None) if x.impl == "native call" else growth(x, streams, few)
    found |= {"steps": few, "early_ms": early, "late_ms": late}
    found["growth"] = late / early if early and late else None
    found["state_kb"] = x.policy.state_bytes() / streams / 1024
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Times one environment step of a policy.")
    parser.add_argument("--json", action="store_true", help="one JSON object per row")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=2000, help="length of the episode of the native rows")
    parser.add_argument("--repeats", type=int, default=15, help="turns of each candidate")
    parser.add_argument("--case", action="append", choices=CASES, help="default: all")
    parser.add_argument("--streams", type=int, action="append", help="default: 1 and 64")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    rows = []
    for streams in chosen.streams or (1, 64):
        here = [c for name in chosen.case or CASES for c in candidates(CASES[name], streams)]
        names = [f"{c.case.name}: {c.impl}" for c in here]
        timings = measure(dict(zip(names, (c.call for c in here), strict=True)), chosen.repeats)
        for name, candidate in zip(names, here, strict=True):
            base = timings.get(f"{BASES[candidate.case.width]}: window")
            rows.append(row(candidate, streams, chosen.steps, timings[name], base))
    print_rows(rows, chosen.json)


if __name__ == "__main__":
    main()
