"""Runs the kernel tests on an extension built with AddressSanitizer and UndefinedBehaviorSanitizer.

    python tools/sanitize.py [PYTEST ARGUMENTS]     # tests/kernels by default

Copies the package and the tests into a temporary folder, builds the extension there and runs the tests with the
sanitizer's runtime loaded first. A bad access or undefined behaviour ends the run with a report. Needs Linux and gcc
with its sanitizers.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FLAGS = "-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g"
LEAVE_OUT = shutil.ignore_patterns("*.so", "__pycache__", ".*")


def main() -> int:
    """Builds, runs the tests, and returns their exit code."""
    words = sys.argv[1:] or ["tests/kernels"]
    compiler = os.environ.get("CC", "gcc")
    with tempfile.TemporaryDirectory(prefix="scanrl-sanitize-") as name:
        folder = Path(name)
        for part in ("scanrl", "tests", "results", "benchmarks"):
            shutil.copytree(ROOT / part, folder / part, ignore=LEAVE_OUT)
        for part in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / part, folder)
        settings = {**os.environ, "CC": compiler, "CFLAGS": FLAGS, "LDFLAGS": FLAGS}
        settings.pop("PYTHONPATH", None)
        subprocess.run(
            [sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=folder, env=settings, check=True
        )
        if not list(folder.glob("scanrl/kernels/_native*")):
            sys.exit("sanitize: the extension was not built; is there a compiler with -fsanitize=address,undefined?")
        settings = {
            **os.environ,
            "PYTHONPATH": str(folder),
            # The second for torch's exceptions, which the sanitizer intercepts and must be able to pass on.
            "LD_PRELOAD": f"{_library(compiler, 'libasan.so')} {_library(compiler, 'libstdc++.so')}",
            "ASAN_OPTIONS": "detect_leaks=0",  # Python itself leaves much behind at its end
            "UBSAN_OPTIONS": "print_stacktrace=1",
            "OMP_NUM_THREADS": "1",
        }
        limits = ["-p", "no:cacheprovider", "--timeout", "1200"]
        return subprocess.run([sys.executable, "-m", "pytest", *limits, *words], cwd=folder, env=settings).returncode


def _library(compiler: str, name: str) -> Path:
    """A library of the compiler that must be loaded before all others."""
    found = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    library = Path(found.stdout.strip())
    if not library.is_absolute():
        sys.exit(f"sanitize: expected {name} beside {compiler}, found none")
    return library


if __name__ == "__main__":
    sys.exit(main())
