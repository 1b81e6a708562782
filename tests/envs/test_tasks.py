"""Every family of tasks: its published values, its optimal policy, its split, and its Gymnasium form."""

import itertools
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from scanrl.envs import ENVS
from scanrl.envs.darkroom import Darkroom, DarkroomDynamic, DarkroomHard
from scanrl.envs.keydoor import KeyToDoor
from scanrl.envs.reference_scores import reference_score
from scanrl.envs.task_env import TaskEnv, make_family
from scanrl.envs.tmaze import DOWN, LEFT, RIGHT, UP, TMaze
from scanrl.rollout import RandomActor, environment_spec, rollout
from scanrl.types import DataError

# Optimal and random return as published or measured by others, and half a unit of the last digit given.
VALUES = [
    ("Darkroom-v0", {}, 16.54, 0.255, 0.0005),
    ("DarkroomHard-v0", {}, 1, 0.129, 0.0005),
    ("KeyToDoor-v0", {}, 2, 0.265, 0.0005),
    ("DarkroomDPT-v0", {}, 91.99, 1.00, 0.005),
    ("DarkroomLarge-v0", {}, 180.8, 0.12, 0.005),
    ("DarkroomHardLarge-v0", {}, 1, 0.045, 0.0005),
    ("KeyToDoorLarge-v0", {}, 2, 0.10, 0.005),
    ("DarkroomLarge-v0", {"size": 180}, 111.2, 0.006, 0.0005),
    ("DarkroomHardLarge-v0", {"size": 180}, 1, 0.002, 0.0005),
    ("KeyToDoorLarge-v0", {"size": 180}, 2, 0.005, 0.0005),
]
SMALL = [
    Darkroom(4, 7),
    DarkroomHard(4, 7, "corner"),
    DarkroomHard(3, 6, ends=True),
    DarkroomDynamic(3, 6),
    KeyToDoor(3, 8),
    KeyToDoor(3, 9, "corner", ends=True),
    TMaze(5),
    TMaze(1, penalty=True),
]


def family(env_id, **options):
    return make_family(ENVS[env_id], options)


def some_tasks(tasks, most=5000):
    return np.arange(tasks) if tasks <= most else np.random.default_rng(0).integers(tasks, size=most)


@pytest.mark.parametrize("env_id, options, optimal, random, digit", VALUES)
def test_optimal_and_random_returns_are_the_published_ones(env_id, options, optimal, random, digit):
    tasks = family(env_id, **options)
    assert tasks.optimal_returns(some_tasks(tasks.task_count)).mean() == pytest.approx(optimal, rel=0.03)
    played = tasks.random_returns(min(400_000, 10_000_000 // tasks.horizon))
    error = played.std() / np.sqrt(len(played))
    assert abs(played.mean() - random) <= 0.03 * random + digit + 3 * error


@pytest.mark.parametrize("size, horizon, start", [(9, 20, "centre"), (10, 100, "corner")])
def test_the_random_return_of_a_dark_room_is_steps_over_cells(size, horizon, start):
    # Wherever the agent is, it stands on exactly one of the goals; so this holds for any policy that sees no reward.
    room = Darkroom(size, horizon, start)
    assert room.random_values(np.arange(room.task_count)).mean() == pytest.approx(horizon / size**2, abs=1e-6)


@pytest.mark.parametrize("tasks", SMALL, ids=str)
def test_no_policy_beats_the_optimal_one(tasks):
    every = np.arange(tasks.task_count)
    shape = (len(every), tasks.state_count, tasks.action_count)
    rows, states, actions = (axis.ravel() for axis in np.indices(shape))
    values = np.zeros(shape[:2])
    for time in reversed(range(tasks.horizon)):
        moved = tasks.move(rows, states, actions, time)
        following = values[rows, moved.states] * (1 if moved.ended is None else ~moved.ended)
        values = (moved.rewards + following).reshape(shape).max(axis=2)
    best = values[every, tasks.initial(every)]
    np.testing.assert_allclose(tasks.optimal_returns(), best, atol=1e-6)


@pytest.mark.parametrize("tasks", SMALL, ids=str)
def test_sampled_random_returns_agree_with_the_exact_ones(tasks):
    sampled = tasks.random_returns(20_000, seed=1)
    exact = tasks.random_values(np.arange(tasks.task_count)).mean()
    assert abs(sampled.mean() - exact) <= 4 * sampled.std() / np.sqrt(len(sampled)) + 1e-9


@pytest.mark.parametrize("env_id", ENVS)
def test_scores_put_random_at_0_and_the_optimal_policy_at_100(env_id):
    tasks, scale = family(env_id), reference_score(env_id)
    assert scale is not None
    assert tasks.optimal_returns(some_tasks(tasks.task_count)).mean() == pytest.approx(scale.high, rel=1e-3)
    if tasks.task_count * tasks.state_count < 100_000:
        random = tasks.random_values(np.arange(tasks.task_count)).mean()
        assert random == pytest.approx(scale.low, rel=1e-3, abs=1e-12)
    else:
        played = tasks.random_returns(10_000_000 // tasks.horizon, seed=5)
        assert abs(played.mean() - scale.low) <= 4 * played.std() / np.sqrt(len(played))


@pytest.mark.parametrize(
    "env_id, training, held_out",
    [("Darkroom-v0", 65, 16), ("DarkroomDynamic-v0", 100, 20), ("DarkroomDPT-v0", 80, 20), ("KeyToDoor-v0", 1000, 50)],
)
def test_held_out_tasks_are_no_training_tasks(env_id, training, held_out):
    tasks = family(env_id)
    first, second = tasks.split()
    assert (len(first), len(second)) == (training, held_out)
    assert len(np.union1d(first, second)) == training + held_out
    assert np.union1d(first, second).max() < tasks.task_count
    assert all(np.array_equal(x, y) for x, y in zip(tasks.split(), (first, second), strict=True))
    assert not np.array_equal(tasks.split(seed=1)[1], second)


def test_the_hard_room_pays_once_and_the_door_pays_once():
    hard = DarkroomHard(3, 9)
    goal = hard.grid.start_cell
    for tasks, task, paid in ((hard, goal, 1), (KeyToDoor(3, 9), goal * 9 + goal, 2)):
        assert tasks.returns(np.array([task]), lambda tasks, states, time: np.zeros(1, np.int64)) == paid


def test_searching_cell_by_cell_finds_the_goal_as_fast_as_others_measured():
    room, rng = Darkroom(), np.random.default_rng(0)
    tasks = np.tile(np.arange(81), 40)
    rows = np.arange(len(tasks))
    seen, found = np.zeros((len(tasks), 81), bool), np.zeros(len(tasks), bool)
    target = rng.integers(81, size=len(tasks))
    curve = []
    for _ in range(6):
        states, earned = room.initial(tasks), 0
        for time in range(room.horizon):
            goal = np.where(found, tasks, target)
            states, rewards, _ = room.move(tasks, states, room.grid.towards(states, goal), time)
            seen[rows, states] = True
            found |= rewards > 0
            earned += rewards
            unseen = (rng.random(seen.shape) * ~seen).argmax(1)
            target = np.where(seen[rows, target], unseen, target)
        curve.append(earned.mean())
    np.testing.assert_allclose(curve, [2.6, 6.1, 9.0, 11.4, 13.2, 14.7], rtol=0.1)


def test_a_door_pays_nothing_without_the_key():
    door = KeyToDoor(3, 9)
    start, other = door.grid.start_cell, 0
    stay = door.returns(np.array([other * 9 + start]), lambda tasks, states, time: np.zeros(1, np.int64))
    assert stay == 0


def test_the_actions_of_the_dynamic_room_are_permuted_by_the_task():
    room = DarkroomDynamic(5, 4, "centre")
    identity, other = 0, 77
    start = np.array([room.grid.start_cell])
    for action in range(5):
        effect = room.effects[other, action]
        moved = room.move(np.array([other]), start, np.array([action]), 0).states
        assert moved == room.move(np.array([identity]), start, np.array([effect]), 0).states
    assert len(np.unique(room.effects, axis=0)) == 120


@pytest.mark.parametrize("length", [1, 2, 7])
def test_the_t_maze_shows_the_side_once_and_pays_at_the_last_step(length):
    for task, (side, turn, wrong) in enumerate([(1, UP, DOWN), (-1, DOWN, UP)]):
        for last, paid in ((turn, 1.0), (wrong, 0.0), (RIGHT, 0.0)):
            env = gym.make("scanrl.envs:TMaze-v0", task=task, length=length)
            seen, _ = env.reset(seed=0)
            assert seen.tolist() == [0, side]
            for t in range(length):
                seen, reward, terminated, truncated, _ = env.step(RIGHT)
                assert (reward, terminated, truncated) == (0, False, False)
                assert seen.tolist() == [float(t == length - 1), 0]
            _, reward, terminated, truncated, _ = env.step(last)
            assert (reward, terminated, truncated) == (paid, False, True)


def test_the_t_maze_charges_for_being_late():
    late = TMaze(4, penalty=True)
    actions = [LEFT, RIGHT, UP, RIGHT, UP]  # behind after every step but the last, which is free
    total = late.returns(np.array([0]), lambda tasks, states, time: np.array([actions[time]]))
    assert total == pytest.approx(-1.0)
    assert late.optimal_returns().tolist() == [1.0, 1.0]


@pytest.mark.parametrize("env_id", ENVS)
def test_gymnasium_finds_nothing_to_complain_about(env_id):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make(env_id, render_mode="rgb_array").unwrapped)


@pytest.mark.parametrize("env_id", ENVS)
def test_the_gymnasium_form_plays_the_same_episodes(env_id):
    tasks, env = family(env_id), gym.make(env_id)
    rng = np.random.default_rng(3)
    task = int(rng.integers(tasks.task_count))
    seen, told = env.reset(options={"task": task})
    assert told == {"task": task}
    owner = np.array([task])
    states = tasks.initial(owner)
    for time in range(tasks.horizon):
        np.testing.assert_array_equal(seen, tasks.observe(owner, states)[0])
        action = rng.integers(tasks.action_count)
        states, rewards, _ = tasks.move(owner, states, np.array([action]), time)
        seen, reward, terminated, truncated, told = env.step(action)
        assert (reward, terminated, told["task"]) == (rewards[0], False, task)
        assert truncated == (time == tasks.horizon - 1)


def test_an_episode_that_ends_terminates():
    env = gym.make("DarkroomHard-v0", ends=True, task=DarkroomHard().grid.start_cell)
    env.reset()
    assert env.step(0)[1:4] == (1.0, True, False)


def test_a_task_stays_or_is_drawn_from_the_side_that_is_asked_for():
    training, held_out = family("Darkroom-v0").split()
    for asked, allowed in (("all", np.arange(81)), ("training", training), ("held-out", held_out)):
        env = gym.make("Darkroom-v0", tasks=asked)
        drawn = {env.reset(seed=seed)[1]["task"] for seed in range(40)}
        assert len(drawn) > 5
        assert drawn <= set(allowed.tolist())
    env = gym.make("Darkroom-v0", task=7)
    assert {env.reset(seed=seed)[1]["task"] for seed in range(3)} == {7}
    assert env.reset(options={"task": 8})[1]["task"] == 8


def test_a_policy_is_rolled_out_and_scored_like_anywhere():
    spec = environment_spec("Darkroom-v0")
    assert (spec.observation_shape, spec.action_kind, spec.action_size) == ((2,), "discrete", 5)
    played = rollout(RandomActor(spec, 0), "Darkroom-v0", episodes=3, seed=0)
    assert [len(episode) for episode in played] == [20, 20, 20]
    assert all(episode.truncations[-1] for episode in played)


@pytest.mark.parametrize("env_id", ENVS)
def test_pictures_show_where_the_agent_is(env_id):
    env = gym.make(env_id, render_mode="rgb_array", task=1)
    env.reset(seed=0)
    pictures = [env.render()]
    for action in (1, 1):  # one of them moves, in every environment
        env.step(action)
        pictures.append(env.render())
    assert all(x.ndim == 3 and x.shape[2] == 3 and x.dtype == np.uint8 and x.shape[1] <= 400 for x in pictures)
    assert any((x != y).any() for x, y in itertools.pairwise(pictures))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"size": 1}, "size: expected an integer of at least 2, got 1"),
        ({"horizon": 0}, "horizon: expected an integer of at least 1, got 0"),
        ({"start": "middle"}, "start: expected centre or corner, got 'middle'"),
        ({"sise": 3}, "Darkroom: option: expected one of task, tasks, size, horizon, start, got 'sise'"),
        ({"task": 81}, "task: expected an integer from 0 to 80, got 81"),
        ({"tasks": "some"}, "tasks: expected one of all, training, held-out, got 'some'"),
        ({"render_mode": "ansi"}, "render_mode: expected rgb_array or none, got 'ansi'"),
    ],
)
def test_options_that_do_not_exist_are_refused(options, message):
    with pytest.raises(DataError) as raised:
        TaskEnv(ENVS["Darkroom-v0"], **options)
    assert str(raised.value).startswith(message)


def test_a_task_or_an_action_that_does_not_exist_is_refused():
    env = gym.make("Darkroom-v0").unwrapped
    with pytest.raises(RuntimeError, match=r"^step: expected reset"):
        env.step(0)
    with pytest.raises(DataError, match=r"^task: expected an integer from 0 to 80, got 'corner'"):
        env.reset(options={"task": "corner"})
    env.reset()
    with pytest.raises(DataError, match=r"^action: expected an integer from 0 to 4, got 5"):
        env.step(5)
