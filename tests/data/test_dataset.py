import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scanrl.data.dataset import Dataset
from scanrl.stats import Stats, return_scale
from scanrl.types import COLUMNS, DataError, Spec, Trajectory


def equal(first: Dataset, second: Dataset) -> bool:
    columns = all(np.array_equal(first.columns[field], second.columns[field]) for field in COLUMNS)
    types = all(first.columns[field].dtype == second.columns[field].dtype for field in COLUMNS)
    return columns and types and np.array_equal(first.offsets, second.offsets) and first.spec == second.spec


def arrays_of(flat):
    names = {"terminals": "terminations", "timeouts": "truncations"}
    return {names.get(name, name): array for name, array in flat.items()}


def test_flat_arrays_are_cut_at_terminations_and_truncations(flat):
    dataset = Dataset.from_arrays(**arrays_of(flat))
    assert dataset.lengths.tolist() == [50, 30, 1, 19]
    assert dataset.truncations.sum() == 1
    assert dataset[2].truncations.tolist() == [True]


def test_an_unfinished_last_episode_is_kept_as_truncated_or_dropped(flat):
    arrays = {name: array[:95] for name, array in arrays_of(flat).items()}
    kept = Dataset.from_arrays(**arrays)
    assert kept.lengths.tolist() == [50, 30, 1, 14]
    assert kept[3].truncations.tolist() == [False] * 13 + [True]
    assert Dataset.from_arrays(**arrays, tail="drop").lengths.tolist() == [50, 30, 1]


def test_a_step_with_both_flags_is_a_termination(flat):
    arrays = arrays_of(flat)
    arrays["truncations"][49] = True
    assert not Dataset.from_arrays(**arrays).truncations[49]


def test_episode_ids_decide_where_episodes_end(flat):
    arrays = arrays_of(flat)
    ids = np.repeat([5, 2, 9], [50, 31, 19])
    arrays["truncations"][:] = False
    arrays["terminations"][79] = False
    dataset = Dataset.from_arrays(**arrays, episode_ids=ids)
    assert dataset.lengths.tolist() == [50, 31, 19]
    assert np.flatnonzero(dataset.truncations).tolist() == [80]


def test_an_episode_id_that_comes_back_is_refused(flat):
    with pytest.raises(DataError, match=r"^log: step 80: episode_ids: expected .* in one run, got 1 again$"):
        Dataset.from_arrays(**arrays_of(flat), episode_ids=np.repeat([1, 2, 1], [50, 30, 20]), name="log")


def test_nothing_that_ends_an_episode_is_an_error(flat):
    arrays = arrays_of(flat) | {"truncations": None, "terminations": np.zeros(100)}
    with pytest.raises(DataError, match=r"^log: truncations: expected .* got none \(missing boundaries"):
        Dataset.from_arrays(**arrays, name="log")


@pytest.mark.parametrize("field", ["observations", "actions", "terminations", "truncations"])
def test_unequal_lengths_name_the_field_and_both_counts(flat, field):
    arrays = arrays_of(flat)
    arrays[field] = arrays[field][:-1]
    with pytest.raises(DataError, match=rf"^log: {field}: expected 100 values, got 99$"):
        Dataset.from_arrays(**arrays, name="log")


@pytest.mark.parametrize("wrong", [np.array(["a"] * 100), np.array([None] * 100), np.float32(1)])
def test_values_that_are_no_numbers_are_refused(flat, wrong):
    with pytest.raises(DataError, match=r"^log: rewards: expected an array of numbers, got "):
        Dataset.from_arrays(**{**arrays_of(flat), "rewards": wrong}, name="log")


def test_flags_other_than_0_and_1_are_refused(flat):
    with pytest.raises(DataError, match=r"^log: step 3: terminations: expected 0 or 1, got 2$"):
        Dataset.from_arrays(**{**arrays_of(flat), "terminations": np.where(np.arange(100) == 3, 2, 0)}, name="log")


LAYOUTS = {
    "float64": lambda x: x.astype(np.float64),
    "big endian": lambda x: x.astype(x.dtype.newbyteorder(">")),
    "Fortran order": np.asfortranarray,
    "negative stride": lambda x: x[::-1].copy()[::-1],
    "every second row": lambda x: np.repeat(x, 2, axis=0)[::2],
    "list": lambda x: x.tolist(),
}


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_number_type_byte_order_and_stride_do_not_matter(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    n = data.draw(st.integers(1, 20))
    arrays = {
        "observations": rng.integers(-100, 100, (n, 3)).astype(np.float32),
        "actions": rng.normal(size=(n, 2)).astype(np.float32),
        "rewards": rng.normal(size=n).astype(np.float32),
        "terminations": rng.random(n) < 0.3,
        "truncations": rng.random(n) < 0.3,
    }
    others = {name: LAYOUTS[data.draw(st.sampled_from(sorted(LAYOUTS)))](array) for name, array in arrays.items()}
    integers = {"observations": arrays["observations"].astype(np.int8), "terminations": arrays["terminations"] * 1}
    reference = Dataset.from_arrays(**arrays)
    assert equal(reference, Dataset.from_arrays(**others))
    assert equal(reference, Dataset.from_arrays(**{**arrays, **integers}))
    assert reference.fingerprint == Dataset.from_arrays(**others).fingerprint


@pytest.mark.parametrize("shape", [(100,), (100, 1)])
def test_integer_actions_are_choices(flat, shape):
    actions = (np.arange(100) % 4).astype(np.int16).reshape(shape)
    dataset = Dataset.from_arrays(**{**arrays_of(flat), "actions": actions})
    assert (dataset.spec.action_kind, dataset.spec.action_size) == ("discrete", 4)
    assert dataset.actions.dtype == np.int64
    assert dataset.actions.shape == (100,)


def test_trajectories_come_back_as_they_went_in(make_dataset):
    dataset = make_dataset()
    again = Dataset.from_trajectories(list(dataset), spec=dataset.spec)
    assert equal(dataset, again)
    assert len(again) == 4
    assert again[-1].rewards.tolist() == dataset[3].rewards.tolist()
    with pytest.raises(IndexError):
        dataset[4]


def test_trajectories_that_end_without_a_flag_are_marked_truncated(make_dataset):
    whole = make_dataset((4, 6))[1]
    open_end = replace(whole, terminations=np.zeros(6, bool))
    both = replace(whole, truncations=whole.terminations.copy())
    dataset = Dataset.from_trajectories([open_end, whole, both])
    assert np.flatnonzero(dataset.truncations).tolist() == [5]
    assert np.flatnonzero(dataset.terminations).tolist() == [11, 17]
    assert not open_end.truncations.any()  # what was handed in stays as it was


def test_episodes_without_steps_are_left_out_with_a_count(make_dataset, caplog):
    dataset = make_dataset((4, 6))
    empty = Trajectory(*(getattr(dataset[0], field)[:0] for field in COLUMNS))
    again = Dataset.from_trajectories([empty, *dataset, empty], name="log", spec=dataset.spec)
    assert equal(dataset, again)
    assert "log: left out 2 episodes without steps" in caplog.text
    with pytest.raises(DataError, match=r"^log: expected at least one episode with a step, got 1 episodes$"):
        Dataset.from_trajectories([empty], name="log")


def test_a_change_of_observation_size_names_both_episodes_and_shapes(make_dataset):
    first = make_dataset((3,) * 8)
    episodes = list(first)
    wide = np.zeros((3, 4), np.float32)
    episodes[7] = Trajectory(wide, *(getattr(episodes[7], field) for field in COLUMNS[1:]))
    message = r"^log: episode 7: observations: expected shape \(3,\) as in episode 0, got \(4,\)$"
    with pytest.raises(DataError, match=message):
        Dataset.from_trajectories(episodes, name="log")


def test_columns_that_do_not_fit_the_spec_are_refused(make_dataset):
    dataset = make_dataset()
    with pytest.raises(DataError, match=r"^log: actions: expected int64 \(25,\), got float32 \(25, 2\)$"):
        Dataset(dataset.columns, dataset.offsets, Spec((3,), "discrete", 2), "log")
    with pytest.raises(DataError, match=r"^log: episode 1: expected at least one step, got none$"):
        Dataset(dataset.columns, np.array([0, 7, 7, 25]), dataset.spec, "log")
    with pytest.raises(DataError, match=r"^log: episode_offsets: expected int64 from 0 to 25, got int64"):
        Dataset(dataset.columns, np.array([0, 7, 24]), dataset.spec, "log")


@settings(deadline=None, max_examples=30)
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_return_to_go_includes_the_reward_of_its_own_step(make_dataset, lengths, seed):
    dataset = make_dataset(lengths, seed)
    for episode, (start, end) in enumerate(zip(dataset.offsets[:-1], dataset.offsets[1:], strict=True)):
        rewards = dataset[episode].rewards.astype(np.float64)
        naive = [sum(rewards[t:]) for t in range(len(rewards))]
        np.testing.assert_allclose(dataset.returns_to_go[start:end], naive, rtol=1e-6)
        assert dataset.returns[episode] == pytest.approx(naive[0], rel=1e-12)
        assert dataset.timesteps[start:end].tolist() == list(range(len(rewards)))


def test_returns_to_go_of_one_episode_do_not_see_the_rewards_of_another(make_dataset):
    dataset = make_dataset((5, 5, 5))
    rewards = dataset.rewards.copy()
    rewards[7] = np.inf
    broken = Dataset({**dataset.columns, "rewards": rewards}, dataset.offsets, dataset.spec)
    assert np.array_equal(broken.returns_to_go[:5], dataset.returns_to_go[:5])
    assert np.array_equal(broken.returns_to_go[10:], dataset.returns_to_go[10:])


def test_long_returns_are_accumulated_in_float64():
    n = 1_000_000
    ends = np.arange(n) == n - 1
    rewards = np.full(n, 0.1, np.float32)
    columns = {"observations": np.zeros((n, 1)), "actions": np.zeros((n, 1)), "rewards": rewards, "terminations": ends}
    dataset = Dataset.from_arrays(**columns)
    exact = float(np.float32(0.1)) * n
    assert dataset.returns_to_go[0] == np.float32(exact)
    assert dataset.returns[0] == pytest.approx(exact, rel=1e-12)


def test_a_selection_holds_the_chosen_episodes_in_order(make_dataset):
    dataset = make_dataset()
    chosen = dataset.select([2, -4, 2])
    assert chosen.lengths.tolist() == [12, 7, 12]
    for mine, theirs in zip(chosen, (dataset[2], dataset[0], dataset[2]), strict=True):
        assert all(np.array_equal(getattr(mine, field), getattr(theirs, field)) for field in COLUMNS)
    with pytest.raises(DataError, match=r"^toy: expected at least one episode, got none$"):
        dataset.select([])


@settings(deadline=None, max_examples=30)
@given(count=st.integers(2, 12), fraction=st.floats(0, 1), seed=st.integers(0, 99))
def test_a_split_shares_no_episode_loses_none_and_repeats(make_dataset, count, fraction, seed):
    dataset = make_dataset(range(1, count + 1))
    train, held_out = dataset.split(fraction, seed)
    assert sorted([*train.lengths, *held_out.lengths]) == list(range(1, count + 1))
    assert abs(len(held_out) - fraction * count) <= 1
    again, _ = dataset.split(fraction, seed)
    assert equal(train, again)


def test_the_best_are_the_highest_returns_that_fit_into_a_share_of_the_steps(make_dataset):
    dataset = make_dataset((4, 2, 3, 1, 10))
    dataset.rewards[:] = np.repeat([5, 30, 20, 100, 1], dataset.lengths) / np.repeat(dataset.lengths, dataset.lengths)
    # Returns 5, 30, 20, 100, 1; by return episodes 3, 1, 2, 0, 4 with 1, 3, 6, 10, 20 of 20 steps.
    for fraction, expected in [(0.0, [1]), (0.1, [1]), (0.15, [2, 1]), (0.49, [2, 3, 1]), (0.5, [4, 2, 3, 1])]:
        assert dataset.best(fraction).lengths.tolist() == expected, fraction
    assert dataset.best(1.0) is dataset
    with pytest.raises(ValueError, match=r"^fraction: expected a number from 0 to 1, got 2$"):
        dataset.best(2)


def test_a_share_is_drawn_and_lies_in_larger_ones(make_dataset):
    dataset = make_dataset((3, 4, 5, 6, 7, 8, 9, 10))
    found = {seed: [set(dataset.share(k / 8, seed).lengths.tolist()) for k in range(9)] for seed in (0, 1)}
    for shares in found.values():
        assert [len(share) for share in shares] == [1, 1, 2, 3, 4, 5, 6, 7, 8]
        assert all(smaller <= larger for smaller, larger in itertools.pairwise(shares))
    assert found[0][4] != found[1][4]
    assert dataset.share(1.0, 0) is dataset
    with pytest.raises(ValueError, match=r"^fraction: expected a number from 0 to 1, got -1$"):
        dataset.share(-1, 0)


def test_one_episode_cannot_be_split(make_dataset):
    with pytest.raises(DataError, match=r"^toy: expected at least 2 episodes to split, got 1$"):
        make_dataset((3,)).split(0.5, 0)
    with pytest.raises(ValueError, match=r"^fraction: expected a number from 0 to 1, got 3$"):
        make_dataset().split(3, 0)


def test_the_fingerprint_changes_with_any_value_and_with_the_cut(make_dataset):
    dataset = make_dataset()
    prints = {dataset.fingerprint}
    for field in COLUMNS:
        column = dataset.columns[field].copy()
        column[3] = ~column[3] if column.dtype == bool else column[3] + 1
        prints.add(Dataset({**dataset.columns, field: column}, dataset.offsets, dataset.spec).fingerprint)
    prints.add(Dataset(dataset.columns, np.array([0, 8, 25]), dataset.spec).fingerprint)
    prints.add(Dataset(dataset.columns, dataset.offsets, Spec((3,), "continuous", 2)).fingerprint)
    assert len(prints) == 8
    assert Dataset(dataset.columns, dataset.offsets, dataset.spec, "other").fingerprint == dataset.fingerprint


def test_the_repr_shows_shapes_and_counts(make_dataset):
    assert repr(make_dataset()) == "Dataset('toy', episodes=4, steps=25, observations=(25, 3), actions=(25, 2))"


def test_stats_are_the_moments_of_all_steps(make_dataset):
    dataset = make_dataset((20, 30))
    stats = Stats.fit(dataset)
    np.testing.assert_allclose(stats.observation_mean, dataset.observations.mean(0, np.float64), rtol=1e-6)
    np.testing.assert_allclose(stats.observation_std, dataset.observations.std(0, np.float64) + 1e-6, rtol=1e-6)
    assert stats.max_length == 30
    assert stats.return_max == dataset.returns.max()
    assert stats.return_mean == dataset.returns.mean()
    assert stats.reward_scale == return_scale(np.abs(dataset.rewards).max())
    assert stats.action_low is not None
    assert np.array_equal(stats.action_low, dataset.actions.min(0))


def test_a_feature_that_never_changes_has_deviation_one(make_dataset):
    dataset = make_dataset()
    observations = dataset.observations.copy()
    observations[:, 1] = 1e6 + 0.1
    constant = Dataset({**dataset.columns, "observations": observations}, dataset.offsets, dataset.spec)
    assert Stats.fit(constant).observation_std[1] == 1


def test_action_bounds_are_the_environments_where_it_has_finite_ones(make_dataset):
    dataset = make_dataset()
    spec = Spec((3,), "continuous", 2, (-2.0, -np.inf), (2.0, np.inf))
    stats = Stats.fit(Dataset(dataset.columns, dataset.offsets, spec))
    assert stats.action_low is not None
    assert stats.action_low.tolist() == [-2, dataset.actions[:, 1].min()]
    discrete = Stats.fit(make_dataset(choices=3))
    assert discrete.action_low is None
    assert discrete.action_high is None


@pytest.mark.parametrize(
    "largest, scale",
    [(3600, 1000), (12135, 10000), (1000, 1000), (999.9, 100), (1, 1), (4, 1), (0.25, 0.1), (0, 1), (np.inf, 1)],
)
def test_the_return_scale_brings_returns_near_one(largest, scale):
    assert return_scale(largest) == scale


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 999), choices=st.sampled_from([0, 3]))
def test_stats_keep_every_bit_through_json(make_dataset, seed, choices):
    stats = Stats.fit(make_dataset(seed=seed, choices=choices))
    again = Stats.from_json(json.loads(json.dumps(stats.to_json())))
    assert again == stats
    assert again.observation_mean.dtype == np.float32


def test_rewards_have_a_scale_of_their_own(make_dataset):
    dataset = make_dataset((100, 100))
    sparse = Dataset({**dataset.columns, "rewards": np.ones(200, np.float32)}, dataset.offsets, dataset.spec)
    stats = Stats.fit(sparse)
    assert (stats.return_scale, stats.reward_scale) == (100, 1)
    older = stats.to_json()
    del older["reward_scale"]
    assert Stats.from_json(older).reward_scale == 100  # which it was trained with


def test_stats_with_a_missing_or_unknown_field_are_refused(make_dataset):
    values = Stats.fit(make_dataset()).to_json()
    with pytest.raises(DataError, match=r"^stats: return_scal: expected "):
        Stats.from_json({**values, "return_scal": 1.0})
    del values["return_max"]
    with pytest.raises(DataError, match=r"^stats: return_max: expected "):
        Stats.from_json(values)
