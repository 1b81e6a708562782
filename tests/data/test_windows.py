import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scanrl.batch import Batch
from scanrl.data import windows
from scanrl.data.dataset import Dataset
from scanrl.data.store import read_store, write_store
from scanrl.data.windows import WindowSampler, iterate_windows
from scanrl.types import Spec


def reference_window(dataset, start, context):
    """One window by the book: slices of one episode, zeros to the right."""
    episode = int(np.searchsorted(dataset.offsets, start, side="right")) - 1
    first = int(dataset.offsets[episode])
    trajectory = dataset[episode]
    t = start - first
    rewards = trajectory.rewards.astype(np.float64)
    valid = min(context, len(trajectory) - t)

    def pad(part):
        return np.concatenate([part[:valid], np.zeros((context - valid, *part.shape[1:]), part.dtype)])

    return Batch(
        *(
            torch.from_numpy(pad(part))
            for part in (
                trajectory.observations[t:],
                trajectory.actions[t:],
                trajectory.rewards[t:],
                rewards[::-1].cumsum()[::-1].astype(np.float32)[t:],
                np.arange(t, len(trajectory)),
                np.ones(len(trajectory) - t, np.bool_),
            )
        )
    )


def same(first, second):
    return all(x.dtype == y.dtype and torch.equal(x, y) for x, y in zip(first, second, strict=True))


def reference_batch(dataset, starts, context):
    windows = [reference_window(dataset, int(s), context) for s in starts]
    filled = [name for name, column in windows[0]._asdict().items() if column.numel()]
    return Batch(**{name: torch.stack([getattr(window, name) for window in windows]) for name in filled})


@settings(deadline=None, max_examples=40)
@given(
    lengths=st.lists(st.integers(1, 15), min_size=1, max_size=5),
    context=st.integers(1, 12),
    choices=st.sampled_from([0, 3]),
    packed=st.booleans(),
)
def test_windows_are_those_of_a_plain_loop(make_dataset, lengths, context, choices, packed):
    dataset = make_dataset(lengths, choices=choices)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(windows, "_PACK_BYTES", 1 << 30 if packed else 0)
        gathered = windows._Windows(dataset, context, 1).gather(np.arange(dataset.steps))
    assert same(gathered, reference_batch(dataset, range(dataset.steps), context))


def test_padding_is_on_the_right_zero_and_masked(make_dataset):
    dataset = make_dataset((3,))
    batch = WindowSampler(dataset, context=5, batch_size=200, seed=0).sample()
    valid = batch.mask.sum(1)
    assert set(valid.tolist()) == {1, 2, 3}
    assert torch.equal(batch.mask, torch.arange(5) < valid[:, None])
    for part in batch[:5]:
        assert not part[~batch.mask].any()
    assert batch.observations[batch.mask].all()


def test_a_window_never_crosses_into_the_next_episode(make_dataset):
    dataset = make_dataset((4, 9, 2, 6))
    episode = np.repeat(np.arange(4), dataset.lengths)
    observations = np.stack([episode, dataset.timesteps, np.ones(21)], axis=1).astype(np.float32)
    marked = Dataset({**dataset.columns, "observations": observations}, dataset.offsets, dataset.spec)
    batch = WindowSampler(marked, context=6, batch_size=500, seed=1).sample()
    owner = batch.observations[..., 0]
    assert torch.equal(owner, torch.where(batch.mask, owner[:, :1], 0))
    assert torch.equal(batch.observations[..., 1].long(), batch.timesteps)
    reached = batch.timesteps[:, 0] + batch.mask.sum(1)
    ends = torch.from_numpy(dataset.lengths)[owner[:, 0].long()]
    assert torch.equal(reached, torch.minimum(batch.timesteps[:, 0] + 6, ends))


def test_return_to_go_falls_by_the_reward(make_dataset):
    batch = WindowSampler(make_dataset((30, 40)), context=8, batch_size=100, seed=0).sample()
    both = batch.mask[:, 1:]
    change = batch.returns_to_go[:, :-1] - batch.returns_to_go[:, 1:]
    torch.testing.assert_close(change[both], batch.rewards[:, :-1][both], rtol=0, atol=1e-5)


def test_every_step_is_equally_likely_to_start_a_window(make_dataset):
    dataset = make_dataset((2, 10, 1, 7))
    sampler = WindowSampler(dataset, context=3, batch_size=1000, seed=3)
    ids = np.arange(dataset.steps, dtype=np.float32)[:, None].repeat(3, 1)
    sampler = WindowSampler(
        Dataset({**dataset.columns, "observations": ids}, dataset.offsets, dataset.spec), 3, 1000, seed=3
    )
    starts = np.concatenate([sampler.sample().observations[:, 0, 0].numpy() for _ in range(40)]).astype(int)
    counts = np.bincount(starts, minlength=dataset.steps)
    expected = len(starts) / dataset.steps
    # Chi-square with 19 degrees of freedom: 43.8 is its 99.9 % quantile; the seed is fixed.
    assert ((counts - expected) ** 2 / expected).sum() < 43.8


def test_equal_seeds_give_equal_batches_and_others_do_not(make_dataset):
    dataset = make_dataset()
    first, second, other = (WindowSampler(dataset, 4, 8, seed) for seed in (5, 5, 6))
    assert all(same(first.sample(), second.sample()) for _ in range(3))
    assert not same(first.sample(), other.sample())


def test_a_sampler_resumes_with_exactly_the_next_batch(make_dataset):
    dataset = make_dataset()
    sampler = WindowSampler(dataset, 4, 8, seed=0)
    for _ in range(5):
        sampler.sample()
    state = json.loads(json.dumps(sampler.state_dict()))
    expected = [sampler.sample() for _ in range(5)]
    resumed = WindowSampler(dataset, 4, 8, seed=99)
    resumed.load_state_dict(state)
    assert all(same(resumed.sample(), batch) for batch in expected)


@pytest.mark.parametrize("name, arguments", [("context", (5, 8)), ("batch_size", (4, 9))])
def test_a_state_of_another_sampler_is_refused(make_dataset, name, arguments):
    state = WindowSampler(make_dataset(), 4, 8, seed=0).state_dict()
    with pytest.raises(ValueError, match=rf"^sampler state: {name}: expected "):
        WindowSampler(make_dataset(), *arguments, seed=0).load_state_dict(state)
    with pytest.raises(ValueError, match=r"^sampler state: steps: expected 4, got 25$"):
        WindowSampler(make_dataset((4,)), 4, 8, seed=0).load_state_dict(state)


@pytest.mark.parametrize("context, batch_size, name", [(0, 8, "context"), (4, 0, "batch_size")])
def test_sizes_below_one_are_refused(make_dataset, context, batch_size, name):
    with pytest.raises(ValueError, match=rf"^{name}: expected at least 1, got 0$"):
        WindowSampler(make_dataset(), context, batch_size, seed=0)


@settings(deadline=None, max_examples=25)
@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=6), context=st.integers(1, 9), size=st.integers(1, 5))
def test_one_pass_holds_every_step_once_in_order(make_dataset, lengths, context, size):
    dataset = make_dataset(lengths)
    batches = list(iterate_windows(dataset, context, size))
    assert all(len(batch.mask) == size for batch in batches[:-1])
    for field in ("observations", "actions", "rewards", "returns_to_go", "timesteps"):
        seen = torch.cat([getattr(batch, field)[batch.mask] for batch in batches])
        assert np.array_equal(seen.numpy(), getattr(dataset, field))


def test_mapped_columns_give_the_same_batches(make_dataset, tmp_path):
    dataset = make_dataset()
    mapped = read_store(write_store(dataset, tmp_path / "toy"))
    for limit in (1 << 30, 0):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(windows, "_PACK_BYTES", limit)
            assert same(WindowSampler(dataset, 4, 8, 0).sample(), WindowSampler(mapped, 4, 8, 0).sample())


def test_writing_to_a_batch_does_not_change_the_dataset(make_dataset):
    dataset = make_dataset(choices=3)
    before = {name: column.copy() for name, column in dataset.columns.items()}
    for part in WindowSampler(dataset, 4, 64, 0).sample():
        part.zero_()
    assert all(np.array_equal(before[name], column) for name, column in dataset.columns.items())


@pytest.mark.parametrize("shape", [(), (2, 3)])
def test_observations_of_any_shape_keep_it(shape):
    rng = np.random.default_rng(0)
    n = 10
    dataset = Dataset.from_arrays(
        observations=rng.normal(size=(n, *shape)),
        actions=rng.normal(size=(n, 2)),
        rewards=rng.normal(size=n),
        terminations=np.arange(n) % 5 == 4,
    )
    assert dataset.spec == Spec(shape, "continuous", 2)
    batch = WindowSampler(dataset, 3, 7, 0).sample()
    assert batch.observations.shape == (7, 3, *shape)
    gathered = windows._Windows(dataset, 3, 1).gather(np.arange(n))
    assert same(gathered, reference_batch(dataset, range(n), 3))
