"""Making a Gymnasium environment from its id, and reading its `Spec`, with errors that say what to do."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym
from gymnasium import error as gym_error

from scanrl.envs.ids import id_of, split_id
from scanrl.spaces import spec_of
from scanrl.types import DataError, Spec

__all__ = ["EnvSource", "environment_spec", "make_environment", "one_line"]

EnvSource = str | Callable[[], gym.Env]
"""A Gymnasium id, with options behind an `@` if any (`scanrl.envs.ids`), or a function that makes a new environment
each time it is called."""


def environment_spec(env: EnvSource | gym.Env, *, like: Spec | None = None) -> Spec:
    """Shapes and kinds of an environment, from its spaces.

    Args:
        like: whose entries of a dictionary observation to keep, in its order, where it names some.

    Raises:
        DataError: a space that has no `Spec` (see `scanrl.spaces.spec_of`).
    """
    keys = [part.name for part in like.observation_parts if part.name] if like is not None else []
    if isinstance(env, gym.Env):
        return _spec(env, keys or None)
    made = make_environment(env)
    try:
        return _spec(made, keys or None, env)
    finally:
        made.close()


def _spec(env: gym.Env, keys: Sequence[str] | None, asked: EnvSource | None = None) -> Spec:
    name, stack = id_of(env, asked), env.metadata.get("frame_stack", 1)
    return spec_of(name, env.observation_space, env.action_space, env_id=name, observation_keys=keys, frame_stack=stack)


def make_environment(env: EnvSource, options: Mapping[str, Any] | None = None) -> gym.Env:
    """A new environment; `options` go before those of the id.

    Raises:
        DataError: no such id (names the nearest), its packages are missing (names what to install), or it cannot be
            made with these options.
    """
    if not isinstance(env, str):
        return env(**(options or {}))
    env, own = split_id(env)
    given = {**own, **(options or {})}
    try:
        with warnings.catch_warnings():
            # Old versions are asked for on purpose (published scores name them); the version is in every report.
            warnings.filterwarnings("ignore", message=".*is out of date.*")
            # Gymnasium's checker looks at less than we do, and forgets the number of the episode.
            return gym.make(env, disable_env_checker=True, **given)
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
        told = f" with {given}" if given else ""
        raise DataError(f"{env}: cannot be made{told}: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """`RuntimeError: first line of its message`."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
