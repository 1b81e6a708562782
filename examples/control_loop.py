"""A control loop with many streams: one policy, one call per tick, streams that restart whenever they like.

    python examples/control_loop.py runs/pendulum --env Pendulum-v1 --streams 64

Each stream stands for a robot, a client or a machine. Here they are environments; in your loop, put your sensors where
`environment.step` is. A stream that starts over is flagged in `first`; the others do not notice.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import gymnasium as gym
import numpy as np

import scanrl


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="a run folder")
    parser.add_argument("--env", required=True, help="Gymnasium id that the run was trained for")
    parser.add_argument("--streams", type=int, default=64, help="streams side by side")
    parser.add_argument("--ticks", type=int, default=1000, help="control steps of each")
    parser.add_argument(
        "--target-return", type=float, help="return to ask for; the best of the training data by default"
    )
    chosen = parser.parse_args()

    policy = scanrl.Policy.load(chosen.run, target_return=chosen.target_return)
    environments = [gym.make(chosen.env) for _ in range(chosen.streams)]
    observations = np.stack([environment.reset(seed=i)[0] for i, environment in enumerate(environments)])
    rewards = np.zeros(chosen.streams, np.float32)  # what the last action of each stream earned
    first = np.ones(chosen.streams, bool)  # which streams start now
    running, finished, acting = np.zeros(chosen.streams), [], 0.0

    for _ in range(chosen.ticks):
        began = time.perf_counter()
        actions = policy.act(observations, rewards, first)
        acting += time.perf_counter() - began
        for i, environment in enumerate(environments):
            observation, reward, terminated, truncated, _ = environment.step(actions[i])
            running[i] += float(reward)
            first[i] = terminated or truncated
            rewards[i] = float(reward)
            if first[i]:
                finished.append(running[i])
                running[i] = 0.0
                observation, _ = environment.reset()
            observations[i] = observation

    print(f"{chosen.streams} streams, {chosen.ticks} ticks: {1e6 * acting / chosen.ticks:.0f} microseconds per call")
    if finished:
        print(f"{len(finished)} episodes finished, mean return {np.mean(finished):.1f}")


if __name__ == "__main__":
    main()
