import json
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file, save_file

from scanrl.checkpoint import checkpoints_of, load_checkpoint
from scanrl.data import write_store
from scanrl.run import open_run
from scanrl.training import Interrupted, resume
from scanrl.types import CorruptFile, DataError
from tests.conftest import make_dataset
from tests.runs import CARTPOLE, DT, HALF, TINY, fit, outcome, stop_at, stopped
from tests.test_checkpoint import reseal

pytestmark = pytest.mark.usefixtures("no_flushing")


@pytest.mark.parametrize(
    "recipe, overrides", [("dmm-dc", TINY), ("dt", DT), ("dm", HALF), ("bc10", TINY), ("edt", DT), ("reinformer", DT)]
)
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


def test_a_run_is_told_where_its_data_are_now(tmp_path, monkeypatch, reference):
    for name, seed in (("data", 0), ("later", 0), ("others", 1)):
        write_store(make_dataset(seed=seed), tmp_path / name)
    run = stopped(tmp_path / "run", monkeypatch, data=tmp_path / "data")
    shutil.rmtree(tmp_path / "data")
    before = (run / "config.yaml").read_bytes()
    with pytest.raises(DataError, match=rf"{tmp_path}/others: fingerprint: expected"):
        resume(run, data=tmp_path / "others")
    assert (run / "config.yaml").read_bytes() == before
    resume(run, data=tmp_path / "later")
    assert open_run(run).config.data.endswith("/later")
    assert outcome(run)[1:3] == outcome(reference)[1:3]


@pytest.mark.parametrize("change", [("width: 8", "width: 16"), ("batch_size: 4", "batch_size: 8")])
def test_changed_settings_that_cannot_be_resumed_are_refused(tmp_path, monkeypatch, change):
    run = stopped(tmp_path / "run", monkeypatch)
    file = run / "config.yaml"
    file.write_text(file.read_text().replace(*change))
    with pytest.raises(DataError, match=r"(config.yaml: model|state.json: sampler state: batch_size): expected"):
        resume(run)
