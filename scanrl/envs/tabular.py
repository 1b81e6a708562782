"""Learners with tables instead of networks, many of them side by side in numpy, and policies that stand for learners.

Symbols: `N` learners side by side.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from scanrl.envs.task import Moved, TaskFamily

__all__ = ["NoiseLearner", "QLearner", "RandomLearner", "TabularLearner"]


class TabularLearner(ABC):
    """`N` learners that see the whole state, the hidden part too, each on a task of its own.

    Args:
        family: where they learn.
        tasks: `(N,)` int64, the task of each.
        rng: what their own initial values are drawn from.
    """

    explores = True
    """Whether a share of its actions is random, which falls over its history."""

    def __init__(self, family: TaskFamily, tasks: np.ndarray, rng: np.random.Generator) -> None:
        self.family, self.tasks = family, tasks

    @abstractmethod
    def choose(self, states: np.ndarray) -> np.ndarray:
        """Actions `(N,)` int64 they take where they do not explore."""

    @abstractmethod
    def learn(self, states: np.ndarray, actions: np.ndarray, moved: Moved, times: np.ndarray | int = 0) -> None:
        """What one step of each teaches; `times` counts the steps of its episode before it."""

    @classmethod
    @abstractmethod
    def row_bytes(cls, family: TaskFamily) -> int:
        """Memory of one learner."""


class QLearner(TabularLearner):
    """Q-learning: `Q(s, a) += rate * (r + discount * max_a' Q(s', a') - Q(s, a))`.

    The horizon is not part of the state, so that the value at the last step is that of going on. Values start at random
    and tiny: ties are broken, differently for every learner.

    Reference: Watkins & Dayan 1992.
    """

    rate, discount = 0.5, 0.95

    def __init__(self, family: TaskFamily, tasks: np.ndarray, rng: np.random.Generator) -> None:
        super().__init__(family, tasks, rng)
        size = len(tasks) * family.state_count
        # One array per action: a maximum over actions is then a few operations on whole arrays.
        self.values = 1e-6 * rng.random((family.action_count, size), np.float32)
        self._rows = np.arange(len(tasks)) * family.state_count

    def choose(self, states: np.ndarray) -> np.ndarray:
        at = self._rows + states
        best, actions = self.values[0].take(at), np.zeros(len(at), np.int64)
        for action in range(1, len(self.values)):
            value = self.values[action].take(at)
            actions = np.where(value > best, action, actions)
            np.maximum(best, value, out=best)
        return actions

    def learn(self, states: np.ndarray, actions: np.ndarray, moved: Moved, times: np.ndarray | int = 0) -> None:
        following = self._rows + moved.states
        best = self.values[0].take(following)
        for values in self.values[1:]:
            np.maximum(best, values.take(following), out=best)
        best *= np.float32(self.discount)
        if moved.ended is not None:
            best *= ~moved.ended
        best += moved.rewards
        flat, at = self.values.reshape(-1), actions * self.values.shape[1] + (self._rows + states)
        old = flat.take(at)
        flat[at] = old + np.float32(self.rate) * (best - old)

    @classmethod
    def row_bytes(cls, family: TaskFamily) -> int:
        return 4 * family.action_count * family.state_count


class NoiseLearner(TabularLearner):
    """The optimal policy, which explores less and less: a history without any learner.

    Reference: Zisman et al. 2024 (AD-eps), arXiv 2312.12275.
    """

    def choose(self, states: np.ndarray) -> np.ndarray:
        return self.family.best(self.tasks, states)

    def learn(self, states: np.ndarray, actions: np.ndarray, moved: Moved, times: np.ndarray | int = 0) -> None:
        pass

    @classmethod
    def row_bytes(cls, family: TaskFamily) -> int:
        return 8 * family.action_count


class RandomLearner(TabularLearner):
    """Uniformly random to the end; it learns nothing. What it meets tells about its task all the same.

    Reference: Lee et al. 2023 (Decision-Pretrained Transformer), arXiv 2306.14892.
    """

    def __init__(self, family: TaskFamily, tasks: np.ndarray, rng: np.random.Generator) -> None:
        super().__init__(family, tasks, rng)
        self._rng = rng

    def choose(self, states: np.ndarray) -> np.ndarray:
        return self._rng.integers(self.family.action_count, size=len(states))

    def learn(self, states: np.ndarray, actions: np.ndarray, moved: Moved, times: np.ndarray | int = 0) -> None:
        pass

    @classmethod
    def row_bytes(cls, family: TaskFamily) -> int:
        return 8 * family.action_count
