"""Our own format: a folder with one `.npy` per column and a manifest that checks every byte.

`observations.npy`, `actions.npy`, `rewards.npy`, `terminations.npy`, `truncations.npy`, `episode_offsets.npy` are
plain arrays without objects, so they can be memory-mapped. `manifest.json` holds format version, name, spec, counts,
fingerprint, source, size and sha256 of each file, and a sha256 of itself. Equal data gives equal bytes. Learning
histories also have `episode_tasks.npy` and `episode_histories.npy`, and may have `optimal_actions.npy`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from scanrl.data.dataset import Dataset
from scanrl.folder import MANIFEST, verify_folder, write_folder
from scanrl.types import COLUMNS, CorruptFile, DataError, Spec

__all__ = ["FORMAT_VERSION", "MANIFEST", "check_target", "read_store", "write_store"]

FORMAT_VERSION = 1
HISTORIES_VERSION = 2
"""Of stores that hold learning histories, which releases that know the first version only must not take for damaged."""
OPTIMAL_VERSION = 3
"""Of stores that say what the optimal policy would do, likewise."""
_KIND = "scanrl-store"
_FILES = {**{field: f"{field}.npy" for field in COLUMNS}, "offsets": "episode_offsets.npy"}
_HISTORY_FILES = {field: f"episode_{field}.npy" for field in ("tasks", "histories")}
_MORE_FILES = {**_HISTORY_FILES, "optimal_actions": "optimal_actions.npy"}


def write_store(dataset: Dataset, path: str | Path, overwrite: bool = False) -> Path:
    """Write `dataset` to the folder `path`, atomically: a crash leaves the whole store or nothing.

    With `overwrite`, the old store is moved aside just before the new one takes its name; a crash between those two
    renames leaves the old one beside it as `.<name>.old-*`.

    Raises:
        DataError: `path` exists and is not an empty folder, or (with `overwrite`) holds something other than a store.
        OSError: the disk refused; whatever was at `path` is still there.
    """
    path = Path(path)
    check_target(path, overwrite)
    arrays = {**dataset.columns, "offsets": dataset.offsets, **dataset.episode_columns, **dataset.added_columns}
    version = HISTORIES_VERSION if dataset.episode_columns else FORMAT_VERSION
    version = OPTIMAL_VERSION if dataset.added_columns else version
    fields = {
        "name": dataset.name,
        "spec": dataset.spec.to_json(),
        "episodes": len(dataset),
        "steps": dataset.steps,
        "fingerprint": dataset.fingerprint,
        "source": dataset.source,
    }
    names = {field: name for field, name in (_FILES | _MORE_FILES).items() if field in arrays}
    write_folder(path, _KIND, version, fields, {name: _writer(arrays[field]) for field, name in names.items()})
    return path


def read_store(path: str | Path, verify: bool = True) -> Dataset:
    """A dataset whose columns are memory-mapped, read only, from the folder `path`.

    Args:
        verify: compare the sha256 of every file first. Sizes, names and counts are compared in any case.

    Raises:
        CorruptFile: a file is missing, altered, cut short, or a link; the message names it.
        DataError: `path` is no store, or a newer release wrote it.
    """
    path = Path(path)
    names = _FILES | {field: name for field, name in _MORE_FILES.items() if (path / name).exists()}
    manifest = verify_folder(path, _KIND, OPTIMAL_VERSION, names.values(), digests=verify)
    try:
        dataset = _assemble(path, manifest, names)
        declared = {"steps": manifest["steps"], "episodes": manifest["episodes"]}
    except (KeyError, TypeError, AttributeError) as error:
        raise CorruptFile(f"{path / MANIFEST}: expected the fields of a store, got {error!r}") from None
    found = {"steps": dataset.steps, "episodes": len(dataset)}
    if found != declared:
        raise CorruptFile(f"{path / MANIFEST}: counts: expected {found}, got {declared}")
    return dataset


def _assemble(path: Path, manifest: dict[str, Any], names: dict[str, str]) -> Dataset:
    arrays = {field: _map(path, name) for field, name in names.items()}
    offsets = np.array(arrays.pop("offsets"))
    owners = {field: np.array(arrays.pop(field)) for field in _HISTORY_FILES if field in arrays}
    spec = Spec.from_json(manifest["spec"])
    try:
        return Dataset(
            arrays,
            offsets,
            spec,
            manifest["name"],
            fingerprint=manifest["fingerprint"],
            source=manifest["source"],
            optimal_actions=arrays.get("optimal_actions"),
            **owners,
        )
    except DataError as error:
        raise CorruptFile(f"{path / MANIFEST}: expected what the files hold, got: {error}") from None


def check_target(path: Path, overwrite: bool) -> None:
    """Raises as `write_store` does for a place it cannot write to."""
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise DataError(f"{path}: expected a new folder, got something else of that name")
    if path.is_dir() and any(path.iterdir()):
        if not overwrite:
            raise DataError(f"{path}: expected a new or empty folder, got one with files (see overwrite: --overwrite)")
        if not (path / MANIFEST).is_file():
            raise DataError(f"{path}: expected a store to overwrite, got a folder without {MANIFEST}")


def _writer(array: np.ndarray) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with path.open("wb") as file:
            np.lib.format.write_array(file, _plain(array), version=(1, 0), allow_pickle=False)

    return write


def _plain(array: np.ndarray) -> np.ndarray:
    """C order, little endian, so that equal data has equal bytes."""
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))


def _map(path: Path, name: str) -> np.ndarray:
    try:
        return np.load(path / name, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise CorruptFile(f"{path / name}: expected a plain npy array, got: {error}") from None
