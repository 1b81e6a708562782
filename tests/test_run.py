import json
import os
import signal
import time

import pytest

from scanrl import run as runs
from scanrl.run import Metrics, free_path, locked, new_run, open_run
from scanrl.settings import run_config
from scanrl.types import DataError
from tests.runs import ended, fork

CONFIG = run_config("dmm-dc", {"data": "store:/x", "train.steps": 7})


def test_a_run_folder_gives_its_configuration_back(tmp_path):
    assert new_run(tmp_path / "deep" / "run", CONFIG).config == CONFIG
    found = open_run(tmp_path / "deep" / "run")
    assert (found.config, found.metrics()) == (CONFIG, [])
    assert os.listdir(found.path) == ["config.yaml"]
    assert repr(found) == f"Run('{tmp_path}/deep/run', recipe='dmm-dc')"


def test_a_folder_in_use_is_refused_and_an_empty_one_is_taken(tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "used", tmp_path / "file"):
        with pytest.raises(DataError, match=rf"{path}: expected a new or empty folder, got one in use \(scanrl resume"):
            new_run(path, CONFIG)
    assert (tmp_path / "used" / "notes.txt").read_text() == (tmp_path / "file").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert new_run(tmp_path / "empty", CONFIG).path.is_dir()


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DataError, match=r"file/run: expected a folder that can be written, got: Not a directory"):
        new_run(tmp_path / "file" / "run", CONFIG)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_read_only_place_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(DataError, match=r"run: expected a folder that can be written, got: Permission denied"):
        new_run(tmp_path / "run", CONFIG)


@pytest.mark.parametrize(
    "text, message",
    [
        ("recipe: dt\ntrian: {}", r"config.yaml: trian: expected one of .*did you mean 'train'"),
        ("recipe: dt\ntrain: {steps: -1}", r"config.yaml: train.steps: expected at least 1, got -1"),
        ("data: x", r"config.yaml: recipe: expected a value, got none"),
        ("", r"config.yaml: recipe: expected a value, got none"),
        ("[", r"config.yaml: expected plain YAML"),
    ],
)
def test_a_configuration_that_does_not_fit_is_named(tmp_path, text, message):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(DataError, match=message):
        open_run(tmp_path)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"expected a run folder \(with config.yaml\), got none$"):
        open_run(tmp_path)
    with pytest.raises(DataError, match=r"expected a run folder \(with config.yaml\), got nothing$"):
        open_run(tmp_path / "none")


def test_default_folders_are_numbered_and_a_link_points_at_the_last(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in range(3):
        path = free_path("dt", "hopper")
        assert path == runs.OUTPUTS / f"dt-hopper-{number}"
        new_run(path, CONFIG)
        assert (runs.OUTPUTS / "last").resolve() == path.resolve()
    assert open_run(runs.OUTPUTS / "last").config == CONFIG


def test_a_second_writer_is_told_who_has_the_folder_and_a_dead_one_lets_go(tmp_path):
    def hold():
        with locked(tmp_path):
            (tmp_path / "held").touch()
            time.sleep(30)

    child = fork(hold)
    limit = time.monotonic() + 10
    while not (tmp_path / "held").exists() and time.monotonic() < limit:
        time.sleep(0.005)
    with (
        pytest.raises(
            DataError, match=rf"{tmp_path}: expected a free run folder, got one locked by process {child} on "
        ),
        locked(tmp_path),
    ):
        pass
    os.kill(child, signal.SIGKILL)
    ended(child)
    with locked(tmp_path):
        assert f"process {os.getpid()} on " in (tmp_path / "lock").read_text()
    with locked(tmp_path):
        pass


def test_metrics_go_on_after_the_step_and_drop_what_is_torn_or_later(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text(
        '{"step": 1, "a": 1.0}\n\n{"step": 2, "a": 2.0}\nnot json\n{"step": "3"}\n{"step": 4, "a": 4.0}\n{"st'
    )
    metrics = Metrics(tmp_path, 2)
    assert metrics.recorded >= {(1, "a"), (2, "a")}
    assert (4, "a") not in metrics.recorded
    metrics.write(3, {"b": 0.5})
    metrics.close()
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert lines == [{"step": 1, "a": 1.0}, {"step": 2, "a": 2.0}, {"step": 3, "b": 0.5}]
    assert sorted(os.listdir(tmp_path)) == ["metrics.jsonl"]


@pytest.mark.filterwarnings("default")
def test_tensorboard_drops_what_is_later_than_the_step(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for begin, values in ((0, {1: 1.0, 2: 2.0, 3: 99.0, 5: 99.0}), (2, {3: 3.0})):
        metrics = Metrics(tmp_path, begin, tensorboard=True)
        for step, value in values.items():
            metrics.write(step, {"loss": value})
        metrics.close()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 1.0), (2, 2.0), (3, 3.0)]
