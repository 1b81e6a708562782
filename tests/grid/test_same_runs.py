"""Which runs of a grid are taken for runs that are recorded, and which would not be of the same kind."""

import json
from dataclasses import replace

import pytest

from scanrl.data import write_store
from scanrl.grid.reading import grid_from
from scanrl.grid.schedule import ROWS, read_rows, run_grid
from scanrl.grid.table import lines_of
from scanrl.models import recipes
from scanrl.types import DataError
from tests.conftest import make_dataset
from tests.grid.grids import grid, grid_values, quiet
from tests.runs import CARTPOLE

pytestmark = pytest.mark.usefixtures("no_flushing")


def test_a_grid_may_grow(uninterrupted, tmp_path, monkeypatch):
    (tmp_path / "grid").mkdir()
    (tmp_path / "grid" / ROWS).write_bytes((uninterrupted / ROWS).read_bytes())
    made = []
    monkeypatch.setattr("scanrl.grid.schedule.attempt", lambda job, *_, **__: made.append(job.label) or {}["stop"])
    run_grid(grid(tmp_path, seeds=2), tmp_path / "grid", tell=quiet)
    assert [label[3] for label in made] == [1, 1]


def test_rows_made_with_other_settings_are_refused(uninterrupted):
    other = grid(uninterrupted.parent, recipes={"tiny": {"recipe": "dmm-dc", "model.width": 16}})
    with pytest.raises(
        DataError, match=r"rows.jsonl: tiny, pole, 12 updates, seed 0: model.width: expected 8 as in its row, got 16 \("
    ):
        run_grid(other, uninterrupted, tell=quiet)
    # Another seed of the same name would be averaged with it.
    other = grid(uninterrupted.parent, recipes={"tiny": {"recipe": "dmm-dc", "model.width": 16}}, seeds="1-2")
    with pytest.raises(DataError, match=r"seed 1: model.width: expected 8 as in its row, got 16 \("):
        run_grid(other, uninterrupted, tell=quiet)


def test_a_recipe_that_has_changed_since_is_refused(uninterrupted, tmp_path):
    """What a grid leaves to the recipe is part of what was run."""
    (tmp_path / "grid").mkdir()
    rows = read_rows(uninterrupted)
    assert rows[0]["settings"]["model.width"] == 8
    assert rows[0]["settings"]["model.expand"] == 2  # not said by the grid
    assert not {"train.seed", "train.steps"} & set(rows[0]["settings"])
    for key, before, removed in (("model.expand", 3, False), ("model.context", 5, True)):
        row = {**rows[0], "settings": {**rows[0]["settings"], key: before}}
        if removed:  # as rows were before they had all settings
            row = {**rows[0], "trained_context": before}
            del row["settings"]
        (tmp_path / "grid" / ROWS).write_text(json.dumps(row) + "\n")
        now = rows[0]["settings"][key]
        message = rf"seed 1: {key}: expected {before} as in its row, got {now} since dmm-dc has changed \("
        with pytest.raises(DataError, match=message):
            run_grid(grid(tmp_path, seeds="1-1"), tmp_path / "grid", tell=quiet)


def test_a_run_that_was_cut_says_what_it_was_trained_with(tmp_path, monkeypatch):
    """It goes on as it began, whatever its recipe has become since."""
    stopping, before = grid(tmp_path, recipes={"tiny": {"recipe": "dmm-dc"}}), recipes.RECIPES["dmm-dc"]()
    monkeypatch.setattr("scanrl.grid.attempt._scored", lambda *_: {}["cut"])
    assert run_grid(stopping, tmp_path / "grid", tell=quiet) == (0, 1)
    monkeypatch.undo()
    changed = replace(before, model=replace(before.model, expand=3))
    monkeypatch.setitem(recipes.RECIPES, "dmm-dc", lambda: changed)
    assert run_grid(stopping, tmp_path / "grid", retry_failed=True, tell=quiet) == (1, 0)
    (row,) = read_rows(tmp_path / "grid")
    assert row["settings"]["model.expand"] == before.model.expand == 2
    with pytest.raises(DataError, match=r"model.expand: expected 2 as in its row, got 3 since dmm-dc has changed"):
        run_grid(stopping, tmp_path / "grid", tell=quiet)


def test_settings_that_are_newer_than_a_row_are_no_change(uninterrupted, tmp_path):
    (tmp_path / "grid").mkdir()
    rows = read_rows(uninterrupted)
    for row in rows:
        del row["settings"]["model.expand"]
        row["settings"]["model.gone"] = 1
    (tmp_path / "grid" / ROWS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run_grid(grid(uninterrupted.parent), tmp_path / "grid", tell=quiet) == (2, 0)


def test_two_names_are_two_runs_whatever_they_ask_for(tmp_path):
    again = make_dataset(CARTPOLE, seed=5)
    write_store(again, tmp_path / "other" / "cartpole")
    values = grid_values(tmp_path, recipes={"bc": {}, "copy": {"recipe": "bc"}}, evaluate={})
    values["tasks"]["second"] = {**values["tasks"]["pole"], "data": f"store:{tmp_path / 'other' / 'cartpole'}"}
    run_grid(grid_from(values), tmp_path / "grid", tell=quiet)
    rows = read_rows(tmp_path / "grid")
    labels = [(row["recipe"], row["task"]) for row in rows]
    assert labels == [("bc", "pole"), ("copy", "pole"), ("bc", "second"), ("copy", "second")]
    assert len({row["fingerprint"] for row in rows}) == 2
    assert [line.keys[:2] for line in lines_of(rows) if line.about] == labels


def test_what_failed_may_be_asked_for_otherwise(tmp_path):
    wild = grid(tmp_path, evaluate={}, recipes={"bc": {"train.learning_rate": 1e30}})
    assert run_grid(wild, tmp_path / "grid", tell=quiet) == (0, 1)
    tame = grid(tmp_path, evaluate={}, recipes={"bc": {"train.learning_rate": 1e-3}})
    assert run_grid(tame, tmp_path / "grid", tell=quiet) == (1, 0)
    assert [row["status"] for row in read_rows(tmp_path / "grid")] == ["done"]
