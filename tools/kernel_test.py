"""Tries the C kernels against plain float64 loops, without Python in between; on ARM through an emulator.

    python tools/kernel_test.py          # this machine's instruction sets
    python tools/kernel_test.py --arm    # NEON: natively on ARM, else cross-compiled and run by qemu

The test itself is `kernel_test.c`. Every array in it ends at a page that may not be touched, so reading or writing
beyond an end is noticed, also in vectors of which only a part is wanted. A second build traps undefined behaviour.
Where the cross compiler or the emulator is missing, says so and succeeds:

    apt-get install gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user

An emulator says nothing about speed.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CSRC = ROOT / "scanrl/kernels/csrc"
BUILDS = [
    CSRC / f"{name}.c" for name in ("portable", "neon", "avx2", "avx512")
]  # empty elsewhere than where they belong
FLAGS = ["-std=gnu11", "-Wall", "-Wextra", "-Wno-psabi", f"-I{CSRC}"]
UNDEFINED = ["-O1", "-fsanitize=undefined", "-fsanitize-undefined-trap-on-error"]
LEAST_FMLA = 100


def main() -> int:
    """Builds and runs; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--arm", action="store_true", help="test the NEON build")
    arm = parser.parse_args().arm
    foreign = arm and platform.machine() not in ("aarch64", "arm64")
    compiler = "aarch64-linux-gnu-gcc" if foreign else os.environ.get("CC", "cc")
    emulators = ["qemu-aarch64", "qemu-aarch64-static"] if foreign else []
    emulator = next(filter(None, map(shutil.which, emulators)), None)
    if not shutil.which(compiler) or (foreign and not emulator):
        print(f"kernel_test: skipped: {compiler if not shutil.which(compiler) else emulators[0]} is not installed")
        return 0
    with tempfile.TemporaryDirectory(prefix="scanrl-kernels-") as name:
        if arm:
            _look_for_fma(compiler, Path(name) / "neon.s")
        for flags in (["-O3"], UNDEFINED):
            program = Path(name) / "kernel_test"
            static = ["-static"] if foreign else []  # so that the emulator needs no libraries of the other machine
            sources = [ROOT / "tools/kernel_test.c", *BUILDS]
            _run([compiler, *flags, *FLAGS, *static, *sources, "-o", program, "-lm"])
            print(f"{compiler} {' '.join(flags)}", flush=True)
            _run([emulator, program] if emulator else [program])
    return 0


def _look_for_fma(compiler: str, assembly: Path) -> None:
    """A compiler that does not contract products and sums would halve the speed without a word."""
    _run([compiler, "-O3", *FLAGS, "-S", CSRC / "neon.c", "-o", assembly])
    found = len(re.findall(r"\bfmla\b", assembly.read_text()))
    print(f"{compiler}: {found} fused multiply-adds in the NEON build")
    if found < LEAST_FMLA:
        sys.exit(f"kernel_test: expected at least {LEAST_FMLA} fused multiply-adds (fmla), found {found}")


def _run(words: list) -> None:
    done = subprocess.run(list(map(str, words)), check=False)
    if done.returncode:
        sys.exit(f"kernel_test: {words[0]}: exit status {done.returncode}")


if __name__ == "__main__":
    sys.exit(main())
