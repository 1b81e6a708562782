"""What a preset is, and how tables of printed scores are read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

__all__ = ["Preset", "Published", "columns"]


@dataclass(frozen=True)
class Published:
    """A printed score.

    Attributes:
        score: normalised, mean over seeds.
        spread: standard deviation over seeds, where it was printed.
        source: who printed it.
        selection: which checkpoint and target return it is of.
    """

    score: float
    spread: float | None
    source: str
    selection: str

    def __str__(self) -> str:
        spread = "" if self.spread is None else f" ± {self.spread:g}"
        return f"{self.score:g}{spread} ({self.source}; {self.selection})"


@dataclass(frozen=True)
class Preset:
    """A recipe on a domain as its paper ran it.

    Attributes:
        name: `recipe/task`.
        env: Gymnasium id that stands for the papers'.
        dataset: the recording the papers trained on; a run takes any data of the same shape.
        data: where a run looks for it unless told: D4RL's file in the current folder; empty where it has no short name.
        settings: changes to the recipe, by dotted key.
        published: printed scores of this pair; none where no table is known to us.
    """

    name: str
    recipe: str
    task: str
    env: str
    dataset: str
    data: str
    settings: dict[str, Any]
    published: tuple[Published, ...]


def columns(table: str) -> Iterator[tuple[str, str, str, str]]:
    """`(task, recipe, source, entry)` of a table whose columns are headed `recipe:source`; an entry `-` is none."""
    head, *rows = (line.split() for line in table.strip().splitlines())
    for task, *entries in rows:
        for column, entry in zip(head[1:], entries, strict=True):
            recipe, _, source = column.partition(":")
            if entry != "-":
                yield task, recipe, source, entry
