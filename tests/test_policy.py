"""Acting step by step equals the training forward on the same history, for every recipe and layout."""

from __future__ import annotations

import copy
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from scanrl import streams
from scanrl.batch import Batch
from scanrl.kernels import ScanChoice, native
from scanrl.models.decision import DecisionModel
from scanrl.models.recipes import recipe
from scanrl.nn import ModelConfig
from scanrl.policy import Policy
from scanrl.types import Context, DataError, Spec
from tests.conftest import BOX, CHOICE, SEQUENCE_RECIPES, make_stats

CONTEXT = 10
WAYS: list[Context] = ["recurrent", CONTEXT]
LAYOUTS = ["Rsa", "sar", "sa", "s", "sRa", "Rsar"]
CASES = [(name, "", BOX) for name in SEQUENCE_RECIPES]
CASES += [("dmm-dc", layout, BOX) for layout in LAYOUTS] + [("dt", layout, BOX) for layout in LAYOUTS]
CASES += [("dmm-dl", "", CHOICE), ("dt", "sar", CHOICE)]
CASES += [("ds4", layout, BOX) for layout in ("sar", "sRar", "Rs")] + [("ds4", "Rsar", CHOICE)]
CASES += [("edt", "", CHOICE), ("reinformer", "sRar", BOX)]
every_case = pytest.mark.parametrize(
    ("name", "layout", "spec"), CASES, ids=[f"{n}-{y}-{s.action_kind}" for n, y, s in CASES]
)


@pytest.fixture(autouse=True, params=["native", "torch"])
def stepping(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test runs on the native step and on the torch step."""
    if request.param == "torch":
        monkeypatch.setattr(streams, "scan_choice", lambda _: ScanChoice("reference", "the test says so", ""))
    elif native.extension()[0] is None:
        pytest.skip("the C extension is not available")
    return request.param


def tiny(name: str, layout: str = "", **changes: object) -> ModelConfig:
    config = recipe(name).model
    layout = layout or config.layout
    return replace(config, width=16, context=CONTEXT, max_length=40, state_size=4, layout=layout, **changes)  # type: ignore[arg-type]


def model_of(config: ModelConfig, spec: Spec = BOX) -> DecisionModel:
    """Weights large enough that every token matters to the action."""
    model = DecisionModel(config, spec, make_stats(spec), seed=1)
    with torch.no_grad():
        g = torch.Generator().manual_seed(2)
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=g))
    return model.eval()


def play(policy: Policy, steps: int, streams: int = 3, seed: int = 0, target: float = 25.0) -> Batch:
    """What a rollout sees and does, as the training batch it would become. Rewards are made up."""
    rng = np.random.default_rng(seed)
    seen = rng.normal(size=(steps, streams, 5)).astype(np.float32)
    earned = rng.normal(size=(steps, streams)).astype(np.float32)
    policy.reset()
    actions = []
    for t in range(steps):
        before = earned[t - 1] if t else np.zeros(streams, np.float32)
        actions.append(policy.act(seen[t], before, np.full(streams, t == 0)))
    spent = np.concatenate([np.zeros((1, streams)), np.cumsum(earned, 0)[:-1]])
    batch = Batch(
        observations=torch.from_numpy(seen).transpose(0, 1),
        actions=torch.from_numpy(np.stack(actions, 1)),
        rewards=torch.from_numpy(earned).T,
        returns_to_go=torch.from_numpy((target - spent).astype(np.float32)).T,
        timesteps=torch.arange(steps).expand(streams, steps),
        mask=torch.ones(streams, steps, dtype=torch.bool),
    )
    return batch if policy.model.returns is None else with_predicted_returns(policy, batch)


@torch.inference_mode()
def with_predicted_returns(policy: Policy, batch: Batch) -> Batch:
    """The returns that a policy predicts for itself, each from the training forward over what it remembers."""
    returns = torch.zeros_like(batch.returns_to_go)
    for t in range(returns.shape[1]):
        window = slice(0 if policy.context == "recurrent" else max(0, t - int(policy.context) + 1), t + 1)
        seen = Batch(*(column[:, window] for column in batch._replace(returns_to_go=returns)[:6]))
        returns[:, t] = policy.model.predicted_returns(seen)[:, -1]
    return batch._replace(returns_to_go=returns)


@every_case
def test_recurrent_acting_equals_the_training_forward(name: str, layout: str, spec: Spec) -> None:
    # 25 steps: beyond the training window (attention then has its sliding window) and within the time table.
    policy = Policy(model_of(tiny(name, layout), spec))  # asks for 25, the best return in `make_stats`
    batch = play(policy, 25)
    with torch.inference_mode():
        expected = policy.model.actions(batch)
    torch.testing.assert_close(batch.actions, expected, rtol=1e-5, atol=1e-5)


@every_case
def test_acting_on_a_window_equals_the_training_forward_on_that_window(name: str, layout: str, spec: Spec) -> None:
    policy = Policy(model_of(tiny(name, layout), spec), context=CONTEXT)
    batch = play(policy, 25)
    for t in (0, 3, CONTEXT - 1, CONTEXT, 24):
        window = slice(max(0, t - CONTEXT + 1), t + 1)
        with torch.inference_mode():
            expected = policy.model.actions(Batch(*(column[:, window] for column in batch[:6])))[:, -1]
        torch.testing.assert_close(batch.actions[:, t], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["edt", "edt-mamba"])
@pytest.mark.parametrize("spec", [BOX, CHOICE], ids=["continuous", "discrete"])
def test_elastic_acting_is_the_training_forward_on_the_window_with_the_highest_predicted_return(
    name: str, spec: Spec
) -> None:
    policy = Policy(model_of(tiny(name), spec), context="elastic")
    model, steps, starts = policy.model, 16, set()
    rng = np.random.default_rng(0)
    seen = torch.from_numpy(rng.normal(size=(2, steps, 5)).astype(np.float32))
    earned = torch.from_numpy(rng.normal(size=(2, steps)).astype(np.float32))
    kind = torch.float32 if spec is BOX else torch.int64
    actions, returns = torch.zeros(2, steps, *spec.action_shape, dtype=kind), torch.zeros(2, steps)
    timesteps, mask = torch.arange(steps).expand(2, steps), torch.ones(2, steps, dtype=torch.bool)
    for t in range(steps):
        action = torch.from_numpy(policy.act(seen[:, t].numpy(), earned[:, t - 1].numpy(), np.full(2, t == 0)))
        for row in range(2):
            found = {}
            for start in range(max(0, t - CONTEXT + 1), t + 1, 2):
                columns = (seen, actions, earned, returns, timesteps, mask)
                window = Batch(*(column[row : row + 1, start : t + 1] for column in columns))
                with torch.inference_mode():
                    wanted = model.predicted_returns(window)[0, -1]
                    window.returns_to_go[0, -1] = wanted
                    found[start] = wanted.item(), model.actions(window)[0, -1]
                    window.returns_to_go[0, -1] = 0.0
            start = max(found, key=lambda start: found[start][0])
            returns[row, t] = found[start][0]
            starts.add((t, start))
            torch.testing.assert_close(action[row], found[start][1], rtol=1e-5, atol=1e-5)
        actions[:, t] = action
    assert len({t - start for t, start in starts}) > 2  # otherwise nothing was chosen


def test_only_a_model_that_predicts_its_return_acts_elastically() -> None:
    with pytest.raises(DataError, match="context: expected 'recurrent' or a number of steps, got 'elastic'"):
        Policy(model_of(tiny("dt")), context="elastic")
    policy = Policy(model_of(tiny("edt")), context="elastic")
    assert policy.step_choice().reason == "recomputes the last 10 or fewer steps"


@pytest.mark.parametrize("context", ["recurrent", CONTEXT, "elastic"])
def test_rows_of_a_model_that_predicts_its_return_do_not_influence_each_other(context: Context) -> None:
    model = model_of(tiny("edt"))
    seen = np.random.default_rng(4).normal(size=(14, 3, 5)).astype(np.float32)
    quiet, disturbed = Policy(model, context=context), Policy(model, context=context)
    for t in range(14):
        kept, other = quiet.act(seen[t], 1.0), seen[t].copy()
        other[1] = 7.0 * t
        found = disturbed.act(other, [1.0, -5.0, 1.0], [False, t in (3, 9), False])
        assert np.array_equal(found[[0, 2]], kept[[0, 2]])


@pytest.mark.parametrize("name", ["dt", "dmm-dc", "dmm-dl", "ds4", "mambadm", "edt-mamba", "reinformer"])
def test_both_ways_of_acting_agree_within_one_training_window(name: str) -> None:
    model = model_of(tiny(name))
    recurrent = play(Policy(model), CONTEXT)
    window = play(Policy(model, context=CONTEXT), CONTEXT)
    torch.testing.assert_close(recurrent.actions, window.actions, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "context"),
    [
        *(
            (name, way)
            for name in ("dt", "dmm-dc", "dmm-dl", "dmm26", "ds4", "mambadm", "edt", "edt-mamba")
            for way in WAYS
        ),
        *((name, "elastic") for name in ("edt", "edt-mamba", "reinformer")),
    ],
)
def test_a_row_that_restarts_acts_like_a_fresh_stream(name: str, context: Context) -> None:
    model = model_of(tiny(name))
    policy = Policy(model, context=context)  # asks for 25, the best return in `make_stats`
    rng = np.random.default_rng(3)
    seen, earned = rng.normal(size=(20, 3, 5)).astype(np.float32), rng.normal(size=(20, 3)).astype(np.float32)
    starts = np.zeros((20, 3), bool)
    starts[0] = starts[7, 1] = starts[13, 2] = starts[14, 1] = True
    mixed = np.stack([policy.act(seen[t], earned[t - 1], starts[t]) for t in range(20)])
    for row in range(3):
        begin = 0
        for t in range(20):
            if starts[t, row]:
                alone, begin = Policy(model, context=context), t
            action = alone.act(seen[t, row], earned[t - 1, row], t == begin)
            np.testing.assert_allclose(action, mixed[t, row], rtol=1e-5, atol=1e-5)


def test_restarting_one_row_leaves_the_others_bit_unchanged() -> None:
    model = model_of(tiny("dmm-dc"))
    rng = np.random.default_rng(0)
    seen, earned = rng.normal(size=(12, 4, 5)).astype(np.float32), rng.normal(size=(12, 4)).astype(np.float32)
    quiet, disturbed = Policy(model), Policy(model)
    for t in range(12):
        flags = np.zeros(4, bool)
        flags[1] = t in (3, 4, 9)
        kept = quiet.act(seen[t], earned[t])[[0, 2, 3]]
        assert np.array_equal(disturbed.act(seen[t], earned[t], flags)[[0, 2, 3]], kept)


def test_a_refused_observation_changes_no_stream() -> None:
    model = model_of(tiny("dmm-dc"))
    policy, untouched = Policy(model), Policy(model)
    seen = np.random.default_rng(0).normal(size=(6, 3, 5)).astype(np.float32)
    for t in range(3):
        policy.act(seen[t], np.ones(3)), untouched.act(seen[t], np.ones(3))
    broken = seen[3].copy()
    broken[2, 4] = np.nan
    with pytest.raises(DataError, match="stream 2: observations: expected finite"):
        policy.act(broken, np.ones(3))
    with pytest.raises(DataError, match="stream 1: rewards: expected finite"):
        policy.act(seen[3], np.array([0.0, np.inf, 0.0]))
    with pytest.raises(DataError, match=r"observations: expected \(5,\)"):
        policy.act(np.zeros((3, 4)), np.ones(3))
    with pytest.raises(DataError, match="expected 3 streams, got 2"):
        policy.act(seen[3][:2], np.ones(2))
    with pytest.raises(DataError, match=r"rewards: expected a number or 3 of them, got shape \(2,\)"):
        policy.act(seen[3], np.ones(2))
    with pytest.raises(DataError, match=r"first: expected a number or 3 of them, got shape \(4,\)"):
        policy.act(seen[3], np.ones(3), [True] * 4)
    with pytest.raises(DataError, match="observations: expected an array of numbers, got str"):
        policy.act("nonsense", np.ones(3))
    with pytest.raises(DataError, match="stream 1: target_return: expected finite"):
        policy.act(seen[3], np.ones(3), [False, True, False], target_return=float("nan"))
    assert np.array_equal(policy.act(seen[3], np.ones(3)), untouched.act(seen[3], np.ones(3)))


def test_observations_of_any_finite_size_are_taken() -> None:
    policy = Policy(model_of(tiny("dmm-dc")))
    assert policy.act(np.full(5, 3e38), 3e38).shape == (2,)  # though the network has no use for them


@pytest.mark.parametrize("context", ["recurrent", CONTEXT])
def test_a_first_call_that_is_refused_begins_nothing(context: str | int) -> None:
    policy = Policy(model_of(tiny("dmm-dc")), context=context)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="stream 1: observations: expected finite"):
        policy.act(np.array([[0.0] * 5, [np.inf] * 5, [0.0] * 5]))
    assert policy.act(np.zeros((2, 5)), np.array([np.nan, 0.0])).shape == (2, 2)  # rewards before the first step


def test_copies_go_on_by_themselves() -> None:
    seen = np.random.default_rng(0).normal(size=(8, 2, 5))
    for context in ("recurrent", CONTEXT):
        for sample in (False, True):
            model = model_of(tiny("dmm-dc", head="gaussian"))
            policy = Policy(model, context=context, sample=sample)  # type: ignore[arg-type]
            for t in range(3):
                policy.act(seen[t], 1.0)
            other = copy.copy(policy)
            for t in range(3, 8):
                expected = policy.act(seen[t], 1.0)
                assert np.array_equal(other.act(seen[t], 1.0), expected)
                other.reset() if t == 7 else None
            assert policy.act(seen[0], 1.0).shape == (2, 2)


def test_what_is_returned_belongs_to_the_caller() -> None:
    model = model_of(tiny("dmm-dc"))
    policy, untouched = Policy(model), Policy(model)
    for t in range(4):
        seen = np.full((2, 5), float(t))
        action = policy.act(seen, 1.0)
        assert np.array_equal(action, untouched.act(seen, 1.0))
        action[:] = 7.0


@pytest.mark.parametrize("sample", [False, True])
def test_a_failure_inside_the_network_changes_no_stream(
    monkeypatch: pytest.MonkeyPatch, stepping: str, sample: bool
) -> None:
    if stepping == "native" and not sample:
        pytest.skip("a native step without sampling has nothing that could fail")
    model = model_of(tiny("dmm-dc", head="gaussian"))
    policy, untouched = Policy(model, sample=sample), Policy(model, sample=sample)
    seen = np.random.default_rng(0).normal(size=(4, 2, 5)).astype(np.float32)
    for t in range(2):
        policy.act(seen[t], np.ones(2)), untouched.act(seen[t], np.ones(2))
    with monkeypatch.context() as patch:
        patch.setattr(model.head, "choose", lambda *_: (_ for _ in ()).throw(RuntimeError("no memory")))
        with pytest.raises(RuntimeError, match="no memory"):
            policy.act(seen[2], np.ones(2))
    assert np.array_equal(policy.act(seen[2], np.ones(2)), untouched.act(seen[2], np.ones(2)))


def test_one_stream_and_a_batch_of_one_are_the_same() -> None:
    model = model_of(tiny("dmm-dc"))
    one, batch = Policy(model), Policy(model)
    for t in range(4):
        seen = np.full(5, float(t))
        action = one.act(seen, 1.0, t == 0)
        assert action.shape == (2,)
        assert np.array_equal(action, batch.act(seen[None], [1.0], [t == 0])[0])


def test_the_first_act_after_reset_starts_every_stream() -> None:
    policy = Policy(model_of(tiny("dmm-dc")))
    seen = np.ones((2, 5), np.float32)
    first = policy.act(seen, 0.0, True)
    policy.act(seen, 5.0)
    policy.reset(2)
    assert np.array_equal(policy.act(seen, 99.0, False), first)


def test_actions_come_in_environment_units() -> None:
    model = model_of(tiny("dmm-dc"))
    with torch.no_grad():
        model.head.linear.weight.zero_()
        model.head.linear.bias.copy_(torch.tensor([50.0, -50.0]))
    assert Policy(model).act(np.zeros(5)).tolist() == [1.0, -2.0]  # the bounds of the spec


def test_return_to_go_is_reduced_by_what_was_earned() -> None:
    model = model_of(tiny("dmm-dc"))
    seen = np.zeros((2, 5), np.float32)
    earned, kept = Policy(model, target_return=10.0), Policy(model, target_return=10.0)
    earned.act(seen), kept.act(seen)
    assert not np.allclose(earned.act(seen, 8.0), kept.act(seen, 0.0))
    assert earned._last.return_to_go.tolist() == [2.0, 2.0]  # type: ignore[union-attr]


def test_target_returns_may_differ_between_streams() -> None:
    model = model_of(tiny("dmm-dc"))
    seen = np.zeros((2, 5), np.float32)
    both = Policy(model).act(seen, 0.0, True, target_return=[5.0, 30.0])
    for row, target in enumerate((5.0, 30.0)):
        np.testing.assert_allclose(Policy(model, target_return=target).act(seen)[row], both[row], rtol=1e-5, atol=1e-6)


def test_with_target_shares_weights_but_no_stream() -> None:
    policy = Policy(model_of(tiny("dmm-dc")), target_return=1.0)
    policy.act(np.zeros((2, 5)))
    other = policy.with_target(30.0)
    assert other.act(np.zeros((3, 5))).shape == (3, 2)
    assert policy.act(np.zeros((2, 5))).shape == (2, 2)
    assert (policy.target_return, other.target_return) == (1.0, 30.0)


def test_sampled_actions_repeat_with_the_seed_and_vary_without() -> None:
    model = model_of(tiny("dmm-dc"), CHOICE)
    seen = np.random.default_rng(0).normal(size=(64, 5))
    a, b, c = (Policy(model, sample=True, seed=s).act(seen) for s in (0, 0, 1))
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)
    assert set(a.tolist()) <= {0, 1, 2}


def test_state_does_not_grow_with_the_episode() -> None:
    for name in ("dmm-dc", "dt"):
        policy, sizes = Policy(model_of(tiny(name))), set()
        for _ in range(60):
            policy.act(np.zeros((2, 5)), 0.1)
            sizes.add(policy.state_bytes())
        assert len(sizes) == 1


@pytest.mark.parametrize("context", [0, -3, "window", 2.5])
def test_a_wrong_context_is_refused(context: object) -> None:
    with pytest.raises(DataError, match="context: expected 'recurrent' or a number of steps"):
        Policy(model_of(tiny("dmm-dc")), context=context)  # type: ignore[arg-type]


def test_a_target_that_is_not_finite_is_refused_wherever_it_comes_from() -> None:
    model = model_of(tiny("dmm-dc"))
    for target in (float("nan"), float("inf")):
        with pytest.raises(DataError, match="target_return: expected a finite number"):
            Policy(model, target_return=target)
        with pytest.raises(DataError, match="target_return: expected a finite number"):
            Policy(model).with_target(target)


@pytest.mark.parametrize(("name", "why"), [("bc", "the layout 's' has no R"), ("edt", "the model predicts it")])
def test_a_model_without_use_for_a_target_takes_none(name: str, why: str) -> None:
    model = model_of(tiny(name))
    assert Policy(model).target_return is None
    for attempt in (
        lambda: Policy(model, target_return=5.0),
        lambda: Policy(model).with_target(5.0),
        lambda: Policy(model).act(np.zeros(5), target_return=5.0),
    ):
        with pytest.raises(DataError, match=rf"target_return: expected none \({why}\), got"):
            attempt()


def test_the_return_to_go_notices_rewards_far_smaller_than_itself() -> None:
    policy = Policy(model_of(tiny("dmm-dc")), target_return=2e5)
    for step in range(101):
        policy.act(np.zeros(5), 0.005 if step else 0.0)
    assert policy._last.return_to_go.tolist() == pytest.approx([2e5 - 0.5], abs=1e-6)


def test_reset_starts_sampling_over() -> None:
    policy = Policy(model_of(tiny("dmm-dc"), CHOICE), sample=True, seed=3)
    seen = np.random.default_rng(0).normal(size=(64, 5))
    first = policy.act(seen)
    policy.reset()
    assert np.array_equal(policy.act(seen), first)
    other = policy.with_target(1.0)
    other.act(seen)
    policy.reset()
    assert np.array_equal(policy.act(seen), first)


def test_reset_waits_for_an_act_in_another_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(tiny("dmm-dc"))
    policy = Policy(model)
    policy.act(np.zeros((3, 5)))
    inside, go_on = threading.Event(), threading.Event()
    step = policy._streams.step  # type: ignore[union-attr]

    def slow(x: streams.Step) -> np.ndarray:
        inside.set()
        go_on.wait(5)
        return step(x)

    monkeypatch.setattr(policy._streams, "step", slow)
    acting = threading.Thread(target=lambda: policy.act(np.zeros((3, 5))))
    resetting = threading.Thread(target=lambda: policy.reset(5))
    acting.start()
    inside.wait(5)
    resetting.start()
    go_on.set()
    acting.join(5)
    resetting.join(5)
    assert policy.act(np.zeros((5, 5))).shape == (5, 2)
