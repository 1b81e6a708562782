import io
import os
import zipfile

import numpy as np
import pytest

from scanrl.data import npz
from scanrl.data.isolate import attempt
from scanrl.types import DataError

LIMIT = 1 << 30


def read(path, limit=LIMIT, **options):
    return npz.read(path, name=path.name, limit=limit, **options)


@pytest.fixture
def write_npz(tmp_path):
    def write(columns, save=np.savez_compressed):
        save(tmp_path / "log.npz", **columns)
        return tmp_path / "log.npz"

    return write


@pytest.fixture
def named(flat):
    return {{"terminals": "terminations", "timeouts": "truncations"}.get(k, k): v for k, v in flat.items()}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_both_families_of_names_give_the_same_dataset(flat, named, write_npz, save):
    first, second = read(write_npz(flat, save)), read(write_npz(named, save))
    assert first.fingerprint == second.fingerprint
    assert first.lengths.tolist() == [50, 30, 1, 19]
    assert read(write_npz(flat), env_id="Hopper-v5").spec.env_id == "Hopper-v5"


def test_episode_ids_cut_the_steps(named, write_npz):
    del named["truncations"]
    named["terminations"] = np.zeros(100)
    with pytest.raises(DataError, match=r"^log.npz: truncations: .* \(missing boundaries"):
        read(write_npz(named))
    named["episode_ids"] = np.repeat([3, 1], [60, 40])
    assert read(write_npz(named)).lengths.tolist() == [60, 40]
    named["episode_ids"] = np.zeros(99)
    with pytest.raises(DataError, match=r"^log.npz: episode_ids: expected 100 values, got 99$"):
        read(write_npz(named))


def test_an_unknown_array_is_named_with_the_nearest_known(named, write_npz):
    message = r"^log.npz: reward: expected one of .*, got an unknown array \(did you mean 'rewards'\?\)$"
    with pytest.raises(DataError, match=message):
        read(write_npz({**named, "reward": named["rewards"]}))


def test_a_missing_array_is_named(named, write_npz):
    del named["rewards"]
    with pytest.raises(DataError, match=r"^log.npz: rewards: expected an array of this name, got only \['actions', "):
        read(write_npz(named))


def test_the_same_field_under_two_names_is_refused(named, write_npz):
    message = r"^log.npz: truncations: expected one array, got 'truncations' and 'timeouts'$"
    with pytest.raises(DataError, match=message):
        read(write_npz({**named, "timeouts": named["truncations"]}))


def test_unequal_lengths_are_named(named, write_npz):
    with pytest.raises(DataError, match=r"^log.npz: actions: expected 100 values, got 99$"):
        read(write_npz({**named, "actions": named["actions"][:-1]}))


class Trap:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_objects_are_refused_and_their_code_does_not_run(named, write_npz, tmp_path):
    trap = np.array([Trap(tmp_path / "ran")] * 100, object)
    with pytest.raises(
        DataError, match=r"^log.npz: rewards: expected numbers, got objects \(a pickle, which could run"
    ):
        read(write_npz({**named, "rewards": trap}))
    assert not (tmp_path / "ran").exists()


def rewrite(path, member, content):
    """The archive with one member replaced."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, old in members.items():
            archive.writestr(name, content if name == member else old)


def header(shape):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def test_terabytes_declared_by_a_header_are_refused_before_allocation(named, write_npz):
    path = write_npz(named)
    rewrite(path, "observations.npy", header((2**41,)) + bytes(400))
    message = r"^log.npz: observations: expected 8796093022208 bytes for shape \(2199023255552,\), got 400$"
    with pytest.raises(DataError, match=message):
        read(path)


def test_a_compression_bomb_is_refused_before_allocation(named, write_npz):
    path = write_npz({**named, "observations": np.zeros((100, 1 << 18), np.float32)})
    assert path.stat().st_size < 200_000
    with pytest.raises(DataError, match=r"^log.npz: observations: expected at most 0.0625 GiB in all, got 0.09"):
        read(path, limit=1 << 26)


def test_cut_and_flipped_archives_never_give_other_contents(named, write_npz, tmp_path):
    path = write_npz(named)
    good, reference = path.read_bytes(), read(path).fingerprint
    rng = np.random.default_rng(0)
    bad = [good[:cut] for cut in np.linspace(0, len(good) - 1, 200, dtype=int)]
    for position in rng.integers(len(good) * 8, size=200).tolist():
        flipped = bytearray(good)
        flipped[position // 8] ^= 1 << position % 8
        bad.append(bytes(flipped))
    for number, content in enumerate(bad):
        path.write_bytes(content)
        folder = tmp_path / str(number)
        folder.mkdir()
        request = {"module": "scanrl.data.npz", "source": str(path), "name": "log.npz", "options": {}}
        error = attempt({**request, "folder": str(folder), "origin": {}, "memory": LIMIT})
        if error is None:  # Some bits, such as dates in the directory, mean nothing.
            assert read(path).fingerprint == reference
        else:
            assert error.startswith("log.npz: ")
            assert "\n" not in error
    assert number == 399
