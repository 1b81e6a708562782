"""Transitions of a task in any order behind a state whose optimal action is asked for, and stores that know it."""

import numpy as np
import pytest
import torch

from scanrl.data.dataset import Dataset
from scanrl.data.queries import QuerySampler, iterate_queries
from scanrl.data.store import read_store, write_store
from scanrl.data.validate import check
from scanrl.types import DataError, Spec

TASKS = [5, 5, 5, 2, 9, 9]
LENGTHS = [4, 1, 3, 6, 2, 5]


@pytest.fixture(scope="module")
def told():
    """Episodes whose observations say `(episode, timestep)`, whose optimal actions are the number of the step."""
    episode = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
    steps = len(episode)
    offsets = np.concatenate([[0], np.cumsum(LENGTHS)])
    timesteps = np.arange(steps) - np.repeat(offsets[:-1], LENGTHS)
    ends = np.isin(np.arange(steps), offsets[1:] - 1)
    columns = {
        "observations": np.stack([episode, timesteps], 1).astype(np.float32),
        "actions": np.arange(steps) % 7,
        "rewards": np.arange(steps, dtype=np.float32),
        "terminations": np.zeros(steps, bool),
        "truncations": ends,
    }
    owners = {"tasks": np.array(TASKS), "histories": np.arange(len(TASKS))}
    spec = Spec((2,), "discrete", steps)
    return Dataset(columns, offsets, spec, "told", optimal_actions=np.arange(steps), **owners)


def step_of(dataset, observation):
    return int(dataset.offsets[int(observation[0])] + observation[1])


@pytest.mark.parametrize("episodes, context", [(1, 50), (2, 50), (9, 50), (9, 4)])
def test_a_context_has_the_transitions_of_different_episodes_of_the_task_of_its_query(told, episodes, context):
    sampler = QuerySampler(told, context, episodes, 64, seed=0)
    for _ in range(5):
        batch = sampler.sample()
        for row in range(64):
            task = TASKS[int(batch.queries[row, 0])]
            own = [i for i in range(len(TASKS)) if TASKS[i] == task]
            steps = [step_of(told, seen) for seen in batch.observations[row][batch.mask[row]]]
            found = {int(seen[0]) for seen in batch.observations[row][batch.mask[row]]}
            assert found <= set(own)
            assert len(set(steps)) == len(steps)
            if context == 50:
                assert len(found) == min(episodes, len(own))
                assert len(steps) == sum(LENGTHS[i] for i in found)
            else:
                assert len(steps) == min(4, sum(LENGTHS[i] for i in own))
            assert batch.targets[row] == step_of(told, batch.queries[row])
            for place, step in enumerate(steps):
                ended = step + 1 in told.offsets
                assert batch.actions[row, place] == told.actions[step]
                assert batch.rewards[row, place] == told.rewards[step]
                assert batch.followed[row, place] == (not ended)
                following = np.zeros(2) if ended else told.observations[step + 1]
                assert np.array_equal(batch.next_observations[row, place], following)


def test_the_order_of_a_context_is_any_order_and_a_part_of_it_any_part(told):
    sampler = QuerySampler(told.select([3]), 6, 1, 6000, seed=0)
    places = sampler.sample().observations[:, :, 1].long()
    for place in range(6):
        counts = torch.bincount(places[:, place], minlength=6) / 6000
        assert (counts - 1 / 6).abs().max() < 0.02
    part = QuerySampler(told.select([3]), 2, 1, 6000, seed=0).sample().observations[:, :, 1].long()
    assert (torch.bincount(part.flatten(), minlength=6) / 12000 - 1 / 6).abs().max() < 0.02


def test_every_state_is_asked_about_as_often_however_long_a_learner_stays_in_it(told):
    columns, seen = told.columns, np.zeros((21, 2), np.float32)
    seen[9, 0] = 1  # one step of the fourth episode, which is all that its task has
    optimal = np.where(seen[:, 0] > 0, 3, 4)
    optimal[12] = 5  # the state of the others as it looks, but not what is hidden of it
    dataset = Dataset({**columns, "observations": seen}, told.offsets, told.spec, optimal_actions=optimal)
    dataset = dataset.with_histories(told.tasks, told.histories).select([3])
    targets = QuerySampler(dataset, 3, 1, 6000, seed=0).sample().targets
    shares = torch.bincount(targets, minlength=6)[3:] / 6000
    assert (shares - 1 / 3).abs().max() < 0.03


def test_a_sampler_resumes_with_exactly_the_next_batch(told):
    def equal(first, second):
        return all(torch.equal(x, y) for x, y in zip(first, second, strict=True))

    whole, parts = QuerySampler(told, 9, 2, 5, seed=3), QuerySampler(told, 9, 2, 5, seed=4)
    for _ in range(3):
        whole.sample()
    parts.load_state_dict(whole.state_dict())
    assert equal(whole.sample(), parts.sample())
    assert not equal(whole.sample(), QuerySampler(told, 9, 2, 5, seed=4).sample())
    first, second = (list(iterate_queries(told, 9, 2, 4, count=13)) for _ in range(2))
    assert [len(batch.targets) for batch in first] == [4, 4, 4]
    assert all(equal(x, y) for x, y in zip(first, second, strict=True))
    with pytest.raises(ValueError, match=r"^sampler state: context: expected 8, got 9$"):
        QuerySampler(told, 8, 2, 5, seed=3).load_state_dict(whole.state_dict())


def test_contexts_that_cannot_be_are_refused(told):
    plain = Dataset(told.columns, told.offsets, told.spec, "plain")
    with pytest.raises(DataError, match=r"^plain: optimal_actions: expected them for every step \(scanrl collect"):
        QuerySampler(plain, 4, 1, 1, seed=0)
    for name in ("context", "episodes", "batch_size"):
        with pytest.raises(DataError, match=rf"^{name}: expected at least 1, got 0$"):
            QuerySampler(told, **{"context": 4, "episodes": 1, "batch_size": 1, "seed": 0, name: 0})


def test_a_dataset_keeps_its_optimal_actions(told, tmp_path):
    again = read_store(write_store(told, tmp_path / "told.ds"))
    assert again.optimal_actions is not None
    assert np.array_equal(again.optimal_actions, told.optimal_actions)
    assert again.fingerprint == told.fingerprint
    assert not check(again)
    assert '"version": 3' in (tmp_path / "told.ds" / "manifest.json").read_text()
    part = told.select([4, 1])
    assert part.optimal_actions is not None
    assert part.optimal_actions.tolist() == [14, 15, 4]
    assert told.with_spec(told.spec).optimal_actions is told.optimal_actions
    assert told.with_histories(told.histories, told.histories).optimal_actions is told.optimal_actions
    plain = Dataset(told.columns, told.offsets, told.spec, tasks=told.tasks, histories=told.histories)
    assert plain.fingerprint != told.fingerprint


def test_optimal_actions_are_checked_like_those_that_were_taken(told):
    with pytest.raises(DataError, match=r"^told: optimal_actions: expected int64 \(21,\), got int64 \(20,\)$"):
        Dataset(told.columns, told.offsets, told.spec, "told", optimal_actions=np.arange(20))
    wrong = Dataset(told.columns, told.offsets, told.spec, "told", optimal_actions=np.arange(21) + 1)
    assert check(wrong) == ["told: episode 5: step 4: optimal_actions: expected 0 to 20, got 21"]
