"""Environments made with options of their own, such as `task`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym

from scanrl.envs.make import make_environment, one_line
from scanrl.types import DataError

__all__ = ["make_with"]


def make_with(env: str, options: Mapping[str, Any]) -> gym.Env:
    """A new environment, made with `options` as `gymnasium.make` takes them.

    Raises:
        DataError: no such id, a package it needs is missing, or it cannot be made with these options.
    """
    if not options or env not in gym.registry:  # ids of modules and unknown ones are told as everywhere
        made = make_environment(env)
        if not options:
            return made
        made.close()
    try:
        return gym.make(env, disable_env_checker=True, **options)
    except DataError:
        raise
    except Exception as error:  # registered environments are other people's code
        raise DataError(f"{env}: cannot be made with {dict(options)}: {one_line(error)}") from error
