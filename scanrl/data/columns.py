"""From arrays of any kind to the stored columns of a `Dataset`: types, episode boundaries, both flags.

Symbols as in `scanrl.data.dataset`. Errors are `DataError`, one line, `<name>: <field>: expected x, got y`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from scanrl.types import COLUMNS, DataError, Spec, Trajectory

__all__ = ["from_episodes", "from_flat"]

_log = logging.getLogger("scanrl.data")
_FLAGS = ("terminations", "truncations")


def from_flat(
    name: str,
    arrays: Mapping[str, Any],
    *,
    episode_ids: Any = None,
    tail: str = "keep",
    spec: Spec | None = None,
    env_id: str | None = None,
) -> tuple[dict[str, np.ndarray], np.ndarray, Spec]:
    """Columns, offsets and spec of flat arrays; the rules are those of `Dataset.from_arrays`."""
    if tail not in ("keep", "drop"):
        raise DataError(f"{name}: tail: expected keep or drop, got {tail!r}")
    columns = _convert(name, arrays, spec)
    steps = len(columns["rewards"])
    if not steps:
        raise DataError(f"{name}: rewards: expected at least one step, got none")
    if episode_ids is not None:
        offsets = _cut_at_ids(name, _flat(name, "episode_ids", episode_ids), steps)
    else:
        missing = arrays.get("truncations") is None
        columns, offsets = _cut_at_flags(name, columns, tail, missing)
    _mark_ends(columns, offsets)
    return columns, offsets, spec or _infer(columns, env_id)


def from_episodes(
    name: str, episodes: Sequence[Trajectory], *, spec: Spec | None = None, env_id: str | None = None
) -> tuple[dict[str, np.ndarray], np.ndarray, Spec]:
    """Columns, offsets and spec of whole episodes; flags inside an episode stay, for `check` to find."""
    kept = [(i, episode) for i, episode in enumerate(episodes) if len(episode)]
    if len(kept) < len(episodes):
        _log.warning("%s: left out %d episodes without steps", name, len(episodes) - len(kept))
    if not kept:
        raise DataError(f"{name}: expected at least one episode with a step, got {len(episodes)} episodes")
    _check_equal_shapes(name, kept)
    arrays = {field: np.concatenate([getattr(episode, field) for _, episode in kept]) for field in COLUMNS}
    columns = _convert(name, arrays, spec)
    offsets = np.concatenate([[0], np.cumsum([len(episode) for _, episode in kept])]).astype(np.int64)
    _mark_ends(columns, offsets)
    return columns, offsets, spec or _infer(columns, env_id)


def _check_equal_shapes(name: str, kept: list[tuple[int, Trajectory]]) -> None:
    first, reference = kept[0]
    for field in ("observations", "actions"):
        wanted = getattr(reference, field).shape[1:]
        for index, episode in kept:
            found = getattr(episode, field).shape[1:]
            if found != wanted:
                raise DataError(
                    f"{name}: episode {index}: {field}: expected shape {wanted} as in episode {first}, got {found}"
                )


def _convert(name: str, arrays: Mapping[str, Any], spec: Spec | None) -> dict[str, np.ndarray]:
    """The five columns in stored types and equal lengths. Flags are fresh copies, so they may be edited."""
    rewards = _flat(name, "rewards", arrays["rewards"])
    columns = {
        "observations": _numbers(name, "observations", arrays["observations"]),
        "actions": _actions(name, arrays["actions"], spec),
        "rewards": rewards,
    }
    for field in _FLAGS:
        given = arrays.get(field)
        columns[field] = np.zeros(len(rewards), np.bool_) if given is None else _flags(name, field, given)
    for field, array in columns.items():
        if len(array) != len(rewards):
            raise DataError(f"{name}: {field}: expected {len(rewards)} values, got {len(array)}")
    seen = _observation_dtype(columns["observations"]) if spec is None else spec.observation_dtype
    for field, dtype in {"observations": seen, "rewards": np.float32}.items():
        columns[field] = _stored(columns[field], dtype)
    return columns


def _observation_dtype(array: np.ndarray) -> str:
    """Pictures of bytes stay what they are, everything else becomes float32."""
    return "uint8" if array.dtype == np.uint8 and array.ndim in (3, 4) else "float32"


def _numbers(name: str, field: str, values: Any) -> np.ndarray:
    array = np.asarray(values)
    if array.dtype.kind not in "fiub" or array.ndim == 0:
        raise DataError(f"{name}: {field}: expected an array of numbers, got {array.dtype} {array.shape}")
    return array


def _flat(name: str, field: str, values: Any) -> np.ndarray:
    """Numbers `(n,)`; a trailing axis of one, as some files have it, is dropped."""
    array = _numbers(name, field, values)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise DataError(f"{name}: {field}: expected one number per step, got shape {array.shape}")
    return array


def _flags(name: str, field: str, values: Any) -> np.ndarray:
    array = _flat(name, field, values)
    wrong = (array != 0) & (array != 1)
    if wrong.any():
        step = int(np.argmax(wrong))
        raise DataError(f"{name}: step {step}: {field}: expected 0 or 1, got {array[step]}")
    return array.astype(np.bool_)


def _actions(name: str, values: Any, spec: Spec | None) -> np.ndarray:
    """Integers `(n,)` or `(n, 1)` are choices, everything else a vector; a given spec decides instead."""
    array = _numbers(name, "actions", values)
    if spec is not None and spec.action_parts:
        return _stored(_rows(name, array, spec), spec.action_dtype)
    column = array.ndim == 1 or (array.ndim == 2 and array.shape[1] == 1)
    discrete = array.dtype.kind in "iu" and column if spec is None else spec.action_kind == "discrete"
    if discrete:
        whole = _flat(name, "actions", array)
        if whole.dtype.kind == "f" and not (whole == np.floor(whole)).all():
            raise DataError(f"{name}: actions: expected whole numbers, got {whole.dtype}")
        return _stored(whole, np.int64)
    if array.ndim > 2:
        raise DataError(f"{name}: actions: expected a vector per step, got shape {array.shape[1:]}")
    return _stored(array.reshape(len(array), -1), np.float32)


def _rows(name: str, array: np.ndarray, spec: Spec) -> np.ndarray:
    """Actions of several parts: one row of as many entries as the parts have."""
    if array.shape[1:] != spec.action_shape:
        raise DataError(f"{name}: actions: expected shape {spec.action_shape} per step, got {array.shape[1:]}")
    if spec.action_dtype is np.int64 and array.dtype.kind == "f" and not (array == np.floor(array)).all():
        raise DataError(f"{name}: actions: expected whole numbers, got {array.dtype}")
    return array


def _stored(array: np.ndarray, dtype: Any) -> np.ndarray:
    # A float64 beyond the float32 range becomes infinite, which validation reports by episode and step.
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(array, dtype=dtype)


def _cut_at_flags(
    name: str, columns: dict[str, np.ndarray], tail: str, missing: bool
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    ends = np.flatnonzero(columns["terminations"] | columns["truncations"]) + 1
    if missing and not ends.size:
        raise DataError(
            f"{name}: truncations: expected some mark of where episodes end, got none (missing boundaries: "
            "neither a termination nor time limits nor episode ids)"
        )
    steps = len(columns["rewards"])
    if not ends.size or ends[-1] < steps:
        if tail == "keep":
            ends = np.append(ends, steps)
        elif not ends.size:
            raise DataError(f"{name}: expected at least one finished episode, got none")
        else:
            columns = {field: array[: ends[-1]] for field, array in columns.items()}
    return columns, np.concatenate([[0], ends]).astype(np.int64)


def _cut_at_ids(name: str, ids: np.ndarray, steps: int) -> np.ndarray:
    if len(ids) != steps:
        raise DataError(f"{name}: episode_ids: expected {steps} values, got {len(ids)}")
    starts = np.concatenate([[0], np.flatnonzero(ids[1:] != ids[:-1]) + 1])
    _, first = np.unique(ids[starts], return_index=True)
    if len(first) < len(starts):
        again = int(starts[np.setdiff1d(np.arange(len(starts)), first)[0]])
        raise DataError(
            f"{name}: step {again}: episode_ids: expected the steps of an episode in one run, got {ids[again]} again"
        )
    return np.append(starts, steps).astype(np.int64)


def _mark_ends(columns: dict[str, np.ndarray], offsets: np.ndarray) -> None:
    """Both flags: the world ended, whatever the clock said. No flag: the recording ended, a truncation."""
    last = offsets[1:] - 1
    columns["truncations"][last] |= ~columns["terminations"][last]
    columns["truncations"] &= ~columns["terminations"]


def _infer(columns: dict[str, np.ndarray], env_id: str | None) -> Spec:
    actions = columns["actions"]
    discrete = actions.ndim == 1
    size = max(int(actions.max()) + 1, 1) if discrete else actions.shape[1]
    kind = "discrete" if discrete else "continuous"
    seen: Any = columns["observations"].dtype.name
    return Spec(columns["observations"].shape[1:], kind, size, env_id=env_id, observation_dtype=seen)
