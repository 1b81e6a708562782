from dataclasses import replace

import pytest

from scanrl.checkpoint import load_checkpoint
from scanrl.data import read_store
from scanrl.scoring import SWEEP, score_run
from scanrl.stats import Stats
from scanrl.types import DataError
from tests.conftest import make_dataset
from tests.runs import CARTPOLE, TINY, fit


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return fit(tmp_path_factory.mktemp("scoring") / "run", data=make_dataset(CARTPOLE), overrides=TINY, steps=2)


def test_scores_say_what_they_depend_on(run):
    (scores,) = score_run(run.path, "CartPole-v1", episodes=3, num_envs=2, seed=5)
    found = run.checkpoint()
    assert (scores.env_id, scores.episodes, scores.seed, scores.context) == ("CartPole-v1", 3, 5, "recurrent")
    assert scores.target_return == found.stats.return_max
    assert scores.dataset == found.about["fingerprint"]
    assert (scores.num_envs, scores.checkpoint_step, scores.trained_context) == (2, 2, found.config.context)


def test_drawn_actions_depend_on_the_seed_of_the_draw_and_say_so(run):
    def lengths(**how):
        (scores,) = score_run(run.path, "CartPole-v1", episodes=6, **how)
        return scores.sample, scores.lengths.tolist()

    assert lengths(sample=True) == lengths(sample=True)
    assert lengths(sample=True)[0]
    assert lengths(sample=True)[1] != lengths()[1]
    assert not lengths()[0]


def test_targets_are_asked_for_in_their_order_and_auto_is_the_best_of_the_data(run):
    best = run.checkpoint().stats.return_max
    scores = score_run(run.path, "CartPole-v1", [7.0, "auto", -2.0], episodes=1, context=3)
    assert [s.target_return for s in scores] == [7.0, best, -2.0]
    assert {s.context for s in scores} == {3}


def test_a_sweep_goes_from_the_mean_of_the_data_to_its_best_even_below_zero(run, tmp_path, monkeypatch):
    original = Stats.fit
    monkeypatch.setattr(Stats, "fit", lambda data: replace(original(data), return_mean=-1200.0, return_max=-300.0))
    below = fit(tmp_path / "run", data=make_dataset(CARTPOLE), overrides=TINY, steps=1)
    for path in (run.path, below.path):
        stats = load_checkpoint(path).stats
        asked = [s.target_return for s in score_run(path, "CartPole-v1", None, episodes=1)]
        assert asked == sorted(asked)
        assert (asked[0], asked[-1]) == pytest.approx((stats.return_mean, stats.return_max))
        assert len(asked) == len(SWEEP)
    assert asked == pytest.approx([-1200, -900, -600, -300])


def test_a_run_is_scored_as_it_was_tried_in_training(tmp_path):
    run = fit(tmp_path / "run", data=make_dataset(CARTPOLE), overrides={**TINY, "eval.context": 3}, steps=1)
    assert [score_run(run.path, "CartPole-v1", episodes=1, **how)[0].context for how in ({}, {"context": 2})] == [3, 2]


@pytest.mark.parametrize("recipe", ["bc", "edt"])
def test_a_model_that_takes_no_target_plays_once_and_takes_no_number(tmp_path, recipe):
    path = fit(tmp_path / "run", recipe, data=make_dataset(CARTPOLE), steps=1).path
    for targets in (("auto",), None):
        (scores,) = score_run(path, "CartPole-v1", targets, episodes=2)
        assert scores.target_return is None
    with pytest.raises(DataError, match=r"targets: expected none .*, got \[5.0\]$"):
        score_run(path, "CartPole-v1", [5.0], episodes=1)


def test_the_episodes_of_all_targets_are_kept_on_request(run, tmp_path):
    scores = score_run(run.path, "CartPole-v1", [5.0, 9.0], episodes=2, save=tmp_path / "deep" / "played")
    played = read_store(tmp_path / "deep" / "played")
    assert played.returns.tolist() == [x for s in scores for x in s.returns.tolist()]
    assert played.spec.env_id == "CartPole-v1"


@pytest.mark.parametrize(
    "env, options, message",
    [
        (None, {}, r"run: env: expected an environment \(the run was trained without one\), got none$"),
        ("Pendulum-v1", {}, r"run: observation_shape: expected \(4,\), got \(3,\) \(from Pendulum-v1\)$"),
        ("MountainCar-v0", {}, r"run: observation_shape: expected \(4,\), got \(2,\)"),
        ("CartPole-v11", {}, r"CartPole-v11: no such environment; did you mean"),
        ("CartPole-v1", {"targets": [float("nan")]}, r"target_return: expected a finite number or auto, got nan$"),
        ("CartPole-v1", {"targets": []}, r"target_return: expected at least one, got none"),
        ("CartPole-v1", {"context": 0}, r"context: expected 'recurrent' or a number of steps, got 0"),
    ],
)
def test_what_does_not_fit_is_refused(run, env, options, message):
    with pytest.raises(DataError, match=message):
        score_run(run.path, env, **options)


def test_a_place_in_use_is_refused_before_anything_is_played(run, tmp_path):
    (tmp_path / "file").write_text("mine")
    for save in (tmp_path, tmp_path / "file"):
        with pytest.raises(DataError, match=r"expected a new or empty folder, got one in use$"):
            score_run(run.path, "CartPole-v1", save=save)
    assert (tmp_path / "file").read_text() == "mine"
