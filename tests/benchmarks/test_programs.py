"""The programs under benchmarks/: they start, and their opponents compute what they should."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import growth, in_context, seeds, training
from benchmarks.arithmetic import arithmetic
from scanrl.bench.equality import Differs
from scanrl.stacked import Stacked
from tests.conftest import make_dataset

PROGRAMS = sorted(
    path.stem
    for path in (Path(__file__).parents[2] / "benchmarks").glob("*.py")
    if "def main()" in path.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_tells_its_options(
    program: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [program, "--help"])
    monkeypatch.delitem(sys.modules, f"benchmarks.{program}", raising=False)  # or runpy warns that it runs twice
    with pytest.raises(SystemExit) as stop:
        runpy.run_module(f"benchmarks.{program}", run_name="__main__")
    assert stop.value.code == 0
    assert "--json" in capsys.readouterr().out


@pytest.mark.parametrize("layout", in_context.LAYOUTS.values())
def test_a_cache_written_in_place_acts_as_the_policy_does(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_context, "hopper_model", lambda *names, **changes: _small(*names, **changes))
    in_context.require_equal_acting(layout, 20)


def test_a_cache_that_forgets_a_token_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_context, "hopper_model", lambda *names, **changes: _small(*names, **changes))
    whole = in_context.RingTransformer.__init__

    def shorter(self, model, filled: int = 0) -> None:
        whole(self, model, filled)
        self.window -= 1

    monkeypatch.setattr(in_context.RingTransformer, "__init__", shorter)
    with pytest.raises(Differs, match="cache in place"):
        in_context.require_equal_acting("Rsa", 20)


def _small(name: str, **changes: object):
    from scanrl.bench.models import hopper_model

    return hopper_model(name, width=16, **changes)


@pytest.mark.parametrize("case", ["W1", "W2", "W6", "DT"])
def test_candidates_for_a_training_step_agree_with_float64(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, *_ = training.CASES[case]
    monkeypatch.setitem(training.CASES, case, (recipe, 4, 3))
    steps = {name: training.Step(case, name) for name in training.candidates(case)}
    training.refuse_unless_equal(steps)
    for step in steps.values():
        before = step.model.norm.weight.clone()
        step()
        assert not torch.equal(step.model.norm.weight, before)
    with torch.no_grad():
        steps["ours"].model.norm.weight.add_(0.01)
    with pytest.raises(SystemExit, match=r"^ours: differs"):
        training.refuse_unless_equal(steps)


@pytest.mark.parametrize("name", ["dmm-dc", "dm"])
def test_the_arithmetic_of_a_step_scans_once_for_every_layer(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, scans = sys.modules[arithmetic.__module__], []
    whole = module.selective_scan  # type: ignore[attr-defined]
    monkeypatch.setattr(module, "selective_scan", lambda *x, **more: scans.append(1) or whole(*x, **more))
    step = arithmetic(_small(name), 2, 9)
    scans.clear()
    step()
    assert len(scans) == 3


def test_mixers_of_the_growth_benchmark_agree_with_float64() -> None:
    found = growth.candidates(24)
    ours = {name: found[name] for name in ("mamba", "attention", "classic loop")}
    growth.require_equal_mixers(ours)
    wrong = ours | {"mamba": growth.Candidate(lambda x: 1.01 * ours["mamba"].forward(x), ours["mamba"].module)}
    with pytest.raises(Differs, match="mamba"):
        growth.require_equal_mixers(wrong)


def test_the_peak_of_memory_is_what_is_held_at_a_time() -> None:
    size = 1 << 20

    def one_after_the_other() -> None:
        for _ in range(3):
            torch.ones(size // 4)

    def together() -> list[torch.Tensor]:
        return [torch.ones(size // 4) for _ in range(3)]

    assert growth.peak_bytes(one_after_the_other) == pytest.approx(size, rel=0.01)
    assert growth.peak_bytes(together) == pytest.approx(3 * size, rel=0.01)


@pytest.mark.parametrize("wrong", [False, True])
def test_stacked_seeds_that_differ_from_those_in_turn_are_refused(wrong: bool) -> None:
    turns, others = (seeds.learners("W1", 2, "cpu", make_dataset(), width=8) for _ in range(2))
    if not wrong:
        seeds.require_equal_seeds(turns, Stacked(others))
        return
    with torch.no_grad():
        others[1].model.head.linear.weight.mul_(1.1)
    with pytest.raises(Differs, match=r"^stacked, seed 1: result .* differs by"):
        seeds.require_equal_seeds(turns, Stacked(others))
