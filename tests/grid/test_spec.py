from types import SimpleNamespace

import pytest
import yaml

from scanrl.grid.attempt import _steps_scored
from scanrl.grid.reading import changed, count_or_seeds, grid_from, preset_grid, read_grid
from scanrl.grid.spec import Budget
from scanrl.types import DataError
from tests.grid.grids import grid, grid_values


def test_a_grid_stands_for_every_combination_seed_by_seed(tmp_path):
    jobs = grid(tmp_path, seeds=2, budgets=[{"updates": 12}, {"cpu_seconds": 1.5}]).jobs()
    assert [job.label for job in jobs[:4]] == [
        ("tiny", "pole", "12 updates", 0),
        ("wide", "pole", "12 updates", 0),
        ("tiny", "pole", "1.5 CPU s", 0),
        ("wide", "pole", "1.5 CPU s", 0),
    ]
    assert [job.seed for job in jobs] == [0] * 4 + [1] * 4
    assert len({job.id for job in jobs}) == len({job.folder for job in jobs}) == 8


def test_settings_of_a_recipe_win_over_those_of_the_grid(tmp_path):
    jobs = grid(tmp_path).jobs()
    assert [job.config(12).model.width for job in jobs] == [8, 12]


def test_a_variant_of_a_recipe_is_named_behind_it(tmp_path):
    recipes = {"dmm-dc+no-input-mixer": None, "mine": {"recipe": "dmm-dc+own-convolution+width-128", "model.width": 16}}
    models = [job.config(12).model for job in grid(tmp_path, recipes=recipes, settings={}).jobs()]
    assert (models[0].pattern, models[0].inner_mixer) == ("mamba*3", "modal_conv")
    assert (models[1].inner_mixer, models[1].width) == ("conv4", 16)


def test_checkpoints_are_spread_over_the_run_and_the_last_one_is_the_end(tmp_path):
    job = grid(tmp_path, evaluate={"checkpoints": 10}).jobs()[0]
    for steps, expected in ((100, 10), (1003, 100), (3, 1)):
        train = job.config(steps).train
        assert (train.checkpoint_every, train.validate_every, train.keep, train.steps) == (expected, expected, 0, steps)
    assert job.config(100).eval.every == -1  # the grid scores checkpoints itself


@pytest.mark.parametrize("steps, count", [(11, 10), (1003, 10), (100, 10), (199, 7), (3, 10), (500, 3), (50, 1)])
def test_as_many_checkpoints_are_scored_as_were_asked_for(tmp_path, steps, count):
    job = grid(tmp_path, evaluate={"checkpoints": count}).jobs()[0]
    found = _steps_scored(job, SimpleNamespace(config=job.config(steps)))
    assert len(found) == min(count, steps)
    assert found[-1] == steps
    even = [steps * part / len(found) for part in range(1, len(found) + 1)]
    assert max(abs(a - b) for a, b in zip(found, even, strict=True)) <= steps / len(found) / 2


def test_nothing_may_be_said_twice(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text("recipes:\n  bc: {model.width: 8}\n  bc: {model.width: 16}\n")
    with pytest.raises(DataError, match=r"grid.yaml: expected plain YAML, got: the key 'bc' twice in .* line 2"):
        read_grid(path)
    with pytest.raises(DataError, match=r"^recipes: expected each name once, got 'bc' twice$"):
        grid(tmp_path, recipes=["bc", "bc"])
    with pytest.raises(DataError, match=r"^budgets: expected each once, got 3 updates twice$"):
        grid(tmp_path, budgets=[{"updates": 3}, {"updates": 3}]).jobs()


def test_an_error_names_the_file(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump(grid_values(tmp_path, recipes={"bd": {}})))
    with pytest.raises(DataError, match=r"grid.yaml: recipes: bd: recipe: expected one of"):
        read_grid(path)


def test_a_run_is_the_same_wherever_its_data_lie(tmp_path):
    values = grid_values(tmp_path)
    first = grid_from(values).jobs()[0]
    values["tasks"]["pole"]["data"] = "store:/elsewhere/cartpole"
    assert grid_from(values).jobs()[0].id == first.id
    values["tasks"]["pole"]["data"] = "store:/elsewhere/other"
    assert grid_from(values).jobs()[0].id != first.id


@pytest.mark.parametrize(
    "value, seeds",
    [(3, (0, 1, 2)), ("3", (0, 1, 2)), ("3-4", (3, 4)), ("0,7", (0, 7)), ([5, 2], (5, 2))],
)
def test_seeds_are_how_many_or_which(value, seeds):
    assert count_or_seeds(value) == seeds


@pytest.mark.parametrize(
    "change, message",
    [
        ({"taks": {}}, "taks: expected one of tasks, recipes, seeds, budgets, settings, evaluate"),
        ({"tasks": {}}, "tasks: expected at least one, got none"),
        ({"tasks": {"x": {"data": "d"}}}, "tasks.x.env: expected a value, got none"),
        ({"tasks": {"x": {"data": "d", "env": "e", "targets": ["a"]}}}, "tasks.x.targets[0]: expected float, got 'a'"),
        ({"recipes": {"tiny": 3}}, "recipes.tiny: expected a mapping, got 3"),
        ({"recipes": {"dmmm": {}}}, "recipes: dmmm: recipe: expected one of dt, "),
        ({"recipes": ["dmm-dc+gelo"]}, "behind dmm-dc+, got 'gelo' (did you mean 'gelu'?)"),
        ({"recipes": ["bc+gelu"]}, "recipes.bc+gelu: expected no variant of bc, got 'gelu'"),
        ({"recipes": {"dt": {"model.widht": 3}}}, "recipes: dt: model.widht: expected one of pattern, "),
        ({"recipes": {"dt": {"train.steps": 3}}}, "recipes.dt: train.steps: expected in budgets, where"),
        ({"settings": {"eval": {"targets": [1]}}}, "settings: eval.targets: expected in targets of the task"),
        ({"budgets": None}, "budgets: expected e.g. {updates: 1000}"),
        ({"budgets": {}}, "budgets: expected one of updates, cpu_seconds, wall_seconds, got none"),
        ({"budgets": {"updates": 1, "cpu_seconds": 1}}, "wall_seconds, got updates, cpu_seconds"),
        ({"budgets": [{"updates": 0}]}, "budgets: updates: expected more than 0 and finite, got 0"),
        ({"seeds": 0}, "seeds: expected how many (1 to 1000), a range such as 0-4 or a list, got 0"),
        ({"seeds": [1, 1]}, "seeds: expected each one once, got 1 twice"),
        ({"evaluate": {"checkpoints": 0}}, "evaluate.checkpoints: expected last or at least 1, got 0"),
        ({"evaluate": {"contexts": []}}, "evaluate.contexts: expected at least one, got none"),
    ],
)
def test_a_wrong_specification_says_what_was_expected(tmp_path, change, message):
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump({**grid_values(tmp_path), **change}))
    with pytest.raises(DataError) as caught:
        read_grid(tmp_path / "spec.yaml").jobs()
    assert message in str(caught.value)


def test_a_preset_is_a_grid_at_the_protocol_of_its_paper():
    found = changed(preset_grid("dm/hopper-medium", "d4rl:x.hdf5"), seeds="5")
    jobs = found.jobs()
    config = jobs[0].config(100_000)
    assert [job.seed for job in jobs] == [0, 1, 2, 3, 4]
    assert (config.model.width, config.model.context, config.train.learning_rate) == (256, 20, 1e-4)
    assert (config.train.checkpoint_every, config.train.schedule, config.eval.episodes) == (10_000, "constant", 100)
    assert (jobs[0].task.env, jobs[0].task.targets[:2], config.eval.context) == ("Hopper-v4", (1800, 3600), 20)
    assert changed(found, updates=7).budgets == (Budget(updates=7),)
