"""Interquartile means and stratified bootstrap intervals by rliable: what tests/test_intervals_oracle.py compares with.

    python -m venv /somewhere && /somewhere/bin/pip install rliable==1.2.0 'pandas<3'
    /somewhere/bin/python tools/rliable_oracle.py > tests/rliable.json

rliable is archived and brings scipy, pandas and matplotlib, so that it is used here and nowhere else.
"""

from __future__ import annotations

import json
from importlib import metadata
from typing import Any

import numpy as np
from rliable import library, metrics

RESAMPLES = 50_000


def cases() -> dict[str, np.ndarray]:
    """`(runs, tasks)` scores: one task, several, and a skewed distribution."""
    rng = np.random.default_rng(7)
    return {
        "one task": np.round(rng.normal(70, 12, (12, 1)), 3),
        "three tasks": np.round(rng.normal(70, 12, (10, 3)), 3),
        "skewed": np.round(rng.gamma(2.0, 20.0, (16, 2)), 3),
    }


def figures(scores: np.ndarray) -> dict[str, Any]:
    """What rliable says of one array."""

    def both(x: np.ndarray) -> np.ndarray:
        return np.array([metrics.aggregate_iqm(x), metrics.aggregate_mean(x)])

    point, interval = library.get_interval_estimates(
        {"x": scores}, both, reps=RESAMPLES, random_state=np.random.RandomState(0)
    )
    return {
        "scores": scores.tolist(),
        "iqm": float(point["x"][0]),
        "mean": float(point["x"][1]),
        "iqm_interval": interval["x"][:, 0].tolist(),
        "mean_interval": interval["x"][:, 1].tolist(),
    }


if __name__ == "__main__":
    versions = {name: metadata.version(name) for name in ("rliable", "arch", "numpy", "scipy")}
    found = {name: figures(scores) for name, scores in cases().items()}
    print(json.dumps({"versions": versions, "resamples": RESAMPLES, "cases": found}))
