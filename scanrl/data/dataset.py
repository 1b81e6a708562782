"""`Dataset`: recorded episodes as flat columns with episode offsets, numpy only.

Symbols: `n` steps over all episodes, `E` episodes, `O`/`A` observation/action shape.
A column may be memory-mapped; a `Trajectory` is a view into the columns. Units are raw: nothing here scales.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from scanrl.data.columns import from_episodes, from_flat
from scanrl.data.rows import Rows
from scanrl.types import COLUMNS, DataError, Spec, Trajectory

__all__ = ["Dataset", "digest_array"]


class Dataset:
    """Episodes of one environment: one flat array per field. Treat it as immutable.

    Args:
        columns: the five arrays of `scanrl.types.COLUMNS`, already in the stored types; see the attributes.
            `from_arrays` and `from_trajectories` convert anything else.
        offsets: `(E + 1,)` int64; episode `i` holds the steps `offsets[i]` to `offsets[i + 1]`.
        spec: shapes and kinds of the columns.
        name: what messages and reports call it, e.g. `hopper_medium-v2.hdf5`.
        fingerprint: sha256 of spec and columns where already known.
        source: where it came from, e.g. `{"uri": ..., "sha256": ...}`.
        tasks: `(E,)` int64, the task of each episode, where there are several.
        histories: `(E,)` int64, the learner each episode is from, in the order it lived through them; with `tasks`.
        optimal_actions: what the optimal policy of an episode's task would do at each step, `(n, *A)`, like `actions`.

    Attributes:
        observations: `(n, *O)` float32, or uint8 if images.
        actions: `(n, A)` float32, `(n,)` int64 if discrete, or `(n, A)` int64 if several choices.
        rewards: `(n,)` float32.
        terminations: `(n,)` bool.
        truncations: `(n,)` bool.

    Raises:
        DataError: a column has another length, shape or type, or the offsets do not cover the steps.
    """

    def __init__(
        self,
        columns: Mapping[str, np.ndarray],
        offsets: np.ndarray,
        spec: Spec,
        name: str = "dataset",
        *,
        fingerprint: str | None = None,
        source: Mapping[str, str] | None = None,
        tasks: np.ndarray | None = None,
        histories: np.ndarray | None = None,
        optimal_actions: np.ndarray | None = None,
    ) -> None:
        self.name = name
        self.spec = spec
        self.offsets = offsets
        self.source = dict(source or {})
        self.tasks, self.histories, self.optimal_actions = tasks, histories, optimal_actions
        self.observations, self.actions, self.rewards, self.terminations, self.truncations = (
            columns[field] for field in COLUMNS
        )
        if fingerprint is not None:
            self.fingerprint = fingerprint
        self._check_layout()

    @classmethod
    def from_arrays(
        cls,
        *,
        observations: Any,
        actions: Any,
        rewards: Any,
        terminations: Any,
        truncations: Any = None,
        episode_ids: Any = None,
        env_id: str | None = None,
        name: str = "dataset",
        tail: str = "keep",
        spec: Spec | None = None,
    ) -> Dataset:
        """Cut flat arrays of any number type, byte order or stride into episodes.

        An episode ends where a flag is set, or, if `episode_ids` `(n,)` is given, where the id changes. An episode
        that ends without a flag was cut by the recording and is marked truncated; without ids only the last can be
        such, and `tail="drop"` leaves it out. A step with both flags counts as terminated. Integer actions `(n,)` or
        `(n, 1)` are discrete, all others continuous. Arrays already in the stored type are not copied.

        Raises:
            DataError: lengths differ, a value is not a number, or nothing says where episodes end.
        """
        arrays = {
            "observations": observations,
            "actions": actions,
            "rewards": rewards,
            "terminations": terminations,
            "truncations": truncations,
        }
        columns, offsets, found = from_flat(name, arrays, episode_ids=episode_ids, tail=tail, spec=spec, env_id=env_id)
        return cls(columns, offsets, found, name)

    @classmethod
    def from_trajectories(
        cls,
        trajectories: Sequence[Trajectory],
        *,
        env_id: str | None = None,
        name: str = "dataset",
        spec: Spec | None = None,
    ) -> Dataset:
        """Copy episodes into flat columns. Empty ones are left out, with a count in the log.

        An episode that ends without a flag was cut by the recording and is marked truncated, as in `from_arrays`.

        Raises:
            DataError: no episode has a step, or shapes differ between episodes.
        """
        columns, offsets, found = from_episodes(name, trajectories, spec=spec, env_id=env_id)
        return cls(columns, offsets, found, name)

    def _check_layout(self) -> None:
        spec, n = self.spec, len(self.rewards)
        expected = {
            "observations": (np.dtype(spec.observation_dtype), (n, *spec.observation_shape)),
            "actions": (spec.action_dtype, (n, *spec.action_shape)),
            "optimal_actions": (spec.action_dtype, (n, *spec.action_shape)),
            "rewards": (np.float32, (n,)),
            "terminations": (np.bool_, (n,)),
            "truncations": (np.bool_, (n,)),
        }
        for field, (dtype, shape) in expected.items():
            array = getattr(self, field)
            if array is None:
                continue
            if array.dtype != dtype or array.shape != shape:
                wanted, found = f"{np.dtype(dtype)} {shape}", f"{array.dtype} {array.shape}"
                raise DataError(f"{self.name}: {field}: expected {wanted}, got {found}")
        offsets = self.offsets
        if offsets.ndim != 1 or offsets.dtype != np.int64 or len(offsets) < 2 or offsets[0] != 0 or offsets[-1] != n:
            raise DataError(f"{self.name}: episode_offsets: expected int64 from 0 to {n}, got {_ends(offsets)}")
        if (np.diff(offsets) <= 0).any():
            episode = int(np.argmax(np.diff(offsets) <= 0))
            raise DataError(f"{self.name}: episode {episode}: expected at least one step, got none")
        for field, array in self.episode_columns.items():
            if array.dtype != np.int64 or array.shape != (len(self),):
                raise DataError(f"{self.name}: {field}: expected int64 {(len(self),)}, got {array.dtype} {array.shape}")
        if len(self.episode_columns) == 1:
            raise DataError(f"{self.name}: expected both tasks and histories, got {next(iter(self.episode_columns))}")

    @property
    def episode_columns(self) -> dict[str, np.ndarray]:
        """The arrays with one entry per episode by name: `tasks` and `histories`, or none."""
        found = {"tasks": self.tasks, "histories": self.histories}
        return {field: array for field, array in found.items() if array is not None}

    @property
    def added_columns(self) -> dict[str, np.ndarray]:
        """The per-step arrays that not every dataset has, by name: `optimal_actions`, or none."""
        return {} if self.optimal_actions is None else {"optimal_actions": self.optimal_actions}

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """The per-step arrays by name, in the order of `COLUMNS`."""
        return {field: getattr(self, field) for field in COLUMNS}

    @property
    def steps(self) -> int:
        """Steps over all episodes, `n`."""
        return len(self.rewards)

    @property
    def lengths(self) -> np.ndarray:
        """`(E,)` int64, steps of each episode."""
        return np.diff(self.offsets)

    @property
    def returns(self) -> np.ndarray:
        """`(E,)` float64, undiscounted sum of rewards of each episode, raw units."""
        return np.add.reduceat(self.rewards, self.offsets[:-1], dtype=np.float64)

    @cached_property
    def returns_to_go(self) -> np.ndarray:
        """`(n,)` float32, sum of this and all later rewards of the episode, accumulated in float64."""
        out = np.empty(self.steps, np.float32)
        # One cumsum per episode, not one over all: a huge or infinite reward must not reach other episodes.
        for start, end in zip(self.offsets[:-1].tolist(), self.offsets[1:].tolist(), strict=True):
            out[start:end] = np.cumsum(self.rewards[start:end][::-1], dtype=np.float64)[::-1]
        return out

    @cached_property
    def timesteps(self) -> np.ndarray:
        """`(n,)` int64, index of the step within its episode."""
        return np.arange(self.steps) - np.repeat(self.offsets[:-1], self.lengths)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 (hex) over spec, offsets and column bytes: equal data, equal fingerprint."""
        spec = replace(self.spec, observation_parts=())  # names that older stores of the same data do not have
        digest = hashlib.sha256(json.dumps(spec.to_json(), sort_keys=True).encode())
        for field, array in {
            **self.columns,
            "offsets": self.offsets,
            **self.episode_columns,
            **self.added_columns,
        }.items():
            digest.update(f"{field} {array.dtype.name} {array.shape}".encode())
            digest_array(digest, array)
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, episode: int) -> Trajectory:
        index = range(len(self))[episode]
        start, end = self.offsets[index : index + 2].tolist()
        return Trajectory(*(getattr(self, field)[start:end] for field in COLUMNS))

    def __iter__(self) -> Iterator[Trajectory]:
        return (self[episode] for episode in range(len(self)))

    def with_spec(self, spec: Spec) -> Dataset:
        """The same episodes, and the same fingerprint, under another description (bounds, environment id)."""
        return Dataset(
            self.columns,
            self.offsets,
            spec,
            self.name,
            fingerprint=self.fingerprint,
            source=self.source,
            tasks=self.tasks,
            histories=self.histories,
            optimal_actions=self.optimal_actions,
        )

    def with_histories(self, tasks: np.ndarray, histories: np.ndarray) -> Dataset:
        """The same episodes, said to be of these tasks and learners; arrays `(E,)` of integers."""
        return Dataset(
            self.columns,
            self.offsets,
            self.spec,
            self.name,
            source=self.source,
            tasks=np.asarray(tasks, np.int64),
            histories=np.asarray(histories, np.int64),
            optimal_actions=self.optimal_actions,
        )

    def select(self, episodes: Sequence[int] | np.ndarray) -> Dataset:
        """A copy with these episodes, in this order; negative indices count from the end. Images are not copied.

        Raises:
            DataError: no episode is left.
        """
        chosen = np.arange(len(self))[np.asarray(episodes, dtype=np.int64)]
        if not chosen.size:
            raise DataError(f"{self.name}: expected at least one episode, got none")
        lengths = self.lengths[chosen]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        steps = np.repeat(self.offsets[chosen] - offsets[:-1], lengths) + np.arange(offsets[-1])
        columns: dict[str, Any] = {
            field: array[steps] for field, array in self.columns.items() if field != "observations"
        }
        seen = self.observations
        columns["observations"] = Rows(seen, steps) if self.spec.is_image else seen[steps]
        more: dict[str, Any] = {field: owners[chosen] for field, owners in self.episode_columns.items()}
        more |= {field: array[steps] for field, array in self.added_columns.items()}
        return Dataset(columns, offsets, self.spec, self.name, source=self.source, **more)

    def best(self, fraction: float) -> Dataset:
        """The episodes with the highest returns, in their order, as many as fit into a share of the steps.

        At least one; the next best after the last that fits is left out, however long it is.

        Args:
            fraction: share of the steps, 0 to 1; 1 gives the dataset itself.
        """
        _check_fraction(fraction)
        if fraction == 1:
            return self
        order = np.argsort(-self.returns, kind="stable")
        count = int((np.cumsum(self.lengths[order]) <= fraction * self.steps).sum())
        return self.select(np.sort(order[: max(count, 1)]))

    def split(self, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
        """Two datasets without a common episode, at least one episode each.

        Of learning histories they have no common task or, with one task, no common learner.

        Args:
            fraction: share of the episodes (tasks) that goes to the second (held-out) one, 0 to 1.
            seed: decides which; the same seed gives the same split.

        Raises:
            DataError: there is only one episode.
        """
        _check_fraction(fraction)
        if len(self) < 2:
            raise DataError(f"{self.name}: expected at least 2 episodes to split, got {len(self)}")
        held_out = self._drawn(fraction, seed, spare=1)
        return self.select(np.flatnonzero(~held_out)), self.select(np.flatnonzero(held_out))

    def share(self, fraction: float, seed: int) -> Dataset:
        """Some of the episodes, drawn without looking at them; of learning histories tasks or learners, as `split`.

        Args:
            fraction: share of the episodes (tasks), 0 to 1, at least one; 1 gives the dataset itself.
            seed: decides which; smaller shares of one seed lie within larger ones.
        """
        _check_fraction(fraction)
        return self if fraction == 1 else self.select(np.flatnonzero(self._drawn(fraction, seed)))

    def _drawn(self, fraction: float, seed: int, spare: int = 0) -> np.ndarray:
        """`(E,)` mask of the episodes of at least one owner that are drawn; `spare` owners are left at least."""
        owners = self._owners()
        groups = np.unique(owners)
        count = min(max(round(fraction * len(groups)), 1), len(groups) - spare)
        order = np.random.default_rng(seed).permutation(len(groups))
        return np.isin(owners, groups[order[:count]])

    def _owners(self) -> np.ndarray:
        """`(E,)` what an episode belongs to when a dataset is split: its task, else its learner, else nothing."""
        several = (owners for owners in self.episode_columns.values() if (owners != owners[0]).any())
        return next(several, np.arange(len(self)))

    def __repr__(self) -> str:
        return (
            f"Dataset({self.name!r}, episodes={len(self)}, steps={self.steps}, "
            f"observations={self.observations.shape}, actions={self.actions.shape})"
        )


def _check_fraction(fraction: float) -> None:
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction: expected a number from 0 to 1, got {fraction}")


def digest_array(digest: Any, array: np.ndarray, block: int = 1 << 24) -> None:
    """Feed the bytes of `array` (C order, little endian) to a hashlib object, block by block."""
    rows = max(1, block // max(1, array[:1].nbytes))
    for start in range(0, len(array), rows):
        part = array[start : start + rows]
        digest.update(np.ascontiguousarray(part, dtype=part.dtype.newbyteorder("<")))


def _ends(offsets: np.ndarray) -> str:
    ends = f" from {offsets[0]} to {offsets[-1]}" if offsets.ndim == 1 and offsets.size else ""
    return f"{offsets.dtype} {offsets.shape}{ends}"
