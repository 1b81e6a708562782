"""How sure a score is: mean or interquartile mean of runs or episodes, and an interval for it.

Successes and failures (values of 1 and 0): the interval of a mean is Wilson's, which is not empty where all are alike.

Else, fewer than eight values: the interval of a mean is Student's, `mean ± t * s / sqrt(n)`. A bootstrap of so few can
only reach from the lowest to the highest of them (three normal values hold the truth three times in four then).

From eight values on, and for other statistics, intervals are percentile bootstrap intervals whose percentiles are
widened as Hesterberg proposes ("expanded percentile"), so that ten values give the coverage that was asked for: a plain
percentile interval of ten values misses the truth one time in ten where it promises one in twenty.

Reference: Wilson 1927, Probable Inference, https://doi.org/10.1080/01621459.1927.10502953;
Hesterberg 2015, What Teachers Should Know About the Bootstrap, https://arxiv.org/abs/1411.5279;
Agarwal et al. 2021, Deep RL at the Edge of the Statistical Precipice, https://arxiv.org/abs/2108.13264;
Welch 1947, The generalization of "Student's" problem, https://doi.org/10.1093/biomet/34.1-2.28.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import NormalDist

import numpy as np

from scanrl.types import DataError

__all__ = ["Statistic", "bootstrap_interval", "describe_runs", "interquartile_mean", "mean", "stratified_bootstrap"]

Statistic = Callable[[np.ndarray], np.ndarray]
"""`(..., values) -> (...)`: `mean`, `interquartile_mean` or another."""

FEW = 8
"""Below so many values a mean has Student's interval."""


def mean(values: np.ndarray) -> np.ndarray:
    """Mean along the last axis."""
    return np.asarray(values, np.float64).mean(-1)


def interquartile_mean(values: np.ndarray) -> np.ndarray:
    """Mean of the middle half along the last axis: a quarter of the values (rounded down) is cut from each end."""
    ordered = np.sort(np.asarray(values, np.float64), axis=-1)
    cut = ordered.shape[-1] // 4
    return ordered[..., cut : ordered.shape[-1] - cut].mean(-1)


def bootstrap_interval(
    values: np.ndarray | Sequence[float],
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
    statistic: Statistic = mean,
) -> tuple[float, float]:
    """Interval of a statistic (the mean) of independent `values`, `(n,)`; nothing is resampled for a mean of few.

    Covers at its nominal rate where the values are not strongly skewed, and less where they are. Of fewer than eight
    values, a statistic other than `mean` gets at most the range of its resamples and covers less than it promises.

    Raises:
        DataError: fewer than two values: one says nothing about spread.
    """
    found = np.asarray(values, np.float64)
    if found.ndim != 1 or len(found) < 2:
        raise DataError(f"bootstrap_interval: values: expected a vector of 2 or more, got shape {found.shape}")
    if statistic is mean and np.isin(found, (0, 1)).all():
        return _wilson(float(found.mean()), len(found), confidence)
    return _interval(found[:, None], confidence, resamples, seed, statistic)


def stratified_bootstrap(
    scores: np.ndarray | Sequence[float],
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
    statistic: Statistic = interquartile_mean,
) -> tuple[float, float] | None:
    """Interval of a statistic over all of `scores`, `(runs, tasks)` or `(runs,)`: runs are drawn within each task.

    An entry is the mean over the episodes of one training run (one seed): episodes of a run are not independent
    evidence about training, so more of them never stand in for more runs. `None` for one run. With fewer than eight
    runs ask for `mean`, whose interval is then Student's; see `bootstrap_interval` for what others give.
    """
    found = _runs_and_tasks(scores)
    return None if len(found) < 2 else _interval(found, confidence, resamples, seed, statistic)


def describe_runs(scores: np.ndarray | Sequence[float]) -> str:
    """One line for `(runs, tasks)` or `(runs,)` scores: `IQM 78.3, 95 % interval 71.2 to 84.0 over 10 seeds`.

    With fewer than eight runs it tells the mean instead, for which there is an interval that holds.
    """
    found = _runs_and_tasks(scores)
    (runs, tasks), few = found.shape, len(found) < FEW
    interval = stratified_bootstrap(found, statistic=mean if few else interquartile_mean)
    value = f"mean {found.mean():.1f}" if few else f"IQM {float(interquartile_mean(found.ravel())):.1f}"
    over = f" x {tasks} tasks" if tasks > 1 else ""
    if interval is None:
        return f"{value}, 1 seed{over}, no interval over seeds"
    return f"{value}, 95 % interval {interval[0]:.1f} to {interval[1]:.1f} over {runs} seeds{over}"


def _runs_and_tasks(scores: np.ndarray | Sequence[float]) -> np.ndarray:
    found = np.asarray(scores, np.float64)
    found = found[:, None] if found.ndim == 1 else found
    if found.ndim != 2 or not found.size:
        raise DataError(f"scores: expected (runs, tasks) or (runs,), got shape {found.shape}")
    return found


def _interval(
    scores: np.ndarray, confidence: float, resamples: int, seed: int, statistic: Statistic
) -> tuple[float, float]:
    # The interquartile mean of up to three values cuts nothing: it is the mean.
    is_mean = statistic is mean or (statistic is interquartile_mean and scores.size < 4)
    if is_mean and len(scores) < FEW:
        return _students(scores, confidence)
    return _percentiles(scores, confidence, resamples, seed, statistic)


def _wilson(share: float, count: int, confidence: float) -> tuple[float, float]:
    """Wilson's score interval of a share of successes."""
    square = NormalDist().inv_cdf((1 + confidence) / 2) ** 2 / count
    middle = (share + square / 2) / (1 + square)
    half = float(np.sqrt(square * share * (1 - share) + square**2 / 4)) / (1 + square)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def _students(scores: np.ndarray, confidence: float) -> tuple[float, float]:
    """Interval of the mean over tasks; tasks may spread differently (degrees of freedom as Welch has them)."""
    runs, tasks = scores.shape
    parts = scores.var(axis=0, ddof=1) / runs / tasks**2  # each task's share of the variance of the mean
    middle, variance = float(scores.mean()), float(parts.sum())
    if not variance:
        return middle, middle
    shares = parts / variance
    freedom = int((runs - 1) / (shares**2).sum() + 1e-9)  # rounded down: rather too wide
    half = _student_quantile((1 + confidence) / 2, freedom) * float(np.sqrt(variance))
    return middle - half, middle + half


def _percentiles(
    scores: np.ndarray, confidence: float, resamples: int, seed: int, statistic: Statistic
) -> tuple[float, float]:
    runs, tasks = scores.shape
    rng = np.random.default_rng(seed)
    found = np.empty(resamples)
    block = max(1, 2_000_000 // scores.size)  # bounds the memory for many values
    for start in range(0, resamples, block):
        drawn = rng.integers(runs, size=(min(block, resamples - start), runs, tasks))
        found[start : start + block] = statistic(scores[drawn, np.arange(tasks)].reshape(len(drawn), -1))
    tail = _expanded_tail((1 - confidence) / 2, runs, tasks)
    low, high = np.quantile(found, [tail, 1 - tail])
    return float(low), float(high)


def _expanded_tail(tail: float, runs: int, tasks: int) -> float:
    """Share of resamples to leave out on each side so that `tail` of the intervals miss on that side.

    A resample of n values spreads by sqrt((n-1)/n) too little, and a normal quantile stands where Student's belongs.
    """
    return NormalDist().cdf(-np.sqrt(runs / (runs - 1)) * _student_quantile(1 - tail, tasks * (runs - 1)))


def _student_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t above the median, by bisection of its distribution (exact finite series)."""
    low, high = 0.0, 1e4
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if _student_cdf(middle, freedom) < probability else (low, middle)
    return high


def _student_cdf(t: float, freedom: int) -> float:
    """Reference: Abramowitz and Stegun 1964, 26.7.3 and 26.7.4."""
    angle = np.arctan(t / np.sqrt(freedom))
    term, total = (np.cos(angle), 0.0) if freedom % 2 else (1.0, 0.0)
    for k in range(freedom % 2, freedom - 1, 2):
        total += term
        term *= np.cos(angle) ** 2 * (k + 1) / (k + 2)
    total *= np.sin(angle)
    return 0.5 + ((angle + total) / np.pi if freedom % 2 else total / 2)
