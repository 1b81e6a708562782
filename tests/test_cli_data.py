import json
import os

import h5py
import numpy as np
import pytest

from scanrl.cli import main
from scanrl.data import read_store, write_store
from tests.conftest import make_dataset
from tests.recordings import hdf5, npz, spoiled
from tests.runs import CARTPOLE, SMALL

pytestmark = pytest.mark.usefixtures("elsewhere")


@pytest.mark.parametrize("verb", ["train", "data info", "data convert", "data validate"])
@pytest.mark.parametrize(
    "make, message",
    [
        (lambda d: None, "x: expected an existing path or <format>:<path>"),
        (lambda d: d.write_text("hello"), "x: expected an HDF5 file, an npz archive or a store, got something else"),
        (lambda d: d.mkdir(), "x: expected a store (a folder with manifest.json), got another folder"),
        (lambda d: d.write_bytes(b""), "x: expected an HDF5 file, an npz archive or a store, got something else"),
    ],
    ids=["missing", "text", "folder", "empty"],
)
def test_data_of_no_known_kind_is_named(tmp_path, verb, make, message, failing):
    path = tmp_path / "x"
    make(path)
    words = {"train": ["train", "dt", "--data"], "data convert": ["data", "convert", "-o", "out"]}.get(
        verb, verb.split()
    )
    assert message in failing(*words, str(path))


def cut(path, size):
    os.truncate(path, int(path.stat().st_size * size))
    return path


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda p, d: cut(hdf5(p / "x.h5", d), 0.5), "x.h5: unreadable ("),
        (lambda p, d: cut(npz(p / "x.npz", d), 0.5), "x.npz: unreadable ("),
        (lambda p, d: hdf5(p / "x.h5", d, rewards=None), "x.h5: rewards: expected an array of this name, got "),
        (lambda p, d: npz(p / "x.npz", d, actions=None), "x.npz: actions: expected"),
        (lambda p, d: hdf5(p / "x.h5", d, rewards=d.rewards[:-1]), "x.h5: observations: expected "),
        (lambda p, d: npz(p / "x.npz", d, actions=d.actions[:-3]), "x.npz: actions: expected "),
        (
            lambda p, d: hdf5(p / "x.h5", d, rewards=spoiled(d.rewards, 2, np.nan)),
            "x.h5: episode 0: step 2: rewards: expected finite numbers, got nan",
        ),
        (
            lambda p, d: npz(p / "x.npz", d, observations=spoiled(d.observations, (0, 1), -np.inf)),
            "x.npz: episode 0: step 0: observations: expected finite numbers, got -inf",
        ),
        (lambda p, d: npz(p / "x.npz", d), "x.npz: observation_shape: expected (4,), got (5,) (from CartPole-v1)"),
    ],
    ids=["hdf5 cut", "npz cut", "no rewards", "no actions", "rewards short", "actions short", "nan", "inf", "env"],
)
def test_training_on_data_that_cannot_be_used_names_file_and_field(tmp_path, make, message, failing):
    path = make(tmp_path, make_dataset())
    said = failing("train", "dmm-dc", "--data", str(path), "--env", "CartPole-v1", *SMALL)
    assert f"scanrl: {message}" in said


def test_validation_lists_every_problem_and_exits_with_one(tmp_path, capsys):
    data = make_dataset(CARTPOLE)
    good = npz(tmp_path / "good.npz", data)
    assert main(["data", "validate", str(good)]) == 0
    assert "12 episodes" in capsys.readouterr().out
    path = npz(
        tmp_path / "bad.npz",
        data,
        rewards=spoiled(data.rewards, 1, np.nan),
        observations=spoiled(data.observations, (0, 0), np.inf),
        actions=spoiled(data.actions, 2, -1),
    )
    assert main(["data", "validate", str(path)]) == 1
    said = capsys.readouterr()
    assert said.err == ""
    lines = said.out.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("bad.npz: episode 0: step ") for line in lines)
    assert {line.split(": ")[3] for line in lines} == {"observations", "rewards", "actions"}


def test_data_info_and_convert(tmp_path, capsys):
    data = make_dataset()
    path = hdf5(tmp_path / "x.h5", data)
    assert main(["data", "info", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["episodes"], found["steps"], found["observation_shape"]) == (12, data.steps, [5])
    assert main(["data", "info", f"d4rl:{path}"]) == 0
    assert "return_max" in capsys.readouterr().out
    assert main(["data", "convert", str(path), "-o", "out"]) == 0
    assert f"{data.steps} steps, fingerprint" in capsys.readouterr().out
    assert read_store("out").steps == data.steps
    assert main(["data", "convert", str(path), "-o", "out"]) == 2
    assert "out: expected a new or empty folder, got one with files" in capsys.readouterr().err
    assert main(["data", "convert", str(path), "-o", "out", "--overwrite"]) == 0
    assert main(["data", "convert", str(path), "-o", str(path / "below")]) == 2


def test_data_that_needs_an_option_of_its_reader_can_be_read_by_the_command(tmp_path, capsys):
    data = make_dataset(CARTPOLE)
    first = int(data.lengths[0])
    open_end = {"terminals": data.terminations.copy(), "timeouts": data.truncations.copy()}
    for flags in open_end.values():
        flags[-1] = False
    path = hdf5(tmp_path / "x.h5", data, rewards=spoiled(data.rewards, 1, np.nan), **open_end)
    for words in (["info"], ["convert", "-o", "out"]):
        assert main(["data", *words, str(path)]) == 2
        assert "x.h5: episode 0: step 1: rewards: expected finite numbers" in capsys.readouterr().err
    options = ["--nonfinite=drop-episode", "--tail=drop", "--env-id=CartPole-v1", "--memory-gib=3", "--timeout=50"]
    assert main(["data", "validate", str(path), *options]) == 0
    capsys.readouterr()
    assert main(["data", "info", str(path), *options, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["episodes"], found["env_id"]) == (10, "CartPole-v1")
    assert main(["data", "convert", str(path), "-o", "out", *options]) == 0
    kept = read_store("out")
    assert (len(kept), kept.spec.env_id) == (10, "CartPole-v1")
    assert np.array_equal(kept[0].rewards, data.rewards[first:][: len(kept[0])])


@pytest.mark.parametrize(
    "words, message",
    [
        (["--tail=drop"], "data: --tail: expected data of format d4rl or dqn-replay or npz, got store\n"),
        (["--observation-keys", "a", "b"], "data: --observation-keys: expected data of format minari, got store\n"),
        (["--tail=cut"], "invalid choice 'cut' for argument '--tail'"),
        (["--memory-gib=0"], "data: --memory-gib: expected more than 0 and less than a million, got 0.0\n"),
        (["--timeout=nan"], "data: --timeout: expected more than 0 and less than a million, got nan\n"),
    ],
)
def test_options_of_another_reader_are_refused_as_the_command_spells_them(tmp_path, words, message, failing):
    write_store(make_dataset(), tmp_path / "data")
    for verb in ("info", "validate"):
        assert message in failing("data", verb, str(tmp_path / "data"), *words)


def test_a_limit_that_is_too_low_names_the_option_that_raises_it(tmp_path, failing):
    path = hdf5(tmp_path / "x.h5", make_dataset(), rewards=None)
    with h5py.File(path, "a") as file:
        file.create_dataset("rewards", (2**38,), "f8", chunks=(1024,))
    said = failing("data", "convert", str(path), "-o", "out", "--memory-gib=3")
    assert "expected at most 2.25 GiB in all" in said
    assert said.endswith("raise memory_gib: scanrl data convert --memory-gib)\n")


def test_a_damaged_store_exits_with_three(tmp_path, failing):
    store = write_store(make_dataset(), tmp_path / "data")
    content = bytearray((store / "rewards.npy").read_bytes())
    content[-1] ^= 1
    (store / "rewards.npy").write_bytes(content)
    assert "data/rewards.npy: sha256: expected " in failing("train", "dt", "--data", str(store), code=3)
