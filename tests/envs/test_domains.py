"""The domains of the papers: they are made, play and have a scale."""

import sys

import numpy as np
import pytest

from scanrl.envs import MAZES
from scanrl.envs.make import environment_spec, make_environment
from scanrl.evaluation import evaluate, normalize
from scanrl.rollout import RandomActor
from scanrl.types import DataError

SIZES = {"Hopper": (11, 3), "Walker2d": (17, 6), "HalfCheetah": (17, 6)}


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("name", SIZES)
def test_a_mujoco_domain_is_made_and_scored(name, version, tmp_path, monkeypatch):
    pytest.importorskip("mujoco")
    monkeypatch.chdir(tmp_path)  # MuJoCo writes its complaints about a model into the current folder
    spec = environment_spec(f"{name}-v{version}")
    assert (spec.observation_shape, spec.action_size, spec.action_low) == (
        (SIZES[name][0],),
        SIZES[name][1],
        (-1.0,) * SIZES[name][1],
    )
    scores = evaluate(RandomActor(spec), f"{name}-v{version}", episodes=1).scores[0]
    assert scores.env_version == version
    assert abs(scores.normalized.mean()) < 10  # a random policy defines 0
    assert scores.successes is None


@pytest.mark.parametrize("env_id", MAZES)
def test_a_maze_is_observed_as_position_then_angles_and_velocities(env_id):
    pytest.importorskip("gymnasium_robotics")
    env = make_environment(env_id)
    ant = env.unwrapped._inner.ant_env.data
    found, _ = env.reset(seed=5)
    for _ in range(3):
        np.testing.assert_allclose(found, np.concatenate([ant.qpos, ant.qvel]), rtol=1e-6, atol=1e-6)
        found, reward, terminated, _, about = env.step(env.action_space.sample() * 0)
        assert (reward, terminated, about["success"]) == (0.0, False, False)
    env.close()
    spec = environment_spec(env_id)
    assert (spec.observation_shape, spec.action_size) == ((29,), 8)


def test_only_the_diverse_maze_draws_start_and_goal():
    pytest.importorskip("gymnasium_robotics")
    for env_id, drawn in (("antmaze-umaze-v4", False), ("antmaze-umaze-diverse-v4", True)):
        env = make_environment(env_id)
        starts, goals = [], []
        for seed in range(8):
            starts.append(env.reset(seed=seed)[0][:2])
            goals.append(env.unwrapped._inner.goal)
        env.close()
        for places in (starts, goals):
            spread = np.ptp(places, axis=0).max()
            assert spread > 4 if drawn else 0 < spread <= 2  # a cell is 4 wide; the noise reaches 1 either way


def test_the_origin_may_be_where_the_ant_starts_as_in_d4rl():
    pytest.importorskip("gymnasium_robotics")
    ids = ("antmaze-umaze-v4", "antmaze-umaze-v4@origin=start")
    middle, start = (make_environment(env_id) for env_id in ids)
    for seed in range(4):
        one, other = middle.reset(seed=seed)[0], start.reset(seed=seed)[0]
        np.testing.assert_allclose(other[:2], one[:2] + 4, rtol=1e-6)
        np.testing.assert_array_equal(other[2:], one[2:])
        assert np.abs(other[:2]).max() <= 1.3  # the noise of the start
        goal = start.unwrapped._inner.goal + 4
        assert np.abs(goal - [0, 8]).max() <= 1.3  # where D4RL has it
    moved = start.step(np.zeros(8, np.float32))[0] - middle.step(np.zeros(8, np.float32))[0]
    np.testing.assert_allclose(moved, [4, 4, *[0] * 27], atol=1e-5)
    middle.close()
    start.close()
    with pytest.raises(DataError, match=r"^antmaze-umaze-v4: origin: expected maze or start, got 'goal'$"):
        make_environment("antmaze-umaze-v4@origin=goal")


def test_reaching_the_goal_ends_the_episode_and_counts_as_success():
    pytest.importorskip("gymnasium_robotics")
    env = make_environment("antmaze-umaze-v4")
    inner = env.unwrapped._inner
    env.reset(seed=0)
    state = inner.ant_env.data
    qpos = state.qpos.copy()
    qpos[:2] = inner.goal
    inner.ant_env.set_state(qpos, state.qvel.copy())
    _, reward, terminated, _, about = env.step(np.zeros(8, np.float32))
    env.close()
    assert (reward, terminated, about["success"]) == (1.0, True, True)
    assert normalize("antmaze-umaze-v4", [1.0, 0.0]).tolist() == [100.0, 0.0]


def test_an_episode_in_a_maze_is_cut_and_its_success_counted():
    pytest.importorskip("gymnasium_robotics")
    spec = environment_spec("antmaze-umaze-v4")
    scores = evaluate(RandomActor(spec), "antmaze-umaze-v4", episodes=1).scores[0]
    assert scores.lengths.tolist() == [700]
    assert scores.summary()["eval/success_rate"] == scores.returns[0] == 0.0
    assert scores.normalized.tolist() == [0.0]


def test_a_missing_package_is_one_line_that_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium_robotics", None)
    for name in [name for name in sys.modules if name.startswith("gymnasium_robotics.")]:
        monkeypatch.delitem(sys.modules, name)
    message = r"^antmaze-umaze-v4: expected the package gymnasium-robotics: pip install 'scanrl\[robotics\]'$"
    with pytest.raises(DataError, match=message):
        make_environment("antmaze-umaze-v4")
