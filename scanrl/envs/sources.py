"""Learning histories: what tabular learners live through on the tasks of a family, many of them side by side in numpy.

Symbols: `N` learners side by side, `T` steps of a history, `n` steps of all histories, `E` episodes.

A history is the ordered list of episodes of one learner on one task. It shows how somebody gets better; a sequence
model that predicts its actions gets better too, without a gradient step (Laskin et al. 2023, arXiv 2210.14215).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from scanrl.envs.posterior import PosteriorLearner
from scanrl.envs.tabular import NoiseLearner, QLearner, RandomLearner, TabularLearner
from scanrl.envs.task import TaskFamily, at_least
from scanrl.types import DataError

__all__ = ["LEARNERS", "Histories", "learn_histories"]

_BLOCK_BYTES = 1 << 22
"""Memory of the learners stepped together. More than the caches hold is slower; fewer learners pay numpy's calls."""
_FEWEST_ROWS, _MOST_ROWS, _DRAWS = 64, 4096, 256


class Histories(NamedTuple):
    """Flat columns of whole episodes, each history's in order, and whose they are."""

    observations: np.ndarray  # (n, O) float32
    actions: np.ndarray  # (n,) int64
    rewards: np.ndarray  # (n,) float32
    terminations: np.ndarray  # (n,) bool
    truncations: np.ndarray  # (n,) bool
    offsets: np.ndarray  # (E + 1,) int64
    tasks: np.ndarray  # (E,) int64: the task of an episode
    histories: np.ndarray  # (E,) int64: its learner, counted from 0
    optimal_actions: np.ndarray | None = None  # (n,) int64, where they were asked for


LEARNERS: dict[str, type[TabularLearner]] = {
    "q": QLearner,
    "noise": NoiseLearner,
    "random": RandomLearner,
    "posterior": PosteriorLearner,
}
"""Learners by name; a new one is a class above and a line here."""


def learn_histories(
    family: TaskFamily,
    tasks: np.ndarray,
    *,
    learner: str,
    episodes: int,
    repeats: int = 1,
    explore_until: float = 1.0,
    optimal: bool = False,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Histories:
    """Histories of learners whose share of random actions falls evenly, from 1 at the first step to 0.

    Args:
        family: where they learn.
        tasks: tasks to learn, one after the other in the result.
        learner: a name of `LEARNERS`.
        episodes: length of a history, in episodes of the full horizon. Where episodes may end early a history holds
            more of them in the same number of steps; one that is cut by the end is left out.
        repeats: learners for each task, each with a history of its own.
        explore_until: where in a history the share reaches 0, as a fraction of its steps; 1 is the last one.
        optimal: also note what the optimal policy would do at every step.
        seed: of everything random.
        progress: called with the number of finished histories.

    Raises:
        DataError: no such learner, no task, a number below 1, or a fraction that is not above 0 and at most 1.
    """
    if learner not in LEARNERS:
        raise DataError(f"learner: expected one of {', '.join(LEARNERS)}, got {learner!r}")
    at_least(1, tasks=len(tasks), episodes=episodes, repeats=repeats)
    if not 0 < explore_until <= 1:
        raise DataError(f"explore_until: expected a fraction above 0 and at most 1, got {explore_until:g}")
    kind, owners = LEARNERS[learner], np.repeat(np.asarray(tasks, np.int64), repeats)
    steps = episodes * family.horizon
    records = _Records(family, len(owners), steps, max(explore_until * (steps - 1), 1), optimal)
    for start, stop in _blocks(len(owners), kind.row_bytes(family)):
        rng = np.random.default_rng([seed, start])
        records.live(kind(family, owners[start:stop], rng), slice(start, stop), rng)
        if progress is not None:
            progress(stop)
    return records.histories(owners)


def _blocks(rows: int, row_bytes: int) -> Iterator[tuple[int, int]]:
    size = min(max(_BLOCK_BYTES // row_bytes, _FEWEST_ROWS), _MOST_ROWS)
    return ((start, min(start + size, rows)) for start in range(0, rows, size))


class _Records:
    """What all learners live through, history after history."""

    def __init__(self, family: TaskFamily, rows: int, steps: int, exploring: float, optimal: bool) -> None:
        self.family, self.steps, self.exploring = family, steps, exploring
        self.observations = np.empty((rows, steps, len(family.observation_low)), np.float32)
        self.actions = np.empty((rows, steps), np.int64)
        self.rewards = np.empty((rows, steps), np.float32)
        self.terminations = np.zeros((rows, steps), bool)
        self.truncations = np.zeros((rows, steps), bool)
        self.optimal = np.empty((rows, steps), np.int64) if optimal else None

    def live(self, learner: TabularLearner, rows: slice, rng: np.random.Generator) -> None:
        """All steps of the learners that are `rows`, a few hundred at a time."""
        family, tasks = self.family, learner.tasks
        begun, horizon = family.initial(tasks), family.horizon
        states, times = begun, np.zeros(len(tasks), np.int64)
        for start in range(0, self.steps, _DRAWS):
            block = min(_DRAWS, self.steps - start)
            draws = rng.random((block, len(tasks)), np.float32)
            seen = np.empty((block, len(tasks)), np.int64)
            taken, earned = np.empty_like(seen), np.empty_like(draws)
            over, cut = np.zeros(draws.shape, bool), np.zeros(draws.shape, bool)
            for i in range(block):
                chance = 1 - (start + i) / self.exploring if learner.explores else 0.0
                seen[i] = states
                taken[i] = _explore(learner.choose(states), draws[i], chance, family.action_count)
                moved = family.move(tasks, states, taken[i], times)
                learner.learn(states, taken[i], moved, times)
                earned[i], states, times = moved.rewards, moved.states, times + 1
                cut[i] = times >= horizon
                if moved.ended is not None:
                    over[i] = moved.ended
                    cut[i] &= ~moved.ended
                if (done := over[i] | cut[i]).any():
                    states, times = np.where(done, begun, states), np.where(done, 0, times)
            part = np.s_[rows, start : start + block]
            owners = np.broadcast_to(tasks[:, None], seen.T.shape).ravel()
            self.observations[part] = family.observe(owners, seen.T.ravel()).reshape(*seen.T.shape, -1)
            if self.optimal is not None:
                self.optimal[part] = family.best(owners, seen.T.ravel()).reshape(seen.T.shape)
            self.actions[part], self.rewards[part] = taken.T, earned.T
            self.terminations[part], self.truncations[part] = over.T, cut.T

    def histories(self, owners: np.ndarray) -> Histories:
        """Flat columns of the whole episodes."""
        ends = self.terminations | self.truncations
        whole = self.steps - np.argmax(ends[:, ::-1], axis=1)  # steps up to the last end; the horizon fits in at least
        kept = (np.arange(self.steps) < whole[:, None]).ravel()
        columns = {
            "observations": self.observations.reshape(kept.size, -1),
            "actions": self.actions.ravel(),
            "rewards": self.rewards.ravel(),
            "terminations": self.terminations.ravel(),
            "truncations": self.truncations.ravel(),
        }
        if self.optimal is not None:
            columns["optimal_actions"] = self.optimal.ravel()
        if not kept.all():
            columns = {field: column[kept] for field, column in columns.items()}
        last = np.flatnonzero(columns["terminations"] | columns["truncations"])
        learners = np.repeat(np.arange(len(owners)), ends.sum(axis=1))
        offsets = np.concatenate([[0], last + 1])
        return Histories(**columns, offsets=offsets, tasks=owners[learners], histories=learners)


def _explore(actions: np.ndarray, draws: np.ndarray, chance: float, count: int) -> np.ndarray:
    """`actions`, replaced by uniformly random ones where the uniform `draws` `(N,)` are below `chance`.

    One draw does for both questions: below the threshold it is uniform up to it.
    """
    if chance <= 0:
        return actions
    random = (draws * np.float32(count / chance)).astype(np.int64)
    return np.where(random < count, random, actions)
