"""A learner that knows the family and not its task: posterior sampling.

Symbols: `N` learners side by side, `H` tasks that each holds possible.
"""

from __future__ import annotations

import numpy as np

from scanrl.envs.tabular import TabularLearner
from scanrl.envs.task import Moved, TaskFamily

__all__ = ["PosteriorLearner"]

HYPOTHESES = 512
"""Most tasks that a learner starts with, its own among them; of larger families it is told that the rest is out."""


class PosteriorLearner(TabularLearner):
    """Acts optimally for a task drawn from those that everything seen so far allows, until a step says otherwise.

    Its histories hold the whole of learning in context: a search in which no step is random, the find, and then the
    optimal policy. Those of `NoiseLearner` lead to the goal before anything could have told where it is.

    Reference: Thompson 1933; Osband et al. 2013, arXiv 1306.0940.
    """

    explores = False

    def __init__(self, family: TaskFamily, tasks: np.ndarray, rng: np.random.Generator) -> None:
        super().__init__(family, tasks, rng)
        self._rng = rng
        count = _count(family)
        self._tasks = np.tile(np.arange(count), (len(tasks), 1))
        if count < family.task_count:
            self._tasks = rng.integers(family.task_count, size=(len(tasks), count))
            self._tasks[:, 0] = tasks
        self._possible = np.ones(self._tasks.shape, bool)
        self._believed = np.empty(len(tasks), np.int64)
        self._draw(np.arange(len(tasks)))

    def choose(self, states: np.ndarray) -> np.ndarray:
        return self.family.best(self._believed, states)

    def learn(self, states: np.ndarray, actions: np.ndarray, moved: Moved, times: np.ndarray | int = 0) -> None:
        open_still = self._possible.sum(axis=1) > 1
        rows = np.flatnonzero(open_still)
        if not rows.size:
            return
        count = self._tasks.shape[1]
        every = np.broadcast_to(times, len(states))[rows].repeat(count)
        would = self.family.move(
            self._tasks[rows].ravel(), states[rows].repeat(count), actions[rows].repeat(count), every
        )
        fits = (would.states == moved.states[rows].repeat(count)) & (would.rewards == moved.rewards[rows].repeat(count))
        self._possible[rows] &= fits.reshape(-1, count)
        self._draw(rows[~(self._possible[rows] & (self._tasks[rows] == self._believed[rows, None])).any(axis=1)])

    def _draw(self, rows: np.ndarray) -> None:
        """A new task to believe in, each that is possible as likely."""
        if rows.size:
            keys = self._rng.random((len(rows), self._tasks.shape[1])) * self._possible[rows]
            self._believed[rows] = self._tasks[rows, keys.argmax(axis=1)]

    @classmethod
    def row_bytes(cls, family: TaskFamily) -> int:
        return 64 * _count(family)


def _count(family: TaskFamily) -> int:
    return min(family.task_count, HYPOTHESES)
