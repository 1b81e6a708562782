"""Environments: our own tasks, and what is needed to make and score anybody's (`make`, `reference_scores`).

Importing this package tells Gymnasium our ids: `gymnasium.make("scanrl.envs:Darkroom-v0", task=3)` does both. What an
environment needs is imported when one is made.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym

__all__ = ["ATARI_GAMES", "ENVS", "MAZES"]

ENVS: dict[str, str] = {
    "Darkroom-v0": "scanrl.envs.darkroom:Darkroom",
    "DarkroomHard-v0": "scanrl.envs.darkroom:DarkroomHard",
    "DarkroomDynamic-v0": "scanrl.envs.darkroom:DarkroomDynamic",
    "DarkroomDPT-v0": "scanrl.envs.darkroom:dpt_room",
    "DarkroomLarge-v0": "scanrl.envs.darkroom:large",
    "DarkroomHardLarge-v0": "scanrl.envs.darkroom:large_hard",
    "KeyToDoor-v0": "scanrl.envs.keydoor:KeyToDoor",
    "KeyToDoorLarge-v0": "scanrl.envs.keydoor:large",
    "TMaze-v0": "scanrl.envs.tmaze:TMaze",
}
"""Our own environments: Gymnasium id -> `module:callable` that returns its `TaskFamily`. A new one is one line here."""

MAZES: dict[str, dict[str, Any]] = {
    "antmaze-umaze-v4": {"version": 4, "diverse": False},
    "antmaze-umaze-v5": {"version": 5, "diverse": False},
    "antmaze-umaze-diverse-v4": {"version": 4, "diverse": True},
    "antmaze-umaze-diverse-v5": {"version": 5, "diverse": True},
}
"""Mazes of gymnasium-robotics with the observations of D4RL's recordings: Gymnasium id -> arguments of `AntMaze`."""

MAZE_STEPS = 700
"""Length after which an episode in a maze is cut, as in gymnasium-robotics."""

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


def _register() -> None:
    # By name: the modules are imported when an environment is made.
    for env_id, family in ENVS.items():
        _add(env_id, "scanrl.envs.task_env:TaskEnv", family=family)
    for env_id, arguments in MAZES.items():
        _add(env_id, "scanrl.envs.antmaze:AntMaze", MAZE_STEPS, **arguments)
    for name, game in ATARI_GAMES.items():
        for suffix, sticky in (("", False), ("-sticky", True)):
            _add(f"scanrl/{name}{suffix}-v0", "scanrl.envs.atari:Atari", game=game, sticky=sticky)


def _add(env_id: str, entry: str, most_steps: int | None = None, **arguments: Any) -> None:
    if env_id not in gym.registry:
        gym.register(env_id, entry, max_episode_steps=most_steps, kwargs=arguments)


_register()
