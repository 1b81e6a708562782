"""From a `Report` to one HTML file that loads nothing: numbers here, drawing in `charts`, looks in the template."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from markupsafe import Markup

from scanrl.envs.reference_scores import reference_score
from scanrl.intervals import bootstrap_interval
from scanrl.report.charts import Line, Mark, histogram, interval_bar, line_chart
from scanrl.report.content import Curve, Report, Row
from scanrl.report.scales import number
from scanrl.report.template import render

__all__ = ["render_report", "write_report"]

WIDE, NARROW = 940.0, 380.0  # widths that charts are drawn for; the style sheet shows one of the two


def write_report(path: str | Path, report: Report) -> None:
    """Writes the page to `path` (usually `report.html`); an older page stays whole until the new one is."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    part.write_text(render_report(report), encoding="utf-8")
    part.replace(target)


def render_report(report: Report) -> str:
    """The page as text."""
    return render(
        "report.html",
        title=report.title,
        headline=report.headline or _headline(report),
        tiles=_tiles(report),
        table=_table(report),
        notes=[*_notes(report), *report.notes],
        figures=[f for f in (_returns_figure(report), _loss_figure(report), _evaluations_figure(report)) if f],
        next_steps=report.next_steps,
        config=_config_text(report.config),
        provenance={name: _plain(value) for name, value in report.provenance.items()},
    )


def _headline(report: Report) -> str:
    policy, cloning, recorded = (report.first(role) for role in ("policy", "baseline", "data"))
    if policy is None:
        last = _last(report.validation_loss) or _last(report.train_loss)
        kind = "held-out" if _last(report.validation_loss) else "training"
        return report.title if last is None else f"{report.title}: {kind} loss {number(last[1])} at step {last[0]:,}."
    where = f" on {report.env_id}" if report.env_id else ""
    earned = f"{policy.name} earns {number(_mean(policy))} per episode{where}"
    if recorded is not None:
        return f"{earned}; the episodes it learned from average {number(_mean(recorded))}."
    return f"{earned}; {cloning.name} earns {number(_mean(cloning))}." if cloning else f"{earned}."


def _tiles(report: Report) -> list[dict[str, str]]:
    """Up to four numbers under the headline."""
    policy, cloning, recorded = (report.first(role) for role in ("policy", "baseline", "data"))
    if policy is None:
        return _loss_tiles(report)
    tiles = [_tile("Mean return", number(_mean(policy)), _interval_text(policy))]
    scored = _normalized(report, _mean(policy))
    if scored is not None:
        tiles.append(_tile("Normalised score", _score_text(scored), "0 is random, 100 the reference"))
    if recorded is not None:
        tiles.append(_against(policy, recorded, "Against its data"))
    if cloning is not None:
        tiles.append(_against(policy, cloning, f"Against {cloning.name[:1].lower() + cloning.name[1:]}"))
    if report.target_return is not None and len(tiles) < 4:
        share = f"it got {100 * _mean(policy) / report.target_return:.0f} %" if report.target_return > 0 else ""
        tiles.append(_tile("Return asked for", number(report.target_return), share))
    if policy.lengths is not None and len(tiles) < 4:
        tiles.append(_tile("Episode length", number(float(np.mean(policy.lengths))), "steps on average"))
    return tiles[:4]


def _loss_tiles(report: Report) -> list[dict[str, str]]:
    curves = (("Held-out loss", report.validation_loss), ("Training loss", report.train_loss))
    last = [(name, _last(curve)) for name, curve in curves]
    return [_tile(name, number(at[1]), f"at step {at[0]:,}") for name, at in last if at is not None]


def _tile(name: str, value: str, detail: str) -> dict[str, str]:
    return {"name": name, "value": value, "detail": detail}


def _against(policy: Row, other: Row, name: str) -> dict[str, str]:
    gap = _mean(policy) - _mean(other)
    return _tile(name, ("+" if gap > 0 else "") + number(gap), f"mean of {number(_mean(other))}")


def _table(report: Report) -> dict[str, Any] | None:
    if not report.rows:
        return None
    intervals = [_interval(row) for row in report.rows]
    means = [_mean(row) for row in report.rows]
    ends = [v for interval in intervals if interval for v in interval] + means
    spare = 0.04 * (max(ends) - min(ends)) or 1.0
    domain = (min(ends) - spare, max(ends) + spare)
    rows = []
    for row, interval, mean in zip(report.rows, intervals, means, strict=True):
        rows.append(
            {
                "name": row.name,
                "note": row.note,
                "role": row.role,
                "mean": number(mean),
                "std": number(float(np.std(row.returns))),
                "interval": "–" if interval is None else _range(interval),
                "bar": interval_bar(mean, interval, domain, row.role),
                "score": _score_text(_normalized(report, mean)),
                "episodes": f"{len(row.returns):,}",
                "length": "–" if row.lengths is None else number(float(np.mean(row.lengths))),
            }
        )
    return {"rows": rows, "scored": _normalized(report, 0.0) is not None}


def _notes(report: Report) -> list[str]:
    if not report.rows:
        return []
    runs = "1 seed, no interval over seeds" if report.seeds == 1 else f"{report.seeds} training seeds"
    notes = [f"Intervals: 95 % bootstrap of the mean over episodes. Training runs: {runs}."]
    reference = reference_score(report.env_id) if report.env_id else None
    if reference is not None:
        scale = f"Score: return {number(reference.low)} is 0 and {number(reference.high)} is 100 ({reference.source})."
        notes.append(scale + (f" Caution: {reference.caution}." if reference.caution else ""))
    return notes


def _returns_figure(report: Report) -> dict[str, Any] | None:
    shown = [row for row in (report.first("data"), report.first("policy")) if row is not None]
    if not shown:
        return None
    marks = []
    uncertain = report.first("random")
    if uncertain is not None:
        marks.append(Mark("random", _mean(uncertain)))
    if report.target_return is not None:
        marks.append(Mark("asked for", report.target_return))
    groups = [(row.name, np.asarray(row.returns, np.float64), row.role) for row in shown]
    told = "; ".join(f"{row.name}: mean {number(_mean(row))}" for row in shown)
    draw = [
        histogram(groups, marks, width=width, height=height, title=f"Histogram of returns. {told}.")
        for width, height in ((WIDE, 300.0), (NARROW, 270.0))
    ]
    legend = [{"style": row.role, "text": f"{row.name}, {len(row.returns):,} episodes"} for row in shown]
    return _figure(
        "Returns",
        "Returns of the episodes it learned from and of its own; each shape is scaled to its own peak.",
        draw,
        legend,
    )


def _loss_figure(report: Report) -> dict[str, Any] | None:
    curves = (("train", report.train_loss), ("held out", report.validation_loss))
    lines = [
        Line(name, np.asarray(c.steps), np.asarray(c.values, np.float64), "train" if name == "train" else "validation")
        for name, c in curves
        if c is not None and c.drawable
    ]
    if not lines:
        return None
    last = "; ".join(f"{line.name} {number(float(line.values[np.isfinite(line.values)][-1]))}" for line in lines)
    draw = [
        line_chart(
            lines, width=w, height=260.0, title=f"Loss against step. Last: {last}.", y_name="loss", allow_log=True
        )
        for w in (WIDE, NARROW)
    ]
    caption = "Loss on the training data" + (" and on episodes held out." if len(lines) == 2 else ".")
    return _figure("Learning", caption, draw)


def _evaluations_figure(report: Report) -> dict[str, Any] | None:
    curve = report.evaluations
    if curve is None or np.isfinite(np.asarray(curve.values, np.float64)).sum() < 2:
        return None  # one point is in the table already
    line = Line("policy", np.asarray(curve.steps), np.asarray(curve.values), "policy", curve.low, curve.high, dots=True)
    recorded = report.first("data")
    marks = [] if recorded is None else [Mark("data", _mean(recorded))]
    at = _last(curve)
    told = "" if at is None else f" Last: {number(at[1])}."
    draw = [
        line_chart(
            [line], width=w, height=260.0, title=f"Return against step.{told}", y_name="mean return", marks=marks
        )
        for w in (WIDE, NARROW)
    ]
    return _figure("Evaluation during training", "Mean return of each checkpoint, with 95 % interval.", draw)


def _figure(
    name: str, caption: str, drawings: list[Markup], legend: list[dict[str, str]] | None = None
) -> dict[str, Any]:
    return {"name": name, "caption": caption, "wide": drawings[0], "narrow": drawings[1], "legend": legend or []}


def _mean(row: Row) -> float:
    return float(np.mean(row.returns))


def _interval(row: Row) -> tuple[float, float] | None:
    return bootstrap_interval(row.returns) if len(row.returns) > 1 else None


def _interval_text(row: Row) -> str:
    interval = _interval(row)
    if interval is None:
        return "one episode"
    return f"95\N{NO-BREAK SPACE}% interval {_range(interval)}"


def _range(interval: tuple[float, float]) -> str:
    return f"{number(interval[0])} to {number(interval[1])}".replace(" ", "\N{NO-BREAK SPACE}")


def _normalized(report: Report, value: float) -> float | None:
    reference = reference_score(report.env_id) if report.env_id else None
    return None if reference is None else 100 * (value - reference.low) / (reference.high - reference.low)


def _score_text(score: float | None) -> str:
    return "–" if score is None else f"{score:.1f}".replace("-", "−")


def _last(curve: Curve | None) -> tuple[int, float] | None:
    if curve is None or not curve.drawable:
        return None
    k = np.flatnonzero(np.isfinite(np.asarray(curve.values, np.float64)))[-1]
    return int(curve.steps[k]), float(curve.values[k])


def _config_text(config: Any) -> str:
    return config if isinstance(config, str) else yaml.safe_dump(dict(config), sort_keys=False) if config else ""


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items())
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
