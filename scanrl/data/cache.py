"""Foreign files are converted once: the store made from a file is kept under the sha256 of what it was made from."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scanrl.data.dataset import Dataset
from scanrl.data.isolate import read_isolated
from scanrl.data.store import FORMAT_VERSION, read_store
from scanrl.types import DataError

__all__ = ["CONVERTER_VERSION", "cache_folder", "converted"]

CONVERTER_VERSION = 3
"""Raise it when a reader gives other columns for the same file: older cache entries are then not used."""

_log = logging.getLogger("scanrl.data")
_WORK = ".converting-"
_STALE_SECONDS = 24 * 3600


def cache_folder() -> Path:
    """Where conversions are kept by default: `$XDG_CACHE_HOME/scanrl`, or `~/.cache/scanrl`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "scanrl"


def converted(
    module: str,
    source: Path,
    files: Sequence[Path],
    *,
    uri: str,
    name: str,
    options: Mapping[str, Any],
    cache: str | Path | None = None,
    memory_gib: float = 4.0,
    timeout: float | None = None,
) -> Dataset:
    """The dataset in `source`, from the cache or through a child process; columns are memory-mapped.

    Args:
        module: reader module, see `read_isolated`.
        source: what the reader is given.
        files: the files whose contents decide whether a cache entry fits.
        uri: recorded as where the data came from.
        name: what errors call the source.
        options: of the reader.
        cache: folder instead of `cache_folder()`. Without a writable folder, columns are copied to memory.
        memory_gib: address space of the child in GiB.
        timeout: seconds; by default 60 and one more for every 2 MiB.

    Raises:
        DataError: the source cannot be read.
    """
    contents, size = _digest(name, files)
    origin = {"uri": uri, "sha256": contents}
    folder = cache_folder() if cache is None else Path(cache)
    entry = folder / _key(module, origin, options)
    if (found := _cached(entry)) is not None:
        return found
    work = _work_folder(folder)
    try:
        limit = 60 + size / 2**21 if timeout is None else timeout
        store = read_isolated(
            module, source, work, name=name, options=options, origin=origin, memory_gib=memory_gib, timeout=limit
        )
        dataset = read_store(store)
        return dataset if work.parent == folder and _keep(store, entry) else _in_memory(dataset)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _digest(name: str, files: Sequence[Path]) -> tuple[str, int]:
    """sha256 over the contents of `files`, and their size in bytes."""
    digest, size = hashlib.sha256(), 0
    try:
        for file in files:
            with file.open("rb") as content:
                digest.update(hashlib.file_digest(content, "sha256").digest())
                size += content.tell()
    except OSError as error:
        raise DataError(f"{name}: expected a readable file, got: {error.strerror}") from None
    return digest.hexdigest(), size


def _key(module: str, origin: dict[str, str], options: Mapping[str, Any]) -> str:
    parts = [CONVERTER_VERSION, FORMAT_VERSION, module, origin, dict(options)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _cached(entry: Path) -> Dataset | None:
    """The store at `entry`; a damaged one is removed, so that it is made again."""
    if not entry.is_dir():
        return None
    try:
        return read_store(entry)
    except DataError as error:
        _log.warning("cache entry made again: %s", error)
        shutil.rmtree(entry, ignore_errors=True)
        return None


def _work_folder(folder: Path) -> Path:
    """A fresh folder in `folder`, or in the system's temporary one if that cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob(f"{_WORK}*"):
            if time.time() - old.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(old, ignore_errors=True)
        return Path(tempfile.mkdtemp(prefix=_WORK, dir=folder))
    except OSError:
        return Path(tempfile.mkdtemp(prefix=_WORK))


def _keep(store: Path, entry: Path) -> bool:
    """Move a finished store to its place. Mapped columns stay valid: a rename keeps the files."""
    try:
        os.rename(store, entry)
    except OSError:  # Another process made the same entry meanwhile, or a damaged one could not be removed.
        return False
    return True


def _in_memory(dataset: Dataset) -> Dataset:
    columns = {field: np.array(column) for field, column in dataset.columns.items()}
    return Dataset(
        columns, dataset.offsets, dataset.spec, dataset.name, fingerprint=dataset.fingerprint, source=dataset.source
    )
