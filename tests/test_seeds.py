"""Several seeds side by side: each is the run its seed gives alone, whatever happens to the others."""

import json
import os
import shutil

import numpy as np
import pytest

from scanrl import Policy, learner, train
from scanrl.checkpoint import checkpoints_of, load_checkpoint
from scanrl.data import write_store
from scanrl.intervals import bootstrap_interval
from scanrl.models.decision import DecisionModel
from scanrl.run import Run, locked, open_run
from scanrl.seeds import check_seeds, open_seed_runs, read_seeds, seed_table
from scanrl.settings import run_config
from scanrl.training import Diverged, Interrupted, resume, resume_seeds
from scanrl.types import DataError
from tests.conftest import make_dataset
from tests.runs import CARTPOLE, TINY, fit, outcome, stop_at, stopped

pytestmark = pytest.mark.usefixtures("no_flushing")

SEEDS = (1, 0, 4)


def steps_of(parent):
    return [load_checkpoint(parent / f"seed-{seed}").step for seed in SEEDS]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What each seed gives by itself."""
    folder = tmp_path_factory.mktemp("alone")
    return {seed: outcome(fit(folder / str(seed), seed=seed).path) for seed in SEEDS}


def assert_as_alone(parent, alone):
    for seed in SEEDS:
        assert outcome(parent / f"seed-{seed}") == alone[seed], f"seed {seed}"


# Equal to solo runs


def test_each_seed_gives_the_run_it_gives_alone_bit_for_bit(tmp_path, alone):
    runs = fit(tmp_path / "runs", seeds=SEEDS)
    assert [run.path for run in runs] == [tmp_path / "runs" / f"seed-{seed}" for seed in SEEDS]
    assert runs[0].config.model.dropout > 0
    assert_as_alone(tmp_path / "runs", alone)
    assert len({json.dumps(outcome(run.path)[3]) for run in runs}) == len(SEEDS), "they differ from one another"
    assert [open_run(run.path).config.train.seed for run in runs] == list(SEEDS)
    for run in runs:
        assert Policy.load(run.path).context == "recurrent"
        assert sorted(os.listdir(run.path)) == ["checkpoints", "config.yaml", "lock", "metrics.jsonl"]
    assert sorted(os.listdir(tmp_path / "runs")) == ["data", "seed-0", "seed-1", "seed-4", "seeds.yaml"]


def test_scores_are_those_of_the_solo_runs(tmp_path):
    data, settings = make_dataset(CARTPOLE), {**TINY, "eval.every": 3, "eval.episodes": 2, "eval.num_envs": 2}
    single = fit(tmp_path / "one", data=data, env="CartPole-v1", overrides=settings, steps=5, seed=4)
    fit(tmp_path / "runs", data=data, env="CartPole-v1", overrides=settings, steps=5, seeds=range(3, 5))
    assert outcome(tmp_path / "runs" / "seed-4") == outcome(single.path)
    assert "eval/return_mean" in single.metrics()[-1]


def test_one_seed_is_an_ordinary_run(tmp_path, alone):
    (run,) = fit(tmp_path / "run", seeds=[4])
    assert run.path == tmp_path / "run"
    assert not (tmp_path / "run" / "seeds.yaml").exists()
    assert outcome(run.path) == alone[4]


# Stopping and going on


@pytest.mark.parametrize("update", [3, 10, 21], ids=["before a checkpoint", "between the seeds", "later"])
def test_stopped_seeds_go_on_together_and_end_the_same(tmp_path, monkeypatch, alone, update):
    parent = tmp_path / "runs"
    with monkeypatch.context() as patch:
        stop_at(patch, update)
        with pytest.raises(Interrupted, match=rf"stopped by SIGTERM; continue with: scanrl resume {parent}$"):
            fit(parent, seeds=SEEDS)
    assert steps_of(parent) == [-(-update // len(SEEDS))] * len(SEEDS), "all saved after a whole round"
    resume_seeds(parent)
    assert_as_alone(parent, alone)


def test_seeds_that_were_moved_with_their_data_go_on_together_or_alone(tmp_path, monkeypatch, alone):
    stopped(tmp_path / "runs", monkeypatch, seeds=SEEDS).rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path / "moved" / "seed-0")
    resume(".")
    monkeypatch.chdir(tmp_path / "moved")
    assert steps_of(tmp_path / "moved") == [3, 18, 3]
    resume_seeds(".")
    assert_as_alone(tmp_path / "moved", alone)


def test_a_seed_that_is_behind_catches_up_with_the_others(tmp_path, monkeypatch, alone):
    parent = stopped(tmp_path / "runs", monkeypatch, 20, seeds=SEEDS)
    shutil.rmtree(parent / "seed-1" / "checkpoints")
    shutil.rmtree(parent / "seed-4" / "checkpoints" / "step-7")
    stopped_again(monkeypatch, parent, 3)
    assert steps_of(parent) == [3, 7, 5], "those that are furthest behind move first"
    resume_seeds(parent)
    assert_as_alone(parent, alone)


def stopped_again(monkeypatch, parent, update):
    with monkeypatch.context() as patch:
        stop_at(patch, update)
        with pytest.raises(Interrupted):
            resume_seeds(parent)


def test_finished_seeds_need_no_data_and_are_left_as_they_are(tmp_path):
    write_store(make_dataset(), tmp_path / "data")
    fit(tmp_path / "runs", data=tmp_path / "data", seeds=SEEDS, steps=2)
    shutil.rmtree(tmp_path / "data")
    files = {p: p.read_bytes() for p in (tmp_path / "runs").rglob("*") if p.is_file() and p.name != "lock"}
    assert [run.path.name for run in resume_seeds(tmp_path / "runs")] == [f"seed-{seed}" for seed in SEEDS]
    assert {p: p.read_bytes() for p in files} == files


def failing_saves(monkeypatch, seed, step):
    original = learner.save_checkpoint

    def save(folder, at, *more):
        if folder.parent.name == f"seed-{seed}" and at == step:
            raise OSError(28, "No space left on device", str(folder))
        return original(folder, at, *more)

    monkeypatch.setattr(learner, "save_checkpoint", save)


def test_a_save_that_fails_costs_no_seed_its_checkpoint(tmp_path, monkeypatch, alone):
    parent, settings = tmp_path / "runs", {**TINY, "train.keep": 1}
    with monkeypatch.context() as patch:
        failing_saves(patch, 0, 10)
        with pytest.raises(OSError, match="No space left"):
            fit(parent, overrides=settings, seeds=SEEDS)
    found = [[path.name for path in checkpoints_of(parent / f"seed-{seed}")] for seed in SEEDS]
    assert found == [["step-5", "step-10"], ["step-5"], ["step-5", "step-10"]]
    resume_seeds(parent)
    assert_as_alone(parent, alone)


def test_a_seed_that_diverges_stops_all_and_is_named(tmp_path, monkeypatch):
    original, calls = DecisionModel.loss, []

    def loss(self, batch, **more):
        calls.append(1)
        return original(self, batch, **more) * (float("nan") if len(calls) == 20 else 1.0)

    monkeypatch.setattr(DecisionModel, "loss", loss)
    with pytest.raises(Diverged, match=r"runs/seed-0: update 7: expected a finite loss and gradient, got loss nan"):
        fit(tmp_path / "runs", overrides={**TINY, "train.validation": 0.0}, seeds=SEEDS)
    assert steps_of(tmp_path / "runs") == [5, 5, 5]


def test_one_process_has_them_all(tmp_path, monkeypatch):
    parent = stopped(tmp_path / "runs", monkeypatch, seeds=SEEDS)
    with locked(parent / "seed-0"):
        with pytest.raises(DataError, match=r"seed-0: expected a free run folder, got one locked by process"):
            resume_seeds(parent)
        resume(parent / "seed-1")
    assert steps_of(parent) == [18, 3, 3]


# What is refused


@pytest.mark.parametrize(
    "text, seeds",
    [
        ("0-4", (0, 1, 2, 3, 4)),
        ("0,3,7", (0, 3, 7)),
        (" 5 - 5", None),
        ("5-5", (5,)),
        ("8, 0-2 ,9", (8, 0, 1, 2, 9)),
        ("9223372036854775807", (2**63 - 1,)),
    ],
)
def test_ranges_and_lists_of_seeds(text, seeds):
    if seeds is None:
        with pytest.raises(DataError, match=r"^seeds: expected a range such as 0-4"):
            read_seeds(text)
    else:
        assert read_seeds(text) == seeds


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "seeds: expected a range such as 0-4 or a list such as 0,3,7, got ''"),
        ("0..4", "got '0..4'"),
        ("-1", "got '-1'"),
        ("1,,2", "got '1,,2'"),
        ("١", "expected a range such as"),
        ("1.5", "got '1.5'"),
        ("4-0", "seeds: expected a range that rises, got '4-0'"),
        ("0-3,2", "seeds: expected each one once, got 2 twice"),
        ("0-1000", "seeds: expected at most 1000, got 1001"),
        ("0-999,1000", "seeds: expected 1 to 1000 of them, got 1001"),
        ("9223372036854775808", "seeds: expected integers from 0 to 9223372036854775807, got 9223372036854775808"),
        ("0-9999999999999999999999", "expected a range such as"),
    ],
)
def test_text_that_names_no_seeds_is_refused(text, message):
    with pytest.raises(DataError) as caught:
        read_seeds(text)
    assert message in str(caught.value)


@pytest.mark.parametrize("seeds", [[], [-1], [1.0], [True], [2**63], [3, 3], ["0"], range(1001)])
def test_seeds_that_cannot_be_are_refused_with_nothing_written(tmp_path, seeds):
    with pytest.raises(DataError, match=r"^seeds: expected "):
        fit(tmp_path / "runs", seeds=seeds)
    assert list(tmp_path.iterdir()) == []
    assert check_seeds(np.arange(2)) == (0, 1)


def test_a_seed_beside_seeds_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"^seeds: expected seed or seeds, got both \(seed 3\)$"):
        train("bc", make_dataset(), seed=3, seeds=[1, 2], out=tmp_path / "runs")  # type: ignore[call-overload]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_refused_with_nothing_written(tmp_path):
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(DataError, match=r"expected a new or empty folder, got one in use"):
        fit(tmp_path, seeds=SEEDS)
    assert os.listdir(tmp_path) == ["notes"]


def test_settings_that_differ_in_more_than_the_seed_are_refused(tmp_path, monkeypatch):
    parent = stopped(tmp_path / "runs", monkeypatch, seeds=SEEDS)
    file = parent / "seed-4" / "config.yaml"
    file.write_text(file.read_text().replace(f"steps: {18}\n", "steps: 19\n"))
    with pytest.raises(DataError) as caught:
        resume_seeds(parent)
    expected = f"{file}: expected the settings of seed-1 with seed 4, got others"
    assert str(caught.value) == f"{expected} (scanrl resume {parent}/seed-4 continues it alone)"
    assert steps_of(parent) == [3, 3, 3]
    assert resume(parent / "seed-4").checkpoint().step == 19


@pytest.mark.parametrize(
    "text, message",
    [
        ("seeds: [0, 0]", "seeds.yaml: seeds: expected each one once, got 0 twice"),
        ("seeds: 3", "seeds.yaml: seeds: expected 1 to 1000 of them, got 0"),
        ("{}", "seeds.yaml: seeds: expected 1 to 1000 of them, got 0"),
        ("seeds: ['../x']", "seeds.yaml: seeds: expected integers from 0 to "),
        ("[", "seeds.yaml: expected plain YAML"),
        ("seeds: [7]", "seed-7: expected a run folder (with config.yaml), got nothing"),
    ],
)
def test_a_folder_of_seeds_that_is_none_is_named(tmp_path, text, message):
    with pytest.raises(DataError, match=r"expected a folder of seeds \(with seeds.yaml\), got none"):
        open_seed_runs(tmp_path)
    (tmp_path / "seeds.yaml").write_text(text)
    with pytest.raises(DataError) as caught:
        open_seed_runs(tmp_path)
    assert message in str(caught.value)
    with pytest.raises(DataError, match=r"expected a run folder, got one of several seeds: scanrl.resume_seeds"):
        resume(tmp_path)


# The table


def test_the_table_has_the_last_values_their_mean_deviation_and_interval(tmp_path):
    values, runs = {0: 3.0, 5: 4.0, 2: 8.0}, []
    for seed, value in values.items():
        path = tmp_path / str(seed)
        path.mkdir()
        lines = [{"step": 1, "val/loss": 99.0}, {"step": 2, "val/loss": value, "eval/success_rate": 1.0}, {"step": 2}]
        if seed == 2:
            del lines[1]["eval/success_rate"]
        (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        runs.append(Run(path, run_config("bc", {"train.seed": seed})))
    low, high = bootstrap_interval([3.0, 4.0, 8.0])
    head, rows = seed_table(runs)
    assert head == ["seed", "val/loss"], "what a run lacks is left out"
    assert rows[:3] == [["0", "3"], ["5", "4"], ["2", "8"]]
    assert rows[3:] == [["mean", "5"], ["std", "2.16"], ["95 % interval", f"{low:.5g} to {high:.5g}"]]
