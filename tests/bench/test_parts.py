"""The parts of the benchmarks: a clock that is fair, checks that refuse, limits that are measured."""

from __future__ import annotations

import pytest
import torch

from scanrl.bench import acting, batches, limits, scans, timing
from scanrl.bench.equality import Differs, gradients, require_equal
from scanrl.bench.models import hopper_model, windows, work_of
from scanrl.bench.timing import Timing, rows_of
from scanrl.bench.updates import training_step
from scanrl.kernels.choice import ScanChoice
from scanrl.policy import Policy


def test_candidates_take_turns() -> None:
    order: list[str] = []
    found = timing.measure({name: lambda name=name: order.append(name) for name in "ab"}, 3, turn_s=1e-9)
    assert order == ["a", "b"] * 4  # the first round warms up
    assert all(t.p10 <= t.median_ms <= t.p90 for t in found.values())


def test_a_candidate_that_has_used_its_time_still_has_one_turn() -> None:
    calls: list[int] = []
    timing.measure({"slow": lambda: calls.append(0)}, 5, budget_s=0.0, turn_s=1e-9)
    assert len(calls) == 2


def test_a_ratio_is_the_time_of_the_base_over_the_rows_own() -> None:
    times = {"base": Timing(8.0, 7.0, 9.0), "fast": Timing(2.0, 1.0, 3.0)}
    base, fast = rows_of("case", times, "base", shape="4x4", kb={"fast": 5})
    assert (base["ratio"], fast["ratio"]) == (1.0, 4.0)
    assert (base["kb"], fast["kb"], fast["shape"]) == (None, 5, "4x4")
    assert [row["ratio"] for row in rows_of("case", times, "left out")] == [None, None]


def test_a_candidate_whose_library_is_missing_is_named_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert not timing.installed("no_such_library")
    assert not timing.installed("no_such_library")
    said = capsys.readouterr().err
    assert said.count("no_such_library: not installed (pip install 'scanrl[bench]')") == 1


@pytest.mark.parametrize(
    "found",
    [[torch.tensor([1.0, 2.1])], [torch.tensor([1.0, float("nan")])], [], [torch.tensor([1.0, 2.0])] * 2],
    ids=["differs", "nan", "too few", "too many"],
)
def test_results_that_differ_are_refused(found: list[torch.Tensor]) -> None:
    truth = [torch.tensor([1.0, 2.0])]
    require_equal("same", truth, truth, 0.0)
    with pytest.raises(Differs, match=r"^other: .*not timed$"):
        require_equal("other", found, truth, 1e-3)


def test_gradients_are_those_of_the_inputs() -> None:
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    y, dx = gradients(lambda: x**2, [x], torch.tensor([1.0, 10.0]))
    assert y.tolist() == [1.0, 4.0]
    assert dx.tolist() == [2.0, 40.0]


def test_scans_are_compared_before_they_are_timed() -> None:
    x = scans.scan_arguments(2, 5, 3, 4)
    weights = torch.randn(x[0].shape, generator=torch.Generator().manual_seed(1))
    scans.require_equal_scans({"loop": scans.classic_loop}, x, weights)
    with pytest.raises(Differs, match="loop without its gate"):
        scans.require_equal_scans(
            {"loop without its gate": lambda *x: scans.classic_loop(*x[:6], torch.ones_like(x[6]), x[7]) + 0 * x[6]},
            x,
            weights,
        )


def test_batches_are_compared_before_they_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = batches.recording()
    rows = batches.batch_rows(dataset, 4, 3, repeats=1, turn=1)
    assert [row["impl"] for row in rows] == ["gather", "lean loop", "published loop"]
    whole = batches.loop_batch
    monkeypatch.setattr(batches, "loop_batch", lambda *x: whole(*x)._replace(mask=torch.zeros(80, 3, dtype=torch.bool)))
    with pytest.raises(Differs, match="mask"):
        batches.batch_rows(dataset, 4, 3, repeats=1)


def test_acting_is_compared_with_the_training_forward() -> None:
    model = hopper_model("dmm-dc", width=8, context=4)
    acting.require_equal_acting(Policy(model), 3)
    with pytest.raises(Differs, match="context 2"):  # which forgets what the training forward still sees
        acting.require_equal_acting(Policy(model, context=2), 3)


def test_a_training_step_changes_the_weights() -> None:
    model, batch = hopper_model("dmm-dc", width=8, context=4), windows(2, 4)
    before = float(model.loss(batch).detach())
    step = training_step(model.loss, model.parameters(), batch)
    for _ in range(20):
        step()
    assert float(model.loss(batch).detach()) < before


def test_limits_are_rates_and_leave_the_threads_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SECONDS", 1e-3)
    found = limits.measure_limits()
    assert [limit.name for limit in found] == ["exp2", "fma", "memory", "cache", "gemm", "gemm bf16"]
    assert all(limit.rate > 0 for limit in found)
    assert torch.get_num_threads() == 1
    assert limits.table_of(found)["exp2"] == 1e9 * found[0].rate


def test_limits_without_the_extension_say_what_stands_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SECONDS", 1e-3)
    monkeypatch.setattr(limits, "scan_choice", lambda: ScanChoice("reference", "none was built", ""))
    exp2, fma, *_ = limits.measure_limits()
    assert "torch.exp" in exp2.how
    assert "gemm" in fma.how


def test_work_counts_weights_once_per_token_and_states_of_every_scan() -> None:
    dm = work_of(hopper_model("dm", width=8, mlp_ratio=2))
    # Per layer: in 8x32, convolution 4x16, coefficients 16x(1+32), step size 1x16, out 16x8, MLP twice 8x16.
    assert dm.weights == 3 * (8 * 32 + 4 * 16 + 16 * 33 + 16 + 16 * 8 + 2 * 8 * 16)
    assert dm.exps == 3 * 16 * 16
    rates = {"fma": 1e9, "gemm": 5e8, "exp2": 1e9, "cache": 1e12}
    assert dm.acting_ms(10, rates) == pytest.approx(10 * (2 * dm.weights + dm.exps) / 1e6)
    assert dm.acting_ms(1, rates | {"cache": 1e6}) == pytest.approx(4 * dm.weights / 1e3 + dm.exps / 1e6)
    assert dm.training_ms(10, rates) == pytest.approx(10 * (6 * dm.weights + 2 * dm.exps) / 1e6)


def test_a_modal_matrix_counts_as_one_of_its_places() -> None:
    whole = work_of(hopper_model("dmm-l", width=8))
    plain = work_of(hopper_model("dmm-l", width=8, pattern="(dense mamba)*3"))
    assert whole == plain
