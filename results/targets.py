"""The targets for speed, and what the committed rows say of each: met, missed by how much, or not measured.

Targets are ratios of candidates that took turns in one process, or fractions of a limit measured beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

__all__ = ["TARGETS", "Rows", "Target", "verdict"]


class Rows:
    """Rows by benchmark and by what they hold."""

    def __init__(self, rows: Sequence[dict[str, Any]]) -> None:
        self._rows = rows

    def of(self, benchmark: str) -> list[dict[str, Any]]:
        """The rows of a benchmark, without how it was run."""
        return [row for row in self._rows if row["benchmark"] == benchmark and row.get("case") != "run"]

    def value(self, benchmark: str, field: str, **match: Any) -> float | None:
        """The field of the first row that matches; `None` if there is none."""
        for row in self.of(benchmark):
            if all(row.get(key) == wanted for key, wanted in match.items()):
                return row.get(field)
        return None

    def faster(self, benchmark: str, case: str, impl: str, than: str) -> float | None:
        """How many times faster `impl` is than another one of the same case."""
        mine = self.value(benchmark, "median_ms", case=case, impl=impl)
        other = self.value(benchmark, "median_ms", case=case, impl=than)
        return other / mine if mine and other else None


class Target(NamedTuple):
    """A quantity, how it should compare with `goal`, and where to find it."""

    area: str
    what: str
    sign: Literal[">=", "<="]
    goal: float
    unit: str
    found: Callable[[Rows], float | None]


def verdict(target: Target, rows: Rows) -> tuple[str, str]:
    """What was found and whether that meets the target, as text."""
    found = target.found(rows)
    if found is None:
        return "-", "not measured"
    shown = f"{_number(found)}{target.unit}"
    if found >= target.goal if target.sign == ">=" else found <= target.goal:
        return shown, "met"
    factor = target.goal / found if target.sign == ">=" else found / target.goal
    return shown, f"missed by a factor of {factor:.2f}" if factor >= 1.1 else f"missed by {100 * (factor - 1):.1f} %"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _quotient(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None


def _ours(rows: Rows, field: str, case: str) -> float | None:
    return rows.value("training", field, case=case, impl="ours")


def _acting(shape: str, width: int, field: str = "ratio") -> Callable[[Rows], float | None]:
    """`ratio` is that of a Decision Transformer's window of the same width over the carried state."""
    recipe = {128: "dm", 64: "dmm-dc"}[width]
    match = {"case": "environment step", "shape": f"{shape}, width {width}", "impl": recipe}
    return lambda rows: rows.value("speed", field, **match)


def _floors(width: int) -> Callable[[Rows], float | None]:
    """The time of one stream over the least that the limits allow."""
    return lambda rows: _quotient(1.0, _acting("1 stream", width, "of_limit")(rows))


def _per_batch(rows: Rows) -> float | None:
    ratios = [row["ratio"] for row in rows.of("batches") if row["impl"] == "gather"]
    return min(ratios, default=None)


def _share(rows: Rows) -> float | None:
    batch = rows.value("batches", "median_ms", case="B=64 K=8", impl="gather")
    share = _quotient(batch, _ours(rows, "median_ms", "W1"))
    return None if share is None else 100 * share


def _pixels(case: str) -> Callable[[Rows], float | None]:
    return lambda rows: rows.value("pixels", "share", case=case, impl="sample")


def _lengthening(rows: Rows) -> float | None:
    long, short = (rows.value("growth", "us_per_token", case=f"L={n}", impl="mamba") for n in (24000, 24))
    return _quotient(long, short)


def _in_context(case: str, than: str) -> Callable[[Rows], float | None]:
    return lambda rows: rows.faster("in context", case, "mamba", than)


def _hybrid(case: str, than: str) -> Callable[[Rows], float | None]:
    return lambda rows: rows.faster("in context", case, "hybrid", than)


def _histories(learner: str) -> Callable[[Rows], float | None]:
    return lambda rows: rows.value("histories", "million_steps_per_s", case="Darkroom-v0", impl=learner)


def _training(case: str, than: str) -> Callable[[Rows], float | None]:
    return lambda rows: rows.faster("training", case, "ours", than)


ONE, THREE = "1 token a step", "3 tokens a step"
TARGETS = [
    Target("scan, forward and backward", "W1, than the classic loop", ">=", 40, "x",
           lambda rows: rows.faster("scan", "W1", "native", "classic loop")),
    Target("scan, forward and backward", "W2, than the classic loop", ">=", 250, "x",
           lambda rows: rows.faster("scan", "W2", "native", "classic loop")),
    Target("training step, W1", "than the reference structure", ">=", 13, "x", _training("W1", "reference structure")),
    Target("training step, W1", "than mambapy", ">=", 11, "x", _training("W1", "mambapy")),
    Target("training step, W1", "of its arithmetic alone", "<=", 1.25, "x",
           lambda rows: _quotient(1.0, rows.faster("training", "W1", "ours", "arithmetic alone"))),
    Target("training step, W2", "than the reference structure", ">=", 60, "x", _training("W2", "reference structure")),
    Target("training step, W2", "than mambapy", ">=", 12, "x", _training("W2", "mambapy")),
    Target("training step, W2", "than the Decision Transformer's", ">=", 1, "x",
           lambda rows: rows.faster("attention", "train W2", "dm", "attention stack")),
    Target("training step, W2", "bf16 than float32", ">=", 1.4, "x",
           lambda rows: rows.faster("training", "W2", "ours bf16", "ours")),
    Target("training step, W6", "per token", "<=", 11, " us", lambda rows: _ours(rows, "us_per_token", "W6")),
    Target("training step, W6", "per token, of that of W1", "<=", 1.1, "x",
           lambda rows: _quotient(_ours(rows, "us_per_token", "W6"), _ours(rows, "us_per_token", "W1"))),
    Target("training step, W6", "than the attention stack", ">=", 1, "x",
           lambda rows: rows.faster("attention", "train W6", "dmm-dc", "attention stack")),
    Target("batch assembly", "than the published loop", ">=", 100, "x", _per_batch),
    Target("batch assembly", "of the training step, W1", "<=", 1, " %", _share),
    Target("sampling pictures", "of the training step, dt, 16 windows of 30", "<=", 5, " %", _pixels("dt B=16 K=30")),
    Target("sampling pictures", "of the training step, dmm-dc, 16 windows of 20", "<=", 5, " %",
           _pixels("dmm-dc B=16 K=20")),
    Target("sampling pictures", "of the training step, dmm-dc, 64 windows of 20", "<=", 5, " %",
           _pixels("dmm-dc B=64 K=20")),
    Target("environment step, 1 stream", "D=128, than the DT window", ">=", 28, "x", _acting("1 stream", 128)),
    Target("environment step, 1 stream", "D=64, than the DT window", ">=", 50, "x", _acting("1 stream", 64)),
    Target("environment step, 1 stream", "D=128, of the floor", "<=", 2, "x", _floors(128)),
    Target("environment step, 1 stream", "D=64, of the floor", "<=", 2, "x", _floors(64)),
    Target("environment step, 64 streams", "D=128, than the DT window", ">=", 15, "x", _acting("64 streams", 128)),
    Target("environment step, 64 streams", "D=64, than the DT window", ">=", 15, "x", _acting("64 streams", 64)),
    Target("length", "time per token at 24,000, of that at 24", "<=", 1.5, "x", _lengthening),
    Target("length", "memory per token at 24,000", "<=", 14, " KB",
           lambda rows: rows.value("growth", "kb_per_token", case="L=24000", impl="mamba")),
    Target("in context", "1 token, than the cache", ">=", 30, "x", _in_context(ONE, "cached")),
    Target("in context", "3 tokens, than the cache", ">=", 30, "x", _in_context(THREE, "cached")),
    Target("in context", "1 token, than the cache in place", ">=", 30, "x", _in_context(ONE, "cached in place")),
    Target("in context", "3 tokens, than the cache in place", ">=", 30, "x", _in_context(THREE, "cached in place")),
    Target("in context", "Decision Mamba-Hybrid, 1 token, than the cache", ">=", 4, "x", _hybrid(ONE, "cached")),
    Target("in context", "Decision Mamba-Hybrid, 4 tokens, than the cache", ">=", 4, "x", _hybrid(THREE, "cached")),
    Target("in context", "Decision Mamba-Hybrid, 1 token, than recomputing", ">=", 250, "x",
           _hybrid(ONE, "recomputed")),
    Target("in context", "Decision Mamba-Hybrid, 4 tokens, than recomputing", ">=", 250, "x",
           _hybrid(THREE, "recomputed")),
    Target("learning histories", "of `noise` in the dark room", ">=", 10, " million steps/s", _histories("noise")),
    Target("learning histories", "of `q` in the dark room", ">=", 10, " million steps/s", _histories("q")),
    Target("many seeds", "side by side on the CPU, than one after the other, W1", ">=", 1, "x",
           lambda rows: rows.faster("seeds", "W1", "in turn", "one after the other")),
    Target("many seeds", "side by side on the CPU, than one after the other, W6", ">=", 1, "x",
           lambda rows: rows.faster("seeds", "W6", "in turn", "one after the other")),
    Target("start", "import beyond torch's own", "<=", 1000, " ms",
           lambda rows: rows.value("start", "median_ms", case="import", impl="scanrl.training after torch")),
]  # fmt: skip
