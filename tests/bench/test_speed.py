"""`scanrl bench speed`, with cases so small that they say nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from scanrl.bench import limits, show, speed
from scanrl.bench.batches import batch_rows
from scanrl.bench.equality import Differs
from scanrl.bench.models import hopper_model
from scanrl.cli import main
from scanrl.kernels import scan_choice
from scanrl.kernels.choice import ScanChoice

FIELDS = {"case", "impl", "median_ms", "p10_ms", "p90_ms", "ratio", "shape", "limit_ms", "of_limit", "threads"}


TINY: dict[str, Any] = {
    "SCAN_SHAPES": {"W1": (2, 5, 8, 4)},
    "BATCH": 2,
    "TRAINED": {"dmm-dc": 2, "dt": 2},
    "LENGTHS": {8: 2, 30: 1},
    "REPEATS": 1,
    "hopper_model": lambda name, **changes: hopper_model(name, **{**changes, "width": 8}),
    "batch_rows": lambda dataset, batch_size, context, repeats: batch_rows(dataset, batch_size, context, 1, 1),
}


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SECONDS", 1e-3)
    for name, value in TINY.items():
        monkeypatch.setattr(speed, name, value)


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """What a whole run gives."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(limits, "SECONDS", 1e-3)
        for name, value in TINY.items():
            monkeypatch.setattr(speed, name, value)
        return speed.speed()


def test_every_case_gives_rows_and_everything_is_plain(found: dict[str, Any]) -> None:
    assert json.loads(json.dumps(found)) == found
    assert [row["case"] for row in found["rows"]] == [
        *["scan"] * (3 if scan_choice().impl == "native" else 2),
        *["mixer"] * 4,
        *["training step"] * 2,
        *["environment step"] * 8,
        *["batch assembly"] * 3,
    ]
    for row in found["rows"]:
        assert set(row) == FIELDS
        assert row["median_ms"] > 0
        if row["limit_ms"] is not None:
            assert row["of_limit"] == pytest.approx(row["limit_ms"] / row["median_ms"])
    assert {limit["threads"] for limit in found["limits"]} == {1}
    assert found["machine"]["versions"]["torch"] == torch.__version__


@pytest.mark.parametrize("case, broken", [("scan", "classic_loop"), ("mixer", "MIXERS")])
def test_what_computes_something_else_is_not_timed(case: str, broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(torch.nn.Linear):
        """Its one-token form is not its chunk form."""

        def __init__(self, config: object) -> None:
            super().__init__(speed.WIDTH, speed.WIDTH)

        def forward(self, x: torch.Tensor, state: object = None) -> tuple[torch.Tensor, tuple]:
            return super().forward(x), ()

        def step(self, x: torch.Tensor, state: object) -> tuple[torch.Tensor, tuple]:
            return 2 * super().forward(x), ()

        def initial_state(self, batch: int) -> tuple:
            return ()

    wrong = {
        "classic_loop": lambda *x: 2 * x[0] + 0 * sum(t.sum() for t in x),
        "MIXERS": {"attention": Wrong, "mamba": Wrong},
    }
    monkeypatch.setattr(speed, broken, wrong[broken])
    with pytest.raises(Differs, match="not timed"):
        speed.CASES[case][0](limits.table_of(limits.measure_limits()))


def test_threads_are_put_back_also_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(found: dict[str, float]) -> list:
        raise Differs("something: differs; not timed")

    monkeypatch.setattr(speed, "CASES", {"scan": (fails, 0)})
    with pytest.raises(Differs):
        speed.speed(threads=2)
    assert torch.get_num_threads() == 1


def test_the_command_prints_tables(
    found: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(speed, "speed", lambda threads, progress: asked.append((threads, progress)) or found)
    assert main(["bench", "speed", "--threads", "3"]) == 0
    said = capsys.readouterr().out
    for word in ("exp2", "gemm bf16", "classic loop", "published loop", "dmm-dc", "64 streams", "of limit"):
        assert word in said
    assert main(["bench", "speed", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == found
    assert asked == [(3, True), (None, True)]


def test_without_the_extension_it_says_what_is_slow_and_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in (limits, speed):
        monkeypatch.setattr(module, "scan_choice", lambda: ScanChoice("reference", "no compiler was found", "torch"))
    monkeypatch.setattr(speed, "CASES", {"scan": speed.CASES["scan"]})
    found = speed.speed(progress=True)
    assert [row["impl"] for row in found["rows"]] == ["classic loop", "reference"]
    show.show(found)
    said = capsys.readouterr()
    assert "slow: scan and convolution run on the torch reference: no compiler was found" in said.out
    assert said.err == "timing: scan\n"
