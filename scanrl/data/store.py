"""Our own format: a folder with one `.npy` per column and a manifest that checks every byte.

`observations.npy`, `actions.npy`, `rewards.npy`, `terminations.npy`, `truncations.npy`, `episode_offsets.npy` are
plain arrays without objects, so they can be memory-mapped. `manifest.json` holds format version, name, spec, counts,
fingerprint, source, size and sha256 of each file, and a sha256 of itself. Equal data gives equal bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import stat
from pathlib import Path
from typing import Any

import numpy as np

from scanrl.data.dataset import Dataset
from scanrl.types import COLUMNS, CorruptFile, DataError, Spec

__all__ = ["FORMAT_VERSION", "MANIFEST", "read_store", "write_store"]

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
_MARK = "scanrl-store"
_FILES = {**{field: f"{field}.npy" for field in COLUMNS}, "offsets": "episode_offsets.npy"}
_MANIFEST_LIMIT = 1 << 24


def write_store(dataset: Dataset, path: str | Path, overwrite: bool = False) -> Path:
    """Write `dataset` to the folder `path`, atomically: a crash leaves the whole store or nothing.

    With `overwrite`, the old store is moved aside just before the new one takes its name; a crash between those two
    renames leaves the old one beside it as `.<name>.old-*`.

    Raises:
        DataError: `path` exists and is not an empty folder, or (with `overwrite`) holds something other than a store.
        OSError: the disk refused; whatever was at `path` is still there.
    """
    path = Path(path)
    _check_target(path, overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = path.parent / f".{path.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}"
    folder.mkdir()
    try:
        _fill(dataset, folder)
        _replace(folder, path)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    _sync(path.parent)
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
    manifest = _read_manifest(path)
    try:
        for name in _FILES.values():
            _check_file(path / name, manifest["files"][name], verify)
        dataset = _assemble(path, manifest)
        declared = {"steps": manifest["steps"], "episodes": manifest["episodes"]}
    except (KeyError, TypeError, AttributeError) as error:
        raise CorruptFile(f"{path / MANIFEST}: expected the fields of a store, got {error!r}") from None
    found = {"steps": dataset.steps, "episodes": len(dataset)}
    if found != declared:
        raise CorruptFile(f"{path / MANIFEST}: counts: expected {found}, got {declared}")
    return dataset


def _assemble(path: Path, manifest: dict[str, Any]) -> Dataset:
    arrays = {field: _map(path, name) for field, name in _FILES.items()}
    offsets = np.array(arrays.pop("offsets"))
    spec = Spec.from_json(manifest["spec"])
    try:
        return Dataset(
            arrays, offsets, spec, manifest["name"], fingerprint=manifest["fingerprint"], source=manifest["source"]
        )
    except DataError as error:
        raise CorruptFile(f"{path / MANIFEST}: expected what the files hold, got: {error}") from None


def _check_target(path: Path, overwrite: bool) -> None:
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise DataError(f"{path}: expected a new folder, got something else of that name")
    if path.is_dir() and any(path.iterdir()):
        if not overwrite:
            raise DataError(f"{path}: expected a new or empty folder, got one with files (use overwrite)")
        if not (path / MANIFEST).is_file():
            raise DataError(f"{path}: expected a store to overwrite, got a folder without {MANIFEST}")


def _fill(dataset: Dataset, folder: Path) -> None:
    arrays = {**dataset.columns, "offsets": dataset.offsets}
    files = {}
    for field, name in _FILES.items():
        with (folder / name).open("wb") as file:
            np.lib.format.write_array(file, _plain(arrays[field]), version=(1, 0), allow_pickle=False)
            _flush(file)
        files[name] = {"bytes": (folder / name).stat().st_size, "sha256": _digest(folder / name)}
    fields = {
        "format": _MARK,
        "version": FORMAT_VERSION,
        "name": dataset.name,
        "spec": dataset.spec.to_json(),
        "episodes": len(dataset),
        "steps": dataset.steps,
        "fingerprint": dataset.fingerprint,
        "source": dataset.source,
        "files": files,
    }
    with (folder / MANIFEST).open("wb") as file:
        file.write(_manifest_bytes(fields))
        _flush(file)
    _sync(folder)


def _plain(array: np.ndarray) -> np.ndarray:
    """C order, little endian, so that equal data has equal bytes."""
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))


def _manifest_bytes(fields: dict[str, Any]) -> bytes:
    # The manifest carries its own sha256 and is compared byte for byte, so that a flipped bit in it shows too.
    body = {k: v for k, v in fields.items() if k != "sha256"}
    text = json.dumps(body, indent=1, sort_keys=True)
    return json.dumps({**body, "sha256": hashlib.sha256(text.encode()).hexdigest()}, indent=1, sort_keys=True).encode()


def _replace(folder: Path, path: Path) -> None:
    if not (path.is_dir() and any(path.iterdir())):
        os.rename(folder, path)
        return
    aside = path.parent / f".{path.name}.old-{os.getpid()}"
    os.rename(path, aside)
    try:
        os.rename(folder, path)
    except BaseException:
        os.rename(aside, path)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / MANIFEST
    if not path.is_dir() or not (file.exists() or file.is_symlink()):
        raise DataError(f"{path}: expected a store (a folder with {MANIFEST}), got none")
    _check_plain(file)
    if file.stat().st_size > _MANIFEST_LIMIT:
        raise CorruptFile(f"{file}: expected at most {_MANIFEST_LIMIT} bytes, got {file.stat().st_size}")
    content = file.read_bytes()
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError):
        raise CorruptFile(f"{file}: expected JSON, got something else") from None
    _check_fields(file, fields)
    if _manifest_bytes(fields) != content:
        raise CorruptFile(f"{file}: expected the sha256 it states, got other contents")
    return fields


def _check_fields(file: Path, fields: Any) -> None:
    if not isinstance(fields, dict) or fields.get("format") != _MARK:
        raise CorruptFile(f"{file}: format: expected {_MARK!r}, got something else")
    version = fields.get("version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        # Before anything else: a newer release may lay out the rest in another way.
        raise DataError(
            f"{file}: version: expected at most {FORMAT_VERSION}, got {version} (written by a newer scanrl)"
        )
    names = fields.get("files")
    if not isinstance(names, dict) or set(names) != set(_FILES.values()):
        odd = sorted(set(names) ^ set(_FILES.values())) if isinstance(names, dict) else names
        raise CorruptFile(f"{file}: files: expected {sorted(_FILES.values())}, got a difference in {odd}")


def _check_plain(file: Path) -> None:
    """A link could point anywhere, a pipe would block."""
    try:
        mode = file.lstat().st_mode
    except OSError:
        raise CorruptFile(f"{file}: expected a file, got none") from None
    if not stat.S_ISREG(mode):
        raise CorruptFile(f"{file}: expected a regular file, got {'a link' if stat.S_ISLNK(mode) else 'another kind'}")


def _check_file(file: Path, entry: dict[str, Any], verify: bool) -> None:
    _check_plain(file)
    size = file.stat().st_size
    if size != entry["bytes"]:
        raise CorruptFile(f"{file}: expected {entry['bytes']} bytes, got {size}")
    if verify and (found := _digest(file)) != entry["sha256"]:
        raise CorruptFile(f"{file}: sha256: expected {entry['sha256'][:12]}…, got {found[:12]}…")


def _map(path: Path, name: str) -> np.ndarray:
    try:
        return np.load(path / name, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise CorruptFile(f"{path / name}: expected a plain npy array, got: {error}") from None


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _flush(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Make renames in `folder` survive a power cut; systems that cannot open a folder are left as they are."""
    with contextlib.suppress(PermissionError, IsADirectoryError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
