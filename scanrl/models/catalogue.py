"""The recipes as a table: what each is and how many parameters it has for given observations and actions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from scanrl.models.build import build_model
from scanrl.models.recipes import RECIPES
from scanrl.stats import Stats
from scanrl.types import ActionKind, Spec

__all__ = ["catalogue", "parameter_count"]


def parameter_count(
    recipe: str, observations: int, actions: int, kind: ActionKind = "continuous", **changes: Any
) -> int:
    """Trained scalars of a recipe, with `changes` to its `ModelConfig`."""
    config = replace(RECIPES[recipe]().model, **changes)
    zeros = np.zeros(observations, np.float32)
    bounds = np.ones(actions, np.float32)
    stats = Stats(zeros, zeros + 1, 1.0, -bounds, bounds, 1, 1.0, 1.0)
    return build_model(config, Spec((observations,), kind, actions), stats).parameter_count()


def catalogue(observations: int, actions: int, kind: ActionKind = "continuous") -> list[dict[str, Any]]:
    """One row per recipe: name, parameters, window in steps, pattern, paper, what it is."""
    rows = []
    for name, build in RECIPES.items():
        chosen = build()
        rows.append(
            {
                "recipe": name,
                "parameters": parameter_count(name, observations, actions, kind),
                "context": chosen.model.context,
                "pattern": chosen.model.pattern,
                "paper": chosen.paper,
                "about": (build.__doc__ or "").splitlines()[0].rstrip("."),
            }
        )
    return rows
