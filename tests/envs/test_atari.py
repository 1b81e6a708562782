"""Atari: what is shown, how an episode starts and ends, and the models the papers made for it."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

from scanrl.data import Dataset
from scanrl.data.windows import WindowSampler
from scanrl.envs import ATARI_GAMES
from scanrl.envs.atari import TARGETS, area_weights
from scanrl.envs.make import environment_spec, make_environment
from scanrl.envs.reference_scores import ATARI_SETS, reference_score
from scanrl.evaluation import normalize
from scanrl.models.atari import ATARI, ATARI_TRAINING
from scanrl.models.decision import DecisionModel
from scanrl.models.recipes import recipe
from scanrl.policy import Policy
from scanrl.rollout import RandomActor, rollout
from scanrl.stats import Stats
from scanrl.types import DataError, Spec

PONG = "scanrl/Pong-v0"


@pytest.fixture(scope="module")
def ale():
    return pytest.importorskip("ale_py")


def played(env: gym.Env, actions, seed: int = 3) -> list[tuple]:
    seen, _ = env.reset(seed=seed)
    return [(seen, 0.0), *((step[0], step[1]) for step in map(env.step, actions))]


def test_a_picture_is_a_grey_square_of_bytes(ale):
    spec = environment_spec(PONG)
    assert (spec.observation_shape, spec.observation_dtype, spec.frame_stack) == ((84, 84), "uint8", 4)
    assert (spec.action_kind, spec.action_size) == ("discrete", 6)
    seen, _ = make_environment(PONG).reset(seed=0)
    assert (seen.dtype, seen.shape) == (np.uint8, (84, 84))
    assert seen.min() < 60 < 100 < seen.max()


def test_a_step_is_four_frames_and_shows_the_brighter_of_the_last_two(ale):
    env, frames = make_environment(PONG).unwrapped, []
    env.reset(seed=1)
    for _ in range(40):
        env.step(1)
    state = env.ale.cloneState()
    seen, *_ = env.step(2)
    env.ale.restoreState(state)
    for _ in range(4):
        env.ale.act(env._actions[2])
        frames.append(env.ale.getScreenGrayscale())
    shown = np.maximum(frames[2], frames[3]).astype(float)
    expected = area_weights(210, 84) @ shown @ area_weights(160, 84).T
    np.testing.assert_allclose(seen, expected, atol=0.51)
    assert (frames[2] != frames[3]).any()


@pytest.mark.parametrize("size", [210, 160, 84, 85])
def test_areas_are_shared_out_completely(size):
    weights = area_weights(size, 84)
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-6)
    np.testing.assert_allclose(weights.sum(0), 84 / size, rtol=1e-5)
    np.testing.assert_allclose(weights, weights[::-1, ::-1], atol=1e-6)
    assert ((weights > 1e-6).sum(1) <= np.ceil(size / 84) + 1).all()


def test_a_seed_decides_the_episode_and_the_no_ops_before_it(ale):
    env = make_environment(PONG)
    actions = np.random.default_rng(0).integers(0, 6, 30)
    one, two, other = (played(env, actions, seed) for seed in (3, 3, 4))
    assert all((a[0] == b[0]).all() for a, b in zip(one, two, strict=True))
    assert any((a[0] != b[0]).any() for a, b in zip(one, other, strict=True))


def test_actions_are_repeated_at_random_only_where_asked_for(ale):
    """Half-way through an episode, the same actions from the same state lead to one future, or to several."""
    futures = {}
    for env_id in (PONG, "scanrl/Pong-sticky-v0"):
        env = make_environment(env_id).unwrapped
        env.reset(seed=0)
        for _ in range(20):
            env.step(1)
        state, ends = env.ale.cloneState(), set()
        for _ in range(4):
            env.ale.restoreState(state)
            ends.add(b"".join(env.step(action)[0].tobytes() for action in (2, 3) * 10))
        futures[env_id] = len(ends)
    assert futures[PONG] == 1
    assert futures["scanrl/Pong-sticky-v0"] > 1


def test_a_lost_life_does_not_end_an_episode(ale):
    env = make_environment("scanrl/Breakout-v0")
    env.reset(seed=0)
    lives = 5
    for _ in range(300):
        _, _, ended, cut, extra = env.step(1)  # serves and never moves
        if extra["lives"] < lives:
            lives = extra["lives"]
            assert ended == (lives == 0)
        if ended:
            break
    assert (ended, cut, lives) == (True, False, 0)


@pytest.mark.parametrize("game", ATARI_GAMES)
def test_every_game_is_there_with_its_targets_and_its_scale(ale, game):
    env = make_environment(f"scanrl/{game}-v0")
    assert env.observation_space.contains(env.reset(seed=0)[0])
    asked = {"Breakout": 90, "Qbert": 14000, "Pong": 20, "Seaquest": 1150}
    asked |= {"Asterix": 520, "Frostbite": 950, "Assault": 780, "Gopher": 2750}
    assert TARGETS[game]["code"] == asked[game]
    assert reference_score(f"scanrl/{game}-v0") is not None


def test_published_scores_come_out_of_the_set_they_stand_on():
    assert normalize("scanrl/Breakout-v0", 76.9) == pytest.approx(267.5, abs=0.05)
    (low, high), raw = next(sets["Qbert"] for name, sets in ATARI_SETS.items() if "(b)" in name), 5786.0
    assert 100 * (raw - low) / (high - low) == pytest.approx(42.3, abs=0.05)
    reference = reference_score("scanrl/Pong-sticky-v0")
    assert reference is not None
    assert "set (a)" in reference.source


@pytest.mark.parametrize("name", ATARI)
def test_the_papers_atari_models_are_their_recipes_with_changes(name):
    assert ATARI_TRAINING[name]["learning_rate"] == 6e-4
    spec = Spec((84, 84), "discrete", 4, observation_dtype="uint8", frame_stack=4)
    config = recipe(name, **ATARI[name]).model
    model = DecisionModel(config, spec, Stats.fit(_recorded(spec)))
    assert len(model.stack.initial_state(1)) == 12
    batch = WindowSampler(_recorded(spec), config.context, 2, 0).sample()
    model.loss(batch).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert Policy(model.eval()).act(np.zeros((2, 84, 84), np.uint8)).shape == (2,)


def _recorded(spec: Spec) -> Dataset:
    rng = np.random.default_rng(0)
    return Dataset.from_arrays(
        observations=rng.integers(0, 256, (40, 84, 84), dtype=np.uint8),
        actions=np.arange(40) % 4,
        rewards=np.ones(40),
        terminations=np.zeros(40, bool),
        spec=spec,
        episode_ids=np.zeros(40),
    )


def test_a_model_is_trained_and_plays(ale):
    spec = environment_spec(PONG)
    data = Dataset.from_trajectories(rollout(RandomActor(spec), PONG, episodes=1, max_steps=30), spec=spec)
    assert data.observations.dtype == np.uint8
    changes = {**ATARI["dmm-dc"], "pattern": "modal_conv mamba", "width": 16, "context": 4}
    model = DecisionModel(recipe("dmm-dc", **changes).model, spec, Stats.fit(data))
    again = rollout(Policy(model), PONG, episodes=1, max_steps=10)
    assert again[0].observations.shape == (10, 84, 84)


def test_without_the_emulator_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ale_py", None)
    with pytest.raises(
        DataError, match=r"^scanrl/Pong-v0: a package it needs is missing: .*pip install 'scanrl\[atari\]'$"
    ):
        make_environment(PONG)
