"""Tries what a user gets: the wheel, in a fresh environment, away from this tree; then once more without a compiler.

    python tools/wheel_test.py --torch torch==2.13.0

Builds the sdist from this tree and the wheel from the sdist, looks at what both contain, installs the wheel with its
dependencies into a new virtual environment, and runs `scanrl doctor --json`, a short training on the bundled data,
`Policy.load(...).act`, `scanrl resume` and `scanrl eval` there. The second wheel is built with a failing compiler: it
must install all the same, say `reference`, warn once, and train. Takes some minutes and a package index.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NEEDED = [
    "scanrl/py.typed",
    "scanrl/report/report.html",
    "scanrl/bundled/hopper-medium.hdf5",
    "scanrl/bundled/hopper-replay.hdf5",
    "scanrl/bundled/provenance.json",
]
SOURCES = [
    "setup.py",
    "LICENSE",
    "README.md",
    *(f"scanrl/kernels/csrc/{f.name}" for f in ROOT.glob("scanrl/kernels/csrc/*")),
]

TRAIN = """
import warnings
with warnings.catch_warnings(record=True) as heard:
    warnings.simplefilter("always")
    import numpy as np
    import scanrl
    from scanrl.demo import bundled
    run = scanrl.train("dmm-dc", bundled("hopper-replay"), steps=3, out="run", overrides={"train.validation": 0.0})
    policy = scanrl.Policy.load(run.path, target_return=1000)
    actions = policy.act(np.zeros((4, 11)))
assert actions.shape == (4, 3) and np.isfinite(actions).all(), actions
from pathlib import Path
assert "site-packages" in scanrl.__file__, scanrl.__file__
maps = Path("/proc/self/maps")
loaded = {line.split("/")[-1] for line in maps.read_text().splitlines() if "/" in line} if maps.exists() else set()
runtimes = {name for name in loaded if name.startswith(("libgomp", "libomp", "libiomp"))}
assert len(runtimes) <= 1, f"expected one OpenMP runtime in the process, got {runtimes}"
print(len([w for w in heard if "selective_scan" in str(w.message)]))
"""


def main() -> int:
    """Both trials; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--torch", default="torch==2.13.0", help="what to install as torch")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="scanrl-wheel-") as name:
        folder = Path(name)
        python = _environment(folder / "venv", chosen.torch)
        sdist = _sdist(python, folder)
        for compiler, impl, warned in (("cc", "native", 0), ("false", "reference", 1)):
            wheel = _wheel(python, sdist, folder / f"wheel-{compiler}", compiler)
            _install(python, wheel)
            _try(python, folder / f"trial-{compiler}", impl, warned)
            print(f"wheel built with {compiler}: installs, trains, acts; scan: {impl}")
    return 0


def _environment(folder: Path, torch: str) -> Path:
    _run([sys.executable, "-m", "venv", str(folder)], folder.parent)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    _run([python, "-m", "pip", "install", "--quiet", "--upgrade", "pip", "setuptools>=77"], folder)
    # Pinned and first: left to itself pip would take the newest build with gigabytes of CUDA.
    _run([python, "-m", "pip", "install", "--quiet", torch], folder)
    return python


def _sdist(python: Path, folder: Path) -> Path:
    """The source distribution of what git tracks, so that stray files of this tree can neither help nor harm."""
    clean = folder / "tree"
    clean.mkdir()
    files = _run(["git", "ls-files", "-z"], ROOT).split("\0")
    for name in filter(None, files):
        if (ROOT / name).is_file():
            (clean / name).parent.mkdir(parents=True, exist_ok=True)
            (clean / name).write_bytes((ROOT / name).read_bytes())
    build = "import setuptools.build_meta as backend; backend.build_sdist('dist')"
    _run([python, "-c", build], clean)
    [sdist] = (clean / "dist").glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        _expect(sdist, (member.name.partition("/")[2] for member in archive), [*NEEDED, *SOURCES])
    return sdist


def _wheel(python: Path, sdist: Path, folder: Path, compiler: str) -> Path:
    """The wheel made from the sdist; `false` is a compiler that always fails."""
    settings = {**os.environ, "CC": compiler, "CXX": compiler, "LDSHARED": f"{compiler} -shared"}
    words = [python, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-cache-dir", "--wheel-dir", folder, sdist]
    _run(words, sdist.parent, settings)
    [wheel] = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        _expect(wheel, names, NEEDED)
        compiled = any("_native" in name for name in names)
        assert compiled == (compiler != "false"), f"{wheel.name}: extension {'there' if compiled else 'missing'}"
        strange = [name for name in names if not name.startswith(("scanrl/", "scanrl-"))]
        assert not strange, f"{wheel.name}: expected the package only, got {strange}"
    return wheel


def _install(python: Path, wheel: Path) -> None:
    _run([python, "-m", "pip", "uninstall", "--quiet", "--yes", "scanrl"], wheel.parent)
    _run([python, "-m", "pip", "install", "--quiet", f"scanrl[mujoco] @ {wheel.as_uri()}"], wheel.parent)


def _try(python: Path, folder: Path, impl: str, warned: int) -> None:
    folder.mkdir()
    kept = ("PYTHONPATH", "SCANRL_SCAN")
    clean = {k: v for k, v in os.environ.items() if k not in kept} | {"XDG_CACHE_HOME": str(folder / "cache")}
    command = python.with_name("scanrl")
    found = json.loads(_run([command, "doctor", "--json"], folder, clean))
    assert found["scan"]["impl"] == impl, f"doctor: expected {impl}, got {found['scan']}"
    assert found["versions"]["scanrl"], "doctor: expected the version of scanrl, got none"
    heard = int(_run([python, "-c", TRAIN], folder, clean).split()[-1])
    assert heard == warned, f"training: expected {warned} warnings about the scan, got {heard}"
    _run([command, "resume", "run"], folder, clean)
    _run([command, "eval", "run", "--env", "Hopper-v5", "--episodes", "2"], folder, clean)


def _expect(archive: Path, names: Iterable[str], needed: Iterable[str]) -> None:
    missing = sorted(set(needed) - set(names))
    assert not missing, f"{archive.name}: expected {missing}"


def _run(words: list, folder: Path, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        list(map(str, words)), cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, words))}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
