"""The scaling study: which runs of a grid differ in one size alone, and what is drawn and told of them."""

import json
from xml.etree import ElementTree

import numpy as np
import pytest

from scanrl.cli import main
from scanrl.grid.records import Records
from scanrl.grid.scaling import draw_scaling, scaling
from scanrl.types import DataError
from tests.grid.grids import row


def sized(name="dm", seed=0, loss=0.5, score=10.0, recipe="dm", parameters=7, task="hopper", **settings):
    asked = {"recipe": recipe, "settings": settings}
    shown = {"scores": ((0.0,), (score,)), "losses": (0.9, loss), "parameters": parameters}
    return row(name, task=task, seed=seed, asked=asked, **shown)


def study():
    """Three widths and two shares, two seeds, of which one run is missing; and a depth at another width."""
    rows = []
    for seed in (0, 1):
        rows += [
            sized("wide", seed, 0.2 + seed, 30.0, parameters=9, **{"model.width": 256}),
            sized("dm", seed, 0.3, 20.0 + seed),
            sized("narrow", seed, 0.4, 10.0, parameters=5, **{"model.width": 64}),
            sized("half", seed, 0.6, 5.0, **{"train.data_share": 0.5}),
        ]
    return [*rows[:-1], sized("flat", 0, 0.7, 1.0, **{"model.pattern": "mamba mlp", "model.width": 64})]


def test_runs_are_compared_that_differ_in_one_size_alone():
    width, depth, data = scaling(study())
    assert (width.recipe, width.task, width.budget, width.context) == ("dm", "hopper", "20 updates", "recurrent")
    assert (width.axis, width.others) == ("width", "depth 3, data 1")
    np.testing.assert_array_equal(width.sizes, [64, 128, 256])
    np.testing.assert_array_equal(width.parameters, [5, 7, 9])
    np.testing.assert_allclose(width.losses, [[0.4, 0.4], [0.3, 0.3], [0.2, 1.2]])
    np.testing.assert_allclose(width.scores, [[10, 10], [20, 21], [30, 30]])
    assert (depth.axis, depth.others, depth.sizes.tolist()) == ("depth", "width 64, data 1", [1, 3])
    np.testing.assert_allclose(depth.losses, [[0.7, np.nan], [0.4, 0.4]])
    assert (data.axis, data.others, data.sizes.tolist()) == ("data", "width 128, depth 3", [0.5, 1])
    np.testing.assert_allclose(data.scores, [[5, np.nan], [20, 21]])
    assert data.seeds.tolist() == [0, 1]


@pytest.mark.parametrize(
    "other",
    [
        sized("other", recipe="dmm26", **{"model.width": 64}),
        sized("other", **{"model.width": 64, "train.batch_size": 3}),
        sized("other", task="walker", **{"model.width": 64}),
        sized("other", **{"model.pattern": "(mamba mamba mlp)*2"}),
        {**sized("other", **{"model.width": 64}), "status": "failed"},
    ],
    ids=["recipe", "setting", "task", "mixers", "failed"],
)
def test_what_differs_in_more_is_not_compared(other):
    with pytest.raises(DataError, match=r"^analyse scaling: expected runs that differ in model.width, .* alone, got "):
        scaling([sized(), other])


def test_sizes_are_those_of_the_run_not_of_todays_recipe():
    rows = [sized("dm"), sized("narrow", **{"model.width": 64})]
    rows[0]["settings"] = {"model.width": 32}
    (width,) = scaling(rows)
    assert width.sizes.tolist() == [32, 64]


def test_the_same_size_twice_is_one_line_that_names_both():
    rows = [sized(), sized("said", **{"model.width": 128}), sized("narrow", **{"model.width": 64})]
    with pytest.raises(DataError, match=r"expected each size once, got the same model and data as 'dm' and 'said'$"):
        scaling(rows)


def test_a_grid_without_held_out_data_has_scores_alone():
    rows = [sized("a", loss=None), sized("b", loss=None, **{"model.width": 64})]
    (found,) = scaling(rows)
    assert np.isnan(found.losses).all()
    assert len(ElementTree.fromstring(draw_scaling([found])).findall(".//*[@role='img']")) == 1


def test_the_drawing_has_a_loss_and_a_score_for_each_size():
    drawn = draw_scaling(scaling(study()))
    root = ElementTree.fromstring(drawn)
    titles = [chart.get("aria-label") for chart in root.findall(".//*[@role='img']")]
    assert titles == [
        f"{value} against {size}"
        for size in ("width", "depth", "share of the training episodes")
        for value in ("held-out loss", "score")
    ]
    assert "width 128: 20.5 (20 to 21)" in drawn
    assert drawn.count(">256<") == 2  # sizes are the marks of the axis


def test_the_command_prints_draws_and_tells_all(tmp_path, capsys):
    records = Records(tmp_path / "rows.jsonl")
    for number, one in enumerate(study()):
        records.append({**one, "id": f"{number}"})
    assert main(["analyse", "scaling", str(tmp_path)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "dm, hopper, 20 updates, recurrent: width (depth 3, data 1)" in text
    assert "128 7 0.3000 (0.3000 to 0.3000) 20.5 (20.0 to 21.0) 2" in text
    assert "1 7 0.7000 1.0 1" in text
    ElementTree.parse(tmp_path / "scaling.svg")
    assert main(["analyse", "scaling", str(tmp_path), "--json", "--out", str(tmp_path / "other.svg")]) == 0
    told = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(name))
    assert told[1]["losses"] == [[0.7, None], [0.4, 0.4]]
    assert (tmp_path / "other.svg").read_text() == (tmp_path / "scaling.svg").read_text()
    assert main(["analyse", "scaling"]) == 2
    assert "analyse scaling: expected DIR, got none" in capsys.readouterr().err
