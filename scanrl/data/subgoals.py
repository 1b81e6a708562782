"""Valuable states: from every step, the later one of the same episode that earns most per step on the way.

Symbols: `n` steps, `E` episodes, `T` steps of the longest one.
"""

from __future__ import annotations

import numpy as np

__all__ = ["mean_rewards", "valuable_steps"]

_BLOCK = 1 << 20  # steps of the episodes handled together


def valuable_steps(rewards: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """`(n,)` int64: for every step `i` the step `g(i) = argmax_{j > i} v(i, j)` of its episode, as a flat index.

    `v(i, j) = (r_{i+1} + ... + r_j) / (j - i)` is the mean reward from `i` to `j`. With prefix sums `P` it is the slope
    from `(i, P_i)` to `(j, P_j)`, and the steepest line to the right touches the upper convex hull of the points there:
    where the hull of `i + 1` is known, that of `i` is found by walking along it, and every point is passed once. One
    episode takes O(T); the episodes of a block take their walks side by side.

    The last step of an episode has itself. Ties: the nearest step, and the last one where the best mean is 0, so that
    an episode without reward points to its end. Sums are float64: ties of rewards that it holds exactly (integers,
    halves) are seen, those of others may be decided by rounding.

    Args:
        rewards: `(n,)`, raw units.
        offsets: `(E + 1,)` int64; episode `i` holds the steps `offsets[i]` to `offsets[i + 1]`.

    Reference: Huang et al. 2024 (Decision Mamba-Hybrid), arXiv 2406.00079, section 4; ties are not stated there.
    """
    lengths, out = np.diff(offsets), np.empty(len(rewards), np.int64)
    by_length = np.argsort(lengths, kind="stable")  # padding to the longest of a block then costs little
    start = 0
    while start < len(by_length):
        stop = start + 1
        while stop < len(by_length) and (stop + 1 - start) * lengths[by_length[stop]] <= _BLOCK:
            stop += 1
        block = by_length[start:stop]
        valid = np.arange(int(lengths[block[-1]])) < lengths[block][:, None]  # (rows, T)
        padded = np.zeros(valid.shape)
        steps = (offsets[block][:, None] + np.arange(valid.shape[1]))[valid]
        padded[valid] = rewards[steps]
        goals = _goals(padded.cumsum(axis=1), lengths[block])
        out[steps] = (goals + offsets[block][:, None])[valid]
        start = stop
    return out


def mean_rewards(rewards: np.ndarray, goals: np.ndarray) -> np.ndarray:
    """`(n,)` float32: `v(i, g(i))`, the mean reward on the way from every step to `goals` `(n,)`; 0 where there is
    none to go."""
    sums, here = np.cumsum(rewards, dtype=np.float64), np.arange(len(goals))
    return ((sums[goals] - sums) / np.maximum(goals - here, 1)).astype(np.float32)


def _goals(sums: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """`g` `(rows, T)` within episodes of `lengths` `(rows,)`, from prefix sums `(rows, T)`."""
    rows, steps = sums.shape
    every = np.arange(rows)
    following = np.tile(np.arange(steps), (rows, 1))  # the next point of the hull that begins here; the last has itself
    level = following.copy()  # the last point to the right at the same height, where the hull begins flat
    goals = following.copy()
    for i in range(steps - 2, -1, -1):
        here = sums[:, i]
        j = np.where(i + 1 < lengths, i + 1, i)
        while True:
            k = following[every, j]
            # Strictly steeper: of equal slopes the nearer point stays. Products spare a division by zero.
            better = (sums[every, k] - here) * (j - i) > (sums[every, j] - here) * (k - i)
            if not better.any():
                break
            j = np.where(better, k, j)
        flat = (sums[every, j] == here) & (j > i)
        following[:, i] = j
        goals[:, i] = np.where(flat, level[every, j], j)
        level[:, i] = np.where(flat, goals[:, i], i)
    return goals
