"""Small runs for tests: how they are made, stopped, forked and compared."""

import os
import signal
import sys
import time
import warnings

import pytest

from scanrl.checkpoint import load_checkpoint
from scanrl.data.windows import EpisodeSampler, WindowSampler
from scanrl.run import open_run
from scanrl.training import Interrupted, train
from scanrl.types import Spec
from tests.conftest import make_dataset

CARTPOLE = Spec((4,), "discrete", 2)
PENDULUM = Spec((3,), "continuous", 1)
TINY = {
    "model.width": 8,
    "model.pattern": "modal_conv mamba",
    "model.context": 4,
    "model.state_size": 4,
    "model.dropout": 0.1,
    "train.batch_size": 4,
    "train.checkpoint_every": 5,
    "train.validate_every": 4,
    "train.log_every": 1,
}
DT = {**TINY, "model.pattern": "attention mlp", "model.max_length": 30}
HALF = {**TINY, "model.pattern": "mamba mlp", "train.precision": "bfloat16"}
STEPS = 18


def fit(out, recipe="dmm-dc", data=None, *, overrides=TINY, steps=STEPS, **more):
    return train(recipe, make_dataset() if data is None else data, steps=steps, out=out, overrides=overrides, **more)


def outcome(run):
    """Everything that must not depend on interruptions."""
    found = load_checkpoint(run)
    lines = [{k: v for k, v in line.items() if not k.startswith("perf/")} for line in open_run(run).metrics()]
    tensors = {name: t.numpy().tobytes() for name, t in {**found.weights, **found.optimizer}.items()}
    return found.step, tensors, found.progress, lines


def stop_at(monkeypatch, update, number=signal.SIGTERM):
    """Let the signal arrive in the midst of an update."""
    calls = []

    def stopping(original):
        def sample(self):
            calls.append(1)
            if len(calls) == update:
                signal.raise_signal(number)
            return original(self)

        return sample

    for sampler in (WindowSampler, EpisodeSampler):
        monkeypatch.setattr(sampler, "sample", stopping(sampler.sample))


def stopped(out, monkeypatch, update=7, **more):
    """A run that was stopped in the given update."""
    with monkeypatch.context() as patch:
        stop_at(patch, update)
        with pytest.raises(Interrupted, match=r"stopped by SIGTERM; continue with: scanrl resume "):
            fit(out, **more)
    return out


def fork(function, errors=os.devnull):
    """Run `function` in a child; its result is the exit code."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12 on: other threads may be about
        child = os.fork()
    if child:
        return child
    code = 99
    try:
        with open(os.devnull, "w") as nothing, open(errors, "w", buffering=1) as said:
            sys.stdout, sys.stderr = nothing, said
            code = function() or 0
    except Interrupted as error:
        code = error.exit_code
    finally:
        os._exit(code)


def ended(child, seconds=20.0):
    """The exit code of a child, negative for a signal."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise AssertionError(f"still running after {seconds} s")


def wait_for_lines(run, count, seconds=20.0):
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        with_lines = run / "metrics.jsonl"
        if with_lines.exists() and with_lines.read_text().count("\n") >= count:
            return
        time.sleep(0.002)
    raise AssertionError("no progress")


LONG = {**TINY, "train.validate_every": 10**6, "train.checkpoint_every": 10**6}


def command(run, data):
    words = [f"--{k.replace('_', '-')}={v}" for k, v in LONG.items()]
    return ["train", "dmm-dc", "--data", str(data), "--out", str(run), "--steps=1000000", *words]


SMALL = [
    "--model.width=8",
    "--model.pattern=modal_conv mamba",
    "--model.state-size=4",
    "--context=4",
    "--train.batch-size=4",
    "--train.log-every=1",
    "--train.checkpoint-every=3",
    "--eval.episodes=2",
    "--eval.num-envs=2",
]
"""A run of seconds as options of `scanrl train`."""
