import itertools
import json
import os
import shutil

import numpy as np
import pytest

from scanrl import folder as folders
from scanrl.data.dataset import Dataset
from scanrl.data.store import read_store, write_store
from scanrl.types import COLUMNS, CorruptFile, DataError

FILES = [*(f"{field}.npy" for field in COLUMNS), "episode_offsets.npy", "manifest.json"]


@pytest.fixture
def folder(make_dataset, tmp_path):
    return write_store(make_dataset(), tmp_path / "toy")


def reseal(folder, **changes):
    """Change the manifest and make it consistent again, as someone who means it would."""
    file = folder / "manifest.json"
    file.write_bytes(folders._manifest_bytes(json.loads(file.read_bytes()) | changes))


@pytest.mark.parametrize("choices", [0, 4])
def test_what_is_written_is_what_is_read(make_dataset, tmp_path, choices):
    dataset = make_dataset(choices=choices)
    dataset.source = {"uri": "d4rl:toy.h5", "sha256": "00"}
    again = read_store(write_store(dataset, tmp_path / "a" / "toy"))
    assert all(np.array_equal(again.columns[field], dataset.columns[field]) for field in COLUMNS)
    assert np.array_equal(again.offsets, dataset.offsets)
    assert (again.spec, again.name, again.source) == (dataset.spec, dataset.name, dataset.source)
    assert again.fingerprint == dataset.fingerprint
    assert sorted(os.listdir(tmp_path / "a" / "toy")) == sorted(FILES)


def test_columns_are_mapped_and_read_only(folder):
    dataset = read_store(folder)
    assert isinstance(dataset.observations, np.memmap)
    with pytest.raises(ValueError, match=r"read-only"):
        dataset.observations[0] = 0


def test_equal_data_gives_equal_bytes(make_dataset, tmp_path):
    dataset = make_dataset()
    odd = {field: np.asfortranarray(column) for field, column in dataset.columns.items()}
    first = write_store(dataset, tmp_path / "first")
    second = write_store(Dataset(odd, dataset.offsets, dataset.spec, "toy"), tmp_path / "second")
    third = write_store(read_store(first), tmp_path / "third")
    for name in FILES:
        assert (first / name).read_bytes() == (second / name).read_bytes() == (third / name).read_bytes()


def test_every_flipped_bit_is_found_and_the_file_is_named(folder):
    rng = np.random.default_rng(0)
    for name in FILES:
        file = folder / name
        good = file.read_bytes()
        positions = rng.choice(len(good) * 8, min(120, len(good) * 8), replace=False)
        for position in positions.tolist():
            bad = bytearray(good)
            bad[position // 8] ^= 1 << position % 8
            file.write_bytes(bad)
            with pytest.raises(DataError, match=rf"{name}: "):
                read_store(folder)
        file.write_bytes(good)
    read_store(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_short_emptied_lengthened_or_removed_is_named(folder, name):
    file = folder / name
    good = file.read_bytes()
    for bad in (good[:-1], good[: len(good) // 2], b"", good + b"\0"):
        file.write_bytes(bad)
        for verify in (True, False):
            with pytest.raises(CorruptFile, match=rf"{name}: "):
                read_store(folder, verify=verify)
    file.unlink()
    with pytest.raises(DataError, match=rf"{name}"):
        read_store(folder)


@pytest.mark.parametrize("name", FILES)
def test_links_are_refused(folder, tmp_path, name):
    shutil.move(folder / name, tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CorruptFile, match=rf"{name}: expected a regular file, got a link$"):
        read_store(folder)


@pytest.mark.parametrize("name", ["../secret.npy", "/etc/passwd", "extra.npy"])
def test_file_names_of_other_places_are_refused(folder, name):
    files = json.loads((folder / "manifest.json").read_bytes())["files"]
    reseal(folder, files={**files, name: {"bytes": 1, "sha256": ""}})
    with pytest.raises(CorruptFile, match=rf"manifest.json: files: expected .*, got a difference in \['{name}'\]$"):
        read_store(folder)


def test_a_newer_format_is_refused_with_both_versions(folder):
    reseal(folder, version=7)
    message = "manifest.json: version: expected at most 3, got 7 \\(written by a newer scanrl\\)$"
    with pytest.raises(DataError, match=message):
        read_store(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 24},
        {"episodes": 5},
        {"files": {}},
        {"files": 3},
        {"spec": {}},
        {"spec": 1},
        {"source": 4},
        {"steps": None},
    ],
)
def test_a_manifest_that_lies_is_refused(folder, changes):
    reseal(folder, **changes)
    with pytest.raises(CorruptFile, match=r"manifest.json: "):
        read_store(folder)


def test_a_manifest_that_lies_about_shapes_is_refused(folder):
    spec = json.loads((folder / "manifest.json").read_bytes())["spec"]
    reseal(folder, spec={**spec, "observation_shape": [4]})
    with pytest.raises(CorruptFile, match=r"manifest.json: expected what the files hold, got: toy: observations: "):
        read_store(folder)


def test_arrays_of_objects_are_refused_without_being_loaded(folder):
    file = folder / "rewards.npy"
    np.save(file, np.array([print] * 25, object), allow_pickle=True)
    files = json.loads((folder / "manifest.json").read_bytes())["files"]
    files["rewards.npy"] = {"bytes": file.stat().st_size, "sha256": folders._digest(file)}
    reseal(folder, files=files)
    with pytest.raises(CorruptFile, match=r"rewards.npy: expected a plain npy array, got: "):
        read_store(folder)


def test_a_folder_that_is_no_store_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(DataError, match=rf"^{path}: expected a store"):
            read_store(path)


def test_an_existing_store_is_replaced_only_on_request(make_dataset, folder):
    other = make_dataset((3, 3))
    with pytest.raises(DataError, match=r"expected a new or empty folder, got one with files"):
        write_store(other, folder)
    assert len(read_store(folder)) == 4
    write_store(other, folder, overwrite=True)
    assert len(read_store(folder)) == 2
    assert os.listdir(folder.parent) == ["toy"]


def test_a_folder_of_other_files_is_never_replaced(make_dataset, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match=r"expected a store to overwrite, got a folder without manifest.json"):
        write_store(make_dataset(), tmp_path, overwrite=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DataError, match=r"expected a new folder, got something else of that name"):
        write_store(make_dataset(), tmp_path / "file", overwrite=True)


def test_an_empty_folder_is_used(make_dataset, tmp_path):
    (tmp_path / "toy").mkdir()
    assert len(read_store(write_store(make_dataset(), tmp_path / "toy"))) == 4


class Killed(BaseException):
    """Stands for a kill: nothing that would run after it may matter."""


def interrupt(monkeypatch, call, error):
    """Let the `call`-th fsync or rename of the store raise `error`; a kill keeps the clean-up from running too."""
    calls = itertools.count()

    def failing(function):
        def wrapper(*args):
            if next(calls) == call:
                raise error
            return function(*args)

        return wrapper

    monkeypatch.setattr(folders.os, "fsync", failing(os.fsync))
    monkeypatch.setattr(folders.os, "rename", failing(os.rename))
    if isinstance(error, Killed):
        monkeypatch.setattr(folders.shutil, "rmtree", lambda *args, **kwargs: None)


FULL = OSError(28, "No space left on device")
CALLS = range(10)


@pytest.mark.parametrize("error", [Killed(), FULL])
@pytest.mark.parametrize("call", CALLS)
def test_an_interrupted_write_leaves_the_whole_store_or_none(make_dataset, tmp_path, monkeypatch, call, error):
    with monkeypatch.context() as patch:
        interrupt(patch, call, error)
        with pytest.raises((Killed, OSError)):
            write_store(make_dataset(), tmp_path / "toy")
    if (tmp_path / "toy").exists():
        assert call == CALLS[-1]
        read_store(tmp_path / "toy")
    if error is FULL:
        assert [name for name in os.listdir(tmp_path) if name != "toy"] == []
    assert len(read_store(write_store(make_dataset(), tmp_path / "toy", overwrite=True))) == 4


@pytest.mark.parametrize("call", range(11))
def test_a_failed_overwrite_leaves_the_old_store_or_the_new_one(make_dataset, folder, monkeypatch, call):
    with monkeypatch.context() as patch:
        interrupt(patch, call, FULL)
        with pytest.raises(OSError, match=r"No space left"):
            write_store(make_dataset((2, 2)), folder, overwrite=True)
    assert len(read_store(folder)) == (2 if call == 10 else 4)
    assert os.listdir(folder.parent) == ["toy"]
