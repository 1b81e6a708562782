"""The native step of Decision Mamba-Hybrid against its step in torch, which equals the training forward."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from scanrl.kernels import native
from scanrl.models.hybrid import HybridModel
from scanrl.models.hybrid_step import HybridStep
from scanrl.models.recipes import recipe
from scanrl.policy import Policy
from scanrl.streams import CarriedStreams, NativeStreams, Step, begin, step_choice
from scanrl.types import Spec
from tests.conftest import BOX, CHOICE, make_stats
from tests.kernels.test_native_step import assert_close, compare, play, steps
from tests.models.test_hybrid import FORMS, SMALL, TORCH_FORMS

extension, why = native.extension()
pytestmark = pytest.mark.skipif(extension is None, reason=why)
MIXED = {"pattern": "attention modal_conv mamba mlp", "planner": "modal_conv mamba attention mlp", "window": 3}
told_or_not = pytest.mark.parametrize(
    "changes", [{}, {"merged": True, "planner_reads": "steps"}], ids=["sums", "steps"]
)
every_form = pytest.mark.parametrize("changes", [*FORMS, MIXED, {**MIXED, "merged": True}])


@pytest.fixture(autouse=True)
def automatic(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is forced from outside."""
    monkeypatch.delenv("SCANRL_SCAN", raising=False)


def model_of(spec: Spec = BOX, noise: float = 0.1, **changes) -> HybridModel:
    """Weights with which every token matters to the action."""
    model = HybridModel(replace(SMALL, **changes), spec, make_stats(spec), seed=1)
    with torch.no_grad():
        g = torch.Generator().manual_seed(2)
        for parameter in model.parameters():
            parameter.add_(noise * torch.randn(parameter.shape, generator=g))
    return model.eval()


def native_streams(model: HybridModel, count: int) -> NativeStreams:
    return NativeStreams(model, count, None, model.lower())


@every_form
@pytest.mark.parametrize("spec", [BOX, CHOICE], ids=["continuous", "discrete"])
@pytest.mark.parametrize("forget", ["episode", "task"])
def test_it_computes_what_the_torch_step_computes(spec, forget, changes) -> None:
    model = model_of(spec, **changes)
    truth, others = CarriedStreams(model, 4, None), [native_streams(model, 4)]
    expected, found = play(truth, others, spec, 4, 60, forget=forget)
    if spec is CHOICE:
        assert np.array_equal(found, expected)
    else:
        assert_close(found, expected, 2e-6)  # two networks, one behind the other


@every_form
def test_it_does_in_every_instruction_set(isa: str, changes) -> None:
    compare(model_of(**changes), streams=17, length=22, tolerance=2e-6)


def test_rows_that_begin_their_segments_at_different_steps_do_not_meet(isa: str) -> None:
    model = model_of()
    many, few = native_streams(model, 40), native_streams(model, 7)
    for x in steps(BOX, 40, 30, restarts=0.2):
        x = Step(*map(np.ascontiguousarray, x))
        some = Step(*(np.ascontiguousarray(values[20:27]) for values in x))
        assert np.array_equal(many.step(x)[20:27], few.step(some))


def test_the_planner_runs_for_the_rows_that_begin_a_segment_and_no_others(monkeypatch) -> None:
    streams = native_streams(model_of(), 3)
    hybrid, asked = streams._native, []
    assert isinstance(hybrid, HybridStep)
    planner = hybrid._planner
    monkeypatch.setattr(
        hybrid, "_planner", lambda *args, **kw: asked.append(kw["only"].tolist()) or planner(*args, **kw)
    )
    monkeypatch.setattr(hybrid, "undo", lambda: None)
    x = next(steps(BOX, 3, 1))
    for t in range(11):  # the second row starts an episode at step 3, the third takes up one at step 2
        first = np.array([t == 0, t in (0, 3), t == 0])
        now = np.array([t, t if t < 3 else t - 3, t + 2])
        streams.step(x._replace(first=first, timestep=now, last_timestep=now - 1))
    due = [(True, True, True), (False, True, True), (True, False, False), (False, True, True), (True, False, False)]
    assert asked == [list(row) for row in due]


def test_the_recipe_of_a_size_of_the_paper() -> None:
    config = replace(recipe("dmh").model, width=128, subgoal_size=128, subgoal_steps=20, pattern="(attention mlp)*3")
    spec = Spec((11,), "continuous", 3, (-1.0,) * 3, (1.0,) * 3)
    model = HybridModel(config, spec, make_stats(spec), seed=1).eval()
    compare(model, streams=2, length=130, tolerance=2e-6, restarts=0.01, forget="task")


@pytest.mark.parametrize("spec", [BOX, CHOICE], ids=["continuous", "discrete"])
def test_draws_are_those_of_the_torch_step(spec) -> None:
    model = model_of(spec, head="gaussian" if spec is BOX else "auto")
    both = [Policy(model, sample=True, forget="task", impl=impl) for impl in ("native", "reference")]
    seen = np.random.default_rng(0).normal(size=(23, 2, 5)).astype(np.float32)
    found, expected = (np.array([policy.act(x, 0.3, t == 11) for t, x in enumerate(seen)]) for policy in both)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@told_or_not
def test_what_is_not_finite_changes_no_stream(changes) -> None:
    model = model_of(**changes)
    tried, steady = native_streams(model, 3), native_streams(model, 3)
    for x in steps(BOX, 3, 23):
        for name in ("observation", "reward"):
            wrong = getattr(x, name).copy()
            wrong[1] = np.nan
            assert tried.step(x._replace(**{name: wrong})) is None
        assert np.array_equal(tried.step(x), steady.step(x))


def test_weights_that_change_are_taken_up_in_both_programs_with_the_state_kept() -> None:
    model = model_of()
    streams, truth = native_streams(model, 2), CarriedStreams(model, 2, None)
    for t, x in enumerate(steps(BOX, 2, 24, restarts=0.0)):
        # Where segments begin; at 15 in the executor's part alone, which is noticed when the planner has run already.
        changed = {5: model.parameters(), 15: model.head.parameters(), 17: model.stack.parameters()}.get(t, ())
        with torch.no_grad():
            for parameter in changed:
                parameter.mul_(1.1)
        assert_close(streams.step(x), truth.step(x), 2e-6)


def test_the_account_of_a_segment_is_made_by_the_weights_of_the_step_after_it() -> None:
    model = model_of(merged=True, planner_reads="steps")
    streams = native_streams(model, 2)
    with torch.no_grad():
        for parameter in model.account.parameters():
            parameter.mul_(1.5)
    fresh = native_streams(model, 2)
    for x in steps(BOX, 2, 24, restarts=0.0):
        assert np.array_equal(streams.step(x), fresh.step(x))


@told_or_not
def test_a_step_that_breaks_off_between_the_programs_is_taken_back(monkeypatch, changes) -> None:
    model = model_of(**changes)
    tried, steady = native_streams(model, 2), native_streams(model, 2)
    hybrid = tried._native
    for t, x in enumerate(steps(BOX, 2, 22)):
        if t % 5 == 0:
            with monkeypatch.context() as patch:
                patch.setattr(hybrid, "_executor", Interrupted(hybrid._executor))
                with pytest.raises(KeyboardInterrupt):
                    tried.step(x)
        assert np.array_equal(tried.step(x), steady.step(x))


class Interrupted:
    """An executor that nobody waits for; the rest is that of another."""

    def __init__(self, other) -> None:
        self.undo = other.undo

    def __call__(self, *_):
        raise KeyboardInterrupt


@told_or_not
def test_a_copy_goes_on_by_itself(changes) -> None:
    model, source = model_of(**changes), list(steps(BOX, 2, 24))
    streams = native_streams(model, 2)
    for x in source[:13]:
        streams.step(x)
    others = [streams.copy(None), streams.copy(None)]
    expected = [streams.step(x) for x in source[13:]]
    for other in others:
        assert all(np.array_equal(other.step(x), y) for x, y in zip(source[13:], expected, strict=True))
    assert streams.state_bytes() == others[0].state_bytes() > 0


def test_a_policy_takes_it_and_reset_forgets() -> None:
    policy = Policy(model_of(), forget="task")
    assert policy.step_choice().impl == "native"
    seen = np.random.default_rng(0).normal(size=(12, 2, 5)).astype(np.float32)
    first = [policy.act(x, 1.0, t == 7) for t, x in enumerate(seen)]
    policy.reset()
    assert all(np.array_equal(policy.act(x, 1.0, t == 7), y) for (t, x), y in zip(enumerate(seen), first, strict=True))


def test_what_is_not_lowered_steps_in_torch_with_a_reason() -> None:
    model = model_of(subgoal_prefix=True, pattern="modal_conv attention")
    choice = step_choice(model)
    reason = "modal mixers behind a sub-goal that comes once have no native step"
    assert (choice.impl, choice.reason) == ("reference", reason)
    assert isinstance(begin(model, 2, "recurrent"), CarriedStreams)
    assert step_choice(model_of(planner="s4d"))[:2] == ("reference", "S4D has no native step")
    assert "float64" in step_choice(copy.deepcopy(model_of()).double()).reason


def test_streams_under_way_take_another_choice_from_their_next_step_on() -> None:
    model = model_of(subgoal_choices=(3, 5, 7))
    truth, others = CarriedStreams(model, 4, None), native_streams(model, 4)
    for t, x in enumerate(steps(BOX, 4, 40, restarts=0.1)):
        if t in (11, 25):
            model.act_every(3 if t == 11 else 7)
        expected, found = truth.step(x), others.step(x)
        assert expected is not None
        assert found is not None
        assert_close(found, expected, 2e-6)


@pytest.mark.parametrize("changes", [{"planner": "none"}, *TORCH_FORMS])
def test_forms_without_a_native_step_act_in_torch(changes) -> None:
    assert step_choice(model_of(**changes)).impl == "reference"
