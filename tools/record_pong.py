"""Record Pong as a scripted player that reads the game's memory plays it, with noise: local data, not DQN-replay.

    OMP_NUM_THREADS=1 python tools/record_pong.py --out runs/pong.store

The player knows where ball and paddle are and aims for where the ball will cross its line. It plays boldly (late, with
overshoot, which gives fast returns) until it loses a point, then safely until it wins one. In each episode a share of
its actions, drawn from `NOISE`, is uniformly random. What is recorded is what a model is to see: pictures, actions and
points. The same seed gives the same recording.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from scanrl.data import Dataset, write_store
from scanrl.envs.make import environment_spec, make_environment
from scanrl.rollout import rollout

__all__ = ["ENV_ID", "ScriptedPong", "record"]

ENV_ID = "scanrl/Pong-v0"
NOISE = (0.0, 0.02, 0.05, 0.1)
STAY, FIRE, UP, DOWN = 0, 1, 2, 3  # of Pong's six actions; the other two fire as well
# Bytes of the console's memory, as in AtariARI (Anand et al. 2019, arXiv 1906.08226).
BALL_X, BALL_Y, PADDLE_Y = 49, 54, 51
TOP, BOTTOM, LINE = 44, 205, 188  # where the ball turns, and where the paddle meets it
BOLD = (4.0, 5.0, 0.0)  # offset of the paddle's middle, distance that is near enough, steps of its own motion foreseen
SAFE = (4.0, 8.0, 1.0)
JITTER = 3.0  # of the safe offset, drawn for each of the ball's approaches: no rally repeats itself for ever


class ScriptedPong:
    """An actor for `rollout` that looks into the environments it acts in.

    Args:
        environments: those of the rows, in order; the list may still be empty now.
        seed: of its noise. Each episode has a generator of its own.
    """

    def __init__(self, environments: list[gym.Env], seed: int) -> None:
        self.environments, self.seed = environments, seed

    def reset(self, count: int) -> None:
        """`count` fresh rows; the next episode is number 0 again."""
        self._rows: list[_Row | None] = [None] * count
        self._episodes = 0

    def act(self, observations: np.ndarray, rewards: np.ndarray, first: np.ndarray) -> np.ndarray:
        """`(B,)` int64; the pictures are not looked at."""
        for row in np.flatnonzero(first):
            self._rows[row] = _Row(self.environments[row], np.random.default_rng([self.seed, self._episodes]))
            self._episodes += 1
        return np.array([row.act(float(earned)) for row, earned in zip(self._rows, rewards, strict=True) if row])


class _Row:
    """One episode."""

    def __init__(self, env: gym.Env, rng: np.random.Generator) -> None:
        self.ale: Any = env.unwrapped.ale  # pyright: ignore[reportAttributeAccessIssue]
        self.rng = rng
        self.noise = float(rng.choice(NOISE))
        self.bold, self.jitter, self.approaching = True, 0.0, False
        self.ball: tuple[int, int] | None = None
        self.paddle: int | None = None

    def act(self, earned: float) -> int:
        if earned:
            self.bold = earned > 0
        action = self._aimed()
        return int(self.rng.integers(6)) if self.rng.random() < self.noise else action

    def _aimed(self) -> int:
        memory = self.ale.getRAM().astype(int)
        x, y, paddle = memory[BALL_X], memory[BALL_Y], memory[PADDLE_Y]
        before = self.ball if self.ball is not None and self.ball[1] else (x, y)
        across, down = x - before[0], y - before[1]
        moved = 0 if self.paddle is None else paddle - self.paddle
        self.ball, self.paddle = (x, y), paddle
        if across > 0 and not self.approaching:
            self.jitter = self.rng.uniform(-JITTER, JITTER)
        self.approaching = across > 0 if across else self.approaching
        if not y:  # there is no ball yet
            return FIRE
        aim = _reflected(y + down * (LINE - x) / across) if across > 0 else y
        offset, near, foreseen = BOLD if self.bold else SAFE
        distance = aim - (paddle + offset + (0.0 if self.bold else self.jitter) + foreseen * moved)
        return DOWN if distance > near else UP if distance < -near else STAY


def _reflected(y: float) -> float:
    """Where a ball that would reach `y` without walls is between them."""
    span = BOTTOM - TOP
    along = (y - TOP) % (2 * span)
    return TOP + min(along, 2 * span - along)


def record(episodes: int, seed: int, max_steps: int) -> Dataset:
    """Episodes of the scripted player, cut after `max_steps`."""
    environments: list[gym.Env] = []

    def make() -> gym.Env:
        environments.append(make_environment(ENV_ID))
        return environments[-1]

    actor = ScriptedPong(environments, seed)
    played = rollout(actor, make, episodes=episodes, seed=seed, num_envs=1, max_steps=max_steps)
    name = f"pong-scripted-{episodes}x{max_steps}-seed{seed} (local: a script that reads memory, with noise)"
    dataset = Dataset.from_trajectories(played, spec=environment_spec(ENV_ID), name=name)
    dataset.source = {"uri": "tools/record_pong.py"}
    return dataset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the store")
    parser.add_argument("--episodes", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-steps", type=int, default=3000, help="of an episode, which has at most 27,000")
    arguments = parser.parse_args()
    begun = time.perf_counter()
    dataset = record(arguments.episodes, arguments.seed, arguments.max_steps)
    rate = dataset.steps / (time.perf_counter() - begun)
    write_store(dataset, arguments.out)
    returns = dataset.returns
    print(f"{len(dataset)} episodes, {dataset.steps} steps, {rate:.0f} steps/s")
    print(f"return: mean {returns.mean():.2f}, from {returns.min():.0f} to {returns.max():.0f}")
    print("all:", *(f"{value:.0f}" for value in returns))


if __name__ == "__main__":
    main()
