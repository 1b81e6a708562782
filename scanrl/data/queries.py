"""From learning histories to `Batch`es of examples: transitions of a task in any order, and a state to act in.

Symbols: `B` batch, `n` episodes of a context, `T` transitions of the longest context of a batch.

A transition is an observation, the action taken there, its reward and the next observation. What a set of them says
about a task does not depend on their order, so that they are drawn in a random one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from scanrl.batch import Batch
from scanrl.data.dataset import Dataset
from scanrl.data.histories import _Groups, _padded, _tasks
from scanrl.data.windows import check_shape
from scanrl.types import DataError

__all__ = ["QuerySampler", "iterate_queries"]


class QuerySampler:
    """Random contexts of transitions of one task, each with a random state of that task and its optimal action.

    The transitions are those of `n` different random episodes of a task, of any of its learners, shuffled, and the
    first `context` of them. The state is any that the task's episodes have met, each as likely, so that one in which a
    learner stays for most of its time does not stand for all. Tasks are as likely as they have episodes.

    Args:
        dataset: learning histories with `optimal_actions`.
        context: most transitions of a context.
        episodes: episodes of a context, `n`.
        batch_size: contexts of a batch, `B`.
        seed: of this sampler's own generator.

    Raises:
        DataError: a number below 1, pictures, or a dataset that does not know the optimal actions.
    """

    def __init__(self, dataset: Dataset, context: int, episodes: int, batch_size: int, seed: int) -> None:
        if dataset.spec.is_image:
            raise DataError(f"{dataset.name}: observations: expected vectors behind a query, got images")
        if dataset.optimal_actions is None:
            raise DataError(
                f"{dataset.name}: optimal_actions: expected them for every step (scanrl collect --histories --optimal "
                "records them), got none"
            )
        for name, size in {"context": context, "episodes": episodes, "batch_size": batch_size}.items():
            if size < 1:
                raise DataError(f"{name}: expected at least 1, got {size}")
        self.dataset, self.context, self.episodes, self.batch_size = dataset, context, episodes, batch_size
        self._generator = np.random.default_rng(seed)
        tasks = _tasks(dataset)
        self._groups = _Groups(tasks)
        # A step of every state of every task, task by task, and where those of an episode's task begin and end.
        self._steps, owners = _states(dataset, np.repeat(tasks, dataset.lengths))
        self._ends = np.zeros(dataset.steps, np.bool_)
        self._ends[dataset.offsets[1:] - 1] = True
        self._first, self._last = (np.searchsorted(owners, tasks, side) for side in ("left", "right"))

    def sample(self) -> Batch:
        """The next batch; its tensors are new memory. As long as the longest of its contexts."""
        episodes = self._groups.draw(self.batch_size, self.episodes, self._generator)
        context = self._shuffled(episodes)
        first, last = self._first[episodes[:, 0]], self._last[episodes[:, 0]]
        queries = self._steps[self._generator.integers(first, last)]
        return self._gather(context, queries)

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield self.sample()

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to continue with exactly the next batch; plain JSON values."""
        return {**self._shape(), "generator": self._generator.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where a sampler over the same data was.

        Raises:
            ValueError: the state belongs to other contexts, another batch size or another number of steps.
        """
        check_shape(self._shape(), state)
        self._generator.bit_generator.state = state["generator"]

    def _shape(self) -> dict[str, Any]:
        sizes = {"context": self.context, "episodes": self.episodes, "batch_size": self.batch_size}
        return {**sizes, "steps": self.dataset.steps}

    def _shuffled(self, episodes: np.ndarray) -> np.ndarray:
        """`(B, T)` steps of `episodes` `(B, n)` in random order, no more than `context`; -1 where there are none."""
        row, _ = np.nonzero(episodes >= 0)
        chosen = episodes[episodes >= 0]
        lengths = self.dataset.lengths[chosen]
        begun = np.cumsum(lengths) - lengths
        steps = np.arange(lengths.sum()) + np.repeat(self.dataset.offsets[chosen] - begun, lengths)
        row = np.repeat(row, lengths)
        order = np.lexsort((self._generator.random(len(row)), row))
        totals = np.bincount(row, minlength=len(episodes))
        place = np.arange(len(row)) - np.repeat(np.cumsum(totals) - totals, totals)
        kept = place < self.context
        context = np.full((len(episodes), min(int(totals.max()), self.context)), -1)
        context[row[kept], place[kept]] = steps[order][kept]
        return context

    def _gather(self, context: np.ndarray, queries: np.ndarray) -> Batch:
        """The transitions of the steps `context` `(B, T)`, -1 where there are none, behind the steps `queries`."""
        dataset, mask = self.dataset, context >= 0
        steps = context[mask]
        followed = ~self._ends[steps]
        following = np.zeros_like(dataset.observations[steps])
        following[followed] = dataset.observations[steps[followed] + 1]
        assert dataset.optimal_actions is not None
        return Batch(
            _padded(dataset.observations[steps], mask),
            _padded(dataset.actions[steps], mask),
            _padded(dataset.rewards[steps], mask),
            torch.zeros(mask.shape),
            _padded(dataset.timesteps[steps], mask),
            torch.from_numpy(mask),
            next_observations=_padded(following, mask),
            followed=_padded(followed, mask),
            queries=torch.from_numpy(np.ascontiguousarray(dataset.observations[queries])),
            targets=torch.from_numpy(np.ascontiguousarray(dataset.optimal_actions[queries])),
        )


def _states(dataset: Dataset, tasks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first step of every distinct state of every task, and its task, ascending by task.

    States are told apart by the observation and by the optimal action, which may depend on more than is seen.
    """
    assert dataset.optimal_actions is not None
    columns = (tasks.astype(">i8"), dataset.observations, dataset.optimal_actions)
    rows = [np.ascontiguousarray(column).reshape(dataset.steps, -1).view(np.uint8) for column in columns]
    told = np.concatenate(rows, axis=1)
    _, steps = np.unique(told.view(f"V{told.shape[1]}")[:, 0], return_index=True)
    return steps[np.argsort(tasks[steps], kind="stable")], np.sort(tasks[steps])


def iterate_queries(dataset: Dataset, context: int, episodes: int, batch_size: int, *, count: int) -> Iterator[Batch]:
    """About `count` contexts, in whole batches: the same ones every time it is called."""
    sampler = QuerySampler(dataset, context, episodes, batch_size, seed=0)
    return (sampler.sample() for _ in range(max(1, round(count / batch_size))))
