"""Environment ids that carry options: `Darkroom-v0@size=17,start=corner` is made with `size=17, start="corner"`.

Whatever takes the id of an environment takes options in this way, and recordings name theirs so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import yaml

from scanrl.types import DataError

__all__ = ["base_id", "full_id", "id_of", "options_from", "split_id"]

_EXPONENT = re.compile(r"[-+]?\d+[eE][-+]?\d+")
_OTHERWISE = ("task", "tasks", "render_mode")  # what is played, and how it is looked at, is not which environment it is


def base_id(env: str) -> str:
    """The id that Gymnasium knows, without options and without the module that registers it (`module:Name-v0`)."""
    return env.partition("@")[0].rpartition(":")[2]


def split_id(env: str) -> tuple[str, dict[str, Any]]:
    """The id as Gymnasium makes it, and the options.

    Raises:
        DataError: behind the `@` is something else than `name=value`, joined by `,`.
    """
    name, mark, text = env.partition("@")
    return name, options_from(text.split(","), f"{env}: options") if mark else {}


def full_id(name: str, options: Mapping[str, Any]) -> str:
    """The id with these options; those whose values are no numbers, words or truth values are left out."""
    texts = {key: _text(value) for key, value in sorted(options.items())}
    parts = [f"{key}={text}" for key, text in texts.items() if text is not None]
    return f"{name}@{','.join(parts)}" if parts else name


def id_of(env: gym.Env, asked: object = None) -> str:
    """The id with the options that were not the registered ones, or the class name where there is no id.

    Args:
        asked: what it was made from; if that is an id, the module that registers it is kept.
    """
    if env.spec is None:
        return type(env.unwrapped).__name__
    registered = gym.registry.get(env.spec.id)
    usual = {} if registered is None else {key: _text(value) for key, value in registered.kwargs.items()}
    own = {
        key: value
        for key, value in env.spec.kwargs.items()
        if key not in _OTHERWISE and (key not in usual or usual[key] != _text(value))
    }
    module = asked.partition("@")[0].rpartition(":")[0] if isinstance(asked, str) else ""
    return full_id(f"{module}:{env.spec.id}" if module else env.spec.id, own)


def options_from(words: Sequence[str], where: str) -> dict[str, Any]:
    """`size=17` as the number, `start=corner` as the word, `ends=true` as the truth value.

    Raises:
        DataError: a word is something else than `name=value`; the message begins with `where`.
    """
    found = {}
    for word in words:
        name, equals, value = word.partition("=")
        try:
            # YAML takes 1e-5 for a word, as it has no point.
            found[name] = float(value) if _EXPONENT.fullmatch(value) else yaml.safe_load(value)
        except yaml.YAMLError:
            equals = ""
        if not (name.isidentifier() and equals and value):
            raise DataError(f"{where}: expected name=value, got {word!r}")
    return found


def _text(value: Any) -> str | None:
    """The value as `options_from` reads it; `None` if it cannot be written so."""
    if not isinstance(value, bool | int | float | str):
        return None
    text = yaml.safe_dump(value, width=float("inf")).partition("\n")[0]
    return None if "," in text else text
