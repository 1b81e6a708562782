"""The committed page is what the committed rows give, and its targets are judged from rows alone."""

from __future__ import annotations

import pytest

from results import speed
from results.page import write_page
from results.targets import TARGETS, Rows, Target, verdict

COMMANDS = {name: measurement.command() for name, measurement in speed.MEASUREMENTS.items()}
MACHINE = {
    "benchmark": "machine",
    "processor": "A processor",
    "cores": 2,
    "kernels": "native",
    "versions": {"torch": "2.13.0", "mambapy": None},
    "revision": "abc",
}


def test_the_committed_page_is_what_the_rows_give() -> None:
    assert speed.PAGE.read_text(encoding="utf-8") == write_page(speed.read(), COMMANDS), "run: results/speed.py page"


@pytest.mark.parametrize(
    "sign, found, said",
    [
        (">=", 40.0, "met"),
        (">=", 39.0, "missed by 2.6 %"),
        (">=", 10.0, "missed by a factor of 4.00"),
        ("<=", 40.0, "met"),
        ("<=", 42.0, "missed by 5.0 %"),
        ("<=", 80.0, "missed by a factor of 2.00"),
    ],
)
def test_a_verdict_says_by_how_much(sign, found, said) -> None:
    target = Target("area", "what", sign, 40, "x", lambda rows: found)
    assert verdict(target, Rows([])) == (f"{found:.0f}x", said)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: f"{target.area}: {target.what}")
def test_a_target_without_rows_is_not_measured(target: Target) -> None:
    assert verdict(target, Rows([])) == ("-", "not measured")


def test_a_ratio_compares_the_same_case() -> None:
    rows = Rows(
        [
            {"benchmark": "scan", "case": "W1", "impl": "native", "median_ms": 2.0},
            {"benchmark": "scan", "case": "W1", "impl": "classic loop", "median_ms": 90.0},
            {"benchmark": "scan", "case": "W2", "impl": "classic loop", "median_ms": 5000.0},
        ]
    )
    assert rows.faster("scan", "W1", "native", "classic loop") == 45.0
    assert rows.faster("scan", "W2", "native", "classic loop") is None
    first = next(target for target in TARGETS if target.area.startswith("scan"))
    assert verdict(first, rows) == ("45x", "met")


def run_of(benchmark: str, **facts: object) -> dict[str, object]:
    shown = {"command": f"run {benchmark}", "others": 0.0, "provisional": False}
    return {"benchmark": benchmark, "case": "run", **shown, **facts}


def test_a_page_from_no_rows_tells_what_is_missing() -> None:
    page = write_page([MACHINE, run_of("scan", failed="no compiler")], COMMANDS)
    assert "scan (no compiler)" in page
    assert "Without rows: " in page
    assert "growth" in page.split("Without rows: ")[1].split("\n")[0]
    assert "`python -m benchmarks.seeds --threads 2`: no rows." in page
    assert "`run scan`: no rows." in page
    assert "Provisional" not in page


def test_a_page_from_a_busy_machine_says_so() -> None:
    page = write_page([MACHINE, run_of("scan", provisional=True, others=1.2), run_of("growth")], COMMANDS)
    assert "**Provisional:**" in page
    assert "up to 1.2 processors), in scan." in page.replace("\n", " ")


def test_programs_print_rows_one_by_one_or_all_together() -> None:
    assert speed.parse('left out\n{"case": "a"}\n{"case": "b"}\n') == [{"case": "a"}, {"case": "b"}]
    together = '{\n "limits": [{"name": "exp2", "rate": 1.0}],\n "rows": [{"case": "scan"}]\n}\n'
    first, second = speed.parse(together)
    assert (first["case"], first["impl"], second["case"]) == ("limit", "exp2", "scan")


def test_a_command_is_shown_as_one_would_type_it() -> None:
    assert COMMANDS["speed avx2"] == "SCANRL_ISA=avx2 python -m scanrl.cli bench speed --threads 2"
    assert "--case 'dmm-dc recurrent'" in COMMANDS["long acting"]


def test_other_work_is_not_our_own() -> None:
    meter = speed.Meter()
    sum(range(3_000_000))
    others, spent = meter.read()
    assert spent > 0
    assert others >= 0.0
