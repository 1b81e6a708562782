"""The header of an npy stream, without trusting it."""

from __future__ import annotations

from typing import IO

import numpy as np

from scanrl.types import DataError

__all__ = ["read_header"]

_READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_header(place: str, content: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether it is in Fortran order, and type, as the header states them; the first entry is read next.

    Raises:
        DataError: another version, or objects, which are pickles; `place` leads the line.
        ValueError: it is no npy header.
    """
    version = np.lib.format.read_magic(content)
    reader = _READERS.get(version)
    if reader is None:
        raise DataError(f"{place}: expected npy version 1.0 or 2.0, got {version}")
    shape, fortran, dtype = reader(content)
    if dtype.hasobject:
        raise DataError(f"{place}: expected numbers, got objects (a pickle, which could run code)")
    return shape, fortran, dtype
