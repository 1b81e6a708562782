"""`Rows`: some rows of an array, in an order, without a copy."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["Rows"]


class Rows:
    """What `array[index]` would be, read when it is asked for.

    A dataset of images that is split or filtered stays one memory-mapped file with two lists of steps.

    Args:
        array: `(n, ...)`; rows of `Rows` are looked up once.
        index: `(m,)` int64 rows, not negative.
    """

    def __init__(self, array: np.ndarray | Rows, index: np.ndarray) -> None:
        if isinstance(array, Rows):
            array, index = array._array, array._index[index]
        self._array: np.ndarray = np.asarray(array).view(np.ndarray)
        self._index = index
        self.dtype = self._array.dtype
        self.shape = (len(index), *self._array.shape[1:])
        self.ndim = self._array.ndim

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, key: Any) -> np.ndarray:
        """A copy of the rows that `key` chooses."""
        if isinstance(key, tuple):
            return self._array[self._index[key[0]]][(slice(None), *key[1:])]
        return self._array[self._index[key]]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self._array[self._index], dtype)

    @property
    def nbytes(self) -> int:
        """Bytes a copy would take."""
        return len(self) * int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize

    def take(self, steps: np.ndarray, axis: int = 0, mode: Any = "raise") -> np.ndarray:
        """As `numpy.ndarray.take` along the first axis."""
        assert axis == 0
        return self._array.take(self._index.take(steps, mode=mode), axis=0)
