import h5py
import numpy as np
import pytest

from scanrl.data import d4rl
from scanrl.types import DataError

LIMIT = 1 << 30


def read(path, limit=LIMIT, **options):
    return d4rl.read(path, name=path.name, limit=limit, **options)


def test_a_file_in_the_layout_of_d4rl_is_read(flat, write_hdf5):
    dataset = read(write_hdf5({**flat, "infos/qpos": np.zeros((100, 6))}, env_id="Hopper-v5"))
    assert dataset.lengths.tolist() == [50, 30, 1, 19]
    assert dataset.truncations.nonzero()[0].tolist() == [80]
    assert (dataset.name, dataset.spec.env_id) == ("log.h5", "Hopper-v5")
    assert np.array_equal(dataset.observations, flat["observations"])


def test_the_environment_can_be_named_by_the_caller(flat, write_hdf5):
    assert read(write_hdf5(flat)).spec.env_id is None
    assert read(write_hdf5(flat), env_id="Walker2d-v5").spec.env_id == "Walker2d-v5"


@pytest.mark.parametrize("tail, lengths", [("keep", [50, 30, 1, 9]), ("drop", [50, 30, 1])])
def test_an_unfinished_last_episode(flat, write_hdf5, tail, lengths):
    dataset = read(write_hdf5({field: column[:90] for field, column in flat.items()}), tail=tail)
    assert dataset.lengths.tolist() == lengths
    with pytest.raises(DataError, match=r"^log.h5: tail: expected keep or drop, got 'cut'$"):
        read(write_hdf5(flat), tail="cut")


def test_timeouts_may_be_absent_if_something_terminates(flat, write_hdf5):
    del flat["timeouts"]
    assert read(write_hdf5(flat)).lengths.tolist() == [50, 30, 20]
    flat["terminals"][:] = False
    with pytest.raises(DataError, match=r"^log.h5: truncations: .* \(missing boundaries"):
        read(write_hdf5(flat))


@pytest.mark.parametrize("block", [1, 64, 1 << 20])
def test_number_type_and_block_size_do_not_matter(flat, write_hdf5, monkeypatch, block):
    reference = read(write_hdf5(flat))
    monkeypatch.setattr(d4rl, "_BLOCK_BYTES", block)
    others = {
        "observations": flat["observations"].astype(">f8"),
        "actions": flat["actions"].astype("<f8"),
        "rewards": flat["rewards"][:, None].astype(np.float64),
        "terminals": flat["terminals"].astype(np.uint8),
        "timeouts": flat["timeouts"].astype(np.float32),
    }
    assert read(write_hdf5(others)).fingerprint == reference.fingerprint


def test_a_missing_member_is_named_with_the_nearest_one(flat, write_hdf5):
    flat["observation"] = flat.pop("observations")
    message = r"^log.h5: observations: expected an array of this name, got 'observation'$"
    with pytest.raises(DataError, match=message):
        read(write_hdf5(flat))
    with pytest.raises(DataError, match=r"^log.h5: observations: expected an array of this name, got only \['x'\]$"):
        read(write_hdf5({"x": np.zeros(3)}))


@pytest.mark.parametrize("field", ["observations", "actions", "terminals", "timeouts", "next_observations"])
@pytest.mark.parametrize("length", [99, 101])
def test_a_member_of_another_length_is_named_with_both(flat, write_hdf5, field, length):
    flat["next_observations"] = flat["observations"]
    flat[field] = np.resize(flat[field], (length, *flat[field].shape[1:]))
    with pytest.raises(DataError, match=rf"^log.h5: {field}: expected 100 values, got {length}$"):
        read(write_hdf5(flat))


@pytest.mark.parametrize("wrong", [np.array([b"text"] * 100), np.float32(3), np.zeros(100, "complex64")])
def test_a_member_that_is_no_array_of_numbers_is_named(flat, write_hdf5, wrong):
    with pytest.raises(DataError, match=r"^log.h5: rewards: expected an array of numbers, got "):
        read(write_hdf5({**flat, "rewards": wrong}))


def test_a_group_in_place_of_an_array_is_named(flat, write_hdf5):
    with pytest.raises(DataError, match=r"^log.h5: rewards: expected an array, got a group$"):
        read(write_hdf5({**{k: v for k, v in flat.items() if k != "rewards"}, "rewards/all": flat["rewards"]}))


def replace(path, name, make):
    with h5py.File(path, "a") as file:
        del file[name]
        make(file)


def outside(file):
    file.create_dataset("rewards", (100,), "f4", external=[("/etc/passwd", 0, 400)])


def virtual(file):
    layout = h5py.VirtualLayout((100,), "f4")
    layout[:] = h5py.VirtualSource("secret.h5", "rewards", (100,))
    file.create_virtual_dataset("rewards", layout)


def external_link(file):
    file["rewards"] = h5py.ExternalLink("secret.h5", "rewards")


def soft_link(file):
    file["rewards"] = h5py.SoftLink("/actions")


def soft_loop(file):
    file["rewards"] = h5py.SoftLink("/rewards")


@pytest.mark.parametrize(
    "make, found",
    [
        (outside, "external storage"),
        (virtual, "a virtual dataset"),
        (external_link, "a ExternalLink"),
        (soft_link, "a SoftLink"),
        (soft_loop, "a SoftLink"),
    ],
)
def test_data_that_is_not_in_the_file_itself_is_refused(flat, write_hdf5, make, found):
    path = write_hdf5(flat)
    write_hdf5({"rewards": np.full(100, 7.0)}, "secret.h5")
    replace(path, "rewards", make)
    with pytest.raises(DataError, match=rf"^log.h5: rewards: expected data in the file itself, got {found}$"):
        read(path)


def test_terabytes_declared_by_a_small_file_are_refused_before_allocation(flat, write_hdf5):
    path = write_hdf5(flat)
    replace(path, "observations", lambda f: f.create_dataset("observations", (2**37, 4), "f4", chunks=(1024, 4)))
    assert path.stat().st_size < 100_000
    message = (
        r"^log.h5: observations: expected at most 1 GiB in all, got 2.05e\+03 GiB declared by shape \(137438953472"
    )
    with pytest.raises(DataError, match=message):
        read(path)


def test_the_limit_counts_all_members_together(flat, write_hdf5):
    read(write_hdf5(flat), limit=100 * (4 + 2 + 1 + 1 + 1) * 4)
    with pytest.raises(DataError, match=r"^log.h5: timeouts: expected at most "):
        read(write_hdf5(flat), limit=100 * (4 + 2 + 1 + 1 + 1) * 4 - 1)
