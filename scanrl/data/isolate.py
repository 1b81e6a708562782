"""Reading a foreign file in a child process, so that a file that crashes its reader cannot take the program along.

The parent sends one JSON request on stdin; the child limits its own memory, reads, and leaves a store (or one error
line) in a folder. The child imports numpy and the reader's library, neither torch nor the package's front door.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scanrl.types import DataError

__all__ = ["attempt", "main", "read_isolated"]

_RESULT = "result.json"
_STORE = "store"

# The package is put in place by hand: its __init__ would import torch, which takes seconds and, in some builds, more
# address space than the child is allowed.
_BOOT = (
    "import sys, types; package = types.ModuleType('scanrl'); package.__path__ = [sys.argv[1]]; "
    "sys.modules['scanrl'] = package; from scanrl.data.isolate import main; main()"
)


def read_isolated(
    module: str,
    source: Path,
    folder: Path,
    *,
    name: str,
    options: Mapping[str, Any],
    origin: Mapping[str, str],
    memory_gib: float = 4.0,
    timeout: float = 60.0,
) -> Path:
    """Have a reader module convert `source` in a child process; returns the folder of the store it wrote.

    Args:
        module: reader module, e.g. `scanrl.data.d4rl`; its `read(source, name=, limit=, **options)` is called.
        source: the file to read.
        folder: existing empty folder for the child to write to.
        name: what the errors call the file.
        options: keyword arguments of the reader, plain JSON values.
        origin: `source` of the dataset, for its manifest.
        memory_gib: address space of the child in GiB; the columns may take three quarters of it.
        timeout: seconds until the child is killed.

    Raises:
        DataError: the reader refused the file, crashed, ran out of memory or time. One line, names the file.
    """
    request = {
        "module": module,
        "source": str(source.absolute()),
        "folder": str(folder.absolute()),
        "name": name,
        "options": dict(options),
        "origin": dict(origin),
        "memory": int(memory_gib * 2**30),
    }
    command = [sys.executable, "-P", "-c", _BOOT, str(Path(__file__).resolve().parents[1])]
    try:
        done = subprocess.run(
            command,
            input=json.dumps(request).encode(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=_environment(),
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        more = "see timeout: scanrl data convert --timeout"
        raise DataError(f"{name}: unreadable (reader took longer than {timeout:g} s, {more})") from None
    if done.returncode < 0:
        raise DataError(f"{name}: unreadable (reader crashed, signal {-done.returncode})")
    result = folder / _RESULT
    if done.returncode or not result.is_file():
        raise DataError(f"{name}: unreadable (reader failed, exit status {done.returncode})")
    if (error := json.loads(result.read_bytes())["error"]) is not None:
        raise DataError(error)
    return folder / _STORE


def _environment() -> dict[str, str]:
    # One thread: thread pools reserve address space. No HDF5 plugins: a file must not choose code to load.
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {**os.environ, **one, "HDF5_PLUGIN_PRELOAD": "::", "PYTHONDONTWRITEBYTECODE": "1"}


def main() -> None:
    """The child: one request on stdin, a store or an error line in the request's folder."""
    request = json.loads(sys.stdin.buffer.read())
    _limit(request["memory"])
    Path(request["folder"], _RESULT).write_text(json.dumps({"error": attempt(request)}))


def attempt(request: dict[str, Any]) -> str | None:
    """Convert as `request` says; the error as one line, `None` if there was none."""
    name = request["name"]
    try:
        _convert(request)
    except DataError as refused:
        return str(refused)
    except MemoryError:
        more = "see memory_gib: scanrl data convert --memory-gib"
        return f"{name}: unreadable (reader needs more than {request['memory'] / 2**30:.3g} GiB, {more})"
    except Exception as failed:  # Whatever a damaged file makes its library raise becomes one line.
        reason = " ".join(str(failed).split())[:200]
        return f"{name}: unreadable ({type(failed).__name__}: {reason})"
    return None


def _limit(memory: int) -> None:
    try:
        import resource
    except ImportError:  # Windows has no such limits; the declared sizes are still checked.
        return
    for kind, limit in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_FSIZE, memory), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(kind)[1]
        if hard != resource.RLIM_INFINITY:
            limit = min(limit, hard)
        with contextlib.suppress(ValueError, OSError):  # Not every system takes every limit (macOS).
            resource.setrlimit(kind, (limit, hard))


def _convert(request: dict[str, Any]) -> None:
    from scanrl.data.store import write_store

    reader = importlib.import_module(request["module"])
    limit = request["memory"] * 3 // 4
    dataset = reader.read(Path(request["source"]), name=request["name"], limit=limit, **request["options"])
    dataset.source = request["origin"]
    write_store(dataset, Path(request["folder"], _STORE))
