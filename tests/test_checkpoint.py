import ast
import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import scanrl
from scanrl import folder as machinery
from scanrl.checkpoint import checkpoints_of, load_checkpoint, prune, save_checkpoint
from scanrl.models.build import build_model
from scanrl.models.decision import DecisionModel
from scanrl.models.recipes import RECIPES, recipe
from scanrl.policy import Policy
from scanrl.types import CorruptFile, DataError
from tests.conftest import BOX, CHOICE, make_batch, make_queries, make_stats
from tests.test_folder import FULL, Disk, Killed

FILES = [
    "config.json",
    "manifest.json",
    "model.safetensors",
    "stats.json",
    "train/optimizer.safetensors",
    "train/state.json",
]
SMALL = {"pattern": "modal_conv mamba", "width": 8, "context": 4, "state_size": 4}


@pytest.fixture(autouse=True)
def no_flushing(monkeypatch):
    """Waiting for the disk takes most of the time; that it is asked is counted where it matters."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def make_model(seed=0, spec=BOX):
    return DecisionModel(recipe("dmm-dc", **SMALL).model, spec, make_stats(spec), seed)


def save(run, step, seed=None):
    """A checkpoint whose every part tells its step."""
    model = make_model(step if seed is None else seed)
    tensors = {"exp_avg/x": torch.full((3,), float(step)), "random": torch.get_rng_state()}
    return save_checkpoint(run / "checkpoints", step, model, {"mark": step}, tensors, {"sampler": {"mark": step}})


def steps(checkpoint):
    """The step that each part of a checkpoint comes from."""
    weights = next(s for s in range(1, 9) if same(checkpoint.weights, make_model(s).state_dict()))
    marks = (
        checkpoint.about["mark"],
        int(checkpoint.optimizer["exp_avg/x"][0]),
        checkpoint.progress["sampler"]["mark"],
    )
    return {checkpoint.step, weights, *marks}


def same(these, those):
    return these.keys() == those.keys() and all(torch.equal(these[name], those[name]) for name in these)


def reseal(path, **changes):
    """Make the manifest fit the files again, as someone who means it would."""
    file = path / "manifest.json"
    fields = json.loads(file.read_bytes()) | changes
    for name in fields["files"]:
        content = path / name
        fields["files"][name] = {"bytes": content.stat().st_size, "sha256": machinery._digest(content)}
    file.write_bytes(machinery._manifest_bytes(fields))


@pytest.fixture
def run(tmp_path):
    save(tmp_path / "run", 1)
    save(tmp_path / "run", 2)
    return tmp_path / "run"


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("spec", [BOX, CHOICE], ids=["continuous", "discrete"])
def test_what_is_saved_is_what_is_loaded(tmp_path, name, spec):
    model = build_model(dataclasses.replace(recipe(name).model, width=16), spec, make_stats(spec), seed=3).eval()
    path = save_checkpoint(tmp_path, 5, model, {"recipe": name}, {"exp_avg/x": torch.ones(2)}, {"sampler": {}})
    found = load_checkpoint(path)
    assert (found.step, found.config, found.spec, found.about) == (5, model.config, model.spec, {"recipe": name})
    assert found.stats == model.stats
    assert same(found.weights, model.state_dict())
    batch = (make_queries if model.config.query else make_batch)(spec, 2, 4)
    assert torch.equal(found.model().eval().actions(batch), model.actions(batch))
    assert sorted(str(p.relative_to(path)) for p in path.rglob("*") if p.is_file()) == FILES


# 6 files written and flushed, 2 folders flushed, one rename, the parent flushed; then the old one is put away.
POINTS = 17


@pytest.mark.parametrize("error", [Killed(), FULL], ids=["killed", "full"])
@pytest.mark.parametrize("at", range(POINTS + 1))
def test_a_save_interrupted_anywhere_leaves_one_whole_checkpoint_and_no_mixture(tmp_path, monkeypatch, at, error):
    run = tmp_path / "run"
    save(run, 1)
    with monkeypatch.context() as patch:
        disk = Disk(patch, at, error)
        with contextlib.suppress(Killed, OSError):
            save(run, 2)
            prune(run, 1, 2)
        assert (disk.calls > at) == (at < POINTS), "every point is covered"
    assert steps(load_checkpoint(run)) == ({1} if at < POINTS - 2 else {2})
    if error is FULL:
        assert not list((run / "checkpoints").glob(".*"))
    save(run, 3)
    prune(run, 1, 3)
    assert os.listdir(run / "checkpoints") == ["step-3"]
    assert steps(load_checkpoint(run)) == {3}


def test_hundreds_of_flipped_bits_are_all_found_and_the_file_is_named(run):
    rng = np.random.default_rng(0)
    path = run / "checkpoints" / "step-2"
    for name in FILES:
        file = path / name
        good = file.read_bytes()
        for bit in rng.choice(len(good) * 8, 50, replace=False).tolist():
            bad = bytearray(good)
            bad[bit // 8] ^= 1 << bit % 8
            file.write_bytes(bad)
            with pytest.raises(CorruptFile, match=rf"{name}: "):
                load_checkpoint(path)
        file.write_bytes(good)
    assert steps(load_checkpoint(path)) == {2}


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_short_emptied_lengthened_or_removed_is_named_and_the_run_falls_back(run, name):
    path = run / "checkpoints" / "step-2"
    file = path / name
    good = file.read_bytes()
    for bad in (good[:-1], good[: len(good) // 2], b"", good + b"\0", None):
        file.unlink(missing_ok=True)
        if bad is not None:
            file.write_bytes(bad)
        with pytest.raises(CorruptFile, match=rf"{name}: "):
            load_checkpoint(path)
        with pytest.warns(RuntimeWarning, match=rf"damaged checkpoint: .*step-2/{name}: .*using .*step-1"):
            assert steps(load_checkpoint(run)) == {1}


def test_the_removed_folder_of_the_optimiser_is_noticed(run):
    shutil.rmtree(run / "checkpoints" / "step-2" / "train")
    with pytest.raises(CorruptFile, match=r"manifest.json: files: expected .*train/optimizer"):
        load_checkpoint(run / "checkpoints" / "step-2")


def test_damage_everywhere_is_an_error_that_names_the_latest(run):
    for step in (1, 2):
        (run / "checkpoints" / f"step-{step}" / "stats.json").write_text("{}")
    with pytest.raises(CorruptFile, match=r"step-2/stats.json: expected \d+ bytes, got 2"):
        load_checkpoint(run)


def test_no_checkpoint_is_an_error_that_says_what_was_found(tmp_path):
    with pytest.raises(DataError, match=r"expected a run folder or a checkpoint, got neither$"):
        load_checkpoint(tmp_path)
    with pytest.raises(DataError, match=r"expected a run folder or a checkpoint, got nothing$"):
        load_checkpoint(tmp_path / "none")


MODULES = {"pickle", "cPickle", "dill", "joblib", "marshal", "shelve"}
CALLS = {"eval", "exec", "compile", "__import__", "torch.load", "torch.save", "yaml.load", "yaml.unsafe_load"}


def forbidden(tree):
    """What in a module could run code from a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in MODULES)
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            yield node.module
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            allowed = given.get("allow_pickle", "True" if name in {"np.load", "numpy.load"} else "False")
            if name in CALLS or allowed != "False":
                yield name


def test_nothing_in_the_package_can_run_code_from_a_file():
    found = {}
    for path in Path(scanrl.__file__).parent.rglob("*.py"):
        names = list(forbidden(ast.parse(path.read_text(encoding="utf-8"))))
        if names:
            found[path.name] = names
    assert found == {}


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from pickle import loads",
        "import torch\ntorch.load('x', weights_only=True)",
        "eval('1')",
        "exec('1')",
        "yaml.load(f)",
        "np.load(f)",
        "np.load(f, allow_pickle=True)",
    ],
)
def test_the_gate_notices_what_it_is_for(line):
    assert list(forbidden(ast.parse(line)))


def test_the_gate_does_not_trip_over_words():
    harmless = "model.eval()\ndef eval_steps(pickle): return 'torch.load'\nnp.load(f, allow_pickle=False)"
    assert not list(forbidden(ast.parse(harmless)))


@pytest.mark.parametrize("name", ["model.pt", "model.pkl", "train/state.pkl", "config.pkl", "model.bin", "data.pkl"])
def test_a_pickle_beside_the_files_is_never_opened(run, name, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path = run / "checkpoints" / "step-2"
    sentinel = run / "sentinel"
    (path / name).write_bytes(f"cos\nsystem\n(S'touch {sentinel}'\ntR.".encode())
    shutil.copy(path / name, path / "model.safetensors")
    with pytest.raises(CorruptFile, match=r"model.safetensors: "):
        load_checkpoint(path)
    reseal(path)
    with pytest.raises(CorruptFile, match=r"model.safetensors: expected safetensors, got: "):
        load_checkpoint(path)
    assert not sentinel.exists()


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda w, n: w.pop(n), r"expected float32 \(.*\), got nothing"),
        (lambda w, n: w.update(odd=torch.ones(2)), r"odd: expected nothing, got float32 \(2,\)"),
        (lambda w, n: w.update({n: torch.ones(3, 7)}), r"expected float32 \(.*\), got float32 \(3, 7\)"),
        (lambda w, n: w.update({n: w[n].double()}), r"expected float32 \(.*\), got float64 \(.*\)"),
        (lambda w, n: w.update({"../../x": torch.ones(1)}), r"\.\./\.\./x: expected nothing, got float32 \(1,\)"),
    ],
    ids=["missing", "extra", "shape", "type", "path"],
)
def test_a_tensor_that_does_not_fit_is_named_with_both_shapes(run, change, message):
    path = run / "checkpoints" / "step-2"
    weights = load_file(path / "model.safetensors")
    name = "norm.weight"
    assert name in weights
    change(weights, name)
    save_file(weights, path / "model.safetensors")
    reseal(path)
    with pytest.raises(CorruptFile, match=rf"model.safetensors: .*{message}"):
        load_checkpoint(path).model()


def test_a_newer_version_is_refused_and_not_passed_over(run):
    reseal(run / "checkpoints" / "step-2", version=2)
    message = r"step-2/manifest.json: version: expected at most 1, got 2 \(written by a newer scanrl\)"
    with pytest.raises(DataError, match=message):
        load_checkpoint(run)


@pytest.mark.parametrize("layout, fits", [("Rsa", True), ("saR", True), ("sRa", False)])
def test_a_network_from_before_returns_could_be_predicted_loads_unless_its_action_was_read_elsewhere(run, layout, fits):
    path = run / "checkpoints" / "step-2"
    found = load_checkpoint(path)
    values = json.loads((path / "config.json").read_bytes())
    later = ("returns", "expectile", "return_loss", "return_weight", "return_bins", "bins_weight", "state_weight")
    for name in (*later, "hide_returns"):
        del values["model"][name]
    values["model"]["layout"] = layout
    (path / "config.json").write_text(json.dumps(values))
    reseal(path)
    if fits:
        assert load_checkpoint(path).config == dataclasses.replace(found.config, layout=layout)
    else:
        with pytest.raises(DataError, match=r"config.json: model.layout: expected .*, got 'sRa': train it anew$"):
            load_checkpoint(path)


@pytest.mark.parametrize("changes", [{"step": 7}, {"step": None}, {"step": "x"}])
def test_a_folder_of_another_step_than_its_name_is_damaged(run, changes):
    path = run / "checkpoints" / "step-2"
    reseal(path, **changes)
    with pytest.raises((CorruptFile, ValueError)):
        load_checkpoint(path)


@pytest.mark.parametrize("name", ["config.json", "stats.json", "train/state.json"])
@pytest.mark.parametrize("content", [b"{", b"[]", b"3", b"{}", b'{"model": {"widht": 3}}', b"\xff"])
def test_values_that_are_no_checkpoint_are_damage(run, name, content):
    path = run / "checkpoints" / "step-2"
    (path / name).write_bytes(content)
    reseal(path)
    if name == "train/state.json" and content.startswith(b"{") and content != b"{":
        assert load_checkpoint(path).progress == json.loads(content)
    else:
        with pytest.raises(CorruptFile, match=r"json: expected"):
            load_checkpoint(path)


def test_the_latest_is_the_highest_step_whatever_the_clock_says(run):
    save(run, 10)
    for age, step in enumerate((10, 1, 2)):
        os.utime(run / "checkpoints" / f"step-{step}", (age * 1000, age * 1000))
    assert [p.name for p in checkpoints_of(run)] == ["step-1", "step-2", "step-10"]
    assert load_checkpoint(run).step == 10


def test_the_latest_ones_are_kept_and_zero_keeps_all(run):
    for step in (3, 4, 5):
        save(run, step)
    prune(run, 0, 5)
    assert len(checkpoints_of(run)) == 5
    prune(run, 2, 5)
    assert [p.name for p in checkpoints_of(run)] == ["step-4", "step-5"]


def test_a_removal_that_fails_stops_nothing_and_is_made_up_for(run, monkeypatch):
    save(run, 3)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda path, ignore_errors: None)
        prune(run, 1, 3)
    assert load_checkpoint(run).step == 3
    assert [p.name for p in checkpoints_of(run)] == ["step-3"], "half removed ones do not look like checkpoints"
    save(run, 4)
    prune(run, 1, 4)
    assert os.listdir(run / "checkpoints") == ["step-4"]


def test_damaged_later_checkpoints_do_not_push_out_the_good_one(run):
    for step in (8, 9):
        (save(run, step) / "stats.json").write_text("{}")
    with pytest.warns(RuntimeWarning, match=r"passing over a damaged checkpoint: .*step-9/stats.json"):
        assert load_checkpoint(run).step == 2
    save(run, 3)  # the run went on from step 2
    prune(run, 1, 3)
    assert [p.name for p in checkpoints_of(run)] == ["step-3"]


def test_a_hundred_leftovers_are_swept_and_other_files_are_kept(run):
    for number in range(100):
        (run / "checkpoints" / f".step-7.tmp-{number}-aa").mkdir()
    (run / "checkpoints" / "notes").mkdir()
    (run / "checkpoints" / ".hidden").write_text("mine")
    prune(run, 3, 2)
    assert sorted(os.listdir(run / "checkpoints")) == [".hidden", "notes", "step-1", "step-2"]


@pytest.mark.parametrize("name", FILES)
def test_links_in_a_checkpoint_are_refused(run, tmp_path, name):
    path = run / "checkpoints" / "step-2"
    shutil.move(path / name, tmp_path / "elsewhere")
    (path / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CorruptFile, match=rf"{name}: expected a regular file, got a link"):
        load_checkpoint(path)


def test_a_file_cut_short_after_loading_does_not_crash(run):
    found = load_checkpoint(run)
    os.truncate(found.path / "model.safetensors", 10)
    assert same(found.weights, make_model(2).state_dict())


ACT = """
import sys, numpy as np
from scanrl import Policy
policy = Policy.load(sys.argv[1], target_return=20.0, context=eval_context(sys.argv[2]))
rng = np.random.default_rng(0)
actions = [policy.act(rng.normal(size=(3, 5)), rng.normal(size=3), first=i == 4) for i in range(9)]
np.save(sys.argv[3], np.stack(actions))
""".replace("eval_context(sys.argv[2])", "'recurrent' if sys.argv[2] == 'recurrent' else int(sys.argv[2])")


def test_a_fresh_process_acts_bit_for_bit_as_this_one(run, tmp_path):
    model = make_model(2)
    torch.set_num_threads(1)
    subprocess.run(
        [sys.executable, "-c", ACT, str(run), "recurrent", str(tmp_path / "there.npy")],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    policy = Policy(model, target_return=20.0)
    rng = np.random.default_rng(0)
    actions = [policy.act(rng.normal(size=(3, 5)), rng.normal(size=3), first=i == 4) for i in range(9)]
    assert np.array_equal(np.load(tmp_path / "there.npy"), np.stack(actions))
