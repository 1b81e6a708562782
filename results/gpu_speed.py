"""Speed on a CUDA device: the scan, a training update and an acting step; every row after a check of what it times.

    python results/gpu_speed.py run            # some minutes; writes results/gpu_speed.jsonl
    python results/gpu_speed.py table          # its rows as Markdown

Candidates take turns in one process. `eager` is one call after the other from Python; `graph` the same recorded as a
CUDA graph, which for a scan is what the device itself takes. `reference` is our definition of the scan in torch,
`mamba_ssm` the CUDA scan of that package, where it can be imported. Needs triton and a CUDA device; refuses without.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.models import scan_replaced
from scanrl.batch import Batch
from scanrl.bench.equality import Differs, require_equal
from scanrl.bench.models import hopper_model, windows
from scanrl.bench.scans import SCAN_SHAPES, our_scan, scan_arguments, train_scan
from scanrl.bench.timing import measure
from scanrl.doctor import diagnose
from scanrl.graphs import CudaGraph, Replayed
from scanrl.optimizer import adamw
from scanrl.policy import Policy
from scanrl.settings import TrainConfig

ROWS = Path(__file__).with_suffix(".jsonl")
DEVICE = torch.device("cuda")
TRAINING = {"W1": ("dmm-dc", 64, 8), "W2": ("dm", 64, 20), "W6": ("dmm-dc", 64, 64)}  # recipe, windows, steps
STREAMS = (1, 64, 1024)
LONGEST_LOOP = 4096  # tokens; a loop in Python over more is not worth the wait
CALLS = 10  # between two waits for the device
Scan = Callable[..., Tensor]


def mamba_ssm(u, dt, A, B, C, D, z, dt_bias) -> Tensor:
    """The CUDA scan of the mamba_ssm package, which has channels before time (see `in_layout`)."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    return selective_scan_fn(u, dt, A, B, C, D, z, dt_bias, delta_softplus=True)


def in_layout(name: str, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies in the layout a candidate wants, or its results in ours; turning round is its own inverse."""
    turned = (x.transpose(1, 2) if name == "mamba_ssm" and x.ndim == 3 else x for x in tensors)
    return [x.detach().clone(memory_format=torch.contiguous_format) for x in turned]


def times(functions: dict[str, Callable[[], object]]) -> dict[str, dict[str, float]]:
    """Milliseconds of one call of each."""

    def several(function: Callable[[], object]) -> None:
        for _ in range(CALLS):
            function()
        torch.cuda.synchronize()

    found = measure({name: partial(several, f) for name, f in functions.items()}, 10, budget_s=20.0)
    return {
        name: {"median_ms": t.median_ms / CALLS, "p10_ms": t.p10 / CALLS, "p90_ms": t.p90 / CALLS}
        for name, t in found.items()
    }


def graph_of(function: Callable[[], tuple[Tensor, ...]]) -> Callable[[], object]:
    """The function without arguments, recorded."""
    graph = CudaGraph(DEVICE)
    for _ in range(3):
        graph.warm_up(function)
    outputs = graph.record(function)

    def replay() -> tuple[Tensor, ...]:
        graph.replay()
        return outputs

    return replay


def scans(case: str) -> Iterator[dict[str, Any]]:
    shape = SCAN_SHAPES[case]
    x = [v.detach().to(DEVICE) for v in scan_arguments(*shape)]
    weights = torch.randn(x[0].shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    candidates: dict[str, Scan] = {"gpu": partial(our_scan, "gpu")}
    if shape[1] <= LONGEST_LOOP:
        candidates["reference"] = partial(our_scan, "reference")
    if find_spec("mamba_ssm"):
        candidates["mamba_ssm"] = mamba_ssm
    require_right(case, candidates, [v[:2] if v.ndim == 3 else v for v in x], weights[:2])
    functions = {}
    for name, scan in candidates.items():
        given = [v.requires_grad_() for v in in_layout(name, x)]
        forward = torch.no_grad()(lambda scan=scan, given=given: (scan(*given),))
        both = partial(train_scan, scan, given, in_layout(name, [weights])[0])
        functions |= {f"{name}|eager|forward": forward, f"{name}|eager|forward and backward": both}
        if name != "reference":
            functions[f"{name}|graph|forward"] = graph_of(forward)
            functions[f"{name}|graph|forward and backward"] = graph_of(both)
    for key, timing in times(functions).items():
        name, how, what = key.split("|")
        yield {"benchmark": "scan", "case": case, "shape": shape, "impl": name, "how": how, "what": what, **timing}


def require_right(case: str, candidates: dict[str, Scan], x: list[Tensor], weights: Tensor) -> None:
    """Compares outputs and gradients with the float64 reference, two rows of the batch."""
    truth = train_scan(partial(our_scan, "reference"), [v.double().requires_grad_() for v in x], weights.double())
    for name, scan in candidates.items():
        given = [v.requires_grad_() for v in in_layout(name, x)]
        found = in_layout(name, train_scan(scan, given, in_layout(name, [weights])[0]))
        # Ours must reach what its tests ask for; others are only to be the same function.
        require_equal(f"{case} {name}: output", found[:1], truth[:1], 1e-6 if name == "gpu" else 1e-3)
        require_equal(f"{case} {name}: gradients", found[1:], truth[1:], 1e-5 if name == "gpu" else 1e-2)


class Update:
    """A model with its optimiser; a call makes one update."""

    def __init__(self, name: str, batch: Batch, scan: Scan | None, how: str) -> None:
        self.scan, self.batch = scan, batch
        self.model = hopper_model(name, context=batch.rewards.shape[1]).to(DEVICE).train()
        self.optimizer = adamw(self.model, TrainConfig(device=str(DEVICE), learning_rate=1e-4))
        self.run = Replayed(self.learn, "update", CudaGraph(DEVICE), DEVICE) if how == "graph" else self.eager

    def learn(self, *columns: Tensor) -> tuple[Tensor, ...]:
        loss = self.model.loss(Batch(*columns))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 0.25)
        self.optimizer.step()
        return loss.detach(), norm

    def eager(self, *columns: Tensor) -> tuple[Tensor, ...]:
        with scan_replaced(self.scan):
            return self.learn(*(x.to(DEVICE, non_blocking=True) for x in columns))

    def __call__(self) -> Tensor:
        return torch.stack(self.run(*self.batch))


def updates(case: str) -> Iterator[dict[str, Any]]:
    recipe, batch, steps = TRAINING[case]
    data = windows(batch, steps)
    candidates = {
        "gpu|graph": Update(recipe, data, None, "graph"),
        "gpu|eager": Update(recipe, data, None, "eager"),
        "reference|eager": Update(recipe, data, partial(our_scan, "reference"), "eager"),
    }
    losses = {name: torch.stack([update() for _ in range(6)]) for name, update in candidates.items()}
    for name, found in losses.items():
        require_equal(f"{case} {name}", [found], [losses["reference|eager"]], 1e-3)
    if not candidates["gpu|graph"].run.recorded:
        sys.exit(f"{case}: the update was not recorded; not timed")
    found = times({name: lambda u=u: u().tolist() for name, u in candidates.items()})  # a run reads every loss
    for name, timing in found.items():
        impl, how = name.split("|")
        yield {"benchmark": "update", "case": case, "model": recipe, "impl": impl, "how": how, **timing}


@contextmanager
def graphs(setting: str) -> Iterator[None]:
    before = os.environ.get("SCANRL_GRAPHS")
    os.environ["SCANRL_GRAPHS"] = setting
    try:
        yield
    finally:
        os.environ.pop("SCANRL_GRAPHS") if before is None else os.environ.update(SCANRL_GRAPHS=before)


def acting(recipe: str, streams: int) -> Iterator[dict[str, Any]]:
    policies = {}
    for how, setting in (("graph", "on"), ("eager", "off")):
        with graphs(setting):
            policies[how] = Policy(hopper_model(recipe, context=20).to(DEVICE))
            policies[how].reset(streams)
    rng, acted = np.random.default_rng(0), {name: [] for name in policies}
    for _ in range(12):
        seen = rng.normal(size=(streams, 11)).astype(np.float32)
        for name, policy in policies.items():
            acted[name].append(policy.act(seen, 1.0))
    graph, eager = (torch.from_numpy(np.array(acted[how])) for how in ("graph", "eager"))
    require_equal(f"acting {recipe}, {streams} streams", [graph], [eager], 1e-5)
    seen = rng.normal(size=(streams, 11)).astype(np.float32)
    for how, timing in times({name: partial(p.act, seen, 1.0) for name, p in policies.items()}).items():
        yield {"benchmark": "acting", "case": recipe, "streams": streams, "how": how, **timing}


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    found, gpu = diagnose(), torch.cuda.get_device_properties(DEVICE)
    return {
        "benchmark": "machine",
        "device": gpu.name,
        "memory_gib": round(gpu.total_memory / 2**30, 1),
        "multiprocessors": gpu.multi_processor_count,
        "cuda": torch.version.cuda,
        "matmul_precision": torch.get_float32_matmul_precision(),
        "system": f"{platform.system()} {platform.machine()}",
        "scan": found["scan"],
        "versions": found["versions"],
    }


def every_row() -> Iterator[dict[str, Any]]:
    yield machine()
    for case in SCAN_SHAPES:
        yield from scans(case)
    for case in TRAINING:
        yield from updates(case)
    for recipe in ("dmm-dc", "dm"):
        for streams in STREAMS:
            yield from acting(recipe, streams)


def run() -> None:
    if not torch.cuda.is_available():
        sys.exit("gpu_speed: expected a CUDA device, got none; nothing was measured")
    if not find_spec("triton"):
        sys.exit("gpu_speed: expected the package triton (pip install triton), got none; nothing was measured")
    rows = []
    for row in every_row():
        print(json.dumps(row), flush=True)
        rows.append(row)
        ROWS.write_text("".join(json.dumps(row) + "\n" for row in rows))


def table() -> str:
    if not ROWS.exists():
        sys.exit(f"{ROWS}: expected the rows of a run, got no such file")
    rows, text = [json.loads(line) for line in ROWS.read_text().splitlines()], []
    columns = {
        "scan": ("case", "shape", "impl", "how", "what", "median_ms", "p10_ms", "p90_ms"),
        "update": ("case", "model", "impl", "how", "median_ms", "p10_ms", "p90_ms"),
        "acting": ("case", "streams", "how", "median_ms", "p10_ms", "p90_ms"),
    }
    for name, wanted in columns.items():
        text += ["| " + " | ".join(wanted) + " |", "|" + "---|" * len(wanted)]
        for row in rows:
            if row["benchmark"] == name:
                cells = (f"{row[c]:.3g}" if isinstance(row[c], float) else str(row[c]) for c in wanted)
                text.append("| " + " | ".join(cells) + " |")
        text.append("")
    return "\n".join(text)


if __name__ == "__main__":
    if sys.argv[1:] == ["run"]:
        try:
            run()
        except Differs as error:
            sys.exit(str(error))
    elif sys.argv[1:] == ["table"]:
        print(table())
    else:
        sys.exit(__doc__)
