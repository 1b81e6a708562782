"""The study of sub-goals: its runs can be made, end with rows, and give a page."""

from __future__ import annotations

import json

from results import subgoals
from scanrl.models.ablations import ABLATIONS
from scanrl.settings import run_config


def test_every_form_of_sub_goals_is_a_model_that_can_be_built() -> None:
    runs = subgoals.planned([0])
    assert len(runs) == len(set(runs))
    assert {run.form for run in runs} == {*subgoals.PACES, *ABLATIONS["dmh"]}
    for run in runs:
        assert run_config("dmh", {f"model.{name}": value for name, value in subgoals.changes(run).items()})
    assert subgoals.curriculum(500) == [32, 63, 125, 250, 500]
    assert subgoals.curriculum(50) == [50]


def test_a_run_of_the_study_of_sub_goals_ends_with_a_row() -> None:
    found = subgoals.one_run(subgoals.Run("tmaze-3", "every-5", 0, 200))
    assert found["solved"]
    assert 0 < found["updates_of_length"][3] <= 200
    assert subgoals.one_run(subgoals.Run("tmaze-3", "adaptive", 0, 0))["updates_of_length"] == {3: None}
    found = json.loads(json.dumps(subgoals.one_run(subgoals.Run("darkroom", "adaptive", 0, 1))))
    assert found["chosen"] in subgoals.CHOICES
    best = min(found["losses"], key=found["losses"].get)
    assert found["chosen"] == int(best)
    assert {steps: len(curve) for steps, curve in found["curves"].items()} == {"5": 40, "10": 40, "20": 40}


def test_the_page_of_sub_goals_has_a_line_for_every_form() -> None:
    def maze(form: str, seed: int, updates: int | None) -> dict:
        spent = {"50": 20, "100": updates}
        facts = {"solved": updates is not None, "updates_of_length": spent, "cpu_seconds": 3.0, "chosen": 5}
        return {"task": "tmaze-500", "form": form, "seed": seed, "updates": 400, **facts}

    def room(form: str, reached: float) -> dict:
        curves = {str(c): [reached + c] * 40 for c in ((5, 10, 20) if form == "adaptive" else (5,))}
        facts = {"curves": curves, "chosen": 5, "cpu_seconds": 9.0}
        return {"task": "darkroom", "form": form, "seed": 0, "updates": 10, **facts}

    rows = [maze("every-20", 0, 30), maze("every-20", 1, 50), maze("every-5", 0, None)]
    rows += [room("adaptive", 1.0), room("no-valuable", 2.0), {**room("adaptive", 9.0), "updates": 9}]
    text = subgoals.page(rows)
    assert "| 500 | every-20 | 2 of 2 | 60 | 50 to 70 | 3.0 | 3.0 | 5, 5 |" in text
    assert "| 500 | every-5 | 0 of 1 | - | - | - | - | 5 |" in text
    assert text.count("| adaptive | 6.0 | 6.0 |") == 2
    assert text.count("| - the same network, every 20 | 21.0 |") == 2
    assert text.count("| no-valuable | 7.0 |") == 1
    assert "tmaze-50/" not in text
