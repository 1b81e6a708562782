"""Environments: our own tasks, and what is needed to make and score anybody's (`make`, `reference_scores`).

Importing this package tells Gymnasium the ids; what an environment needs is imported when one is made.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym

__all__ = ["ATARI_GAMES", "ENVS", "MAZES"]

ENVS: dict[str, str] = {}
"""Our own environments: Gymnasium id -> `module:Class`. A new one is one file and one line here."""

MAZES: dict[str, dict[str, Any]] = {
    "antmaze-umaze-v4": {"version": 4, "diverse": False},
    "antmaze-umaze-v5": {"version": 5, "diverse": False},
    "antmaze-umaze-diverse-v4": {"version": 4, "diverse": True},
    "antmaze-umaze-diverse-v5": {"version": 5, "diverse": True},
}
"""Mazes of gymnasium-robotics with the observations of D4RL's recordings: Gymnasium id -> arguments of `AntMaze`."""

MAZE_STEPS = 700
"""Length after which an episode in a maze is cut, as in gymnasium-robotics."""


def _register_mazes() -> None:
    for env_id, arguments in MAZES.items():
        if env_id not in gym.registry:
            gym.register(env_id, "scanrl.envs.antmaze:AntMaze", max_episode_steps=MAZE_STEPS, kwargs=arguments)

ATARI_GAMES: dict[str, str] = {
    "Assault": "assault",
    "Asterix": "asterix",
    "Breakout": "breakout",
    "Frostbite": "frostbite",
    "Gopher": "gopher",
    "Pong": "pong",
    "Qbert": "qbert",
    "Seaquest": "seaquest",
}
"""The papers' Atari games, with their names in ALE: `scanrl/Pong-v0`, and `scanrl/Pong-sticky-v0` with actions that are
repeated at random."""


def _register_atari() -> None:
    for name, game in ATARI_GAMES.items():
        for suffix, sticky in (("", False), ("-sticky", True)):
            env_id = f"scanrl/{name}{suffix}-v0"
            if env_id not in gym.registry:
                gym.register(env_id, "scanrl.envs.atari:Atari", kwargs={"game": game, "sticky": sticky})


_register_mazes()
_register_atari()
