"""What a recorded episode is: `Spec` (shapes and kinds) and `Trajectory` (one episode), numpy only.

Symbols: `T` environment steps, `O`/`A` observation/action shape.
Both classes hold raw units; scaling belongs to the model (see `scanrl.nn.tokens`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

__all__ = ["COLUMNS", "ActionKind", "Context", "CorruptFile", "DataError", "Spec", "Trajectory"]

ActionKind = Literal["continuous", "discrete"]

Context = Literal["recurrent", "elastic"] | int
"""How a policy remembers: `"recurrent"` carries a state, in constant time per step; `K` recomputes the last K steps;
`"elastic"`, for models that predict their return, recomputes as many of the last steps as promise the highest one."""

COLUMNS = ("observations", "actions", "rewards", "terminations", "truncations")
"""The per-step columns of every dataset, in Gymnasium's words."""


class DataError(ValueError):
    """Input that cannot be used. The message is one line: `file: field: expected x, got y`."""


class CorruptFile(DataError):
    """A file of our own that is not what its manifest says (a truncated or altered checkpoint or store)."""


@dataclass(frozen=True)
class Spec:
    """Shapes and kinds of what an environment shows and takes.

    Attributes:
        observation_shape: shape of one observation, e.g. `(11,)`.
        action_kind: `"continuous"` (a vector) or `"discrete"` (an integer).
        action_size: entries of the action vector, or number of choices if discrete.
        action_low: lower bound of each entry (environment units), `None` if discrete or unknown.
        action_high: upper bound, likewise.
        env_id: Gymnasium id of the environment the data came from, where known.
    """

    observation_shape: tuple[int, ...]
    action_kind: ActionKind
    action_size: int
    action_low: tuple[float, ...] | None = None
    action_high: tuple[float, ...] | None = None
    env_id: str | None = None

    @property
    def observation_size(self) -> int:
        """Number of entries of one observation."""
        return int(np.prod(self.observation_shape))

    @property
    def action_shape(self) -> tuple[int, ...]:
        """Shape of one recorded action: `(A,)`, or `()` for an integer."""
        return (self.action_size,) if self.action_kind == "continuous" else ()

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary; `from_json` turns it back."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Spec:
        """The inverse of `to_json` (JSON has lists where we have tuples)."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        return cls(**values)

    def difference(self, other: Spec, *, recorded: bool = False) -> str | None:
        """What keeps `other` from a model of `self`, as `field: expected x, got y`; `None` if nothing.

        With `recorded`, `other` describes recordings, and those need not contain the highest of the discrete actions.
        """
        for name in ("observation_shape", "action_kind", "action_size"):
            mine, theirs = getattr(self, name), getattr(other, name)
            fewer = recorded and name == "action_size" and self.action_kind == "discrete"
            if mine != theirs and not (fewer and theirs < mine):
                return f"{name}: expected {'at most ' if fewer else ''}{mine}, got {theirs}"
        return None


@dataclass(frozen=True, eq=False)
class Trajectory:
    """One episode in raw units. Arrays are views where they come from a `Dataset`: do not write to them.

    Attributes:
        observations: `(T, *O)` float32, what was seen before each action.
        actions: `(T, A)` float32, or `(T,)` int64 if discrete.
        rewards: `(T,)` float32.
        terminations: `(T,)` bool, true where the environment ended the episode (at most the last entry).
        truncations: `(T,)` bool, true where a time limit cut it (at most the last entry).
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminations: np.ndarray
    truncations: np.ndarray

    def __post_init__(self) -> None:
        for name in COLUMNS:
            found = len(getattr(self, name))
            if found != len(self.rewards):
                raise DataError(f"trajectory: {name}: expected {len(self.rewards)} values, got {found}")

    def __len__(self) -> int:
        return len(self.rewards)

    @property
    def total_reward(self) -> float:
        """Undiscounted sum of rewards, accumulated in float64."""
        return float(self.rewards.sum(dtype=np.float64))

    def __repr__(self) -> str:
        end = "terminated" if self.terminations[-1:].any() else "truncated" if self.truncations[-1:].any() else "open"
        return (
            f"Trajectory(steps={len(self)}, observations={self.observations.shape}, "
            f"actions={self.actions.shape}, return={self.total_reward:.1f}, {end})"
        )
