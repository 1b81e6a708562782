"""Dark rooms: the agent sees its own cell and nothing else, and has to find out where the goal is.

Symbols: `N` rows, `S` cells along a side. Observations are the cell's `(x, y)`; actions are stay, up, right, down,
left. `Darkroom` pays at every step that ends on the goal, `DarkroomHard` only at the first, `DarkroomDynamic` has one
goal and permutes what the actions do.

Reference: Laskin et al. 2023 (Algorithm Distillation), arXiv 2210.14215; the permuted room and the one of ten cells
with its start in the corner: Lee et al. 2023 (Decision-Pretrained Transformer), arXiv 2306.14892; large rooms: Huang et
al. 2024 (Decision Mamba-Hybrid), arXiv 2406.00079.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import permutations

import numpy as np

from scanrl.envs.grid import ACTIONS, GOAL, Grid, Start
from scanrl.envs.task import Moved, TaskFamily, at_least

__all__ = ["Darkroom", "DarkroomDynamic", "DarkroomHard", "dpt_room", "large", "large_hard"]


class Room(TaskFamily):
    """What all square rooms share."""

    size: int
    horizon: int
    start: Start
    stages = 1

    def __post_init__(self) -> None:
        at_least(1, horizon=self.horizon)
        _ = self.grid  # which refuses a size or a start that there is not

    @cached_property
    def grid(self) -> Grid:
        return Grid(self.size, self.start, self.stages)

    @property
    def task_count(self) -> int:
        return self.grid.cells

    @property
    def state_count(self) -> int:
        return self.grid.states

    @property
    def action_count(self) -> int:
        return ACTIONS

    @property
    def observation_low(self) -> np.ndarray:
        return np.zeros(2, np.float32)

    @property
    def observation_high(self) -> np.ndarray:
        return np.full(2, self.size - 1, np.float32)

    def initial(self, tasks: np.ndarray) -> np.ndarray:
        return np.full(len(tasks), self.grid.start_cell)

    def observe(self, tasks: np.ndarray, states: np.ndarray) -> np.ndarray:
        return self.grid.coordinates.take(states, axis=0)

    def place(self, state: int) -> tuple[int, int]:
        return self.grid.place(state)


@dataclass(frozen=True)
class Darkroom(Room):
    """+1 at every step that ends on the goal. A task is the cell of the goal.

    Args:
        size: cells along a side.
        horizon: steps of an episode.
        start: where episodes begin: the centre, or the corner (0, 0).
    """

    size: int = 9
    horizon: int = 20
    start: Start = "centre"

    def move(self, tasks: np.ndarray, states: np.ndarray, actions: np.ndarray, times: np.ndarray | int) -> Moved:
        moved = self.grid.move(states, actions)
        return Moved(moved, (moved == tasks).astype(np.float32), None)

    def best(self, tasks: np.ndarray, states: np.ndarray) -> np.ndarray:
        return self.grid.towards(states, tasks)

    def picture(self, task: int, state: int) -> np.ndarray:
        return self.grid.picture({task: GOAL})


@dataclass(frozen=True)
class DarkroomHard(Room):
    """+1 at the first step that ends on the goal. A task is the cell of the goal; a second stage means it was found.

    Args:
        size: cells along a side.
        horizon: steps of an episode.
        start: where episodes begin: the centre, or the corner (0, 0).
        ends: the episode ends when the goal is found.
    """

    size: int = 9
    horizon: int = 20
    start: Start = "centre"
    ends: bool = False
    stages = 2

    def move(self, tasks: np.ndarray, states: np.ndarray, actions: np.ndarray, times: np.ndarray | int) -> Moved:
        moved = self.grid.move(states, actions)
        found = moved == tasks  # a state of the second stage has a higher number than any goal
        return Moved(moved + self.grid.cells * found, found.astype(np.float32), found if self.ends else None)

    def best(self, tasks: np.ndarray, states: np.ndarray) -> np.ndarray:
        return self.grid.towards(states, tasks)

    def picture(self, task: int, state: int) -> np.ndarray:
        return self.grid.picture({task: GOAL})


@dataclass(frozen=True)
class DarkroomDynamic(Room):
    """+1 at every step that ends on the goal, the corner opposite to (0, 0). A task is one of the 120 permutations of
    what the five actions do.

    Args:
        size: cells along a side.
        horizon: steps of an episode.
        start: where episodes begin: the centre, or the corner (0, 0).
    """

    size: int = 10
    horizon: int = 100
    start: Start = "corner"

    @cached_property
    def effects(self) -> np.ndarray:
        """`(120, 5)` int64: what action `a` does in task `p`."""
        return np.array(list(permutations(range(ACTIONS))))

    @cached_property
    def actions_for(self) -> np.ndarray:
        """`(120, 5)` int64: the action that has an effect, the inverse of `effects`."""
        return np.argsort(self.effects, axis=1)

    @property
    def task_count(self) -> int:
        return len(self.effects)

    @property
    def split_sizes(self) -> tuple[int, int]:
        return 100, 20

    def move(self, tasks: np.ndarray, states: np.ndarray, actions: np.ndarray, times: np.ndarray | int) -> Moved:
        moved = self.grid.move(states, self.effects.take(tasks * ACTIONS + actions))
        return Moved(moved, (moved == self.grid.cells - 1).astype(np.float32), None)

    def best(self, tasks: np.ndarray, states: np.ndarray) -> np.ndarray:
        goals = np.full(len(states), self.grid.cells - 1)
        return self.actions_for.take(tasks * ACTIONS + self.grid.towards(states, goals))

    def picture(self, task: int, state: int) -> np.ndarray:
        return self.grid.picture({self.grid.cells - 1: GOAL})


def dpt_room(size: int = 10, horizon: int = 100, start: Start = "corner") -> Darkroom:
    """The room of the Decision-Pretrained Transformer: ten cells along a side, start in the corner."""
    return Darkroom(size, horizon, start)


def large(size: int = 40, horizon: int = 200, start: Start = "centre") -> Darkroom:
    """A room of about twenty times the area (`size=180`: twenty times the side), episodes ten times as long."""
    return Darkroom(size, horizon, start)


def large_hard(size: int = 40, horizon: int = 200, start: Start = "centre", ends: bool = False) -> DarkroomHard:
    """`DarkroomHard` in a room of about twenty times the area, episodes ten times as long."""
    return DarkroomHard(size, horizon, start, ends)
