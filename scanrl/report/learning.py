"""Curves as SVG files that stand alone and follow light and dark: return against episode, and panels of any charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup

from scanrl.report.charts import Line, Mark, line_chart
from scanrl.report.scales import element, number

__all__ = ["PANEL", "STYLES", "draw_learning", "panels"]

STYLES = ("first", "second", "third", "fourth", "fifth")
"""Colours of curves, in their order; more than these share the last one."""

STYLE = """
svg { font: 12px system-ui, sans-serif; background: #fff; fill: #333 }
.grid { stroke: #e6e6e1 } .axis { stroke: #999 } .tick, .axis-name { fill: #777 }
.mark { stroke: #777; stroke-dasharray: 3 3 } .mark-name { fill: #777 } .title { font-weight: 600 }
.curve { fill: none; stroke: var(--line); stroke-width: 2; stroke-linejoin: round }
.band { fill: var(--line); opacity: .16 } .dot { fill: var(--line) } .name { fill: var(--line) }
.first { --line: #2a5bd7 } .second { --line: #b8590b } .third { --line: #2f855a } .fourth { --line: #8a3ffc }
.fifth { --line: #c2255c }
.history { --line: #9aa1ab }
@media (prefers-color-scheme: dark) {
  svg { background: #16181c; fill: #ddd } .grid { stroke: #2a2d32 } .axis { stroke: #666 }
  .tick, .axis-name, .mark-name { fill: #999 } .mark { stroke: #999 }
  .first { --line: #86a8ff } .second { --line: #f0a556 } .third { --line: #68d391 } .fourth { --line: #be95ff }
  .fifth { --line: #f783ac }
  .history { --line: #6d7785 }
}
"""
WIDTH, HEIGHT, TOP = 760.0, 320.0, 24.0
PANEL = 430.0, 260.0
"""Width and height of a chart where two stand side by side."""


def draw_learning(
    title: str,
    curves: Mapping[str, np.ndarray],
    history: np.ndarray | None = None,
    marks: Mapping[str, float] | None = None,
    band: tuple[np.ndarray, np.ndarray] | None = None,
) -> Markup:
    """Mean return against the number of the episode, with the range of the runs as a band.

    Args:
        title: said above.
        curves: by name, `(runs, n)`: the mean return of each run in its episodes 1 to `n`.
        history: `(m,)`, mean return of the learner the histories are of, in its episodes; drawn as far as `n`.
        marks: names and returns of further lines, such as those of the optimal and of a random policy.
        band: `(n,)` each, ends of the band of the first curve where it is not the range of its runs.
    """
    lines = []
    for place, (name, runs) in enumerate(curves.items()):
        ends = (runs.min(0), runs.max(0)) if len(runs) > 1 else None
        ends = band if place == 0 and band is not None else ends
        lines.append(_line(name, runs.mean(0), STYLES[min(place, len(STYLES) - 1)], ends))
    if history is not None:
        most = max(runs.shape[1] for runs in curves.values())
        lines.append(_line("its learner", history[:most], "history"))
    last = "; ".join(f"{line.name} {number(float(line.values[-1]))}" for line in lines)
    chart = line_chart(
        lines,
        width=WIDTH,
        height=HEIGHT,
        title=f"{title}: return against episode. Last: {last}.",
        y_name="return of an episode",
        x_name="episode",
        marks=[Mark(name, value) for name, value in (marks or {}).items()],
    )
    return panels([(title, [chart])], WIDTH, HEIGHT)


def panels(rows: Sequence[tuple[str, Sequence[Markup]]], width: float = PANEL[0], height: float = PANEL[1]) -> Markup:
    """Charts, each drawn for `width` and `height`, in rows below a title each."""
    most = max(len(charts) for _, charts in rows)
    body = [element("style", Markup(STYLE))]
    for row, (title, charts) in enumerate(rows):
        top = row * (height + TOP)
        body.append(element("text", title, x=2.0, y=top + 18.0, class_="title"))
        for column, chart in enumerate(charts):
            body.append(element("svg", chart, x=column * width, y=top + TOP, width=width, height=height))
    size = {"width": most * width, "height": len(rows) * (height + TOP)}
    box = f"0 0 {size['width']:g} {size['height']:g}"
    return element("svg", *body, xmlns="http://www.w3.org/2000/svg", viewBox=box, **size)


def _line(name: str, values: np.ndarray, style: str, ends: tuple[np.ndarray, np.ndarray] | None = None) -> Line:
    low, high = (None, None) if ends is None else ends
    return Line(name, np.arange(1, len(values) + 1), np.asarray(values, np.float64), style, low, high)
