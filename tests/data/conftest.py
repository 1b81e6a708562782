"""Small recordings to test with. Every number is drawn from a seed, so that equal arguments give equal data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest

from scanrl.data.dataset import Dataset
from scanrl.types import Trajectory


def make_episode(steps: int, rng: np.random.Generator, *, choices: int = 0, size: int = 3) -> Trajectory:
    """One random episode that terminates; `choices` makes its actions discrete."""
    ended = np.arange(steps) == steps - 1
    return Trajectory(
        observations=rng.normal(size=(steps, size)).astype(np.float32),
        actions=rng.integers(choices, size=steps) if choices else rng.uniform(-1, 1, (steps, 2)).astype(np.float32),
        rewards=rng.uniform(0.5, 2, steps).astype(np.float32),
        terminations=ended,
        truncations=np.zeros(steps, np.bool_),
    )


@pytest.fixture(scope="session")
def make_dataset() -> Callable[..., Dataset]:
    def make(lengths: Sequence[int] = (7, 1, 12, 5), seed: int = 0, choices: int = 0) -> Dataset:
        rng = np.random.default_rng(seed)
        episodes = [make_episode(steps, rng, choices=choices) for steps in lengths]
        return Dataset.from_trajectories(episodes, env_id="Toy-v0", name="toy")

    return make


@pytest.fixture
def flat() -> dict[str, np.ndarray]:
    """Four episodes of 50, 30, 1 and 19 steps as flat arrays in the words of D4RL; the third ends by time limit."""
    rng = np.random.default_rng(1)
    n = 100
    ends = np.array([49, 79, 80, 99])
    columns = {
        "observations": rng.normal(size=(n, 4)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (n, 2)).astype(np.float32),
        "rewards": rng.uniform(0, 2, n).astype(np.float32),
        "terminals": np.zeros(n, np.bool_),
        "timeouts": np.zeros(n, np.bool_),
    }
    columns["terminals"][ends[[0, 1, 3]]] = True
    columns["timeouts"][ends[2]] = True
    return columns


@pytest.fixture
def write_hdf5(tmp_path) -> Callable[..., Path]:
    def write(columns: Mapping[str, np.ndarray], name: str = "log.h5", **attributes: str) -> Path:
        with h5py.File(tmp_path / name, "w") as file:
            for field, column in columns.items():
                file.create_dataset(field, data=column)
            file.attrs.update(attributes)
        return tmp_path / name

    return write
