"""Times the selective scan, forward and backward: native C, torch reference, the classic loop, mambapy's parallel scan.

    python -m benchmarks.scan [--all] [--json] [--threads N] [--repeats N]

All compute softplus, D and gate from the same tensors; `ratio` is the classic loop's median over the row's own.
Before anything is timed, its outputs and gradients are compared with the float64 reference.
"""

import argparse
import platform
import sys
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

if __package__ in (None, ""):  # run as a file: the repository is not yet on the path
    sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.timing import measure, print_rows
from scanrl.kernels import scan_choice, selective_scan

SHAPES = {  # batch, tokens, channels, states
    "W1": (64, 24, 128, 16),  # 8 steps of 3 tokens, width 64
    "W2": (64, 60, 256, 16),  # 20 steps of 3 tokens, width 128
    "W3": (4, 2048, 256, 16),
    "W4": (1, 20000, 256, 16),
    "W5": (64, 90, 256, 16),  # Atari
    "W6": (64, 192, 128, 16),  # 64 steps of 3 tokens, width 64
}
LONGEST_LOOP = 256  # backward of the classic loop is quadratic in the tokens


def classic_loop(u, dt, A, B, C, D, z, dt_bias) -> Tensor:
    """The eager loop of the public minimal implementations: whole-sequence coefficients, a slice per step."""
    delta = F.softplus(dt + dt_bias)
    dA = torch.exp(delta.unsqueeze(-1) * A)  # (B, L, E, N)
    dBu = (delta * u).unsqueeze(-1) * B.unsqueeze(2)
    h, ys = torch.zeros_like(dA[:, 0]), []
    for t in range(u.shape[1]):
        h = dA[:, t] * h + dBu[:, t]
        ys.append((h * C[:, t, None]).sum(-1))
    return (torch.stack(ys, 1) + D * u) * F.silu(z)


def parallel_scan(u, dt, A, B, C, D, z, dt_bias) -> Tensor:
    """The same with mambapy's parallel scan in place of the loop."""
    from mambapy.pscan import pscan

    delta = F.softplus(dt + dt_bias)
    h = pscan(torch.exp(delta.unsqueeze(-1) * A), (delta * u).unsqueeze(-1) * B.unsqueeze(2))
    return ((h @ C.unsqueeze(-1)).squeeze(-1) + D * u) * F.silu(z)


def ours(impl, u, dt, A, B, C, D, z, dt_bias) -> Tensor:
    return selective_scan(u, dt, A, B, C, D=D, z=z, dt_bias=dt_bias, impl=impl)[0]


def candidates(length: int) -> dict[str, Callable[..., Tensor]]:
    found: dict[str, Callable[..., Tensor]] = {
        "native": partial(ours, "native"),
        "reference": partial(ours, "reference"),
    }
    if length <= LONGEST_LOOP:
        found["classic loop"] = classic_loop
    if find_spec("mambapy"):
        found["mambapy"] = parallel_scan
    return found


def arguments(batch: int, length: int, channels: int, states: int) -> list[Tensor]:
    """u, dt, A, B, C, D, z, dt_bias as a freshly built Mamba layer has them."""
    generator = torch.Generator().manual_seed(0)
    normal = partial(torch.randn, generator=generator)
    A = -torch.arange(1.0, states + 1).repeat(channels, 1)
    wide, narrow = (batch, length, channels), (batch, length, states)
    x = [
        normal(wide),
        normal(wide),
        A,
        normal(narrow),
        normal(narrow),
        normal(channels),
        normal(wide),
        normal(channels) - 4,
    ]
    return [tensor.requires_grad_() for tensor in x]


def train(function: Callable[..., Tensor], x: list[Tensor], weights: Tensor) -> tuple[Tensor, ...]:
    """Forward and backward: the output and the gradient of every argument."""
    y = function(*x)
    return y.detach(), *torch.autograd.grad(y, x, weights)


def refuse_unless_equal(functions: dict[str, Callable[..., Tensor]], x: list[Tensor], weights: Tensor) -> None:
    """Exits if a candidate strays from the float64 reference; two rows of the batch will tell."""
    rows = [t.detach()[:2] if t.ndim == 3 else t.detach() for t in x]
    exact = [t.double().requires_grad_() for t in rows]
    truth = train(partial(ours, "reference"), exact, weights[:2].double())
    for name, function in functions.items():
        found = train(function, [t.requires_grad_() for t in rows], weights[:2])
        worst = max(((f - t).abs().max() / t.abs().max()).item() for f, t in zip(found, truth, strict=True))
        if not worst < 1e-4:
            sys.exit(f"{name}: differs from the float64 reference by {worst:.1e} of the largest entry; not timed")


def run(case: str, threads: int, repeats: int) -> list[dict]:
    x = arguments(*SHAPES[case])
    weights = torch.randn(x[0].shape, generator=torch.Generator().manual_seed(1))
    functions = candidates(SHAPES[case][1])
    refuse_unless_equal(functions, x, weights)
    timings = measure({name: partial(train, f, x, weights) for name, f in functions.items()}, repeats)
    base = timings.get("classic loop")
    return [
        {
            "case": case,
            "shape": "x".join(map(str, SHAPES[case])),
            "impl": name,
            "median_ms": t.median_ms,
            "p10_ms": t.p10,
            "p90_ms": t.p90,
            "ratio": base.median_ms / t.median_ms if base else None,
            "threads": threads,
        }
        for name, t in timings.items()
    ]


def _version(package: str) -> str:
    return version(package) if find_spec(package) else "not installed"


def main() -> None:
    parser = argparse.ArgumentParser(description="Times the selective scan, forward and backward.")
    parser.add_argument("--all", action="store_true", help="also W3 to W6, not only W1 and W2")
    parser.add_argument("--json", action="store_true", help="one JSON object per row")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch and of the scan")
    parser.add_argument("--repeats", type=int, default=20, help="rounds per case")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if not options.json:
        versions = f"python {platform.python_version()}, torch {torch.__version__}, mambapy {_version('mambapy')}"
        print(f"{platform.machine()}, {scan_choice().detail}, {versions}")
    for case in SHAPES if options.all else ("W1", "W2"):
        print_rows(run(case, options.threads, options.repeats), options.json)


if __name__ == "__main__":
    main()
