"""The `Spec` of Gymnasium spaces, and actions in the types a space wants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from scanrl.types import ActionPart, DataError, ObservationPart, Spec

__all__ = ["as_space", "spec_of"]


def spec_of(
    name: str,
    seen: spaces.Space,
    taken: spaces.Space,
    *,
    env_id: str | None = None,
    observation_keys: Sequence[str] | None = None,
    frame_stack: int = 1,
) -> Spec:
    """What is recorded of an environment with these spaces.

    Args:
        name: what errors call the environment.
        seen: observation space: a Box, Discrete, MultiDiscrete, MultiBinary, or a flat Dict of them (no image).
        taken: action space: Discrete, a Box of one axis, MultiDiscrete, MultiBinary, or a flat Dict or Tuple of these.
        observation_keys: entries of a Dict to keep, in this order; by default all, in the order of the space.
        frame_stack: images a model is to see at each step.

    Raises:
        DataError: another space.
    """
    observation = _observation(f"{name}: observation space", seen, observation_keys)
    action = _action(f"{name}: action space", taken)
    return Spec(**observation, **action, env_id=env_id, frame_stack=frame_stack if _is_image(seen) else 1)


def as_space(space: spaces.Space, action: Any) -> Any:
    """An action as `scanrl.structure.structured_actions` gives it, in the dtypes of the space (a copy)."""
    if isinstance(space, spaces.Dict):
        return {key: as_space(part, action[key]) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(as_space(part, x) for part, x in zip(space.spaces, action, strict=True))
    if isinstance(space, spaces.Discrete):
        return space.dtype.type(action)
    if isinstance(space, spaces.Box):  # rounding must not take it out of the bounds
        action = np.clip(action, space.low, space.high)
    return np.array(action, space.dtype)


def _is_image(space: spaces.Space) -> bool:
    return isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) in (2, 3)


def _observation(place: str, space: spaces.Space, keys: Sequence[str] | None) -> dict[str, Any]:
    if isinstance(space, spaces.Box):
        return {"observation_shape": space.shape, "observation_dtype": "uint8" if _is_image(space) else "float32"}
    if not isinstance(space, spaces.Dict):
        part = _seen(place, "", space)
        return {"observation_shape": (part.size,), "observation_parts": (part,)}
    present = list(space.spaces)
    if keys is not None and not (keys and set(keys) <= set(present)):
        raise DataError(f"{place}: observation_keys: expected some of {present}, got {list(keys)}")
    parts = tuple(_seen(f"{place}: {key}", key, space[key]) for key in keys or present)
    return {"observation_shape": (sum(part.size for part in parts),), "observation_parts": parts}


def _seen(place: str, name: str, space: spaces.Space) -> ObservationPart:
    if _is_image(space):
        raise DataError(f"{place}: expected numbers or choices in a Dict, got an image {space.shape}")
    if isinstance(space, spaces.Box | spaces.MultiBinary):
        return ObservationPart(name, tuple(map(int, space.shape)))
    if isinstance(space, spaces.Discrete) and not space.start:
        return ObservationPart(name, (), (int(space.n),))
    if isinstance(space, spaces.MultiDiscrete) and not space.start.any():
        return ObservationPart(name, space.nvec.shape, tuple(space.nvec.ravel().tolist()))
    hint = "wrap it in gymnasium.wrappers.FlattenObservation"
    raise DataError(
        f"{place}: expected Box, choices from 0 or a flat Dict of them, got {type(space).__name__} ({hint})"
    )


def _action(place: str, space: spaces.Space) -> dict[str, Any]:
    if isinstance(space, spaces.Discrete):
        return {"action_kind": "discrete", "action_size": int(space.n)}
    if isinstance(space, spaces.Box) and len(space.shape) == 1:
        low = high = None
        if space.is_bounded():
            low, high = (tuple(map(float, x)) for x in (space.low, space.high))
        return {
            "action_kind": "continuous",
            "action_size": space.shape[0],
            "action_low": low,
            "action_high": high,
        }
    if isinstance(space, spaces.MultiDiscrete | spaces.MultiBinary):
        parts = _choices(place, space)
        return {"action_kind": "multi_discrete", "action_size": len(parts), "action_parts": parts}
    if isinstance(space, spaces.Dict | spaces.Tuple) and len(space.spaces):
        named = space.spaces.items() if isinstance(space, spaces.Dict) else (("", part) for part in space.spaces)
        parts = tuple(_taken(f"{place}: {key}" if key else place, key, part) for key, part in named)
        return {"action_kind": "mixed", "action_size": sum(part.size for part in parts), "action_parts": parts}
    known = "Discrete, Box of shape (A,), MultiDiscrete, MultiBinary, or a flat Dict or Tuple of them"
    raise DataError(f"{place}: expected {known}, got {space}")


def _choices(place: str, space: spaces.MultiDiscrete | spaces.MultiBinary) -> tuple[ActionPart, ...]:
    """One part for each entry, so that each has its own head."""
    if len(space.shape) != 1:
        raise DataError(f"{place}: expected one axis, got {space}")
    if isinstance(space, spaces.MultiBinary):
        return tuple(ActionPart((2,), start=(0,)) for _ in range(space.shape[0]))
    pairs = zip(space.nvec.tolist(), space.start.tolist(), strict=True)
    return tuple(ActionPart((count,), start=(start,)) for count, start in pairs)


def _taken(place: str, name: str, space: spaces.Space) -> ActionPart:
    if isinstance(space, spaces.Discrete):
        return ActionPart((int(space.n),), start=(int(space.start),), name=name)
    if isinstance(space, spaces.Box):
        low = high = None
        if space.is_bounded():
            low, high = (tuple(map(float, x.ravel())) for x in (space.low, space.high))
        return ActionPart((), space.shape, low, high, name=name)
    if isinstance(space, spaces.MultiDiscrete | spaces.MultiBinary):
        parts = _choices(place, space)
        counts, starts = (tuple(x) for x in zip(*((p.choices[0], p.start[0]) for p in parts), strict=True))
        return ActionPart(counts, (len(parts),), start=starts, name=name)
    raise DataError(f"{place}: expected Box, Discrete, MultiDiscrete or MultiBinary in a Dict or Tuple, got {space}")
