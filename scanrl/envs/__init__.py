"""Environments: our own tasks, and what is needed to make and score anybody's (`make`, `reference_scores`).

Importing this package tells Gymnasium our ids: `gymnasium.make("scanrl.envs:Darkroom-v0", task=3)` does both.
"""

from __future__ import annotations

import gymnasium as gym

__all__ = ["ENVS"]

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


def _register() -> None:
    for env_id, family in ENVS.items():
        if env_id not in gym.registry:
            # By name: the modules are imported when an environment is made.
            gym.register(env_id, "scanrl.envs.task_env:TaskEnv", kwargs={"family": family})


_register()
