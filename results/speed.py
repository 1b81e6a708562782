"""Speed on this machine: every benchmark, one after the other, and the page made from their rows.

    python results/speed.py run            # under an hour on a quiet machine; writes results/speed.jsonl
    python results/speed.py run --quick    # minutes, few repeats: for a look; the rows and the page say so
    python results/speed.py run --only scan --only growth     # runs these again and keeps the other rows
    python results/speed.py page           # writes docs/performance.md from results/speed.jsonl

`make bench` does the first and the last. Ratios are between candidates that took turns in one process. Times do not
travel between machines; ratios mostly do.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

if __package__ in (None, ""):  # run as a file: the repository is not yet on the path
    sys.path.insert(0, str(Path(__file__).parents[1]))

from results.page import write_page

ROOT = Path(__file__).parents[1]
ROWS = Path(__file__).with_suffix(".jsonl")
PAGE = ROOT / "docs" / "performance.md"
BUSY = 0.15  # processors busy with other work from which on rows count as provisional


class Measurement(NamedTuple):
    """A program and its words; `quick` are those of a short run, `environment` what is set for both."""

    program: str
    words: tuple[str, ...]
    quick: tuple[str, ...]
    environment: dict[str, str] = {}  # noqa: RUF012 (never changed)

    def command(self, quick: bool = False) -> str:
        """The run as one would type it."""
        settings = [f"{name}={value}" for name, value in self.environment.items()]
        words = (f"'{word}'" if " " in word else word for word in (self.quick if quick else self.words))
        return " ".join([*settings, "python -m", self.program, *words])


def _words(text: str, *cases: str) -> tuple[str, ...]:
    return (*text.split(), *(word for case in cases for word in ("--case", case)))


def _short(environment: dict[str, str]) -> Measurement:
    """The short benchmarks, as users see them."""
    words = "bench speed --threads {}"
    return Measurement("scanrl.cli", _words(words.format(2)), _words(words.format(1)), environment)


# The quick runs take one thread: they are for machines that have other work.
MEASUREMENTS = {
    "limits": Measurement("benchmarks.limits", _words("--threads 2"), _words("--threads 2")),
    "scan": Measurement("benchmarks.scan", _words("--threads 2 --repeats 12"), _words("--threads 1 --repeats 2")),
    "mixers": Measurement("benchmarks.mixers", _words("--threads 2"), _words("--threads 1 --repeats 3")),
    "training": Measurement(
        "benchmarks.training",
        _words("--threads 2 --repeats 8", "W1", "W2", "W6", "DT"),
        _words("--threads 1 --repeats 2", "W1", "W6", "DT"),
    ),
    "attention": Measurement("benchmarks.attention", _words("--threads 2"), _words("--threads 1 --repeats 3")),
    "batches": Measurement("benchmarks.batches", (), _words("--repeats 10")),
    "acting": Measurement("benchmarks.acting", _words("--threads 1 --steps 2000"), _words("--threads 1 --steps 500")),
    "long acting": Measurement(
        "benchmarks.acting",
        _words("--streams 1 --steps 100000", "dmm-dc recurrent"),
        _words("--streams 1 --steps 5000", "dmm-dc recurrent"),
    ),
    "growth": Measurement("benchmarks.growth", _words("--threads 2"), _words("--threads 1 --repeats 2")),
    "in context": Measurement(
        "benchmarks.in_context", _words("--threads 1 --repeats 10"), _words("--threads 1 --repeats 2")
    ),
    "histories": Measurement("benchmarks.histories", (), _words("--repeats 2 --replicas 2")),
    "pixels": Measurement("benchmarks.pixels", (), _words("--steps 20000 --repeats 2")),
    "seeds": Measurement("benchmarks.seeds", _words("--threads 2"), _words("--threads 1")),
    "start": Measurement("benchmarks.start", _words("--threads 2"), _words("--threads 1 --repeats 2")),
    "speed": _short({}),
    "speed avx2": _short({"SCANRL_ISA": "avx2"}),
    "speed portable": _short({"SCANRL_ISA": "portable"}),
    "speed reference": _short({"SCANRL_SCAN": "reference"}),
}
"""What is run, in the order of the page."""


class Meter:
    """How many processors were busy with something else meanwhile, on average; 0 where the system does not tell."""

    def __init__(self) -> None:
        self.began, self.busy, self.own = time.perf_counter(), _busy_seconds(), _own_seconds()

    def read(self) -> tuple[float, float]:
        """Processors, and seconds since the beginning."""
        spent = time.perf_counter() - self.began
        others = _busy_seconds() - self.busy - (_own_seconds() - self.own)
        return round(max(0.0, others) / spent, 2), spent


def _busy_seconds() -> float:
    """Of all processors since the start of the system; time that a hypervisor gave to others counts as well."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    except OSError:
        return 0.0
    user, nice, system, _idle, _waiting, *rest = map(int, fields)
    return (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def machine(quick: bool) -> dict[str, Any]:
    """What the numbers depend on."""
    from scanrl.bench.speed import machine

    revision = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return {"benchmark": "machine", **machine(), "quick": quick, "revision": revision.stdout.strip()}


def measure(name: str, quick: bool) -> list[dict[str, Any]]:
    """One program in a process of its own: how it was run, then its rows; none, with the reason, if it failed."""
    measurement = MEASUREMENTS[name]
    words = [measurement.program, *(measurement.quick if quick else measurement.words), "--json"]
    load, meter = os.getloadavg()[0], Meter()
    environment = {"GOMP_SPINCOUNT": "10000", **os.environ, **measurement.environment}  # as the command itself sets it
    done = subprocess.run([sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True, env=environment)
    others, spent = meter.read()
    about = {
        "benchmark": name,
        "case": "run",
        "command": measurement.command(quick),
        "seconds": round(spent),
        "load": round(load, 2),
        "others": others,
    }
    about["provisional"] = quick or others > BUSY
    for line in done.stderr.splitlines():
        if line.startswith("left out:"):
            print(f"{name}: {line}", file=sys.stderr)
    if done.returncode:
        problem = (done.stderr.strip().splitlines() or ["no message"])[-1].removeprefix(f"{sys.executable}: ")
        print(f"{name}: failed, no rows: {problem}", file=sys.stderr, flush=True)
        return [{**about, "failed": problem}]
    rows = [{"benchmark": name, **row} for row in parse(done.stdout)]
    print(f"{name}: {len(rows)} rows in {spent:.0f} s, other work {others} cores", file=sys.stderr, flush=True)
    return [about, *rows]


def parse(text: str) -> list[dict[str, Any]]:
    """The rows a program printed: one object per line, or one object that holds them."""
    if text.startswith("{\n"):
        found = json.loads(text)
        return [*({"case": "limit", "impl": x["name"], **x} for x in found["limits"]), *found["rows"]]
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def read() -> list[dict[str, Any]]:
    return [json.loads(line) for line in ROWS.read_text(encoding="utf-8").splitlines()] if ROWS.exists() else []


def run(only: list[str], quick: bool) -> None:
    """Measures and writes after every benchmark; rows of what is not run again stay."""
    order = ["machine", *MEASUREMENTS]
    for name in only or MEASUREMENTS:
        found = measure(name, quick)
        rows = [machine(quick), *(row for row in read() if row["benchmark"] not in ("machine", name)), *found]
        rows.sort(key=lambda row: order.index(row["benchmark"]))
        ROWS.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "page"))
    parser.add_argument("--quick", action="store_true", help="few repeats")
    parser.add_argument("--only", action="append", choices=MEASUREMENTS, default=[], help="default: all")
    chosen = parser.parse_args()
    if chosen.what == "run":
        run(chosen.only, chosen.quick)
    else:
        commands = {name: measurement.command() for name, measurement in MEASUREMENTS.items()}
        PAGE.write_text(write_page(read(), commands), encoding="utf-8")


if __name__ == "__main__":
    main()
