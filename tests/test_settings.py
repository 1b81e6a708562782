import dataclasses
import math

import pytest

from scanrl.models.recipes import RECIPES, recipe
from scanrl.settings import EvalConfig, RunConfig, TrainConfig, check_acting, run_config
from scanrl.types import DataError


@pytest.mark.parametrize("name", RECIPES)
def test_a_run_starts_from_its_recipe(name):
    config, chosen = run_config(name), recipe(name)
    assert (config.recipe, config.model) == (name, chosen.model)
    assert (config.train.learning_rate, config.train.batch_size) == (chosen.learning_rate, chosen.batch_size)
    assert (config.train.top_fraction, config.eval.context) == (chosen.top_fraction, chosen.acting)


@pytest.mark.parametrize(
    "name, changes, message",
    [
        ("bc", {"eval.targets": (5.0,)}, r"^eval.targets: expected none \(recipe bc takes none\), got \[5.0\]$"),
        ("edt", {"eval.targets": (5.0,)}, r"^eval.targets: expected none \(recipe edt takes none\), got \[5.0\]$"),
        ("dt", {"eval.context": "elastic"}, r"^eval.context: expected recurrent or a number .*, got elastic$"),
    ],
)
def test_what_its_evaluation_would_refuse_is_refused_before_training(name, changes, message):
    with pytest.raises(DataError, match=message):
        check_acting(run_config(name, changes))


@pytest.mark.parametrize(
    "values, message",
    [
        ({"steps": 0}, r"^train.steps: expected at least 1, got 0$"),
        ({"learning_rate": 0.0}, r"^train.learning_rate: expected more than 0 and finite, got 0.0$"),
        ({"learning_rate": math.nan}, r"^train.learning_rate: expected more than 0 and finite, got nan$"),
        ({"clip_norm": math.inf}, r"^train.clip_norm: expected more than 0 and finite, got inf$"),
        ({"weight_decay": math.nan}, r"^train.weight_decay: expected at least 0 and finite, got nan$"),
        ({"warmup": 1.0}, r"^train.warmup: expected less than 1, got 1.0$"),
        ({"validation": 1.0}, r"^train.validation: expected less than 1, got 1.0$"),
        ({"top_fraction": 0.0}, r"^train.top_fraction: expected more than 0 and at most 1, got 0.0$"),
        ({"data_share": 0.0}, r"^train.data_share: expected more than 0 and at most 1, got 0.0$"),
        ({"top_fraction": 1.5}, r"^train.top_fraction: expected more than 0 and at most 1, got 1.5$"),
        ({"seed": 2**63}, r"^train.seed: expected at most 9223372036854775807, got 9223372036854775808$"),
    ],
)
def test_training_settings_out_of_range_are_named(values, message):
    with pytest.raises(DataError, match=message):
        TrainConfig(**values)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"episodes": 0}, r"^eval.episodes: expected at least 1, got 0$"),
        ({"num_envs": -1}, r"^eval.num_envs: expected at least 1, got -1$"),
        ({"context": 0}, r"^eval.context: expected recurrent, elastic or at least 1, got 0$"),
        ({"targets": (1.0, math.nan)}, r"^eval.targets: expected finite numbers, got nan$"),
    ],
)
def test_evaluation_settings_out_of_range_are_named(values, message):
    with pytest.raises(DataError, match=message):
        EvalConfig(**values)


def test_every_setting_says_what_it_means():
    """The command line's help is made from these sentences."""
    import inspect

    for kind in (TrainConfig, EvalConfig, RunConfig, type(run_config("dt").model)):
        source = inspect.getsource(kind)
        for field in dataclasses.fields(kind):
            line = source.split(f"    {field.name}: ", 1)[1].split("\n", 2)[1]
            if field.name not in ("model", "train", "eval"):
                assert line.startswith('    """'), field.name
