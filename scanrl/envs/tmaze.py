"""The passive T-maze: the first observation tells which way to turn at the far end of a corridor.

Symbols: `N` rows, `L` steps along the corridor. The optimal policy needs the first step at the last one and nothing in
between, so that the length of the corridor is the length of the memory.

Reference: Ni et al. 2023 (When do transformers shine in RL?), arXiv 2307.03864.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from scanrl.envs.grid import FLOOR, GOAL
from scanrl.envs.task import Moved, TaskFamily, at_least

__all__ = ["TMaze"]

ACTIONS = 4
UP, RIGHT, DOWN, LEFT = range(ACTIONS)
WALL, SHOWN = (90, 90, 95), 21  # colour; columns of a picture at most


@dataclass(frozen=True)
class TMaze(TaskFamily):
    """+1 at the last step on the right arm. Task 0 has its goal up, task 1 down.

    Observations are `(at the junction, y)`: the first one shows `(0, side of the goal)`, those in the corridor
    `(0, 0)`. Actions are up, right, down, left; an episode has `L + 1` steps. States: 0 is the start with its sign,
    `1 + x` the corridor, then the upper and the lower arm.

    Args:
        length: steps along the corridor, `L`.
        penalty: every step but the last costs `1 / L` when the agent is behind one cell per step.
    """

    length: int = 50
    penalty: bool = False

    def __post_init__(self) -> None:
        at_least(1, length=self.length)

    @property
    def horizon(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]  # fixed by the length
        return self.length + 1

    @property
    def task_count(self) -> int:
        return 2

    @property
    def state_count(self) -> int:
        return self.length + 4

    @property
    def action_count(self) -> int:
        return ACTIONS

    @property
    def observation_low(self) -> np.ndarray:
        return np.array([0, -1], np.float32)

    @property
    def observation_high(self) -> np.ndarray:
        return np.array([1, 1], np.float32)

    @property
    def split_sizes(self) -> tuple[int, int]:
        return 2, 2

    def split(self, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Both tasks twice: what is held out here is the length, not the side."""
        return np.arange(2), np.arange(2)

    @cached_property
    def moves(self) -> np.ndarray:
        """`(states * 4,)` int64: the state after action `a` in state `s`, at `4 s + a`."""
        junction, upper, lower = self.length + 1, self.length + 2, self.length + 3
        following = np.arange(self.state_count)[:, None].repeat(ACTIONS, 1)
        following[0] = 1  # the sign is shown once, whatever the agent does
        following[1:junction, RIGHT] += 1
        following[2 : junction + 1, LEFT] -= 1
        following[0, RIGHT] = 2
        following[junction, [UP, DOWN]] = upper, lower
        following[upper, DOWN] = following[lower, UP] = junction
        return following.ravel()

    @cached_property
    def seen(self) -> np.ndarray:
        """`(2, states, 2)` float32: observations by task and state."""
        table = np.zeros((2, self.state_count, 2), np.float32)
        table[:, self.length + 1 :, 0] = 1
        table[:, self.length + 2 :, 1] = 1, -1
        table[:, 0, 1] = 1, -1
        return table

    def initial(self, tasks: np.ndarray) -> np.ndarray:
        return np.zeros(len(tasks), np.int64)

    def move(self, tasks: np.ndarray, states: np.ndarray, actions: np.ndarray, times: np.ndarray | int) -> Moved:
        moved = self.moves.take(states * ACTIONS + actions)
        last = np.asarray(times) == self.length
        rewards = (last & (moved == self.length + 2 + tasks)).astype(np.float32)
        if self.penalty:
            behind = ~last & (moved - 1 < np.asarray(times) + 1)
            rewards -= behind.astype(np.float32) / np.float32(self.length)
        return Moved(moved, rewards, None)

    def observe(self, tasks: np.ndarray, states: np.ndarray) -> np.ndarray:
        return self.seen.reshape(-1, 2).take(tasks * self.state_count + states, axis=0)

    def best(self, tasks: np.ndarray, states: np.ndarray) -> np.ndarray:
        """Right along the corridor, then to the goal's side."""
        return np.where(states <= self.length, RIGHT, np.where(tasks == 0, UP, DOWN))

    def picture(self, task: int, state: int) -> np.ndarray:
        """At most 21 cells of the corridor, those round the agent; the goal is drawn where the arms are in sight."""
        left, columns = self._view(state)
        pixels = np.full((3, columns, 3), WALL, np.uint8)
        pixels[1] = FLOOR
        if left + columns == self.length + 1:
            pixels[[0, 2], -1] = FLOOR
            pixels[0 if task == 0 else 2, -1] = GOAL
        return pixels

    def place(self, state: int) -> tuple[int, int]:
        left, _ = self._view(state)
        row = {self.length + 2: 0, self.length + 3: 2}.get(state, 1)
        return row, self._x(state) - left

    def _x(self, state: int) -> int:
        return min(max(state - 1, 0), self.length)

    def _view(self, state: int) -> tuple[int, int]:
        """First cell in sight and how many there are."""
        columns = min(self.length + 1, SHOWN)
        return min(max(self._x(state) - columns // 2, 0), self.length + 1 - columns), columns
