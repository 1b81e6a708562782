"""What a grid runs: `Grid`, and the `Job`s it stands for."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeVar

from scanrl.config import to_values
from scanrl.settings import RunConfig, run_config
from scanrl.types import DataError

__all__ = ["Budget", "Grid", "Job", "Scoring", "Task", "differs", "every_setting", "other_setting", "within"]

T = TypeVar("T")

PARTS = ("model", "train", "eval")
DECIDED = (
    *("train.seed", "train.steps", "train.checkpoint_every", "train.validate_every", "train.keep"),
    *("train.device", "train.log_every", "train.tensorboard", "eval.every", "eval.targets"),
)
"""Settings that differ between runs of a line of the table, or say nothing of what comes out."""


@dataclass(frozen=True)
class Task:
    """A data set and the environment in which what was trained on it is scored."""

    data: str
    """Where the episodes are, see `scanrl.load`."""
    env: str
    """Gymnasium id."""
    targets: tuple[float, ...] = ()
    """Returns to ask for, raw units; none asks for the best of the data. Recipes that take none ignore them."""

    def __post_init__(self) -> None:
        for target in self.targets:
            if not math.isfinite(target):
                raise DataError(f"targets: expected finite numbers, got {target}")


@dataclass(frozen=True)
class Budget:
    """How long a run trains: one of the three. Seconds become updates by timing a few of them before the run."""

    updates: int | None = None
    cpu_seconds: float | None = None
    wall_seconds: float | None = None

    def __post_init__(self) -> None:
        given = {name: value for name, value in asdict(self).items() if value is not None}
        if len(given) != 1:
            raise DataError(f"budgets: expected one of {', '.join(asdict(self))}, got {', '.join(given) or 'none'}")
        for name, value in given.items():
            if not 0 < value < math.inf:
                raise DataError(f"budgets: {name}: expected more than 0 and finite, got {value}")

    def __str__(self) -> str:
        if self.updates is not None:
            return f"{self.updates} updates"
        return f"{self.cpu_seconds:g} CPU s" if self.cpu_seconds is not None else f"{self.wall_seconds:g} s"


@dataclass(frozen=True)
class Scoring:
    """Which checkpoints of a run are scored, and how their policies remember."""

    checkpoints: int | Literal["last"] = "last"
    """last, or how many, evenly spread over the run, the last one included."""
    contexts: tuple[int | Literal["own", "recurrent", "window"], ...] = ("own",)
    """own (the recipe's `eval.context`), recurrent, window (what the recipe trains on) or a number of steps."""

    def __post_init__(self) -> None:
        if self.checkpoints != "last" and self.checkpoints < 1:
            raise DataError(f"evaluate.checkpoints: expected last or at least 1, got {self.checkpoints}")
        if not self.contexts:
            raise DataError("evaluate.contexts: expected at least one, got none")
        for context in self.contexts:
            if isinstance(context, int) and context < 1:
                raise DataError(f"evaluate.contexts: expected own, recurrent, window or at least 1, got {context}")

    @property
    def count(self) -> int:
        return 1 if self.checkpoints == "last" else self.checkpoints


@dataclass(frozen=True)
class Job:
    """One run of a grid.

    Attributes:
        label: its recipe's name in the grid, its task's name, its budget and its seed: what a table shows.
        recipe: a name from `RECIPES`.
        settings: changes to it, by dotted key.
    """

    label: tuple[str, str, str, int]
    recipe: str
    settings: dict[str, Any]
    task: Task
    budget: Budget
    scoring: Scoring
    seed: int

    @property
    def asked(self) -> dict[str, Any]:
        """Everything that decides the run, as plain values. A file may move: of its path only the name counts."""
        return {
            "recipe": self.recipe,
            "settings": self.settings,
            "data": _named(self.task.data),
            "env": self.task.env,
            "targets": list(self.task.targets),
            "budget": str(self.budget),
            "seed": self.seed,
            "checkpoints": self.scoring.checkpoints,
            "contexts": list(self.scoring.contexts),
        }

    @property
    def id(self) -> str:
        """The same for the same run, in any session."""
        return hashlib.sha256(json.dumps(self.asked, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def folder(self) -> str:
        """Name of its run folder."""
        recipe, task, budget, seed = self.label
        return re.sub(r"[^A-Za-z0-9.+_-]+", "-", f"{recipe}-{task}-{budget}-seed-{seed}") + f"-{self.id[:6]}"

    def config(self, steps: int) -> RunConfig:
        """The training run, of `steps` updates. It is scored by the grid, not by the run itself."""
        every = max(1, steps // self.scoring.count)
        fixed = {
            "data": self.task.data,
            "env": self.task.env,
            "eval.every": -1,
            "train.steps": steps,
            "train.seed": self.seed,
            "train.checkpoint_every": every,
            "train.validate_every": every,
            "train.keep": 0,
        }
        return run_config(self.recipe, self.settings, fixed)

    def __str__(self) -> str:
        recipe, task, budget, seed = self.label
        return f"{recipe}, {task}, {budget}, seed {seed}"


@dataclass(frozen=True)
class Grid:
    """Recipes x tasks x seeds x budgets.

    Attributes:
        recipes: name -> the recipe's own name and changes to its settings, by dotted key.
    """

    tasks: dict[str, Task]
    recipes: dict[str, tuple[str, dict[str, Any]]]
    seeds: tuple[int, ...]
    budgets: tuple[Budget, ...]
    scoring: Scoring = field(default_factory=Scoring)

    def jobs(self) -> list[Job]:
        """Every run, seed by seed, so that an unfinished grid is about evenly filled.

        Raises:
            DataError: an unknown recipe or setting; it names the recipe of the grid; or a budget that is there twice.
        """
        found = list(self._jobs())
        budgets = [str(budget) for budget in self.budgets]
        for budget in budgets:
            if budgets.count(budget) > 1:
                raise DataError(f"budgets: expected each once, got {budget} twice")
        for job in found:
            within(f"recipes: {job.label[0]}", job.config, 1)
        return found

    def _jobs(self) -> Iterator[Job]:
        for seed in self.seeds:
            for budget in self.budgets:
                for task_name, task in self.tasks.items():
                    for name, (recipe, settings) in self.recipes.items():
                        label = (name, task_name, str(budget), seed)
                        yield Job(label, recipe, settings, task, budget, self.scoring, seed)


def within(where: str, call: Callable[..., T], *arguments: Any) -> T:
    """The call's result; a `DataError` gets the place before it."""
    try:
        return call(*arguments)
    except DataError as error:
        message = str(error)
        raise DataError(message if message.startswith(where) else f"{where}: {message}") from None


def differs(asked: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """The first part in which two runs were not asked for alike."""
    return next((name for name in {**asked, **other} if asked.get(name) != other.get(name)), None)


def every_setting(config: RunConfig) -> dict[str, Any]:
    """Every setting by dotted key, with what the recipe says itself, but for those that the grid decides."""
    values = to_values(config)
    settings = {f"{part}.{name}": value for part in PARTS for name, value in values[part].items()}
    return {name: value for name, value in settings.items() if name not in DECIDED}


def other_setting(settings: Mapping[str, Any], row: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """The first setting in which a recorded run differs, with the value here and there.

    A recipe may have changed since. Older rows say of it only what was trained on; newer settings are in none of them.

    Args:
        settings: every setting by dotted key.
        row: of a finished run.
    """
    written = {"model.context": "trained_context", "train.batch_size": "batch_size"}
    there = row.get("settings") or {name: row[key] for name, key in written.items() if key in row}
    found = (name for name, value in there.items() if name in settings and settings[name] != value)
    return next(((name, settings[name], there[name]) for name in found), None)


def _named(uri: str) -> str:
    """What of a data set's address does not change when it moves."""
    return uri if uri.startswith("minari:") else re.split(r"[:/\\]", uri.rstrip("/\\"))[-1]
