"""One thread for every test: two spinning OpenMP threads on a busy two-core machine are tens of times slower."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from hypothesis import settings

from scanrl.batch import Batch
from scanrl.data import Dataset
from scanrl.kernels import native
from scanrl.models.recipes import RECIPES
from scanrl.stats import Stats
from scanrl.types import Spec, Trajectory

torch.set_num_threads(1)

if native.extension()[0] is None:
    # Without a compiler the tests run on the reference, asked for by name: the warning of a silent fallback, which has
    # its own tests, would otherwise be an error in every other one.
    os.environ.setdefault("SCANRL_SCAN", "reference")

# The same examples every time: a red run is then about the change and not about luck. HYPOTHESIS_PROFILE=explore draws.
settings.register_profile("fixed", derandomize=True)
settings.register_profile("explore", derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))

BOX = Spec((5,), "continuous", 2, (-1.0, -2.0), (1.0, 4.0))
CHOICE = Spec((5,), "discrete", 3)


SEQUENCE_RECIPES = [name for name, build in RECIPES.items() if name not in ("dmh", "dpt")]
"""Those that read steps in their order, with one network; the others have laws of their own, beside these in
tests/models/."""


def make_stats(spec: Spec) -> Stats:
    """Statistics that move and scale everything, so that a forgotten scaling shows."""
    size = spec.observation_size
    low = None if spec.action_low is None else np.asarray(spec.action_low, np.float32)
    high = None if spec.action_high is None else np.asarray(spec.action_high, np.float32)
    return Stats(
        observation_mean=np.linspace(-1, 1, size).astype(np.float32),
        observation_std=np.linspace(0.5, 2, size).astype(np.float32),
        return_scale=10.0,
        action_low=low,
        action_high=high,
        max_length=30,
        return_max=25.0,
        return_mean=10.0,
        reward_scale=4.0,
    )


def make_batch(spec: Spec, batch: int, steps: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Batch:
    """Random windows without padding."""
    g = torch.Generator().manual_seed(seed)
    if spec.action_kind == "continuous":
        actions = torch.rand(batch, steps, spec.action_size, generator=g, dtype=dtype) * 2 - 1
    else:
        actions = torch.randint(spec.action_size, (batch, steps), generator=g)
    return Batch(
        observations=torch.randn(batch, steps, *spec.observation_shape, generator=g, dtype=dtype),
        actions=actions,
        rewards=torch.randn(batch, steps, generator=g, dtype=dtype),
        returns_to_go=10 * torch.randn(batch, steps, generator=g, dtype=dtype),
        timesteps=torch.arange(steps).expand(batch, steps),
        mask=torch.ones(batch, steps, dtype=torch.bool),
    )


def make_queries(spec: Spec, batch: int, steps: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Batch:
    """Random transitions behind random queries; every fourth one is the last of its episode."""
    examples, other = make_batch(spec, batch, steps, seed, dtype), make_batch(spec, batch, steps + 1, seed + 1, dtype)
    followed = (torch.arange(steps) % 4 < 3).expand(batch, steps)
    shown = followed.view(batch, steps, *(1,) * len(spec.observation_shape))
    return examples._replace(
        next_observations=other.observations[:, 1:] * shown,
        followed=followed,
        queries=other.observations[:, 0],
        targets=other.actions[:, 0],
    )


def make_dataset(spec: Spec = BOX, episodes: int = 12, seed: int = 0, longest: int = 30) -> Dataset:
    """Random episodes of 3 to `longest` steps."""
    rng = np.random.default_rng(seed)
    trajectories = []
    for index in range(episodes):
        steps = int(rng.integers(3, longest + 1))
        ends = np.zeros(steps, bool)
        ends[-1] = True
        if spec.action_kind == "continuous":
            actions = rng.uniform(-1, 1, (steps, spec.action_size)).astype(np.float32)
        else:
            actions = rng.integers(0, spec.action_size, steps)
        trajectories.append(
            Trajectory(
                rng.normal(size=(steps, *spec.observation_shape)).astype(np.float32),
                actions,
                rng.normal(size=steps).astype(np.float32),
                ends if index % 2 else np.zeros(steps, bool),
                np.zeros(steps, bool) if index % 2 else ends,
            )
        )
    return Dataset.from_trajectories(trajectories, spec=spec, name="made-up")


@pytest.fixture
def box() -> Spec:
    return BOX


@pytest.fixture
def dataset() -> Dataset:
    return make_dataset()


@pytest.fixture
def no_flushing(monkeypatch) -> None:
    """Waiting for the disk is most of the time of a small run."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="session")
def reference(tmp_path_factory) -> Path:
    """An uninterrupted run; nobody changes it."""
    from tests.runs import fit

    path = tmp_path_factory.mktemp("reference") / "run"
    fit(path)
    return path


@pytest.fixture
def elsewhere(tmp_path, monkeypatch, no_flushing) -> Path:
    """An empty working directory and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def failing(capsys, elsewhere):
    """Run a command that must fail: one line on standard error, nothing on standard output, nothing written."""
    from scanrl.cli import main

    def run(*words, code=2):
        before = sorted(elsewhere.rglob("*"))
        assert main(list(words)) == code
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith("scanrl: ")
        assert said.err.count("\n") == 1, said.err
        assert "Traceback" not in said.err
        assert sorted(elsewhere.rglob("*")) == before
        return said.err

    return run
