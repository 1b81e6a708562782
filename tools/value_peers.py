"""TD3+BC, CQL and IQL of d3rlpy on a store: what methods with a value function make of the same episodes.

They are not implemented again here. d3rlpy 2.8.1 requires gymnasium == 1.0.0 exactly, and ScanRL gymnasium >= 1.1, so
that they cannot be installed together. This script therefore has an environment of its own, and
reads the columns of a store as the plain .npy files that they are; it imports nothing of ScanRL.

    python tools/value_peers.py setup ~/d3rlpy                              # once: a virtual environment, pinned
    scanrl data convert d4rl:FILE --out STORE                               # in ScanRL's environment
    ~/d3rlpy/bin/python tools/value_peers.py run STORE --env Hopper-v5 --out peers.jsonl

One row of JSON per algorithm and seed, with raw returns (`scanrl.evaluation.normalize` turns them into scores). The
settings are d3rlpy's defaults (TD3+BC: alpha 2.5), networks of 256 and 256 units, batches of 256, and for all three:
observations are standardised (Fujimoto and Gu 2021 do so for TD3+BC on MuJoCo; `--raw-observations` leaves them, as is
usual for AntMaze) and actions scaled from the environment's bounds. Scores are of the last weights. Episodes do not
begin in the states of `scanrl eval`: compare means, not single episodes.

Reference: Fujimoto and Gu 2021, arXiv 2106.06860 (TD3+BC); Kumar et al. 2020, arXiv 2006.04779 (CQL); Kostrikov et al.
2022, arXiv 2110.06169 (IQL); Seno and Imai 2022, arXiv 2111.03788 (d3rlpy).
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import time
import venv
from importlib import metadata
from pathlib import Path
from typing import Any

PINS = ("d3rlpy==2.8.1", "gymnasium[mujoco]==1.0.0", "torch==2.13.0", "mujoco==4.0.0")
ALGORITHMS = ("td3+bc", "cql", "iql")


def setup(folder: Path) -> None:
    """A virtual environment in which `run` works."""
    venv.create(folder, with_pip=True)
    subprocess.run([folder / "bin" / "pip", "install", *PINS], check=True)


def read_store(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The manifest of a store and its columns, memory-mapped."""
    import numpy as np

    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    names = ("observations", "actions", "rewards", "terminations", "truncations", "episode_offsets")
    return manifest, {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in names}


def buffer(columns: dict[str, Any]) -> Any:
    """The episodes as d3rlpy holds them."""
    import d3rlpy
    import numpy as np

    ends = np.zeros(len(columns["rewards"]), bool)
    ends[columns["episode_offsets"][1:] - 1] = True
    terminal = np.asarray(columns["terminations"])
    return d3rlpy.dataset.MDPDataset(
        np.asarray(columns["observations"]),
        np.asarray(columns["actions"]),
        np.asarray(columns["rewards"]),
        terminal.astype(np.float32),
        (ends & ~terminal).astype(np.float32),  # every episode ends; what ended it otherwise is a time limit
    )


def build(name: str, low: Any, high: Any, standardise: bool, device: str) -> Any:
    """An algorithm with d3rlpy's defaults."""
    from d3rlpy.algos import CQLConfig, IQLConfig, TD3PlusBCConfig
    from d3rlpy.preprocessing import MinMaxActionScaler, StandardObservationScaler

    config = {"td3+bc": TD3PlusBCConfig, "cql": CQLConfig, "iql": IQLConfig}[name]
    scaler = StandardObservationScaler() if standardise else None
    actions = MinMaxActionScaler(minimum=low, maximum=high)
    return config(observation_scaler=scaler, action_scaler=actions, batch_size=256).create(device=device)


def play(algorithm: Any, env: Any, episodes: int, seed: int) -> tuple[list[float], list[int]]:
    """Returns and lengths of episodes played without exploration."""
    import numpy as np

    returns, lengths = [], []
    for episode in range(episodes):
        seen, _ = env.reset(seed=seed if episode == 0 else None)
        total, length, over = 0.0, 0, False
        while not over:
            action = algorithm.predict(np.asarray(seen, np.float32)[None])[0]
            action = np.clip(action, env.action_space.low, env.action_space.high)
            seen, reward, terminated, truncated, _ = env.step(action)
            total, length, over = total + float(reward), length + 1, terminated or truncated
        returns.append(total)
        lengths.append(length)
    return returns, lengths


def run(options: argparse.Namespace) -> None:
    """Train and score each algorithm with each seed; a row of the file for each."""
    import d3rlpy
    import gymnasium
    import numpy as np
    import structlog
    from d3rlpy.logging import NoopAdapterFactory

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))  # d3rlpy tells a lot
    manifest, columns = read_store(options.store)
    if columns["actions"].dtype.kind != "f":
        sys.exit(f"{options.store}: actions: expected continuous ones (these three take no others), got choices")
    data, env = buffer(columns), gymnasium.make(options.env)
    versions = {name: metadata.version(name) for name in ("d3rlpy", "torch", "gymnasium", "mujoco")}
    for name in options.algorithms:
        for seed in options.seeds:
            d3rlpy.seed(seed)
            space: Any = env.action_space
            chosen = build(name, space.low, space.high, not options.raw_observations, options.device)
            began = time.perf_counter()
            chosen.fit(
                data,
                n_steps=options.steps,
                n_steps_per_epoch=options.steps,
                logger_adapter=NoopAdapterFactory(),
                show_progress=False,
            )
            seconds = time.perf_counter() - began
            returns, lengths = play(chosen, env, options.episodes, options.eval_seed)
            row = {
                "algorithm": name,
                "env": options.env,
                "dataset": manifest["fingerprint"],
                "steps": options.steps,
                "seed": seed,
                "eval_seed": options.eval_seed,
                "observations": "raw" if options.raw_observations else "standardised",
                "return_mean": float(np.mean(returns)),
                "return_std": float(np.std(returns)),
                "returns": returns,
                "lengths": lengths,
                "train_seconds": seconds,
                "versions": versions,
            }
            print(f"{name} seed {seed}: return {row['return_mean']:.1f} ± {row['return_std']:.1f}, {seconds:.0f} s")
            if options.out is not None:
                with options.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    making = verbs.add_parser("setup", help="make the virtual environment")
    making.add_argument("folder", type=Path)
    running = verbs.add_parser("run", help="train and score; with the Python of that environment")
    running.add_argument("store", type=Path, help="folder written by scanrl data convert")
    running.add_argument("--env", required=True, help="Gymnasium id")
    running.add_argument("--algorithms", nargs="+", choices=ALGORITHMS, default=ALGORITHMS)
    running.add_argument("--seeds", nargs="+", type=int, default=[0])
    running.add_argument("--steps", type=int, default=100_000, help="updates")
    running.add_argument("--episodes", type=int, default=20)
    running.add_argument("--eval-seed", type=int, default=1000, help="of the first episode")
    running.add_argument("--device", default="cpu:0", help="cpu:0 or cuda:0")
    running.add_argument("--raw-observations", action="store_true", help="do not standardise observations")
    running.add_argument("--out", type=Path, help="JSONL file the rows are added to")
    options = parser.parse_args()
    if options.verb == "setup":
        setup(options.folder)
    else:
        run(options)


if __name__ == "__main__":
    main()
