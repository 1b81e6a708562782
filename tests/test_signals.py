import json
import os
import random
import shutil
import signal
import threading
import time

import gymnasium as gym
import pytest
import torch

from scanrl import cli, learner
from scanrl.checkpoint import checkpoints_of, load_checkpoint
from scanrl.data import write_store
from scanrl.run import open_run
from scanrl.training import Interrupted, resume
from tests.conftest import make_dataset
from tests.runs import CARTPOLE, LONG, TINY, command, ended, fit, fork, outcome, wait_for_lines

pytestmark = pytest.mark.usefixtures("no_flushing")


def kills(tmp_path, reference, count, seed):
    """Kill a run `count` times, whenever; it must lose at most one interval each time and end as if nothing was."""
    write_store(make_dataset(), tmp_path / "data")
    run, random_numbers = tmp_path / "run", random.Random(seed)
    done = killed = 0
    while killed < count:
        begin = (lambda: resume(run)) if (run / "config.yaml").exists() else (lambda: fit(run, data=tmp_path / "data"))
        child = fork(lambda begin=begin: begin() and 0)
        time.sleep(random_numbers.uniform(0.01, 0.25))
        os.kill(child, signal.SIGKILL)
        code = ended(child)
        killed += code == -signal.SIGKILL
        assert code in (0, -signal.SIGKILL)
        if not (run / "config.yaml").exists():
            shutil.rmtree(run, ignore_errors=True)
            continue
        logged = max([line["step"] for line in open_run(run).metrics()], default=0)
        saved = load_checkpoint(run).step if checkpoints_of(run) else 0
        assert logged - saved <= TINY["train.checkpoint_every"]
        assert saved >= done, "a checkpoint was lost"
        done = saved
        if code == 0:
            assert outcome(run) == outcome(reference)
            shutil.rmtree(run)
            done = 0
    if not (run / "config.yaml").exists():
        fit(run, data=tmp_path / "data")
    resume(run)
    assert outcome(run) == outcome(reference)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    keys = [(line["step"], key) for line in map(json.loads, lines) for key in line if key != "step"]
    assert len(keys) == len(set(keys)), "no line twice"
    found = os.listdir(run / "checkpoints")
    assert all(name.startswith("step-") for name in found), "no leftovers"
    assert len(found) <= 4, "one more than are kept, if the kill came before the oldest was removed"


def test_a_run_killed_at_any_time_loses_one_interval_at_most_and_ends_the_same(tmp_path, reference):
    kills(tmp_path, reference, 8, seed=0)


@pytest.mark.slow
def test_a_run_killed_thirty_times_ends_the_same(tmp_path, reference):
    kills(tmp_path, reference, 30, seed=1)


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_command_with_its_code_and_a_checkpoint_of_the_last_update(tmp_path, number, code):
    write_store(make_dataset(), tmp_path / "data")
    run = tmp_path / "run"
    child = fork(lambda: cli.main(command(run, tmp_path / "data")), tmp_path / "errors")
    wait_for_lines(run, 3)
    os.kill(child, number)
    assert ended(child, 10) == code
    assert load_checkpoint(run).step == open_run(run).metrics()[-1]["step"]
    message = f"scanrl: stopped by {signal.Signals(number).name}; continue with: scanrl resume {run}"
    assert (tmp_path / "errors").read_text().splitlines()[-1] == message


def test_a_second_interrupt_ends_the_command_at_once_and_the_old_checkpoint_stays(tmp_path):
    write_store(make_dataset(), tmp_path / "data")
    run = tmp_path / "run"
    fit(run, data=tmp_path / "data", overrides=LONG, steps=1)
    assert load_checkpoint(run).step == 1
    (run / "config.yaml").write_text((run / "config.yaml").read_text().replace("steps: 1\n", "steps: 1000000\n"))

    def slow_save():
        save = learner.save_checkpoint
        learner.save_checkpoint = lambda *arguments: time.sleep(30) or save(*arguments)
        return cli.main(["resume", str(run)])

    child = fork(slow_save, tmp_path / "errors")
    wait_for_lines(run, 4)
    os.kill(child, signal.SIGINT)
    time.sleep(0.2)
    assert os.waitpid(child, os.WNOHANG) == (0, 0), "the first one waits for the checkpoint"
    os.kill(child, signal.SIGINT)
    assert ended(child, 5) == 130
    assert (tmp_path / "errors").read_text().splitlines()[-1] == "scanrl: interrupted"
    assert load_checkpoint(run).step == 1


class Drawing(gym.Wrapper):
    """CartPole whose reset draws from torch's global generator."""

    def __init__(self):
        super().__init__(gym.make("CartPole-v1").unwrapped)

    def reset(self, **options):
        torch.rand(3)
        return self.env.reset(**options)


@pytest.mark.parametrize("every", [5, 4], ids=["where a checkpoint was written", "between checkpoints"])
def test_a_signal_during_an_evaluation_does_not_wait_for_its_end(tmp_path, monkeypatch, every):
    monkeypatch.setitem(gym.registry, "Drawing-v0", gym.envs.registration.EnvSpec("Drawing-v0", Drawing))
    data, played = make_dataset(CARTPOLE), []
    settings = {**TINY, "eval.every": every, "eval.episodes": 2, "eval.num_envs": 2}
    fit(tmp_path / "whole", data=data, env="Drawing-v0", overrides=settings, steps=8)
    original = learner.evaluate

    def evaluate(*arguments, progress, **options):
        def tell(finished):
            signal.raise_signal(signal.SIGTERM)
            played.append(finished)
            progress(finished)

        return original(*arguments, progress=tell, **options)

    with monkeypatch.context() as patch:
        patch.setattr(learner, "evaluate", evaluate)
        with pytest.raises(Interrupted):
            fit(tmp_path / "parts", data=data, env="Drawing-v0", overrides=settings, steps=8)
    assert len(played) == 1
    assert load_checkpoint(tmp_path / "parts").step == every
    resume(tmp_path / "parts")
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_signal_during_a_save_leaves_one_whole_checkpoint(tmp_path, monkeypatch, reference, when):
    save = learner.save_checkpoint
    saved = []

    def interrupted(folder, step, *more):
        saved.append(step)
        if when == "before":
            signal.raise_signal(signal.SIGTERM)
        path = save(folder, step, *more)
        if when == "after":
            signal.raise_signal(signal.SIGTERM)
        return path

    with monkeypatch.context() as patch:
        patch.setattr(learner, "save_checkpoint", interrupted)
        with pytest.raises(Interrupted):
            fit(tmp_path / "run")
    assert saved == [5], "not written twice"
    assert os.listdir(tmp_path / "run" / "checkpoints") == ["step-5"]
    resume(tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(reference)


def test_training_outside_the_main_thread_leaves_signals_alone(tmp_path, reference):
    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=lambda: fit(tmp_path / "run"))
    thread.start()
    thread.join()
    assert outcome(tmp_path / "run") == outcome(reference)
    assert signal.getsignal(signal.SIGTERM) is before
