"""Atari 2600 games as the papers play them, and what they ask of a return-conditioned model there.

An action is repeated for 4 frames; the picture is the maximum of the last two, grey, 84 by 84, bytes. Up to 30 no-ops
start an episode, the loss of a life does not end one, and actions are not repeated at random ("sticky") unless asked
for. Stacking 4 pictures is left to the model (`Spec.frame_stack`), so that recordings hold each picture once.

Reference: Mnih et al. 2015 (Nature 518); Machado et al. 2018, arXiv 1709.06009; Chen et al. 2021, arXiv 2106.01345.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import error as gym_error
from gymnasium import spaces

from scanrl.types import DataError

__all__ = ["TARGETS", "Atari", "area_weights"]

TARGETS: dict[str, dict[str, float]] = {
    "Breakout": {"code": 90},
    "Qbert": {"code": 14000, "paper": 2500},
    "Pong": {"code": 20},
    "Seaquest": {"code": 1150, "paper": 1450},
    "Asterix": {"code": 520},
    "Frostbite": {"code": 950},
    "Assault": {"code": 780},
    "Gopher": {"code": 2750},
}
"""Returns the papers ask for, raw points. Decision Transformer's released code and the texts of it and of Decision
MetaMamba differ for two games; the last four games are those of Decision ConvFormer and MetaMamba."""

FRAME_SKIP = 4
MOST_NO_OPS = 30
SIZE = 84
MOST_FRAMES = 108_000  # half an hour of play
STICKY = 0.25  # of Machado et al., and of the agents that recorded the DQN-replay data


class Atari(gym.Env[np.ndarray, np.int64]):
    """One game; the actions are those that do something in it.

    Args:
        game: ALE's name, e.g. `pong`.
        sticky: repeat the last action instead of the given one with probability 0.25, frame by frame.

    Raises:
        DependencyNotInstalled: ale-py is missing.
    """

    def __init__(self, game: str, sticky: bool = False, render_mode: str | None = None) -> None:
        try:
            from ale_py import ALEInterface, LoggerMode
            from ale_py.env import AtariEnv
        except ImportError:
            raise gym_error.DependencyNotInstalled("pip install 'scanrl[atari]'") from None
        if render_mode not in (None, "rgb_array"):
            raise DataError(f"render_mode: expected rgb_array or none, got {render_mode!r}")
        ALEInterface.setLoggerMode(LoggerMode.Error)  # no banner
        self._env = AtariEnv(
            game,
            obs_type="grayscale",
            frameskip=1,
            repeat_action_probability=STICKY if sticky else 0.0,
            max_num_frames_per_episode=MOST_FRAMES,
        )
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": 15, "frame_stack": 4}
        self.render_mode = render_mode
        self._actions = self._env.ale.getMinimalActionSet()
        self.action_space = spaces.Discrete(len(self._actions))
        self.observation_space = spaces.Box(0, 255, (SIZE, SIZE), np.uint8)
        height, width = self._env.ale.getScreenDims()
        self._rows, self._columns = _taps(area_weights(height, SIZE)), _taps(area_weights(width, SIZE))
        self._screens = np.zeros((2, height, width), np.uint8)

    @property
    def ale(self) -> Any:
        """The emulator, e.g. for its memory: `env.unwrapped.ale.getRAM()`."""
        return self._env.ale

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._env.reset(seed=seed)
        for _ in range(int(self.np_random.integers(MOST_NO_OPS + 1))):
            self.ale.act(0)
            if self.ale.game_over():
                self.ale.reset_game()
        self.ale.getScreenGrayscale(self._screens[0])
        self._screens[1] = 0
        return self._picture(), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        reward, over = 0.0, False
        self._screens[:] = 0
        for frame in range(FRAME_SKIP):
            reward += self.ale.act(self._actions[int(action)])
            over = self.ale.game_over()
            kept = frame - FRAME_SKIP + len(self._screens)
            if kept >= 0 or over:
                self.ale.getScreenGrayscale(self._screens[max(kept, 0)])
            if over:
                break
        truncated = self.ale.game_truncated()
        return self._picture(), reward, over and not truncated, truncated, {"lives": self.ale.lives()}

    def render(self) -> Any:
        return self.ale.getScreenRGB() if self.render_mode == "rgb_array" else None

    def _picture(self) -> np.ndarray:
        """The brighter of the two screens, each new pixel the mean of the area it covers."""
        screen = self._screens.max(0).astype(np.float32)
        # Matrix products would do the same with fifty times the arithmetic, in threads that wait for each other.
        rows = sum(weights[:, None] * screen[places] for places, weights in self._rows)
        columns = np.ascontiguousarray(np.asarray(rows).T)
        found = np.asarray(sum(weights[:, None] * columns[places] for places, weights in self._columns))
        return np.rint(found.T).astype(np.uint8, order="C")


def _taps(weights: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """`(smaller, size)` weights as pairs of places and weights `(smaller,)`, whose weighted sum they are."""
    first = (weights > 0).argmax(axis=1)
    most = int((weights > 0).sum(axis=1).max())
    found = []
    for k in range(most):
        places = np.minimum(first + k, weights.shape[1] - 1)
        inside = first + k < weights.shape[1]
        found.append((places, weights[np.arange(len(weights)), places] * inside))
    return found


def area_weights(size: int, smaller: int) -> np.ndarray:
    """`(smaller, size)` float32: what each new pixel takes of each old one, by the share of the area they have in
    common. OpenCV calls this INTER_AREA; it is what the recorders of the DQN-replay data scaled with."""
    edges = np.linspace(0, size, smaller + 1)
    old = np.arange(size)
    common = np.minimum(edges[1:, None], old + 1) - np.maximum(edges[:-1, None], old)
    return (np.clip(common, 0, None) * smaller / size).astype(np.float32)
