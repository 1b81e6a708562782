"""Images of a dataset: kept once, as bytes, where they are, and copied only for the windows of a batch.

Symbols: `n` steps, `B` batch, `K` context in steps, `k` images a model sees at each step, `O` shape of an image.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from scanrl.data.dataset import Dataset

__all__ = ["gather_frames"]


def gather_frames(dataset: Dataset, starts: np.ndarray, context: int) -> np.ndarray:
    """The images `(B, K + k - 1, *O)` uint8 that windows of `K` steps from the flat steps `starts` `(B,)` need.

    Image `i + k - 1` is that of the window's step `i`; the `k - 1` before the first come first. What is before the
    episode's start or behind its end is black: so Dopamine, which recorded the papers' data, fills its stack, and
    so does the environment of the released Decision Transformer.
    """
    steps = starts[:, None] + np.arange(1 - dataset.spec.frame_stack, context)
    after = dataset.offsets.searchsorted(starts, side="right")
    column: Any = dataset.observations
    frames = column.take(steps, axis=0, mode="clip")
    outside = (steps < dataset.offsets[after - 1][:, None]) | (steps >= dataset.offsets[after][:, None])
    if outside.any():
        frames[outside] = 0
    return np.asarray(frames)
