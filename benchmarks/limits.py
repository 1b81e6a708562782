"""Measures what this machine can do at most, with one thread and with several; see `scanrl.bench.limits`.

python -m benchmarks.limits [--json] [--threads N]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

if __package__ in (None, ""):  # run as a file: the repository is not yet on the path
    sys.path.insert(0, str(Path(__file__).parents[1]))

from scanrl.bench.limits import Limit, measure_limits
from scanrl.bench.timing import heading, print_rows


def limit_rows(limits: list[Limit]) -> list[dict[str, Any]]:
    return [
        {"case": "limit", "impl": x.name, "rate": x.rate, "unit": x.unit, "threads": x.threads, "how": x.how}
        for x in limits
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object per row")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="measured beside one")
    chosen = parser.parse_args()
    if not chosen.json:
        print(heading())
    one = measure_limits(1)
    many = measure_limits(chosen.threads) if chosen.threads > 1 else []
    print_rows(limit_rows([*one, *many]), chosen.json)


if __name__ == "__main__":
    main()
