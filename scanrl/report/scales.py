"""From values to places on a drawing: scales, round ticks, numbers as text, and SVG elements as escaped text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

__all__ = ["Scale", "element", "labels", "legible", "number", "path", "round_scale", "text_width", "ticks"]


@dataclass(frozen=True)
class Scale:
    """Maps `low..high` to `start..end` pixels, straight or logarithmic."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, values: np.ndarray | float) -> np.ndarray:
        """Pixels of `values`, any shape."""
        low, high, x = self.low, self.high, np.asarray(values, np.float64)
        if self.log:
            low, high, x = np.log10(low), np.log10(high), np.log10(np.maximum(x, 1e-300))
        return self.start + (x - low) / (high - low) * (self.end - self.start)

    def ticks(self, count: int = 5) -> list[float]:
        """About `count` round values inside the scale."""
        if not self.log:
            return [t for t in ticks(self.low, self.high, count) if self.low <= t <= self.high]
        powers = range(int(np.floor(np.log10(self.low))), int(np.ceil(np.log10(self.high))) + 1)
        for digits in ((1, 2, 5), (1, 3), (1,)):  # as many as fit
            found = [d * 10.0**p for p in powers for d in digits if self.low <= d * 10.0**p <= self.high]
            if len(found) <= count + 1:
                break
        return found[:: 1 + len(found) // (count + 2)]


def ticks(low: float, high: float, count: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten, about `count` of them, that enclose `low..high`."""
    raw = (high - low) / max(count, 1)
    power = 10.0 ** np.floor(np.log10(raw))
    step = float(next(m for m in (1, 2, 5, 10) if m * power >= raw * 0.999) * power)
    first, last = np.floor(low / step + 1e-9), np.ceil(high / step - 1e-9)
    return [float(f"{k * step:.12g}") for k in np.arange(first, last + 1)]


def round_scale(values: np.ndarray, start: float, end: float, *, count: int = 5, allow_log: bool = False) -> Scale:
    """A scale that holds all `values`, begins and ends on a tick, and shows zero where it is near."""
    low, high = float(np.min(values)), float(np.max(values))
    if allow_log and low > 0 and high > 20 * low:
        return Scale(low * 0.9, high * 1.1, start, end, log=True)
    if low > 0 and low < 0.5 * high:
        low = 0.0
    if high <= low:  # one value only
        low, high = low - (abs(low) * 0.1 or 1.0), high + (abs(high) * 0.1 or 1.0)
    marks = ticks(low, high, count)
    return Scale(marks[0], marks[-1], start, end)


def number(value: float | None, digits: int = 3) -> str:
    """`3,105`, `31.2`, `0.00412`, with a true minus sign; a dash for nothing."""
    if value is None or not np.isfinite(value):
        return "–"
    size = abs(value)
    if size >= 10 ** (digits - 1) or float(value).is_integer():
        text = f"{value:,.0f}" if size < 1e9 else f"{value:.{digits}g}"
    elif size >= 1:
        text = f"{value:.{digits - len(str(int(size)))}f}"
    else:
        text = f"{value:.{digits}g}"
    text = text.replace("-", "−")
    return "0" if text == "−0" else text


def labels(marks: Sequence[float]) -> list[str]:
    """Tick labels, all in one unit: `5k`, `10k`; `0.002`; `1,000`."""
    most = max((abs(mark) for mark in marks), default=0.0)
    unit, suffix = next(((u, s) for u, s in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if most >= 10 * u), (1.0, ""))
    return [f"{mark / unit:,.6g}{suffix if mark else ''}".replace("-", "−") for mark in marks]


def text_width(text: str, size: float = 12.0) -> float:
    """About how wide a label is, pixels: enough to keep labels apart."""
    wide = sum(letter in "mwMW" for letter in text)
    return size * (0.56 * len(text) + 0.32 * wide)


def element(tag: str, *children: Markup | str, **attributes: str | float | None) -> Markup:
    """`<tag a="..">children</tag>`, everything escaped; `class_` and `stroke_width` lose their underscores."""
    written = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{_value(value)}"'
        for name, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{tag}{written}>{''.join(str(escape(c)) for c in children)}</{tag}>")


def path(x: np.ndarray, y: np.ndarray) -> str:
    """The `d` of a polyline."""
    return "M" + "L".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))


def legible(places: Sequence[float], gap: float) -> list[float]:
    """The same places pushed apart so that no two are nearer than `gap`, in the same order."""
    order = np.argsort(np.asarray(places), kind="stable")
    placed = np.asarray(places, np.float64)[order]
    for _ in range(len(placed)):
        for k in range(1, len(placed)):
            lack = gap - (placed[k] - placed[k - 1])
            if lack > 1e-9:
                placed[k - 1] -= lack / 2
                placed[k] += lack / 2
    found = np.empty(len(placed))
    found[order] = placed
    return found.tolist()


def _value(value: str | float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, (float, np.floating)) else str(escape(value))
