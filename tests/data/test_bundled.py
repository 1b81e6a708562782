"""The recorded data sets in `scanrl/bundled` are what `provenance.json` says they are."""

import hashlib
import json
from pathlib import Path

import h5py
import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parents[2] / "scanrl" / "bundled"
FILES = json.loads((FOLDER / "provenance.json").read_text())["files"]
NAMES = ["hopper-medium.hdf5", "hopper-replay.hdf5"]


@pytest.fixture(scope="module", params=NAMES)
def recording(request):
    with h5py.File(FOLDER / request.param) as file:
        return FILES[request.param], {name: file[name][:] for name in file}, dict(file.attrs)


@pytest.mark.parametrize("name", NAMES)
def test_the_checksum_is_the_files(name):
    assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == FILES[name]["sha256"]


def test_the_folder_holds_these_files_and_is_small():
    assert sorted(path.name for path in FOLDER.iterdir()) == [*NAMES, "provenance.json"]
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 8_000_000


def test_columns_have_the_schemas_shapes_and_types(recording):
    entry, columns, attributes = recording
    n = entry["steps"]
    assert {name: (column.shape, column.dtype.name) for name, column in columns.items()} == {
        "observations": ((n, 11), "float32"),
        "actions": ((n, 3), "float32"),
        "rewards": ((n,), "float32"),
        "terminals": ((n,), "bool"),
        "timeouts": ((n,), "bool"),
    }
    assert attributes == {"env_id": "Hopper-v5", "description": entry["description"]}


def test_every_episode_ends_with_exactly_one_flag(recording):
    entry, columns, _ = recording
    assert not np.any(columns["terminals"] & columns["timeouts"])
    ends = np.flatnonzero(columns["terminals"] | columns["timeouts"])
    lengths = np.diff(ends, prepend=-1)
    assert len(ends) == entry["episodes"]
    assert ends[-1] == entry["steps"] - 1
    assert columns["terminals"].sum() == entry["ended_by_a_fall"]
    assert lengths.max() <= 1000
    assert np.all(lengths[columns["timeouts"][ends]] == 1000)


def test_returns_are_the_recorded_ones(recording):
    entry, columns, _ = recording
    ends = np.flatnonzero(columns["terminals"] | columns["timeouts"])
    totals = np.concatenate([[0], np.cumsum(columns["rewards"], dtype=np.float64)[ends]])
    returns = np.diff(totals)
    found = {"mean": returns.mean(), "median": np.median(returns), "min": returns.min(), "max": returns.max()}
    assert found == pytest.approx({name: entry["return"][name] for name in found}, abs=0.01)


def test_values_are_finite_and_actions_within_their_bounds(recording):
    _, columns, _ = recording
    assert all(np.isfinite(columns[name]).all() for name in ("observations", "actions", "rewards"))
    assert np.abs(columns["actions"]).max() <= 1
