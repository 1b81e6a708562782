"""What the options of several verbs share: positional words, reading options, and the check of numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import tyro
from tyro.conf import Positional

from scanrl.data.options import ReadOptions
from scanrl.types import DataError

__all__ = ["READING", "Folders", "OutPath", "Reading", "RunPath", "Uri", "check"]

Uri: TypeAlias = Annotated[Positional[str], tyro.conf.arg(metavar="URI")]
OutPath: TypeAlias = Annotated[Path, tyro.conf.arg(aliases=["-o"])]
Reading: TypeAlias = tyro.conf.OmitArgPrefixes[ReadOptions]
RunPath: TypeAlias = Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")]
Folders: TypeAlias = Annotated[Positional[tuple[Path, ...]], tyro.conf.arg(metavar="DIR")]

READING = ReadOptions()


def check(verb: str, lowest: float, **values: float) -> None:
    """Raises `DataError`, which names the option, unless every value is finite and at least `lowest`."""
    for name, value in values.items():
        if not lowest <= value < float("inf"):
            option = name.replace("_", "-")
            raise DataError(f"{verb}: --{option}: expected at least {lowest} and finite, got {value}")
