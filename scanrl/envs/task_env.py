"""`TaskEnv`: one task at a time of a `TaskFamily`, as a Gymnasium environment."""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import Any, Literal, get_args

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from scanrl.envs.task import TaskFamily
from scanrl.types import DataError

__all__ = ["TaskEnv", "make_family"]

Tasks = Literal["all", "training", "held-out"]

AGENT = (36, 87, 201)  # RGB
_PICTURE = 360  # pixels along the longer side, about


class TaskEnv(gym.Env):
    """One task of a family; the agent is not told which.

    `reset(options={"task": 3})` starts an episode of task 3. Without, it is the task the environment was made for, or
    one drawn anew. `info["task"]` of `reset` and `step` says which it is.

    Args:
        family: `module:callable` that returns the family.
        task: the task of every episode; `None` draws one at each reset.
        tasks: which to draw from: all, or one side of the family's split.
        render_mode: `rgb_array`, or `None`.
        **options: of the family, e.g. `size`; `inspect.signature` of the callable lists them.

    Raises:
        DataError: an unknown option, a value it cannot have, or a task that does not exist.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 8}  # noqa: RUF012  # Gymnasium's own declaration

    def __init__(
        self, family: str, task: int | None = None, tasks: Tasks = "all", render_mode: str | None = None, **options: Any
    ) -> None:
        if tasks not in get_args(Tasks):
            raise DataError(f"tasks: expected one of {', '.join(get_args(Tasks))}, got {tasks!r}")
        if render_mode not in (None, "rgb_array"):
            raise DataError(f"render_mode: expected rgb_array or none, got {render_mode!r}")
        self.family = make_family(family, options)
        self.task = None if task is None else self.family.check_task(task)
        self.tasks: Tasks = tasks
        self.render_mode = render_mode
        self.observation_space = spaces.Box(self.family.observation_low, self.family.observation_high)
        self.action_space = spaces.Discrete(self.family.action_count)
        self._task: np.ndarray | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begins an episode of `options["task"]`, else of the environment's task, else of one drawn by `seed`."""
        super().reset(seed=seed)
        asked = (options or {}).get("task", self.task)
        self._task = np.array([self._drawn() if asked is None else self.family.check_task(asked)])
        self._state, self._time = self.family.initial(self._task), 0
        return self._observation(), self._info()

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One step; the episode is truncated at the horizon."""
        if self._task is None:
            raise RuntimeError("step: expected reset to have been called, got no episode")
        if not self.action_space.contains(action):
            raise DataError(f"action: expected an integer from 0 to {self.family.action_count - 1}, got {action!r}")
        moved = self.family.move(self._task, self._state, np.array([action]), self._time)
        self._state, self._time = moved.states, self._time + 1
        ended = moved.ended is not None and bool(moved.ended[0])
        cut = self._time >= self.family.horizon and not ended
        return self._observation(), float(moved.rewards[0]), ended, cut, self._info()

    def render(self) -> np.ndarray | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """`(height, width, 3)` uint8: the room with its goal and the agent; `None` without a render mode."""
        if self.render_mode is None or self._task is None:
            return None
        state = int(self._state[0])
        cells = self.family.picture(int(self._task[0]), state)
        side = max(2, _PICTURE // max(cells.shape[:2]))
        pixels = cells.repeat(side, 0).repeat(side, 1)
        if side >= 6:
            pixels[::side] = pixels[:, ::side] = 205  # lines between cells
        row, column = (side * at for at in self.family.place(state))
        across, down = np.meshgrid(*[np.arange(side) - (side - 1) / 2] * 2)
        pixels[row : row + side, column : column + side][across**2 + down**2 <= (0.38 * side) ** 2] = AGENT
        return pixels

    def _drawn(self) -> int:
        if self.tasks == "all":
            return int(self.np_random.integers(self.family.task_count))
        training, held_out = self.family.split()
        return int(self.np_random.choice(training if self.tasks == "training" else held_out))

    def _observation(self) -> np.ndarray:
        assert self._task is not None
        return self.family.observe(self._task, self._state)[0]

    def _info(self) -> dict[str, Any]:
        assert self._task is not None
        return {"task": int(self._task[0])}


def make_family(where: str, options: dict[str, Any] | None = None) -> TaskFamily:
    """The family that `module:callable` returns for `options`.

    Raises:
        DataError: an option it does not have, or a value that option cannot have.
    """
    module, _, name = where.partition(":")
    make, options = getattr(import_module(module), name), options or {}
    known = inspect.signature(make).parameters
    for option in options:
        if option not in known:
            raise DataError(f"{name}: option: expected one of task, tasks, {', '.join(known)}, got {option!r}")
    return make(**options)
