"""NumPy archives of flat arrays: `observations`, `actions`, `rewards`, `terminations`.

`truncations` and `episode_ids` are optional; `terminals` and `timeouts` are accepted for the two flags. Arrays of
objects are refused: they are pickles, which run code. This module runs in the reading child process
(`scanrl.data.isolate`).
"""

from __future__ import annotations

import difflib
import math
import os
import struct
import zipfile
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from scanrl.data.d4rl import declare
from scanrl.data.dataset import Dataset
from scanrl.data.npy import read_header
from scanrl.types import DataError

__all__ = ["read"]

_NAMES = {
    "observations": ("observations",),
    "actions": ("actions",),
    "rewards": ("rewards",),
    "terminations": ("terminations", "terminals"),
    "truncations": ("truncations", "timeouts"),
    "episode_ids": ("episode_ids",),
}
_END = struct.Struct("<4s4H2LH")
_OPTIONAL = ("truncations", "episode_ids")


class _Header(NamedTuple):
    shape: tuple[int, ...]
    dtype: np.dtype


def read(path: Path, *, name: str, limit: int, tail: str = "keep", env_id: str | None = None) -> Dataset:
    """Episodes cut where `episode_ids` change, or else at the flags.

    Args:
        path: an npz file.
        name: of the dataset, and what errors call the file.
        limit: bytes the arrays may take; compared with the declared sizes before anything is allocated.
        tail: `"keep"` marks steps after the last cut as a truncated episode, `"drop"` leaves them out.
        env_id: Gymnasium id of the environment.

    Raises:
        DataError: an array is missing, unknown, made of objects, or not of the size the archive states.
    """
    with zipfile.ZipFile(path) as archive:
        _check_directory(name, path, archive)
        members = _members(name, archive)
        headers = {field: _header(name, archive, member) for field, member in members.items()}
        declare(name, {members[field]: header for field, header in headers.items()}, limit)
        arrays: dict[str, Any] = {field: _array(name, archive, member) for field, member in members.items()}
    return Dataset.from_arrays(**arrays, tail=tail, env_id=env_id, name=name)


def _check_directory(file: str, path: Path, archive: zipfile.ZipFile) -> None:
    """Compare the number of members with the one at the archive's end: zipfile skips entries after a damaged one."""
    with path.open("rb") as content:
        content.seek(-_END.size, os.SEEK_END)
        mark, *_, declared, _, _, comment = _END.unpack(content.read())
    if mark != b"PK\5\6" or comment or declared != len(archive.namelist()):
        raise DataError(f"{file}: expected an archive of {declared} arrays, got {len(archive.namelist())}")


def _members(file: str, archive: zipfile.ZipFile) -> dict[str, str]:
    """Which member of the archive holds each field, every member accounted for."""
    present = [name.removesuffix(".npy") for name in archive.namelist()]
    known = [name for names in _NAMES.values() for name in names]
    found: dict[str, str] = {}
    for name in present:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise DataError(f"{file}: {name}: expected one of {known}, got an unknown array{hint}")
        field = next(field for field, names in _NAMES.items() if name in names)
        if field in found:
            raise DataError(f"{file}: {field}: expected one array, got {found[field]!r} and {name!r}")
        found[field] = name
    for field, names in _NAMES.items():
        if field not in found and field not in _OPTIONAL:
            raise DataError(f"{file}: {names[0]}: expected an array of this name, got only {sorted(present)}")
    return found


def _header(file: str, archive: zipfile.ZipFile, name: str) -> _Header:
    """Shape and type as the npy header states them, after comparing with the archive's own size of the member."""
    entry = archive.getinfo(f"{name}.npy")
    with archive.open(entry) as content:
        shape, _, dtype = read_header(f"{file}: {name}", content)
        offset = content.tell()
    declared = math.prod(shape) * dtype.itemsize
    if declared != entry.file_size - offset:
        raise DataError(f"{file}: {name}: expected {declared} bytes for shape {shape}, got {entry.file_size - offset}")
    return _Header(shape, dtype)


def _array(file: str, archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(f"{name}.npy") as content:
        array = np.lib.format.read_array(content, allow_pickle=False)
        _finish(content)
    return array


def _finish(content: IO[bytes]) -> None:
    """Read to the end: only there does zipfile compare the checksum."""
    while content.read(1 << 16):
        pass
