"""Atari games as PPO learns them, and whole games recorded from what it has learned."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from scanrl.envs.make import make_environment
from tools import record_atari
from tools.record_atari import StackedPlayer, TrainingGame


class Lives(gym.Env):
    """A game of two lives of three steps each; every step is worth its number, and the picture shows it."""

    observation_space = gym.spaces.Box(0, 255, (2, 3), np.uint8)
    action_space = gym.spaces.Discrete(4)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.number = 0
        return self._picture(), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict]:
        assert type(action) is np.int64
        self.number += 1
        return self._picture(), 2.0 * self.number, self.number == 6, False, {"lives": 2 - self.number // 3}

    def _picture(self) -> np.ndarray:
        return np.full((2, 3), self.number, np.uint8)


def test_a_life_is_an_episode_and_rewards_are_signs() -> None:
    game = TrainingGame(Lives())
    picture, _ = game.reset(seed=0)
    assert picture.shape == game.observation_space.shape == (2, 3, 1)
    seen = []
    for _ in range(12):
        picture, reward, terminated, truncated, _ = game.step(1)
        seen.append((int(picture[0, 0, 0]), reward, terminated))
        assert not truncated
        if terminated:
            picture, _ = game.reset()
            seen.append((int(picture[0, 0, 0]), 0.0, False))
    # The first step of a game shows how many lives there are; a reset between two lives takes one step of the game.
    game_of_two = [(n, 1.0, n in (3, 6)) for n in range(1, 7) if n != 4]
    game_of_two.insert(3, (4, 0.0, False))
    assert seen[:7] == [*game_of_two, (0, 0.0, False)]
    assert seen[7:14] == seen[:7]


def test_a_player_sees_the_last_pictures_of_its_own_row() -> None:
    shown = []

    def predict(pictures: np.ndarray, deterministic: bool) -> tuple[np.ndarray, None]:
        assert not deterministic
        shown.append(pictures[:, :, 0, 0].tolist())
        return np.zeros(len(pictures), np.int32), None

    player = StackedPlayer(SimpleNamespace(predict=predict), seed=0)
    player.reset(2)
    for step, first in enumerate(([True, True], [False, False], [False, True])):
        rows = np.stack([np.full((2, 3), 10 * row + step + 1, np.uint8) for row in range(2)])
        actions = player.act(rows, np.zeros(2), np.array(first))
        assert (actions.dtype, actions.shape) == (np.int64, (2,))
    assert shown[1] == [[0, 0, 1, 2], [0, 0, 11, 12]]
    assert shown[2] == [[0, 1, 2, 3], [0, 0, 0, 13]]
    player.reset(1)
    player.act(np.ones((1, 2, 3), np.uint8), np.zeros(1), np.array([True]))
    assert shown[3] == [[0, 0, 0, 1]]


def test_recording_leaves_what_the_training_draws_next(monkeypatch: pytest.MonkeyPatch) -> None:
    def rollout(player: StackedPlayer, *_: Any, **__: Any) -> list:
        player.reset(1)
        return [torch.rand(1)]

    monkeypatch.setattr(record_atari, "rollout", rollout)
    before = torch.random.get_rng_state()
    first, second = (record_atari.record("scanrl/Pong-v0", None, 1, 3, 5) for _ in range(2))
    assert first == second
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--out", "."], "--out: .: expected a new folder, got one that exists"),
        (["--out", "new", "--stages", "0"], "--stages: expected at least 1, got 0"),
    ],
)
def test_what_cannot_be_recorded_is_said_before_the_training(
    monkeypatch: pytest.MonkeyPatch, tmp_path, capsys, words: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["record_atari.py", "--game", "Pong", *words])
    with pytest.raises(SystemExit) as stopped:
        record_atari.main()
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


def test_lives_of_a_real_game_are_told() -> None:
    pytest.importorskip("ale_py")
    game = TrainingGame(make_environment("scanrl/Breakout-v0"))
    game.reset(seed=3)
    lengths, length = [], 0
    while len(lengths) < 5:  # five balls: the paddle stands in a corner
        _, reward, terminated, _, said = game.step(1 if length == 0 else 3)
        assert reward in (0.0, 1.0)
        length += 1
        if terminated:
            lengths.append((said["lives"], length))
            game.reset()
            length = 0
    assert [lives for lives, _ in lengths] == [4, 3, 2, 1, 0]
    game.close()


@pytest.mark.slow
def test_a_training_is_recorded_at_equal_distances() -> None:
    pytest.importorskip("ale_py")
    pytest.importorskip("stable_baselines3")
    stages = []

    def at_stage(steps: int, model: Any) -> None:
        games = record_atari.record("scanrl/Breakout-v0", model, 2, 0, 20)
        stages.append((steps, model._current_progress_remaining, [len(game.rewards) for game in games]))
        again = record_atari.record("scanrl/Breakout-v0", model, 2, 0, 20)
        assert all(np.array_equal(a.actions, b.actions) for a, b in zip(games, again, strict=True))

    record_atari.train("scanrl/Breakout-v0", 2048, 2, 0, "cpu", at_stage)
    assert [(steps, lengths) for steps, _, lengths in stages] == [(1024, [20, 20]), (2048, [20, 20])]
    assert stages[0][1] == pytest.approx(0.5)  # one schedule over all of it
    assert stages[1][1] == 0
