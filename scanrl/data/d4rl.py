"""D4RL-style HDF5 files: flat `observations`, `actions`, `rewards`, `terminals`, and usually `timeouts`.

This module runs in the reading child process only (`scanrl.data.isolate`): HDF5 crashes on some damaged files.
Other members of the file (`infos/...`, `metadata/...`) are ignored; `next_observations` only has its length checked.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import numpy as np

from scanrl.data.dataset import Dataset
from scanrl.types import DataError

__all__ = ["declare", "local_dataset", "read"]

_BLOCK_BYTES = 1 << 24
_NAMES = {
    "observations": "observations",
    "actions": "actions",
    "rewards": "rewards",
    "terminations": "terminals",
    "truncations": "timeouts",
}


def read(path: Path, *, name: str, limit: int, tail: str = "keep", env_id: str | None = None) -> Dataset:
    """Episodes cut at `terminals` or `timeouts`.

    Args:
        path: an HDF5 file.
        name: of the dataset, and what errors call the file.
        limit: bytes the columns may take; compared with the declared sizes before anything is allocated.
        tail: `"keep"` marks steps after the last cut as a truncated episode, `"drop"` leaves them out.
        env_id: Gymnasium id; by default the file's attribute `env_id`, where it has one.

    Raises:
        DataError: a member is missing, not a plain array of numbers in this file, or of the wrong length.
    """
    import h5py

    with h5py.File(path, "r") as file:
        members = {field: local_dataset(name, file, member) for field, member in _NAMES.items()}
        for field, member in _NAMES.items():
            if members[field] is None and field != "truncations":
                raise DataError(f"{name}: {member}: {_missing(member, list(file))}")
        following = local_dataset(name, file, "next_observations")
        declare(name, {_NAMES[k]: v for k, v in members.items() if v is not None}, limit)
        _check_lengths(name, {**members, "next_observations": following})
        arrays: dict[str, Any] = {k: v if v is None else _load(v) for k, v in members.items()}
        env_id = env_id or _text(file.attrs.get("env_id"))
    return Dataset.from_arrays(**arrays, tail=tail, env_id=env_id, name=name)


def local_dataset(file: str, group: Any, name: str, *, place: str | None = None, numbers: bool = True) -> Any:
    """The HDF5 dataset `name` of `group`, or `None` if there is none.

    Args:
        file: what errors call the file.
        place: what errors call the dataset, instead of `name`.
        numbers: whether strings and objects are refused.

    Raises:
        DataError: it is a link, keeps its data outside the file (which could be any file of the user), or is
            not an array of numbers.
    """
    import h5py

    place = f"{file}: {place or name}"
    if name not in group.keys():  # noqa: SIM118 (`in group` would follow links)
        return None
    link = group.get(name, getlink=True)
    if not isinstance(link, h5py.HardLink):
        raise DataError(f"{place}: expected data in the file itself, got a {type(link).__name__}")
    found = group[name]
    if not isinstance(found, h5py.Dataset):
        raise DataError(f"{place}: expected an array, got a {type(found).__name__.lower()}")
    if found.is_virtual or found.external:
        kind = "a virtual dataset" if found.is_virtual else "external storage"
        raise DataError(f"{place}: expected data in the file itself, got {kind}")
    if numbers and (not found.shape or found.dtype.kind not in "fiub"):
        raise DataError(f"{place}: expected an array of numbers, got {found.dtype} {found.shape}")
    return found


def declare(file: str, arrays: dict[str, Any], limit: int) -> None:
    """Refuse sizes beyond `limit` bytes, before anything is allocated: small files can declare terabytes.

    Args:
        arrays: whatever has a `shape` and a `dtype`.
    """
    total = 0
    for name, array in arrays.items():
        # Python integers: the product of hostile sizes does not wrap.
        count = 1
        for size in array.shape:
            count *= int(size)
        total += count * max(array.dtype.itemsize, 4)
        if total > limit:
            raise DataError(
                f"{file}: {name}: expected at most {limit / 2**30:.3g} GiB in all, got {total / 2**30:.3g} GiB "
                f"declared by shape {tuple(array.shape)} (if this is right, raise memory_gib: "
                "scanrl data convert --memory-gib)"
            )


def _text(value: Any) -> str | None:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return str(value) if isinstance(value, str) else None


def _missing(name: str, present: list[str]) -> str:
    near = difflib.get_close_matches(name, present, 1, 0.5)
    found = f"{near[0]!r}" if near else f"only {sorted(present)[:8]}"
    return f"expected an array of this name, got {found}"


def _check_lengths(file: str, members: dict[str, Any]) -> None:
    steps = len(members["rewards"])
    for field, member in members.items():
        if member is not None and len(member) != steps:
            raise DataError(f"{file}: {_NAMES.get(field, field)}: expected {steps} values, got {len(member)}")


def _load(member: Any) -> np.ndarray:
    """Block by block, float64 narrowed on the way: the whole never stands in memory at double width."""
    kind = member.dtype.kind
    out = np.empty(member.shape, np.float32 if kind == "f" else member.dtype.newbyteorder("="))
    rows = max(1, _BLOCK_BYTES // max(1, member.dtype.itemsize * int(np.prod(member.shape[1:], dtype=np.int64))))
    with np.errstate(over="ignore"):
        for start in range(0, len(member), rows):
            out[start : start + rows] = member[start : start + rows]
    return out
