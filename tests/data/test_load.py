import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import scanrl.data
from scanrl.data import FORMATS, Format, cache, check, load, write_store
from scanrl.types import CorruptFile, DataError

ROOT = Path(scanrl.data.__file__).parents[2]


@pytest.fixture
def kept(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """Makes the format `d4rl` use a reader of a few lines, importable in the child."""

    def install(body):
        (tmp_path / "stub_reader.py").write_text(f"def read(path, *, name, limit, **options):\n    {body}\n")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.setitem(FORMATS, "d4rl", Format("stub_reader", "a stub"))
        (tmp_path / "log.h5").write_bytes(b"anything")
        return f"d4rl:{tmp_path / 'log.h5'}"

    return install


@pytest.fixture
def no_child(monkeypatch):
    def forbid():
        def fail(*args, **kwargs):
            raise AssertionError("a child process was started")

        monkeypatch.setattr(cache, "read_isolated", fail)

    return forbid


def test_every_format_is_read_by_scheme_and_by_bare_path(flat, write_hdf5, tmp_path, kept):
    hdf5 = write_hdf5(flat)
    np.savez(tmp_path / "log.npz", **flat)
    reference = load(f"d4rl:{hdf5}", cache=kept)
    stored = write_store(reference, tmp_path / "stored")
    for uri in (hdf5, f"npz:{tmp_path / 'log.npz'}", tmp_path / "log.npz", f"store:{stored}", stored):
        assert load(uri, cache=kept).fingerprint == reference.fingerprint
    assert reference.source["uri"] == "d4rl:log.h5"
    assert isinstance(reference.observations, np.memmap)


def test_options_reach_the_reader_and_the_cache_tells_them_apart(flat, write_hdf5, kept):
    path = write_hdf5({field: column[:90] for field, column in flat.items()})
    assert len(load(path, cache=kept)) == 4
    assert len(load(path, cache=kept, tail="drop")) == 3
    assert load(path, cache=kept, env_id="Hopper-v5").spec.env_id == "Hopper-v5"
    assert len(os.listdir(kept)) == 3


@pytest.mark.parametrize(
    "uri, message",
    [
        ("d4lr:x.h5", r"^load: format: expected one of \['d4rl', .*\], got 'd4lr' \(did you mean 'd4rl'\?\)$"),
        ("nowhere", r"^nowhere: expected an existing path or <format>:<path> with one of \['d4rl', .*, got neither$"),
        ("d4rl:nowhere.h5", r"^nowhere.h5: expected a file, got none$"),
        ("d4rl:/", r"^/: expected a file, got a folder$"),
        ("store:nowhere", r"^nowhere: expected a store \(a folder with manifest.json\), got none$"),
        ("/", r"^/: expected a store \(a folder with manifest.json\), got another folder$"),
        (__file__, r"test_load.py: expected an HDF5 file, an npz archive or a store, got something else$"),
    ],
)
def test_what_cannot_be_found_is_named(uri, message):
    with pytest.raises(DataError, match=message):
        load(uri)


def test_an_unknown_option_is_named_with_the_nearest(flat, write_hdf5):
    path = write_hdf5(flat)
    with pytest.raises(DataError, match=r"^d4rl: option: .*, got 'tial' \(did you mean 'tail'\?\)$"):
        load(path, tial="drop")
    with pytest.raises(DataError, match=r"^nonfinite: expected error or drop-episode, got 'ignore'$"):
        load(path, nonfinite="ignore")  # pyright: ignore[reportArgumentType]


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(FORMATS, "minari", FORMATS["minari"]._replace(requires="not_installed"))
    with pytest.raises(DataError, match=r"^minari:a/b-v0: .*: pip install 'scanrl\[not_installed\]'$"):
        load("minari:a/b-v0")


def test_a_file_is_converted_once(flat, write_hdf5, kept, no_child):
    path = write_hdf5(flat)
    first = load(path, cache=kept)
    no_child()
    assert load(path, cache=kept).fingerprint == first.fingerprint
    flat["rewards"][3] += 1
    with pytest.raises(AssertionError, match=r"a child process was started"):
        load(write_hdf5(flat), cache=kept)


def test_the_cache_is_in_the_users_cache_folder(flat, write_hdf5, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    load(write_hdf5(flat))
    [entry] = os.listdir(tmp_path / "xdg" / "scanrl")
    assert "manifest.json" in os.listdir(tmp_path / "xdg" / "scanrl" / entry)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.cache_folder() == tmp_path / ".cache" / "scanrl"


@pytest.mark.parametrize("damage", [lambda f: f.write_bytes(f.read_bytes()[:-1] + b"x"), Path.unlink])
def test_a_damaged_cache_entry_is_made_again(flat, write_hdf5, kept, damage, caplog):
    path = write_hdf5(flat)
    fingerprint = load(path, cache=kept).fingerprint
    [entry] = kept.iterdir()
    damage(entry / "rewards.npy")
    assert load(path, cache=kept).fingerprint == fingerprint
    assert "cache entry made again" in caplog.text
    assert load(f"store:{entry}").fingerprint == fingerprint


def test_without_a_writable_cache_the_columns_are_in_memory(flat, write_hdf5, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    (tmp_path / "taken").write_text("a file, so no folder can be made in it")
    dataset = load(write_hdf5(flat), cache=tmp_path / "taken" / "cache")
    assert np.array_equal(dataset.observations, flat["observations"])
    assert not isinstance(dataset.observations, np.memmap)
    assert os.listdir(tmp_path / "temporary") == []


def test_old_work_folders_of_killed_runs_are_swept(flat, write_hdf5, kept):
    for name, age in (("old", 2 * 86400), ("fresh", 60)):
        folder = kept / f".converting-{name}"
        folder.mkdir(parents=True)
        then = folder.stat().st_mtime - age
        os.utime(folder, (then, then))
    load(write_hdf5(flat), cache=kept)
    assert sorted(name for name in os.listdir(kept) if name.startswith(".")) == [".converting-fresh"]


def test_a_store_is_never_repaired_silently(flat, write_hdf5, tmp_path, kept):
    stored = write_store(load(write_hdf5(flat), cache=kept), tmp_path / "stored")
    (stored / "actions.npy").write_bytes(b"")
    with pytest.raises(CorruptFile, match=r"actions.npy: expected \d+ bytes, got 0$"):
        load(stored)


def test_numbers_that_are_not_finite_are_refused_or_their_episodes_dropped(flat, write_hdf5, kept, caplog):
    flat["rewards"][60] = np.nan
    flat["observations"][0, 1] = np.inf
    path = write_hdf5(flat)
    message = r"^log.h5: episode 0: step 0: observations: expected finite numbers, got inf$"
    with pytest.raises(DataError, match=message):
        load(path, cache=kept)
    with caplog.at_level(logging.WARNING, "scanrl.data"):
        assert load(path, cache=kept, nonfinite="drop-episode").lengths.tolist() == [1, 19]
    assert "log.h5: dropped 2 of 4 episodes with a number that is not finite" in caplog.text
    flat["rewards"][:] = np.nan
    with pytest.raises(DataError, match=r"^log.h5: expected at least one episode, got none$"):
        load(write_hdf5(flat), cache=kept, nonfinite="drop-episode")


def test_numbers_beyond_float32_are_named(flat, write_hdf5, kept):
    rewards = flat["rewards"].astype(np.float64)
    rewards[4] = 1e300
    with pytest.raises(DataError, match=r"^log.h5: episode 0: step 4: rewards: expected finite numbers, got inf$"):
        load(write_hdf5({**flat, "rewards": rewards}), cache=kept)


@pytest.mark.parametrize(
    "body, message",
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", r"unreadable \(reader crashed, signal 11\)"),
        ("import os; os._exit(3)", r"unreadable \(reader failed, exit status 3\)"),
        (
            "import time; time.sleep(60)",
            r"unreadable \(reader took longer than 1 s, see timeout: scanrl data convert --timeout\)",
        ),
        (
            "bytearray(1 << 30)",
            r"unreadable \(reader needs more than 0.5 GiB, see memory_gib: scanrl data convert --memory-gib\)",
        ),
        ("raise KeyError('a\\nb')", r"unreadable \(KeyError: 'a\\nb'\)"),
        ("raise OSError('a\\nb')", r"unreadable \(OSError: a b\)"),
        ("return read(path, name=name, limit=limit)", r"unreadable \(RecursionError: .*\)"),
        ("print('x' * 10**7, flush=True); raise OSError('loud')", r"unreadable \(OSError: loud\)"),
    ],
)
def test_a_reader_that_fails_in_any_way_is_one_line(stub, kept, body, message):
    uri, patience = stub(body), 1 if "sleep" in body else 60  # seconds; a busy machine takes one to start Python
    with pytest.raises(DataError, match=rf"^log.h5: {message}$"):
        load(uri, cache=kept, memory_gib=0.5, timeout=patience)
    assert os.listdir(kept) == []


def test_the_child_imports_no_torch_and_leaves_no_core(stub, kept):
    body = "import resource as r, sys; raise OSError(f\"{'torch' in sys.modules} {r.getrlimit(r.RLIMIT_CORE)[0]}\")"
    with pytest.raises(DataError, match=r"OSError: False 0\)$"):
        load(stub(body), cache=kept)


def test_the_working_folder_cannot_replace_modules_of_the_child(flat, write_hdf5, tmp_path, kept, monkeypatch):
    (tmp_path / "h5py.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)
    assert len(load(write_hdf5(flat), cache=kept)) == 4


def test_the_parent_imports_neither_h5py_nor_a_reader(flat, write_hdf5, kept):
    program = (
        "import sys; from scanrl.data import load; load(sys.argv[1], cache=sys.argv[2]);"
        "print([m for m in ('h5py', 'minari', 'scanrl.data.d4rl') if m in sys.modules])"
    )
    command = [sys.executable, "-c", program, str(write_hdf5(flat)), str(kept)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


LOOP = """
import json, sys
from pathlib import Path
from scanrl.data.isolate import attempt
source, folder = Path(sys.argv[1]), Path(sys.argv[2])
good = source.read_bytes()
for number in range(200):
    source.write_bytes(good[: len(good) * number // 200])
    (folder / str(number)).mkdir()
    request = {"module": "scanrl.data.d4rl", "source": str(source), "folder": str(folder / str(number)), "origin": {}}
    print(attempt({**request, "name": "log.h5", "options": {}, "memory": 1 << 30}))
"""


def test_hdf5_files_cut_short_anywhere_are_refused(flat, write_hdf5, tmp_path):
    (tmp_path / "out").mkdir()
    command = [sys.executable, "-c", LOOP, str(write_hdf5(flat)), str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    errors = done.stdout.splitlines()
    assert len(errors) == 200
    assert all(error.startswith("log.h5: unreadable (OSError: ") for error in errors)
    assert all(not os.listdir(folder) for folder in (tmp_path / "out").iterdir())


def mutants(good, count, seed):
    """Damaged copies: bits and words in the first 6 kB, where HDF5 keeps what it follows, and zeroed stretches."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        bad = bytearray(good)
        place = int(rng.integers(min(len(bad), 6000) - 8))
        if number % 3 == 0:
            bad[place] ^= 1 << int(rng.integers(8))
        elif number % 3 == 1:
            bad[place : place + 8] = rng.bytes(8)
        else:
            bad[place : place + 256] = bytes(len(bad[place : place + 256]))
        yield bytes(bad)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("count", [9, pytest.param(500, marks=pytest.mark.slow)])
def test_damaged_hdf5_files_give_a_sound_dataset_or_one_line(flat, write_hdf5, kept, count):
    path = write_hdf5(flat)
    for content in mutants(path.read_bytes(), count, seed=count):
        path.write_bytes(content)
        assert outcome(path, kept) in ("sound", "one line")


def outcome(path, kept):
    try:
        dataset = load(f"d4rl:{path}", cache=kept, timeout=10)
    except DataError as error:
        return "one line" if str(error).startswith("log.h5: ") and "\n" not in str(error) else str(error)
    return "sound" if not check(dataset) else check(dataset)[0]
