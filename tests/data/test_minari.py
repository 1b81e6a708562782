import json
import shutil
import warnings

import gymnasium
import h5py
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, Text

from scanrl.data import load
from scanrl.data.minari import read
from scanrl.data.validate import check
from scanrl.types import DataError

minari = pytest.importorskip("minari")
from minari.data_collector import EpisodeBuffer  # noqa: E402

LENGTHS = (5, 1, 9)
VECTOR = Box(-np.inf, np.inf, (3,))
BOUNDED = Box(-2, 2, (2,))


def buffers(observe, act):
    rng = np.random.default_rng(0)
    return [
        EpisodeBuffer(
            observations=observe(rng, steps + 1),
            actions=act(rng, steps),
            rewards=list(rng.normal(size=steps)),
            terminations=[False] * (steps - 1) + [steps != 9],
            truncations=[False] * (steps - 1) + [steps == 9],
        )
        for steps in LENGTHS
    ]


def vectors(rng, steps):
    return list(rng.normal(size=(steps, 3)).astype(np.float32))


def create(observation_space, action_space, observe, act, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        minari.create_dataset_from_buffers(
            "toy/log-v0",
            buffers(observe, act),
            observation_space=observation_space,
            action_space=action_space,
            **options,
        )


def moves(rng, steps):
    return list(rng.uniform(-1, 1, (steps, 2)).astype(np.float32))


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    root = tmp_path_factory.mktemp("minari")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(root))
        create(VECTOR, BOUNDED, vectors, moves, env=gymnasium.spec("Pendulum-v1"))
    return root


@pytest.fixture
def folder(original, tmp_path, monkeypatch):
    """A copy of a sound dataset to damage."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    shutil.copytree(original, tmp_path / "minari")
    return tmp_path / "minari" / "toy" / "log-v0" / "data"


def read_here(folder, **options):
    return read(folder, name="toy/log-v0", limit=1 << 30, **options)


def change(folder, field, value, episode=2):
    with h5py.File(folder / "main_data.hdf5", "a") as file:
        group = file[f"episode_{episode}"]
        old = group[field][()]
        del group[field]
        group.create_dataset(field, data=value(old))


def test_a_local_dataset_is_read_without_its_last_observations(folder, tmp_path):
    dataset = load("minari:toy/log-v0", cache=tmp_path / "cache")
    assert dataset.lengths.tolist() == list(LENGTHS)
    assert dataset.truncations.nonzero()[0].tolist() == [14]
    assert dataset.spec.env_id == "Pendulum-v1"
    assert (dataset.spec.action_low, dataset.spec.action_high) == ((-2, -2), (2, 2))
    with h5py.File(folder / "main_data.hdf5") as file:
        assert np.array_equal(dataset[2].observations, file["episode_2/observations"][:9])
    assert (dataset.name, dataset.source["uri"]) == ("toy/log-v0", "minari:toy/log-v0")


def test_observations_without_the_last_one_are_accepted(folder):
    reference = read_here(folder)
    change(folder, "observations", lambda x: x[:-1])
    assert read_here(folder).fingerprint == reference.fingerprint


def test_an_episode_without_an_end_flag_is_marked_truncated(folder):
    change(folder, "terminations", np.zeros_like, episode=0)
    dataset = read_here(folder)
    assert dataset.truncations.nonzero()[0].tolist() == [4, 14]
    assert dataset.terminations.nonzero()[0].tolist() == [5]


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("rewards", lambda x: x[:-1], "rewards: expected 9 values, got 8"),
        ("terminations", lambda x: x[:-1], "terminations: expected 9 values, got 8"),
        ("truncations", lambda x: np.append(x, x), "truncations: expected 9 values, got 18"),
        ("actions", lambda x: np.append(x, x, 0), "observations: expected 18 or 19 values, got 10"),
        ("observations", lambda x: np.append(x, x[:1], 0), "observations: expected 9 or 10 values, got 11"),
        ("observations", lambda x: x[:, :2], "observations: expected shape (3,), got (2,)"),
        ("actions", lambda x: x[:, :1], "actions: expected shape (2,), got (1,)"),
        ("rewards", lambda x: x[:, None], "rewards: expected shape (), got (1,)"),
        ("rewards", lambda x: np.array([b"one"] * 9), "rewards: expected numbers, got |S3"),
    ],
)
def test_a_defect_is_named_by_episode_and_field(folder, field, value, message):
    change(folder, field, value)
    with pytest.raises(DataError) as error:
        read_here(folder)
    assert str(error.value) == f"toy/log-v0: episode 2: {message}"


@pytest.mark.parametrize(
    "field, step, value, problem",
    [
        ("rewards", 4, np.nan, "step 4: rewards: expected finite numbers, got nan"),
        ("observations", 0, np.inf, "step 0: observations: expected finite numbers, got inf"),
        ("terminations", 3, True, "step 3: terminations: expected true at the last step"),
    ],
)
def test_values_minari_accepts_are_found_by_the_checks(folder, field, step, value, problem):
    def put(column):
        column[step] = value
        return column

    change(folder, field, put)
    assert check(read_here(folder))[0].startswith(f"toy/log-v0: episode 2: {problem}")


@pytest.mark.parametrize("field, true", [("total_steps", 15), ("total_episodes", 3)])
def test_counts_that_lie_are_named(folder, field, true):
    file = folder / "metadata.json"
    declared = 2 if field == "total_episodes" else 16
    file.write_text(json.dumps(json.loads(file.read_text()) | {field: declared}))
    with pytest.raises(DataError, match=rf"^toy/log-v0: metadata.json: {field}: expected \d+ as in the data, got "):
        read_here(folder)
    file.write_text(json.dumps(json.loads(file.read_text()) | {field: true}))
    assert read_here(folder).steps == 15


@pytest.mark.parametrize("field", ["observation_space", "action_space"])
def test_a_dataset_without_spaces_is_refused_instead_of_building_its_environment(folder, field):
    file = folder / "metadata.json"
    metadata = json.loads(file.read_text())
    del metadata[field]
    metadata["env_spec"] = metadata["env_spec"].replace(
        "gymnasium.envs.classic_control.pendulum:PendulumEnv", "os:nice"
    )
    file.write_text(json.dumps(metadata))
    with pytest.raises(DataError, match=rf"^toy/log-v0: metadata.json: {field}: expected a space, got none$"):
        read_here(folder)


def test_links_and_outside_storage_are_refused_anywhere_in_the_file(folder):
    with h5py.File(folder / "main_data.hdf5", "a") as file:
        file["episode_1"].create_dataset("infos/x", (4,), "u1", external=[("/etc/passwd", 0, 4)])
    message = r"^toy/log-v0: episode_1/infos/x: expected data in the file itself, got external storage$"
    with pytest.raises(DataError, match=message):
        read_here(folder)
    with h5py.File(folder / "main_data.hdf5", "a") as file:
        del file["episode_1/infos/x"]
        file["episode_1/infos/x"] = h5py.SoftLink("/episode_1/infos")
    message = r"^toy/log-v0: episode_1/infos/x: expected data in the file itself, got a SoftLink$"
    with pytest.raises(DataError, match=message):
        read_here(folder)
    with h5py.File(folder / "main_data.hdf5", "a") as file:
        del file["episode_1/infos/x"]
        file["episode_1/infos/x"] = file["episode_1"]
    with pytest.raises(
        DataError, match=r"^toy/log-v0: episode_1/infos/x/.*: expected groups at most 8 deep, got more$"
    ):
        read_here(folder)


def test_terabytes_declared_are_refused_before_allocation(folder):
    with h5py.File(folder / "main_data.hdf5", "a") as file:
        del file["episode_0/rewards"]
        file.create_dataset("episode_0/rewards", (2**38,), "f8", chunks=(1024,))
    with pytest.raises(
        DataError, match=r"^toy/log-v0: episode_0/rewards: expected at most 1 GiB in all, got 2.05e\+03"
    ):
        read_here(folder)


def test_discrete_actions_keep_their_number_of_choices(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    create(VECTOR, Discrete(7), vectors, lambda rng, steps: list(rng.integers(0, 3, steps)))
    dataset = read_here(tmp_path / "toy" / "log-v0" / "data")
    assert (dataset.spec.action_kind, dataset.spec.action_size, dataset.spec.env_id) == ("discrete", 7, None)
    assert dataset.actions.dtype == np.int64


def test_dictionary_observations_are_joined_in_the_order_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))

    def observe(rng, steps):
        return {"place": rng.normal(size=(steps, 3)).astype("f4"), "goal": np.full((steps, 2), 5, np.float32)}

    create(Dict({"place": VECTOR, "goal": BOUNDED}), BOUNDED, observe, moves)
    folder = tmp_path / "toy" / "log-v0" / "data"
    dataset = read_here(folder, observation_keys=["goal", "place"])
    assert dataset.spec.observation_shape == (5,)
    assert (dataset.observations[:, :2] == 5).all()
    message = (
        r"^toy/log-v0: observation_keys: expected some of \[.*\], got None \(scanrl data convert --observation-keys\)$"
    )
    with pytest.raises(DataError, match=message):
        read_here(folder)


def test_spaces_that_make_no_vector_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    create(Text(5), BOUNDED, lambda rng, steps: ["hello"] * steps, moves)
    with pytest.raises(DataError, match=r"^toy/log-v0: observation space: expected Box, .*, got Text "):
        read_here(tmp_path / "toy" / "log-v0" / "data")


def test_a_dataset_that_is_not_there_is_not_downloaded(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    for name in ("mujoco/hopper/medium-v0", "../../etc"):
        with pytest.raises(DataError, match=rf"^minari:{name}: expected a local dataset in {tmp_path}, got none"):
            load(f"minari:{name}")


def test_actions_of_several_parts_become_one_row(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    space = Dict({"move": BOUNDED, "fire": Discrete(3)})

    def act(rng, steps):
        return {"move": moves(rng, steps), "fire": rng.integers(0, 3, steps)}

    create(VECTOR, space, vectors, act)
    dataset = read_here(tmp_path / "toy" / "log-v0" / "data")
    assert dataset.spec.action_kind == "mixed"
    assert [part.name for part in dataset.spec.action_parts] == ["fire", "move"]
    assert dataset.actions.shape[1] == 1 + BOUNDED.shape[0]
    assert set(np.unique(dataset.actions[:, 0])) <= {0.0, 1.0, 2.0}
