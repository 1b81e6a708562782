"""`RunConfig`: everything that decides a training run, as it is saved in `config.yaml`.

Field docstrings carry unit and meaning; the command line's help is made from them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from scanrl.config import from_values, override
from scanrl.models.recipes import recipe
from scanrl.nn import ModelConfig
from scanrl.types import DataError

__all__ = ["EvalConfig", "RunConfig", "TrainArguments", "TrainConfig", "check_acting", "run_config"]

LARGEST = 2**63 - 1  # what seeds and counters of other libraries take


@dataclass(frozen=True)
class TrainConfig:
    """How the network is fitted."""

    steps: int = 10_000
    """Optimiser updates."""
    batch_size: int = 64
    """Windows per update; with whole episodes, the rows in which they go on side by side."""
    sequences: Literal["windows", "episodes", "histories", "queries"] = "windows"
    """What a batch is made of: windows cut anywhere, each from an empty state (the papers); whole episodes, in chunks
    of model.context steps whose state is carried from update to update, and gradients within a chunk; contexts of
    several episodes of one task, from learning histories; or transitions of such episodes in any order, each set with
    a state whose optimal action is asked for, for a model with a query."""
    context_episodes: int = 10
    """Episodes of a context, with histories and queries."""
    context_order: Literal["learning", "return"] = "learning"
    """Of the episodes of a context: a run of one history in its order, or any of the task, ascending by return."""
    context_stride: int = 1
    """Episodes of a history from one of a context to the next, in the order of learning."""
    learning_rate: float = 1e-3
    """Highest step size of AdamW."""
    dense_rate: float = 1.0
    """Step size of the dense local mixers (dense, modal_linear) as a share of learning_rate: each of their outputs sums
    over a whole window of tokens, so that equal steps move it further."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Step size after the warm-up: cosine falls to a tenth at the last update; constant stays (the papers)."""
    warmup: float = 0.05
    """Share of the updates over which the step size rises from zero."""
    weight_decay: float = 1e-4
    """Decoupled weight decay; not applied to the state matrix and skip of the scan."""
    decayed: Literal["all", "matrices"] = "all"
    """What the weight decay acts on: all but the scan's own, or the weights of linear maps and convolutions alone (no
    norms, biases and tables)."""
    beta2: float = 0.999
    """AdamW's memory of squared gradients."""
    clip_norm: float = 0.25
    """Largest norm of the gradient."""
    top_fraction: float = 1.0
    """Share of the steps to train on: those of the episodes with the highest returns; 1 trains on all. Training and
    held-out episodes are each reduced so by themselves; statistics are of all the data."""
    data_share: float = 1.0
    """Share of the training episodes (tasks of histories) to train on, drawn by the seed; smaller ones lie in larger
    ones. Held-out episodes and statistics are those of all the data: to see how much data counts."""
    final_weight: float = 0.0
    """Weight of the loss over the last steps of episodes alone, added to the mean over all steps: for tasks in which
    few steps need the memory."""
    validation: float = 0.1
    """Share of the episodes held out for the validation loss; 0 trains on all."""
    validate_every: int = 0
    """Updates between validation losses; 0 makes it a tenth of the run."""
    checkpoint_every: int = 1000
    """Updates between checkpoints; one is always written at the end and when the run is stopped."""
    keep: int = 3
    """Checkpoints kept, the latest ones; 0 keeps all."""
    log_every: int = 50
    """Updates between lines of metrics.jsonl."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the operands of the network's matrix products in an update. Weights, scan, norms, tokens, head and the
    validation loss are float32 either way."""
    seed: int = 0
    """Seed of weights, windows, dropout and the held-out split."""
    device: str = "cpu"
    """Where to train: cpu, cuda or one of several, e.g. cuda:1."""
    tensorboard: bool = False
    """Also write TensorBoard events into the run folder (needs the extra [track])."""

    def __post_init__(self) -> None:
        _at_least("train", self, 1, "steps", "batch_size", "checkpoint_every", "log_every")
        _at_least("train", self, 1, "context_episodes", "context_stride")
        _at_least("train", self, 0, "validate_every", "keep", "seed", "warmup", "weight_decay", "beta2", "validation")
        for name in ("learning_rate", "clip_norm", "dense_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise DataError(f"train.{name}: expected more than 0 and finite, got {getattr(self, name)}")
        plain = {"episodes": "0 with whole episodes", "queries": "0 with queries"}
        if self.final_weight < 0 or (self.final_weight and self.sequences in plain):
            wanted = plain.get(self.sequences, "at least 0")
            raise DataError(f"train.final_weight: expected {wanted}, got {self.final_weight}")
        for name in ("top_fraction", "data_share"):
            if not 0 < getattr(self, name) <= 1:
                raise DataError(f"train.{name}: expected more than 0 and at most 1, got {getattr(self, name)}")
        for name in ("warmup", "validation", "beta2"):
            if getattr(self, name) >= 1:
                raise DataError(f"train.{name}: expected less than 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class EvalConfig:
    """How the policy is tried in its environment, during the run and at its end."""

    every: int = 0
    """Updates between evaluations; 0 evaluates at the end only, -1 never."""
    episodes: int = 20
    """Episodes per target return."""
    targets: tuple[float, ...] = ()
    """Returns to ask for, raw units; none asks for the best return of the data."""
    context: int | Literal["recurrent", "elastic"] = "recurrent"
    """How the policy remembers: recurrent, or the number of steps whose window is recomputed, or elastic: of the
    windows that end now the one with the highest predicted return (for models that predict it)."""
    sample: bool = False
    """Draw actions from the head's distribution, instead of the likeliest one."""
    num_envs: int = 20
    """Environments stepped side by side."""
    seed: int = 1000
    """Decides the initial state of each episode."""

    def __post_init__(self) -> None:
        _at_least("eval", self, 1, "episodes", "num_envs")
        _at_least("eval", self, 0, "seed")
        _at_least("eval", self, -1, "every")
        for target in self.targets:
            if not math.isfinite(target):
                raise DataError(f"eval.targets: expected finite numbers, got {target}")
        numbered = isinstance(self.context, int) and 1 <= self.context <= LARGEST
        if self.context not in ("recurrent", "elastic") and not numbered:
            raise DataError(f"eval.context: expected recurrent, elastic or at least 1, got {self.context}")


@dataclass(frozen=True)
class RunConfig:
    """A training run."""

    recipe: str
    """Name of the recipe the model came from; see `scanrl models`."""
    data: str = ""
    """Where the episodes are: d4rl:FILE, minari:ID, npz:FILE, store:FOLDER or a path."""
    env: str | None = None
    """Gymnasium id to evaluate in; none trains without."""
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)


@dataclass(frozen=True)
class TrainArguments:
    """Train a recipe on recorded episodes.

    Short forms: --steps, --seed, --context, --val-split for --train.steps, --train.seed, --model.context,
    --train.validation. The defaults shown are those of the recipe that is named.
    """

    recipe: Positional[str]
    """One of the recipes that `scanrl models` lists."""
    data: str
    """The episodes: d4rl:FILE, minari:ID, npz:FILE, store:FOLDER, or a path."""
    env: str | None
    """Gymnasium id to evaluate in; none trains without."""
    model: ModelConfig
    train: TrainConfig
    eval: EvalConfig
    seeds: str | None = None
    """Several seeds side by side instead of --seed: a range such as 0-4, or a list such as 0,3,7; each has a run folder
    of its own, all of them in one folder."""
    out: Path | None = None
    """The run folder; by default the first free one under outputs/train, with a link `last` to it."""
    preset: str | None = None
    """RECIPE/TASK as `scanrl presets` lists them: the settings of a paper; the file of --config wins over them."""
    config: Path | None = None
    """A YAML file with settings; options on the command line win over it."""
    print_config: bool = False
    """Print the settings as YAML and stop."""


def run_config(name: str, *changes: Mapping[str, Any]) -> RunConfig:
    """The recipe's run with changes on top, each a nested mapping or one with dotted keys; later ones win.

    Raises:
        DataError: an unknown recipe or key (with the nearest known one), a wrong type or value; or changes that were
            made for another recipe.
    """
    chosen = recipe(name)
    train = TrainConfig(
        learning_rate=chosen.learning_rate,
        batch_size=chosen.batch_size,
        sequences=chosen.sequences,
        top_fraction=chosen.top_fraction,
    )
    config = RunConfig(recipe=name, model=chosen.model, train=train, eval=EvalConfig(context=chosen.acting))
    for change in changes:
        dotted = {k: v for k, v in change.items() if isinstance(k, str) and "." in k}
        config = from_values(RunConfig, {k: v for k, v in change.items() if k not in dotted}, config)
        config = override(config, dotted)
    if config.recipe != name:
        raise DataError(f"recipe: expected {name!r}, got settings of {config.recipe!r}")
    return config


def check_acting(config: RunConfig) -> None:
    """Refuses before hours of training what the evaluation behind them would refuse.

    Raises:
        DataError: a way of acting or targets that are not for this model.
    """
    model, acting = config.model, config.eval
    if acting.context == "elastic" and model.returns == "given":
        raise DataError("eval.context: expected recurrent or a number of steps where returns are given, got elastic")
    if acting.context != "recurrent" and (model.subgoal_steps or model.query):
        kind = "a query" if model.query else "sub-goals"
        raise DataError(f"eval.context: expected recurrent for a model with {kind}, got {acting.context}")
    if acting.targets and not model.takes_target:
        raise DataError(f"eval.targets: expected none (recipe {config.recipe} takes none), got {list(acting.targets)}")


def _at_least(where: str, config: Any, lowest: int, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not lowest <= value < math.inf:
            limits = f"at least {lowest}" if isinstance(value, int) else f"at least {lowest} and finite"
            raise DataError(f"{where}.{name}: expected {limits}, got {value}")
        if value > LARGEST:
            raise DataError(f"{where}.{name}: expected at most {LARGEST}, got {value}")
