"""Parsing command lines with tyro, whose boxed complaints become one line."""

from __future__ import annotations

import contextlib
import functools
import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import tyro

from scanrl.types import DataError

__all__ = ["option_value", "parse", "parse_call"]


def parse(target: Any, verb: str, words: Sequence[str], **options: Any) -> Any:
    """What tyro makes of `words`; its boxed complaints become one line."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
                target, prog=f"scanrl {verb}", args=words, config=(tyro.conf.FlagCreatePairsOff,), **options
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise DataError(f"{verb}: {_unboxed(complaint.getvalue())}") from None


def parse_call(function: Callable[..., int], verb: str, words: Sequence[str]) -> int:
    """Parse first and call afterwards: what the verb itself prints is none of the parser's business."""

    @functools.wraps(function)
    def later(**arguments: Any) -> Callable[[], int]:
        return functools.partial(function, **arguments)

    return parse(later, verb, words)()


def _unboxed(text: str) -> str:
    """The complaint in a box and the names of the options it points at, without frame and help."""
    # Two frames: lines, or nothing but spaces and hyphens where the terminal knows no others.
    parts: list[list[str]] = [[]]
    for line in text.translate(_FRAME).splitlines():
        if not line.strip(" -"):
            parts.append([])
        elif line.startswith("  "):  # the box's title stands one further to the left
            parts[-1].append(line[2:].rstrip())
    parts = [part for part in parts if part]
    if not parts:
        return " ".join(text.split())
    complaint, names = parts[0], _names(parts[0])
    if complaint[0].startswith("Missing from"):
        return f"expected {' and '.join(names)}, got none"
    near = [name for part in parts[1:] if part[0].startswith("Perhaps") for name in _names(part)]
    hint = f" (did you mean {' or '.join(near[:3])}?)" if near else ""
    sentence = " ".join(" ".join(complaint).split()).removesuffix(".")
    return re.sub(r"^Error parsing (?!-)[^:]*: ", "", sentence) + hint


_FRAME = str.maketrans("│─╭╮╰╯", " -    ")


def _names(part: Sequence[str]) -> list[str]:
    """The options that a box lists: they are indented by four, what they mean by more."""
    words = [line.split() for line in part if re.match(r" {4}\S", line)]
    return [next((word for word in reversed(line) if word.startswith("--")), line[0]) for line in words]


def option_value(words: Sequence[str], name: str) -> str | None:
    """The value of one option before the others are parsed."""
    for word, following in zip(words, [*words[1:], None], strict=False):
        if word == name:
            return following
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
    return None
