"""From your own logs to a policy: arrays -> dataset -> training -> checkpoint -> acting.

    python examples/own_logs.py --out runs/pendulum

The logs here come from a hand-written controller that swings up Gymnasium's Pendulum, more or less clumsily. Replace
`record` by whatever reads yours: all that is needed is flat arrays and a mark at the end of each episode.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import gymnasium as gym
import numpy as np

import scanrl

ENV = "Pendulum-v1"


def controller(observation: np.ndarray, clumsiness: float, rng: np.random.Generator) -> np.ndarray:
    """Torque for `(cos, sin, velocity)`: pump energy while low, balance while high; noise on top."""
    cos, sin, velocity = observation
    if cos > 0.8:
        torque = -(12.0 * np.arctan2(sin, cos) + 3.0 * velocity)
    else:
        energy = velocity**2 / 6 + 5.0 * (cos - 1.0)  # 0 when standing still upright
        torque = -2.0 * np.sign(velocity * energy + 1e-3)
    return np.clip([torque + clumsiness * rng.normal()], -2.0, 2.0).astype(np.float32)


def record(episodes: int, seed: int) -> scanrl.Dataset:
    """Episodes of the controller: flat arrays, one row per control step, as a logger would write them."""
    rng = np.random.default_rng(seed)
    environment = gym.make(ENV)
    rows: list[tuple] = []
    for episode in range(episodes):
        clumsiness = rng.uniform(0.0, 4.0)
        observation, _ = environment.reset(seed=seed + episode)
        ended = False
        while not ended:
            action = controller(observation, clumsiness, rng)
            following, reward, terminated, truncated, _ = environment.step(action)
            rows.append((observation, action, reward, terminated, truncated))
            observation, ended = following, terminated or truncated
    observations, actions, rewards, terminations, truncations = (np.array(x) for x in zip(*rows, strict=True))
    return scanrl.Dataset.from_arrays(
        observations=observations,
        actions=actions,
        rewards=rewards,
        terminations=terminations,
        truncations=truncations,
        env_id=ENV,
        name="pendulum-logs",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/pendulum"), help="run folder, new or empty")
    parser.add_argument("--recorded", type=int, default=200, help="episodes to record")
    parser.add_argument("--steps", type=int, default=2000, help="training updates")
    parser.add_argument("--episodes", type=int, default=20, help="episodes to play at the end")
    chosen = parser.parse_args()

    dataset = record(chosen.recorded, seed=0)
    print(dataset)
    print(f"recorded returns: mean {dataset.returns.mean():.0f}, best {dataset.returns.max():.0f}")

    settings = {"model.context": 20, "eval.episodes": chosen.episodes}
    run = scanrl.train("dmm-dc", dataset, env=ENV, steps=chosen.steps, out=chosen.out, overrides=settings)
    print(f"run: {run.path}")

    # Everything a policy needs is in the run folder. Ask for a return that the logs contain.
    policy = scanrl.Policy.load(run.path, target_return=float(np.quantile(dataset.returns, 0.9)))
    scores = scanrl.evaluate(policy, ENV, episodes=chosen.episodes, seed=1000).scores[0]
    print(
        f"asked for {policy.target_return:.0f}, got {scores.mean:.0f} ± {scores.std:.0f} in {scores.episodes} episodes"
    )


if __name__ == "__main__":
    main()
