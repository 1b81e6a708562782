"""A `Grid` from YAML, from plain values or from a preset.

tasks:                       # name: data, environment, returns to ask for
  hopper-medium: {data: "d4rl:hopper-medium-v4.hdf5", env: Hopper-v4, targets: [3600]}
recipes:                     # name: settings by dotted key; `recipe` where the name is not the recipe's
  bc: {}
  dmm-dc, 8 steps: {recipe: dmm-dc, model.context: 8}
seeds: 5                     # 0 to 4; or a text: 0-4, or 0,3,7
budgets: [{updates: 1000}, {cpu_seconds: 180}]
settings: {train.batch_size: 64}
evaluate: {checkpoints: 10, contexts: [recurrent, window]}
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from scanrl.config import from_values, read_yaml
from scanrl.grid.spec import Budget, Grid, Scoring, Task, within
from scanrl.models.ablations import ABLATIONS
from scanrl.presets import EVALUATIONS, preset
from scanrl.seeds import check_seeds, read_seeds
from scanrl.types import DataError

__all__ = ["changed", "count_or_seeds", "grid_from", "preset_grid", "read_grid"]

OURS = {
    "recipe": "`recipe` beside the settings",
    "data": "tasks",
    "env": "tasks",
    "eval.targets": "targets of the task",
    "eval.every": "evaluate.checkpoints",
    "train.seed": "seeds",
    "train.steps": "budgets",
    "train.checkpoint_every": "evaluate.checkpoints",
    "train.validate_every": "evaluate.checkpoints",
    "train.keep": "evaluate.checkpoints",
}
"""Settings that the grid itself decides, and where to say them."""


def read_grid(path: str | Path) -> Grid:
    """The grid in a YAML file.

    Raises:
        DataError: the file is missing, not what the head of this module shows, or names what does not exist.
    """
    grid = within(str(path), grid_from, read_yaml(path))
    within(str(path), grid.jobs)
    return grid


def grid_from(values: Mapping[str, Any]) -> Grid:
    """The grid that plain values stand for, as they are in the YAML file. Raises as `read_grid`."""
    known = ("tasks", "recipes", "seeds", "budgets", "settings", "evaluate")
    for key in values:
        if key not in known:
            raise DataError(f"{key}: expected one of {', '.join(known)}")
    common = _settings("settings", _mapping(values, "settings", optional=True))
    tasks = _mapping(values, "tasks")
    budgets = values.get("budgets")
    listed = [budget for budget in (budgets if isinstance(budgets, list) else [budgets]) if isinstance(budget, Mapping)]
    if not listed or (isinstance(budgets, list) and len(listed) < len(budgets)):
        raise DataError("budgets: expected e.g. {updates: 1000}, or a list of such")
    return Grid(
        {str(name): from_values(Task, _entry(f"tasks.{name}", tasks[name]), None, f"tasks.{name}.") for name in tasks},
        dict(_recipe(str(name), entry, common) for name, entry in _recipes(values).items()),
        count_or_seeds(values.get("seeds", 1)),
        tuple(from_values(Budget, budget, None, "budgets.") for budget in listed),
        from_values(Scoring, _mapping(values, "evaluate", optional=True), None, "evaluate."),
    )


def preset_grid(name: str, data: str | None = None) -> Grid:
    """The grid of one preset: one seed, the paper's budget, ten checkpoints, its own way to remember.

    Args:
        data: by default D4RL's file in the current folder.

    Raises:
        DataError: there is no such preset, or it needs `data`.
    """
    chosen = preset(name)
    data = data or chosen.data
    if not data:
        raise DataError(f"{name}: data: expected --data with a file, folder or URI of {chosen.dataset}, got none")
    settings = {key: value for key, value in chosen.settings.items() if key not in OURS}
    task = Task(data, chosen.env, tuple(chosen.settings.get("eval.targets", ())))
    scoring = Scoring(EVALUATIONS)
    budget = Budget(updates=chosen.settings["train.steps"])
    return Grid({chosen.task: task}, {chosen.recipe: (chosen.recipe, settings)}, (0,), (budget,), scoring)


def changed(grid: Grid, seeds: str | None = None, updates: int | None = None) -> Grid:
    """The grid with other seeds (as `count_or_seeds` reads them) or one budget, where they are given."""
    if seeds is not None:
        grid = replace(grid, seeds=count_or_seeds(seeds))
    return grid if updates is None else replace(grid, budgets=(Budget(updates=updates),))


def count_or_seeds(value: Any) -> tuple[int, ...]:
    """The seeds that `5` (0 to 4), `"0-4"`, `"0,3,7"` or a list names.

    Raises:
        DataError: it is something else.
    """
    if isinstance(value, str) and not re.fullmatch(r"\s*\d+\s*", value):
        return read_seeds(value)
    if isinstance(value, list):
        return check_seeds(value)
    try:
        count = int(value)
    except (TypeError, ValueError):
        count = -1
    if isinstance(value, bool) or not 1 <= count <= 1000:
        raise DataError(f"seeds: expected how many (1 to 1000), a range such as 0-4 or a list, got {value!r}")
    return tuple(range(count))


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted key."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        found |= _flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return found


def _recipes(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Names alone may stand in a list."""
    given = values.get("recipes")
    if isinstance(given, list) and given and all(isinstance(name, str) for name in given):
        for name in given:
            if given.count(name) > 1:
                raise DataError(f"recipes: expected each name once, got {name!r} twice")
        return dict.fromkeys(given)
    return _mapping(values, "recipes")


def _recipe(name: str, entry: Any, common: dict[str, Any]) -> tuple[str, tuple[str, dict[str, Any]]]:
    given = dict(_entry(f"recipes.{name}", entry))
    recipe = given.pop("recipe", name)
    if not isinstance(recipe, str):
        raise DataError(f"recipes.{name}.recipe: expected the name of a recipe, got {recipe!r}")
    recipe, variants = _variants(name, recipe)
    return name, (recipe, {**common, **variants, **_settings(f"recipes.{name}", given)})


def _variants(name: str, called: str) -> tuple[str, dict[str, Any]]:
    """`dmm-dc+no-input-mixer`: the recipe, and the changes of its variants from `ABLATIONS`."""
    recipe, *variants = called.split("+")
    known, changes = ABLATIONS.get(recipe, {}), {}
    for variant in variants:
        if variant not in known:
            near = get_close_matches(variant, known, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            expected = f"one of {', '.join(known)} behind {recipe}+" if known else f"no variant of {recipe}"
            raise DataError(f"recipes.{name}: expected {expected}, got {variant!r}{hint}")
        changes |= {f"model.{key}": value for key, value in known[variant].items()}
    return recipe, changes


def _settings(where: str, given: Mapping[str, Any]) -> dict[str, Any]:
    found = _flat(given)
    for key in found:
        if key in OURS:
            raise DataError(f"{where}: {key}: expected in {OURS[key]}, where the grid takes it from")
    return found


def _entry(where: str, value: Any) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise DataError(f"{where}: expected a mapping, got {value!r}")
    return value


def _mapping(values: Mapping[str, Any], key: str, optional: bool = False) -> Mapping[str, Any]:
    found = _entry(key, values.get(key))
    if not found and not optional:
        raise DataError(f"{key}: expected at least one, got none")
    return found
