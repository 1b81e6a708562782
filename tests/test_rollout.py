"""Rollouts: the same episodes whatever the number of rows, exactly as many as asked for, and faults that say where."""

import subprocess
import sys
from collections.abc import Callable

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from scanrl.rollout import RandomActor, RolloutError, environment_spec, make_environment, rollout
from scanrl.types import DataError


class Counting(gym.Env):
    """Lasts as many steps as its seed says (1 to 9); the observation is (length, step)."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.seen = np.zeros(2, np.float32)  # one buffer, written again at each step, as some environments do

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seen[:] = self.np_random.integers(1, 10), 0
        return self.seen, {}

    def step(self, action):
        self.seen[1] += 1
        return self.seen, float(action[0]), bool(self.seen[1] >= self.seen[0]), False, {}


class Faulty(Counting):
    """Breaks in the step where the observation's second entry becomes 2, in its third episode."""

    episodes = 0

    def __init__(self, broken: Callable[[tuple], object]) -> None:
        super().__init__()
        self.broken = broken

    def reset(self, *, seed=None, options=None):
        Faulty.episodes += 1
        seen, extra = super().reset(seed=seed)
        self.seen[0] = 4
        return seen, extra

    def step(self, action):
        result = super().step(action)
        return self.broken(result) if Faulty.episodes == 3 and self.seen[1] == 2 else result


class Recorder:
    """Acts by a fixed rule and keeps what it was shown."""

    def __init__(self, act: Callable[[np.ndarray], np.ndarray]) -> None:
        self.rule = act
        self.shown: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def reset(self, count: int) -> None:
        self.count = count

    def act(self, observations, rewards, first):
        assert observations.shape[0] == self.count
        self.shown.append((observations, rewards, first))
        return self.rule(observations)


class Remembering:
    """Carries a state per row, as a recurrent policy does: pushes by the sum of the angles it has seen."""

    def reset(self, count: int) -> None:
        self.state = np.zeros(count)

    def act(self, observations, rewards, first):
        self.state = np.where(first, 0.0, self.state + rewards) + observations[:, 2]
        return (np.abs(np.floor(self.state * 50)) % 2).astype(np.int64)


def constant(value: float) -> Recorder:
    return Recorder(lambda observations: np.full((len(observations), 1), value, np.float32))


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize("rows", [2, 5, None])
def test_rows_side_by_side_play_the_episodes_that_one_row_plays(env_id, rows):
    make = (lambda: Remembering()) if env_id == "CartPole-v1" else (lambda: constant(0.5))
    one = rollout(make(), env_id, episodes=7, num_envs=1, seed=3)
    many = rollout(make(), env_id, episodes=7, num_envs=rows, seed=3)
    for a, b in zip(one, many, strict=True):
        np.testing.assert_array_equal(a.observations, b.observations)
        np.testing.assert_array_equal(a.rewards, b.rewards)


def test_a_random_actor_plays_the_same_episodes_in_any_number_of_rows():
    spec = environment_spec("CartPole-v1")
    runs = [
        [e.total_reward for e in rollout(RandomActor(spec, 1), "CartPole-v1", episodes=9, num_envs=n)] for n in (1, 4)
    ]
    assert runs[0] == runs[1]
    assert len(set(runs[0])) > 3


def test_another_seed_plays_other_episodes():
    first, second = (rollout(constant(0.0), "Pendulum-v1", episodes=1, seed=s)[0].total_reward for s in (0, 1))
    assert first != second


@pytest.mark.parametrize("rows", [1, 3, 50])
def test_every_episode_that_starts_is_counted_however_short_or_long(rows):
    played = rollout(constant(0.0), Counting, episodes=25, num_envs=rows)
    assert len(played) == 25
    lengths = [len(e) for e in played]
    assert lengths == [int(e.observations[0, 0]) for e in played]
    assert len(set(lengths)) > 4
    assert lengths == [len(e) for e in rollout(constant(0.0), Counting, episodes=25, num_envs=7)]


def test_a_fresh_row_is_flagged_and_gets_no_reward():
    actor = constant(1.0)
    rollout(actor, Counting, episodes=8, num_envs=3)
    for observations, rewards, first in actor.shown:
        np.testing.assert_array_equal(rewards, np.where(first, 0.0, 1.0))
        live = observations[:, 1] < observations[:, 0]  # the others idle
        np.testing.assert_array_equal(first[live], observations[live, 1] == 0)
        assert first[~live].all()


def test_trajectories_hold_what_was_seen_and_the_action_that_was_applied():
    episode = max(rollout(constant(7.0), Counting, episodes=5), key=len)
    steps = len(episode)
    np.testing.assert_array_equal(episode.observations[:, 1], np.arange(steps))
    np.testing.assert_array_equal(episode.actions, np.ones((steps, 1), np.float32))
    np.testing.assert_array_equal(episode.rewards, np.ones(steps))
    np.testing.assert_array_equal(episode.terminations, np.arange(steps) == steps - 1)
    assert not episode.truncations.any()
    assert (episode.observations.dtype, episode.actions.dtype, episode.rewards.dtype) == (np.float32,) * 3


def test_a_limit_of_steps_truncates():
    played = rollout(constant(0.0), "Pendulum-v1", episodes=2, max_steps=5)
    assert [len(e) for e in played] == [5, 5]
    assert all(e.truncations[-1] and not e.terminations.any() for e in played)


def test_discrete_actions_are_counted_from_zero_wherever_the_space_starts():
    class Shifted(Counting):
        def __init__(self):
            super().__init__()
            self.action_space = spaces.Discrete(2, start=5)

        def step(self, action):
            assert action == 6
            return super().step([0.0])

    actor = Recorder(lambda observations: np.ones(len(observations), np.int64))
    episode = rollout(actor, Shifted, episodes=1)[0]
    assert episode.actions.dtype == np.int64
    assert (episode.actions == 1).all()


def test_progress_counts_finished_episodes():
    seen: list[int] = []
    rollout(constant(0.0), Counting, episodes=4, num_envs=2, progress=seen.append)
    assert seen == sorted(seen)
    assert set(seen) == {0, 1, 2, 3, 4}


def boom(result: tuple) -> tuple:
    raise RuntimeError("the simulator\nfell over")


FAULTS = {
    "reward: expected a finite number, got nan": lambda r: (r[0], float("nan"), *r[2:]),
    "reward: expected a finite number, got shape (1,)": lambda r: (r[0], np.zeros(1), *r[2:]),
    "observation: expected finite values, got nan at [1]": lambda r: (np.array([4.0, np.nan]), *r[1:]),
    "observation: expected finite values, got inf at [0]": lambda r: (np.array([1e300, 1.0]), *r[1:]),
    "observation: expected shape (2,), got (3,)": lambda r: (np.zeros(3), *r[1:]),
    "expected 5 values from step, got 4 values": lambda r: r[:4],
    "expected 5 values from step, got NoneType": lambda r: None,
    "RuntimeError: the simulator": boom,
}


@pytest.mark.parametrize("message", FAULTS)
def test_a_faulty_environment_is_named_with_episode_and_step_and_the_rest_is_kept(message):
    Faulty.episodes = 0
    with pytest.raises(RolloutError) as caught:
        rollout(constant(0.5), lambda: Faulty(FAULTS[message]), episodes=5, num_envs=1)
    assert str(caught.value) == f"Faulty: episode 2: step 1: {message}"
    assert [len(e) for e in caught.value.finished] == [4, 4]
    assert isinstance(caught.value, DataError)


def test_a_failing_reset_is_named_at_step_zero():
    class Unwilling(Counting):
        def reset(self, *, seed=None, options=None):
            raise OSError("no display")

    with pytest.raises(RolloutError, match=r"^Unwilling: episode 0: step 0: OSError: no display$"):
        rollout(constant(0.0), Unwilling, episodes=1)


def test_an_actor_that_breaks_its_contract_is_told_so():
    with pytest.raises(RolloutError, match="episode 0: step 0: action: expected finite values"):
        rollout(constant(np.nan), Counting, episodes=1)
    with pytest.raises(DataError, match=r"actions: expected \(2, 1\) floating point, got \(2,\) float64"):
        rollout(Recorder(lambda o: np.zeros(len(o))), Counting, episodes=2)
    with pytest.raises(RolloutError, match="action: expected 0 to 1, got 2"):
        rollout(Recorder(lambda o: np.full(len(o), 2)), "CartPole-v1", episodes=2)


def test_environments_are_closed_when_one_fails():
    closed = []

    class Closing(Faulty):
        def close(self):
            closed.append(self)

    Faulty.episodes = 0
    with pytest.raises(RolloutError):
        rollout(constant(0.0), lambda: Closing(boom), episodes=3, num_envs=2)
    assert len(closed) == 2


def test_bad_counts_and_shared_environments_are_refused():
    shared = Counting()
    with pytest.raises(DataError, match="episodes: expected 1 or more, got 0"):
        rollout(constant(0.0), Counting, episodes=0)
    with pytest.raises(DataError, match="seed: expected 0 or more, got -1"):
        rollout(constant(0.0), Counting, episodes=1, seed=-1)
    with pytest.raises(DataError, match="got the same one twice"):
        rollout(constant(0.0), lambda: shared, episodes=2)


def test_an_unknown_environment_names_the_nearest():
    with pytest.raises(DataError, match=r"^Pendulm-v1: no such environment; did you mean Pendulum-v1\?$"):
        make_environment("Pendulm-v1")


def test_a_missing_simulator_names_the_extra_that_brings_it():
    code = (
        "import sys; sys.modules['mujoco'] = None\n"
        "from scanrl.rollout import make_environment\n"
        "try: make_environment('Hopper-v5')\n"
        "except ValueError as error: print(error)\n"
        "assert 'torch' not in sys.modules"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "Hopper-v5: a package it needs is missing: pip install 'scanrl[mujoco]'\n"


def test_spaces_are_read_into_a_spec():
    spec = environment_spec("Pendulum-v1")
    assert spec.observation_shape == (3,)
    assert (spec.action_kind, spec.action_low, spec.action_high) == ("continuous", (-2.0,), (2.0,))
    assert (environment_spec("CartPole-v1").action_kind, environment_spec("CartPole-v1").action_size) == ("discrete", 2)
    assert environment_spec("FrozenLake-v1").observation_shape == (16,)  # a choice becomes zeros and a one


def test_random_actions_fill_the_bounds():
    actor = RandomActor(environment_spec("Pendulum-v1"))
    episode = rollout(actor, "Pendulum-v1", episodes=1)[0]
    assert episode.actions.min() < -1.8
    assert episode.actions.max() > 1.8
