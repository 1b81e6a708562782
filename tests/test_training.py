import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from scanrl import learner
from scanrl.checkpoint import checkpoints_of, load_checkpoint
from scanrl.data.windows import WindowSampler, iterate_windows
from scanrl.models.decision import DecisionModel
from scanrl.models.recipes import recipe
from scanrl.optimizer import adamw, learning_rate, set_learning_rate
from scanrl.run import open_run
from scanrl.settings import TrainConfig
from scanrl.stats import Stats
from scanrl.training import Diverged, resume
from tests.conftest import make_dataset, make_stats
from tests.runs import CARTPOLE, DT, HALF, STEPS, TINY, fit, outcome, stopped

pytestmark = pytest.mark.usefixtures("no_flushing")


# The log of metrics


def test_lines_from_after_the_checkpoint_and_torn_ones_are_dropped(tmp_path, monkeypatch, reference):
    run = stopped(tmp_path / "run", monkeypatch)
    with (run / "metrics.jsonl").open("a") as file:
        file.write(
            '{"step": 8, "train/loss": 99.0}\n{"step": 8, "val/loss": 99.0}\n[1]\n{"step": "x"}\n{"step": 9, "tr'
        )
    assert [line["step"] for line in open_run(run).metrics()][-2:] == [8, 8]
    resume(run)
    assert outcome(run) == outcome(reference)
    assert all(json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())


def test_losses_and_scores_are_there_at_their_steps(tmp_path):
    settings = {**TINY, "train.log_every": 3, "eval.every": 5, "eval.episodes": 2, "eval.num_envs": 2}
    run = fit(tmp_path / "run", data=make_dataset(CARTPOLE), env="CartPole-v1", overrides=settings, steps=11)
    steps = {}
    for line in run.metrics():
        for key in line:
            steps.setdefault(key, []).append(line["step"])
    assert steps["train/loss"] == steps["train/grad_norm"] == steps["perf/steps_per_s"] == [3, 6, 9, 11]
    assert steps["val/loss"] == [4, 8, 11]
    assert steps["eval/return_mean"] == steps["eval/length_mean"] == [5, 10, 11]
    assert run.checkpoint().about["env"] == "CartPole-v1"


def test_the_held_out_loss_is_the_mean_over_steps_of_held_out_episodes(tmp_path, monkeypatch):
    seen = {}

    def spy(name, function):
        return lambda dataset, *more: seen.setdefault(name, dataset) and function(dataset, *more)

    monkeypatch.setattr(learner, "WindowSampler", spy("training", WindowSampler))
    monkeypatch.setattr(learner, "iterate_windows", spy("held out", iterate_windows))
    data = make_dataset()
    run = fit(tmp_path / "run", data=data, overrides={**TINY, "train.validation": 0.3})
    episodes = {name: {e.observations.tobytes() for e in part} for name, part in seen.items()}
    assert len(episodes["held out"]) == 4
    assert not episodes["held out"] & episodes["training"]
    assert episodes["held out"] | episodes["training"] == {e.observations.tobytes() for e in data}
    model, total = run.checkpoint().model().eval(), 0.0
    for episode in range(4):
        for batch in iterate_windows(seen["held out"].select([episode]), 4, 1):
            total += model.loss(batch).item() * int(batch.mask.sum())
    expected = total / seen["held out"].steps
    assert run.metrics()[-1]["val/loss"] == pytest.approx(expected, rel=1e-5)


def test_the_best_episodes_are_chosen_within_each_part_and_statistics_are_of_all(tmp_path, monkeypatch):
    seen = {}

    def spy(name, function):
        return lambda dataset, *more: seen.setdefault(name, dataset) and function(dataset, *more)

    monkeypatch.setattr(learner, "WindowSampler", spy("training", WindowSampler))
    monkeypatch.setattr(learner, "iterate_windows", spy("held out", iterate_windows))
    data = make_dataset(episodes=40)
    settings = {**TINY, "train.validation": 0.3, "train.top_fraction": 0.4}
    run = fit(tmp_path / "run", "bc10", data=data, overrides=settings, steps=1)
    for name, part in zip(("training", "held out"), data.split(0.3, seed=0), strict=True):
        chosen = seen[name]
        assert set(chosen.returns) < set(part.returns)
        assert chosen.returns.min() > np.delete(part.returns, np.isin(part.returns, chosen.returns)).max()
        assert 0.2 * part.steps < chosen.steps <= 0.4 * part.steps
    checkpoint = run.checkpoint()
    assert checkpoint.stats == Stats.fit(data)
    assert checkpoint.about["fingerprint"] == data.fingerprint


def test_a_share_of_the_data_leaves_what_is_held_out_and_the_statistics(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(learner, "WindowSampler", lambda data, *more: seen.append(data) or WindowSampler(data, *more))
    monkeypatch.setattr(
        learner, "iterate_windows", lambda data, *more: seen.append(data) or iterate_windows(data, *more)
    )
    data = make_dataset(episodes=40)
    settings = {**TINY, "train.validation": 0.3, "train.data_share": 0.25}
    run = fit(tmp_path / "run", data=data, overrides=settings, steps=1)
    training, held_out = data.split(0.3, seed=0)
    assert seen[0].fingerprint == training.share(0.25, seed=0).fingerprint
    assert len(seen[0]) == 7
    assert {part.fingerprint for part in seen[1:]} == {held_out.fingerprint}
    checkpoint = run.checkpoint()
    assert (checkpoint.stats, checkpoint.about["fingerprint"]) == (Stats.fit(data), data.fingerprint)


def test_training_on_everything_has_no_held_out_loss(tmp_path):
    run = fit(tmp_path / "run", overrides={**TINY, "train.validation": 0.0})
    assert not any("val/loss" in line for line in run.metrics())
    assert fit(tmp_path / "one", data=make_dataset(episodes=1)).checkpoint().step == STEPS


@pytest.mark.filterwarnings("default")
def test_tensorboard_events_are_written_on_request(tmp_path):
    pytest.importorskip("tensorboard")
    fit(tmp_path / "run", overrides={**TINY, "train.tensorboard": True}, steps=3)
    events = list((tmp_path / "run" / "tensorboard").glob("events.out.tfevents.*"))
    assert len(events) == 1
    assert b"train/loss" in events[0].read_bytes()


# What the loop does with numbers


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_update(tmp_path, monkeypatch, value):
    original, calls = DecisionModel.loss, []

    def loss(self, batch, **more):
        calls.append(1)
        return original(self, batch, **more) * (value if len(calls) == 7 else 1.0)

    monkeypatch.setattr(DecisionModel, "loss", loss)
    with pytest.raises(Diverged, match=rf"run: update 7: expected a finite loss and gradient, got loss {value}"):
        fit(tmp_path / "run", overrides={**TINY, "train.validation": 0.0})
    found = load_checkpoint(tmp_path / "run")
    assert found.step == 5
    assert all(tensor.isfinite().all() for tensor in found.weights.values())
    assert open_run(tmp_path / "run").metrics()[-1]["step"] == 6


@pytest.mark.parametrize("overrides", [TINY, HALF, DT])
def test_a_run_in_half_precision_has_other_losses_and_weights_in_float32(tmp_path, overrides):
    whole = fit(tmp_path / "whole", overrides={**overrides, "train.precision": "float32"})
    half = fit(tmp_path / "half", overrides={**overrides, "train.precision": "bfloat16"})
    losses = [[line["train/loss"] for line in run.metrics() if "train/loss" in line] for run in (whole, half)]
    assert losses[0] != losses[1]
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.05)
    found = load_checkpoint(half.path)
    assert {t.dtype for t in found.weights.values()} == {torch.float32}
    assert open_run(half.path).config.train.precision == "bfloat16"


def test_weights_that_are_not_finite_are_never_written(tmp_path):
    with pytest.raises(Diverged, match=r"run: update 1: expected finite weights, got others in "):
        fit(tmp_path / "run", overrides={**TINY, "train.learning_rate": 1e39, "train.checkpoint_every": 1})
    assert checkpoints_of(tmp_path / "run") == []


def test_the_step_size_rises_then_falls_to_a_tenth_or_stays():
    cosine = TrainConfig(steps=1000, learning_rate=2.0, warmup=0.1)
    rates = [learning_rate(step, cosine) for step in range(1000)]
    assert rates[:2] == pytest.approx([0.02, 0.04])
    assert max(rates) == rates[99] == pytest.approx(2.0)
    assert np.all(np.diff(rates[:100]) > 0)
    assert np.all(np.diff(rates[100:]) < 0)
    assert rates[-1] == pytest.approx(0.2, rel=1e-3)
    constant = TrainConfig(steps=1000, learning_rate=2.0, warmup=0.1, schedule="constant")
    rates = [learning_rate(step, constant) for step in range(1000)]
    assert rates[:2] == pytest.approx([0.02, 0.04])
    assert set(rates[99:]) == {2.0}
    assert learning_rate(0, TrainConfig(steps=1, warmup=0.0)) == TrainConfig().learning_rate


def test_the_scans_own_parameters_are_exempt_from_weight_decay(reference):
    model = load_checkpoint(reference).model()
    names = {id(p): name for name, p in model.named_parameters()}
    decayed, exempt = adamw(model, TrainConfig(weight_decay=0.3)).param_groups
    assert {names[id(p)].rpartition(".")[2] for p in exempt["params"]} == {"A_log", "D"}
    assert not {names[id(p)].rpartition(".")[2] for p in decayed["params"]} & {"A_log", "D"}
    assert len(exempt["params"]) + len(decayed["params"]) == len(names)
    assert (decayed["weight_decay"], exempt["weight_decay"]) == (0.3, 0.0)


def test_decay_may_act_on_matrices_alone():
    names = {}
    for name in ("dmm-dc", "dt"):
        model = DecisionModel(replace(recipe(name).model, width=8), CARTPOLE, make_stats(CARTPOLE), seed=0)
        own = {id(p): name for name, p in model.named_parameters()}
        decayed, exempt = adamw(model, TrainConfig(weight_decay=0.3, decayed="matrices", beta2=0.95)).param_groups
        assert (decayed["weight_decay"], exempt["weight_decay"]) == (0.3, 0.0)
        assert decayed["betas"] == exempt["betas"] == (0.9, 0.95)
        assert len(decayed["params"]) + len(exempt["params"]) == len(own)
        names |= {own[id(p)]: True for p in decayed["params"]} | {own[id(p)]: False for p in exempt["params"]}
    assert not any(on for name, on in names.items() if "norm" in name or name.endswith(("bias", "A_log", ".D")))
    assert not any(on for name, on in names.items() if name.startswith(("tokens.time", "tokens.embeddings.action")))
    for ending in ("in_proj.weight", "out_proj.weight", "kernel", "up.weight", "observation.weight", "qkv.weight"):
        found = [on for name, on in names.items() if name.endswith(ending)]
        assert found
        assert all(found), ending


def test_dense_mixers_may_take_smaller_steps():
    model = DecisionModel(replace(recipe("dmm-dl").model, width=8), CARTPOLE, make_stats(CARTPOLE), seed=0)
    names = {id(p): name for name, p in model.named_parameters()}
    assert len(adamw(model, TrainConfig()).param_groups) == 2
    optimizer = adamw(model, TrainConfig(learning_rate=2.0, dense_rate=0.1, weight_decay=0.3))
    assert [(g["lr"], g["weight_decay"]) for g in optimizer.param_groups] == [(2.0, 0.3), (2.0, 0.0), (0.2, 0.3)]
    slow = {names[id(p)] for p in optimizer.param_groups[2]["params"]}
    assert slow == {f"stack.mixers.{i}.weight" for i in (0, 2, 4)} | {
        f"stack.mixers.{i}.inner.weight" for i in (1, 3, 5)
    }
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(names)
    set_learning_rate(optimizer, 1.0)
    assert [group["lr"] for group in optimizer.param_groups] == [1.0, 1.0, 0.1]


def test_equal_seeds_give_equal_runs_and_the_global_generators_are_left_alone(tmp_path, reference):
    torch.manual_seed(77)
    np.random.seed(77)  # noqa: NPY002
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    fit(tmp_path / "run")
    assert torch.equal(torch.get_rng_state(), before)
    assert np.random.get_state()[1].tolist() == numpy_before  # noqa: NPY002
    assert outcome(tmp_path / "run") == outcome(reference)
    fit(tmp_path / "other", seed=1)
    assert outcome(tmp_path / "other")[1] != outcome(reference)[1]
