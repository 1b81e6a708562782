"""Returns that stand for 0 and 100 when scores of different environments are put on one scale.

`score = 100 * (return - low) / (high - low)`, with `low` a random policy and `high` an expert, a known bound or the
environment's own idea of solved; `source` says which.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["REFERENCES", "Reference", "reference_score"]


@dataclass(frozen=True)
class Reference:
    """The two ends of the scale of one environment.

    Attributes:
        low: mean undiscounted return that scores 0.
        high: mean undiscounted return that scores 100.
        source: where the two come from.
        versions: versions of the environment (the 5 of `Hopper-v5`) they may be used with.
        caution: what to say beside the score, or empty.
    """

    low: float
    high: float
    source: str
    versions: tuple[int, ...]
    caution: str = ""


D4RL = "D4RL (Fu et al. 2020): random policy, SAC expert"
# D4RL measured these on v2. Later versions changed physics and rewards (contact forces in Ant-v4, the healthy reward of
# the last step in v5, MuJoCo itself), yet every paper divides by them, so we do and say so.
AGES = "constants measured on v2 with mujoco-py; published scores use them for later versions too"
MEASURED = "random: 1000 episodes, tools/measure_reference_scores.py --seed 0; high: "
SOLVED = "the return Gymnasium calls solved"
EXACT = "means over all tasks: random by dynamic programming, optimal policy"
SAMPLED = "means over all tasks: random of a million episodes (TaskFamily.random_returns, seed 0), optimal policy"
SIZE = "for the size, horizon and start the environment has by default"

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
    "antmaze-umaze": Reference(0.0, 1.0, D4RL + "; the score is the success rate in percent", (0, 1, 2)),
    "antmaze-umaze-diverse": Reference(0.0, 1.0, D4RL + "; the score is the success rate in percent", (0, 1, 2)),
    "maze2d-umaze": Reference(23.85, 161.86, D4RL, (1,)),
    "maze2d-medium": Reference(13.13, 277.39, D4RL, (1,)),
    "maze2d-large": Reference(6.7, 273.99, D4RL, (1,)),
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
    """The scale for a Gymnasium id with version (`Hopper-v5`), or `None` where there is none for that version."""
    match = re.fullmatch(r"(.+)-v(\d+)", env_id)
    reference = REFERENCES.get(match[1]) if match else None
    return reference if match and reference and int(match[2]) in reference.versions else None
