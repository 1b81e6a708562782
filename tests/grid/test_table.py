import csv
import io

import numpy as np
import pytest

from scanrl.grid.facts import provenance
from scanrl.grid.layout import LAYOUTS, failures, show
from scanrl.grid.table import lines_of
from scanrl.intervals import interquartile_mean, mean, stratified_bootstrap
from scanrl.types import DataError
from tests.grid.grids import row


def test_the_three_columns_are_three_different_choices():
    scores, losses = ((50.0, 80.0), (90.0, 10.0), (70.0, 60.0), (20.0, 95.0)), (0.3, 0.4, 0.1, 0.2)
    (line,) = lines_of([row(scores=scores, losses=losses)])
    found = {name: cell.mean for name, cell in line.cells.items()}
    assert found == {"last": 20.0, "selected": 70.0, "best": 95.0}  # only best looks at other targets


def test_selection_never_looks_at_a_score():
    one, other = ((1.0,), (99.0,), (5.0,)), ((99.0,), (1.0,), (5.0,))
    losses = (0.1, 0.2, 0.3)
    assert lines_of([row(scores=one, losses=losses)])[0].cells["selected"].mean == 1.0
    assert lines_of([row(scores=other, losses=losses)])[0].cells["selected"].mean == 99.0


def test_of_equal_losses_the_earlier_checkpoint_is_selected():
    (line,) = lines_of([row(scores=((1.0,), (2.0,)), losses=(0.1, 0.1))])
    assert line.cells["selected"].mean == 1.0


def test_without_held_out_data_nothing_is_selected():
    (line,) = lines_of([row(losses=(None, None))])
    assert line.cells["selected"] is None
    assert "no held-out data" in LAYOUTS["markdown"]([line])


def test_statistics_are_those_of_the_seeds():
    last = [60.0, 71.0, 55.0, 80.0, 66.0, 90.0, 43.0, 77.0, 68.0]
    (line,) = lines_of([row(seed=seed, scores=((0.0,), (score,))) for seed, score in enumerate(last)])
    cell, values = line.cells["last"], np.array(last)
    assert line.seeds == tuple(range(9))
    assert cell.mean == pytest.approx(values.mean(), rel=1e-12)
    assert cell.iqm == pytest.approx(interquartile_mean(values), rel=1e-12)
    assert cell.interval == stratified_bootstrap(values, statistic=mean)
    assert cell.iqm_interval == stratified_bootstrap(values)


def test_one_seed_has_no_interval(capsys):
    lines = lines_of([row()])
    assert lines[0].cells["last"].interval is None
    show(lines)
    assert "1 seed: no interval" in capsys.readouterr().out
    assert "1 seed: no interval" in LAYOUTS["markdown"](lines)
    (record,) = csv.DictReader(io.StringIO(LAYOUTS["csv"](lines)))
    assert (record["last_mean"], record["last_low"], record["last_high"]) == ("60", "", "")


def test_several_tasks_have_a_line_over_all_with_runs_drawn_within_each():
    rng = np.random.default_rng(0)
    scores = rng.uniform(20, 90, (8, 2))  # seeds x tasks
    rows = [
        row(task=task, seed=seed, scores=((0.0,), (scores[seed, index],)))
        for index, task in enumerate(("hopper", "walker"))
        for seed in range(8)
    ]
    lines = lines_of([*rows, row(task="walker", seed=8)])
    assert [line.keys[1] for line in lines] == ["hopper", "walker", "all 2 tasks"]
    assert lines[2].seeds == tuple(range(8))  # the ninth seed is missing in one task
    assert lines[2].cells["last"].interval == stratified_bootstrap(scores, statistic=mean)


def test_raw_returns_are_not_averaged_over_tasks():
    found = [row(task=task, scores=((1.0,),), losses=(0.1,)) for task in ("a", "b")]
    for one in found:
        del one["checkpoints"][0]["played"][0]["scores"][0]["summary"]["eval/normalized_score"]
    lines = lines_of(found)
    assert [(line.keys[1], line.unit, line.cells["last"].mean) for line in lines] == [
        ("a", "return", 10.0),
        ("b", "return", 10.0),
    ]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"fingerprint": "0" * 64}, "fingerprint: expected the same in all runs"),
        ({"env": "Hopper-v5"}, "env: expected the same in all runs"),
        ({"episodes": 100}, "episodes: expected the same in all runs"),
        ({"trained_context": 20}, "trained_context: expected the same in all runs"),
        ({"batch_size": 1}, "batch_size: expected the same in all runs"),
        ({"seed": 0}, r"seeds: expected each once, got \[0, 0\]"),
    ],
)
def test_numbers_that_cannot_be_compared_share_no_line(change, message):
    with pytest.raises(DataError, match=f"^dm, hopper, 20 updates, recurrent: {message}"):
        lines_of([row(seed=0), row(**{"seed": 1, **change})])


def test_ways_to_remember_are_lines_of_their_own():
    lines = lines_of([row(), row(context=8)])
    assert [line.keys[3] for line in lines] == ["recurrent", "window of 8"]


def test_failed_runs_are_told_and_not_counted():
    failed = {"recipe": "dt", "task": "hopper", "budget": "9 updates", "seed": 3, "status": "failed", "reason": "why"}
    assert [line.keys[0] for line in lines_of([failed, row()])] == ["dm"]
    assert failures([failed, row()]) == ["failed: dt, hopper, 9 updates, seed 3: why"]


def test_what_differs_between_lines_is_told_with_whom_it_belongs_to(capsys):
    show(lines_of([row(), row(recipe="dt", parameters=9), row(recipe="dt", task="walker", env="W-v4", parameters=9)]))
    said = capsys.readouterr().out
    assert "\nparameters: 7 (dm); 9 (dt)\n" in said
    assert "\nenvironment: Hopper-v4 (hopper); W-v4 (walker)\n" in said
    assert "\nrevision: unknown\n" in said


def test_text_for_latex_and_markdown_is_escaped():
    lines = lines_of([row(recipe="a_b|c%")])
    assert r"a\_b|c\%" in LAYOUTS["latex"](lines)
    assert r"| a_b\|c% |" in LAYOUTS["markdown"](lines)
    lines = lines_of([row(recipe="<b>{c}~^\\")])
    assert r"<b>\{c\}\textasciitilde{}\textasciicircum{}\textbackslash{} &" in LAYOUTS["latex"](lines)
    assert r"| &lt;b>{c}~^\ |" in LAYOUTS["markdown"](lines)


def test_a_name_in_brackets_is_no_markup(capsys):
    show(lines_of([row(recipe="[/b] x"), row(recipe="bc [old]"), row(recipe="bc [red]")]))
    said = capsys.readouterr().out
    assert all(name in said for name in ("[/b] x", "bc [old]", "bc [red]"))


@pytest.mark.parametrize("layout", ["markdown", "latex", "html"])
def test_a_document_says_what_failed(layout):
    assert "failed: dt, hopper, seed 3: why" in LAYOUTS[layout](lines_of([row()]), ["failed: dt, hopper, seed 3: why"])


def test_runs_that_were_asked_for_otherwise_are_not_averaged():
    other = {"recipe": "dm", "settings": {"model.width": 8}, "seed": 1}
    message = (
        r"dm, hopper, 20 updates, recurrent: settings: expected the same in all runs, got \{\} and \{'model.width': 8\}"
    )
    with pytest.raises(DataError, match=message):
        lines_of([row(), row(seed=1, asked=other)])


def test_runs_of_a_recipe_that_has_changed_between_them_are_not_averaged():
    before, now = {"model.expand": 2, "model.width": 8}, {"model.expand": 1, "model.width": 8, "model.new": 0}
    with pytest.raises(DataError, match=r"recurrent: model.expand: expected the same in all runs, got 2 and 1"):
        lines_of([row(settings=before), row(seed=1, settings=now)])
    assert lines_of([row(settings=before), row(seed=1, settings={**before, "model.new": 0})])


def test_of_one_budget_each_has_its_highest():
    rows = [row(budget=budget, scores=((0.0,), (score,))) for budget, score in (("1 CPU s", 7.0), ("2 CPU s", 9.0))]
    page = LAYOUTS["html"](lines_of([*rows, row("dt", budget="2 CPU s", scores=((0.0,), (3.0,)))]))
    assert "hopper: dm has the highest mean after 1 CPU s, 7. dm has the highest mean after 2 CPU s, 9 (1 seed" in page


def test_the_page_says_which_recipe_is_highest_and_what_comes_near():
    rows = [row(seed=seed, scores=((0.0,), (score,))) for seed, score in enumerate((40.0, 50.0, 60.0))]
    rows += [row(recipe="dt", seed=seed, scores=((0.0,), (score,))) for seed, score in enumerate((54.0, 55.0, 56.0))]
    rows += [row(recipe="<bc>", seed=seed, scores=((0.0,), (score,))) for seed, score in enumerate((1, 2, 3))]
    page = LAYOUTS["html"](lines_of(rows))
    assert "hopper: dt has the highest mean, 55; intervals of 1 of 2 others reach its own." in page
    assert "&lt;bc&gt;" in page
    assert "<bc>" not in page
    assert page.count("<svg") == 3


def test_the_page_of_a_grid_without_a_run_says_so():
    assert "No run is done yet." in LAYOUTS["html"]([])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_shows_every_line_and_column(layout):
    said = LAYOUTS[layout](lines_of([row(seed=seed) for seed in range(3)]))
    assert all(name in said for name in ("dm", "hopper", "recurrent", "last", "selected", "best"))
    assert "60" in said
    assert "70" in said


def test_what_differs_by_recipe_and_task_is_told_of_groups_of_them():
    rows = [row(name, task, parameters=size) for task, size in (("a", 7), ("b", 8)) for name in ("dm", "dt")]
    rows += [row("bc", "a", parameters=7)]
    (found,) = [fact for fact in provenance(lines_of(rows)) if fact.startswith("parameters")]
    assert found == "parameters: 7 (a); 8 (b)"
    rows += [row("bc", "b", parameters=7), row("dt", "c", parameters=7), row("dm", "c", parameters=8)]
    (found,) = [fact for fact in provenance(lines_of(rows)) if fact.startswith("parameters")]
    assert found == "parameters: 7 (dm in a; dt in a | c; bc in a | b); 8 (dm in b | c; dt in b)"
