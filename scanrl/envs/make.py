"""Making a Gymnasium environment from its id, and reading its `Spec`, with errors that say what to do."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable

import gymnasium as gym
from gymnasium import error as gym_error
from gymnasium import spaces

from scanrl.types import DataError, Spec

__all__ = ["EnvSource", "environment_id", "environment_spec", "make_environment", "one_line"]

EnvSource = str | Callable[[], gym.Env]
"""A Gymnasium id, or a function that makes a new environment each time it is called."""


def environment_spec(env: EnvSource | gym.Env) -> Spec:
    """Shapes and kinds of an environment, from its spaces.

    Raises:
        DataError: the observation space is not a Box, or the action space neither a Box of one axis nor Discrete.
    """
    if isinstance(env, gym.Env):
        return _spec(env)
    made = make_environment(env)
    try:
        return _spec(made)
    finally:
        made.close()


def _spec(env: gym.Env) -> Spec:
    name, seen, taken = environment_id(env), env.observation_space, env.action_space
    if not isinstance(seen, spaces.Box):
        hint = "wrap it in gymnasium.wrappers.FlattenObservation"
        raise DataError(f"{name}: observation space: expected Box, got {type(seen).__name__} ({hint})")
    if isinstance(taken, spaces.Discrete):
        return Spec(seen.shape, "discrete", int(taken.n), env_id=name)
    if not isinstance(taken, spaces.Box) or len(taken.shape) != 1:
        raise DataError(f"{name}: action space: expected Discrete or Box of shape (A,), got {taken}")
    low = high = None
    if taken.is_bounded():
        low, high = (tuple(map(float, x)) for x in (taken.low, taken.high))
    return Spec(seen.shape, "continuous", taken.shape[0], low, high, name)


def environment_id(env: gym.Env) -> str:
    """Gymnasium id with its version, or the class name of an environment that has none."""
    return env.spec.id if env.spec is not None else type(env.unwrapped).__name__


def make_environment(env: EnvSource) -> gym.Env:
    """A new environment.

    Raises:
        DataError: no such id (names the nearest), or its packages are missing (names what to install).
    """
    if not isinstance(env, str):
        return env()
    try:
        with warnings.catch_warnings():
            # Old versions are asked for on purpose (published scores name them); the version is in every report.
            warnings.filterwarnings("ignore", message=".*is out of date.*")
            return gym.make(env, disable_env_checker=True)  # we check more than it does, and keep the episode number
    except gym_error.UnregisteredEnv as error:
        near = difflib.get_close_matches(env, list(gym.registry), n=1, cutoff=0.6)
        hint = f"did you mean {near[0]}?" if near else "see gymnasium.pprint_registry()"
        raise DataError(f"{env}: no such environment; {hint}") from error
    except gym_error.DependencyNotInstalled as error:
        fix = "pip install 'scanrl[mujoco]'" if "mujoco" in str(error).lower() else one_line(error)
        raise DataError(f"{env}: a package it needs is missing: {fix}") from error
    except DataError as error:
        raise DataError(f"{env}: {error}") from None
    except Exception as error:  # registered environments are other people's code
        raise DataError(f"{env}: cannot be made: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """`RuntimeError: first line of its message`."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
