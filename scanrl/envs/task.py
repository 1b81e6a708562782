"""`TaskFamily`: tasks that share spaces and differ in what earns reward; thousands are played side by side in numpy.

Symbols: `N` rows (episodes side by side), `O` entries of an observation.

A task is an integer from 0 to `task_count - 1`. A state is an integer too and holds all there is to know about an
episode besides its task and the time: also what the agent is not shown, such as a key it has picked up. So the same
five functions serve a Gymnasium environment, the learners that make histories and an exact computation of values.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from scanrl.types import DataError

__all__ = ["Moved", "TaskFamily"]

Choose = Callable[[np.ndarray, np.ndarray, int], np.ndarray]
"""Actions `(N,)` from tasks `(N,)`, states `(N,)` and the time."""

_ROWS = 1 << 15  # episodes side by side when returns are measured: what a step touches stays in the cache


class Moved(NamedTuple):
    """What a step of `N` rows led to."""

    states: np.ndarray  # (N,) int64
    rewards: np.ndarray  # (N,) float32
    ended: np.ndarray | None  # (N,) bool: the episode is over before the horizon; None where that never happens


class TaskFamily(ABC):
    """Tasks with common states, actions and observations; episodes of at most `horizon` steps.

    Attributes:
        horizon: steps after which every episode is cut.
        task_count: number of tasks.
        state_count: number of states.
        action_count: number of actions.
        observation_low: `(O,)` float32, lower bound of an observation.
        observation_high: `(O,)` float32, upper bound.
    """

    horizon: int

    @property
    @abstractmethod
    def task_count(self) -> int: ...

    @property
    @abstractmethod
    def state_count(self) -> int: ...

    @property
    @abstractmethod
    def action_count(self) -> int: ...

    @property
    @abstractmethod
    def observation_low(self) -> np.ndarray: ...

    @property
    @abstractmethod
    def observation_high(self) -> np.ndarray: ...

    @abstractmethod
    def initial(self, tasks: np.ndarray) -> np.ndarray:
        """States `(N,)` int64 in which episodes of `tasks` `(N,)` start."""

    @abstractmethod
    def move(self, tasks: np.ndarray, states: np.ndarray, actions: np.ndarray, times: np.ndarray | int) -> Moved:
        """One step of every row; `times` counts the steps of the episode before it."""

    @abstractmethod
    def observe(self, tasks: np.ndarray, states: np.ndarray) -> np.ndarray:
        """`(N, O)` float32: what the agent is shown."""

    @abstractmethod
    def best(self, tasks: np.ndarray, states: np.ndarray) -> np.ndarray:
        """`(N,)` int64: an action of the optimal policy, which knows the task."""

    @abstractmethod
    def picture(self, task: int, state: int) -> np.ndarray:
        """`(rows, columns, 3)` uint8: one pixel for each place of the room."""

    @abstractmethod
    def place(self, state: int) -> tuple[int, int]:
        """Row and column of the agent in `picture`."""

    @property
    def split_sizes(self) -> tuple[int, int]:
        """Numbers of training and of held-out tasks: four fifths and one fifth of all."""
        held_out = round(self.task_count / 5)
        return self.task_count - held_out, held_out

    def split(self, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Training and held-out tasks, int64, ascending, without a common one; the same seed gives the same split."""
        training, held_out = self.split_sizes
        chosen = np.random.default_rng(seed).choice(self.task_count, training + held_out, replace=False)
        return np.sort(chosen[held_out:]), np.sort(chosen[:held_out])

    def returns(self, tasks: np.ndarray, choose: Choose) -> np.ndarray:
        """`(N,)` float64: return of one episode of each of `tasks` with the actions of `choose`."""
        tasks = np.asarray(tasks, np.int64)
        parts = [self._returns(tasks[i : i + _ROWS], choose) for i in range(0, len(tasks), _ROWS)]
        return np.concatenate(parts)

    def _returns(self, tasks: np.ndarray, choose: Choose) -> np.ndarray:
        states, total = self.initial(tasks), np.zeros(len(tasks))
        playing = np.ones(len(tasks), bool)
        for time in range(self.horizon):
            states, rewards, ended = self.move(tasks, states, choose(tasks, states, time), time)
            total += rewards * playing
            if ended is not None:
                playing &= ~ended
        return total

    def optimal_returns(self, tasks: np.ndarray | None = None) -> np.ndarray:
        """`(N,)` return of the optimal policy on `tasks`; by default on every task."""
        tasks = np.arange(self.task_count) if tasks is None else tasks
        return self.returns(tasks, lambda tasks, states, time: self.best(tasks, states))

    def random_returns(self, episodes: int, seed: int = 0) -> np.ndarray:
        """`(episodes,)` returns of the uniformly random policy, each on a task drawn from all of them."""
        rng = np.random.default_rng(seed)
        tasks = rng.integers(self.task_count, size=episodes)
        return self.returns(tasks, lambda tasks, states, time: rng.integers(self.action_count, size=len(tasks)))

    def random_values(self, tasks: np.ndarray) -> np.ndarray:
        """`(N,)` float64: exact mean return of the uniformly random policy on `tasks`, by dynamic programming.

        Takes time and memory in proportion to `N * state_count`; `random_returns` samples instead.
        """
        shape = (len(tasks), self.state_count, self.action_count)
        rows, states, actions = (axis.ravel() for axis in np.indices(shape))
        owners, values = np.asarray(tasks)[rows], np.zeros(shape[:2])
        for time in reversed(range(self.horizon)):
            moved = self.move(owners, states, actions, time)
            following = values[rows, moved.states]
            if moved.ended is not None:
                following[moved.ended] = 0
            values = (moved.rewards + following).reshape(shape).mean(axis=2)
        return values[np.arange(len(tasks)), self.initial(np.asarray(tasks))]

    def check_task(self, task: object) -> int:
        """`task` as an integer.

        Raises:
            DataError: it is none of this family's tasks.
        """
        if isinstance(task, bool) or not isinstance(task, int | np.integer) or not 0 <= task < self.task_count:
            raise DataError(f"task: expected an integer from 0 to {self.task_count - 1}, got {task!r}")
        return int(task)


def at_least(lowest: int, **values: int) -> None:
    """Raises `DataError` for the first value below `lowest`."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
            raise DataError(f"{name}: expected an integer of at least {lowest}, got {value!r}")
