"""Returns that stand for 0 and 100 when scores of different environments are put on one scale.

`score = 100 * (return - low) / (high - low)`, with `low` a random policy and `high` an expert, a known bound or the
environment's own idea of solved; `source` says which.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["ATARI_SETS", "REFERENCES", "Reference", "reference_score", "score_source"]


@dataclass(frozen=True)
class Reference:
    """The two ends of the scale of one environment.

    Attributes:
        low: mean undiscounted return that scores 0.
        high: mean undiscounted return that scores 100.
        source: where the two come from.
        versions: versions of the environment (the 5 of `Hopper-v5`) they may be used with.
        caution: what to say beside the score, or empty.
        goal: an episode that reaches the goal returns more than 0, any other 0: it succeeds or fails.
        free: options of the environment that leave its returns what they are.
    """

    low: float
    high: float
    source: str
    versions: tuple[int, ...]
    caution: str = ""
    goal: bool = False
    free: tuple[str, ...] = ()


D4RL = "D4RL (Fu et al. 2020): random policy, SAC expert"
# D4RL measured these on v2. Later versions changed physics and rewards (contact forces in Ant-v4, the healthy reward of
# the last step in v5, MuJoCo itself), yet every paper divides by them, so we do and say so.
AGES = "constants measured on v2 with mujoco-py; published scores use them for later versions too"
MEASURED = "random: 1000 episodes, tools/measure_reference_scores.py --seed 0; high: "
SUCCESS = "; the score is the success rate in percent"
ORIGIN = ("origin",)  # of the coordinates that a policy reads
MAZE = "v4 and v5 are gymnasium-robotics' mazes, not D4RL's own"
SOLVED = "the return Gymnasium calls solved"
EXACT = "means over all tasks: random by dynamic programming, optimal policy"
SAMPLED = "means over all tasks: random of a million episodes (TaskFamily.random_returns, seed 0), optimal policy"
SIZE = "for the size, horizon and start the environment has by default"

# Two sets are in circulation and differ by up to 3 %; scores of different papers may stand on either. Raw returns are
# always kept beside a score.
ATARI_DT = "Atari set (a), of Decision Transformer (Chen et al. 2021): rounded random and human scores"
ATARI_DM = "Atari set (b), which gives the scores of Decision Mamba (Ota 2024): random and human scores"

ATARI_SETS: dict[str, dict[str, tuple[float, float]]] = {
    ATARI_DT: {
        "Breakout": (2.0, 30.0),
        "Qbert": (164.0, 13455.0),
        "Pong": (-21.0, 15.0),
        "Seaquest": (68.0, 42055.0),
    },
    ATARI_DM: {
        "Breakout": (1.7, 30.5),
        "Qbert": (163.9, 13455.0),
        "Pong": (-20.7, 14.6),
        "Seaquest": (68.4, 42054.7),
        "Asterix": (210.0, 8503.3),
        "Frostbite": (65.2, 4334.7),
        "Assault": (222.4, 742.0),
        "Gopher": (257.6, 2412.5),
    },
}
"""Random and human returns of Atari games, by set. `reference_score` takes (a) where it has the game, else (b)."""


def _atari() -> dict[str, Reference]:
    chosen = {game: (name, ends) for name in (ATARI_DM, ATARI_DT) for game, ends in ATARI_SETS[name].items()}
    scales = {game: Reference(low, high, source, (0,)) for game, (source, (low, high)) in chosen.items()}
    return {f"scanrl/{game}{suffix}": scale for game, scale in scales.items() for suffix in ("", "-sticky")}


REFERENCES: dict[str, Reference] = {
    "Hopper": Reference(-20.272305, 3234.3, D4RL, (2, 3, 4, 5), AGES),
    "HalfCheetah": Reference(-280.178953, 12135.0, D4RL, (2, 3, 4, 5), AGES),
    "Walker2d": Reference(1.629008, 4592.3, D4RL, (2, 3, 4, 5), AGES),
    "Ant": Reference(-325.6, 3879.7, D4RL, (2, 3, 4, 5), AGES + "; Ant-v4 and v5 reward differently"),
    "CartPole": Reference(21.9, 500.0, MEASURED + "longest possible episode", (1,)),
    "Pendulum": Reference(-1216.8, -137.3, MEASURED + "optimum by dynamic programming, same episodes", (1,)),
    "Acrobot": Reference(-499.1, -100.0, MEASURED + SOLVED, (1,)),
    "MountainCar": Reference(-200.0, -110.0, MEASURED + SOLVED, (0,)),
    "MountainCarContinuous": Reference(-33.0, 90.0, MEASURED + SOLVED, (0,)),
    "antmaze-umaze": Reference(0.0, 1.0, D4RL + SUCCESS, (0, 1, 2, 4, 5), MAZE, goal=True, free=ORIGIN),
    "antmaze-umaze-diverse": Reference(0.0, 1.0, D4RL + SUCCESS, (0, 1, 2, 4, 5), MAZE, goal=True, free=ORIGIN),
    "maze2d-umaze": Reference(23.85, 161.86, D4RL, (1,)),
    "maze2d-medium": Reference(13.13, 277.39, D4RL, (1,)),
    "maze2d-large": Reference(6.7, 273.99, D4RL, (1,)),
    **_atari(),
    "Darkroom": Reference(0.2469, 16.5432, EXACT, (0,), SIZE),
    "DarkroomHard": Reference(0.12577, 1.0, EXACT, (0,), SIZE),
    "DarkroomDynamic": Reference(0.16457, 83.0, EXACT, (0,), SIZE),
    "DarkroomDPT": Reference(1.0, 91.99, EXACT, (0,), SIZE),
    "DarkroomLarge": Reference(0.125, 180.9994, EXACT, (0,), SIZE),
    "DarkroomHardLarge": Reference(0.0459, 1.0, SAMPLED, (0,), SIZE),
    "KeyToDoor": Reference(0.26864, 2.0, EXACT, (0,), SIZE),
    "KeyToDoorLarge": Reference(0.1015, 2.0, SAMPLED, (0,), SIZE),
    "TMaze": Reference(0.0, 1.0, EXACT, (0,), SIZE + ", without the penalty"),
}
"""Environment name without its version -> the scale. A new one is one line."""


def reference_score(env_id: str) -> Reference | None:
    """The scale for a Gymnasium id with version (`Hopper-v5`), or `None` where there is none for that version, or where
    options make it another environment."""
    name, _, options = env_id.partition("@")
    match = re.fullmatch(r"(.+)-v(\d+)", name.rpartition(":")[2])
    reference = REFERENCES.get(match[1]) if match else None
    if match is None or reference is None or int(match[2]) not in reference.versions:
        return None
    given = [option.partition("=")[0] for option in options.split(",") if option]
    return reference if all(option in reference.free for option in given) else None


def score_source(env_id: str) -> str | None:
    """Where the two ends of an environment's scale come from; `None` where its returns stay raw."""
    reference = reference_score(env_id)
    return None if reference is None else reference.source
