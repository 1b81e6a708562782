"""Times the local mixers, forward and backward: the causal convolution of each place in the step, and LocalLinear.

    python -m benchmarks.mixers [--json] [--threads N] [--repeats N]

Convolutions: native C, its torch reference, and what public code does: one conv1d per place over all tokens, of which
each token then takes one; `ratio` is that one's median over the row's own. LocalLinear has no second form, and its
`ratio` is its share of the arithmetic: the time of the three matrix products alone over the row's own.
Before anything is timed, outputs and gradients are compared with the float64 reference.
"""

import argparse
import platform
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

if __package__ in (None, ""):  # run as a file: the repository is not yet on the path
    sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.timing import measure, print_rows
from scanrl.kernels import causal_conv, scan_choice
from scanrl.nn import MIXERS, ModelConfig

SHAPES = {  # batch, tokens, width, places, window
    "C1": (64, 24, 64, 3, 6),  # 8 steps of 3 tokens
    "C2": (64, 24, 128, 3, 6),
    "C3": (64, 192, 64, 3, 6),  # 64 steps of 3 tokens
    "C4": (64, 192, 128, 3, 6),
    "C5": (64, 60, 256, 1, 4),  # inside Mamba: one kernel for all tokens
}
LINEAR = {"L1": (64, 24, 64, 3, 6), "L2": (64, 24, 128, 3, 6)}


def conv1d_per_place(x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    """One depthwise convolution of all tokens per place, and a select."""
    places, window, width = kernel.shape
    padded = F.pad(x.transpose(1, 2), (window - 1, 0))  # (B, D, w-1+L)
    every = [F.conv1d(padded, k.t()[:, None], b, groups=width) for k, b in zip(kernel, bias, strict=True)]
    place = torch.arange(x.shape[1]) % places
    y = every[0]
    for m in range(1, places):
        y = torch.where(place == m, every[m], y)
    return y.transpose(1, 2)


CONVOLUTIONS: dict[str, Callable[..., Tensor]] = {
    "native": partial(causal_conv, impl="native"),
    "reference": partial(causal_conv, impl="reference"),
    "conv1d per place": conv1d_per_place,
}


def train(function: Callable[..., Tensor], x: list[Tensor], weights: Tensor) -> tuple[Tensor, ...]:
    """Forward and backward: the output and the gradient of every argument."""
    y = function(*x)
    return y.detach(), *torch.autograd.grad(y, x, weights)


def refuse_unless_equal(functions: dict[str, Callable[..., Tensor]], truth: Callable[..., Tensor], x: list[Tensor]):
    """Exits if a candidate strays from the truth in float64; two rows of the batch will tell."""
    rows = [x[0].detach()[:2], *(t.detach() for t in x[1:])]
    weights = torch.randn(rows[0].shape, generator=torch.Generator().manual_seed(2))
    expected = train(truth, [t.double().requires_grad_() for t in rows], weights.double())
    for name, function in functions.items():
        found = train(function, [t.requires_grad_() for t in rows], weights)
        worst = max(((f - t).abs().max() / t.abs().max()).item() for f, t in zip(found, expected, strict=True))
        if not worst < 1e-5:
            sys.exit(f"{name}: differs from the float64 reference by {worst:.1e} of the largest entry; not timed")


def convolutions(case: str, threads: int, repeats: int) -> list[dict]:
    batch, length, width, places, window = SHAPES[case]
    normal = partial(torch.randn, generator=torch.Generator().manual_seed(0))
    x = [normal(batch, length, width), normal(places, window, width) / window, normal(places, width)]
    x = [t.requires_grad_() for t in x]
    weights = normal(batch, length, width)
    refuse_unless_equal(CONVOLUTIONS, partial(causal_conv, impl="reference"), x)
    timings = measure({name: partial(train, f, x, weights) for name, f in CONVOLUTIONS.items()}, repeats)
    base = timings["conv1d per place"].median_ms
    return [_row(case, SHAPES[case], name, t, base, threads) for name, t in timings.items()]


def linear(case: str, threads: int, repeats: int) -> list[dict]:
    batch, length, width, places, window = LINEAR[case]
    normal = partial(torch.randn, generator=torch.Generator().manual_seed(0))
    mixer = MIXERS["modal_linear"](ModelConfig(width=width, window=window, layout="Rsa"))
    weight = next(mixer.parameters())
    x = [normal(batch, length, width).requires_grad_(), weight]

    def forward(x: Tensor, weight: Tensor) -> Tensor:
        return torch.func.functional_call(mixer, {"weight": weight}, (x,))[0]

    def definition(x: Tensor, weight: Tensor) -> Tensor:
        windows = F.pad(x, (0, 0, window - 1, 0)).unfold(1, window, 1).transpose(2, 3).flatten(2)
        return torch.einsum("blk,lok->blo", windows, weight[torch.arange(length) % places])

    weights = normal(batch, length, width)
    refuse_unless_equal({"LocalLinear": forward}, definition, x)
    rows = batch * length // places
    windows, grad = normal(places, rows, window * width), normal(places, rows, width)
    W = weight.detach()
    timings = measure(
        {
            "LocalLinear": partial(train, forward, x, weights),
            "matrix products": lambda: (windows @ W.mT, grad @ W, grad.mT @ windows),
        },
        repeats,
    )
    base = timings["matrix products"].median_ms
    return [_row(case, LINEAR[case], name, t, base, threads) for name, t in timings.items()]


def _row(case: str, shape: tuple[int, ...], name: str, timing, base: float, threads: int) -> dict:
    return {
        "case": case,
        "shape": "x".join(map(str, shape)),
        "impl": name,
        "median_ms": timing.median_ms,
        "p10_ms": timing.p10,
        "p90_ms": timing.p90,
        "ratio": base / timing.median_ms,
        "threads": threads,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Times the local mixers, forward and backward.")
    parser.add_argument("--json", action="store_true", help="one JSON object per row")
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="threads of torch and of the C form"
    )
    parser.add_argument("--repeats", type=int, default=20, help="rounds per case")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if not options.json:
        versions = f"python {platform.python_version()}, torch {torch.__version__}"
        print(f"{platform.machine()}, {scan_choice().detail}, {versions}")
    for case in SHAPES:
        print_rows(convolutions(case, options.threads, options.repeats), options.json)
    for case in LINEAR:
        print_rows(linear(case, options.threads, options.repeats), options.json)


if __name__ == "__main__":
    main()
