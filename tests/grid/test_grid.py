"""Whole grids: each run once, through kills and failures."""

import multiprocessing
import os
import signal
import subprocess
import threading
import time
from types import SimpleNamespace

import pytest

from scanrl.checkpoint import checkpoints_of
from scanrl.data.windows import WindowSampler
from scanrl.grid import attempt as attempts
from scanrl.grid.attempt import Stopped, run_path
from scanrl.grid.records import Records
from scanrl.grid.schedule import ROWS, _Board, _from_child, read_rows, run_grid
from scanrl.policy import Policy
from scanrl.run import locked, open_run
from scanrl.types import DataError
from tests.grid.grids import grid, lasting, quiet
from tests.runs import ended, fork, outcome

pytestmark = pytest.mark.usefixtures("no_flushing")


def test_a_row_carries_everything_its_numbers_depend_on(uninterrupted):
    rows = read_rows(uninterrupted)
    assert [(row["recipe"], row["status"], row["updates"]) for row in rows] == [
        ("tiny", "done", 12),
        ("wide", "done", 12),
    ]
    for row in rows:
        assert row["env"] == "CartPole-v1"
        assert row["target_returns"] == [20.0, 40.0]
        assert len(row["fingerprint"]) == 64
        assert row["normalized_by"].endswith("longest possible episode")
        assert (row["episodes"], row["eval_seed"], row["num_envs"], row["trained_context"]) == (2, 1000, 2, 4)
        assert {"torch", "numpy", "gymnasium", "python"} <= set(row["versions"])
        assert row["machine"]
        assert row["parameters"] > 0
        assert [one["step"] for one in row["checkpoints"]] == [6, 12]
        for one in row["checkpoints"]:
            assert one["validation_loss"] > 0
            assert [played["context"] for played in one["played"]] == ["recurrent", 4]
            assert all(len(score["returns"]) == 2 for played in one["played"] for score in played["scores"])


def test_a_run_is_scored_by_the_grid_and_not_by_itself(uninterrupted):
    run = open_run(run_path(uninterrupted, grid(uninterrupted.parent).jobs()[0]))
    names = {name for line in run.metrics() for name in line}
    assert "val/loss" in names
    assert not any(name.startswith("eval/") for name in names)


def test_what_is_done_is_not_run_again(uninterrupted, monkeypatch):
    before = (uninterrupted / ROWS).read_bytes()
    monkeypatch.setattr("scanrl.grid.schedule.attempt", None)  # a call would fail
    assert run_grid(grid(uninterrupted.parent), uninterrupted, tell=quiet) == (2, 0)
    assert (uninterrupted / ROWS).read_bytes() == before


def test_a_second_process_in_the_same_folder_is_refused(uninterrupted):
    with locked(uninterrupted), pytest.raises(DataError, match=f"locked by process {os.getpid()}"):
        run_grid(grid(uninterrupted.parent, seeds=3), uninterrupted, tell=quiet)


def kill_at(call, owner, name):
    """Let this process end without warning at the given call of a function."""
    original, calls = getattr(owner, name), []

    def counted(*arguments, **options):
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **options)

    setattr(owner, name, counted)


def tear(name):
    """Let half of the first line of that file reach the disk, and no more."""
    whole = Records.append

    def append(self, values):
        if self.path.name != name:
            return whole(self, values)
        with self.path.open("ab") as file:
            file.write(b'{"recipe": "tiny", "ta')
        return os.kill(os.getpid(), signal.SIGKILL)

    Records.append = append


KILLS = {
    "before a configuration": lambda: kill_at(1, os, "replace"),
    "before the first checkpoint": lambda: kill_at(4, WindowSampler, "sample"),
    "after a checkpoint": lambda: kill_at(9, WindowSampler, "sample"),
    "in the second run": lambda: kill_at(12 + 9, WindowSampler, "sample"),
    "between two evaluations": lambda: kill_at(3, attempts, "score_run"),
    "while a score is written": lambda: tear(attempts.SCORES),
    "while a row is written": lambda: tear(ROWS),
    "before old checkpoints are removed": lambda: kill_at(1, attempts, "checkpoints_of"),
}


@pytest.mark.parametrize("kill", KILLS)
def test_a_killed_grid_ends_as_one_that_was_never_cut(tmp_path, uninterrupted, kill):
    spec = grid(tmp_path)

    def run():
        KILLS[kill]()
        run_grid(spec, tmp_path / "grid", tell=quiet)

    assert ended(fork(run)) == -signal.SIGKILL
    assert run_grid(spec, tmp_path / "grid", tell=quiet) == (2, 0)
    assert lasting(read_rows(tmp_path / "grid")) == lasting(read_rows(uninterrupted))
    for job in spec.jobs():
        assert outcome(run_path(tmp_path / "grid", job)) == outcome(run_path(uninterrupted, job))


def test_a_run_that_was_cut_continues_from_its_checkpoint(tmp_path, monkeypatch):
    spec = grid(tmp_path, recipes={"tiny": {"recipe": "dmm-dc"}})

    def run():
        kill_at(9, WindowSampler, "sample")
        run_grid(spec, tmp_path / "grid", tell=quiet)

    assert ended(fork(run)) == -signal.SIGKILL
    original, updates = WindowSampler.sample, []
    monkeypatch.setattr(WindowSampler, "sample", lambda self: updates.append(1) or original(self))
    run_grid(spec, tmp_path / "grid", tell=quiet)
    assert len(updates) == 12 - 6
    assert read_rows(tmp_path / "grid")[0]["resumed"]


def test_what_was_scored_before_a_kill_is_not_played_again(tmp_path, monkeypatch):
    spec = grid(tmp_path, recipes={"tiny": {"recipe": "dmm-dc"}})

    def run():
        kill_at(4, attempts, "score_run")
        run_grid(spec, tmp_path / "grid", tell=quiet)

    assert ended(fork(run)) == -signal.SIGKILL
    original, played = attempts.score_run, []
    monkeypatch.setattr(attempts, "score_run", lambda *a, **more: played.append(1) or original(*a, **more))
    run_grid(spec, tmp_path / "grid", tell=quiet)
    assert len(played) == 2 * 2 * 2 - 3  # checkpoints, ways to remember, targets


def test_a_run_that_an_orphan_still_holds_is_waited_for(tmp_path):
    entered, waited = [], threading.Event()

    def hold():
        with locked(tmp_path):
            entered.append(1)
            waited.wait(5)

    orphan = threading.Thread(target=hold)
    orphan.start()
    while not entered:
        time.sleep(0.001)
    waiting = threading.Thread(target=attempts._wait_until_free, args=(tmp_path,))
    waiting.start()
    waiting.join(0.05)
    assert waiting.is_alive()
    waited.set()
    orphan.join()
    waiting.join()
    with locked(tmp_path):
        pass


def test_of_a_recorded_run_the_last_and_the_selected_checkpoint_stay(tmp_path):
    spec = grid(tmp_path, recipes={"tiny": {"recipe": "dmm-dc"}}, evaluate={"checkpoints": 6})
    run_grid(spec, tmp_path / "grid", tell=quiet)
    (row,) = read_rows(tmp_path / "grid")
    losses = {one["step"]: one["validation_loss"] for one in row["checkpoints"]}
    kept = {12, min(losses, key=losses.__getitem__)}
    assert sorted(losses) == [2, 4, 6, 8, 10, 12]
    assert {int(path.name[5:]) for path in checkpoints_of(run_path(tmp_path / "grid", spec.jobs()[0]))} == kept


def test_a_signal_stops_the_grid_and_the_same_call_continues(tmp_path, uninterrupted, monkeypatch):
    spec = grid(tmp_path)
    with monkeypatch.context() as patch:
        original, calls = WindowSampler.sample, []

        def sample(self):
            calls.append(1)
            if len(calls) == 7:
                signal.raise_signal(signal.SIGTERM)
            return original(self)

        patch.setattr(WindowSampler, "sample", sample)
        with pytest.raises(Stopped, match="the same command continues") as stopped:
            run_grid(spec, tmp_path / "grid", tell=quiet)
    assert stopped.value.exit_code == 143
    assert not (tmp_path / "grid" / ROWS).exists()
    run_grid(spec, tmp_path / "grid", tell=quiet)
    assert lasting(read_rows(tmp_path / "grid")) == lasting(read_rows(uninterrupted))


def test_a_signal_in_an_evaluation_stops_it_at_once(tmp_path, uninterrupted, monkeypatch):
    spec, steps = grid(tmp_path), []
    with monkeypatch.context() as patch:
        original = Policy.act

        def act(self, *observed):
            steps.append(1)
            if len(steps) == 20:
                signal.raise_signal(signal.SIGTERM)
            return original(self, *observed)

        patch.setattr(Policy, "act", act)
        with pytest.raises(Stopped):
            run_grid(spec, tmp_path / "grid", tell=quiet)
    assert len(steps) == 20
    run_grid(spec, tmp_path / "grid", tell=quiet)
    assert lasting(read_rows(tmp_path / "grid")) == lasting(read_rows(uninterrupted))


def test_a_run_that_was_cut_takes_its_data_from_where_they_are_now(tmp_path, uninterrupted):
    spec = grid(tmp_path)

    def run():
        kill_at(9, WindowSampler, "sample")
        run_grid(spec, tmp_path / "grid", tell=quiet)

    assert ended(fork(run)) == -signal.SIGKILL
    (tmp_path / "later").mkdir()
    (tmp_path / "cartpole").rename(tmp_path / "later" / "cartpole")
    task = {"data": f"store:{tmp_path / 'later' / 'cartpole'}", "env": "CartPole-v1", "targets": [20.0, 40.0]}
    run_grid(grid(tmp_path, tasks={"pole": task}), tmp_path / "grid", tell=quiet)
    assert lasting(read_rows(tmp_path / "grid")) == lasting(read_rows(uninterrupted))


def test_data_that_lack_what_a_recipe_learns_from_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(DataError, match=r"^recipes: asks: .*: optimal_actions: expected them for every step"):
        run_grid(grid(tmp_path, recipes={"bc": {}, "asks": {"recipe": "dpt"}}), tmp_path / "grid", tell=quiet)
    assert not (tmp_path / "grid").exists()


def test_a_recipe_is_scored_the_way_it_acts_unless_told(tmp_path):
    recipes = {"bc": {}, "window": {"recipe": "dmm-dc", "eval.context": 3}}
    run_grid(grid(tmp_path, recipes=recipes, evaluate={}), tmp_path / "grid", tell=quiet)
    bc, window = read_rows(tmp_path / "grid")
    assert [played["context"] for played in bc["checkpoints"][0]["played"]] == ["recurrent"]
    assert [played["context"] for played in window["checkpoints"][0]["played"]] == [3]
    assert (bc["target_returns"], window["target_returns"]) == ([], [20.0, 40.0])  # bc takes none


def test_a_failure_is_recorded_and_the_grid_goes_on(tmp_path, monkeypatch):
    spec = grid(tmp_path, evaluate={}, recipes={"wild": {"recipe": "dmm-dc", "train.learning_rate": 1e30}, "bc": {}})
    told = []
    assert run_grid(spec, tmp_path / "grid", tell=told.append) == (1, 1)
    failed, done = read_rows(tmp_path / "grid")
    assert (failed["recipe"], failed["status"], done["status"]) == ("wild", "failed", "done")
    assert "expected a finite loss and gradient" in failed["reason"]
    assert any("failed: " in line for line in told)
    assert run_grid(spec, tmp_path / "grid", tell=quiet) == (1, 1)  # it stays as it is
    assert len(Records(tmp_path / "grid" / ROWS).read()) == 2
    assert run_grid(spec, tmp_path / "grid", tell=quiet, retry_failed=True) == (1, 1)
    assert len(Records(tmp_path / "grid" / ROWS).read()) == 3
    monkeypatch.setattr("scanrl.grid.schedule.attempt", lambda job, *_, **__: {**failed, "status": "failed"})
    run_grid(spec, tmp_path / "grid", tell=quiet, retry_failed=True)
    assert len(read_rows(tmp_path / "grid")) == 2  # the latest of each


def test_a_task_nothing_can_run_on_is_refused_before_anything_is_written(tmp_path):
    for task in (
        {"data": f"store:{tmp_path / 'none'}", "env": "CartPole-v1"},
        {"data": f"store:{tmp_path / 'cartpole'}", "env": "Pendulum-v1"},
    ):
        with pytest.raises(DataError):
            run_grid(grid(tmp_path, tasks={"pole": task}), tmp_path / "grid", tell=quiet)
    assert not (tmp_path / "grid").exists()


def test_seconds_become_updates_before_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(attempts, "time_update", lambda *_, **__: 0.25)
    spec = grid(tmp_path, evaluate={}, recipes={"bc": {}}, budgets=[{"cpu_seconds": 2}, {"wall_seconds": 0.1}])
    run_grid(spec, tmp_path / "grid", tell=quiet)
    assert [row["updates"] for row in read_rows(tmp_path / "grid")] == [8, 1]


def test_the_time_left_counts_like_runs_with_like_ones(tmp_path):
    jobs, told = grid(tmp_path, seeds=3).jobs(), []
    board = _Board(jobs, jobs, 1, told.append)
    assert told == ["6 runs, 6 to go"]
    board.started(jobs[0])
    board.ended(jobs[0], 10.0, "score 1")
    board.ended(jobs[1], 100.0, "score 2")
    assert told[1:] == [
        "run 1 of 6: tiny, pole, 12 updates, seed 0",
        "1 of 6 done: tiny, pole, 12 updates, seed 0: score 1, 10 s; about 50 s left",
        "2 of 6 done: wide, pole, 12 updates, seed 0: score 2, 2 min; about 4 min left",  # 2 x 10 s and 2 x 100 s
    ]


def test_a_run_in_a_process_of_its_own_ends_like_one_in_ours(tmp_path, uninterrupted):
    spec = grid(tmp_path, recipes={"tiny": {"recipe": "dmm-dc"}})
    assert run_grid(spec, tmp_path / "grid", tell=quiet, processes=2) == (1, 0)
    assert lasting(read_rows(tmp_path / "grid")) == lasting(read_rows(uninterrupted))[:1]


def test_a_process_that_dies_is_a_failed_run(tmp_path):
    job = grid(tmp_path).jobs()[0]
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe(duplex=False)
    theirs.close()
    process = SimpleNamespace(join=lambda: None, exitcode=-signal.SIGKILL)
    row = _from_child(job, ours, process, tmp_path)
    assert row["status"] == "failed"
    assert row["reason"] == f"{tmp_path}: its process ended without a result: SIGKILL"


def test_the_revision_is_that_of_the_package_whatever_else_the_repository_holds(tmp_path, monkeypatch):
    package = tmp_path / "scanrl" / "grid"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()

    def git(*words):
        who = ("-c", "user.name=x", "-c", "user.email=x@y")
        subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True)

    monkeypatch.setattr(attempts, "__file__", str(package / "attempt.py"))
    assert attempts._revision() is None
    git("init", "-q")
    assert attempts._revision() is None
    git("add", ".")
    git("commit", "-q", "-m", "x")
    (tmp_path / "rows.jsonl").touch()
    clean = attempts._revision()
    assert clean
    assert not clean.endswith("-dirty")
    (package.parent / "__init__.py").write_text("x = 1\n")
    assert attempts._revision() == f"{clean}-dirty"
