"""What this machine offers, which scan and which step of a policy run on it: the facts behind `scanrl doctor`."""

from __future__ import annotations

import os
import platform
from dataclasses import replace
from importlib import metadata
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from scanrl.kernels import scan_choice
from scanrl.models.build import build_model
from scanrl.models.recipes import RECIPES
from scanrl.stats import Stats
from scanrl.streams import step_choice
from scanrl.types import Spec

__all__ = ["EXTRAS", "describe_steps", "diagnose"]

EXTRAS = {
    "mujoco": ("mujoco", "Hopper, Walker2d and the other MuJoCo environments"),
    "robotics": ("gymnasium_robotics", "AntMaze"),
    "minari": ("minari", "reading local Minari datasets"),
    "atari": ("ale_py", "Atari games"),
    "plot": ("matplotlib", "plots from Python"),
    "sb3": ("stable_baselines3", "learning histories of its learners, and collecting with its models"),
    "track": ("tensorboard", "TensorBoard events beside metrics.jsonl"),
}
"""Extra -> (the module that shows it is there, what it is for)."""

LIBRARIES = ("scanrl", "torch", "triton", "numpy", "gymnasium", "safetensors", "h5py", "mujoco")


def diagnose() -> dict[str, Any]:
    """Device, scan, step of the recipes, versions and extras as plain values."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    choice = scan_choice(device)
    return {
        "device": {
            "name": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine(),
            "kind": device,
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "system": f"{platform.system()} {platform.machine()}",
            "python": platform.python_version(),
        },
        "scan": choice._asdict(),
        "step": _steps(),
        "versions": {name: _version(name) for name in LIBRARIES},
        "extras": {name: find_spec(module) is not None for name, (module, _) in EXTRAS.items()},
    }


def describe_steps(found: dict[str, dict[str, str]]) -> str:
    """One line: which recipes of `diagnose()["step"]` act natively, and what keeps the others from it."""
    slow = {name: step["reason"] for name, step in found.items() if step["impl"] != "native"}
    if len(slow) == len(found) and len(set(slow.values())) == 1:
        return f"in torch: {next(iter(slow.values()))}"
    others = "".join(f"; {name} in torch: {reason}" for name, reason in slow.items())
    return f"native for {'all recipes' if not slow else ', '.join(n for n in found if n not in slow)}{others}"


def _steps() -> dict[str, dict[str, str]]:
    """How a policy of each recipe that carries its state steps, and why; small models answer as large ones would."""
    nothing = np.zeros(1, np.float32)
    stats = Stats(nothing, nothing + 1, 1.0, -nothing - 1, nothing + 1, 1, 1.0, 1.0)
    found = {}
    for name, build in RECIPES.items():
        config = replace(build().model, width=8, max_length=1, context=1)
        found[name] = step_choice(build_model(config, Spec((1,), "continuous", 1), stats))._asdict()
    return found


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
