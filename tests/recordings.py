"""Recorded episodes as files, and how to spoil them."""

import h5py
import numpy as np


def npz(path, dataset, **changes):
    """The episodes as an archive; a change of `None` leaves a column out."""
    columns = {**dataset.columns, **changes}
    np.savez(path, **{name: column for name, column in columns.items() if column is not None})
    return path


def hdf5(path, dataset, **changes):
    """The same in D4RL's format."""
    columns = dict(
        zip(("observations", "actions", "rewards", "terminals", "timeouts"), dataset.columns.values(), strict=True)
    )
    with h5py.File(path, "w") as file:
        for name, column in {**columns, **changes}.items():
            if column is not None:
                file[name] = column
    return path


def spoiled(column, index, value):
    """A copy with one entry replaced."""
    column = column.copy()
    column[index] = value
    return column
