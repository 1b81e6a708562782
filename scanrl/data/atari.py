"""The logged DQN agents of the DQN Replay Dataset: one buffer of up to a million steps of one Atari game.

A buffer is four gzipped npy files in `<game>/<run>/replay_logs`: `$store$_observation_ckpt.N.gz` `(n, 84, 84)` uint8,
and likewise `action` int32, `reward` float32 (cut to [-1, 1] by the recorder) and `terminal` uint8. Dopamine puts
`stack - 1` black steps before each episode; they are no steps and are left out. The agents acted with sticky actions.
This module runs in the reading child process (`scanrl.data.isolate`).

Reference: Agarwal et al. 2020, arXiv 1907.04543; https://research.google/tools/datasets/dqn-replay/
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import numpy as np

from scanrl.data.d4rl import declare
from scanrl.data.dataset import Dataset
from scanrl.data.npy import read_header
from scanrl.types import DataError, Spec

__all__ = ["read"]

FIELDS = {"observations": "observation", "actions": "action", "rewards": "reward", "terminations": "terminal"}
STEPS = 100_000
_BLOCK = 1 << 12  # steps read at a time


class _Declared(NamedTuple):
    shape: tuple[int, ...]
    dtype: np.dtype


def read(
    path: Path, *, name: str, limit: int, steps: int = STEPS, env_id: str | None = None, tail: str = "keep"
) -> Dataset:
    """The first episodes of a buffer.

    Args:
        path: `$store$_observation_ckpt.N.gz`; the other three files lie beside it.
        name: of the dataset, and what errors call the file.
        limit: bytes the columns may take; compared with the declared sizes before anything is allocated.
        steps: how many to read, black ones included; a whole buffer of a million is 7 GB.
        env_id: Gymnasium id, e.g. `scanrl/Breakout-v0`.
        tail: `"keep"` marks the steps after the last end as a truncated episode, `"drop"` leaves them out.

    Raises:
        DataError: a file is missing, no gzipped npy array of numbers, or of another length than the others.
    """
    if steps < 1:
        raise DataError(f"{name}: steps: expected at least 1, got {steps}")
    columns: dict[str, Any] = {field: _column(name, path, field, word, steps, limit) for field, word in FIELDS.items()}
    for field, array in columns.items():
        if len(array) != len(columns["rewards"]):
            raise DataError(f"{name}: {FIELDS[field]}: expected {len(columns['rewards'])} values, got {len(array)}")
    if columns["observations"].ndim != 3 or columns["observations"].dtype != np.uint8:
        found = columns["observations"]
        raise DataError(f"{name}: observation: expected grey images of uint8, got {found.dtype} {found.shape}")
    kept = _steps_of_play(columns)
    if not kept.any():
        raise DataError(f"{name}: expected at least one step that is not black, got none")
    columns = {field: array[kept] for field, array in columns.items()}
    actions = columns["actions"]
    spec = Spec(
        columns["observations"].shape[1:],
        "discrete",
        max(int(actions.max()) + 1, 1),
        env_id=env_id,
        observation_dtype="uint8",
        frame_stack=4,
    )
    return Dataset.from_arrays(**columns, tail=tail, spec=spec, name=name)


def _steps_of_play(columns: dict[str, np.ndarray]) -> np.ndarray:
    """`(n,)` bool, false in the black steps before each episode: nothing seen, done, earned or ended."""
    seen = columns["observations"]
    nothing = ~np.array([image.any() for image in seen]) & ~columns["terminations"].astype(bool)
    nothing &= (columns["actions"] == 0) & (columns["rewards"] == 0)
    starts = np.flatnonzero(np.concatenate([[True], columns["terminations"][:-1] != 0]))
    kept = np.ones(len(seen), bool)
    for start, end in zip(starts, [*starts[1:], len(seen)], strict=True):
        played = np.flatnonzero(~nothing[start:end])
        kept[start : start + (played[0] if len(played) else end - start)] = False
    return kept


def _column(name: str, path: Path, field: str, word: str, steps: int, limit: int) -> np.ndarray:
    """The first steps of one file, read block by block: what follows in the stream is never unpacked."""
    file = path.with_name(path.name.replace("$_observation_", f"$_{word}_"))
    if not file.is_file():
        raise DataError(f"{name}: expected {file.name} beside it, got none")
    try:
        with gzip.open(file, "rb") as content:
            shape, fortran, dtype = read_header(f"{name}: {word}", cast(IO[bytes], content))
            if not shape or dtype.kind not in "fiub" or fortran:
                raise DataError(f"{name}: {word}: expected numbers by step in C order, got {dtype} {shape}")
            shape = (min(shape[0], steps), *shape[1:])
            declare(name, {word: _Declared(shape, dtype)}, limit)
            array = np.empty(shape, dtype)
            for start in range(0, len(array), _BLOCK):
                _fill(f"{name}: {word}", cast(IO[bytes], content), array[start : start + _BLOCK])
    except DataError:
        raise
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{name}: {word}: expected a gzipped npy file, got: {error}") from None
    return array


def _fill(place: str, content: IO[bytes], part: np.ndarray) -> None:
    found = content.read(part.nbytes)
    if len(found) != part.nbytes:
        raise DataError(f"{place}: expected {part.nbytes} more bytes, got {len(found)}")
    part[:] = np.frombuffer(found, part.dtype).reshape(part.shape)
