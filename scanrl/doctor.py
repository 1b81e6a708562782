"""What this machine offers and which scan runs on it: the facts behind `scanrl doctor`."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from importlib.util import find_spec
from typing import Any

import torch

from scanrl.kernels import scan_choice

__all__ = ["EXTRAS", "diagnose"]

EXTRAS = {
    "mujoco": ("mujoco", "Hopper, Walker2d and the other MuJoCo environments"),
    "minari": ("minari", "reading local Minari datasets"),
    "plot": ("matplotlib", "plots from Python"),
    "track": ("tensorboard", "TensorBoard events beside metrics.jsonl"),
}
"""Extra -> (the module that shows it is there, what it is for)."""

LIBRARIES = ("scanrl", "torch", "triton", "numpy", "gymnasium", "safetensors", "h5py", "mujoco")


def diagnose() -> dict[str, Any]:
    """Device, scan, versions and extras as plain values."""
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
        "versions": {name: _version(name) for name in LIBRARIES},
        "extras": {name: find_spec(module) is not None for name, (module, _) in EXTRAS.items()},
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
