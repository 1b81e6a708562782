import numpy as np
import pytest

from scanrl.data.dataset import Dataset
from scanrl.data.validate import check, nonfinite_episodes


@pytest.fixture
def changed(make_dataset):
    """The dataset of 7, 1, 12 and 5 steps with entries of one column replaced."""

    def change(field, step, value, choices=0):
        dataset = make_dataset(choices=choices)
        column = dataset.columns[field].copy()
        column[step] = value
        return Dataset({**dataset.columns, field: column}, dataset.offsets, dataset.spec, "log")

    return change


@pytest.mark.parametrize("choices", [0, 3])
def test_sound_data_has_no_problems(make_dataset, choices):
    assert check(make_dataset(choices=choices)) == []


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("field", ["observations", "actions", "rewards"])
@pytest.mark.parametrize(
    "step, place", [(8, "episode 2: step 0"), (19, "episode 2: step 11"), (7, "episode 1: step 0")]
)
def test_a_number_that_is_not_finite_is_named_by_episode_and_step(changed, field, value, step, place):
    dataset = changed(field, step, value)
    assert check(dataset) == [f"log: {place}: {field}: expected finite numbers, got {value}"]
    assert nonfinite_episodes(dataset).tolist() == [int(place.split()[1].rstrip(":"))]


def test_further_steps_that_are_not_finite_are_counted(changed):
    dataset = changed("rewards", [3, 9, 24], np.nan)
    assert check(dataset) == ["log: episode 0: step 3: rewards: expected finite numbers, got nan (and in 2 more steps)"]
    assert nonfinite_episodes(dataset).tolist() == [0, 2, 3]


@pytest.mark.parametrize("field", ["terminations", "truncations"])
def test_a_flag_inside_an_episode_is_named(changed, field):
    [problem] = check(changed(field, 11, True))
    assert problem == (
        f"log: episode 2: step 3: {field}: expected true at the last step of an episode only, got true before it"
    )


def test_both_flags_at_once_are_named(changed):
    [problem] = check(changed("truncations", 24, True))
    assert problem == ("log: episode 3: step 4: truncations: expected false where terminations is true, got true")


@pytest.mark.parametrize("value", [-1, 3])
def test_a_choice_out_of_range_is_named(changed, value):
    [problem] = check(changed("actions", 12, value, choices=3))
    assert problem == f"log: episode 2: step 4: actions: expected 0 to 2, got {value}"


def test_every_kind_of_problem_is_listed(changed):
    dataset = changed("actions", 12, 9, choices=3)
    dataset.rewards[0] = np.nan
    dataset.truncations[-1] = True
    assert [problem.split(": ")[3] for problem in check(dataset)] == ["rewards", "truncations", "actions"]
