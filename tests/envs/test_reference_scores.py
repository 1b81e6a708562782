"""The two ends of each scale."""

import gymnasium as gym
import numpy as np
import pytest

from scanrl.envs.reference_scores import REFERENCES, reference_score
from scanrl.rollout import RandomActor, environment_spec, rollout


def test_versions_decide_whether_a_scale_applies():
    for version in (2, 3, 4, 5):
        reference = reference_score(f"Walker2d-v{version}")
        assert reference is not None
        assert (reference.low, reference.high) == (1.629008, 4592.3)
        assert "mujoco-py" in reference.caution
    for unknown in ("Walker2d-v9", "CartPole-v0", "Walker2d", "walker2d-v5", ""):
        assert reference_score(unknown) is None


@pytest.mark.parametrize(
    "env_id, ends",
    [
        ("Hopper-v4", (-20.272305, 3234.3)),
        ("HalfCheetah-v5", (-280.178953, 12135.0)),
        ("Ant-v4", (-325.6, 3879.7)),
        ("antmaze-umaze-v4", (0.0, 1.0)),
        ("scanrl/Breakout-v0", (2.0, 30.0)),
        ("scanrl/Qbert-v0", (164.0, 13455.0)),
        ("scanrl/Pong-sticky-v0", (-21.0, 15.0)),
        ("scanrl/Seaquest-v0", (68.0, 42055.0)),
        ("scanrl/Asterix-v0", (210.0, 8503.3)),
        ("scanrl/Frostbite-v0", (65.2, 4334.7)),
        ("scanrl/Assault-v0", (222.4, 742.0)),
        ("scanrl/Gopher-v0", (257.6, 2412.5)),
    ],
)
def test_published_ends_are_those_in_circulation(env_id, ends):
    reference = reference_score(env_id)
    assert reference is not None
    assert (reference.low, reference.high) == ends


def test_where_a_maze_has_its_origin_changes_no_score():
    assert reference_score("antmaze-umaze-v4@origin=start") == reference_score("antmaze-umaze-v4") is not None
    assert reference_score("scanrl.envs:antmaze-umaze-v5@origin=maze") is not None
    for other in ("antmaze-umaze-v4@origin=start,more=1", "antmaze-umaze-v4@more=1", "Hopper-v4@origin=start"):
        assert reference_score(other) is None


@pytest.mark.parametrize("name", REFERENCES)
def test_each_scale_has_a_source_and_goes_up(name):
    reference = REFERENCES[name]
    assert reference.low < reference.high
    assert reference.source
    assert reference.versions


@pytest.mark.parametrize("name", ["CartPole", "Pendulum", "MountainCar", "MountainCarContinuous"])
def test_the_measured_random_returns_are_met_again(name):
    env_id = f"{name}-v{REFERENCES[name].versions[-1]}"
    played = rollout(RandomActor(environment_spec(env_id), 7), env_id, episodes=10, seed=7)
    returns = np.array([e.total_reward for e in played])
    assert abs(returns.mean() - REFERENCES[name].low) <= 4 * returns.std() / np.sqrt(len(returns)) + 1


@pytest.mark.parametrize("name", ["Acrobot", "MountainCar", "MountainCarContinuous"])
def test_solved_is_what_gymnasium_says(name):
    assert gym.spec(f"{name}-v{REFERENCES[name].versions[0]}").reward_threshold == REFERENCES[name].high
