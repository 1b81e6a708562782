"""`presets()`: recipe x domain at the protocol of the papers, with what the papers printed and how it was selected."""

from __future__ import annotations

from difflib import get_close_matches

from scanrl.models.recipes import RECIPES
from scanrl.presets.atari import atari
from scanrl.presets.locomotion import EVALUATIONS, locomotion
from scanrl.presets.preset import Preset, Published
from scanrl.types import DataError

__all__ = ["EVALUATIONS", "Preset", "Published", "preset", "presets"]


def presets() -> dict[str, Preset]:
    """Every preset by its name, domain by domain and recipe by recipe."""
    return {one.name: one for one in (*locomotion(), *atari()) if one.recipe in RECIPES}


def preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        DataError: there is none; the nearest one is given.
    """
    found = presets()
    if name not in found:
        near = get_close_matches(name, found, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise DataError(f"preset: expected RECIPE/TASK as scanrl presets lists them, got {name!r}{hint}")
    return found[name]
