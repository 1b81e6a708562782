"""Measures what this machine can do at most, and the least times of an environment step that follow from it.

    python -m benchmarks.limits [--json] [--threads N]

Rows `limit`: see `scanrl.bench.limits`. Rows `floor`: matrix products and exponentials of one environment step, at the
rates measured with one thread.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

if __package__ in (None, ""):  # run as a file: the repository is not yet on the path
    sys.path.insert(0, str(Path(__file__).parents[1]))

from scanrl.bench.limits import Limit, measure_limits, table_of
from scanrl.bench.models import hopper_model, work_of
from scanrl.bench.timing import heading, print_rows

FLOORS = ("dm", "dmm-dc")
STREAMS = (1, 64)


def limit_rows(limits: list[Limit]) -> list[dict[str, Any]]:
    return [
        {"case": "limit", "impl": x.name, "rate": x.rate, "unit": x.unit, "threads": x.threads, "how": x.how}
        for x in limits
    ]


def floor_rows(limits: list[Limit]) -> list[dict[str, Any]]:
    rows = []
    for name in FLOORS:
        model = hopper_model(name)
        for streams in STREAMS:
            least = work_of(model).acting_ms(streams * model.config.period, table_of(limits))
            rows.append(
                {
                    "case": "floor",
                    "impl": f"{name}, {streams} stream" + "s" * (streams > 1),
                    "median_ms": least,
                    "threads": 1,
                }
            )
    return rows


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
    print_rows(floor_rows(one), chosen.json)


if __name__ == "__main__":
    main()
