"""Dark Key-to-Door: an invisible key has to be found before an invisible door pays.

Symbols: `N` rows, `S` cells along a side.

Reference: Laskin et al. 2023 (Algorithm Distillation), arXiv 2210.14215.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scanrl.envs.darkroom import Room
from scanrl.envs.grid import DOOR, KEY, Start
from scanrl.envs.task import Moved

__all__ = ["KeyToDoor", "large"]


@dataclass(frozen=True)
class KeyToDoor(Room):
    """+1 for the key, then +1 for the door, once each. A task is `key * S * S + door`, both cells.

    Three stages: no key yet, key in hand, door open. Without the third the door would pay again at every visit. A door
    under the key opens at the step after.

    Args:
        size: cells along a side.
        horizon: steps of an episode.
        start: where episodes begin: the centre, or the corner (0, 0).
        ends: the episode ends when the door opens.
    """

    size: int = 9
    horizon: int = 50
    start: Start = "centre"
    ends: bool = False
    stages = 3

    @property
    def task_count(self) -> int:
        return self.grid.cells**2

    @property
    def split_sizes(self) -> tuple[int, int]:
        """1000 and 50 pairs, fewer where there are not as many."""
        held_out = min(50, self.task_count // 5)
        return min(1000, self.task_count - held_out), held_out

    def move(self, tasks: np.ndarray, states: np.ndarray, actions: np.ndarray, times: np.ndarray | int) -> Moved:
        keys, doors = np.divmod(tasks, self.grid.cells)
        moved = self.grid.move(states, actions)
        opened = moved == doors + self.grid.cells  # the door's cell in the stage with the key
        paid = opened | (moved == keys)
        return Moved(moved + self.grid.cells * paid, paid.astype(np.float32), opened if self.ends else None)

    def best(self, tasks: np.ndarray, states: np.ndarray) -> np.ndarray:
        keys, doors = np.divmod(tasks, self.grid.cells)
        return self.grid.towards(states, np.where(states < self.grid.cells, keys, doors))

    def picture(self, task: int, state: int) -> np.ndarray:
        key, door = divmod(task, self.grid.cells)
        return self.grid.picture({door: DOOR} | ({key: KEY} if state < self.grid.cells else {}))


def large(size: int = 40, horizon: int = 500, start: Start = "centre", ends: bool = False) -> KeyToDoor:
    """A room of about twenty times the area (`size=180`: twenty times the side), episodes ten times as long."""
    return KeyToDoor(size, horizon, start, ends)
