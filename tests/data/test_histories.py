"""Contexts of several episodes of one task, and the datasets they come from."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scanrl.data.dataset import Dataset
from scanrl.data.histories import Curriculum, HistorySampler, iterate_histories, replay_history
from scanrl.data.store import read_store, write_store
from scanrl.data.subgoals import valuable_steps
from scanrl.types import CorruptFile, DataError, Spec

# (task, episodes) of each learner
LEARNERS = [(5, 6), (5, 3), (2, 1), (9, 8)]


@pytest.fixture(scope="module")
def histories(make_dataset):
    """Episodes of different lengths whose observations say `(episode, timestep, 1)`."""
    lengths = np.random.default_rng(0).integers(1, 7, size=sum(count for _, count in LEARNERS))
    plain = make_dataset(lengths)
    episode = np.repeat(np.arange(len(lengths)), lengths)
    told = np.stack([episode, plain.timesteps, np.ones(plain.steps)], axis=1).astype(np.float32)
    dataset = Dataset({**plain.columns, "observations": told}, plain.offsets, plain.spec, "toy")
    counts = [count for _, count in LEARNERS]
    tasks = np.repeat([task for task, _ in LEARNERS], counts)
    return dataset.with_histories(tasks, np.repeat(np.arange(len(counts)), counts))


def episodes_of(batch, row):
    """The episodes of a context, and whether each is there from its first step to its last."""
    seen = batch.observations[row][batch.mask[row]][:, 0].long()
    found, counts = torch.unique_consecutive(seen, return_counts=True)
    return found.tolist(), counts.tolist()


def same(first, second):
    return all(x.dtype == y.dtype and torch.equal(x, y) for x, y in zip(first, second, strict=True))


def check_columns(dataset, batch):
    """What is in the batch is what the dataset says about the episodes it names."""
    order = torch.cat([torch.tensor(episodes_of(batch, row)[0]) for row in range(len(batch.mask))])
    chosen = dataset.select(order.numpy())
    for field in ("observations", "actions", "rewards", "timesteps"):
        assert np.array_equal(getattr(batch, field)[batch.mask].numpy(), getattr(chosen, field))
        assert not getattr(batch, field)[~batch.mask].any()
    np.testing.assert_allclose(batch.returns_to_go[batch.mask].numpy(), chosen.returns_to_go, rtol=1e-5, atol=1e-5)
    assert not batch.returns_to_go[~batch.mask].any()
    assert torch.equal(batch.mask, torch.arange(batch.mask.shape[1]) < batch.mask.sum(1)[:, None])
    assert batch.mask.any(0).all()  # no column is padding in every row


@pytest.mark.parametrize("size, stride", [(1, 1), (3, 1), (3, 2), (20, 1)])
def test_a_context_is_a_run_of_one_history(histories, size, stride):
    ends = np.cumsum([count for _, count in LEARNERS])
    begins, firsts = ends - [count for _, count in LEARNERS], set()
    sampler = HistorySampler(histories, size, batch_size=300, seed=0, stride=stride)
    batch = sampler.sample()
    check_columns(histories, batch)
    for row in range(300):
        found, counts = episodes_of(batch, row)
        learner = histories.histories[found[0]]
        expected = np.arange(found[0], ends[learner], stride)[:size]
        assert found == expected.tolist()
        assert counts == histories.lengths[found].tolist()
        assert len(found) == size or found[0] == begins[learner]  # a shorter one is a whole history
        firsts.add(found[0])
    span = 1 + (size - 1) * stride
    allowed = [e for b, end in zip(begins, ends, strict=True) for e in range(b, end) if e + span <= end or e == b]
    assert firsts == set(allowed)


@pytest.mark.parametrize("size", [1, 4, 9, 30])
def test_a_context_sorted_by_return_has_different_episodes_of_one_task(histories, size):
    batch = HistorySampler(histories, size, batch_size=200, seed=1, order="return").sample()
    check_columns(histories, batch)
    seen = set()
    for row in range(200):
        found, _ = episodes_of(batch, row)
        (task,) = set(histories.tasks[found].tolist())
        assert len(found) == len(set(found)) == min(size, int((histories.tasks == task).sum()))
        assert (np.diff(histories.returns[found]) >= 0).all()
        seen |= set(found)
    assert seen == set(range(len(histories)))


@pytest.mark.parametrize("order", ["learning", "return"])
def test_goals_are_the_valuable_states_of_the_same_episode(histories, order):
    batch = HistorySampler(histories, 3, 50, seed=0, order=order, goals=True).sample()
    ahead = valuable_steps(histories.rewards, histories.offsets)
    begins = torch.from_numpy(histories.offsets)[batch.observations[..., 0].long()]
    flat = (begins + batch.timesteps)[batch.mask].numpy()
    assert np.array_equal(batch.goals[batch.mask].numpy(), histories.observations[ahead[flat]])
    earned = [histories.rewards[i + 1 : ahead[i] + 1].astype(np.float64) for i in flat]
    means = [x.mean() if x.size else 0.0 for x in earned]
    np.testing.assert_allclose(batch.goal_values[batch.mask].numpy(), means, rtol=1e-5)
    assert not batch.goals[~batch.mask].any()
    (whole,) = iterate_histories(histories, 30, 30, goals=True)
    assert whole.goals.shape == whole.observations.shape
    assert HistorySampler(histories, 3, 5, seed=0).sample().goals.numel() == 0


def test_episodes_are_drawn_without_favour(make_dataset):
    dataset = replay_history(make_dataset([1] * 12))
    sampler = HistorySampler(dataset, 5, 4000, seed=0, order="return")
    drawn = sampler._sorted()
    counts = np.bincount(drawn.ravel(), minlength=12)
    expected = drawn.size / 12
    assert ((counts - expected) ** 2 / expected).sum() < 31.3  # 99.9 % quantile of chi-square, 11 degrees of freedom


def test_contexts_grow_with_the_curriculum(histories):
    sampler = HistorySampler(histories, 8, 100, seed=0, curriculum=Curriculum(steps=2, batches=3))
    sizes = []
    for _ in range(18):
        limit, batch = sampler.limit, sampler.sample()
        check_columns(histories, batch)
        assert batch.mask.shape[1] <= limit
        sizes.append(batch.mask.shape[1])
    assert sizes[:3] == [2, 2, 2]
    assert sizes[3:6] == [4, 4, 4]
    whole = HistorySampler(histories, 8, 1000, seed=0).sample()
    assert sizes[-1] == whole.mask.shape[1]


def test_a_curriculum_shorter_than_every_episode_takes_whole_episodes(make_dataset):
    dataset = replay_history(make_dataset([5, 7]))
    batch = HistorySampler(dataset, 2, 50, seed=0, curriculum=Curriculum(1, 10)).sample()
    assert set(batch.mask.sum(1).tolist()) == {5}  # from the first on; the second alone would be no context of two


@settings(deadline=None, max_examples=30)
@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=9), size=st.integers(1, 4), rows=st.integers(1, 3))
def test_one_pass_holds_every_episode_once(make_dataset, lengths, size, rows):
    dataset = make_dataset(lengths)
    learners = np.arange(len(lengths)) // 4
    dataset = dataset.with_histories(learners, learners)
    batches = list(iterate_histories(dataset, size, rows))
    for field in ("observations", "actions", "rewards", "timesteps"):
        seen = torch.cat([getattr(batch, field)[batch.mask] for batch in batches])
        assert np.array_equal(seen.numpy(), getattr(dataset, field))
    assert max(int((batch.timesteps[batch.mask] == 0).sum()) for batch in batches) <= size * rows


@pytest.mark.parametrize("settings_", [{}, {"order": "return"}, {"curriculum": Curriculum(3, 2)}, {"stride": 2}])
def test_a_sampler_resumes_with_exactly_the_next_batch(histories, settings_):
    sampler = HistorySampler(histories, 3, 8, seed=0, **settings_)
    for _ in range(5):
        sampler.sample()
    state = json.loads(json.dumps(sampler.state_dict()))
    expected = [sampler.sample() for _ in range(5)]
    resumed = HistorySampler(histories, 3, 8, seed=99, **settings_)
    resumed.load_state_dict(state)
    assert all(same(resumed.sample(), batch) for batch in expected)


@pytest.mark.parametrize(
    "changes, name",
    [
        ({"episodes": 4}, "episodes"),
        ({"batch_size": 9}, "batch_size"),
        ({"order": "return"}, "order"),
        ({"stride": 2}, "stride"),
        ({"curriculum": Curriculum(1, 1)}, "curriculum"),
    ],
)
def test_a_state_of_another_sampler_is_refused(histories, changes, name):
    state = HistorySampler(histories, 3, 8, seed=0).state_dict()
    other = HistorySampler(histories, **({"episodes": 3, "batch_size": 8, "seed": 0} | changes))
    with pytest.raises(ValueError, match=rf"^sampler state: {name}: expected "):
        other.load_state_dict(state)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"episodes": 0}, "episodes: expected at least 1, got 0"),
        ({"stride": 0}, "stride: expected at least 1, got 0"),
        ({"curriculum": Curriculum(0, 1)}, "steps: expected at least 1, got 0"),
        ({"order": "age"}, "order: expected one of learning, return, got 'age'"),
    ],
)
def test_contexts_that_cannot_be_are_refused(histories, changes, message):
    with pytest.raises(DataError) as raised:
        HistorySampler(histories, **({"episodes": 3, "batch_size": 8, "seed": 0} | changes))
    assert str(raised.value) == message


def test_images_are_refused():
    seen = np.zeros((4, 2, 2), np.uint8)
    spec = Spec((2, 2), "discrete", 2, observation_dtype="uint8")
    dataset = Dataset.from_arrays(
        observations=seen, actions=[0, 1, 0, 1], rewards=np.ones(4), terminations=[0, 1, 0, 1], spec=spec, name="film"
    )
    with pytest.raises(DataError, match=r"^film: observations: expected vectors in learning histories, got images$"):
        HistorySampler(dataset, 1, 1, seed=0)


def test_a_history_has_one_task_and_its_episodes_in_one_run(make_dataset):
    dataset = make_dataset([2, 2, 2])
    with pytest.raises(DataError, match=r"^toy: histories: expected the episodes of a history in one run"):
        HistorySampler(dataset.with_histories(np.zeros(3), np.array([0, 1, 0])), 1, 1, 0)
    with pytest.raises(DataError, match=r"^toy: tasks: expected one task for each history"):
        HistorySampler(dataset.with_histories(np.array([0, 1, 1]), np.zeros(3)), 1, 1, 0)
    with pytest.raises(DataError, match=r"^toy: tasks: expected int64 \(3,\), got int64 \(2,\)$"):
        dataset.with_histories(np.zeros(2), np.zeros(3))
    with pytest.raises(DataError, match=r"^toy: expected both tasks and histories, got tasks$"):
        Dataset(dataset.columns, dataset.offsets, dataset.spec, "toy", tasks=np.zeros(3, np.int64))


@pytest.mark.parametrize("order", ["recorded", "return"])
def test_a_replay_becomes_one_history(make_dataset, order):
    dataset = make_dataset((7, 1, 12, 5))
    found = replay_history(dataset, order)
    expected = np.sort(dataset.returns) if order == "return" else dataset.returns
    assert np.array_equal(found.returns, expected)
    assert not found.tasks.any()
    assert not found.histories.any()
    batch = HistorySampler(found, 4, 1, seed=0).sample()
    assert torch.equal(batch.rewards[0], torch.from_numpy(found.rewards))


def test_histories_are_held_out_by_task_then_by_learner(histories):
    training, held_out = histories.split(0.3, seed=0)
    assert not set(training.tasks) & set(held_out.tasks)
    assert len(training) + len(held_out) == len(histories)
    one = histories.select(np.flatnonzero(histories.tasks == 5))
    training, held_out = one.split(0.3, seed=0)
    assert not set(training.histories) & set(held_out.histories)
    assert {len(training), len(held_out)} == {3, 6}


def test_a_store_keeps_tasks_and_learners(histories, tmp_path):
    path = write_store(histories, tmp_path / "h")
    again = read_store(path)
    assert np.array_equal(again.tasks, histories.tasks)
    assert np.array_equal(again.histories, histories.histories)
    assert again.fingerprint == histories.fingerprint
    assert again.with_spec(again.spec).tasks is again.tasks
    assert same(HistorySampler(again, 3, 8, 0).sample(), HistorySampler(histories, 3, 8, 0).sample())
    (path / "episode_tasks.npy").unlink()
    with pytest.raises(CorruptFile, match=r"episode_tasks\.npy"):
        read_store(path)


def test_only_a_store_with_histories_needs_a_release_that_knows_them(histories, make_dataset, tmp_path):
    for dataset, version in ((make_dataset(), 1), (histories, 2)):
        path = write_store(dataset, tmp_path / str(version))
        assert json.loads((path / "manifest.json").read_text())["version"] == version


def test_tasks_are_part_of_the_fingerprint_and_their_absence_is_not(make_dataset):
    dataset = make_dataset()
    plain = Dataset(dataset.columns, dataset.offsets, dataset.spec, "other name")
    # As it was before datasets knew of tasks: stores and checkpoints of then must still fit.
    assert plain.fingerprint == "f89ba410ad03e5b665476023c1aafb4eaa847bb81c5e5ab3b5274d5e91875307"
    owned = {dataset.with_histories(tasks, np.zeros(4)).fingerprint for tasks in (np.zeros(4), np.ones(4))}
    assert len(owned | {plain.fingerprint}) == 3
