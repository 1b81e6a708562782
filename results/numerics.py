"""How exact the kernels and the carried state are, against float64.

    python results/numerics.py run      # some minutes; writes results/numerics.jsonl
    python results/numerics.py table    # what docs/numerics.md shows

The error of a state is the norm of the difference to float64 over the norm of the truth, both over 16 streams that
share a decay: so a short memory cannot hide behind a long one. The error of an output or a gradient is its largest
difference over the largest entry of the truth. float64 computes from the same float32 arguments.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scanrl.batch import Batch
from scanrl.kernels import selective_scan
from scanrl.models.decision import DecisionModel
from scanrl.models.recipes import recipe
from scanrl.stats import Stats
from scanrl.types import Spec

ROWS = Path(__file__).with_suffix(".jsonl")
ROOT = Path(__file__).parents[1]
RATES = (200.0, 69.0, 0.7, 0.1, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 0.0)
"""The decay of one step is exp(-rate): from 1e-87 over 1 - 1e-8 to 1."""
INPUTS = ("normal", "uniform", "constant")
STEPS = ("constant", "random")
STREAMS = 16
PIECE = 20_000
LENGTHS = (1, 2, 3, 15, 16, 17, 31, 100, 255, 511, 1023, 2047, 4095, 4096)


def scan_arguments(length: int, *, decay: float = 1.0, constant_step: bool = False, seed: int = 0) -> dict[str, Tensor]:
    """One row of 16 channels and 16 states; `decay` scales A, so that at 0 nothing is ever forgotten."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    dt = normal(1, length, 16)
    return {
        "u": normal(1, length, 16),
        "dt": torch.full_like(dt, -1.3) if constant_step else dt,
        "A": -decay * torch.exp(normal(16, 16) / 2),
        "B": normal(1, length, 16),
        "C": normal(1, length, 16),
        "D": normal(16),
        "z": normal(1, length, 16),
        "dt_bias": normal(16) - 2,
        "h": normal(1, 16, 16),
    }


def scan_errors(arguments: dict[str, Tensor]) -> tuple[float, float]:
    """The worst error of an output (y, last state) and of a gradient of the native scan."""
    found, truth = (_results(arguments, *way) for way in ((torch.float32, "native"), (torch.float64, "reference")))
    errors = [
        float((a.double() - b).abs().max() / b.abs().max().clamp_min(1e-30)) for a, b in zip(found, truth, strict=True)
    ]
    return max(errors[:2]), max(errors[2:])


def _results(arguments: dict[str, Tensor], dtype: torch.dtype, impl: Any) -> list[Tensor]:
    leaves = {name: x.to(dtype).requires_grad_() for name, x in arguments.items()}
    y, last = selective_scan(**leaves, impl=impl)
    g = torch.Generator().manual_seed(7)
    loss = sum((x * torch.randn(x.shape, generator=g).to(dtype)).sum() for x in (y, last))
    return [y.detach(), last.detach(), *torch.autograd.grad(loss, list(leaves.values()))]  # pyright: ignore


def tokens(step: str, kind: str, length: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Step sizes (1, PIECE, rates) and inputs (1, PIECE, STREAMS), piece by piece."""
    g = torch.Generator().manual_seed(0)
    for _ in range(0, length, PIECE):
        dt = torch.ones(1, PIECE, len(RATES))
        dt = torch.randn(dt.shape, generator=g).exp() if step == "random" else dt
        x = torch.full((1, PIECE, STREAMS), 0.1)
        x = {"normal": torch.randn, "uniform": torch.rand}[kind](x.shape, generator=g) if kind != "constant" else x
        yield dt, x


def state_errors(step: str, kind: str, length: int, *, dtype: torch.dtype = torch.float64, impl: Any = None) -> dict:
    """{steps taken: the error of the state for each rate}, at 20,000, 100,000 and 1,000,000 steps up to `length`.

    The state is carried from piece to piece in `dtype`: float64 as a policy does, float32 as a scan of windows.
    """
    A = torch.tensor(RATES)[:, None].repeat(1, STREAMS).neg()
    h = torch.zeros(1, *A.shape, dtype=dtype)
    truth, errors = np.zeros(A.shape), {}
    for index, (dt, x) in enumerate(tokens(step, kind, length)):
        one = torch.ones_like(dt)
        _, h = selective_scan(one, dt, A, x, torch.zeros_like(x), h=h, softplus=False, impl=impl)
        truth = _fold(truth, dt[0].double().numpy(), A.double().numpy(), x[0].double().numpy())
        taken = (index + 1) * PIECE
        if taken in (20_000, 100_000, 1_000_000):
            error = np.linalg.norm(h[0].double().numpy() - truth, axis=1) / np.linalg.norm(truth, axis=1)
            errors[taken] = dict(zip(RATES, error.tolist(), strict=True))
    return errors


def _fold(h: np.ndarray, dt: np.ndarray, A: np.ndarray, x: np.ndarray) -> np.ndarray:
    for start in range(0, len(dt), 1000):  # in parts that fit in a cache
        part = slice(start, start + 1000)
        decays = np.exp(dt[part, :, None] * A)
        inputs = dt[part, :, None] * x[part, None]
        for a, b in zip(decays, inputs, strict=True):
            h = a * h + b
    return h


def model_errors(name: str, steps: int) -> dict[str, float]:
    """Largest differences between a recipe's model over a whole episode at once and fed step by step.

    Of the normalised outputs, which are of order 1, and of the actions, which lie between -1 and 1.
    """
    spec = Spec((11,), "continuous", 3, (-1.0,) * 3, (1.0,) * 3)
    size = np.ones(11, np.float32)
    low, high = -size[:3], size[:3]
    stats = Stats(0 * size, size, 1000.0, low, high, max_length=steps, return_max=1000.0, return_mean=500.0)
    model = DecisionModel(recipe(name).model, spec, stats).eval()
    g = torch.Generator().manual_seed(0)
    batch = Batch(
        observations=torch.randn(1, steps, 11, generator=g),
        actions=torch.rand(1, steps, 3, generator=g) * 2 - 1,
        rewards=torch.rand(1, steps, generator=g),
        returns_to_go=torch.linspace(1000, 0, steps)[None],
        timesteps=torch.arange(steps)[None],
        mask=torch.ones(1, steps, dtype=torch.bool),
    )
    with torch.inference_mode():
        whole = model(batch)[0][0]
        state, fed = model.initial_state(1), []
        for t in range(steps):
            head = [("R", batch.returns_to_go[:, t]), ("s", batch.observations[:, t])]
            hidden, state = model.feed(head, batch.timesteps[:, t], state)
            fed.append(model.norm(hidden))
            state = model.feed([("a", batch.actions[:, t])], batch.timesteps[:, t], state)[1]
        streamed = torch.cat(fed)
        moved = (model.head.act(whole) - model.head.act(streamed)).abs().max()
    return {"outputs": float((whole - streamed).abs().max()), "actions": float(moved)}


def scan_against_stream(length: int, impl: Any = None) -> float:
    """Largest difference of outputs between a scan at once and one token at a time, over the largest output."""
    x = scan_arguments(length, decay=0.01)
    every, _ = selective_scan(**x, impl=impl)
    h, ys = x["h"].double(), []
    for t in range(length):
        token = {name: x[name][:, t : t + 1] for name in ("u", "dt", "B", "C", "z")}
        y, h = selective_scan(**{**x, **token, "h": h}, impl=impl)
        ys.append(y)
    return float((torch.cat(ys, 1) - every).abs().max() / every.abs().max())


def counter_errors(count: int, reward: float = 0.1) -> dict[str, float]:
    """Relative error of a return-to-go after `count` equal rewards, counted in float32 and in float64."""
    earned = np.float32(reward)
    exact = float(earned) * count
    return {
        name: abs(float(np.subtract.accumulate(np.r_[kind(0), np.full(count, earned, kind)])[-1]) + exact) / exact
        for name, kind in (("float32", np.float32), ("float64", np.float64))
    }


def ways_to_carry() -> list[dict[str, Any]]:
    """Rows of streaming_state.c, compiled for this processor."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "streaming_state"
        words = ["cc", "-O3", "-march=native", "-std=gnu11", "-Wno-psabi", f"-I{ROOT / 'scanrl/kernels/csrc'}"]
        subprocess.run([*words, str(ROOT / "results/streaming_state.c"), "-o", str(program), "-lm"], check=True)
        printed = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout
    rows = [json.loads(line) for line in printed.splitlines()]
    worst: dict[tuple[str, int], float] = {}
    for row in rows:
        if "error" in row:
            worst[row["way"], row["t"]] = max(worst.get((row["way"], row["t"]), 0.0), row["error"])
    costs = {row["way"]: row["ns"] for row in rows if "ns" in row}
    return [{"way": w, "t": t, "error": e, "ns": costs[w]} for (w, t), e in worst.items()]


def rows() -> Iterator[dict[str, Any]]:
    from scanrl.kernels import scan_choice

    yield {"measured": "machine", "scan": scan_choice()._asdict(), "torch": torch.__version__, "cores": os.cpu_count()}
    for length in LENGTHS:
        outputs, gradients = scan_errors(scan_arguments(length))
        yield {"measured": "scan", "length": length, "outputs": outputs, "gradients": gradients}
    for decay in (1e-2, 1e-4, 1e-6, 0.0):
        for constant in (False, True):
            outputs, gradients = scan_errors(scan_arguments(4095, decay=decay, constant_step=constant))
            step = "constant" if constant else "random"
            yield {"measured": "long memory", "decay": decay, "step": step, "outputs": outputs, "gradients": gradients}
    for dtype in (torch.float64, torch.float32):
        for step in STEPS:
            for kind in INPUTS:
                found = state_errors(step, kind, 1_000_000, dtype=dtype)
                for taken, errors in found.items():
                    rate, error = max(errors.items(), key=lambda pair: pair[1])
                    row = {"state": str(dtype).removeprefix("torch."), "step": step, "input": kind, "steps": taken}
                    yield {"measured": "state", **row, "worst": error, "at_rate": rate}
    yield {"measured": "stream", "model": "scan", "steps": 20_000, "outputs": scan_against_stream(20_000)}
    for name in ("dm", "dmm-dc"):
        yield {"measured": "stream", "model": name, "steps": 20_000, **model_errors(name, 20_000)}
    yield {"measured": "return-to-go", "steps": 1_000_000, **counter_errors(1_000_000)}
    for row in ways_to_carry():
        yield {"measured": "way", **row}


def table() -> str:
    found = [json.loads(line) for line in ROWS.read_text().splitlines()]
    text = []
    for kind in dict.fromkeys(row["measured"] for row in found if row["measured"] != "machine"):
        lines = [{k: v for k, v in row.items() if k != "measured"} for row in found if row["measured"] == kind]
        names = list(dict.fromkeys(name for line in lines for name in line))
        text += [f"{kind}:", "", "| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
        text += ["| " + " | ".join(_cell(line.get(name)) for name in names) + " |" for line in lines]
        text.append("")
    return "\n".join(text)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.2g}"
    return "-" if value is None else str(value)


def main() -> None:
    torch.set_num_threads(1)
    if sys.argv[1:] == ["run"]:
        lines = []
        for row in rows():
            lines.append(json.dumps(row) + "\n")
            print(lines[-1], end="", file=sys.stderr, flush=True)
        ROWS.write_text("".join(lines))
    elif sys.argv[1:] == ["table"]:
        print(table())
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
