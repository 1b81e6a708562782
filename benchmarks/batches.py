"""Times batch assembly: the vectorised gather against per-item loops; see `scanrl.bench.batches`.

    python -m benchmarks.batches [--json] [--cold] [--repeats N]

`ratio` is the median of the published loop over the row's own. The three take turns of ten batches; `--cold` makes that
one, so that each batch finds the caches full of something else.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

if __package__ in (None, ""):  # run as a file: the repository is not yet on the path
    sys.path.insert(0, str(Path(__file__).parents[1]))

from scanrl.bench.batches import batch_rows, recording
from scanrl.bench.timing import heading, print_rows

CASES = ((64, 8), (64, 20), (256, 20))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object per row")
    parser.add_argument("--cold", action="store_true", help="one batch a turn instead of ten")
    parser.add_argument("--repeats", type=int, default=60, help="turns of each way")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if not chosen.json:
        print(heading())
    dataset = recording()
    for size, context in CASES:
        print_rows(batch_rows(dataset, size, context, chosen.repeats, 1 if chosen.cold else 10), chosen.json)


if __name__ == "__main__":
    main()
