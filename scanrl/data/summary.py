"""A dataset in a few figures: what `scanrl data info` prints."""

from __future__ import annotations

from typing import Any

import numpy as np

from scanrl.data.dataset import Dataset

__all__ = ["summary"]

_WHERE_SET = ("action_parts", "observation_parts", "observation_dtype", "frame_stack")


def summary(dataset: Dataset) -> dict[str, Any]:
    """Counts, shapes, lengths and returns (raw units) as plain values."""
    returns, lengths, spec = dataset.returns, dataset.lengths, dataset.spec
    last = dataset.offsets[1:] - 1
    top = np.sort(returns)[-max(1, len(returns) // 10) :]
    owners = {name: len(np.unique(column)) for name, column in dataset.episode_columns.items()}
    return {
        "name": dataset.name,
        "env_id": spec.env_id,
        "episodes": len(dataset),
        "steps": dataset.steps,
        "observation_shape": list(spec.observation_shape),
        "action_kind": spec.action_kind,
        "action_size": spec.action_size,
        **{name: value for name, value in spec.to_json().items() if name in _WHERE_SET},
        "length_min": int(lengths.min()),
        "length_mean": float(lengths.mean()),
        "length_max": int(lengths.max()),
        "return_min": float(returns.min()),
        "return_mean": float(returns.mean()),
        "return_median": float(np.median(returns)),
        "return_std": float(returns.std()),
        "return_top_tenth": float(top.mean()),
        "return_max": float(returns.max()),
        "terminated": int(dataset.terminations[last].sum()),
        "truncated": int(dataset.truncations[last].sum()),
        **owners,
        "fingerprint": dataset.fingerprint,
    }
