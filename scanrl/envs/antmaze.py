"""An ant in a maze, observed as in D4RL's recordings: `scanrl.envs.MAZES` lists the ids.

The simulation is gymnasium-robotics' (extra `robotics`), whose observation is a dictionary with the goal in it. D4RL's
is a vector without: position, then joint angles and velocities. A policy knows the goal only as far as its data do.

Coordinates are those of gymnasium-robotics: the origin is the middle of the maze, a cell is 4 wide, y points up. D4RL's
have their origin where the ant starts, as with `origin="start"`: the U runs from (0, 0) by (8, 0) and (8, 8) to (0, 8).

Reference: Fu et al. 2020, D4RL, https://arxiv.org/abs/2004.07219.
"""

from __future__ import annotations

import contextlib
import importlib
import io
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from scanrl.types import DataError

__all__ = ["AntMaze"]

BODY = 27  # joint angles and velocities; v5 of the environment adds contact forces behind them
START, GOAL = np.array([3, 1]), np.array([1, 1])  # cells, row and column: the two ends of the U


class AntMaze(gym.Env[np.ndarray, np.ndarray]):
    """A U-shaped maze in which reaching the goal pays 1 and ends the episode, and everything else 0.

    The mean return over episodes is therefore the success rate. Observation `(29,)` float32: x and y (2), then angles
    and velocities of the body (27). Action `(8,)`: torques in [-1, 1].

    Args:
        version: 4 or 5.
        origin: of x and y: the middle of the `maze`, or the middle of the cell at the `start` of the U, as in D4RL.
        diverse: draw start and goal anew in each episode; otherwise the ant runs from one end of the U to the other.
            Both are moved by up to a quarter of a cell along each axis either way.
        render_mode: of the simulation.

    Raises:
        DataError: gymnasium-robotics is not installed.
    """

    def __init__(
        self, version: Literal[4, 5], diverse: bool, render_mode: str | None = None, origin: str = "maze"
    ) -> None:
        if origin not in ("maze", "start"):
            raise DataError(f"origin: expected maze or start, got {origin!r}")
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # it speaks of other environments
                module = importlib.import_module(f"gymnasium_robotics.envs.maze.ant_maze_v{version}")
        except ImportError:
            raise DataError("expected the package gymnasium-robotics: pip install 'scanrl[robotics]'") from None
        self._inner = module.AntMazeEnv(continuing_task=False, render_mode=render_mode)
        self._cells = None if diverse else {"reset_cell": START, "goal_cell": GOAL}
        self._origin = np.zeros(2) if origin == "maze" else self._inner.maze.cell_rowcol_to_xy(START)
        self.render_mode = render_mode
        self.metadata = self._inner.metadata
        self.observation_space = spaces.Box(-np.inf, np.inf, (2 + BODY,), np.float32)
        self.action_space = self._inner.action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """A new episode; `options` may name other cells, as gymnasium-robotics takes them."""
        super().reset(seed=seed)
        observation, about = self._inner.reset(seed=seed, options=options or self._cells)
        return self._flat(observation), about

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One step; `success` in what it tells beside."""
        observation, reward, terminated, truncated, about = self._inner.step(action)
        return self._flat(observation), float(reward), bool(terminated), bool(truncated), about

    def render(self) -> Any:
        """As the simulation draws it."""
        return self._inner.render()

    def close(self) -> None:
        """Frees the simulation."""
        self._inner.close()

    def _flat(self, observation: dict[str, np.ndarray]) -> np.ndarray:
        place = observation["achieved_goal"] - self._origin
        return np.concatenate([place, observation["observation"][:BODY]]).astype(np.float32)
