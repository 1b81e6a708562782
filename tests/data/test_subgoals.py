"""The valuable state of a step, against its definition."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scanrl.data import subgoals
from scanrl.data.subgoals import valuable_steps

REWARDS = st.lists(st.sampled_from([-2, -1, 0, 0, 0, 0.5, 1, 3]), min_size=1, max_size=18)


def by_definition(rewards):
    """argmax over j > i of the mean reward of the steps i + 1 to j, exactly."""
    rewards = [Fraction(reward) for reward in rewards]
    found = []
    for i in range(len(rewards) - 1):
        means = {j: sum(rewards[i + 1 : j + 1], Fraction(0)) / (j - i) for j in range(i + 1, len(rewards))}
        best = max(means.values())
        ties = [j for j, mean in means.items() if mean == best]
        found.append(ties[-1] if best == 0 else ties[0])
    return [*found, len(rewards) - 1]


@settings(deadline=None, max_examples=150)
@given(episodes=st.lists(REWARDS, min_size=1, max_size=5), block=st.sampled_from([1, 20, 1 << 20]))
def test_valuable_states_are_those_of_the_definition(episodes, block):
    offsets = np.concatenate([[0], np.cumsum([len(episode) for episode in episodes])])
    rewards = np.concatenate([np.asarray(episode, np.float32) for episode in episodes])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subgoals, "_BLOCK", block)
        found = valuable_steps(rewards, offsets)
    expected = [start + np.array(by_definition(e)) for start, e in zip(offsets, episodes, strict=False)]
    assert np.array_equal(found, np.concatenate(expected))


def test_one_reward_is_what_every_step_before_it_points_to():
    rewards = np.zeros(10, np.float32)
    rewards[6] = 1
    assert valuable_steps(rewards, np.array([0, 10])).tolist() == [6, 6, 6, 6, 6, 6, 9, 9, 9, 9]


def test_without_reward_the_end_of_the_episode_is_meant():
    assert valuable_steps(np.zeros(7, np.float32), np.array([0, 3, 7])).tolist() == [2, 2, 2, 6, 6, 6, 6]


@pytest.mark.parametrize("shape", ["random", "falling", "rising"])
def test_a_long_episode_takes_about_as_many_looks_as_steps(monkeypatch, shape):
    looks = 0

    class Counted(np.ndarray):
        def __getitem__(self, at):
            nonlocal looks
            looks += 1
            return super().__getitem__(at)

    monkeypatch.setattr(np, "tile", lambda array, shape: np.array([array]).view(Counted))
    steps = 2000
    rewards = np.random.default_rng(0).normal(size=(1, steps))
    rewards = {"random": rewards, "falling": -np.sort(-rewards), "rising": np.sort(rewards)}[shape]
    subgoals._goals(rewards.cumsum(axis=1), np.array([steps]))
    assert looks < 10 * steps  # looking at all pairs would take a thousand times the steps
