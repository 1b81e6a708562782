"""Tabular learners: what their histories hold, that they get better, and what makes two histories equal."""

import numpy as np
import pytest

from scanrl.envs import sources
from scanrl.envs.darkroom import Darkroom, DarkroomDynamic, DarkroomHard
from scanrl.envs.keydoor import KeyToDoor
from scanrl.envs.posterior import PosteriorLearner
from scanrl.envs.sources import LEARNERS, learn_histories
from scanrl.envs.tabular import NoiseLearner, QLearner
from scanrl.envs.task import Moved
from scanrl.envs.tmaze import TMaze
from scanrl.types import DataError

ROOM = Darkroom(5, 12)


def returns(found):
    return np.add.reduceat(found.rewards, found.offsets[:-1])


def equal(first, second):
    return all(np.array_equal(x, y) for x, y in zip(first, second, strict=True))


@pytest.mark.parametrize("learner", LEARNERS)
def test_histories_are_what_the_environment_does(learner):
    tasks = np.array([3, 17, 3])
    found = learn_histories(ROOM, tasks, learner=learner, episodes=4, repeats=2, seed=1)
    assert np.array_equal(found.histories, np.repeat(np.arange(6), 4))
    assert np.array_equal(found.tasks, np.repeat([3, 3, 17, 17, 3, 3], 4))
    assert np.array_equal(found.offsets, np.arange(25) * ROOM.horizon)
    states = ROOM.initial(found.tasks)
    for time in range(ROOM.horizon):
        step = found.offsets[:-1] + time
        assert np.array_equal(found.observations[step], ROOM.observe(found.tasks, states))
        states, rewards, _ = ROOM.move(found.tasks, states, found.actions[step], time)
        assert np.array_equal(found.rewards[step], rewards)
        assert (found.truncations[step] == (time == ROOM.horizon - 1)).all()
    assert not found.terminations.any()


@pytest.mark.parametrize("learner, episodes", [("q", 150), ("noise", 20)])
def test_a_history_begins_at_random_and_ends_well(learner, episodes):
    found = learn_histories(ROOM, np.arange(25), learner=learner, episodes=episodes, repeats=8, seed=0)
    curve = returns(found).reshape(-1, episodes)
    tenth = max(episodes // 10, 1)
    first, last = curve[:, :tenth].mean(), curve[:, -tenth:].mean()
    random, optimal = ROOM.random_values(np.arange(25)).mean(), ROOM.optimal_returns().mean()
    assert first < random + 0.1 * (optimal - random)
    assert last > random + 0.8 * (optimal - random)
    assert curve[:, episodes // 2 :].mean() > curve[:, : episodes // 2].mean()


def test_q_learning_needs_to_see_the_key():
    room = KeyToDoor(5, 30)
    tasks = np.random.default_rng(0).integers(room.task_count, size=60)
    settings = {"learner": "q", "episodes": 200, "repeats": 3}
    seeing = returns(learn_histories(room, tasks, **settings)).reshape(-1, 200)[:, -20:].mean()

    class Blind(QLearner):
        def choose(self, states):
            return super().choose(states % room.grid.cells)

        def learn(self, states, actions, moved, times=0):
            super().learn(states % room.grid.cells, actions, Moved(moved.states % room.grid.cells, *moved[1:]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(LEARNERS, "q", Blind)
        blind = returns(learn_histories(room, tasks, **settings)).reshape(-1, 200)[:, -20:].mean()
    assert seeing > 1.9
    assert blind < 1.5


def test_q_learning_is_the_textbook_rule():
    learner = QLearner(ROOM, np.array([4, 4]), np.random.default_rng(0))
    learner.values[:] = 0
    values = learner.values.reshape(5, 2, 25)  # (actions, learners, states)
    values[3, 1, 6] = 2.0
    following = Moved(np.array([6, 6]), np.array([1, 1], np.float32), np.array([False, True]))
    learner.learn(np.array([5, 5]), np.array([2, 2]), following)
    assert values[2, 0, 5] == 0.5  # nothing beyond state 6 for the first learner
    assert values[2, 1, 5] == 0.5  # and nothing beyond an end for the second
    learner.learn(np.array([5, 5]), np.array([1, 1]), following._replace(ended=None))
    assert values[1, 1, 5] == pytest.approx(0.5 * (1 + 0.95 * 2.0))
    assert learner.choose(np.array([0, 6]))[1] == 3


def test_the_last_step_of_a_noise_history_is_optimal_and_the_first_is_random():
    found = learn_histories(ROOM, np.full(4000, 24), learner="noise", episodes=3, seed=2)
    actions = found.actions.reshape(4000, -1)
    shares = np.bincount(actions[:, 0], minlength=5) / 4000
    assert abs(shares - 0.2).max() < 0.03
    assert (found.rewards.reshape(4000, -1)[:, -1]).mean() > 0.95
    optimal = NoiseLearner(ROOM, np.array([24]), np.random.default_rng(0)).choose(np.array([0]))
    assert optimal == ROOM.best(np.array([24]), np.array([0]))


def test_exploring_may_end_before_the_history_does():
    found = learn_histories(ROOM, np.full(2000, 24), learner="noise", episodes=4, explore_until=0.5, seed=2)
    steps = 4 * ROOM.horizon
    best = ROOM.best(np.full(len(found.actions), 24), found.observations.astype(int) @ [5, 1])
    random = (found.actions != best).reshape(2000, steps).mean(0) * 5 / 4  # a random action is the best one in five
    assert np.abs(random - np.clip(1 - np.arange(steps) / (0.5 * (steps - 1)), 0, None)).max() < 0.06
    assert not random[steps // 2 :].any()


@pytest.mark.parametrize("family", [ROOM, DarkroomHard(4, 12), KeyToDoor(3, 20), DarkroomDynamic(5, 12), TMaze(6)])
def test_posterior_sampling_searches_without_a_random_step_and_then_is_optimal(family):
    tasks = np.random.default_rng(0).integers(family.task_count, size=40)
    found = learn_histories(family, tasks, learner="posterior", episodes=25, seed=3)
    last = np.flatnonzero(np.diff(found.histories, append=-1))
    assert np.allclose(returns(found)[last], family.optimal_returns(tasks), atol=1e-6)
    first = returns(found)[np.flatnonzero(np.diff(found.histories, prepend=-1))]
    assert first.mean() < family.optimal_returns(tasks).mean()


def test_posterior_sampling_never_looks_twice_where_nothing_was():
    found = learn_histories(ROOM, np.arange(25), learner="posterior", episodes=6, repeats=4, seed=0)
    for start, stop in zip(found.offsets[:-1:6], found.offsets[6::6], strict=True):
        paid = found.rewards[start:stop] > 0
        until = int(paid.argmax()) if paid.any() else stop - start
        # Only where it starts it may have to wait to see whether that cell pays.
        assert (found.actions[start : start + until] == 0).sum() <= 1


def test_a_learner_of_a_large_family_holds_its_own_task_possible():
    room = KeyToDoor(9, 50)
    learner = PosteriorLearner(room, np.array([5, 4000]), np.random.default_rng(0))
    assert learner._tasks.shape == (2, 512)
    assert (learner._tasks == [[5], [4000]]).any(axis=1).all()


def test_episodes_that_end_early_are_followed_by_others_and_no_cut_one_is_kept():
    room = DarkroomHard(3, 7, ends=True)
    found = learn_histories(room, np.arange(9), learner="q", episodes=6, repeats=5, seed=0)
    lengths, last = np.diff(found.offsets), found.offsets[1:] - 1
    assert (found.terminations | found.truncations)[last].all()
    assert (found.terminations | found.truncations).sum() == len(lengths)
    assert (returns(found) == found.terminations[last]).all()
    assert (lengths[found.truncations[last]] == 7).all()
    assert np.bincount(found.histories).min() >= 6
    starts = found.observations[found.offsets[:-1]]
    assert (starts == 1).all()  # the centre


def test_equal_seeds_give_equal_histories_and_learners_differ():
    def make(seed):
        return learn_histories(ROOM, np.array([2, 2]), learner="q", episodes=5, seed=seed)

    assert equal(make(3), make(3))
    assert not equal(make(3), make(4))
    actions = make(3).actions.reshape(2, -1)
    assert (actions[0] != actions[1]).any()


def test_many_learners_are_stepped_in_blocks(monkeypatch):
    told = []
    monkeypatch.setattr(sources, "_MOST_ROWS", 4)
    found = learn_histories(ROOM, np.arange(10), learner="noise", episodes=2, progress=told.append)
    assert told == [4, 8, 10]
    assert np.array_equal(found.tasks, np.repeat(np.arange(10), 2))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"learner": "sarsa"}, "learner: expected one of q, noise, random, posterior, got 'sarsa'"),
        ({"episodes": 0}, "episodes: expected an integer of at least 1, got 0"),
        ({"repeats": 0}, "repeats: expected an integer of at least 1, got 0"),
        ({"explore_until": 0.0}, "explore_until: expected a fraction above 0 and at most 1, got 0"),
        ({"tasks": np.array([])}, "tasks: expected an integer of at least 1, got 0"),
    ],
)
def test_numbers_that_make_no_history_are_refused(changes, message):
    asked = {"tasks": np.arange(2), "learner": "q", "episodes": 1, "repeats": 1} | changes
    with pytest.raises(DataError) as raised:
        learn_histories(ROOM, **asked)
    assert str(raised.value) == message
