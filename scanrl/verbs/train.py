"""`train` and `resume`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from scanrl.arguments import option_value, parse
from scanrl.config import read_yaml, to_yaml
from scanrl.console import print_table, text
from scanrl.types import DataError
from scanrl.verbs.options import RunPath

if TYPE_CHECKING:
    from scanrl.run import Run

__all__ = ["resume", "train"]

SHORT = {
    "--steps": "--train.steps",
    "--seed": "--train.seed",
    "--val-split": "--train.validation",
    "--context": "--model.context",
}
"""Short forms `scanrl train` accepts for what people change most."""


def train(words: Sequence[str]) -> int:
    """Train a recipe on recorded episodes."""
    from scanrl.models.recipes import RECIPES
    from scanrl.seeds import read_seeds
    from scanrl.settings import RunConfig, TrainArguments, run_config

    words = [_long(word) for word in words]
    asked_help = bool({"-h", "--help"} & set(words))
    file = option_value(words, "--config")
    settings = read_yaml(file) if file else {}
    name = words[0] if words and not words[0].startswith("-") else settings.get("recipe")
    paper = _preset(option_value(words, "--preset"), name)
    name = paper.get("recipe", name)
    if name is None and not asked_help:
        raise DataError(f"train: recipe: expected one of {', '.join(RECIPES)} as the first word, got none")
    # Recipe and file are known before the rest is parsed, so that they are the defaults of every other option.
    base = run_config("dmm-dc" if name is None else str(name), paper, settings)
    default = TrainArguments(base.recipe, base.data, base.env, base.model, base.train, base.eval)
    chosen: TrainArguments = parse(TrainArguments, "train", words, default=default)
    config = RunConfig(base.recipe, chosen.data, chosen.env, chosen.model, chosen.train, chosen.eval)
    if chosen.seeds is not None and option_value(words, "--train.seed") is not None:
        raise DataError(f"train: seeds: expected --seed or --seeds, got both (--seeds {chosen.seeds})")
    seeds = (config.train.seed,) if chosen.seeds is None else read_seeds(chosen.seeds)
    if chosen.print_config:
        print(to_yaml(config), end="")
        return 0
    if not config.data:
        raise DataError("train: data: expected --data with a file, folder or URI, got none")
    from scanrl.training import run_seeds

    return _tell_runs(run_seeds(config, seeds, config.data, out=chosen.out, progress=True))


def _preset(called: str | None, recipe: str | None) -> dict[str, Any]:
    """The settings of the preset of that name, its recipe and environment among them; none without a name."""
    if called is None:
        return {}
    from scanrl.presets import preset

    found = preset(called)
    if recipe not in (None, found.recipe):
        raise DataError(f"train: preset: expected one of the recipe {recipe}, got {called!r}")
    return {"recipe": found.recipe, "data": found.data, "env": found.env, **found.settings}


def resume(run: RunPath, data: str | None = None) -> int:
    """Continue a run, or the runs of several seeds, from the latest checkpoint.

    Args:
        run: the run folder, or the folder of several seeds.
        data: where its episodes are now, if they have moved.
    """
    from scanrl.seeds import is_seeds_folder
    from scanrl.training import resume as resume_run
    from scanrl.training import resume_seeds

    if is_seeds_folder(run):
        return _tell_runs(resume_seeds(run, data=data, progress=True))
    return _tell_runs([resume_run(run, data=data, progress=True)])


def _long(word: str) -> str:
    key, equals, value = word.partition("=")
    return SHORT.get(key, key) + equals + value


def _tell_runs(runs: Sequence[Run]) -> int:
    first = runs[0]
    if len(runs) > 1:
        from scanrl.seeds import seed_table

        head, rows = seed_table(runs)
        print_table(head, rows, right=range(1, len(head)))
        print(f"runs: {first.path.parent}")
    else:
        last = first.metrics()[-1:] or [{}]
        for name, value in last[0].items():
            print(f"{name:<24} {text(value)}")
        print(f"run: {first.path}")
    env = first.config.env or first.checkpoint().spec.env_id or "ENV"
    print(f"next: scanrl eval {first.path} --env {env}")
    return 0
