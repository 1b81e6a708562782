import json
import os
import random
import shutil
import signal
import sys
import threading
import time
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from scanrl import cli, preflight, training
from scanrl.checkpoint import checkpoints_of, load_checkpoint
from scanrl.data import Dataset, load, write_store
from scanrl.data.windows import WindowSampler, iterate_windows
from scanrl.models.decision import DecisionModel
from scanrl.optimizer import adamw, learning_rate
from scanrl.run import open_run
from scanrl.settings import TrainConfig
from scanrl.training import Diverged, Interrupted, resume, train
from scanrl.types import CorruptFile, DataError, Spec
from tests.conftest import make_dataset
from tests.test_checkpoint import reseal

CARTPOLE = Spec((4,), "discrete", 2)
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
STEPS = 18


@pytest.fixture(autouse=True)
def no_flushing(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


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
    original, calls = WindowSampler.sample, []

    def sample(self):
        calls.append(1)
        if len(calls) == update:
            signal.raise_signal(number)
        return original(self)

    monkeypatch.setattr(WindowSampler, "sample", sample)


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


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """An uninterrupted run."""
    path = tmp_path_factory.mktemp("reference") / "run"
    fit(path)
    return path


# Stopping and going on


@pytest.mark.parametrize("recipe, overrides", [("dmm-dc", TINY), ("dt", DT)])
def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path, monkeypatch, recipe, overrides):
    fit(tmp_path / "whole", recipe, overrides=overrides)
    assert open_run(tmp_path / "whole").config.model.dropout > 0
    parts = stopped(tmp_path / "parts", monkeypatch, 7, recipe=recipe, overrides=overrides)
    assert [p.name for p in checkpoints_of(parts)] == ["step-5", "step-7"]
    with monkeypatch.context() as patch:
        stop_at(patch, 4, signal.SIGINT)
        with pytest.raises(Interrupted, match=r"stopped by SIGINT"):
            resume(parts)
    assert load_checkpoint(parts).step == 11
    resume(parts)
    assert outcome(parts) == outcome(tmp_path / "whole")


@pytest.mark.parametrize("update", [5, 8])
def test_a_stop_where_something_is_due_neither_loses_nor_repeats_it(tmp_path, monkeypatch, reference, update):
    resume(stopped(tmp_path / "run", monkeypatch, update))
    assert outcome(tmp_path / "run") == outcome(reference)


@pytest.mark.parametrize("name", ["random", "exp_avg/norm.weight", "sampler"])
def test_the_comparison_notices_a_state_that_was_not_restored(tmp_path, monkeypatch, reference, name):
    run = stopped(tmp_path / "run", monkeypatch)
    checkpoint = run / "checkpoints" / "step-7"
    if name == "sampler":
        file = checkpoint / "train" / "state.json"
        state = json.loads(file.read_text())
        state["sampler"]["generator"]["state"]["state"] += 2
        file.write_text(json.dumps(state))
    else:
        file = checkpoint / "train" / "optimizer.safetensors"
        tensors = load_file(file)
        fresh = torch.Generator().manual_seed(9).get_state()
        tensors[name] = fresh if name == "random" else torch.zeros_like(tensors[name])
        save_file(tensors, file)
    reseal(checkpoint)
    resume(run)
    assert outcome(run)[1] != outcome(reference)[1]


@pytest.mark.parametrize("name", ["optimizer", "random", "sampler", "train"])
def test_a_checkpoint_without_a_part_of_its_state_is_not_resumed(tmp_path, monkeypatch, name):
    run = stopped(tmp_path / "run", monkeypatch)
    checkpoint = run / "checkpoints" / "step-7"
    file = checkpoint / "train" / "optimizer.safetensors"
    tensors = load_file(file)
    if name == "optimizer":
        save_file({"random": tensors["random"]}, file)
    elif name == "random":
        save_file({k: v for k, v in tensors.items() if k != "random"}, file)
    elif name == "sampler":
        (checkpoint / "train" / "state.json").write_text("{}")
    else:
        shutil.rmtree(checkpoint / "train")
        files = ("config.json", "model.safetensors", "stats.json")
        reseal(checkpoint, files=dict.fromkeys(files))
    reseal(checkpoint)
    before = outcome(run)[3]
    with pytest.raises(DataError, match=rf"step-7/train: expected .*, got no {name.replace('train', 'optimizer')}$"):
        resume(run)
    assert open_run(run).policy() is not None, "it still acts"
    assert outcome(run)[3] == before


@pytest.mark.parametrize(
    "name, change",
    [
        ("exp_avg/norm.weight", None),
        ("exp_avg/norm.weight", torch.ones(3)),
        ("step/norm.weight", None),
        ("exp_avg/nosuch", torch.ones(3)),
    ],
)
def test_moments_that_do_not_fit_the_network_are_named(tmp_path, monkeypatch, name, change):
    run = stopped(tmp_path / "run", monkeypatch)
    checkpoint = run / "checkpoints" / "step-7"
    file = checkpoint / "train" / "optimizer.safetensors"
    tensors = load_file(file)
    tensors.pop(name, None)
    save_file(tensors if change is None else {**tensors, name: change}, file)
    reseal(checkpoint)
    with pytest.raises(CorruptFile, match=rf"step-7/train: optimizer: {name.partition('/')[2]}: expected"):
        resume(run)


def test_a_damaged_checkpoint_is_passed_over_and_the_run_still_ends_the_same(tmp_path, monkeypatch, reference):
    run = stopped(tmp_path / "run", monkeypatch, overrides={**TINY, "train.keep": 2})
    (run / "checkpoints" / "step-7" / "model.safetensors").write_bytes(b"")
    with pytest.warns(RuntimeWarning, match=r"damaged checkpoint: .*step-7/model.safetensors.*using .*step-5"):
        resume(run)
    assert outcome(run) == outcome(reference)


@pytest.mark.parametrize("left", ["nothing", "an empty folder", "half a checkpoint"])
def test_a_run_killed_before_its_first_checkpoint_begins_anew(tmp_path, monkeypatch, reference, left):
    run = stopped(tmp_path / "run", monkeypatch, 3)
    shutil.rmtree(run / "checkpoints")
    if left != "nothing":
        (run / "checkpoints").mkdir()
    if left == "half a checkpoint":
        (run / "checkpoints" / ".step-3.tmp-1-aa" / "train").mkdir(parents=True)
    resume(run)
    assert outcome(run) == outcome(reference)


def test_a_finished_run_is_left_as_it_is(tmp_path, reference):
    shutil.copytree(reference, tmp_path / "run")
    files = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file() and p.name != "lock"}
    resume(tmp_path / "run")
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file() and p.name != "lock"} == files


@pytest.mark.parametrize(
    "settings",
    [{}, {"train.validation": 0.0}, {"env": "CartPole-v1", "eval.episodes": 1}],
    ids=["validated", "trained on everything", "evaluated"],
)
def test_a_finished_run_needs_its_data_no_more(tmp_path, settings):
    write_store(make_dataset(CARTPOLE), tmp_path / "data")
    overrides = {**TINY, **settings}
    fit(tmp_path / "run", data=tmp_path / "data", env=overrides.pop("env", None), overrides=overrides, steps=2)
    before = outcome(tmp_path / "run")
    shutil.rmtree(tmp_path / "data")
    assert resume(tmp_path / "run").path == tmp_path / "run"
    assert outcome(tmp_path / "run") == before


@pytest.mark.parametrize("lost", [1, 2])
def test_what_is_measured_after_the_last_update_is_made_up_for(tmp_path, lost):
    settings = {**TINY, "eval.episodes": 1, "eval.num_envs": 1}
    fit(tmp_path / "run", data=make_dataset(CARTPOLE), env="CartPole-v1", overrides=settings, steps=3)
    before = outcome(tmp_path / "run")
    file = tmp_path / "run" / "metrics.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-lost]))
    resume(tmp_path / "run")
    assert outcome(tmp_path / "run") == before


def test_a_run_that_was_moved_with_its_data_goes_on(tmp_path, monkeypatch, reference):
    stopped(tmp_path / "run", monkeypatch).rename(tmp_path / "moved")
    resume(tmp_path / "moved")
    assert outcome(tmp_path / "moved") == outcome(reference)


def test_changed_data_is_refused(tmp_path, monkeypatch):
    write_store(make_dataset(), tmp_path / "data")
    run = stopped(tmp_path / "run", monkeypatch, data=tmp_path / "data")
    write_store(make_dataset(seed=1), tmp_path / "data", overwrite=True)
    before = outcome(run)
    with pytest.raises(DataError, match=rf"{tmp_path}/data: fingerprint: expected [0-9a-f]{{12}}…, got "):
        resume(run)
    shutil.rmtree(tmp_path / "data")
    with pytest.raises(DataError, match=rf"{tmp_path}/data: expected"):
        resume(run)
    assert outcome(run) == before


@pytest.mark.parametrize("change", [("width: 8", "width: 16"), ("batch_size: 4", "batch_size: 8")])
def test_changed_settings_that_cannot_be_resumed_are_refused(tmp_path, monkeypatch, change):
    run = stopped(tmp_path / "run", monkeypatch)
    file = run / "config.yaml"
    file.write_text(file.read_text().replace(*change))
    with pytest.raises(DataError, match=r"(config.yaml: model|state.json: sampler state: batch_size): expected"):
        resume(run)


# Signals and kills


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


LONG = {**TINY, "train.validate_every": 10**6, "train.checkpoint_every": 10**6}


def command(run, data):
    words = [f"--{k.replace('_', '-')}={v}" for k, v in LONG.items()]
    return ["train", "dmm-dc", "--data", str(data), "--out", str(run), "--steps=1000000", *words]


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
        save = training.save_checkpoint
        training.save_checkpoint = lambda *arguments: time.sleep(30) or save(*arguments)
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
    original = training.evaluate

    def evaluate(*arguments, progress, **options):
        def tell(finished):
            signal.raise_signal(signal.SIGTERM)
            played.append(finished)
            progress(finished)

        return original(*arguments, progress=tell, **options)

    with monkeypatch.context() as patch:
        patch.setattr(training, "evaluate", evaluate)
        with pytest.raises(Interrupted):
            fit(tmp_path / "parts", data=data, env="Drawing-v0", overrides=settings, steps=8)
    assert len(played) == 1
    assert load_checkpoint(tmp_path / "parts").step == every
    resume(tmp_path / "parts")
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_signal_during_a_save_leaves_one_whole_checkpoint(tmp_path, monkeypatch, reference, when):
    save = training.save_checkpoint
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
        patch.setattr(training, "save_checkpoint", interrupted)
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


# The log of metrics


def test_lines_from_after_the_checkpoint_and_torn_ones_are_dropped(tmp_path, monkeypatch, reference):
    run = stopped(tmp_path / "run", monkeypatch)
    with (run / "metrics.jsonl").open("a") as file:
        file.write(
            '{"step": 8, "train/loss": 99.0}\n{"step": 8, "val/loss": 99.0}\n[1]\n{"step": "x"}\n{"step": 9, "tr'
        )
    assert [line["step"] for line in open_run(run).metrics()][-2:] == [8, 8]
    resume(run)
    assert outcome(run) == outcome(reference)
    assert all(json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())


def test_losses_and_scores_are_there_at_their_steps(tmp_path):
    settings = {**TINY, "train.log_every": 3, "eval.every": 5, "eval.episodes": 2, "eval.num_envs": 2}
    run = fit(tmp_path / "run", data=make_dataset(CARTPOLE), env="CartPole-v1", overrides=settings, steps=11)
    steps = {}
    for line in run.metrics():
        for key in line:
            steps.setdefault(key, []).append(line["step"])
    assert steps["train/loss"] == steps["train/grad_norm"] == steps["perf/steps_per_s"] == [3, 6, 9, 11]
    assert steps["val/loss"] == [4, 8, 11]
    assert steps["eval/return_mean"] == steps["eval/length_mean"] == [5, 10, 11]
    assert run.checkpoint().about["env"] == "CartPole-v1"


def test_the_held_out_loss_is_the_mean_over_steps_of_held_out_episodes(tmp_path, monkeypatch):
    seen = {}

    def spy(name, function):
        return lambda dataset, *more: seen.setdefault(name, dataset) and function(dataset, *more)

    monkeypatch.setattr(training, "WindowSampler", spy("training", WindowSampler))
    monkeypatch.setattr(training, "iterate_windows", spy("held out", iterate_windows))
    data = make_dataset()
    run = fit(tmp_path / "run", data=data, overrides={**TINY, "train.validation": 0.3})
    episodes = {name: {e.observations.tobytes() for e in part} for name, part in seen.items()}
    assert len(episodes["held out"]) == 4
    assert not episodes["held out"] & episodes["training"]
    assert episodes["held out"] | episodes["training"] == {e.observations.tobytes() for e in data}
    model, total = run.checkpoint().model().eval(), 0.0
    for episode in range(4):
        for batch in iterate_windows(seen["held out"].select([episode]), 4, 1):
            total += model.loss(batch).item() * int(batch.mask.sum())
    expected = total / seen["held out"].steps
    assert run.metrics()[-1]["val/loss"] == pytest.approx(expected, rel=1e-5)


def test_training_on_everything_has_no_held_out_loss(tmp_path):
    run = fit(tmp_path / "run", overrides={**TINY, "train.validation": 0.0})
    assert not any("val/loss" in line for line in run.metrics())
    assert fit(tmp_path / "one", data=make_dataset(episodes=1)).checkpoint().step == STEPS


@pytest.mark.filterwarnings("default")
def test_tensorboard_events_are_written_on_request(tmp_path):
    pytest.importorskip("tensorboard")
    fit(tmp_path / "run", overrides={**TINY, "train.tensorboard": True}, steps=3)
    events = list((tmp_path / "run" / "tensorboard").glob("events.out.tfevents.*"))
    assert len(events) == 1
    assert b"train/loss" in events[0].read_bytes()


# What the loop does with numbers


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_update(tmp_path, monkeypatch, value):
    original, calls = DecisionModel.loss, []

    def loss(self, batch):
        calls.append(1)
        return original(self, batch) * (value if len(calls) == 7 else 1.0)

    monkeypatch.setattr(DecisionModel, "loss", loss)
    with pytest.raises(Diverged, match=rf"run: update 7: expected a finite loss and gradient, got loss {value}"):
        fit(tmp_path / "run", overrides={**TINY, "train.validation": 0.0})
    found = load_checkpoint(tmp_path / "run")
    assert found.step == 5
    assert all(tensor.isfinite().all() for tensor in found.weights.values())
    assert open_run(tmp_path / "run").metrics()[-1]["step"] == 6


def test_weights_that_are_not_finite_are_never_written(tmp_path):
    with pytest.raises(Diverged, match=r"run: update 1: expected finite weights, got others in "):
        fit(tmp_path / "run", overrides={**TINY, "train.learning_rate": 1e39, "train.checkpoint_every": 1})
    assert checkpoints_of(tmp_path / "run") == []


def test_the_step_size_rises_then_falls_to_a_tenth_or_stays():
    cosine = TrainConfig(steps=1000, learning_rate=2.0, warmup=0.1)
    rates = [learning_rate(step, cosine) for step in range(1000)]
    assert rates[:2] == pytest.approx([0.02, 0.04])
    assert max(rates) == rates[99] == pytest.approx(2.0)
    assert np.all(np.diff(rates[:100]) > 0)
    assert np.all(np.diff(rates[100:]) < 0)
    assert rates[-1] == pytest.approx(0.2, rel=1e-3)
    constant = TrainConfig(steps=1000, learning_rate=2.0, warmup=0.1, schedule="constant")
    rates = [learning_rate(step, constant) for step in range(1000)]
    assert rates[:2] == pytest.approx([0.02, 0.04])
    assert set(rates[99:]) == {2.0}
    assert learning_rate(0, TrainConfig(steps=1, warmup=0.0)) == TrainConfig().learning_rate


def test_the_scans_own_parameters_are_exempt_from_weight_decay(reference):
    model = load_checkpoint(reference).model()
    names = {id(p): name for name, p in model.named_parameters()}
    decayed, exempt = adamw(model, TrainConfig(weight_decay=0.3)).param_groups
    assert {names[id(p)].rpartition(".")[2] for p in exempt["params"]} == {"A_log", "D"}
    assert not {names[id(p)].rpartition(".")[2] for p in decayed["params"]} & {"A_log", "D"}
    assert len(exempt["params"]) + len(decayed["params"]) == len(names)
    assert (decayed["weight_decay"], exempt["weight_decay"]) == (0.3, 0.0)


def test_equal_seeds_give_equal_runs_and_the_global_generators_are_left_alone(tmp_path, reference):
    torch.manual_seed(77)
    np.random.seed(77)  # noqa: NPY002
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    fit(tmp_path / "run")
    assert torch.equal(torch.get_rng_state(), before)
    assert np.random.get_state()[1].tolist() == numpy_before  # noqa: NPY002
    assert outcome(tmp_path / "run") == outcome(reference)
    fit(tmp_path / "other", seed=1)
    assert outcome(tmp_path / "other")[1] != outcome(reference)[1]


# Data and the environment


def test_data_without_the_highest_action_trains_a_policy_that_has_it(tmp_path):
    data = make_dataset(Spec((6,), "discrete", 2))
    settings = {**TINY, "eval.episodes": 1, "eval.num_envs": 1}
    run = fit(tmp_path / "run", data=data, env="Acrobot-v1", overrides=settings, steps=1)
    assert run.checkpoint().spec.action_size == 3
    assert run.checkpoint().about["fingerprint"] == data.fingerprint


def pendulum(actions):
    """Two episodes in the shapes of Pendulum-v1, whose actions lie within -2 to 2."""
    count = len(actions)
    return Dataset.from_arrays(
        observations=np.zeros((count, 3), np.float32),
        actions=np.asarray(actions, np.float32)[:, None],
        rewards=np.zeros(count, np.float32),
        terminations=np.arange(count) % (count // 2) == count // 2 - 1,
        name="swing",
    )


@pytest.mark.parametrize("actions, extreme, share", [([0, 1, 2, 19.8], "19.8", 25), ([-5, -9, -3, 2.5], "-9", 100)])
def test_actions_outside_the_environments_bounds_are_refused_with_nothing_written(tmp_path, actions, extreme, share):
    message = rf"^swing: actions\[0\]: expected within -2 to 2 \(Pendulum-v1\), got {extreme} \({share} % of steps "
    with pytest.raises(DataError, match=message):
        fit(tmp_path / "run", data=pendulum(actions), env="Pendulum-v1", steps=1)
    assert list(tmp_path.iterdir()) == []


def test_the_entry_of_the_action_that_is_furthest_outside_is_named(monkeypatch):
    spec = Spec((5,), "continuous", 2, (-1.0, -0.5), (1.0, 0.25), "A-v0")
    monkeypatch.setattr(preflight, "environment_spec", lambda env: spec)
    with pytest.raises(DataError, match=r"^made-up: actions\[1\]: expected within -0.5 to 0.25 \(A-v0\), got 0.99"):
        preflight.bounded(make_dataset(), "A-v0")


def test_actions_at_the_bounds_up_to_rounding_are_taken(tmp_path):
    settings = {**TINY, "eval.episodes": 1, "eval.num_envs": 1}
    data = pendulum([-2.003, 0, 1, 2.003])
    run = fit(tmp_path / "run", data=data, env="Pendulum-v1", overrides=settings, steps=1)
    assert run.checkpoint().spec.action_high == (2.0,)


def test_episodes_longer_than_the_table_of_time_embeddings_are_told(tmp_path):
    length = make_dataset().lengths.max()
    message = rf"max_length: {length - 1} steps .* longest episode has {length}; .* --model.max-length {length}$"
    with pytest.warns(UserWarning, match=message):
        fit(tmp_path / "short", "dt", overrides={**DT, "model.max_length": int(length) - 1}, steps=1)
    fit(tmp_path / "enough", "dt", overrides={**DT, "model.max_length": int(length)}, steps=1)
    fit(tmp_path / "none", overrides={**TINY, "model.max_length": 5}, steps=1)


# What is refused before anything is written


@pytest.mark.parametrize(
    "options, message",
    [
        ({"env": "CartPole-v1"}, r"made-up: observation_shape: expected \(4,\), got \(5,\) \(from CartPole-v1\)"),
        ({"env": "CartPole-v9999"}, r"CartPole-v9999: no such environment; did you mean CartPole-v1\?"),
        *(
            (
                {"overrides": {**TINY, "train.device": device}},
                rf"train.device: expected cpu, or cuda or cuda:1 where it is there, got '{device}'",
            )
            for device in ("nosuch", "meta", "cpu:1", "cuda:99")
        ),
        ({"overrides": {"model.head": "categorical"}}, r"model.head: expected a head for continuous actions"),
        ({"overrides": {"model.pattern": "nosuch"}}, r"nosuch"),
        ({"data": "nosuch.hdf5"}, r"nosuch.hdf5: expected an existing path"),
    ],
)
def test_what_does_not_fit_is_refused_with_nothing_written(tmp_path, options, message):
    with pytest.raises(DataError, match=message):
        fit(tmp_path / "run", **{"overrides": TINY, **options})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["bogus", "gpu"])
def test_a_scan_that_cannot_run_is_named_with_nothing_written(tmp_path, monkeypatch, name):
    from scanrl.kernels import choice

    monkeypatch.setenv("SCANRL_SCAN", name)
    choice._forced.cache_clear()
    try:
        with pytest.raises(DataError, match=r"^scan: (SCANRL_SCAN: expected one of|.*the gpu implementation )"):
            fit(tmp_path / "run")
    finally:
        monkeypatch.undo()
        choice._forced.cache_clear()
    assert list(tmp_path.iterdir()) == []


def test_a_missing_tensorboard_is_named_with_nothing_written(tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"train.tensorboard: .* pip install 'scanrl\[track\]'"):
        fit(tmp_path / "run", overrides={**TINY, "train.tensorboard": True})
    assert list(tmp_path.iterdir()) == []


def test_data_in_memory_is_kept_with_the_run(reference):
    assert load(reference / "data").fingerprint == make_dataset().fingerprint
    assert open_run(reference).config.data == f"store:{reference / 'data'}"


def test_behaviour_cloning_is_evaluated_without_a_target(tmp_path):
    pytest.importorskip("gymnasium")
    recording = make_dataset(Spec((4,), "discrete", 2), episodes=6)
    settings = {"model.width": 16, "eval.episodes": 2, "train.steps": 4}
    run = training.train("bc", recording, env="CartPole-v1", out=tmp_path / "run", overrides=settings)
    assert run.metrics()[-1]["eval/episodes"] == 2
