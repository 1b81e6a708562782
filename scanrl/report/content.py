"""What a report shows, as plain arrays and dictionaries. What is missing is left out of the page."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from scanrl.types import DataError, Trajectory

__all__ = ["Curve", "NextStep", "Report", "Row", "describe_machine"]

Role = Literal["policy", "baseline", "data", "random"]


@dataclass(frozen=True, eq=False)
class Row:
    """One row of the score table, with the episodes behind it.

    Attributes:
        name: e.g. `Decision Mamba`, `Behaviour cloning`, `Data (500 episodes)`, `Random`.
        role: what it is; decides its colour and what the headline compares.
        returns: `(episodes,)` undiscounted, raw units.
        lengths: `(episodes,)` steps, where known.
        note: few words beside the name, e.g. `last checkpoint`, `target 3600`.
    """

    name: str
    role: Role
    returns: np.ndarray
    lengths: np.ndarray | None = None
    note: str = ""

    def __post_init__(self) -> None:
        if np.ndim(self.returns) != 1 or len(self.returns) == 0 or not np.isfinite(self.returns).all():
            raise DataError(f"report: row {self.name}: returns: expected finite values, one per episode")

    @classmethod
    def of(cls, name: str, role: Role, trajectories: Sequence[Trajectory], note: str = "") -> Row:
        """The row of these episodes."""
        returns = np.array([x.total_reward for x in trajectories])
        return cls(name, role, returns, np.array([len(x) for x in trajectories]), note)


@dataclass(frozen=True, eq=False)
class Curve:
    """Values against training steps.

    Attributes:
        steps: `(n,)` number of updates done.
        values: `(n,)`; entries that are not finite are not drawn.
        low: `(n,)` lower end of the interval, if there is one.
        high: `(n,)` upper end.
    """

    steps: np.ndarray
    values: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None

    @property
    def drawable(self) -> bool:
        return bool(np.isfinite(np.asarray(self.values, np.float64)).any())


@dataclass(frozen=True)
class NextStep:
    """Something worth trying: a sentence and, if there is one, the command."""

    text: str
    command: str = ""


@dataclass(frozen=True, eq=False)
class Report:
    """Everything a page can show.

    Attributes:
        title: what was trained on what, e.g. `Decision Mamba on Hopper-v5`.
        env_id: Gymnasium id with version; gives the normalised scores.
        rows: score table, top to bottom. The first with role `policy` is the headline's.
        target_return: what the policy was asked for, raw units.
        train_loss: training loss.
        validation_loss: loss on episodes held out.
        evaluations: mean return of the evaluations during training, with interval.
        headline: one sentence instead of the one made from the numbers.
        notes: cautions shown under the score table, one sentence each.
        seeds: number of training runs behind the policy's row.
        config: configuration of the run: nested plain values, or YAML text.
        provenance: name -> value, in order: dataset and its fingerprint, versions, seeds, context, machine.
        next_steps: what to try next.
    """

    title: str
    env_id: str | None = None
    rows: Sequence[Row] = ()
    target_return: float | None = None
    train_loss: Curve | None = None
    validation_loss: Curve | None = None
    evaluations: Curve | None = None
    headline: str | None = None
    notes: Sequence[str] = ()
    seeds: int = 1
    config: Mapping[str, Any] | str | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    next_steps: Sequence[NextStep] = ()

    def first(self, role: Role) -> Row | None:
        """The first row with this role."""
        return next((row for row in self.rows if row.role == role), None)


def describe_machine() -> str:
    """`Linux x86_64, 2 cores, Python 3.11.4`, for `Report.provenance`."""
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
