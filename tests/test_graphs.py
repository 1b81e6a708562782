"""Recorded functions: their logic on the CPU, with the graph replaced by direct calls, and on a CUDA device."""

import copy
import warnings
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from scanrl import learner, loop, randomness, stacked, streams
from scanrl.checkpoint import load_checkpoint
from scanrl.graphs import WARM_UP, CudaGraph, Replayed, ReplayedStep, graphs_wanted
from scanrl.models.decision import DecisionModel
from scanrl.nn import ModelConfig
from scanrl.policy import Policy
from scanrl.training import Diverged, resume, train
from tests.conftest import BOX, CHOICE, make_dataset, make_stats

cuda = pytest.mark.gpu
SMALL = {
    "model.width": 16,
    "model.pattern": "modal_conv mamba mlp",
    "model.context": 4,
    "model.state_size": 4,
    "model.dropout": 0.1,
    "train.batch_size": 4,
    "train.checkpoint_every": 7,
    "train.log_every": 1,
}


class DirectCalls:
    """A graph in which replaying is calling; it obeys the rules of a real one."""

    made: list["DirectCalls"] = []  # noqa: RUF012

    def __init__(self, device=None) -> None:
        self.log: list[str] = []
        self.made.append(self)

    def warm_up(self, function):
        self.log.append("warm up")
        self.like = function()
        return self.like

    def record(self, function):
        self.log.append("record")
        self.function = function
        self.outputs = tuple(torch.full_like(x, torch.nan) if x.is_floating_point() else x.clone() for x in self.like)
        return self.outputs

    def replay(self):
        self.log.append("replay")
        for place, value in zip(self.outputs, self.function(), strict=True):
            place.copy_(value)


class Broken(DirectCalls):
    def record(self, function):
        raise RuntimeError("operation not permitted when stream is capturing\nand more")


def counter(device="cpu"):
    """A function with a state, as an optimiser has."""
    total = torch.zeros(3, device=device)

    def add(x: Tensor, times: Tensor) -> tuple[Tensor, ...]:
        total.add_(x.sum(0) * times)
        return (total.clone(), times + 1)

    return add


def calls(function, count=8) -> list[list[Tensor]]:
    """Results for arguments that differ each time and are views and of several dtypes."""
    found = []
    for i in range(count):
        x = torch.randn(3, 4, generator=torch.Generator().manual_seed(i)).T
        found.append([y.cpu().clone() for y in function(x, torch.tensor(i))])
    return found


def test_warmed_up_recorded_and_replayed_a_function_gives_the_same():
    graph = DirectCalls()
    found = calls(Replayed(counter(), "adding", graph, "cpu"))
    assert graph.log == ["warm up"] * WARM_UP + ["record"] + ["replay"] * (8 - WARM_UP)
    for a, b in zip(found, calls(counter()), strict=True):
        assert all(map(torch.equal, a, b))


def test_arguments_of_other_shapes_run_eagerly_and_on_the_same_state():
    replayed, eager = Replayed(counter(), "adding", DirectCalls(), "cpu"), counter()
    for rows in (2, 2, 2, 2, 5, 2, 1):
        arguments = torch.ones(rows, 3), torch.tensor(2)
        assert all(map(torch.equal, replayed(*arguments), eager(*arguments)))


def test_what_cannot_be_recorded_runs_eagerly_with_one_warning():
    replayed = Replayed(counter(), "adding", Broken(), "cpu")
    with pytest.warns(RuntimeWarning, match=r"^adding: it cannot be recorded .*: operation not permitted [a-z ]* \(SC"):
        found = calls(replayed, count=5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert replayed.recorded is False
        replayed(torch.zeros(4, 3), torch.tensor(0))
    for a, b in zip(found, calls(counter(), count=5), strict=True):
        assert all(map(torch.equal, a, b))


def test_arguments_keep_their_values_whatever_their_dtype():
    given = (torch.tensor([True, False, True]), torch.rand(3, dtype=torch.float64), torch.arange(5), torch.ones(0, 2))
    replayed = Replayed(lambda *x: tuple(y.clone() for y in x), "copying", DirectCalls(), "cpu")
    for _ in range(WARM_UP + 2):
        assert all(map(torch.equal, replayed(*given), given))


class Pair(NamedTuple):
    total: Tensor
    inner: tuple[Tensor, ...]


def sums(state: Pair, x: Tensor) -> tuple[tuple[Tensor, ...], Pair]:
    """The running sum, and how often x was positive."""
    total, count = state.total + x, state.inner[0] + (x > 0)
    return (total * count,), Pair(total, (count,))


def test_a_step_carries_its_state_from_one_replay_to_the_next():
    first = Pair(torch.zeros(3), (torch.zeros(3, dtype=torch.int64),))
    replayed, state = ReplayedStep(sums, first, "summing", DirectCalls(), torch.device("cpu")), first
    for i in range(9):
        x = torch.randn(3, generator=torch.Generator().manual_seed(i))
        (expected,), state = sums(state, x)
        assert torch.equal(replayed(x)[0], expected)
    assert torch.equal(replayed.state.total, state.total)
    assert torch.equal(replayed.state.inner[0], state.inner[0])
    assert torch.equal(first.total, torch.zeros(3))  # copied, not written to


def test_the_environment_keeps_everything_eager(monkeypatch):
    monkeypatch.delenv("SCANRL_GRAPHS", raising=False)
    assert graphs_wanted("cuda:1")
    assert not graphs_wanted("cpu")
    monkeypatch.setenv("SCANRL_GRAPHS", "off")
    assert not graphs_wanted("cuda")
    monkeypatch.setenv("SCANRL_GRAPHS", "no")
    with pytest.raises(ValueError, match=r"SCANRL_GRAPHS: expected on or off, got 'no'"):
        graphs_wanted("cuda")


@pytest.fixture
def direct(monkeypatch):
    """Training goes through `Replayed` on the CPU."""
    monkeypatch.setattr(learner, "graphs_wanted", lambda device: True)
    monkeypatch.setattr(learner, "CudaGraph", DirectCalls)


def outcome(run) -> tuple:
    found = load_checkpoint(run.path)
    lines = [{k: v for k, v in line.items() if not k.startswith("perf/")} for line in run.metrics()]
    return lines, {**found.weights, **found.optimizer}


def fit(out, steps=16, **more):
    return train("dmm-dc", make_dataset(), steps=steps, out=out, overrides={**SMALL, **more})


def test_a_recorded_update_trains_to_the_same_bits(tmp_path, direct, monkeypatch):
    recorded = fit(tmp_path / "recorded")
    assert DirectCalls.made[-1].log[-13:] == ["replay"] * 13
    monkeypatch.undo()
    (lines, tensors), (eager_lines, eager_tensors) = outcome(recorded), outcome(fit(tmp_path / "eager"))
    assert lines == eager_lines
    assert tensors.keys() == eager_tensors.keys()
    assert all(torch.equal(tensors[name], eager_tensors[name]) for name in tensors)


def test_a_recorded_update_that_is_not_finite_stops_the_run(tmp_path, direct, monkeypatch):
    original, losses = DecisionModel.loss, []

    def loss(self, batch, **more):
        losses.append(1)
        return original(self, batch, **more) * (torch.nan if len(losses) == 9 else 1.0)

    monkeypatch.setattr(DecisionModel, "loss", loss)
    with pytest.raises(Diverged, match="update 9"):
        fit(tmp_path / "run", **{"train.validation": 0.0})
    assert load_checkpoint(tmp_path / "run").step == 7


def test_recorded_seeds_side_by_side_train_to_the_same_bits(tmp_path, monkeypatch):
    options = {"seeds": [3, 5], "steps": 8, "overrides": {**SMALL, "model.dropout": 0.0}}
    monkeypatch.setattr(loop, "stacking_pays", lambda learners: True)
    eager = train("dmm-dc", make_dataset(), out=tmp_path / "eager", **options)
    monkeypatch.setattr(stacked, "graphs_wanted", lambda device: True)
    monkeypatch.setattr(stacked, "CudaGraph", DirectCalls)
    recorded = train("dmm-dc", make_dataset(), out=tmp_path / "recorded", **options)
    assert DirectCalls.made[-1].log == ["warm up"] * WARM_UP + ["record"] + ["replay"] * 5
    for (lines, tensors), (eager_lines, eager_tensors) in zip(map(outcome, recorded), map(outcome, eager), strict=True):
        assert lines == eager_lines
        assert all(torch.equal(tensors[name], eager_tensors[name]) for name in tensors)


@pytest.mark.parametrize("spec", [BOX, CHOICE])
@pytest.mark.parametrize("pattern", ["modal_conv mamba mlp", "attention mlp", "modal_linear"])
@pytest.mark.parametrize("changes", [{}, {"layout": "sRa", "returns": "predicted"}], ids=["given", "predicted"])
def test_a_recorded_acting_step_equals_an_eager_one(monkeypatch, spec, pattern, changes):
    model = DecisionModel(ModelConfig(pattern=pattern, width=16, context=4, **changes), spec, make_stats(spec))
    rng = np.random.default_rng(0)
    monkeypatch.setattr(streams, "_native_code", lambda model, sample: (None, None))
    monkeypatch.setattr(streams, "graphs_wanted", lambda device: True)
    monkeypatch.setattr(streams, "CudaGraph", DirectCalls)
    recorded = Policy(model)
    seen = [rng.normal(size=(3, 5)).astype(np.float32) for _ in range(24)]
    acted = [act(recorded, seen), act(recorded, seen)]  # the second time after a reset, on the same recording
    graph = DirectCalls.made[-1]
    assert graph.log.count("record") == 1
    assert graph.log.count("replay") == 2 * 24 - WARM_UP
    fork = copy.copy(recorded)
    monkeypatch.setattr(streams, "graphs_wanted", lambda device: False)
    eager = Policy(model)
    expected = act(eager, seen)
    assert all(np.array_equal(found, expected) for found in acted)
    more = [policy.act(seen[0], 1.0) for policy in (eager, fork, recorded)]
    assert np.array_equal(more[0], more[1])
    assert np.array_equal(more[0], more[2])
    assert recorded.state_bytes() == eager.state_bytes()


def act(policy: Policy, seen: list[np.ndarray]) -> np.ndarray:
    """Actions in one stretch of three streams, of which one begins again in the middle."""
    policy.reset(3)
    return np.stack([policy.act(x, 0.5 * i, [False, i == 9, False]) for i, x in enumerate(seen)])


def test_states_of_the_generators_by_name():
    with randomness.forked("cpu"):
        randomness.restore(randomness.seeded(3, "cpu"), "cpu")
        first = torch.rand(2)
        between = randomness.states("cpu")
        second = torch.rand(2)
        randomness.restore(between, "cpu")
        assert torch.equal(torch.rand(2), second)
    assert torch.equal(first, torch.rand(2, generator=torch.Generator().manual_seed(3)))
    assert randomness.names("cuda:0") == ("random", "random_cuda")


# On a CUDA device


@cuda
def test_a_graph_gives_the_same_as_eager_calls():
    found = calls(Replayed(counter("cuda"), "adding", CudaGraph(torch.device("cuda")), "cuda"))
    eager = counter("cuda")
    for a, b in zip(found, calls(lambda *x: eager(*(y.cuda() for y in x))), strict=True):
        assert all(map(torch.equal, a, b))


@cuda
def test_a_replay_draws_the_random_numbers_of_an_eager_call():
    drop = torch.nn.Dropout(0.5).cuda()
    replayed = Replayed(lambda x: (drop(x),), "dropping", CudaGraph(torch.device("cuda")), "cuda")
    x = torch.ones(1000)
    torch.cuda.manual_seed(0)
    found = [replayed(x)[0].clone() for _ in range(9)]
    states = randomness.states("cuda")
    torch.cuda.manual_seed(0)
    for y in found:
        assert torch.equal(y, drop(x.cuda()))
    assert torch.equal(randomness.states("cuda")["random_cuda"], states["random_cuda"])
    torch.cuda.manual_seed(0)  # also for a graph that is there already
    assert torch.equal(replayed(x)[0], found[0])


@cuda
def test_a_function_that_waits_for_the_device_falls_back_and_dropout_still_works():
    drop = torch.nn.Dropout(0.5).cuda()

    def waits(x: Tensor) -> tuple[Tensor, ...]:
        return (drop(x) * float(x.sum()),)

    replayed = Replayed(waits, "waiting", CudaGraph(torch.device("cuda")), "cuda")
    stream = torch.cuda.current_stream()
    with pytest.warns(RuntimeWarning, match="waiting: it cannot be recorded"):
        found = [replayed(torch.ones(10))[0] for _ in range(6)]
    assert torch.cuda.current_stream() == stream
    assert {float(v) for y in found for v in y} == {0.0, 20.0}


@cuda
@pytest.mark.parametrize(
    "settings",
    [{"model.dropout": 0.0}, {}, {"train.precision": "bfloat16"}, {"train.sequences": "episodes"}],
)
def test_training_with_graphs_equals_training_without(tmp_path, monkeypatch, settings):
    options = {"train.device": "cuda", **settings}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no fall-back
        lines, tensors = outcome(fit(tmp_path / "graph", **options))
    monkeypatch.setenv("SCANRL_GRAPHS", "off")
    eager_lines, eager_tensors = outcome(fit(tmp_path / "eager", **options))
    for a, b in zip(lines, eager_lines, strict=True):
        assert a == pytest.approx(b, rel=1e-5)
    for name in tensors:
        torch.testing.assert_close(tensors[name], eager_tensors[name], rtol=1e-4, atol=1e-6)
    assert torch.equal(tensors["random_cuda"], eager_tensors["random_cuda"])


@cuda
def test_seeds_side_by_side_with_graphs_equal_those_without(tmp_path, monkeypatch):
    overrides = {**SMALL, "model.dropout": 0.0, "train.device": "cuda"}
    options = {"seeds": [3, 5], "steps": 12, "overrides": overrides}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no fall-back
        recorded = train("dmm-dc", make_dataset(), out=tmp_path / "graph", **options)
    monkeypatch.setenv("SCANRL_GRAPHS", "off")
    eager = train("dmm-dc", make_dataset(), out=tmp_path / "eager", **options)
    for (_, tensors), (_, eager_tensors) in zip(map(outcome, recorded), map(outcome, eager), strict=True):
        for name in tensors:
            torch.testing.assert_close(tensors[name], eager_tensors[name], rtol=1e-4, atol=1e-6)


@cuda
@pytest.mark.parametrize("spec", [BOX, CHOICE])
@pytest.mark.parametrize("pattern", ["modal_conv mamba mlp", "attention mlp", "modal_linear"])
def test_acting_with_graphs_equals_acting_without(monkeypatch, spec, pattern):
    model = DecisionModel(ModelConfig(pattern=pattern, width=16, context=4), spec, make_stats(spec)).cuda()
    rng = np.random.default_rng(0)
    seen = [rng.normal(size=(3, 5)).astype(np.float32) for _ in range(24)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no fall-back
        policy = Policy(model)
        found = [act(policy, seen), act(policy, seen)]
    monkeypatch.setenv("SCANRL_GRAPHS", "off")
    expected = act(Policy(model), seen)
    for actions in found:
        np.testing.assert_allclose(actions, expected, rtol=1e-5, atol=1e-6)


@cuda
def test_a_resumed_run_on_cuda_equals_one_that_was_not_interrupted(tmp_path, monkeypatch):
    options = {"train.device": "cuda"}
    whole = fit(tmp_path / "whole", **options)
    original, updates = learner.Learner.update, []

    def update(self):
        updates.append(1)
        if len(updates) == 10:
            raise KeyboardInterrupt
        return original(self)

    with monkeypatch.context() as patch:
        patch.setattr(learner.Learner, "update", update)
        with pytest.raises(KeyboardInterrupt):
            fit(tmp_path / "parts", **options)
    lines, tensors = outcome(resume(tmp_path / "parts"))
    whole_lines, whole_tensors = outcome(whole)
    assert lines[-1] == pytest.approx(whole_lines[-1], rel=1e-5)
    for name in tensors:
        torch.testing.assert_close(tensors[name], whole_tensors[name], rtol=1e-4, atol=1e-6)
