"""The table of what learning in context costs: what is timed, and what the page says of it."""

from __future__ import annotations

import pytest

from results import efficiency
from results.equal_time import read_rows
from scanrl.bench.equality import Differs


@pytest.fixture
def short_contexts(monkeypatch):
    monkeypatch.setattr(efficiency, "CONTEXTS", (8, 24))
    monkeypatch.setattr(efficiency, "STEPS", 48)
    monkeypatch.setattr(efficiency, "QUICK", efficiency.Effort(1, 1, 1e-9))


def test_the_efficiency_table_has_every_way_at_every_context(short_contexts, tmp_path, monkeypatch) -> None:
    rows, written = tmp_path / "rows.jsonl", tmp_path / "page.md"
    monkeypatch.setattr(efficiency, "PAGE", written)
    efficiency.main(["run", "--quick", "--rows", str(rows)])
    efficiency.main(["page", "--rows", str(rows)])
    text = written.read_text(encoding="utf-8")
    assert "**Provisional**" in text
    assert [text.count(f"| {c} | {way} |") for c in (8, 24) for way in efficiency.WAYS] == [1] * 8
    found = read_rows(rows)
    for row in found[1:]:
        assert 0 < row["p10_ms"] <= row["median_ms"] <= row["p90_ms"]
    kilobytes = {(r["context"], r["impl"]): r["state_kb"] for r in found[1:] if r["part"] == "step"}
    assert kilobytes[24, "ad cached"] > 2 * kilobytes[8, "ad cached"]  # grows with the context; the others do not
    assert kilobytes[24, "dmh"] == kilobytes[8, "dmh"]
    assert kilobytes[24, "ad-mamba"] == kilobytes[8, "ad-mamba"]


def test_efficiency_ratios_are_against_recomputing_and_against_the_cache(monkeypatch) -> None:
    monkeypatch.setattr(efficiency, "CONTEXTS", (200,))
    about = {
        "part": "machine",
        "versions": {"torch": "1"},
        "processor": "p",
        "kernels": "k",
        "revision": "r",
        "provisional": False,
    }
    times = dict(zip(efficiency.WAYS, (60.0, 6.0, 3.0, 2.0), strict=True)) | {"ad": 0.25}
    rows = [
        {"part": part, "context": 200, "impl": way, "state_kb": 5.0}
        | {"median_ms": times[way], "p10_ms": times[way] / 2, "p90_ms": 2 * times[way]}
        for part, ways in (("update", efficiency.SIZES), ("step", efficiency.WAYS))
        for way in ways
    ]
    text = efficiency.page([about, *rows])
    assert "| 200 | dmh | 2 (1 to 4) | 30x | 3x | 5 |" in text
    assert "| 200 | 0.25 (0.125 to 0.5) | 3 (1.5 to 6) | 2 (1 to 4) |" in text
    assert "Provisional" not in text


@pytest.mark.parametrize("broken", ["ad", "ad-mamba", "dmh"])
def test_a_way_to_act_that_forgets_is_not_timed(broken: str, monkeypatch) -> None:
    whole = efficiency.policy_of
    efficiency.require_equal_acting(16)

    def forgetful(name: str, steps: int, width: int) -> efficiency.Policy:
        policy = whole(name, steps, width)
        if name == broken:
            policy.forget = "episode"
        return policy

    monkeypatch.setattr(efficiency, "policy_of", forgetful)
    with pytest.raises(Differs, match=f"^{broken}:"):
        efficiency.require_equal_acting(16)
