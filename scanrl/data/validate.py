"""What a dataset must satisfy before a model is trained on it: finite numbers, flags at ends, actions in range."""

from __future__ import annotations

import numpy as np

from scanrl.data.dataset import Dataset
from scanrl.types import Spec

__all__ = ["check", "choice_problems", "nonfinite_episodes"]

_FLOATS = ("observations", "actions", "rewards")
_BLOCK = 1 << 18


def check(dataset: Dataset) -> list[str]:
    """Problems of `dataset`, one line each, `<name>: episode e: step t: <field>: expected x, got y`; empty if sound.

    At most one line for each field and kind of problem: the first place, by episode and step.
    """
    problems = [_nonfinite(dataset, field) for field in _FLOATS]
    problems += [_flag_inside(dataset, field) for field in ("terminations", "truncations")]
    problems += [_both_flags(dataset), *choice_problems(dataset.name, dataset.actions, dataset.offsets, dataset.spec)]
    for field, array in dataset.added_columns.items():
        problems += [
            _nonfinite(dataset, field),
            *choice_problems(dataset.name, array, dataset.offsets, dataset.spec, field),
        ]
    return [problem for problem in problems if problem]


def nonfinite_episodes(dataset: Dataset) -> np.ndarray:
    """Indices, ascending, of the episodes with a NaN or infinite observation, action or reward."""
    steps = [_bad_steps(getattr(dataset, field)) for field in _FLOATS]
    return np.unique(np.searchsorted(dataset.offsets, np.concatenate(steps), side="right") - 1)


def _bad_steps(column: np.ndarray) -> np.ndarray:
    """Indices of the steps with an entry that is not finite, block by block."""
    if column.dtype.kind != "f":
        return np.empty(0, np.int64)
    rows = max(1, _BLOCK // max(1, column[0].size))
    found = []
    for start in range(0, len(column), rows):
        finite = np.isfinite(column[start : start + rows])
        if not finite.all():
            found.append(start + np.flatnonzero(~finite.reshape(len(finite), -1).all(axis=1)))
    return np.concatenate(found) if found else np.empty(0, np.int64)


def _place(dataset: Dataset, step: int) -> str:
    return _placed(dataset.name, dataset.offsets, step)


def _placed(name: str, offsets: np.ndarray, step: int) -> str:
    """`<name>: episode e: step t` of a flat step."""
    episode = int(np.searchsorted(offsets, step, side="right")) - 1
    return f"{name}: episode {episode}: step {step - int(offsets[episode])}"


def _nonfinite(dataset: Dataset, field: str) -> str | None:
    column = getattr(dataset, field)
    steps = _bad_steps(column)
    if not steps.size:
        return None
    entry = np.ravel(column[steps[0]])
    found = entry[~np.isfinite(entry)][0]
    more = f" (and in {steps.size - 1} more steps)" if steps.size > 1 else ""
    return f"{_place(dataset, int(steps[0]))}: {field}: expected finite numbers, got {found}{more}"


def _flag_inside(dataset: Dataset, field: str) -> str | None:
    last = np.zeros(dataset.steps, np.bool_)
    last[dataset.offsets[1:] - 1] = True
    inside = np.flatnonzero(getattr(dataset, field) & ~last)
    if not inside.size:
        return None
    place = _place(dataset, int(inside[0]))
    return f"{place}: {field}: expected true at the last step of an episode only, got true before it"


def _both_flags(dataset: Dataset) -> str | None:
    both = np.flatnonzero(dataset.terminations & dataset.truncations)
    if not both.size:
        return None
    return f"{_place(dataset, int(both[0]))}: truncations: expected false where terminations is true, got true"


def choice_problems(
    name: str, actions: np.ndarray, offsets: np.ndarray, spec: Spec, field: str = "actions"
) -> list[str]:
    """The first entry of recorded actions `(n, *A)` that is no choice where the spec has choices; at most one line."""
    if spec.action_kind == "discrete":
        return _out_of_range(name, field, actions, offsets, spec.action_size)
    begin = 0
    for part in spec.action_parts:
        for entry, size in enumerate(part.choices, begin):
            found = _out_of_range(name, f"{field}[{entry}]", actions[:, entry], offsets, size)
            if found:
                return found
        begin += part.size
    return []


def _out_of_range(name: str, what: str, column: np.ndarray, offsets: np.ndarray, size: int) -> list[str]:
    """Whether a column holds whole numbers from 0 to `size - 1`."""
    wrong = (column < 0) | (column >= size)
    if column.dtype.kind == "f":
        wrong |= column != np.floor(column)
    at = np.flatnonzero(wrong)
    if not at.size:
        return []
    return [f"{_placed(name, offsets, int(at[0]))}: {what}: expected 0 to {size - 1}, got {column[at[0]]}"]
