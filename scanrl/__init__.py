"""Policies from logged trajectories, with sequence models built on selective state spaces.

    import scanrl
    dataset = scanrl.load("d4rl:hopper_medium-v2.hdf5")
    run = scanrl.train("dmm-dc", dataset, steps=10_000, env="Hopper-v5")
    policy = scanrl.Policy.load(run.path, target_return=3600)
    action = policy.act(observation, reward, first)

Names are imported when they are first used, so that `import scanrl` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scanrl.data import Dataset, load, read_store, write_store
    from scanrl.evaluation import evaluate
    from scanrl.kernels import selective_scan
    from scanrl.policy import Policy
    from scanrl.run import Run
    from scanrl.training import resume, resume_seeds, train
    from scanrl.types import CorruptFile, DataError, Spec, Trajectory

__all__ = [
    "CorruptFile",
    "DataError",
    "Dataset",
    "Policy",
    "Run",
    "Spec",
    "Trajectory",
    "__version__",
    "evaluate",
    "load",
    "read_store",
    "resume",
    "resume_seeds",
    "selective_scan",
    "train",
    "write_store",
]

_HOMES = {
    "CorruptFile": "scanrl.types",
    "DataError": "scanrl.types",
    "Dataset": "scanrl.data",
    "Policy": "scanrl.policy",
    "Run": "scanrl.run",
    "Spec": "scanrl.types",
    "Trajectory": "scanrl.types",
    "evaluate": "scanrl.evaluation",
    "load": "scanrl.data",
    "read_store": "scanrl.data",
    "resume": "scanrl.training",
    "resume_seeds": "scanrl.training",
    "selective_scan": "scanrl.kernels",
    "train": "scanrl.training",
    "write_store": "scanrl.data",
}

try:
    __version__ = version("scanrl")
except PackageNotFoundError:  # a source tree on the path, never installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'scanrl' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
