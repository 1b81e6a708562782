"""Times the making of learning histories: environment steps a second of each learner, in every world of ours.

    python -m benchmarks.histories [--json] [--repeats N] [--replicas 20]

One thread. All training tasks of a world (at most 64 of them) are learned at once, each by `--replicas` learners for
the episodes that a history of that learner has by default, and the columns of the dataset are filled; writing them to
the disk is not part of it. Large worlds are left out.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

if __package__ in (None, ""):  # run as a file: the repository is not yet on the path
    sys.path.insert(0, str(Path(__file__).parents[1]))

from scanrl.bench.timing import heading, measure, print_rows, rows_of
from scanrl.collecting import EPISODES_OF_A_HISTORY, EXPLORE_UNTIL
from scanrl.envs import ENVS
from scanrl.envs.sources import LEARNERS, learn_histories
from scanrl.envs.task_env import make_family

WORLDS = ("Darkroom-v0", "DarkroomHard-v0", "DarkroomDynamic-v0", "KeyToDoor-v0")
TASKS = 64


def history_rows(world: str, replicas: int, repeats: int) -> list[dict[str, Any]]:
    """Rows of one world, a learner each."""
    family = make_family(ENVS[world])
    tasks, steps = family.split()[0][:TASKS], {}

    def learn(learner: str) -> None:
        found = learn_histories(
            family,
            tasks,
            learner=learner,
            episodes=EPISODES_OF_A_HISTORY[learner],
            repeats=replicas,
            explore_until=EXPLORE_UNTIL[learner],
        )
        steps[learner] = len(found.rewards)

    times = measure({name: lambda name=name: learn(name) for name in LEARNERS}, repeats)
    speed = {name: steps[name] / timing.median_ms / 1e3 for name, timing in times.items()}
    return rows_of(world, times, "", steps=steps, million_steps_per_s=speed)  # of other learners: no ratio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object per row")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each learner")
    parser.add_argument("--replicas", type=int, default=20, help="learners of each task")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if not chosen.json:
        print(heading())
    for world in WORLDS:
        print_rows(history_rows(world, chosen.replicas, chosen.repeats), chosen.json)


if __name__ == "__main__":
    main()
