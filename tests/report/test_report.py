"""The page: it says the numbers, loads nothing, runs nothing, and leaves out what it does not have."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from scanrl.report import Curve, NextStep, Report, Row, describe_machine, render_report, write_report
from scanrl.report.scales import Scale, labels, legible, number, ticks
from scanrl.types import DataError, Trajectory

STEPS = np.arange(10, 5001, 10)
FULL = Report(
    title="Decision Mamba on Hopper-v5",
    env_id="Hopper-v5",
    rows=[
        Row(
            "Decision Mamba",
            "policy",
            np.array([3000.0, 3100.0, 2900.0, 3050.0]),
            np.array([990, 1000, 940, 970]),
            "last",
        ),
        Row("Behaviour cloning", "baseline", np.array([1500.0, 1700.0])),
        Row("Data", "data", np.linspace(500, 2500, 101)),
        Row("Random", "random", np.array([10.0, 30.0])),
    ],
    target_return=3600.0,
    train_loss=Curve(STEPS, np.exp(-STEPS / 1000) + 0.01),
    validation_loss=Curve(STEPS[::50], np.exp(-STEPS[::50] / 1000) + 0.0234),
    evaluations=Curve(
        np.array([1000, 2000]), np.array([800.0, 3012.5]), np.array([700.0, 2950.0]), np.array([900.0, 3075.0])
    ),
    config={"recipe": "decision_mamba", "train": {"steps": 5000, "lr": 1e-4}},
    provenance={"Fingerprint": "9f2c41d0", "Versions": {"torch": "2.13.0"}, "Machine": describe_machine()},
    next_steps=[NextStep("Train three seeds.", "scanrl train --seeds 3")],
)


class Page(HTMLParser):
    """Tags and text of a page; fails on tags that are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br", "link", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data.replace("\N{NO-BREAK SPACE}", " ")


def test_the_page_says_the_numbers():
    text = Page(render_report(FULL)).text
    assert "Decision Mamba earns 3,012 per episode on Hopper-v5; the episodes it learned from average 1,500." in text
    for said in ("3,012", "93.2", "+1,512", "+1,412", "1,600", "975", "9f2c41d0", "torch 2.13.0", "lr: 0.0001"):
        assert said in text, said
    for said in (
        "scanrl train --seeds 3",
        "1 seed, no interval over seeds",
        "−20.3 is 0 and 3,234 is 100",
        "mujoco-py",
    ):
        assert said in text, said


def test_the_page_loads_nothing_and_runs_nothing():
    page = render_report(FULL)
    assert not re.search(r"https?:|//\w|url\(|@import", page)
    loading = {"script", "link", "img", "iframe", "object", "embed", "video", "audio", "base", "form"}
    for tag, attributes in Page(page).tags:
        assert tag not in loading
        assert not {"src", "href", "xlink:href"} & set(attributes)
        assert not [name for name in attributes if name.startswith("on")]


def test_whatever_the_run_is_called_stays_text():
    evil = "<script>alert('x')</script>\"&"
    report = replace(
        FULL,
        title=evil,
        rows=[Row(evil, "policy", np.array([1.0, 2.0]), note=evil), Row(evil, "data", np.array([1.0]))],
        config={evil: evil},
        provenance={evil: evil},
        next_steps=[NextStep(evil, evil)],
        notes=[evil],
        headline=None,
    )
    page = render_report(report)
    assert "<script" not in page
    assert evil in Page(page).text
    svg = [attributes for tag, attributes in Page(page).tags if tag == "svg" and "role" in attributes]
    assert any(evil in (attributes["aria-label"] or "") for attributes in svg)


def test_what_is_missing_is_left_out():
    page = render_report(Report(title="Nothing yet"))
    assert "<svg" not in page
    assert "<section" not in page
    assert "<h1>Nothing yet</h1>" in page
    losses = render_report(Report(title="Logs", validation_loss=Curve(np.array([5, 10]), np.array([0.5, 0.25]))))
    assert "Logs: held-out loss 0.25 at step 10." in Page(losses).text
    assert "<table" not in losses


def test_every_chart_has_a_title_for_those_who_cannot_see_it():
    drawn = [attributes for tag, attributes in Page(render_report(FULL)).tags if tag == "svg"]
    assert len(drawn) == 4 + 2 * 3  # one bar per row; each chart for wide and for narrow pages
    assert all(a.get("aria-label") if a.get("role") == "img" else a.get("aria-hidden") for a in drawn)


@pytest.mark.parametrize(
    "values", [[500.0], [500.0] * 20, [0.0, 0.0], [-5.0, -1e6], [1e-9, 2e-9], [-1.0, 1.0], [1e7, 3.0]]
)
def test_charts_stand_unusual_returns(values):
    rows = [Row("P", "policy", np.array(values)), Row("D", "data", np.array(values[:1]))]
    curve = Curve(np.arange(len(values)), np.array(values), np.array(values) - 1, np.array(values) + 1)
    for target in (None, 0.0, 1e12, values[0]):
        page = render_report(Report("t", rows=rows, evaluations=curve, train_loss=curve, target_return=target))
        Page(page)
        assert "nan" not in page.lower()
        assert "inf" not in re.sub(r"<style>.*?</style>", "", page, flags=re.S).lower()


def test_a_loss_that_is_not_finite_is_not_drawn():
    values = np.array([1.0, np.nan, 0.5, np.inf])
    page = render_report(Report("t", train_loss=Curve(np.arange(4), values)))
    assert "nan" not in page
    assert "at step 2" in page
    assert "<svg" not in render_report(Report("t", train_loss=Curve(np.arange(2), np.array([np.nan, np.nan]))))


def test_long_curves_are_thinned_so_that_the_page_stays_small():
    steps = np.arange(200_000)
    page = render_report(replace(FULL, train_loss=Curve(steps, 1 / (steps + 1.0))))
    assert len(page) < 100_000


def test_rows_come_from_trajectories():
    one = Trajectory(np.zeros((2, 1)), np.zeros((2, 1)), np.array([1.0, 2.0]), np.zeros(2, bool), np.ones(2, bool))
    row = Row.of("Policy", "policy", [one, one])
    assert row.returns.tolist() == [3.0, 3.0]
    assert row.lengths is not None
    assert row.lengths.tolist() == [2, 2]
    with pytest.raises(DataError, match="report: row Policy: returns: expected finite"):
        Row("Policy", "policy", np.array([np.nan]))


def test_writing_replaces_the_page_and_leaves_nothing_else(tmp_path):
    target = tmp_path / "run" / "report.html"
    write_report(target, FULL)
    write_report(target, replace(FULL, title="Second"))
    assert "<title>Second</title>" in target.read_text(encoding="utf-8")
    assert [x.name for x in target.parent.iterdir()] == ["report.html"]


def test_numbers_read_as_people_write_them():
    values = (3105.4, 31.24, 1.239, 0.0123456, -20.27, 0.0, 500.0, -0.0001, None, float("nan"))
    assert [number(v) for v in values] == ["3,105", "31.2", "1.24", "0.0123", "−20.3", "0", "500", "−0.0001", "–", "–"]


def test_ticks_are_round_and_share_a_unit():
    assert ticks(0, 1, 5) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(-7, 23, 4) == [-10, 0, 10, 20, 30]
    assert labels([0, 5000, 10000]) == ["0", "5k", "10k"]
    assert labels([-1000, 0, 1000]) == ["−1,000", "0", "1,000"]
    assert Scale(0.011, 2.0, 0, 100, log=True).ticks(4) == pytest.approx([0.03, 0.1, 0.3, 1.0])
    assert len(Scale(1e-9, 1e6, 0, 100, log=True).ticks(4)) <= 6


def test_labels_are_pushed_apart_and_keep_their_order():
    placed = legible([50.0, 52.0, 10.0], 15)
    assert placed[2] == 10.0
    assert placed[1] - placed[0] >= 15 - 1e-6
