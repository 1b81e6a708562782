"""Environments with every kind of space we take, for tests of data, models, policies and rollouts."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
from gymnasium import spaces

MOVE = spaces.Box(np.array([-3.0, 10.0], np.float32), np.array([-1.0, 30.0], np.float32))
DICT_ACTION = spaces.Dict({"move": MOVE, "fire": spaces.Discrete(3, start=2), "gears": spaces.MultiDiscrete([2, 4])})
TUPLE_ACTION = spaces.Tuple((spaces.Discrete(4), spaces.Box(0.0, 2.0, (2, 2), np.float64)))
SEVERAL = spaces.MultiDiscrete([3, 2, 5], start=[0, 1, -2])
SWITCHES = spaces.MultiBinary(3)
VECTOR = spaces.Box(-1.0, 1.0, (4,), np.float32)
DICT_SEEN = spaces.Dict(
    {"place": spaces.Box(-9.0, 9.0, (2, 2), np.float64), "room": spaces.Discrete(3), "keys": spaces.MultiBinary(2)}
)
IMAGE = spaces.Box(0, 255, (36, 36), np.uint8)
COLOUR = spaces.Box(0, 255, (36, 40, 3), np.uint8)
COLOUR_FIRST = spaces.Box(0, 255, (3, 36, 40), np.uint8)

ACTIONS = {"dict": DICT_ACTION, "tuple": TUPLE_ACTION, "several": SEVERAL, "switches": SWITCHES}


class Sampled(gym.Env):
    """Shows draws from a space for some steps and refuses actions that are not of its own."""

    def __init__(self, seen: spaces.Space = VECTOR, taken: spaces.Space = DICT_ACTION, stack: int = 1, steps: int = 7):
        self.observation_space, self.action_space = seen, taken
        self.metadata = {"render_modes": [], "frame_stack": stack}
        self.steps = steps

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.at = 0
        self.taken: list = []
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.taken.append(action)
        self.at += 1
        return self.observation_space.sample(), float(self.at), self.at == self.steps, False, {}
