"""`Stats`: the figures of a dataset that a model keeps beside its weights to scale what goes in and out.

Symbols: `O`/`A` observation/action shape. Fitted once from raw data, stored, applied by the model and nowhere else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np

from scanrl.types import DataError, Spec

__all__ = ["Stats", "return_scale"]

_BLOCK = 1 << 16
_PICTURES = 1024  # that statistics of images look at: enough for what stands still, and never a pass over hours of play
_ARRAYS = ("observation_mean", "observation_std", "action_low", "action_high")


class Recorded(Protocol):
    """What `Stats.fit` reads of a dataset; `scanrl.data.Dataset` is one. Shapes as there."""

    @property
    def spec(self) -> Spec: ...
    @property
    def observations(self) -> np.ndarray: ...
    @property
    def actions(self) -> np.ndarray: ...
    @property
    def rewards(self) -> np.ndarray: ...
    @property
    def lengths(self) -> np.ndarray: ...
    @property
    def returns(self) -> np.ndarray: ...
    @property
    def returns_to_go(self) -> Any: ...  # an array; pyright does not see through the dataset's cached property


@dataclass(frozen=True, eq=False)
class Stats:
    """Scales of one dataset, all in raw units.

    Attributes:
        observation_mean: `(*O)` float32, over all steps; of images, over a sample of them.
        observation_std: `(*O)` float32, population standard deviation + 1e-6; 1 where an entry never changes. Of images
            `()`, one for all pixels around their means.
        return_scale: returns-to-go are divided by this before they reach the network; a power of ten, never 0.
        action_low: `(A,)` float32, bounds of the environment or, where unknown, of the data; `None` if all entries are
            choices. Choices among other entries have -1 and 1 here, which leaves them unscaled.
        action_high: likewise.
        max_length: steps of the longest episode.
        return_max: highest return of an episode.
        return_mean: mean return over episodes.
        reward_scale: rewards are divided by this before they reach the network; a power of ten, never 0. That of
            returns would hide a reward of 1 where episodes earn 100.
    """

    observation_mean: np.ndarray
    observation_std: np.ndarray
    return_scale: float
    action_low: np.ndarray | None
    action_high: np.ndarray | None
    max_length: int
    return_max: float
    return_mean: float
    reward_scale: float = 1.0

    @classmethod
    def fit(cls, dataset: Recorded) -> Stats:
        """The figures of `dataset`, accumulated in float64."""
        if dataset.spec.is_image:
            mean, std = _picture_moments(dataset.observations)
        else:
            mean, std = _moments(dataset.observations)
        low, high = _action_bounds(dataset)
        returns = dataset.returns
        return cls(
            observation_mean=mean.astype(np.float32),
            observation_std=np.where(std < 1e-6, 1.0, std + 1e-6).astype(np.float32),
            return_scale=return_scale(float(np.abs(dataset.returns_to_go).max())),
            action_low=low,
            action_high=high,
            max_length=int(dataset.lengths.max()),
            return_max=float(returns.max()),
            return_mean=float(returns.mean()),
            reward_scale=return_scale(float(np.abs(dataset.rewards).max())),
        )

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary that keeps every float exactly; `from_json` turns it back."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in values.items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Stats:
        """The inverse of `to_json`. Before there was a scale of rewards, that of returns served.

        Raises:
            DataError: a field is missing or unknown.
        """
        if "return_scale" in values:
            values = {"reward_scale": values["return_scale"], **values}
        expected = {field.name for field in fields(cls)}
        if set(values) != expected:
            wrong = sorted(expected ^ set(values))[0]
            raise DataError(f"stats: {wrong}: expected {sorted(expected)}, got {sorted(values)}")
        arrays = {k: np.asarray(values[k], np.float32) for k in _ARRAYS if values[k] is not None}
        return cls(**{**values, **arrays})

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Stats):
            return NotImplemented
        return self.to_json() == other.to_json()

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __repr__(self) -> str:
        return (
            f"Stats(observation={self.observation_mean.shape}, return_scale={self.return_scale:g}, "
            f"max_length={self.max_length}, return_mean={self.return_mean:.1f}, return_max={self.return_max:.1f})"
        )


def return_scale(largest: float) -> float:
    """The power of ten that brings `largest`, an absolute value, into [1, 10); 1 if it is 0 or not finite.

    Gives 1000 for Hopper (3600) and 1 for sparse tasks (a return of 1), as the papers set by hand.
    """
    if not (math.isfinite(largest) and largest > 0):
        return 1.0
    exponent = math.floor(math.log10(largest))
    return float(f"1e{min(max(exponent, -30), 30)}")


def _moments(observations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and population standard deviation over steps, two passes in blocks: no float64 copy of the whole."""
    n, shape = len(observations), observations.shape[1:]
    blocks = [observations[i : i + _BLOCK] for i in range(0, n, _BLOCK)]
    mean = sum((block.sum(axis=0, dtype=np.float64) for block in blocks), np.zeros(shape)) / n
    square = sum((((block - mean) ** 2).sum(axis=0) for block in blocks), np.zeros(shape)) / n
    return mean, np.sqrt(square)


def _picture_moments(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean picture, and one deviation for all pixels from it, over images spread evenly over the dataset."""
    count = min(len(images), _PICTURES)
    chosen = [images[step] for step in np.linspace(0, len(images) - 1, count).astype(np.int64).tolist()]
    mean = sum((image.astype(np.float64) for image in chosen), np.zeros(images.shape[1:])) / count
    return mean, np.sqrt(sum((((image - mean) ** 2).mean() for image in chosen), np.zeros(())) / count)


def _action_bounds(dataset: Recorded) -> tuple[np.ndarray | None, np.ndarray | None]:
    spec = dataset.spec
    if spec.action_kind in ("discrete", "multi_discrete"):
        return None, None
    low, high = dataset.actions.min(axis=0), dataset.actions.max(axis=0)
    given = _given_bounds(spec)
    if given is not None:
        given_low, given_high = given
        low = np.where(np.isfinite(given_low), given_low, low)
        high = np.where(np.isfinite(given_high), given_high, high)
    return low.astype(np.float32), high.astype(np.float32)


def _given_bounds(spec: Spec) -> tuple[np.ndarray, np.ndarray] | None:
    """Bounds of the recorded row as the spec has them, not finite where it has none."""
    if spec.action_kind == "mixed":
        unknown = np.inf
        lows, highs = [], []
        for part in spec.action_parts:
            default = 1.0 if part.choices else unknown
            lows.append(np.full(part.size, -default) if part.low is None else np.asarray(part.low))
            highs.append(np.full(part.size, default) if part.high is None else np.asarray(part.high))
        return np.concatenate(lows), np.concatenate(highs)
    if spec.action_low is None or spec.action_high is None:
        return None
    return np.asarray(spec.action_low), np.asarray(spec.action_high)
