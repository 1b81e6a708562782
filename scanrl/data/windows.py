"""From a `Dataset` to `Batch`es of `K` steps, cut at the end of the episode and padded on the right: windows from
anywhere, or whole episodes in consecutive chunks.

Symbols: `B` batch, `K` context in steps, `n` steps of the dataset, `O`/`A` observation/action shape.
A batch is one gather over flat columns; there is no Python loop over its items.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from scanrl.batch import Batch
from scanrl.data.dataset import Dataset
from scanrl.data.frames import gather_frames

__all__ = ["EpisodeSampler", "WindowSampler", "check_shape", "iterate_episodes", "iterate_windows"]

_PACK_BYTES = 1 << 30
"""Datasets up to this size are packed into one matrix in memory; larger ones are gathered from their columns."""


class WindowSampler:
    """Random windows: every step of the dataset is equally likely to be the first of one.

    That is an episode with probability proportional to its length, then a uniform start. A window ends at its
    episode's end; what is missing to `K` steps is zero and has a false mask, always on the right.

    Args:
        dataset: where the windows come from.
        context: steps of a window, `K`.
        batch_size: windows of a batch, `B`.
        seed: of this sampler's own generator.
    """

    def __init__(self, dataset: Dataset, context: int, batch_size: int, seed: int) -> None:
        self.dataset = dataset
        self.context = context
        self.batch_size = batch_size
        self._generator = np.random.default_rng(seed)
        self._windows = _Windows(dataset, context, batch_size)

    def sample(self) -> Batch:
        """The next batch. Its tensors are new memory; the columns are not touched by writing to them."""
        return self._windows.gather(self._generator.integers(self.dataset.steps, size=self.batch_size))

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield self.sample()

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to continue with exactly the next batch; plain JSON values."""
        return {**self._shape(), "generator": self._generator.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where a sampler over the same data was.

        Raises:
            ValueError: the state belongs to another context, batch size or number of steps.
        """
        if "generator" not in state:
            raise ValueError("sampler state: expected one of windows, got one of whole episodes")
        check_shape(self._shape(), state)
        self._generator.bit_generator.state = state["generator"]

    def _shape(self) -> dict[str, int]:
        return {"context": self.context, "batch_size": self.batch_size, "steps": self.dataset.steps}


def iterate_windows(dataset: Dataset, context: int, batch_size: int) -> Iterator[Batch]:
    """One pass in order: windows without overlap that hold every step once. The last batch may be smaller."""
    windows = _Windows(dataset, context, batch_size)
    starts = np.flatnonzero(dataset.timesteps % context == 0)
    return (windows.gather(starts[i : i + batch_size]) for i in range(0, len(starts), batch_size))


def iterate_episodes(dataset: Dataset, context: int, batch_size: int) -> Iterator[Batch]:
    """One pass over whole episodes: consecutive chunks of `context` steps, which hold every step once.

    Up to `batch_size` episodes go side by side. A batch holds the next chunk of each, without those that have ended,
    which are the last rows; the first chunk begins at timestep 0.
    """
    windows = _Windows(dataset, context, batch_size)
    order = np.argsort(-dataset.lengths, kind="stable")  # those that end together side by side
    for first in range(0, len(order), batch_size):
        episodes = order[first : first + batch_size]
        begins, lengths = dataset.offsets[episodes], dataset.lengths[episodes]
        for start in range(0, int(lengths[0]), context):
            yield windows.gather(begins[lengths > start] + start)


class EpisodeSampler:
    """Whole episodes, side by side in the rows of a batch, a chunk of `K` steps of each at a time.

    A row takes one episode to its end, chunk after chunk, then the next one that no row has had. So every step of the
    data comes once in a pass; each pass has another order, and follows the one before it without a gap. The last chunk
    of an episode is padded on the right; the row then starts anew, and what the padding did to its state is forgotten.

    Episodes of equal length must not go in step, or a batch would hold their beginnings only, and the next ones only
    what follows. So the first episode of each row is entered at a random chunk, with an empty state; its beginning
    comes at the end of the first pass.

    Args:
        dataset: where the episodes come from.
        context: steps of a chunk, `K`.
        batch_size: rows of a batch, `B`.
        seed: of the order.
    """

    def __init__(self, dataset: Dataset, context: int, batch_size: int, seed: int) -> None:
        self.dataset, self.context, self.batch_size, self.seed = dataset, context, batch_size, seed
        self._windows = _Windows(dataset, context, batch_size)
        self._next = np.zeros(batch_size, np.int64)  # of every row the flat step that comes next,
        self._end = np.zeros(batch_size, np.int64)  # and the one where it starts anew
        self._pass, self._dealt = 0, 0  # the present pass, and how many of its parts have been given to rows
        self._parts = self._order(0)

    def sample(self) -> tuple[Batch, torch.Tensor]:
        """The next chunk of every row, and which rows start anew with it `(B,)` bool."""
        first = self._next >= self._end
        self._next[first], self._end[first] = self._deal(int(first.sum()))
        batch = self._windows.gather(self._next)
        self._next += self.context
        return batch, torch.from_numpy(first)

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to continue with exactly the next batch; plain JSON values."""
        place = {"pass": self._pass, "dealt": self._dealt, "next": self._next.tolist(), "end": self._end.tolist()}
        return {**self._shape(), **place}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where a sampler over the same data was.

        Raises:
            ValueError: the state belongs to windows, or to another context, batch size, seed or number of steps.
        """
        if "dealt" not in state:
            raise ValueError("sampler state: expected one of whole episodes, got one of windows")
        check_shape(self._shape(), state)
        self._pass, self._dealt = state["pass"], state["dealt"]
        self._next, self._end = np.array(state["next"], np.int64), np.array(state["end"], np.int64)
        self._parts = self._order(self._pass)

    def _shape(self) -> dict[str, int]:
        shape = {"context": self.context, "batch_size": self.batch_size, "seed": self.seed}
        return {**shape, "steps": self.dataset.steps}

    def _deal(self, count: int) -> np.ndarray:
        """First step and end of the next `count` parts `(2, count)`."""
        dealt = self._parts[:, self._dealt : self._dealt + count]
        self._dealt += dealt.shape[1]
        while dealt.shape[1] < count:
            self._pass += 1
            self._parts = self._order(self._pass)
            self._dealt = min(count - dealt.shape[1], self._parts.shape[1])
            dealt = np.concatenate([dealt, self._parts[:, : self._dealt]], axis=1)
        return dealt

    def _order(self, number: int) -> np.ndarray:
        """First step and end of all parts of a pass, in their order."""
        generator = np.random.default_rng([self.seed, number])
        order = generator.permutation(len(self.dataset))
        parts = np.stack([self.dataset.offsets[order], self.dataset.offsets[order + 1]])
        if number > 0:
            return parts
        entered = parts[:, : self.batch_size]
        begin, end = entered.copy()
        entered[0] += self.context * generator.integers(-(-(end - begin) // self.context))
        beginnings = np.stack([begin, entered[0]])[:, begin < entered[0]]
        return np.concatenate([parts, beginnings], axis=1)


def check_shape(mine: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Raises `ValueError` unless a sampler's state names what the sampler itself is made of."""
    for name, value in mine.items():
        if state.get(name) != value:
            raise ValueError(f"sampler state: {name}: expected {value}, got {state.get(name)}")


class _Windows:
    """The columns of a dataset, arranged so that one gather makes a batch."""

    def __init__(self, dataset: Dataset, context: int, batch_size: int) -> None:
        for name, value in (("context", context), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        self._whole = dataset.spec.action_dtype is np.int64
        self._images = dataset if dataset.spec.is_image else None
        self._observation_shape = dataset.spec.observation_shape
        self._observation_size = 0 if self._images else dataset.spec.observation_size
        self._tables = _tables(dataset, with_actions=not self._whole)
        self._actions = np.asarray(dataset.actions)
        self._offsets = np.array(dataset.offsets)
        self._ahead = np.arange(context)

    def gather(self, starts: np.ndarray) -> Batch:
        """Windows that begin at the flat steps `starts` `(B,)`."""
        steps = starts[:, None] + self._ahead
        # Looked up in the few offsets, not in a column of one entry per step, which would miss the cache each time.
        after = self._offsets.searchsorted(starts, side="right")
        mask = steps < self._offsets[after][:, None]
        timesteps = steps - self._offsets[after - 1][:, None]
        # "clip" only keeps the last windows inside the array, and lets numpy write without a second buffer.
        parts = [table.take(steps, axis=0, mode="clip") for table in self._tables]
        rows = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
        actions = self._actions.take(steps, axis=0, mode="clip") if self._whole else None
        if not mask.all():
            padded = ~mask
            rows[padded] = 0
            timesteps[padded] = 0
            if actions is not None:
                actions[padded] = 0
        images = gather_frames(self._images, starts, len(self._ahead)) if self._images else None
        return self._split(rows, actions, timesteps, mask, images)

    def _split(
        self,
        rows: np.ndarray,
        actions: np.ndarray | None,
        timesteps: np.ndarray,
        mask: np.ndarray,
        images: np.ndarray | None,
    ) -> Batch:
        """Views into `rows` `(B, K, O + A + 2)`, in the order of `_tables`; images are no part of those."""
        size = self._observation_size
        observations = torch.from_numpy(rows[..., :size] if images is None else images)
        if images is None and len(self._observation_shape) != 1:
            observations = observations.reshape(*mask.shape, *self._observation_shape)
        return Batch(
            observations,
            torch.from_numpy(rows[..., size:-2] if actions is None else actions),
            torch.from_numpy(rows[..., -2]),
            torch.from_numpy(rows[..., -1]),
            torch.from_numpy(timesteps),
            torch.from_numpy(mask),
        )


def _tables(dataset: Dataset, *, with_actions: bool) -> list[np.ndarray]:
    """Float columns as matrices `(n, size)`: observations (if vectors), actions (likewise), rewards, returns-to-go."""
    columns = [] if dataset.spec.is_image else [dataset.observations.reshape(dataset.steps, -1)]
    if with_actions:
        columns.append(dataset.actions)
    columns += [dataset.rewards[:, None], dataset.returns_to_go[:, None]]
    # A plain view: the memmap subclass costs microseconds per call.
    columns = [np.asarray(column).view(np.ndarray) for column in columns]
    if sum(column.nbytes for column in columns) > _PACK_BYTES:
        return columns
    return [np.concatenate(columns, axis=1)]
