"""What every form of the table says beside its numbers: names of keys, the note, and what the numbers depend on."""

from __future__ import annotations

from collections.abc import Sequence

from scanrl.grid.table import Line

__all__ = ["KEYS", "NOTE", "ONE", "provenance"]

KEYS = ("recipe", "task", "budget", "context")
NOTE = (
    "last: the last checkpoint. selected: the checkpoint with the lowest held-out loss. best: the highest score over "
    "checkpoints and target returns, as many papers report it; it has looked at the test. Mean over seeds, its 95 % "
    "interval over seeds, IQM: interquartile mean."
)
ONE = "1 seed: no interval"


def provenance(lines: Sequence[Line]) -> list[str]:
    """What the numbers depend on; where it differs, each value with the tasks or recipes that explain it."""
    given = [line for line in lines if line.about]
    found = []
    for name in given[0].about if given else ():
        for parts in ((), (1,), (0,), (0, 1), (0, 1, 2)):
            owners: dict[str, dict[tuple[str, ...], None]] = {}
            for line in given:
                owners.setdefault(line.about[name], {})[tuple(line.keys[part] for part in parts)] = None
            if len({owner for of in owners.values() for owner in of}) == sum(map(len, owners.values())):
                break  # no owner has two values
        shown = (f"{value} ({_told(list(of))})" if len(owners) > 1 else value for value, of in owners.items())
        found.append(f"{name}: {'; '.join(shown)}")
    return found


def _told(owners: Sequence[tuple[str, ...]]) -> str:
    """`a | b in x | y` for recipes that have a value in the same tasks, instead of every pair of them."""
    if len(owners[0]) != 2:
        return " | ".join(", ".join(owner) for owner in owners)
    tasks: dict[str, list[str]] = {}
    for recipe, task in owners:
        tasks.setdefault(recipe, []).append(task)
    recipes: dict[tuple[str, ...], list[str]] = {}
    for recipe, where in tasks.items():
        recipes.setdefault(tuple(where), []).append(recipe)
    return "; ".join(f"{' | '.join(names)} in {' | '.join(where)}" for where, names in recipes.items())
