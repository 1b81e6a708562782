"""Whole episodes in consecutive chunks: which steps a batch holds, and in which order."""

import json

import numpy as np
import pytest
import torch

from scanrl.data.dataset import Dataset
from scanrl.data.windows import EpisodeSampler, WindowSampler, iterate_episodes

LENGTHS = (7, 1, 12, 5, 8, 4)


def numbered(dataset: Dataset) -> Dataset:
    """Observations that tell the flat step, counted from 1."""
    steps = np.arange(1, dataset.steps + 1, dtype=np.float32)[:, None].repeat(3, 1)
    return Dataset({**dataset.columns, "observations": steps}, dataset.offsets, dataset.spec)


def steps_of(batch) -> list[list[int]]:
    """Flat steps of every row, without padding."""
    ids = batch.observations[..., 0].long() - 1
    return [row[valid].tolist() for row, valid in zip(ids, batch.mask, strict=True)]


def parts_of(sampler: EpisodeSampler, batches: int) -> list[list[int]]:
    """The flat steps between one new start of a row and its next, in the order in which they were begun."""
    begun: list[list[int]] = []
    rows: dict[int, list[int]] = {}
    for _ in range(batches):
        batch, first = sampler.sample()
        for row, steps in enumerate(steps_of(batch)):
            if first[row]:
                rows[row] = []
                begun.append(rows[row])
            rows[row] += steps
    return begun


@pytest.mark.parametrize("rows", [1, 3, 6, 20])
@pytest.mark.parametrize("context", [1, 3, 4, 30])
def test_every_pass_holds_every_step_once(make_dataset, rows, context):
    dataset = numbered(make_dataset(LENGTHS))
    found = iter(parts_of(EpisodeSampler(dataset, context, rows, seed=1), 150))
    orders = []
    for _ in range(3):
        steps: list[int] = []
        while len(steps) < dataset.steps:
            steps += next(found)
        assert sorted(steps) == list(range(dataset.steps))
        orders.append(steps)
    assert orders[1] != orders[2]


@pytest.mark.parametrize("choices", [0, 3])
def test_a_row_takes_one_episode_to_its_end_and_then_starts_anew(make_dataset, choices):
    dataset = numbered(make_dataset(LENGTHS, choices=choices))
    sampler, episodes = EpisodeSampler(dataset, 3, 2, seed=0), [list(range(*p)) for p in _bounds(dataset)]
    for steps in parts_of(sampler, 40)[6 + 2 :][:10]:  # behind the first pass: six episodes, of which two are cut
        assert steps in episodes
    batch, _ = sampler.sample()
    flat = batch.observations[..., 0].long() - 1
    assert torch.equal(batch.timesteps[batch.mask], torch.from_numpy(dataset.timesteps)[flat[batch.mask]])
    actions = torch.from_numpy(np.array(dataset.actions))
    assert torch.equal(batch.actions[batch.mask], actions[flat[batch.mask]])


def _bounds(dataset: Dataset) -> list[tuple[int, int]]:
    return list(zip(dataset.offsets[:-1].tolist(), dataset.offsets[1:].tolist(), strict=True))


def test_only_the_last_chunk_of_an_episode_is_padded(make_dataset):
    sampler = EpisodeSampler(make_dataset(LENGTHS), 3, 4, seed=0)
    before = torch.ones(4, dtype=torch.bool)
    for _ in range(60):
        batch, first = sampler.sample()
        assert first[~before].all()
        before = batch.mask.all(1)
        assert batch.mask[:, 0].all()


def test_episodes_of_one_length_do_not_go_in_step(make_dataset):
    sampler = EpisodeSampler(make_dataset((100,) * 30), 10, 16, seed=0)
    for _ in range(25):
        batch, _ = sampler.sample()
        assert len(set(batch.timesteps[:, 0].tolist())) >= 6


def test_a_chunk_longer_than_every_episode_holds_one_in_each_row(make_dataset):
    sampler = EpisodeSampler(make_dataset(LENGTHS), 30, 4, seed=0)
    for _ in range(8):
        batch, first = sampler.sample()
        assert first.all()
        assert not batch.timesteps[:, 0].any()
        assert set(batch.mask.sum(1).tolist()) <= set(LENGTHS)


@pytest.mark.parametrize("batches", [0, 1, 7, 40])
def test_a_sampler_resumes_with_exactly_the_next_chunks(make_dataset, batches):
    dataset = make_dataset(LENGTHS)
    sampler = EpisodeSampler(dataset, 3, 4, seed=2)
    for _ in range(batches):
        sampler.sample()
    state = json.loads(json.dumps(sampler.state_dict()))
    expected = [sampler.sample() for _ in range(20)]
    resumed = EpisodeSampler(dataset, 3, 4, seed=2)
    for _ in range(3):
        resumed.sample()
    resumed.load_state_dict(state)
    for batch, first in expected:
        found, found_first = resumed.sample()
        assert all(map(torch.equal, found, batch))
        assert torch.equal(found_first, first)


def test_equal_seeds_give_equal_chunks_and_others_do_not(make_dataset):
    first, second, other = (EpisodeSampler(make_dataset(LENGTHS), 3, 4, seed) for seed in (5, 5, 6))
    found = [[s.sample()[0].observations for _ in range(5)] for s in (first, second, other)]
    assert all(map(torch.equal, found[0], found[1]))
    assert not all(map(torch.equal, found[0], found[2]))


@pytest.mark.parametrize("name, arguments", [("context", (5, 8, 0)), ("batch_size", (4, 9, 0)), ("seed", (4, 8, 1))])
def test_a_state_of_another_sampler_is_refused(make_dataset, name, arguments):
    dataset = make_dataset(LENGTHS)
    state = EpisodeSampler(dataset, 4, 8, seed=0).state_dict()
    with pytest.raises(ValueError, match=rf"^sampler state: {name}: expected "):
        EpisodeSampler(dataset, *arguments).load_state_dict(state)
    with pytest.raises(ValueError, match=r"^sampler state: expected one of windows, got one of whole episodes$"):
        WindowSampler(dataset, 4, 8, seed=0).load_state_dict(state)
    with pytest.raises(ValueError, match=r"^sampler state: expected one of whole episodes, got one of windows$"):
        EpisodeSampler(dataset, 4, 8, seed=0).load_state_dict(WindowSampler(dataset, 4, 8, seed=0).state_dict())


@pytest.mark.parametrize("rows", [1, 2, 4, 9])
@pytest.mark.parametrize("context", [1, 3, 30])
def test_one_pass_goes_through_every_episode_once_in_order(make_dataset, rows, context):
    dataset = numbered(make_dataset(LENGTHS))
    found: list[list[int]] = []
    side_by_side: list[list[int]] = []
    for batch in iterate_episodes(dataset, context, rows):
        steps = steps_of(batch)
        if not batch.timesteps[0, 0]:
            found += side_by_side
            side_by_side = [[] for _ in steps]
        assert 0 < len(steps) <= len(side_by_side) <= rows
        for row, more in enumerate(steps):
            assert more
            side_by_side[row] += more
    assert sorted(found + side_by_side) == [list(range(*bounds)) for bounds in _bounds(dataset)]
