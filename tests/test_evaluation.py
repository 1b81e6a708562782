"""Scores: statistics checked against values worked out by hand, intervals against how often they should be right."""

import inspect
import json
from dataclasses import replace

import numpy as np
import pytest

from scanrl import cli
from scanrl.evaluation import (
    EPISODES,
    NUM_ENVS,
    SEED,
    Scores,
    bootstrap_interval,
    describe_runs,
    evaluate,
    interquartile_mean,
    normalize,
    stratified_bootstrap,
)
from scanrl.intervals import mean
from scanrl.rollout import RandomActor, environment_spec
from scanrl.scoring import score_run
from scanrl.settings import EvalConfig
from scanrl.types import DataError


class Pushing:
    """A policy whose torque is its target divided by 1000."""

    context = 20

    def __init__(self, target: float | None = 1000.0) -> None:
        self.target_return = target

    def with_target(self, target: float) -> "Pushing":
        return Pushing(None if self.target_return is None else target)

    def reset(self, count: int) -> None:
        pass

    def act(self, observations, rewards, first):
        return np.full((len(first), 1), (self.target_return or 0.0) / 1000, np.float32)


def scores(returns, env_id="Hopper-v5") -> Scores:
    values = np.array(returns, np.float64)
    return Scores(values, np.full(len(values), 10), env_id, "recurrent", 0)


def test_each_target_is_scored_on_the_same_initial_states():
    evaluation = evaluate(Pushing(), "Pendulum-v1", episodes=3, targets=[-500, 2000])
    assert [s.target_return for s in evaluation.scores] == [-500, 2000]
    a, b = evaluation.trajectories
    assert len(a) == len(b) == 3
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x.observations[0], y.observations[0])
    np.testing.assert_array_equal(evaluation.scores[0].returns, [e.total_reward for e in a])
    assert evaluation.scores[0].mean != evaluation.scores[1].mean


def test_metric_names_are_the_documented_ones():
    evaluation = evaluate(Pushing(), "Pendulum-v1", episodes=2, targets=[-500, 2000], success=lambda e: len(e) == 200)
    metrics = evaluation.summary()
    assert metrics["eval/return_mean"] == evaluation.scores[0].mean
    assert metrics["eval/target_2000/return_mean"] == evaluation.scores[1].mean
    assert metrics["eval/target_-500/length_mean"] == 200
    assert metrics["eval/success_rate"] == 1.0
    assert {"eval/return_std", "eval/normalized_score"} <= set(metrics)


def test_one_target_has_plain_names_only():
    metrics = evaluate(Pushing(), "Pendulum-v1", episodes=2).summary()
    assert not [name for name in metrics if "target" in name]
    assert "eval/success_rate" not in metrics


def test_scores_say_what_they_depend_on_and_survive_json():
    evaluation = evaluate(Pushing(), "Pendulum-v1", episodes=2, seed=5, dataset="abc")
    found = json.loads(json.dumps(evaluation.to_json()))[0]
    assert (found["env_id"], found["env_version"], found["context"], found["seed"]) == ("Pendulum-v1", 1, 20, 5)
    assert (found["target_return"], found["dataset"]) == (1000.0, "abc")
    assert (found["num_envs"], found["checkpoint_step"]) == (2, None)  # never more rows than episodes
    assert {"gymnasium", "numpy"} <= set(found["versions"])
    assert "optimum" in found["normalized_by"]


def test_a_random_actor_is_scored_like_a_policy():
    evaluation = evaluate(RandomActor(environment_spec("CartPole-v1")), "CartPole-v1", episodes=50)
    low, high = evaluation.scores[0].interval or (0, 0)
    assert low < 21.9 < high
    assert abs(evaluation.summary()["eval/normalized_score"]) < 2


def test_targets_that_mean_nothing_are_refused():
    with pytest.raises(DataError, match="targets: expected at least one"):
        evaluate(Pushing(), "Pendulum-v1", targets=[])
    with pytest.raises(DataError, match=r"targets: expected none \(this policy takes no target return\), got \[1.0\]$"):
        evaluate(Pushing(None), "Pendulum-v1", targets=[1.0])


def test_a_score_is_made_with_the_same_settings_from_everywhere():
    def defaults(function):
        return {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()}

    found = [defaults(f) for f in (evaluate, score_run, cli.evaluate, EvalConfig)]
    assert [(d["episodes"], d["seed"], d["num_envs"]) for d in found] == [(EPISODES, SEED, NUM_ENVS)] * 4


def test_progress_runs_on_over_the_targets():
    seen: list[int] = []
    evaluate(Pushing(), "Pendulum-v1", episodes=2, targets=[1, 2], progress=seen.append)
    assert seen == sorted(seen)
    assert set(seen) == {0, 2, 4}  # both episodes of a target take 200 steps
    assert len(seen) == 400


def test_statistics_are_those_worked_out_by_hand():
    found = scores([1, 2, 3, 10])
    assert (found.mean, found.median, found.iqm, found.episodes) == (4.0, 2.5, 2.5, 4)
    assert found.std == pytest.approx(np.sqrt((9 + 4 + 1 + 36) / 4))
    assert replace(found, returns=np.array([3.0])).interval is None


def test_the_interquartile_mean_cuts_a_quarter_from_each_end():
    assert interquartile_mean(np.array([0, 1, 2, 3, 4, 5, 6, 100])) == 3.5
    assert interquartile_mean(np.array([100, 1, 2])) == pytest.approx(103 / 3)  # nothing to cut
    assert interquartile_mean(np.array([9, 1, 2, 3, -50])) == 2.0
    np.testing.assert_array_equal(interquartile_mean(np.array([[0, 1, 3, 9], [4, 4, 4, 4]])), [2, 4])


def test_the_mean_of_few_values_has_students_interval():
    # t with 1, 2, 4 and 6 degrees of freedom at 97.5 %, from printed tables
    for size, quantile in ((2, 12.706), (3, 4.303), (5, 2.776), (7, 2.447)):
        values = np.random.default_rng(size).normal(3.0, 2.0, size)
        half = quantile * values.std(ddof=1) / np.sqrt(size)
        expected = (values.mean() - half, values.mean() + half)
        assert bootstrap_interval(values) == pytest.approx(expected, abs=1e-3 * half)
        assert stratified_bootstrap(values, statistic=mean) == pytest.approx(expected, abs=1e-3 * half)
    assert bootstrap_interval([2.0, 2.0, 2.0]) == (2.0, 2.0)
    assert bootstrap_interval([1.0, 2.0, 4.0], confidence=0.5) == pytest.approx(
        (7 / 3 - 0.7201, 7 / 3 + 0.7201), rel=1e-3
    )


def test_three_runs_have_the_same_interval_for_both_statistics():
    runs = np.array([60.0, 70.0, 95.0])
    assert stratified_bootstrap(runs) == stratified_bootstrap(runs, statistic=mean)


def test_a_wide_sample_gives_the_interval_of_the_normal_distribution():
    values = np.random.default_rng(0).normal(5.0, 2.0, 2000)
    low, high = bootstrap_interval(values, resamples=4000)
    half = 1.96 * values.std() / np.sqrt(2000)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.01)


def test_few_values_give_the_width_of_students_interval():
    values = np.array([-4.0, -2.5, -1.5, -1.0, -0.2, 0.2, 1.0, 1.5, 2.5, 4.0])
    half = 2.262157 * values.std(ddof=1) / np.sqrt(10)  # t with 9 degrees of freedom at 97.5 %
    low, high = bootstrap_interval(values, resamples=200_000)
    assert (high - low) / 2 == pytest.approx(half, rel=0.025)


def test_runs_are_drawn_for_each_task_on_its_own():
    one = np.random.default_rng(3).normal(size=(40, 1))
    widths = []
    for scores_of_tasks in (one, np.repeat(one, 4, axis=1)):
        low, high = stratified_bootstrap(scores_of_tasks, statistic=mean) or (0, 0)
        widths.append(high - low)
    assert widths[1] == pytest.approx(widths[0] / 2, rel=0.06)


def test_the_same_seed_gives_the_same_interval():
    values = np.arange(12.0) ** 2
    assert bootstrap_interval(values) == bootstrap_interval(values)
    low, high = bootstrap_interval(values, confidence=0.5)
    wide = bootstrap_interval(values)
    assert wide[0] < low < values.mean() < high < wide[1]


@pytest.mark.parametrize(
    "successes, count, expected",
    # Newcombe 1998, Two-sided confidence intervals for the single proportion, table I, method 3
    [(81, 263, (0.2553, 0.3662)), (15, 148, (0.0624, 0.1605)), (0, 20, (0.0, 0.1611)), (1, 29, (0.0061, 0.1718))],
)
def test_successes_have_wilsons_interval(successes, count, expected):
    values = [1.0] * successes + [0.0] * (count - successes)
    assert bootstrap_interval(values) == pytest.approx(expected, abs=5e-5)
    low, high = bootstrap_interval([1 - value for value in values])
    assert (1 - high, 1 - low) == pytest.approx(expected, abs=5e-5)


def test_one_value_has_no_interval():
    with pytest.raises(DataError, match="expected a vector of 2 or more"):
        bootstrap_interval([1.0])


@pytest.mark.parametrize("size", [10, 30])
@pytest.mark.parametrize("draw", ["normal", "uniform"])
def test_intervals_hold_the_truth_as_often_as_they_promise(size, draw):
    rng = np.random.default_rng(size)
    truth = 0.0 if draw == "normal" else 0.5
    held = 0
    for k in range(1000):
        low, high = bootstrap_interval(getattr(rng, draw)(size=size), resamples=1000, seed=k)
        held += low <= truth <= high
    assert 930 <= held <= 970


def test_intervals_over_seeds_and_tasks_hold_the_truth_as_often_as_they_promise():
    rng = np.random.default_rng(1)
    held = 0
    for k in range(1000):  # tasks differ widely: drawing runs across tasks instead of within would be far too wide
        low, high = stratified_bootstrap(
            rng.normal([0.0, 50.0, 100.0], 1.0, (10, 3)), resamples=1000, seed=k, statistic=mean
        ) or (0, 0)
        held += low <= 50.0 <= high
        assert high - low < 3.0
    assert 930 <= held <= 970


@pytest.mark.parametrize("size", [2, 3, 5, 7])
def test_intervals_of_few_values_hold_the_truth_as_often_as_they_promise(size):
    drawn = np.random.default_rng(size).normal(50.0, 10.0, (3000, size))
    held = [low <= 50.0 <= high for low, high in map(bootstrap_interval, drawn)]
    assert 0.93 <= np.mean(held) <= 0.97


@pytest.mark.parametrize("spread", [(1.0, 1.0, 1.0), (1.0, 5.0, 20.0)])
def test_intervals_of_few_runs_on_several_tasks_hold_the_truth_as_often_as_they_promise(spread):
    rng = np.random.default_rng(4)
    held = 0
    for _ in range(2000):
        low, high = stratified_bootstrap(rng.normal([0.0, 50.0, 100.0], spread, (4, 3)), statistic=mean) or (0, 0)
        held += low <= 50.0 <= high
    assert 0.93 <= held / 2000 <= 0.975


def test_one_training_run_has_no_interval_over_seeds():
    assert stratified_bootstrap(np.array([[1.0, 2.0]])) is None
    assert describe_runs(np.array([70.0])) == "mean 70.0, 1 seed, no interval over seeds"
    assert describe_runs(np.array([[70.0], [70.0]])) == "mean 70.0, 95 % interval 70.0 to 70.0 over 2 seeds"
    assert describe_runs(np.ones((3, 2))).endswith("over 3 seeds x 2 tasks")
    assert describe_runs(np.ones((8, 1))) == "IQM 1.0, 95 % interval 1.0 to 1.0 over 8 seeds"


def test_a_vector_of_scores_is_one_of_runs_and_not_of_tasks():
    runs = np.array([70.1, 64.9, 81.2, 77.5, 58.8])
    assert describe_runs(runs) == describe_runs(runs[:, None]) == "mean 70.5, 95 % interval 59.2 to 81.8 over 5 seeds"
    assert stratified_bootstrap(runs) == stratified_bootstrap(runs[:, None])
    for wrong in (np.array(3.0), np.ones((2, 2, 2)), np.ones((0, 2)), np.ones(0)):
        with pytest.raises(DataError, match=r"expected \(runs, tasks\) or \(runs,\), got shape"):
            describe_runs(wrong)


def test_normalisation_puts_random_at_zero_and_expert_at_a_hundred():
    np.testing.assert_allclose(normalize("Hopper-v5", [-20.272305, 3234.3]), [0.0, 100.0])
    assert normalize("Hopper-v5", 1607.0) == pytest.approx(50.0, abs=0.01)
    assert normalize("Unheard-v0", [1.0]) is None
    assert scores([1.0], "Unheard-v0").normalized is None
