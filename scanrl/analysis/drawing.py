"""The drawings of an analysis: SVG files that stand alone and follow light and dark."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from scanrl.analysis.activations import Activation
from scanrl.analysis.spectra import Spectrum
from scanrl.report.scales import Scale, element, labels, number

__all__ = ["draw_activations", "draw_spectra"]

STYLE = """
svg { font: 12px system-ui, sans-serif; background: #fff; fill: #333 }
.title { font-weight: 600 } .soft { fill: #777 } .axis { stroke: #999 } .bar, .cell { fill: #2563a8 }
.mark { stroke: #b4481e; stroke-width: 1.5 } .mark-name { fill: #b4481e } .frame { fill: none; stroke: #ccc }
@media (prefers-color-scheme: dark) {
  svg { background: #16181c; fill: #ddd } .soft { fill: #999 } .axis { stroke: #666 } .bar, .cell { fill: #6aa5e8 }
  .mark { stroke: #e8875c } .mark-name { fill: #e8875c } .frame { stroke: #444 }
}
"""
WIDTH, LEFT, GAP, HEIGHT, TOP = 880.0, 24.0, 48.0, 96.0, 54.0
BINS = 40


def draw_spectra(found: Sequence[Spectrum], window: int | None = None) -> Markup:
    """Two histograms for every scan: sizes of its eigenvalues, and environment steps of memory.

    Args:
        found: from `spectra`.
        window: steps that the model was trained on, to be marked among the memories.
    """
    half = (WIDTH - 2 * LEFT - GAP) / 2
    panels = [
        ("size of the eigenvalues of A", [-s.eigenvalues.ravel() for s in found], None),
        ("memory, environment steps", [s.memory.ravel() for s in found], window),
    ]
    body = []
    for column, (title, values, mark) in enumerate(panels):
        left = LEFT + column * (half + GAP)
        body.append(element("text", title, x=left, y=18.0, class_="title"))
        x = _log_scale(np.concatenate(values), left, left + half)
        for row, one in enumerate(values):
            floor = TOP + row * (HEIGHT + 44) + HEIGHT
            body += _histogram(one, x, floor, mark)
            body.append(element("text", found[row].name, x=left, y=floor - HEIGHT - 4, class_="soft"))
    return _svg(body, WIDTH, TOP + len(found) * (HEIGHT + 44) + 8)


def _log_scale(values: np.ndarray, start: float, end: float) -> Scale:
    low, high = float(values.min()), float(values.max())
    return Scale(low / 1.3, high * 1.3, start, end, log=True)


def _histogram(values: np.ndarray, x: Scale, floor: float, mark: int | None) -> list[Markup]:
    edges = np.geomspace(x.low, x.high, BINS + 1)
    counts = np.histogram(values, edges)[0]
    at, tops = x(edges), HEIGHT * counts / max(counts.max(), 1)
    drawn = []
    for k in np.flatnonzero(counts):
        told = element(
            "title", f"{100 * counts[k] / values.size:.1f} % from {number(edges[k])} to {number(edges[k + 1])}"
        )
        size = {"width": float(at[k + 1] - at[k]) - 1, "height": float(tops[k])}
        drawn.append(element("rect", told, x=float(at[k]), y=floor - float(tops[k]), class_="bar", **size))
    drawn.append(element("line", x1=x.start, x2=x.end, y1=floor, y2=floor, class_="axis"))
    marks = x.ticks(6)
    for tick, label in zip(marks, labels(marks), strict=True):
        drawn.append(element("text", label, x=float(x(tick)), y=floor + 15, text_anchor="middle", class_="soft"))
    middle = float(np.median(values))
    named = [(middle, f"median {number(middle)}", -4.0)]
    named += [(float(mark), f"window {mark}", 10.0)] if mark is not None and x.low < mark < x.high else []
    for value, name, down in named:
        place = float(x(value))
        near_end = place > x.end - 90
        drawn.append(element("line", x1=place, x2=place, y1=floor - HEIGHT, y2=floor, class_="mark"))
        anchor = {"text_anchor": "end"} if near_end else {}
        shift = -5.0 if near_end else 5.0
        drawn.append(element("text", name, x=place + shift, y=floor - HEIGHT + down, class_="mark-name", **anchor))
    return drawn


def draw_activations(found: Sequence[Activation], names: Sequence[str], first_step: int = 0, row: int = 0) -> Markup:
    """Two maps of every scan over the steps of one window, a line for each token of a step: what it writes into the
    state, darkest where most, and the share of it that is left after the window, darkest where all of it.

    Args:
        found: from `activations`.
        names: of the tokens of a step: the letters of the layout, or one name where they are merged.
        first_step: index of the window's first step in its episode.
        row: which of the windows.
    """
    half = (WIDTH - 2 * LEFT - GAP) / 2
    steps, tokens = found[0].written.shape[1:]
    line = 16.0
    panel = tokens * line
    body = []
    for column, title in enumerate(("written into the state", "share left after the last step")):
        left = LEFT + column * (half + GAP)
        body.append(element("text", title, x=left, y=18.0, class_="title"))
        x = Scale(0.0, float(steps), left + 16, left + half)
        for place, one in enumerate(found):
            top = TOP + place * (panel + 44)
            values = one.written[row] / one.written[row].max() if column == 0 else one.left[row]
            body.append(element("text", one.name, x=left, y=top - 6, class_="soft"))
            body += _cells(values.T, names, x, top, line, first_step)
    return _svg(body, WIDTH, TOP + len(found) * (panel + 44))


def _cells(values: np.ndarray, names: Sequence[str], x: Scale, top: float, line: float, first: int) -> list[Markup]:
    """A map `(M, T)` of values from 0 to 1."""
    drawn = []
    edges = x(np.arange(values.shape[1] + 1))
    for token, name in enumerate(names):
        y = top + token * line
        drawn.append(element("text", name, x=x.start - 6, y=y + 12, text_anchor="end"))
        for step, value in enumerate(values[token]):
            told = element("title", f"step {first + step}, {name}: {number(float(value))}")
            place = {"x": float(edges[step]), "width": float(edges[step + 1] - edges[step])}
            shown = f"{float(np.clip(value, 0, 1)):.3f}"
            drawn.append(element("rect", told, y=y, height=line - 1, class_="cell", fill_opacity=shown, **place))
    size = {"width": x.end - x.start, "height": line * len(names) - 1}
    drawn.append(element("rect", x=x.start, y=top, class_="frame", **size))
    for tick in (tick for tick in x.ticks(6) if tick < 0.93 * x.high):
        label = f"{first + int(tick)}"
        drawn.append(element("text", label, x=float(x(tick)), y=top + size["height"] + 15, class_="soft"))
    drawn.append(element("text", "step", x=x.end, y=top + size["height"] + 15, text_anchor="end", class_="soft"))
    return drawn


def _svg(body: Sequence[Markup], width: float, height: float) -> Markup:
    size = {"width": width, "height": height, "viewBox": f"0 0 {width:g} {height:g}"}
    return element("svg", element("style", Markup(STYLE)), *body, xmlns="http://www.w3.org/2000/svg", **size)
