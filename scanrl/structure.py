"""Between what is recorded, one flat row per step, and what an environment shows and takes: dictionaries and tuples.

Symbols: `B` rows, `O`/`A` observation/action shape of the recorded row.
`scanrl.spaces` makes the `Spec` that says what is what. Rows are flat so that a dataset is one array per field.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from scanrl.types import ActionPart, DataError, ObservationPart, Spec

__all__ = ["action_row", "flat_observations", "structured_actions"]


def structured_actions(spec: Spec, rows: np.ndarray) -> Any:
    """Recorded actions `(..., A)` as the environment takes them, bounded parts clipped to their bounds.

    Returns:
        A dictionary or tuple of arrays `(..., *shape)`, float32 or int64, one for each part of a `mixed` action; for
        `multi_discrete`, one int64 array. Actions of other kinds stay what they are.
    """
    if not spec.action_parts:
        return rows
    if spec.action_kind == "multi_discrete":
        return rows + np.concatenate([np.asarray(part.start, np.int64) for part in spec.action_parts])
    values, begin = [], 0
    for part in spec.action_parts:
        values.append(_as_taken(part, rows[..., begin : begin + part.size]))
        begin += part.size
    names = [part.name for part in spec.action_parts]
    return dict(zip(names, values, strict=True)) if names[0] else tuple(values)


def action_row(spec: Spec, action: Any) -> np.ndarray:
    """The inverse of `structured_actions`: recorded rows `(..., A)` of actions as an environment takes them.

    Raises:
        DataError: a part is missing, or its shape is another.
    """
    if not spec.action_parts:
        return np.asarray(action)
    if spec.action_kind == "multi_discrete":
        return np.asarray(action) - np.concatenate([np.asarray(part.start, np.int64) for part in spec.action_parts])
    names = [part.name for part in spec.action_parts]
    if names[0]:
        values = _entries("action", names, action)
    elif isinstance(action, Sequence) and len(action) == len(names):
        values = list(action)
    else:
        raise DataError(f"action: expected a tuple of {len(names)} parts, got {type(action).__name__}")
    rows = []
    for part, value in zip(spec.action_parts, values, strict=True):
        row = _flat(f"action: {part.name or 'part'}", value, part.shape)
        rows.append(row - np.asarray(part.start) if part.choices else row)
    return np.concatenate(rows, axis=-1).astype(np.float32)


def flat_observations(spec: Spec, observations: Any) -> Any:
    """Observations `(..., O)` float32 of a dictionary or of choices, in the recorded order; others stay what they are.

    Raises:
        DataError: an entry is missing or unknown, or has another shape, or is no choice.
    """
    parts = spec.observation_parts
    named = bool(parts) and bool(parts[0].name)
    if not parts or (named and not isinstance(observations, Mapping)):
        return observations
    names = [part.name for part in parts]
    values = _entries("observations", names, observations) if named else [observations]
    if not named and np.asarray(observations).dtype.kind == "f":
        return observations  # already flat: choices are whole numbers
    return np.concatenate([_vector(p, v) for p, v in zip(parts, values, strict=True)], axis=-1, dtype=np.float32)


def _entries(what: str, names: list[str], values: Any) -> list[Any]:
    if not isinstance(values, Mapping):
        raise DataError(f"{what}: expected a dictionary with {names}, got {type(values).__name__}")
    wrong = [*(name for name in names if name not in values), *(name for name in values if name not in names)]
    if wrong:
        raise DataError(f"{what}: {wrong[0]}: expected the entries {names}, got {list(values)}")
    return [values[name] for name in names]


def _flat(what: str, value: Any, shape: tuple[int, ...]) -> np.ndarray:
    """`(..., size)` from `(..., *shape)`."""
    array = np.asarray(value)
    lead = array.shape[: array.ndim - len(shape)]
    if array.shape[len(lead) :] != shape:
        raise DataError(f"{what}: expected shape {shape}, got {array.shape}")
    return array.reshape((*lead, -1))


def _vector(part: ObservationPart, value: Any) -> np.ndarray:
    what = f"observations: {part.name}" if part.name else "observations"
    flat = _flat(what, value, part.shape)
    if not part.choices:
        return flat
    sizes = np.asarray(part.choices)
    if not (np.equal(np.mod(flat, 1), 0) & (flat >= 0) & (flat < sizes)).all():
        raise DataError(f"{what}: expected choices from 0, fewer than {list(part.choices)}, got {flat.tolist()}")
    ones = np.zeros((*flat.shape[:-1], part.size), np.float32)
    places = flat.astype(np.int64) + np.concatenate([[0], np.cumsum(sizes[:-1])]).astype(np.int64)
    np.put_along_axis(ones, places, 1.0, axis=-1)
    return ones


def _as_taken(part: ActionPart, entries: np.ndarray) -> np.ndarray:
    values = entries.reshape((*entries.shape[:-1], *part.shape))
    if part.choices:
        return values.astype(np.int64) + np.asarray(part.start, np.int64).reshape(part.shape)
    if part.low is not None or part.high is not None:
        low, high = (
            None if x is None else np.asarray(x, np.float32).reshape(part.shape) for x in (part.low, part.high)
        )
        values = np.clip(values, low, high)
    return values.astype(np.float32)
