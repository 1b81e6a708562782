"""`Grid`: the square room of the dark rooms: cells, five moves, walls.

Symbols: `N` rows, `S` cells along a side. Cell `(x, y)` has the number `x * S + y`. A room whose episodes have stages
(key found, door opened) repeats its cells once per stage: state = stage * S * S + cell.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from scanrl.envs.task import at_least
from scanrl.types import DataError

__all__ = ["ACTIONS", "DOWN", "LEFT", "RIGHT", "STAY", "UP", "Grid", "Start"]

Start = Literal["centre", "corner"]

ACTIONS = 5
STAY, UP, RIGHT, DOWN, LEFT = range(ACTIONS)
_MOVES = np.array([(0, 0), (0, 1), (1, 0), (0, -1), (-1, 0)])
_TOWARDS = np.array([LEFT, LEFT, LEFT, DOWN, STAY, UP, RIGHT, RIGHT, RIGHT])  # by 3 * sign(dx) + sign(dy) + 4

FLOOR, GOAL, KEY, DOOR = ((237, 237, 232), (46, 160, 67), (226, 178, 30), (139, 90, 43))
"""Colours of pictures, RGB."""


@dataclass(frozen=True)
class Grid:
    """A room of `size` x `size` cells.

    Args:
        size: cells along a side, at least 2.
        start: where episodes begin: the centre, or cell (0, 0).
        stages: how often the cells are repeated in the states.
    """

    size: int
    start: Start
    stages: int = 1

    def __post_init__(self) -> None:
        at_least(2, size=self.size)
        if self.start not in ("centre", "corner"):
            raise DataError(f"start: expected centre or corner, got {self.start!r}")

    @property
    def cells(self) -> int:
        return self.size**2

    @property
    def states(self) -> int:
        return self.stages * self.cells

    @property
    def start_cell(self) -> int:
        middle = self.size // 2
        return middle * self.size + middle if self.start == "centre" else 0

    @cached_property
    def x(self) -> np.ndarray:
        """`(states,)` int64, first coordinate of every state."""
        return np.arange(self.states) % self.cells // self.size

    @cached_property
    def y(self) -> np.ndarray:
        """`(states,)` int64, second coordinate."""
        return np.arange(self.states) % self.size

    @cached_property
    def moves(self) -> np.ndarray:
        """`(states * 5,)` int64: the state after action `a` in state `s`, at `5 s + a`; walls stop, stages stay."""
        x, y = (np.clip(axis[:, None] + _MOVES[:, i], 0, self.size - 1) for i, axis in enumerate((self.x, self.y)))
        stage = np.arange(self.states) // self.cells
        return (stage[:, None] * self.cells + x * self.size + y).ravel()

    @cached_property
    def coordinates(self) -> np.ndarray:
        """`(states, 2)` float32, the cell's `(x, y)`."""
        return np.stack([self.x, self.y], axis=1).astype(np.float32)

    def move(self, states: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """States `(N,)` after `actions` `(N,)`."""
        return self.moves.take(states * ACTIONS + actions)

    def towards(self, states: np.ndarray, goals: np.ndarray) -> np.ndarray:
        """Actions `(N,)` of a shortest way to the cells `goals`: first along x, then along y, then stay."""
        x, y = np.sign(self.x.take(goals) - self.x.take(states)), np.sign(self.y.take(goals) - self.y.take(states))
        return _TOWARDS.take(3 * x + y + 4)

    def picture(self, marks: dict[int, tuple[int, int, int]]) -> np.ndarray:
        """`(size, size, 3)` uint8: the floor and the coloured cells of `marks`, with y upwards."""
        pixels = np.full((self.size, self.size, 3), FLOOR, np.uint8)
        for cell, colour in marks.items():
            pixels[self.place(cell)] = colour
        return pixels

    def place(self, state: int) -> tuple[int, int]:
        """Row and column of a state in `picture`."""
        return self.size - 1 - int(self.y[state]), int(self.x[state])
