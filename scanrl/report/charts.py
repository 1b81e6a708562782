"""The charts of a report as inline SVG: coloured by the page's style sheet, so they follow light and dark.

Every function takes the width it is drawn for (pixels): text keeps its size, and the page shows the drawing that fits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from scanrl.report.scales import Scale, element, labels, legible, number, path, round_scale, text_width, ticks

__all__ = ["Line", "Mark", "histogram", "interval_bar", "line_chart"]

LEFT, BOTTOM, TOP = 46.0, 42.0, 26.0
MOST_POINTS = 240  # more than one every two or three pixels is only a thicker line


class Line(NamedTuple):
    """One curve: `style` is a class of the page (`policy`, `data`, `train`, `validation`); `low`/`high` a band."""

    name: str
    steps: np.ndarray
    values: np.ndarray
    style: str
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    dots: bool = False


class Mark(NamedTuple):
    """A reference value with its name."""

    name: str
    value: float


def line_chart(
    lines: Sequence[Line],
    *,
    width: float,
    height: float,
    title: str,
    y_name: str,
    marks: Sequence[Mark] = (),
    allow_log: bool = False,
    x_name: str = "training step",
    x_labels: Mapping[float, str] | None = None,
    log_x: bool = False,
) -> Markup:
    """Values against training steps, or whatever `x_name` says, each curve labelled at its end.

    `x_labels` are the marks of that axis, in the place of round numbers; with `log_x` all steps are above 0.
    """
    lines = [_thinned(line) for line in lines]
    names = [*(line.name for line in lines), *(mark.name for mark in marks)]
    right = width - 14 - max(text_width(name) for name in names)
    steps = np.concatenate([line.steps for line in lines])
    held = [a for line in lines for a in (line.values, line.low, line.high) if a is not None]
    y = round_scale(
        np.concatenate([*held, [m.value for m in marks]]), height - BOTTOM, TOP, count=4, allow_log=allow_log
    )
    if log_x:
        x = Scale(float(steps.min()) / 1.1, float(steps.max()) * 1.1, LEFT, right, log=True)
    else:
        x = Scale(float(min(steps.min(), 0)), float(max(steps.max(), 1)), LEFT, right)
    body = [_grid(x, y, y_name, x_name, x_labels)]
    for mark in marks:
        at = float(y(mark.value))
        body.append(element("line", x1=LEFT, x2=right, y1=at, y2=at, class_="mark"))
    for line in lines:
        body.append(_curve(line, x, y, x_name))
    ends = [float(y(line.values[-1])) for line in lines] + [float(y(mark.value)) for mark in marks]
    styles = [line.style for line in lines] + ["mark-name"] * len(marks)
    for name, style, at in zip(names, styles, legible(ends, 15), strict=True):
        body.append(element("text", name, x=right + 8, y=at + 4, class_=f"name {style}"))
    return _svg(body, width, height, title)


def histogram(
    groups: Sequence[tuple[str, np.ndarray, str]],
    marks: Sequence[Mark],
    *,
    width: float,
    height: float,
    title: str,
) -> Markup:
    """Spread of returns: an overlaid shape per `(name, returns, style)`, scaled to its peak, with reference lines."""
    values = np.concatenate([returns for _, returns, _ in groups])
    low, high = float(values.min()), float(values.max())
    # A reference far away would squeeze the episodes into a corner: it is left out (the table has it).
    reach = (high - low) or abs(high) or 1.0
    marks = [m for m in marks if low - reach <= m.value <= high + reach]
    low, high = min([low, *(m.value for m in marks)]), max([high, *(m.value for m in marks)])
    if high <= low:
        low, high = low - 0.5 * reach, high + 0.5 * reach
    edges = np.array(ticks(low, high, 48 if width > 600 else 28))
    shares = [100 * np.histogram(returns, edges)[0] / len(returns) for _, returns, _ in groups]
    x = Scale(edges[0], edges[-1], 12.0, width - 12)
    rows = _stagger([(float(x(m.value)), f"{m.name} {number(m.value)}") for m in marks], width)
    top = 10 + 16 * (1 + max((row for _, row, _ in rows), default=-1))
    body = [_x_axis(x, height - BOTTOM, "return of an episode")]
    for (name, _, style), share in zip(groups, shares, strict=True):
        # One common height would flatten wide data under a policy whose episodes are all alike.
        body.append(_bars(name, style, edges, share, x, Scale(0.0, float(share.max()), height - BOTTOM, top)))
    for mark, (anchor_x, row, anchor) in zip(marks, rows, strict=True):
        at, label_y = float(x(mark.value)), 12 + 16 * row
        label = element("tspan", number(mark.value), class_="mark-value")
        body.append(element("line", x1=at, x2=at, y1=label_y + 5, y2=height - BOTTOM, class_="mark"))
        body.append(
            element("text", f"{mark.name} ", label, x=anchor_x, y=label_y, text_anchor=anchor, class_="mark-name")
        )
    return _svg(body, width, height, title)


def interval_bar(mean: float, interval: tuple[float, float] | None, domain: tuple[float, float], style: str) -> Markup:
    """A dot with whiskers on the scale `domain`, to stand in a row of the score table."""
    width, height = 150.0, 18.0
    x = Scale(*domain, 6, width - 6)
    body = [element("line", x1=0.0, x2=width, y1=9.0, y2=9.0, class_="rail")]
    if interval is not None:
        ends = [float(x(v)) for v in interval]
        body.append(element("line", x1=ends[0], x2=ends[1], y1=9.0, y2=9.0, class_=f"whisker {style}"))
    body.append(element("circle", cx=float(x(mean)), cy=9.0, r=3.5, class_=f"dot {style}"))
    return _svg(body, width, height, None)


def _thinned(line: Line) -> Line:
    """At most `MOST_POINTS` points: means of runs of points, with the least and greatest of each run as the band."""
    keep = np.isfinite(line.values)
    steps, values = np.asarray(line.steps, np.float64)[keep], np.asarray(line.values, np.float64)[keep]
    if line.low is not None or len(values) <= MOST_POINTS:
        low, high = (None if b is None else np.asarray(b, np.float64)[keep] for b in (line.low, line.high))
        return line._replace(steps=steps, values=values, low=low, high=high)
    runs = np.array_split(np.arange(len(values)), MOST_POINTS)
    mean, low, high = (np.array([f(values[r]) for r in runs]) for f in (np.mean, np.min, np.max))
    return line._replace(steps=np.array([steps[r].mean() for r in runs]), values=mean, low=low, high=high)


def _curve(line: Line, x: Scale, y: Scale, x_name: str) -> Markup:
    at, height = x(line.steps), y(line.values)
    drawn = []
    if line.low is not None and line.high is not None:
        outline = path(np.concatenate([at, at[::-1]]), np.concatenate([y(line.high), y(line.low)[::-1]])) + "Z"
        drawn.append(element("path", d=outline, class_=f"band {line.style}"))
    drawn.append(element("path", d=path(at, height), class_=f"curve {line.style}"))
    if line.dots or len(at) == 1:
        for k, (cx, cy) in enumerate(zip(at, height, strict=True)):
            told = f"{x_name} {number(line.steps[k])}: {number(line.values[k])}"
            if line.low is not None and line.high is not None:
                told += f" ({number(line.low[k])} to {number(line.high[k])})"
            circle = element("circle", element("title", told), cx=float(cx), cy=float(cy), r=3.2, class_="dot")
            drawn.append(element("g", circle, class_=line.style))
    return element("g", *drawn)


def _bars(name: str, style: str, edges: np.ndarray, share: np.ndarray, x: Scale, y: Scale) -> Markup:
    """One filled outline for the group, and an invisible bar per bin that tells its numbers under the pointer."""
    left, base, height = x(edges), float(y(0.0)), y(share)
    used = np.flatnonzero(share)
    part = slice(used[0], used[-1] + 1)
    corners = np.repeat(left[used[0] : used[-1] + 2], 2), np.concatenate([[base], np.repeat(height[part], 2), [base]])
    drawn = [element("path", d=path(*corners) + "Z", class_=f"shape {style}")]
    for k in used:
        told = element("title", f"{name}: {share[k]:.1f} % from {number(edges[k])} to {number(edges[k + 1])}")
        size = {"width": float(left[k + 1] - left[k]), "height": float(base - height[k])}
        drawn.append(element("rect", told, x=float(left[k]), y=float(height[k]), class_="touch", **size))
    return element("g", *drawn)


def _grid(x: Scale, y: Scale, y_name: str, x_name: str, x_labels: Mapping[float, str] | None) -> Markup:
    drawn = [_x_axis(x, y.start, x_name, x_labels)]
    marks = y.ticks(4)
    for tick, label in zip(marks, labels(marks), strict=True):
        at = float(y(tick))
        style = "axis" if tick == 0 else "grid"
        drawn.append(element("line", x1=x.start, x2=x.end, y1=at, y2=at, class_=style))
        drawn.append(element("text", label, x=x.start - 8, y=at + 4, text_anchor="end", class_="tick"))
    drawn.append(element("text", y_name, x=2.0, y=12.0, class_="axis-name"))
    return element("g", *drawn)


def _x_axis(x: Scale, floor: float, name: str, named: Mapping[float, str] | None = None) -> Markup:
    drawn = [element("line", x1=x.start, x2=x.end, y1=floor, y2=floor, class_="axis")]
    marks = x.ticks(7 if x.end > 560 else 4)
    shown = dict(zip(marks, labels(marks), strict=True)) if named is None else named
    for tick, label in shown.items():
        at = float(x(tick))
        drawn.append(element("line", x1=at, x2=at, y1=floor, y2=floor + 4, class_="axis"))
        drawn.append(element("text", label, x=at, y=floor + 18, text_anchor="middle", class_="tick"))
    drawn.append(element("text", name, x=x.end, y=floor + 36, text_anchor="end", class_="axis-name"))
    return element("g", *drawn)


def _stagger(labels: Sequence[tuple[float, str]], width: float) -> list[tuple[float, int, str]]:
    """Place, row and anchor of each label, so that none overlaps another or leaves the drawing."""
    placed: list[tuple[float, int, str]] = [(0.0, 0, "middle")] * len(labels)
    ends: list[float] = []  # where the last label of each row ends
    for k in sorted(range(len(labels)), key=lambda i: labels[i][0]):
        at, half = labels[k][0], text_width(labels[k][1]) / 2
        anchor = "start" if at - half < 2 else "end" if at + half > width - 2 else "middle"
        begin = {"start": at, "end": at - 2 * half, "middle": at - half}[anchor]
        row = next((r for r, end in enumerate(ends) if begin > end + 10), len(ends))
        ends[row:] = [begin + 2 * half, *ends[row + 1 :]]
        placed[k] = (at, row, anchor)
    return placed


def _svg(body: Sequence[Markup], width: float, height: float, title: str | None) -> Markup:
    told: dict[str, str] = {"aria_hidden": "true"} if title is None else {"role": "img", "aria_label": title}
    return element("svg", *body, viewBox=f"0 0 {width:g} {height:g}", style=f"max-width:{width:g}px", **told)
