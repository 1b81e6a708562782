"""Train a Hopper policy to a medium level and record it: where the two data sets in `scanrl/bundled` come from.

    OMP_NUM_THREADS=1 python tools/record_hopper.py train --out DIR
    OMP_NUM_THREADS=1 python tools/record_hopper.py record --checkpoints DIR --out scanrl/bundled

`train` needs stable-baselines3 (SAC), which the package itself never imports; `record` needs numpy, h5py and the
simulator. One thread keeps every sum in one order, so that a second run gives the same bytes.
Shapes: `O` = 11 observation entries, `A` = 3 action entries, `n` steps.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import mujoco
import numpy as np

__all__ = ["Actor", "Episode", "evaluate", "is_medium", "record", "train"]

ENV_ID = "Hopper-v5"
SEED = 7
SAC_SETTINGS: dict[str, Any] = {
    "learning_rate": 3e-4,
    "buffer_size": 300_000,
    "learning_starts": 5_000,
    "batch_size": 256,
    "tau": 0.005,
    "gamma": 0.99,
    "train_freq": 1,
    "gradient_steps": 1,
    "ent_coef": "auto",
    "policy_kwargs": {"net_arch": [256, 256]},
}
CHECKPOINT_EVERY, MAX_STEPS, EVAL_EPISODES = 5_000, 250_000, 20
MEDIUM_STEPS, REPLAY_STEPS = 100_000, 30_000
RANDOM_RETURN, EXPERT_RETURN = -20.272305, 3234.3  # D4RL's reference returns of Hopper
MEDIUM_MEAN, MEDIUM_TOP = (1_300.0, 2_000.0), 2_260.0  # raw returns: mean in this range, best tenth at least this
RULE = (
    f"first checkpoint with a mean return in [{MEDIUM_MEAN[0]:.0f}, {MEDIUM_MEAN[1]:.0f}] over {EVAL_EPISODES} "
    f"stochastic episodes and a mean of at least {MEDIUM_TOP:.0f} over their best tenth"
)
COMMANDS = [line.strip() for line in str(__doc__).splitlines() if line.startswith("    ")]


@dataclass(frozen=True)
class Actor:
    """The squashed Gaussian policy of SAC in numpy: a = tanh(mu(s) + sigma(s) * noise)."""

    weights: dict[str, np.ndarray]

    @classmethod
    def load(cls, path: Path) -> Actor:
        with np.load(path, allow_pickle=False) as stored:
            return cls({name: stored[name] for name in stored.files})

    def act(self, observation: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """One random action `(A,)` in [-1, 1] for one observation `(O,)`, both float32."""
        w, x = self.weights, observation
        for layer in ("0", "1"):
            x = np.maximum(w[f"{layer}.weight"] @ x + w[f"{layer}.bias"], 0)
        mu = w["mu.weight"] @ x + w["mu.bias"]
        log_sigma = np.clip(w["log_sigma.weight"] @ x + w["log_sigma.bias"], -20, 2)
        return np.tanh(mu + np.exp(log_sigma) * rng.standard_normal(mu.shape, dtype=np.float32))


@dataclass(frozen=True)
class Episode:
    """One whole episode: observations `(n, O)`, actions `(n, A)`, rewards `(n,)`, and whether it ended by a fall."""

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminated: bool


def play(actor: Actor, env: gymnasium.Env, seed: tuple[int, int, int]) -> Episode:
    """Play one episode; `seed` = (purpose, checkpoint step, episode) fixes the start state and the noise."""
    rng = np.random.default_rng((SEED, *seed))
    observation, _ = env.reset(seed=int(rng.integers(2**31)))
    observations, actions, rewards = [], [], []
    terminated = truncated = False
    while not (terminated or truncated):
        seen = observation.astype(np.float32)
        action = actor.act(seen, rng)
        observation, reward, terminated, truncated, _ = env.step(action)
        observations.append(seen)
        actions.append(action)
        rewards.append(reward)
    return Episode(np.array(observations), np.array(actions), np.array(rewards, np.float32), bool(terminated))


def normalized(value: float) -> float:
    """D4RL's score: 0 for a random policy, 100 for an expert."""
    return 100 * (value - RANDOM_RETURN) / (EXPERT_RETURN - RANDOM_RETURN)


def summary(episodes: list[Episode]) -> dict[str, Any]:
    """Counts and return statistics; `top_decile_mean` is the mean of the best tenth of the episodes."""
    returns = np.sort([float(e.rewards.sum(dtype=np.float64)) for e in episodes])
    figures = {
        "mean": returns.mean(),
        "median": np.median(returns),
        "std": returns.std(),
        "min": returns[0],
        "max": returns[-1],
        "top_decile_mean": returns[-max(1, round(len(returns) / 10)) :].mean(),
    }
    return {
        "episodes": len(episodes),
        "steps": sum(len(e.rewards) for e in episodes),
        "ended_by_a_fall": sum(e.terminated for e in episodes),
        "return": {name: round(float(value), 2) for name, value in figures.items()},
        "normalized": {name: round(normalized(float(v)), 2) for name, v in figures.items() if name != "std"},
    }


def evaluate(actor: Actor, step: int) -> dict[str, Any]:
    """Summary of `EVAL_EPISODES` stochastic episodes of the checkpoint taken at `step`."""
    with gymnasium.make(ENV_ID) as env:
        return summary([play(actor, env, (0, step, i)) for i in range(EVAL_EPISODES)])


def is_medium(evaluation: dict[str, Any]) -> bool:
    """Whether an evaluation satisfies `RULE`."""
    returns = evaluation["return"]
    return MEDIUM_MEAN[0] <= returns["mean"] <= MEDIUM_MEAN[1] and returns["top_decile_mean"] >= MEDIUM_TOP


def actor_weights(model: Any) -> dict[str, np.ndarray]:
    """The actor's parameters out of a stable-baselines3 SAC model."""
    net = model.actor
    layers = {"0": net.latent_pi[0], "1": net.latent_pi[2], "mu": net.mu, "log_sigma": net.log_std}
    return {f"{name}.{key}": p.detach().numpy().copy() for name, m in layers.items() for key, p in m.named_parameters()}


def versions(*modules: Any) -> dict[str, str]:
    """The versions of Python, the processor's architecture and the modules."""
    named = {module.__name__: module.__version__ for module in modules}
    return {"python": platform.python_version(), "machine": platform.machine(), **named}


def train(out: Path, max_steps: int = MAX_STEPS) -> None:
    """Train SAC, writing `actor-STEP.npz` and `train.json` every `CHECKPOINT_EVERY` steps; stop once `RULE` holds."""
    import stable_baselines3
    import torch

    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    model = stable_baselines3.SAC("MlpPolicy", gymnasium.make(ENV_ID), seed=SEED, device="cpu", **SAC_SETTINGS)
    run: dict[str, Any] = {"versions": versions(stable_baselines3, torch), "seconds": 0, "checkpoints": []}
    started = time.monotonic()
    for step in range(CHECKPOINT_EVERY, max_steps + 1, CHECKPOINT_EVERY):
        model.learn(CHECKPOINT_EVERY, reset_num_timesteps=False)
        weights = actor_weights(model)
        np.savez(out / f"actor-{step:06d}.npz", **weights)  # type: ignore[arg-type]
        run["checkpoints"].append({"step": step, **evaluate(Actor(weights), step)})
        run["seconds"] = round(time.monotonic() - started)
        (out / "train.json").write_text(json.dumps(run, indent=1) + "\n")
        print(f"{run['seconds']:5d} s", json.dumps(run["checkpoints"][-1]), flush=True)
        if is_medium(run["checkpoints"][-1]):
            break


def choose(checkpoints: list[dict[str, Any]]) -> tuple[dict[str, Any], bool]:
    """The checkpoint `RULE` names and True, or, if none satisfies it, the best one not above the range and False."""
    for checkpoint in checkpoints:
        if is_medium(checkpoint):
            return checkpoint, True
    not_expert = [c for c in checkpoints if c["return"]["mean"] <= MEDIUM_MEAN[1]]
    return max(not_expert, key=lambda c: c["return"]["mean"]), False


def episodes_of(folder: Path, purpose: int, step: int, budget: int) -> list[Episode]:
    """Whole stochastic episodes of one checkpoint until `budget` steps are reached, at least one."""
    actor, episodes, steps = Actor.load(folder / f"actor-{step:06d}.npz"), [], 0
    with gymnasium.make(ENV_ID) as env:
        while steps < max(budget, 1):
            episodes.append(play(actor, env, (purpose, step, len(episodes))))
            steps += len(episodes[-1].rewards)
    return episodes


def mixture(folder: Path, steps: list[int]) -> list[Episode]:
    """`REPLAY_STEPS` steps shared evenly by the checkpoints, in the order given."""
    episodes: list[Episode] = []
    for i, step in enumerate(steps):
        left = REPLAY_STEPS - sum(len(e.rewards) for e in episodes)
        episodes += episodes_of(folder, 2, step, left // (len(steps) - i))
    return episodes


def write(path: Path, episodes: list[Episode], description: str) -> dict[str, Any]:
    """Write the episodes in D4RL's HDF5 schema; returns the file's provenance entry."""
    ends = np.cumsum([len(e.rewards) for e in episodes]) - 1
    fell = np.array([e.terminated for e in episodes])
    terminals, timeouts = np.zeros((2, ends[-1] + 1), bool)
    terminals[ends], timeouts[ends] = fell, ~fell
    columns = {
        name: np.concatenate([getattr(e, name) for e in episodes]) for name in ("observations", "actions", "rewards")
    }
    with h5py.File(path, "w") as file:
        file.attrs.update(env_id=ENV_ID, description=description)
        for name, column in {**columns, "terminals": terminals, "timeouts": timeouts}.items():
            file.create_dataset(
                name, data=column, compression="gzip", compression_opts=9, shuffle=True, track_times=False
            )
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return {"description": description, "bytes": path.stat().st_size, "sha256": sha256, **summary(episodes)}


def record(checkpoints: Path, out: Path, verified: str = "nothing") -> None:
    """Record both data sets from the checkpoints of `train`; `provenance.json` beside them says what was `verified`."""
    run = json.loads((checkpoints / "train.json").read_text())
    medium, rule_held = choose(run["checkpoints"])
    earlier = sorted((c for c in run["checkpoints"] if c["step"] < medium["step"]), key=lambda c: c["return"]["mean"])
    replayed = [c["step"] for c in earlier]
    recordings = {
        "hopper-medium.hdf5": (
            f"{ENV_ID}, one SAC agent after {medium['step']} training steps, stochastic policy",
            episodes_of(checkpoints, 1, medium["step"], MEDIUM_STEPS),
        ),
        "hopper-replay.hdf5": (
            f"{ENV_ID}, the {len(replayed)} earlier checkpoints of that agent, poorest first, stochastic policies",
            mixture(checkpoints, replayed),
        ),
    }
    out.mkdir(parents=True, exist_ok=True)
    provenance = {
        "licence": "MIT",
        "made_by": "the ScanRL project",
        "commands": COMMANDS,
        "env_id": ENV_ID,
        "versions": {**versions(gymnasium, mujoco, np, h5py), **run["versions"]},
        "seed": SEED,
        "verified": verified,
        "reference_returns": {"random": RANDOM_RETURN, "expert": EXPERT_RETURN},
        "policy": {"step": medium["step"], "rule": RULE, "rule_held": rule_held, "replay_steps": replayed},
        "files": {name: write(out / name, episodes, text) for name, (text, episodes) in recordings.items()},
        "training": {"algorithm": "SAC", "settings": SAC_SETTINGS, **{k: v for k, v in run.items() if k != "versions"}},
    }
    (out / "provenance.json").write_text(json.dumps(provenance, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("train", help="train SAC until the medium level")
    verb.add_argument("--out", type=Path, required=True, help="folder for the checkpoints")
    verb.add_argument("--max-steps", type=int, default=MAX_STEPS, help="environment steps at most")
    verb = verbs.add_parser("record", help="record both data sets from the checkpoints")
    verb.add_argument("--checkpoints", type=Path, required=True, help="folder that train wrote")
    verb.add_argument("--out", type=Path, required=True, help="folder for the data sets and provenance.json")
    verb.add_argument(
        "--verified", default="nothing", help="what was checked about reproducibility, for provenance.json"
    )
    arguments = parser.parse_args()
    if arguments.verb == "train":
        train(arguments.out, arguments.max_steps)
    else:
        record(arguments.checkpoints, arguments.out, arguments.verified)


if __name__ == "__main__":
    main()
