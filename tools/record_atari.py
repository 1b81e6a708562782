"""Train a player of an Atari game with PPO, and record whole games of it: local data, not DQN-replay.

    pip install 'scanrl[atari,sb3]'
    python tools/record_atari.py --game Breakout --out runs/breakout.store --device cuda

PPO of Stable-Baselines3 learns on the environment that models are evaluated in (`scanrl/GAME-v0`), with the usual help
in training only: four pictures stacked, rewards cut to their sign, a lost life ends an episode. What is recorded are
whole games with their own points, each picture once, of players saved on the way (`--stages`, equally far apart, the
last at the end), which draw their actions; so the data hold games of several qualities, as a replay buffer does. The
same seed gives the same recording on the same machine; recording leaves the training as it would be without.

Reference: Schulman et al. 2017, arXiv 1707.06347; settings as Stable-Baselines3's zoo has them for Atari.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces

from scanrl.data import Dataset, write_store
from scanrl.envs.atari import TARGETS
from scanrl.envs.make import environment_spec, make_environment
from scanrl.rollout import rollout
from scanrl.types import Trajectory

__all__ = ["StackedPlayer", "TrainingGame", "record", "train"]

STACK = 4
GAMES_SIDE_BY_SIDE = 8
SETTINGS: dict[str, Any] = {
    "n_steps": 128,
    "batch_size": 256,
    "n_epochs": 4,
    "vf_coef": 0.5,
    "ent_coef": 0.01,
    "max_grad_norm": 0.5,
}
RATE, CLIP = 2.5e-4, 0.1  # both fall to zero along a line


class TrainingGame(gym.Wrapper):
    """A game as PPO learns it: pictures with an axis for channels, signs of rewards, an episode to each life."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        assert env.observation_space.shape is not None
        self.observation_space = spaces.Box(0, 255, (*env.observation_space.shape, 1), np.uint8)
        self.lives, self.over = 0, True

    def reset(self, **options: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """A new game if the last one is over; else the next life, after a step that does nothing."""
        if self.over:
            picture, said = super().reset(**options)
            self.lives, self.over = 0, False
        else:
            picture, _, terminated, truncated, said = super().step(np.int64(0))
            if terminated or truncated:
                picture, said = super().reset(**options)
        self.lives = said.get("lives", 0)
        return picture[..., None], said

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        picture, reward, terminated, truncated, said = super().step(np.int64(action))
        self.over = terminated or truncated
        lost, self.lives = said["lives"] < self.lives, said["lives"]
        return picture[..., None], float(np.sign(reward)), terminated or lost, truncated, said


class StackedPlayer:
    """A model of Stable-Baselines3 as an actor of `rollout`: it keeps the last pictures of each row.

    Args:
        model: with a convolutional policy that reads `(STACK, H, W)` bytes.
        seed: of the actions it draws.
    """

    def __init__(self, model: Any, seed: int) -> None:
        self.model, self.seed = model, seed
        self._seen: np.ndarray | None = None

    def reset(self, count: int) -> None:
        """`count` fresh rows, and draws from the beginning."""
        torch.manual_seed(self.seed)
        self._seen = None

    def act(self, observations: np.ndarray, rewards: np.ndarray, first: np.ndarray) -> np.ndarray:
        """`(B,)` int64 for pictures `(B, H, W)`; before the first there were black ones."""
        if self._seen is None:
            self._seen = np.zeros((len(observations), STACK, *observations.shape[1:]), np.uint8)
        self._seen[first] = 0
        self._seen = np.roll(self._seen, -1, axis=1)
        self._seen[:, -1] = observations
        actions, _ = self.model.predict(self._seen, deterministic=False)
        return np.asarray(actions, np.int64)


def train(env: str, steps: int, stages: int, seed: int, device: str, at_stage: Callable[[int, Any], None]) -> None:
    """One training from beginning to end, interrupted at equal distances.

    Args:
        env: Gymnasium id of a game.
        steps: environment steps of the whole training, over all games side by side.
        stages: how often, the last time at the end.
        seed: of network and games.
        device: torch's name of it; `auto` takes a GPU if there is one.
        at_stage: called with the steps so far and the model.
    """
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecTransposeImage

    class Stages(BaseCallback):
        """Between two rollouts, since those hold steps of a model that no longer exists."""

        def __init__(self) -> None:
            super().__init__()
            self.left = [steps * stage // stages for stage in range(1, stages)]

        def _on_rollout_start(self) -> None:
            if self.left and self.num_timesteps >= self.left[0]:
                self.left.pop(0)
                at_stage(self.num_timesteps, self.model)

        def _on_step(self) -> bool:
            return True

    games = DummyVecEnv([lambda: TrainingGame(make_environment(env)) for _ in range(GAMES_SIDE_BY_SIDE)])
    stacked = VecTransposeImage(VecFrameStack(games, STACK))
    falling: dict[str, Callable[[float], float]] = {
        "learning_rate": lambda left: RATE * left,
        "clip_range": lambda left: CLIP * left,
    }
    try:
        model = PPO("CnnPolicy", stacked, seed=seed, device=device, **SETTINGS, **falling)
        model.learn(steps, callback=Stages())
        at_stage(model.num_timesteps, model)
    finally:
        stacked.close()


def record(env: str, model: Any, games: int, seed: int, max_steps: int) -> list[Trajectory]:
    """Whole games of a model, with all their points; cut after `max_steps`."""
    player, rows = StackedPlayer(model, seed), min(games, GAMES_SIDE_BY_SIDE)
    with torch.random.fork_rng():  # the training behind it draws from the same generator
        return rollout(player, env, episodes=games, seed=seed, num_envs=rows, max_steps=max_steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--game", choices=sorted(TARGETS), required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder of the store")
    parser.add_argument("--train-steps", type=int, default=10_000_000, help="of 4 frames each, over all games")
    parser.add_argument("--stages", type=int, default=3, help="players that are recorded, equally far apart")
    parser.add_argument("--games", type=int, default=20, help="recorded of each player")
    parser.add_argument("--max-steps", type=int, default=27_000, help="of a recorded game")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    chosen = parser.parse_args()
    if chosen.out.exists():  # said now, not after hours of training
        parser.error(f"--out: {chosen.out}: expected a new folder, got one that exists")
    for name in ("train_steps", "stages", "games", "max_steps"):
        if getattr(chosen, name) < 1:
            parser.error(f"--{name.replace('_', '-')}: expected at least 1, got {getattr(chosen, name)}")
    if find_spec("stable_baselines3") is None:
        parser.error("expected the package stable-baselines3: pip install 'scanrl[sb3]'")
    env, played = f"scanrl/{chosen.game}-v0", []
    begun = time.perf_counter()

    def play(steps: int, model: Any) -> None:
        games = record(env, model, chosen.games, chosen.seed + steps, chosen.max_steps)
        points = np.array([game.rewards.sum() for game in games])
        spread = f"from {points.min():.0f} to {points.max():.0f}"
        seconds = time.perf_counter() - begun
        print(f"after {steps} steps, {seconds:.0f} s: mean return {points.mean():.1f}, {spread}", flush=True)
        played.extend(games)

    train(env, chosen.train_steps, chosen.stages, chosen.seed, chosen.device, play)
    about = f"{chosen.stages} stages of {chosen.train_steps} steps, seed {chosen.seed}"
    name = f"{chosen.game.lower()}-ppo ({about}; local: PPO of Stable-Baselines3)"
    dataset = Dataset.from_trajectories(played, spec=environment_spec(env), name=name)
    dataset.source = {"uri": "tools/record_atari.py"}
    write_store(dataset, chosen.out)
    print(f"{len(dataset)} games, {dataset.steps} steps, mean return {dataset.returns.mean():.1f}")


if __name__ == "__main__":
    main()
