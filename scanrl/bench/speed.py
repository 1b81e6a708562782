"""The short benchmarks: what this machine takes for a scan, a training step, an environment step and a batch.

Each row says how much faster it is than what one would have without (`ratio`), and how near it comes to the least time
that the machine's limits allow (`of_limit`), where such a least time can be told.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from scanrl.batch import Batch
from scanrl.bench.acting import acting_step, require_equal_acting
from scanrl.bench.batches import batch_rows, recording
from scanrl.bench.equality import gradients, require_equal
from scanrl.bench.limits import measure_limits, table_of
from scanrl.bench.models import hopper_model, windows, work_of
from scanrl.bench.scans import (
    SCAN_SHAPES,
    classic_loop,
    our_scan,
    require_equal_scans,
    scan_arguments,
    train_scan,
)
from scanrl.bench.timing import measure, rows_of, versions
from scanrl.bench.updates import training_step
from scanrl.kernels import scan_choice
from scanrl.models.decision import DecisionModel
from scanrl.nn import MIXERS, Mixer, ModelConfig
from scanrl.policy import Policy
from scanrl.types import Context

__all__ = ["CASES", "speed"]

BATCH = 64
TRAINED = {"dmm-dc": 8, "dm": 20, "dt": 20}  # steps of a window, as in the papers
WINDOW = 20  # steps that a Decision Transformer recomputes
ACTED = {128: "dm", 64: "dmm-dc"}  # width: the recipe that carries its state
LENGTHS = {24: 64, 2400: 1}  # tokens: batch
WIDTH = 128
REPEATS = 6


def speed(threads: int | None = None, progress: bool = False) -> dict[str, Any]:
    """Runs every case: about a minute.

    Args:
        threads: for scan, mixer and training; torch's setting by default. Acting and batches take one.
        progress: say on standard error what is being timed.

    Returns:
        `machine` (what the numbers depend on), `limits`, and `rows` of `case, impl, median_ms, p10_ms, p90_ms, ratio,
        shape, limit_ms, of_limit, threads`; `limit_ms` and `of_limit` are `None` where no limit is meaningful.

    Raises:
        Differs: something that was to be timed does not compute what it should.
    """
    before = torch.get_num_threads()
    many, rows, limits = threads or before, [], {}
    for name, (case, count) in CASES.items():
        count = count or many
        if progress:
            print(f"timing: {name}", file=sys.stderr, flush=True)
        with _threads(count):
            if count not in limits:
                limits[count] = measure_limits(count)
            rows += case(table_of(limits[count]))
    return {"machine": machine(), "limits": [x._asdict() for found in limits.values() for x in found], "rows": rows}


def machine() -> dict[str, Any]:
    """What numbers depend on: processor, kernels, versions, and how busy it is."""
    choice = scan_choice()
    slow = None if choice.impl == "native" else f"scan and convolution run on the torch reference: {choice.reason}"
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "kernels": f"{choice.impl} ({choice.detail})",
        "slow": slow,
        "load": round(os.getloadavg()[0], 2),
        "versions": versions(),
    }


def processor() -> str:
    """The processor's name, as far as the system tells."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


@contextmanager
def _threads(count: int):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _held_against(rows: list[dict[str, Any]], least_ms: Mapping[str, float], shape: str) -> list[dict[str, Any]]:
    """Rows with their shape and, for the implementations that a least time is known for, how near they come to it."""
    for row in rows:
        least = least_ms.get(row["impl"])
        row |= {"shape": shape, "limit_ms": least, "of_limit": least and least / row["median_ms"]}
    return rows


def _scan(limits: dict[str, float]) -> list[dict[str, Any]]:
    """Forward and backward of the selective scan; the least time is that of its exponentials, made twice."""
    shape = SCAN_SHAPES["W1"]
    x = scan_arguments(*shape)
    weights = torch.randn(x[0].shape, generator=torch.Generator().manual_seed(1))
    ways: dict[str, Callable[..., Any]] = {"classic loop": classic_loop, "reference": partial(our_scan, "reference")}
    if scan_choice().impl == "native":
        ways["native"] = partial(our_scan, "native")
    require_equal_scans(ways, x, weights)
    timings = measure({name: partial(train_scan, way, x, weights) for name, way in ways.items()}, REPEATS)
    batch, length, channels, states = shape
    least = 1e3 * 2 * batch * length * channels * states / limits["exp2"]
    return _held_against(rows_of("scan", timings, "classic loop"), dict.fromkeys(ways, least), _times(shape))


def _training(limits: dict[str, float]) -> list[dict[str, Any]]:
    """A whole training step; the least time is that of its matrix products and exponentials."""
    rows = []
    for name, context in TRAINED.items():
        model, batch = hopper_model(name, context=context), windows(BATCH, context)
        _require_true_gradients(name, model, Batch(*(x[:2] for x in batch)))
        timings = measure({name: training_step(model.loss, model.parameters(), batch)}, REPEATS, turn_s=0.2)
        tokens = BATCH * context * model.config.period
        least = {name: work_of(model).training_ms(tokens, limits)}
        shape = f"{BATCH} windows of {context} steps, width {model.config.width}"
        rows += _held_against(rows_of("training step", timings, ""), least, shape)
    return rows


def _require_true_gradients(name: str, model: DecisionModel, batch: Batch) -> None:
    """Loss and gradients against the same model in float64, on the reference."""
    exact = hopper_model(name, context=model.config.context).double()
    wide = Batch(*(x.double() if x.is_floating_point() else x for x in batch))

    def trained(net: DecisionModel, data: Batch) -> list[torch.Tensor]:
        parameters = [p for key, p in net.named_parameters() if not key.startswith("extras.")]
        return gradients(lambda: net.loss(data), parameters)

    require_equal(name, trained(model, batch), trained(exact, wide), 1e-3)


def _mixer(limits: dict[str, float]) -> list[dict[str, Any]]:
    """One mixer, forward and backward, on short and long sequences; attention is torch's own kernel."""
    rows = []
    for length, batch in LENGTHS.items():
        config = ModelConfig(width=WIDTH, layout="s", context=length)
        x = torch.randn(batch, length, WIDTH, generator=torch.Generator().manual_seed(0)).requires_grad_()
        ways = {name: MIXERS[name](config) for name in ("attention", "mamba")}
        for name, mixer in ways.items():
            _require_causal_step(name, mixer, x.detach()[:1, : min(length, 24)])
        calls = {name: partial(_train_mixer, mixer, x) for name, mixer in ways.items()}
        shape = f"{batch} x {length} tokens, width {WIDTH}"
        rows += _held_against(rows_of("mixer", measure(calls, REPEATS), "attention"), {}, shape)
    return rows


def _train_mixer(mixer: Mixer, x: torch.Tensor) -> list[torch.Tensor]:
    return gradients(lambda: mixer(x)[0], [x, *mixer.parameters()])


def _require_causal_step(name: str, mixer: Mixer, x: torch.Tensor) -> None:
    """A mixer's chunk form against its one-token form, which is plain torch."""
    with torch.no_grad():
        whole, state = mixer(x)[0], mixer.initial_state(len(x))
        tokens = []
        for token in x.unbind(1):
            y, state = mixer.step(token, state)
            tokens.append(y)
    require_equal(name, [whole], [torch.stack(tokens, 1)], 1e-4)


def _acting(streams: int, limits: dict[str, float]) -> list[dict[str, Any]]:
    """One environment step; the least time is that of its products and exponentials, without the library's calls."""
    rows = []
    for width, recipe in ACTED.items():
        steps, least = {}, {}
        window = f"dt, window of {WINDOW}"
        ways: list[tuple[str, str, Context]] = [(window, "dt", WINDOW), (recipe, recipe, "recurrent")]
        for label, name, context in ways:
            model = hopper_model(name, width=width, context=WINDOW)
            policy = Policy(model, context=context)
            require_equal_acting(policy, streams)
            steps[label] = acting_step(policy, streams, warm=WINDOW)
            tokens = streams * model.config.period * (WINDOW if label == window else 1)
            least[label] = work_of(model).acting_ms(tokens, limits)
        shape = f"{streams} stream{'s' * (streams > 1)}, width {width}"
        rows += _held_against(rows_of("environment step", measure(steps, REPEATS), window), least, shape)
    return rows


def _batches(limits: dict[str, float]) -> list[dict[str, Any]]:
    """Windows cut from an array of steps, against the loops that public code uses."""
    rows = [row | {"case": "batch assembly"} for row in batch_rows(recording(), BATCH, 20, 20)]
    return _held_against(rows, {}, f"{BATCH} windows of 20 steps")


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


CASES: dict[str, tuple[Callable[[dict[str, float]], list[dict[str, Any]]], int]] = {
    "scan": (_scan, 0),
    "mixer": (_mixer, 0),
    "training step": (_training, 0),
    "environment step, 1 stream": (partial(_acting, 1), 1),
    "environment step, 64 streams": (partial(_acting, 64), 1),
    "batch assembly": (_batches, 1),
}
"""What is timed, and on how many threads: 0 is as many as asked for."""
