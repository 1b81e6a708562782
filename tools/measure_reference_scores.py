"""Measures the random and (for Pendulum) the optimal returns in `scanrl.envs.reference_scores`.

python tools/measure_reference_scores.py --seed 0 --episodes 1000
"""

from __future__ import annotations

import argparse

import numpy as np

from scanrl.rollout import Actor, RandomActor, environment_spec, rollout

RANDOM = ("CartPole-v1", "Acrobot-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Pendulum-v1")


class PendulumOptimum:
    """Optimal torque of Pendulum-v1 by dynamic programming over (angle, speed), for every number of steps left.

    The dynamics and the reward are those of `gymnasium/envs/classic_control/pendulum.py`; the value is interpolated
    linearly between the points of the grid.
    """

    def __init__(self, angles: int = 181, speeds: int = 161, torques: int = 21, horizon: int = 200) -> None:
        self.angle = np.linspace(-np.pi, np.pi, angles)
        self.speed = np.linspace(-8.0, 8.0, speeds)
        self.torque = np.linspace(-2.0, 2.0, torques)
        angle, speed = np.meshgrid(self.angle, self.speed, indexing="ij")
        self.values = [np.zeros_like(angle)]  # values[k]: k steps left
        for _ in range(horizon):
            self.values.append(self._returns(angle, speed, self.values[-1]).max(-1))

    def _returns(self, angle: np.ndarray, speed: np.ndarray, value: np.ndarray) -> np.ndarray:
        """Return of each torque from each state, `(..., torques)`, `value` being what follows."""
        th, om, u = angle[..., None], speed[..., None], self.torque
        reward = -(((th + np.pi) % (2 * np.pi) - np.pi) ** 2 + 0.1 * om**2 + 0.001 * u**2)
        om = np.clip(om + (15.0 * np.sin(th) + 3.0 * u) * 0.05, -8.0, 8.0)
        th = (th + om * 0.05 + np.pi) % (2 * np.pi) - np.pi
        i, fi = _cell(self.angle, th)
        j, fj = _cell(self.speed, om)
        low = value[i, j] * (1 - fj) + value[i, j + 1] * fj
        high = value[i + 1, j] * (1 - fj) + value[i + 1, j + 1] * fj
        return reward + low * (1 - fi) + high * fi

    def reset(self, count: int) -> None:
        self.left = np.full(count, len(self.values) - 1)

    def act(self, observations: np.ndarray, rewards: np.ndarray, first: np.ndarray) -> np.ndarray:
        self.left[first] = len(self.values) - 1
        angles = np.arctan2(observations[:, 1], observations[:, 0])
        best = []
        for row, left in enumerate(self.left):
            returns = self._returns(angles[row], observations[row, 2], self.values[left - 1])
            best.append([self.torque[returns.argmax()]])
        self.left = np.maximum(self.left - 1, 1)
        return np.array(best, np.float32)


def _cell(grid: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    place = (x - grid[0]) / (grid[1] - grid[0])
    index = np.clip(place.astype(int), 0, len(grid) - 2)
    return index, place - index


def measure(name: str, actor: Actor, env_id: str, episodes: int, seed: int) -> None:
    """Prints mean, standard deviation and standard error of the return."""
    returns = np.array([x.total_reward for x in rollout(actor, env_id, episodes=episodes, seed=seed)])
    error = returns.std(ddof=1) / np.sqrt(episodes)
    print(f"{env_id:26s} {name:8s} mean {returns.mean():10.3f}  std {returns.std():8.3f}  standard error {error:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--episodes", type=int, default=1000)
    options = parser.parse_args()
    for env_id in RANDOM:
        actor = RandomActor(environment_spec(env_id), seed=options.seed)
        measure("random", actor, env_id, options.episodes, options.seed)
    measure("optimum", PendulumOptimum(), "Pendulum-v1", options.episodes, options.seed)


if __name__ == "__main__":
    main()
