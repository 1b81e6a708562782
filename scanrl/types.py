"""What a recorded episode is: `Spec` (shapes and kinds) and `Trajectory` (one episode), numpy only.

Symbols: `T` environment steps, `O`/`A` observation/action shape.
Both classes hold raw units; scaling belongs to the model (see `scanrl.nn.tokens`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import numpy as np

__all__ = [
    "COLUMNS",
    "ActionKind",
    "ActionPart",
    "Context",
    "CorruptFile",
    "DataError",
    "ObservationPart",
    "Spec",
    "Trajectory",
]

ActionKind = Literal["continuous", "discrete", "multi_discrete", "mixed"]

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
class ActionPart:
    """One sub-action of a `multi_discrete` or `mixed` action: some entries of the recorded row.

    Attributes:
        choices: number of choices of each entry, which is then recorded as a whole number from 0; empty where the
            entries are real numbers.
        shape: what the environment takes; `()` for a single choice. Its size is the number of entries.
        low: lower bound of each real entry (environment units), `None` if it has none or the entries are choices.
        high: upper bound, likewise.
        start: what the environment calls choice 0 of each entry.
        name: key in the environment's dictionary; empty in a tuple.
    """

    choices: tuple[int, ...] = ()
    shape: tuple[int, ...] = ()
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None
    start: tuple[int, ...] = ()
    name: str = ""

    @property
    def size(self) -> int:
        """Entries of the recorded row."""
        return int(np.prod(self.shape))


@dataclass(frozen=True)
class ObservationPart:
    """Some entries of an observation vector that the environment shows as a dictionary or as choices.

    Attributes:
        name: key in the environment's dictionary; empty where the whole observation is one choice.
        shape: what the environment shows.
        choices: number of choices of each entry, which becomes as many zeros and a one; empty for plain numbers.
    """

    name: str
    shape: tuple[int, ...]
    choices: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        """Entries of the vector."""
        return sum(self.choices) if self.choices else int(np.prod(self.shape))


@dataclass(frozen=True)
class Spec:
    """Shapes and kinds of what an environment shows and takes.

    Attributes:
        observation_shape: shape of one observation, e.g. `(11,)`; of one frame if it is an image.
        action_kind: `"continuous"` (a vector), `"discrete"` (an integer), `"multi_discrete"` (several integers) or
            `"mixed"` (integers and real numbers, all recorded as real ones).
        action_size: entries of the recorded action, or number of choices if discrete.
        action_low: lower bound of each entry (environment units), `None` if discrete or unknown.
        action_high: upper bound, likewise.
        env_id: Gymnasium id of the environment the data came from, where known.
        action_parts: what the entries of a `multi_discrete` or `mixed` action are, in the order recorded.
        observation_parts: what the entries of an observation vector are, where the environment has a dictionary or
            choices, in the order recorded.
        observation_dtype: `"uint8"` for images, which are stored as they are.
        frame_stack: images a model sees at each step, the present one last. Each is stored once.
    """

    observation_shape: tuple[int, ...]
    action_kind: ActionKind
    action_size: int
    action_low: tuple[float, ...] | None = None
    action_high: tuple[float, ...] | None = None
    env_id: str | None = None
    action_parts: tuple[ActionPart, ...] = ()
    observation_parts: tuple[ObservationPart, ...] = ()
    observation_dtype: Literal["float32", "uint8"] = "float32"
    frame_stack: int = 1

    def __post_init__(self) -> None:
        if self.observation_dtype not in ("float32", "uint8"):
            raise DataError(f"spec: observation_dtype: expected float32 or uint8, got {self.observation_dtype!r}")
        if self.frame_stack < 1:
            raise DataError(f"spec: frame_stack: expected at least 1, got {self.frame_stack}")
        divided = self.action_kind in ("multi_discrete", "mixed")
        if divided and sum(part.size for part in self.action_parts) != self.action_size:
            raise DataError(f"spec: action_parts: expected {self.action_size} entries, got {self.action_parts}")

    @property
    def observation_size(self) -> int:
        """Number of entries of one observation."""
        return int(np.prod(self.observation_shape))

    @property
    def action_shape(self) -> tuple[int, ...]:
        """Shape of one recorded action: `(A,)`, or `()` for an integer."""
        return () if self.action_kind == "discrete" else (self.action_size,)

    @property
    def action_dtype(self) -> type[np.generic]:
        """How actions are recorded: int64 where all entries are choices, else float32."""
        return np.int64 if self.action_kind in ("discrete", "multi_discrete") else np.float32

    @property
    def is_image(self) -> bool:
        """Whether an observation is a picture rather than a vector."""
        return self.observation_dtype == "uint8"

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary; `from_json` turns it back.

        What later releases added is left out where it says nothing, so that a description keeps its fingerprint.
        """
        values, default = asdict(self), {field.name: field.default for field in fields(self)}
        return {k: v for k, v in values.items() if k not in _ADDED or v != default[k]}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Spec:
        """The inverse of `to_json` (JSON has lists where we have tuples)."""
        found: dict[str, Any] = {k: _tuples(v) for k, v in values.items()}
        for name, kind in (("action_parts", ActionPart), ("observation_parts", ObservationPart)):
            if name in found:
                found[name] = tuple(kind(**{k: _tuples(v) for k, v in part.items()}) for part in found[name])
        return cls(**found)

    def difference(self, other: Spec, *, recorded: bool = False) -> str | None:
        """What keeps `other` from a model of `self`, as `field: expected x, got y`; `None` if nothing.

        With `recorded`, `other` describes recordings, and those need not contain the highest of the discrete actions.
        """
        for name in ("observation_shape", "action_kind", "action_size"):
            mine, theirs = getattr(self, name), getattr(other, name)
            fewer = recorded and name == "action_size" and self.action_kind == "discrete"
            if mine != theirs and not (fewer and theirs < mine):
                return f"{name}: expected {'at most ' if fewer else ''}{mine}, got {theirs}"
        for mine, theirs in zip(self.action_parts, other.action_parts, strict=False):
            if (mine.name, mine.choices, mine.shape) != (theirs.name, theirs.choices, theirs.shape):
                return f"action_parts: expected {_described(mine)}, got {_described(theirs)}"
        wanted, found = ([part.name for part in spec.observation_parts] for spec in (self, other))
        if wanted and found and wanted != found:
            return f"observation_parts: expected {wanted}, got {found}"
        if self.is_image and not other.is_image:
            return f"observation_dtype: expected {self.observation_dtype}, got {other.observation_dtype}"
        return None


_ADDED = ("action_parts", "observation_parts", "observation_dtype", "frame_stack")


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _described(part: ActionPart) -> str:
    kind = f"choices of {list(part.choices)}" if part.choices else f"numbers of shape {part.shape}"
    return f"{part.name}: {kind}" if part.name else kind


@dataclass(frozen=True, eq=False)
class Trajectory:
    """One episode in raw units. Arrays are views where they come from a `Dataset`: do not write to them.

    Attributes:
        observations: `(T, *O)` float32, or uint8 if images: what was seen before each action.
        actions: `(T, A)` float32, `(T,)` int64 if discrete, or `(T, A)` int64 if several choices.
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
