"""Times the sampling of pictures against the update they are for: an hour of an Atari game, mapped from disk.

    python -m benchmarks.pixels [--json] [--steps 216000] [--repeats N] [--device cuda]

The recording is made up (random bytes, 1.5 GB in a temporary folder) and has been read once, so that its pages are in
the system's cache where they fit. `share` is the median of sampling over that of the whole update, in per cent; the
target is less than 5. `grown_mb` is how much memory the process took while it sampled; a copy of the recording as
float32 would be 6 GB.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

if __package__ in (None, ""):  # run as a file: the repository is not yet on the path
    sys.path.insert(0, str(Path(__file__).parents[1]))

from scanrl.bench.timing import heading, measure, print_rows
from scanrl.data import Dataset
from scanrl.data.windows import WindowSampler
from scanrl.models.atari import ATARI
from scanrl.models.decision import DecisionModel
from scanrl.models.recipes import recipe
from scanrl.stats import Stats
from scanrl.types import Spec

SPEC = Spec((84, 84), "discrete", 6, observation_dtype="uint8", frame_stack=4)
LENGTH, BLOCK = 2000, 4096
CASES = (("dt", 16, 30), ("dmm-dc", 16, 20), ("dmm-dc", 64, 20))


def recording(folder: Path, steps: int) -> Dataset:
    """Random pictures, as a memory-mapped column."""
    rng = np.random.default_rng(0)
    pictures = np.lib.format.open_memmap(folder / "observations.npy", "w+", np.uint8, (steps, 84, 84))
    for start in range(0, steps, BLOCK):
        part = pictures[start : start + BLOCK]
        part[:] = np.frombuffer(rng.bytes(part.size), np.uint8).reshape(part.shape)
    pictures.flush()
    del pictures
    return Dataset.from_arrays(
        observations=np.load(folder / "observations.npy", mmap_mode="r"),
        actions=rng.integers(0, 6, steps),
        rewards=rng.integers(-1, 2, steps),
        terminations=np.arange(steps) % LENGTH == LENGTH - 1,
        spec=SPEC,
    )


def pixel_rows(
    data: Dataset, name: str, batch_size: int, context: int, repeats: int, device: str
) -> list[dict[str, Any]]:
    """Times sampling and the whole update of a recipe's Atari form, sampling included."""
    sampler = WindowSampler(data, context, batch_size, seed=0)
    before = _memory()
    for _ in range(20):
        sampler.sample()
    grown = _memory() - before
    config = recipe(name, **{**ATARI[name], "context": context}).model
    model = DecisionModel(config, data.spec, Stats.fit(data)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)

    def update() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss = model.loss(sampler.sample().to(device))
        loss.backward()
        optimizer.step()
        loss.item()  # waits for the device

    times = measure({"sample": sampler.sample, "update": update}, repeats, budget_s=60)
    whole = times["update"].median_ms
    facts = {"steps": data.steps, "batch": batch_size, "context": context, "device": device, "grown_mb": grown}
    return [
        {
            "case": f"{name} B={batch_size} K={context}",
            "impl": way,
            "median_ms": timing.median_ms,
            "p10_ms": timing.p10,
            "p90_ms": timing.p90,
            "share": 100 * timing.median_ms / whole,
            **facts,
            "threads": torch.get_num_threads(),
        }
        for way, timing in times.items()
    ]


def _memory() -> float:
    """Most memory the process has had, less what it shares with files, MB where the system tells."""
    try:
        words = Path("/proc/self/statm").read_text().split()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return (int(words[1]) - int(words[2])) * resource.getpagesize() / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object per row")
    parser.add_argument("--steps", type=int, default=216_000, help="pictures of the recording")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each way")
    parser.add_argument("--device", default="cpu")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if not chosen.json:
        print(heading())
    with tempfile.TemporaryDirectory() as folder:
        data = recording(Path(folder), chosen.steps)
        for name, size, context in CASES:
            print_rows(pixel_rows(data, name, size, context, chosen.repeats, chosen.device), chosen.json)


if __name__ == "__main__":
    main()
