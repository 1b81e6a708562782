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
from scanrl.bench.scans import SCAN_SHAPES as SHAPES
from scanrl.bench.scans import classic_loop, our_scan, require_equal_scans, scan_arguments, train_scan
from scanrl.bench.timing import installed
from scanrl.kernels import scan_choice

LONGEST_LOOP = 256  # backward of the classic loop is quadratic in the tokens


def parallel_scan(u, dt, A, B, C, D, z, dt_bias) -> Tensor:
    """The same with mambapy's parallel scan in place of the loop."""
    from mambapy.pscan import pscan

    delta = F.softplus(dt + dt_bias)
    h = pscan(torch.exp(delta.unsqueeze(-1) * A), (delta * u).unsqueeze(-1) * B.unsqueeze(2))
    return ((h @ C.unsqueeze(-1)).squeeze(-1) + D * u) * F.silu(z)


def candidates(length: int) -> dict[str, Callable[..., Tensor]]:
    found: dict[str, Callable[..., Tensor]] = {
        "native": partial(our_scan, "native"),
        "reference": partial(our_scan, "reference"),
    }
    if length <= LONGEST_LOOP:
        found["classic loop"] = classic_loop
    if installed("mambapy"):
        found["mambapy"] = parallel_scan
    return found


def run(case: str, threads: int, repeats: int) -> list[dict]:
    x = scan_arguments(*SHAPES[case])
    weights = torch.randn(x[0].shape, generator=torch.Generator().manual_seed(1))
    functions = candidates(SHAPES[case][1])
    require_equal_scans(functions, x, weights)
    timings = measure({name: partial(train_scan, f, x, weights) for name, f in functions.items()}, repeats)
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
