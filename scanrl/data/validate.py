"""What a dataset must satisfy before a model is trained on it: finite numbers, flags at ends, actions in range."""

from __future__ import annotations

import numpy as np

from scanrl.data.dataset import Dataset

__all__ = ["check", "nonfinite_episodes"]

_FLOATS = ("observations", "actions", "rewards")
_BLOCK = 1 << 18


def check(dataset: Dataset) -> list[str]:
    """Problems of `dataset`, one line each, `<name>: episode e: step t: <field>: expected x, got y`; empty if sound.

    At most one line for each field and kind of problem: the first place, by episode and step.
    """
    problems = [_nonfinite(dataset, field) for field in _FLOATS]
    problems += [_flag_inside(dataset, field) for field in ("terminations", "truncations")]
    problems += [_both_flags(dataset), _action_range(dataset)]
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
    episode = int(np.searchsorted(dataset.offsets, step, side="right")) - 1
    return f"{dataset.name}: episode {episode}: step {step - int(dataset.offsets[episode])}"


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


def _action_range(dataset: Dataset) -> str | None:
    spec = dataset.spec
    if spec.action_kind == "discrete":
        return _choice_range(dataset, "actions", dataset.actions, spec.action_size)
    begin = 0
    for part in spec.action_parts:
        for offset, size in enumerate(part.choices):
            entry = begin + offset
            problem = _choice_range(dataset, f"actions[{entry}]", dataset.actions[:, entry], size)
            if problem is not None:
                return problem
        begin += part.size
    return None


def _choice_range(dataset: Dataset, what: str, column: np.ndarray, size: int) -> str | None:
    """Whether a column holds whole numbers from 0 to `size - 1`."""
    wrong = (column < 0) | (column >= size)
    if column.dtype.kind == "f":
        wrong |= column != np.floor(column)
    at = np.flatnonzero(wrong)
    if not at.size:
        return None
    return f"{_place(dataset, int(at[0]))}: {what}: expected 0 to {size - 1}, got {column[at[0]]}"
