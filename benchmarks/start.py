"""Times starting: `import scanrl` beside torch's own import, and the first training step beside later ones.

    python -m benchmarks.start [--json] [--threads N] [--repeats N]

Imports are timed in fresh processes that take turns. `scanrl` alone imports nothing heavy; `scanrl.training` is what a
training run needs, timed on top of torch, which is there already. The first training step is that of a new
process, and `ratio` the median of its later steps over it: near 1, nothing is compiled or warmed up.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

if __package__ in (None, ""):  # run as a file: the repository is not yet on the path
    sys.path.insert(0, str(Path(__file__).parents[1]))

from scanrl.bench.timing import heading, print_rows, rows_of, summary

ROOT = Path(__file__).parents[1]
AGAIN = "start = time.perf_counter()"
IMPORTS = {
    "torch": "import torch",
    "scanrl": "import scanrl",
    "scanrl.training after torch": f"import torch; {AGAIN}; import scanrl.training",
}
STEPS = 12


def seconds(code: str) -> list[float]:
    """What a fresh process that runs `code` prints, as milliseconds."""
    code = f"import time; {AGAIN}; {code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return [1e3 * float(word) for word in done.stdout.split()]


def import_rows(repeats: int) -> list[dict[str, Any]]:
    times: dict[str, list[float]] = {name: [] for name in IMPORTS}
    for turn in range(repeats + 1):
        for name, code in IMPORTS.items():
            [spent] = seconds(f"{code}; print(time.perf_counter() - start)")
            if turn:  # the first reads files that are then in memory
                times[name].append(spent)
    timings = {name: summary(values) for name, values in times.items()}
    return rows_of("import", timings, "torch")


def first_step_rows(threads: int, repeats: int) -> list[dict[str, Any]]:
    """Both in the same processes, each of which trains a model of its own."""
    code = f"""
import torch
torch.set_num_threads({threads})
from scanrl.bench.models import hopper_model, windows
from scanrl.bench.updates import training_step
model = hopper_model("dmm-dc", context=8)
update = training_step(model.loss, model.parameters(), windows(64, 8))
for _ in range({STEPS}):
    start = time.perf_counter(); update(); print(time.perf_counter() - start)
"""
    runs = [seconds(code) for _ in range(repeats)]
    timings = {"first": summary([run[0] for run in runs]), "later": summary([t for run in runs for t in run[2:]])}
    return rows_of("training step", timings, "later")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object per row")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5, help="fresh processes per row")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    if not chosen.json:
        print(heading())
    print_rows(import_rows(chosen.repeats), chosen.json)
    print_rows(first_step_rows(chosen.threads, chosen.repeats), chosen.json)


if __name__ == "__main__":
    main()
