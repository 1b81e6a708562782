"""The studies under results/: what they plan, that no run is made twice, and the pages made from rows."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import gymnasium
import pytest

from results import equal_time, hopper_contexts, hopper_scores, in_context, long_training, study, subgoals
from results.equal_time import TASKS, append_missing, missing, read_rows
from results.long_training import FORMS, STEPS, drawing, page, planned
from scanrl.settings import run_config


def test_every_run_of_the_study_is_a_run_that_can_be_made() -> None:
    runs = planned([0, 1])
    assert len(runs) == len(set(runs)) == 2 * len(TASKS) * (2 * len(FORMS) + 2)
    assert [run.seed for run in runs] == sorted(run.seed for run in runs)
    for run in runs:
        config = run_config(run.recipe, FORMS[run.form])
        steps = config.train.batch_size * config.model.context
        assert 0.98 * STEPS <= steps <= STEPS
        assert config.train.sequences == ("episodes" if run.form == "episodes" else "windows")


def test_names_choose_runs() -> None:
    found = study.named(planned([3]), ["hopper-*/dt/64", "walker2d-medium/*/episodes"])
    assert {run.dataset for run in found} == {"hopper-medium", "hopper-medium-replay", "walker2d-medium"}
    assert len(found) == 2 + len(long_training.DRAWN)
    assert study.named(planned([3]), ["nothing/*"]) == []


def test_a_run_with_a_row_is_not_made_again() -> None:
    runs = study.named(planned([0, 1]), ["hopper-medium/dt/*"])
    rows = [{**runs[2]._asdict(), "updates": 7}, {**runs[4]._asdict(), "seconds": 1.0}]
    left = missing(runs, json.loads(json.dumps(rows)))
    assert runs[2] not in left
    assert len(left) == len(runs) - 1


def test_a_study_goes_on_behind_a_row_that_was_cut_off(tmp_path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    file, made = tmp_path / "rows.jsonl", []
    file.write_text('{"a": 1}\n{"a": 2, "b')

    def run(words, **more):
        made.append(words[-1])
        failed = words[-1] == "bad"
        return subprocess.CompletedProcess(words, failed, f'said before\n{{"a": "{words[-1]}"}}\n', "it went wrong")

    monkeypatch.setattr(equal_time.subprocess, "run", run)
    assert append_missing([("one", ["x", "3"]), ("two", ["x", "bad"]), ("three", ["x", "4"])], file, 1) == 1
    assert made == ["3", "bad", "4"]
    assert [row["a"] for row in read_rows(file)] == [1, "3", "4"]
    assert "two: failed: it went wrong" in capsys.readouterr().err


def test_data_that_is_not_there_is_named(tmp_path, capsys) -> None:
    words = ["run", "--rows", str(tmp_path / "rows.jsonl"), "--only", "walker2d-medium/*/8"]
    for more, said in (
        (["--data", str(tmp_path)], f"--data: {tmp_path}: expected walker2d-medium-v4.hdf5, found none"),
        ([], "--data: expected the folder of the recordings, got none"),
    ):
        with pytest.raises(SystemExit) as stopped:
            study.command(long_training.STUDY, "", [*words, *more])
        assert stopped.value.code == 2
        assert said in capsys.readouterr().err


def row(run, recurrent: float, window: float) -> dict:
    acted = {"recurrent": {"returns": [recurrent]}, "8": {"returns": [window]}}
    facts = {"env": "Hopper-v4", "updates": 10, "validation_loss": 0.5, "validation_loss_recurrent": 0.25}
    return {**run._asdict(), **facts, "acted": acted}


def test_the_page_compares_seed_by_seed() -> None:
    runs = study.named(planned([0, 1]), ["hopper-medium/dt/8"])
    rows = [row(run, score, 1617.0) for run, score in zip(runs, (3234.3, 1617.0), strict=True)]
    text = page(rows)
    both, cells = cells_of(text, "dt")
    assert both[:5] == ["dt", "8 steps", "75.2", "50.3", "+24.8"]
    assert (both[6], both[7:]) == ("1 of 2", ["-"] * 6)  # no run on windows of 20 steps to compare with
    assert cells[:3] == ["dt", "8 steps", "75.2"]
    assert (cells[4], cells[6], cells[8], cells[10:]) == ("50.3", "24.8", "2", ["0.5000", "0.2500"])
    assert "walker2d" not in text
    charts = ElementTree.fromstring(drawing(rows)).findall(".//*[@role='img']")
    assert [chart.get("aria-label", "").split(" against")[0] for chart in charts] == [
        "normalised score",
        "carried less window, points",
    ]


def cells_of(text: str, recipe: str) -> list[list[str]]:
    """The cells of every line of a recipe, in all tables."""
    lines = [line for line in text.splitlines() if line.startswith(f"| {recipe} |")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_over_all_sets_each_counts_the_same_and_pairs_are_compared() -> None:
    span = 3234.3 + 20.272305  # a normalised score of 100, in returns of Hopper
    played = {  # carried, window, in normalised points
        ("hopper-medium", "8", 0): (10, 20),
        ("hopper-medium", "8", 1): (30, 20),
        ("hopper-medium-replay", "8", 0): (60, 50),
        ("hopper-medium", "64", 0): (50, 40),
        ("hopper-medium-replay", "64", 0): (40, 60),
    }
    runs = study.named(planned([0, 1]), ["hopper-*/dmm-dc/8", "hopper-*/dmm-dc/64"])
    rows = [
        row(run, *(points / 100 * span - 20.272305 for points in played[run.dataset, run.form, run.seed]))
        for run in runs
        if (run.dataset, run.form, run.seed) in played
    ]
    short, long = cells_of(page(rows), "dmm-dc")[:2]
    assert short[2:5] == ["40.0", "35.0", "+3.3"]  # (20 + 60) / 2, and (-10 + 10 + 10) / 3
    assert short[6] == "2 of 3"
    assert (long[2:5], long[6]) == (["45.0", "50.0", "-5.0"], "1 of 2")
    assert (long[7], long[9]) == ("+10.0", "1 of 2")  # 50 - 20 and 40 - 50
    assert (short[10:], long[10], long[12]) == (["-", "-", "-"], "+15.0", "2 of 2")  # 40 - 20 and 60 - 50
    document = long_training.also(rows)[long_training.DOCUMENT]
    assert [(cells[1], cells[2], cells[4]) for cells in cells_of(document, "dmm-dc")[2:]] == [
        ("8 steps", "+3.3", "2 of 3"),
        ("64 steps", "-5.0", "1 of 2"),
    ]


@pytest.mark.parametrize(
    ("script", "also"),
    [
        (hopper_contexts, set()),
        (hopper_scores, set()),
        (in_context, {in_context.PICTURES / f"in_context-{world}.svg" for world in in_context.WORLDS}),
        (long_training, {long_training.PICTURE, long_training.DOCUMENT}),
        (subgoals, set()),
    ],
)
def test_what_is_committed_is_what_the_rows_give(script: ModuleType, also: set[Path]) -> None:
    made = script.STUDY
    rows, main = read_rows(made.script.with_suffix(".jsonl")), made.script.with_suffix(".md")
    pages = {main: made.page(rows), **(made.also(rows) if made.also else {})}
    assert set(pages) == {main, *also}
    for file, text in pages.items():
        assert file.read_text(encoding="utf-8") == text, f"{file.name}: run: python -m {script.__name__} page"


def test_every_run_in_context_reads_whole_contexts() -> None:
    runs = in_context.planned([0, 2])
    assert len(runs) == len(set(runs)) == 2 * (len(in_context.WORLDS) * len(in_context.RECIPES) - 1)
    for run in runs:
        world = in_context.WORLDS[run.world]
        steps = gymnasium.make(world.env, task=0).unwrapped.family.horizon
        config = run_config(run.recipe.removesuffix("-5"), in_context.settings(world, run.recipe, run.seed, steps))
        assert config.model.context == config.train.context_episodes * steps
        paces = {"dmh": 20, "dmh-5": 5}
        assert config.model.subgoal_steps == paces.get(run.recipe, 0)


def test_a_run_in_context_is_trained_and_played(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    small = in_context.World("Darkroom-v0", "A room", 2, 4, 3, tasks=5, steps=800, seconds=0.5)
    monkeypatch.setitem(in_context.WORLDS, "darkroom", small)
    rows = [
        {**run._asdict(), **in_context.one_run(run)} for run in in_context.planned([0, 1]) if run.world == "darkroom"
    ]
    assert {(row["tasks"], row["updates"] > 0, len(row["curves"]["all"]), len(row["history"])) for row in rows} == {
        (16, True, 3, 4)
    }
    assert rows[0]["history"][-1] > rows[0]["history"][0] + 3
    text = in_context.page(json.loads(json.dumps(rows)))
    assert [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| ")][1:] == [
        "| ad",
        "| ad-mamba",
        "| ad-mamba, last",
        "| dmh",
        "| dmh, last",
        "| dmh-5",
        "| dmh-5, last",
    ]
    [drawn] = in_context.pictures(rows).values()
    assert ElementTree.fromstring(drawn).tag.endswith("svg")
    assert "optimal" in drawn


def test_a_study_plans_and_runs_by_name(tmp_path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    made = []

    def append(jobs, file, workers):
        made.extend(words for _, words in jobs)
        return 0

    monkeypatch.setattr(study, "append_missing", append)
    rows = ["--rows", str(tmp_path / "rows.jsonl"), "--seeds", "1", "--only", "key-*/a*"]
    study.command(in_context.STUDY, "", ["plan", *rows])
    assert capsys.readouterr().out.splitlines() == ["key-to-door/ad, seed 1", "key-to-door/ad-mamba, seed 1"]
    with pytest.raises(SystemExit):
        study.command(in_context.STUDY, "", ["run", *rows])
    assert made[1] == ["-m", "results.in_context", "one", "--seeds", "1", "--run", "key-to-door/ad-mamba"]


def test_scores_on_hopper_have_as_many_seeds_as_they_say() -> None:
    runs = hopper_scores.planned(range(10))
    assert len(runs) == len(set(runs)) == 8 + 5 + 8 + 5 + 5 + 5 * 5 + 2 * 4 * 3
    assert missing(runs, read_rows(hopper_scores.STUDY.script.with_suffix(".jsonl"))) == []
    assert [run.name for run in study.named(runs, ["hopper-medium/bc"])] == 8 * ["hopper-medium/bc"]


def test_contexts_on_hopper_are_those_of_the_paper() -> None:
    runs = hopper_contexts.planned([0, 1])
    assert [run.name for run in runs] == 2 * list(hopper_contexts.RECIPES)
    config = run_config("dmh", hopper_contexts.settings("dmh", 0))
    assert (config.train.context_episodes, config.train.context_order, config.model.subgoal_steps) == (4, "return", 20)
    rows = [
        {**run._asdict(), "curve": [40.0 + run.seed, 60.0], "updates": 5, "cpu_seconds": 1.0}
        for run in runs
        if run.recipe == "dmh"
    ]
    assert "| dmh | 40.5 | 34.1 to 46.9 | 60.0 | 60.0 to 60.0 | 2 | 5 | 1 |" in hopper_contexts.page(rows)
