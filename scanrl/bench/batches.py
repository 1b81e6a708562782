"""Batch assembly: one vectorised gather against the per-item loop that decision-transformer code bases use.

Both give the same batch (checked first): hopper shapes, windows of `K` steps, right padding, raw units.
`published loop` sums the returns-to-go again for each item, as the published code does; `lean loop` is the same with
returns-to-go computed beforehand.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from scanrl.batch import Batch
from scanrl.bench.equality import Differs
from scanrl.bench.timing import Timing, measure, rows_of
from scanrl.data.dataset import Dataset
from scanrl.data.windows import WindowSampler

__all__ = ["batch_rows", "loop_batch", "recording"]

_STEPS, _LENGTH = 200_000, 1000


def recording() -> Dataset:
    """Random numbers in the shapes of hopper: 200 episodes of 1000 steps."""
    rng = np.random.default_rng(0)
    return Dataset.from_arrays(
        observations=rng.normal(size=(_STEPS, 11)),
        actions=rng.uniform(-1, 1, (_STEPS, 3)),
        rewards=rng.uniform(0, 4, _STEPS),
        terminations=np.zeros(_STEPS),
        truncations=np.arange(_STEPS) % _LENGTH == _LENGTH - 1,
    )


def episodes_of(dataset: Dataset) -> list[dict[str, np.ndarray]]:
    """The list of dictionaries the loop reads."""
    names = ("observations", "actions", "rewards", "returns_to_go")
    pairs = zip(dataset.offsets[:-1], dataset.offsets[1:], strict=True)
    return [{name: np.array(getattr(dataset, name)[a:b]) for name in names} for a, b in pairs]


def loop_batch(
    episodes: list[dict[str, np.ndarray]], items: list[tuple[int, int]], context: int, sum_returns: bool
) -> Batch:
    """One slice and one padding concatenation per item and field, then one concatenation over items."""
    columns: dict[str, list[np.ndarray]] = {name: [] for name in Batch._fields}
    for index, start in items:
        episode = episodes[index]
        later = _later_rewards(episode["rewards"][start:]) if sum_returns else episode["returns_to_go"][start:]
        length = min(context, len(episode["rewards"]) - start)
        parts = {
            "observations": episode["observations"][start : start + context],
            "actions": episode["actions"][start : start + context],
            "rewards": episode["rewards"][start : start + context],
            "returns_to_go": later[:context],
            "timesteps": np.arange(start, start + length),
            "mask": np.ones(length, np.bool_),
        }
        for name, part in parts.items():
            padding = np.zeros((context - length, *part.shape[1:]), part.dtype)
            columns[name].append(np.concatenate([part, padding])[None])
    return Batch(**{name: torch.from_numpy(np.concatenate(parts)) for name, parts in columns.items() if parts})


def _later_rewards(rewards: np.ndarray) -> np.ndarray:
    """The reversed running sum of the published code, in float64."""
    sums = np.zeros(len(rewards))
    total = 0.0
    for step in reversed(range(len(rewards))):
        total = sums[step] = float(rewards[step]) + total
    return sums.astype(np.float32)


def batch_rows(dataset: Dataset, batch_size: int, context: int, repeats: int, turn: int = 10) -> list[dict[str, Any]]:
    """Times the three ways at one size, `turn` batches in a row, after checking that they agree."""
    sampler = WindowSampler(dataset, context, batch_size, seed=0)
    episodes, rng = episodes_of(dataset), np.random.default_rng(0)
    shares = dataset.lengths / dataset.steps

    def draw() -> list[tuple[int, int]]:
        chosen = rng.choice(len(episodes), size=batch_size, p=shares)
        return [(int(i), int(rng.integers(len(episodes[i]["rewards"])))) for i in chosen]

    _require_equal(dataset, episodes, batch_size, context)
    ways = {
        "gather": sampler.sample,
        "lean loop": lambda: loop_batch(episodes, draw(), context, sum_returns=False),
        "published loop": lambda: loop_batch(episodes, draw(), context, sum_returns=True),
    }
    times = measure({name: partial(_repeat, way, turn) for name, way in ways.items()}, repeats, budget_s=10)
    each = {name: Timing(*(value / turn for value in timing)) for name, timing in times.items()}
    return rows_of(f"B={batch_size} K={context}", each, "published loop")


def _repeat(way: Callable[[], Batch], turn: int) -> None:
    for _ in range(turn):
        way()


def _require_equal(dataset: Dataset, episodes: list[dict[str, np.ndarray]], batch_size: int, context: int) -> None:
    """The first batch of a sampler equals the loop's over the same starts; many, so that some are padded."""
    many = 20 * batch_size
    starts = np.random.default_rng(0).integers(dataset.steps, size=many)
    batch = WindowSampler(dataset, context, many, seed=0).sample()
    items = [(int(start) // _LENGTH, int(start) % _LENGTH) for start in starts]
    for sum_returns in (False, True):
        expected = loop_batch(episodes, items, context, sum_returns)
        for name, mine, theirs in zip(Batch._fields, batch, expected, strict=True):
            if not torch.equal(mine, theirs):
                raise Differs(f"{name}: the loop and the gather differ; not timed")
