"""From learning histories to `Batch`es: contexts that string several episodes of one task together.

Symbols: `B` batch, `n` episodes of a context, `T` steps of the longest context of a batch, `E` episodes of the dataset.

A batch is the one that windows give: `timesteps` starts again at 0 with every episode, which is where a new one begins,
and `returns_to_go` reaches to the end of the episode it belongs to.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch

from scanrl.batch import Batch
from scanrl.data.dataset import Dataset
from scanrl.data.subgoals import mean_rewards, valuable_steps
from scanrl.data.windows import check_shape
from scanrl.types import DataError

__all__ = [
    "Curriculum",
    "HistoryOrder",
    "HistorySampler",
    "ReplayOrder",
    "iterate_histories",
    "learning_curve",
    "replay_history",
]

HistoryOrder = Literal["learning", "return"]
ReplayOrder = Literal["recorded", "return"]


class Curriculum(NamedTuple):
    """Contexts that start short: at most `steps` environment steps, doubled after every `batches` batches."""

    steps: int
    batches: int


def replay_history(dataset: Dataset, order: ReplayOrder = "recorded") -> Dataset:
    """The whole dataset as the history of one learner on one task.

    Args:
        order: as recorded, which for a replay buffer is the order of learning, or ascending by return.
    """
    if order not in get_args(ReplayOrder):
        raise DataError(f"order: expected one of {', '.join(get_args(ReplayOrder))}, got {order!r}")
    none = np.zeros(len(dataset), np.int64)
    if order == "return":
        dataset = dataset.select(np.argsort(dataset.returns, kind="stable"))
    return dataset.with_histories(none, none)


class HistorySampler:
    """Random contexts of `n` episodes of one task.

    In the order of `learning`, a context is a run of a single history, from a random episode on: every place where `n`
    episodes follow is equally likely, and a history of fewer than `n` is taken whole. That contexts start anywhere is
    what makes a model improve from any level, and beyond the length it was trained on. In the order of `return` it is
    `n` different random episodes of a task, of any of its learners, the worst first; tasks are as likely as they have
    episodes.

    Args:
        dataset: learning histories (`dataset.tasks`, `dataset.histories`); others are one history, as recorded.
        episodes: episodes of a context, `n`.
        batch_size: contexts of a batch, `B`.
        seed: of this sampler's own generator.
        order: see above.
        stride: episodes from one of a context to the next, in the order of learning: more of a long history in as
            many steps.
        curriculum: lets contexts grow: of each, the first episodes that fit are taken, the first one always, and
            contexts whose first one does not fit are left out while there are others.
        goals: also give `goals` and `goal_values`: the valuable state ahead of every step, within its episode.

    Raises:
        DataError: a number below 1, an unknown order, or a history whose episodes are not next to each other.
    """

    def __init__(
        self,
        dataset: Dataset,
        episodes: int,
        batch_size: int,
        seed: int,
        *,
        order: HistoryOrder = "learning",
        stride: int = 1,
        curriculum: Curriculum | None = None,
        goals: bool = False,
    ) -> None:
        if dataset.spec.is_image:
            raise DataError(f"{dataset.name}: observations: expected vectors in learning histories, got images")
        sizes = {"episodes": episodes, "batch_size": batch_size, "stride": stride}
        for name, size in {**sizes, **(curriculum._asdict() if curriculum else {})}.items():
            if size < 1:
                raise DataError(f"{name}: expected at least 1, got {size}")
        if order not in get_args(HistoryOrder):
            raise DataError(f"order: expected one of {', '.join(get_args(HistoryOrder))}, got {order!r}")
        self.dataset, self.episodes, self.batch_size = dataset, episodes, batch_size
        self.order, self.stride, self.curriculum = order, stride, curriculum
        self._generator = np.random.default_rng(seed)
        self._drawn = 0
        self._histories = _Histories(dataset)
        self._goals = valuable_steps(dataset.rewards, dataset.offsets) if goals else None
        if order == "return":
            self._groups, self._returns = _Groups(_tasks(dataset)), dataset.returns
        else:
            self._starts = self._histories.starts(1 + (episodes - 1) * stride)

    def sample(self) -> Batch:
        """The next batch; its tensors are new memory. As long as the longest of its contexts."""
        chosen = self._sorted() if self.order == "return" else self._runs()
        limit = self.limit
        if limit is not None:
            lengths = np.where(chosen < 0, 0, self._histories.lengths[chosen])
            fits = lengths.cumsum(axis=1) <= limit
            fits[:, 0] = True
            chosen = np.where(fits, chosen, -1)
        self._drawn += 1
        return _gather(self.dataset, chosen, self._goals)

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield self.sample()

    @property
    def limit(self) -> int | None:
        """Steps that contexts of the next batch may have by the curriculum; `None` without one."""
        if self.curriculum is None:
            return None
        # Beyond all steps of the dataset a higher limit changes nothing, and 2 to a large power is slow.
        doublings = min(self._drawn // self.curriculum.batches, self.dataset.steps.bit_length())
        return self.curriculum.steps * 2**doublings

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to continue with exactly the next batch; plain JSON values."""
        return {**self._shape(), "drawn": self._drawn, "generator": self._generator.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where a sampler over the same data was.

        Raises:
            ValueError: the state belongs to other contexts, another batch size or another number of steps.
        """
        check_shape(self._shape(), state)
        self._drawn = state["drawn"]
        self._generator.bit_generator.state = state["generator"]

    def _shape(self) -> dict[str, Any]:
        return {
            "episodes": self.episodes,
            "batch_size": self.batch_size,
            "steps": self.dataset.steps,
            "order": self.order,
            "stride": self.stride,
            "curriculum": None if self.curriculum is None else list(self.curriculum),
        }

    def _runs(self) -> np.ndarray:
        """`(B, n)` episodes in the order of learning; -1 where a history has no more."""
        starts, limit = self._starts, self.limit
        if limit is not None:
            short = starts[self._histories.lengths[starts] <= limit]
            starts = short if short.size else starts
        first = starts[self._generator.integers(len(starts), size=self.batch_size)]
        chosen = first[:, None] + self.stride * np.arange(self.episodes)
        return np.where(chosen < self._histories.ends[first][:, None], chosen, -1)

    def _sorted(self) -> np.ndarray:
        """`(B, n)` episodes ascending by return; -1 where a task has no more."""
        chosen = self._groups.draw(self.batch_size, self.episodes, self._generator)
        returns = np.where(chosen < 0, np.inf, self._returns[chosen])
        return np.take_along_axis(chosen, np.lexsort((chosen, returns), axis=1), axis=1)


def iterate_histories(
    dataset: Dataset, episodes: int, batch_size: int, *, most: int | None = None, goals: bool = False
) -> Iterator[Batch]:
    """One pass in the order of learning: contexts of up to `episodes` that hold every episode once.

    With `most`, only so many of them, evenly spread; with `goals` also the valuable states, as in `HistorySampler`.
    """
    ahead = valuable_steps(dataset.rewards, dataset.offsets) if goals else None
    histories = _Histories(dataset)
    place = np.arange(len(dataset)) - histories.firsts
    first = np.flatnonzero(place % episodes == 0)
    if most is not None and most < len(first):
        first = first[np.arange(most) * len(first) // most]
    chosen = first[:, None] + np.arange(episodes)
    chosen = np.where(chosen < histories.ends[first][:, None], chosen, -1)
    return (_gather(dataset, chosen[i : i + batch_size], ahead) for i in range(0, len(chosen), batch_size))


class _Histories:
    """Where the history of each episode begins and ends, `(E,)` each."""

    def __init__(self, dataset: Dataset) -> None:
        ids = np.zeros(len(dataset), np.int64) if dataset.histories is None else dataset.histories
        edges = np.concatenate([[0], np.flatnonzero(np.diff(ids)) + 1, [len(ids)]])
        if len(np.unique(ids[edges[:-1]])) < len(edges) - 1:
            raise DataError(f"{dataset.name}: histories: expected the episodes of a history in one run, got several")
        if (np.diff(_tasks(dataset))[np.diff(ids) == 0] != 0).any():
            raise DataError(f"{dataset.name}: tasks: expected one task for each history, got several")
        counts = np.diff(edges)
        self.firsts, self.ends = np.repeat(edges[:-1], counts), np.repeat(edges[1:], counts)
        self.lengths = dataset.lengths

    def starts(self, span: int) -> np.ndarray:
        """Episodes after which, and with which, a history has at least `span`; the first one of shorter histories."""
        episodes = np.arange(len(self.firsts))
        return np.flatnonzero((episodes + span <= self.ends) | (episodes == self.firsts))


class _Groups:
    """The episodes of every task, and random ones of them without replacement."""

    def __init__(self, owners: np.ndarray) -> None:
        self._order = np.argsort(owners, kind="stable")
        _, self._first, self._count = np.unique(owners[self._order], return_index=True, return_counts=True)
        self._task = np.repeat(np.arange(len(self._count)), self._count)

    def draw(self, rows: int, size: int, generator: np.random.Generator) -> np.ndarray:
        """`(rows, size)` different episodes of one task in each row; -1 where it has no more.

        Reference: Floyd's algorithm (Bentley & Floyd 1987), a row at a time in every step.
        """
        task = self._task[generator.integers(len(self._task), size=rows)]
        first, count = self._first[task], self._count[task]
        chosen = np.full((rows, size), -1)
        for i in range(size):
            last = count - np.minimum(count, size) + i  # one more is allowed each time
            drawn = (generator.random(rows) * (last + 1)).astype(np.int64)
            again = (chosen == drawn[:, None]).any(axis=1)
            chosen[:, i] = np.where(i < count, np.where(again, last, drawn), -1)
        return np.where(chosen < 0, -1, self._order[(first[:, None] + chosen).clip(max=len(self._order) - 1)])


def _tasks(dataset: Dataset) -> np.ndarray:
    return np.zeros(len(dataset), np.int64) if dataset.tasks is None else dataset.tasks


def _gather(dataset: Dataset, chosen: np.ndarray, goals: np.ndarray | None) -> Batch:
    """The episodes `chosen` `(B, n)` of every row one after the other, padded on the right; -1 is none.

    `goals` `(n,)` are the valuable steps of the dataset, where they are wanted.
    """
    row, _ = np.nonzero(chosen >= 0)
    episodes = chosen[chosen >= 0]
    lengths = dataset.offsets[episodes + 1] - dataset.offsets[episodes]
    begun = np.cumsum(lengths) - lengths  # where each would begin if all rows were one
    timesteps = np.arange(lengths.sum()) - np.repeat(begun, lengths)
    steps = np.repeat(dataset.offsets[episodes], lengths) + timesteps
    totals = np.bincount(row, weights=lengths, minlength=len(chosen)).astype(np.int64)
    mask = np.arange(totals.max()) < totals[:, None]
    rewards = dataset.rewards[steps]
    earned = np.cumsum(rewards, dtype=np.float64)
    to_go = np.repeat(earned[begun + lengths - 1], lengths) - earned + rewards
    batch = Batch(
        _padded(dataset.observations[steps], mask),
        _padded(dataset.actions[steps], mask),
        _padded(rewards, mask),
        _padded(to_go.astype(np.float32), mask),
        _padded(timesteps, mask),
        torch.from_numpy(mask),
    )
    if goals is None:
        return batch
    ahead = goals[steps]
    # Sums of what was gathered: the way lies inside the episode, which is there whole.
    values = mean_rewards(rewards, np.arange(len(steps)) + ahead - steps)
    return batch._replace(goals=_padded(dataset.observations[ahead], mask), goal_values=_padded(values, mask))


def _padded(values: np.ndarray, mask: np.ndarray) -> torch.Tensor:
    """Flat values in row order as `(B, T, ...)`, zero where the mask is false."""
    if mask.all():
        return torch.from_numpy(np.ascontiguousarray(values)).reshape(*mask.shape, *values.shape[1:])
    out = np.zeros((*mask.shape, *values.shape[1:]), values.dtype)
    out[mask] = values
    return torch.from_numpy(out)


def learning_curve(dataset: Dataset) -> np.ndarray:
    """`(n,)` float64: mean return of the episodes of histories, by their number; as far as all of them go.

    Raises:
        DataError: these are no histories.
    """
    if dataset.histories is None:
        raise DataError(f"{dataset.name}: histories: expected learning histories, got none")
    begins = np.flatnonzero(np.diff(dataset.histories, prepend=-1))
    number = np.arange(len(dataset)) - np.repeat(begins, np.diff(np.append(begins, len(dataset))))
    count = np.bincount(number)
    whole = count == count[0]  # where episodes may end early some histories have more of them
    return (np.bincount(number, weights=dataset.returns) / count)[whole]
