"""Speed on this machine: the four benchmarks, one after the other, and their rows as Markdown.

    python results/speed.py run            # about ten minutes on a quiet machine; writes results/speed.jsonl
    python results/speed.py table          # what docs/performance.md shows

Ratios are between candidates that took turns in one process. Times do not travel between machines; ratios mostly do.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

ROWS = Path(__file__).with_suffix(".jsonl")
ROOT = Path(__file__).parents[1]
RUNS = {
    "scan": ["benchmarks.scan", "--threads", "2", "--repeats", "12"],
    "training": ["benchmarks.training", "--threads", "2", "--repeats", "8"],
    "batches": ["benchmarks.batches"],
    "acting": ["benchmarks.acting", "--threads", "1", "--steps", "2000"],
    "long acting": ["benchmarks.acting", "--case", "dmm-dc recurrent", "--streams", "1", "--steps", "100000"],
}
COLUMNS = {
    "scan": ("case", "shape", "impl", "median_ms", "p10_ms", "p90_ms", "ratio"),
    "training": ("case", "model", "impl", "median_ms", "p10_ms", "p90_ms", "ratio"),
    "batches": ("case", "impl", "median_ms", "ratio"),
    "acting": ("case", "streams", "steps", "median_ms", "early_ms", "late_ms", "growth", "state_kb", "ratio"),
    "long acting": ("case", "streams", "steps", "early_ms", "late_ms", "growth", "state_kb"),
}


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    from scanrl.doctor import diagnose

    found = diagnose()
    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    load = [round(x, 2) for x in os.getloadavg()]
    return {
        "benchmark": "machine",
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "load_before": load,
        "scan": found["scan"],
        "versions": found["versions"],
    }


def run() -> None:
    rows = [machine()]
    for name, words in RUNS.items():
        found = subprocess.run([sys.executable, "-m", *words, "--json"], cwd=ROOT, capture_output=True, text=True)
        if found.returncode:
            sys.exit(f"{name}: {found.stderr[-800:]}")
        lines = [line for line in found.stdout.splitlines() if line.startswith("{")]
        rows += [{"benchmark": name, **json.loads(line)} for line in lines]
        print(f"{name}: {len(lines)} rows", file=sys.stderr, flush=True)
    ROWS.write_text("".join(json.dumps(row) + "\n" for row in rows))


def table() -> str:
    rows = [json.loads(line) for line in ROWS.read_text().splitlines()]
    text = []
    for name, columns in COLUMNS.items():
        text += [f"`python -m {' '.join(RUNS[name])}`", "", "| " + " | ".join(columns) + " |"]
        text.append("|" + "---|" * len(columns))
        for row in rows:
            if row["benchmark"] == name:
                text.append("| " + " | ".join(_cell(row.get(column)) for column in columns) + " |")
        text.append("")
    return "\n".join(text)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


if __name__ == "__main__":
    if sys.argv[1:] == ["run"]:
        run()
    elif sys.argv[1:] == ["table"]:
        print(table())
    else:
        sys.exit(__doc__)
