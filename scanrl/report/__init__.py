"""One HTML page about one training run: `write_report(path, Report(...))`. Whoever has numbers can fill a `Report`."""

from __future__ import annotations

from scanrl.report.content import Curve, NextStep, Report, Row, describe_machine
from scanrl.report.page import render_report, write_report

__all__ = ["Curve", "NextStep", "Report", "Row", "describe_machine", "render_report", "write_report"]
