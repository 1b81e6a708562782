"""Presets against what the papers print, by value."""

import gymnasium
import pytest

from scanrl.envs.reference_scores import reference_score
from scanrl.models.atari import ATARI
from scanrl.models.recipes import RECIPES
from scanrl.presets import preset, presets
from scanrl.presets.locomotion import PAPERS
from scanrl.settings import run_config
from scanrl.types import DataError

GAMES = ("breakout", "qbert", "pong", "seaquest")


@pytest.mark.parametrize("name", presets())
def test_a_preset_is_a_configuration_of_its_recipe(name):
    found = presets()[name]
    config = run_config(found.recipe, found.settings)
    assert f"{config.recipe}/{found.task}" == name
    assert -(-config.train.steps // config.train.checkpoint_every) == 10  # the last one at the end
    assert config.eval.every == config.train.checkpoint_every
    assert found.env.partition("@")[0] in gymnasium.registry
    assert reference_score(found.env) is not None  # or its scores were not those that are printed beside them


@pytest.mark.parametrize("name", [name for name in presets() if not name.endswith(GAMES)])
def test_locomotion_and_mazes_share_a_protocol(name):
    found = presets()[name]
    config = run_config(found.recipe, found.settings)
    updates = 50_000 if found.recipe in ("edt", "reinformer") else 100_000
    assert (config.train.steps, config.train.schedule, config.model.dropout) == (updates, "constant", 0.1)
    if found.recipe not in ("ds4", "edt"):
        assert config.eval.context == config.model.context


@pytest.mark.parametrize(
    "name, scores",
    [
        ("dt/hopper-medium", [68.4, 65.10, 69.42]),
        ("dm/hopper-medium", [86.2, 83.5]),
        ("dm/walker2d-medium-replay", [72.1, 70.9]),
        ("dc/halfcheetah-medium-expert", [93.1]),
        ("dmm-c/hopper-medium", [94.2]),
        ("dmm-l/antmaze-umaze", [88.0]),
        ("dmm-dl/hopper-medium", [98.6]),
        ("dmm-dc/walker2d-medium", [82.2]),
        ("dmm-dc/antmaze-umaze-diverse", [77.0]),
        ("dmm26/hopper-medium", []),
        ("dt/breakout", [284.5, 261.1]),
        ("dc/qbert", [64.4]),
        ("dmm-dc/breakout", [362.2]),
        ("dmm-dl/seaquest", [2.6]),
        ("mambadm/pong", [110.8]),
        ("dmm-c/pong", []),
    ],
)
def test_printed_scores_are_those_of_the_tables(name, scores):
    assert [number.score for number in preset(name).published] == scores


def test_each_printed_score_says_how_it_was_selected():
    first, *corl = preset("dt/hopper-medium").published
    assert "maximum over target returns" in first.selection
    assert [number.selection for number in corl] == ["last checkpoint", "best checkpoint"]
    assert preset("dm/hopper-medium").published[1].spread == 12.5


@pytest.mark.parametrize(
    "name, expected",
    [
        ("dt/hopper-medium", (20, 128, 1e-4, [3600, 1800], "Hopper-v4")),
        ("dm/hopper-medium", (20, 256, 1e-4, [1800, 3600, 7200, 36000, 72000], "Hopper-v4")),
        ("dm/hopper-medium-expert", (20, 128, 1e-3, [1800, 3600, 7200, 36000, 72000], "Hopper-v4")),
        ("dc/hopper-medium", (8, 256, 1e-4, [3600, 7200, 36000, 72000], "Hopper-v4")),
        ("dc/walker2d-medium", (8, 128, 1e-3, [5000, 10000, 50000, 100000], "Walker2d-v4")),
        ("dmm-c/hopper-medium", (8, 128, 1e-4, [3600, 7200, 36000, 72000], "Hopper-v4")),
        ("dmm-dc/walker2d-medium", (8, 32, 1e-4, [5000, 10000, 50000, 100000], "Walker2d-v4")),
        ("dmm26/antmaze-umaze", (8, 128, 1e-4, [1, 10, 100, 1000, 100000], "antmaze-umaze-v4@origin=start")),
    ],
)
def test_settings_are_those_of_the_paper(name, expected):
    found = preset(name)
    config = run_config(found.recipe, found.settings)
    model = config.model
    assert (model.context, model.width, config.train.learning_rate, list(config.eval.targets), found.env) == expected


@pytest.mark.parametrize("name", [name for name in presets() if not name.endswith(GAMES)])
def test_training_in_locomotion_and_mazes_is_that_of_the_shared_code(name):
    found = presets()[name]
    config = run_config(found.recipe, found.settings)
    train, warmup = config.train, {"edt": 10_000, "reinformer": 5000}.get(found.recipe, 10_000)
    assert (train.clip_norm, train.weight_decay, train.beta2, train.decayed) == (0.25, 1e-4, 0.999, "all")
    assert train.warmup * train.steps == pytest.approx(warmup)
    batch = {"edt": 128 if found.task.startswith("halfcheetah") else 256, "reinformer": 128}.get(found.recipe, 64)
    assert train.batch_size == batch
    assert config.eval.episodes == 100


@pytest.mark.parametrize(
    "name, pattern, start",
    [
        ("dmm-c/{}", "(modal_conv mamba:none)*{}", "gpt2_reset"),
        ("dmm-l/{}", "(modal_linear mamba:none)*{}", "gpt2_reset"),
        ("dmm-dc/{}", "(modal_conv mamba)*{}", "gpt2_reset"),
        ("dmm-dl/{}", "(modal_linear mamba)*{}", "gpt2_reset"),
        ("dm/{}", "(mamba mlp)*{}", "gpt2_reset"),
        ("mambadm/{}", "(gloma mlp)*{}", "official"),  # of which no code was released
    ],
)
@pytest.mark.parametrize("task, layers", [("hopper-medium", 3), ("breakout", 6)])
def test_residuals_and_step_sizes_are_those_of_the_released_code(name, pattern, start, task, layers):
    found = preset(name.format(task))
    model = run_config(found.recipe, found.settings).model
    assert (model.pattern, model.dt_init) == (pattern.format(layers), start)


def test_the_mixers_of_the_2026_model_are_trained_where_its_code_trains_them():
    frozen = {name for name, one in presets().items() if run_config(one.recipe, one.settings).model.frozen_shared_mixer}
    assert frozen == {"dmm26/antmaze-umaze", "dmm26/antmaze-umaze-diverse"}


def test_presets_exist_for_recipes_that_do():
    assert {one.recipe for one in presets().values()} == (set(PAPERS) | set(ATARI)) & set(RECIPES)
    assert len(presets()) == 11 * len(set(PAPERS)) + len(GAMES) * len(ATARI)


@pytest.mark.parametrize(
    "name, expected",
    [
        ("dt/breakout", (30, 128, 5 * 500_000 // 128, 90)),
        ("dt/pong", (50, 512, 5 * 500_000 // 512, 20)),
        ("dm/pong", (50, 256, 10 * 500_000 // 256, 20)),
        ("dm/qbert", (30, 256, 10 * 500_000 // 256, 14000)),
        ("dc/pong", (8, 512, 10 * 500_000 // 512, 20)),
        ("dmm-dc/seaquest", (20, 64, 10 * 500_000 // 64, 1150)),
    ],
)
def test_settings_in_atari_are_those_of_the_papers(name, expected):
    config = run_config(preset(name).recipe, preset(name).settings)
    (target,) = config.eval.targets
    assert (config.model.context, config.train.batch_size, config.train.steps, target) == expected
    assert (config.eval.sample, config.eval.episodes, config.eval.context) == (True, 10, config.model.context)
    tokens = 3 * config.model.context * config.train.batch_size
    assert round(config.train.warmup * config.train.steps) == -(-512 * 20 // tokens)
    assert (config.model.pixels, config.model.width, config.model.dropout) == ("unit", 128, 0.1)
    assert config.model.heads == (8 if name.startswith("dt") else 1)
    train = config.train
    rates = (train.learning_rate, train.beta2, train.weight_decay, train.decayed, train.clip_norm, train.schedule)
    assert rates == (6e-4, 0.95, 0.1, "matrices", 1.0, "cosine")


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(DataError, match=r"got 'dmm-dc/hoper-medium' \(did you mean 'dmm-dc/hopper-medium'\?\)"):
        preset("dmm-dc/hoper-medium")
