import numpy as np
import pytest

from scanrl import preflight, training
from scanrl.data import Dataset, load
from scanrl.run import open_run
from scanrl.types import DataError, Spec
from tests.conftest import make_dataset
from tests.runs import DT, TINY, fit

pytestmark = pytest.mark.usefixtures("no_flushing")


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
    monkeypatch.setattr(preflight, "environment_spec", lambda env, like: spec)
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
