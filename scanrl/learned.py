"""What Stable-Baselines3 learns and has learned: the episodes of a learner in order, and finished policies as actors.

The library is an extra and is imported when it is asked for. Its own `load` unpickles, which runs whatever code a file
contains. Here a model is built anew for the environment, and of the file only the weights and plain JSON are read.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from scanrl.envs.make import EnvSource, make_environment
from scanrl.types import DataError, Trajectory

__all__ = ["ALGORITHMS", "LoadedActor", "learn_episodes"]

ALGORITHMS = ("a2c", "ddpg", "dqn", "ppo", "sac", "td3")
"""Learners of Stable-Baselines3, by the names in lower case."""

REPLAYING = ("DDPG", "DQN", "SAC", "TD3")
"""Learners with a replay buffer, which a finished policy has no use for."""


def learn_episodes(algorithm: str, env: EnvSource, steps: int, seed: int) -> list[Trajectory]:
    """Every whole episode of `steps` environment steps of a new learner, in the order it lived through them.

    Args:
        algorithm: one of `ALGORITHMS`, with its own defaults and a network of two layers.
        env: Gymnasium id, or a function that makes one environment.
        steps: environment steps.
        seed: of the learner and of its environment.

    Raises:
        DataError: the library is missing, or the learner does not serve the environment's actions.
    """
    learner = _algorithm(algorithm)
    recorder = Recorder(make_environment(env))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # advice to use other wrappers, which would hide steps from the recorder
            model = learner("MlpPolicy", recorder, seed=seed, device="cpu", verbose=0)
            model.learn(total_timesteps=steps)
    except (AssertionError, ValueError) as error:  # how it says that its actions are not the environment's
        raise DataError(f"{algorithm}: {' '.join(str(error).split())}") from error
    finally:
        recorder.close()
    return recorder.episodes


class LoadedActor:
    """A saved model of Stable-Baselines3 with an MLP policy as something that plays episodes.

    Args:
        path: the archive, whose name begins with that of the algorithm, e.g. `ppo.zip` or `sac-hopper.zip`.
        env: what it plays, whose spaces are the model's: Gymnasium id, or a function that makes one environment.
        sample: draw actions as in training instead of taking the most likely.

    Raises:
        DataError: the library is missing, or the file is no such model of this environment.
    """

    def __init__(self, path: str | Path, env: EnvSource, *, sample: bool = False) -> None:
        path = Path(path)
        named = re.match(r"[a-z0-9]+", path.stem.lower())
        if named is None or named[0] not in ALGORITHMS:
            raise DataError(f"sb3:{path}: expected a name that begins with one of {', '.join(ALGORITHMS)}")
        learner = _algorithm(named[0])
        if not path.is_file():
            raise DataError(f"sb3:{path}: expected a file, got {'a folder' if path.is_dir() else 'none'}")
        try:
            self.model = _rebuilt(learner, path, env)
        except Exception as error:  # archives of other versions fail in many ways
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise DataError(f"sb3:{path}: expected a model of {named[0]}, got {reason}") from error
        self.sample = sample

    def reset(self, count: int) -> None:
        """Nothing is carried from step to step."""

    def act(self, observations: np.ndarray, rewards: np.ndarray, first: np.ndarray) -> np.ndarray:
        """`(B, A)` float32, or `(B,)` int64 if discrete."""
        actions, _ = self.model.predict(observations, deterministic=not self.sample)
        return np.asarray(actions, np.int64 if actions.dtype.kind in "iu" else np.float32)


def _rebuilt(learner: Any, path: Path, env: EnvSource) -> Any:
    """A new model with the archive's weights; no pickle in it is touched."""
    # Without `data` it reads tensors alone, as torch's `weights_only` does.
    _, weights, _ = importlib.import_module("stable_baselines3.common.save_util").load_from_zip_file(
        path, load_data=False, device="cpu"
    )
    with zipfile.ZipFile(path) as archive:
        said = json.loads(archive.read("data")).get("policy_kwargs") or {}
    shape = {name: said[name] for name in ("net_arch", "n_critics", "use_sde") if name in said}
    # Classes are told by their names beside their pickles.
    named = re.fullmatch(r"<class 'torch\.nn\.modules\.activation\.(\w+)'>", str(said.get("activation_fn", "")))
    if named is not None:
        shape["activation_fn"] = getattr(importlib.import_module("torch.nn.modules.activation"), named[1])
    memory = {"buffer_size": 1} if learner.__name__ in REPLAYING else {}
    made = make_environment(env)
    try:
        model = learner("MlpPolicy", made, policy_kwargs=shape, device="cpu", verbose=0, **memory)
    finally:
        made.close()
    model.policy.load_state_dict(weights["policy"])
    return model


class Recorder(gym.Wrapper):
    """Keeps every step; an episode is whole when the environment ended it or its clock did."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.episodes: list[Trajectory] = []
        self._steps: list[tuple[Any, ...]] = []
        self._start = 0
        if isinstance(env.action_space, gym.spaces.Discrete):  # the library counts from 0, whatever the space says
            self._start = int(env.action_space.start)
            self.action_space = gym.spaces.Discrete(int(env.action_space.n))

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        observation, details = super().reset(**options)
        self._seen, self._steps = np.array(observation, np.float32), []
        return observation, details

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        discrete = isinstance(self.action_space, gym.spaces.Discrete)
        taken = np.int64(action) if discrete else np.array(action, np.float32)
        applied = int(action) + self._start if discrete else action
        observation, reward, terminated, truncated, details = super().step(applied)
        self._steps.append((self._seen, taken, np.float32(reward), bool(terminated), bool(truncated)))
        self._seen = np.array(observation, np.float32)
        if terminated or truncated:
            self.episodes.append(Trajectory(*(np.stack(column) for column in zip(*self._steps, strict=True))))
            self._steps = []
        return observation, reward, terminated, truncated, details


def _algorithm(name: str) -> Any:
    if name not in ALGORITHMS:
        raise DataError(f"learner: expected one of {', '.join(ALGORITHMS)}, got {name!r}")
    if importlib.util.find_spec("stable_baselines3") is None:
        raise DataError(f"{name}: expected the package stable-baselines3: pip install 'scanrl[sb3]'")
    return getattr(importlib.import_module("stable_baselines3"), name.upper())
