"""Learners as one model: every seed's weights, moments and losses are those of its solo run."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from scanrl import loop, stacked
from scanrl.learner import Learner
from scanrl.run import Run
from scanrl.settings import run_config
from scanrl.stacked import Stacked, stacking_pays
from scanrl.stats import Stats
from scanrl.training import Diverged, Interrupted, resume_seeds
from tests.conftest import make_dataset
from tests.runs import CARTPOLE, TINY, fit, outcome, stop_at
from tests.test_graphs import DirectCalls

pytestmark = [
    pytest.mark.usefixtures("no_flushing"),
    # Torch's own words about its attention on the CPU.
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),
]

PLAIN = {**TINY, "model.dropout": 0.0, "train.steps": 40, "train.learning_rate": 3e-3}
SEEDS = (0, 3, 1)
MODELS = {
    "convolutions": ("dmm-dc", {}),
    "matrices": ("dmm-dl", {"model.pattern": "modal_linear mamba dense"}),
    "Mamba's own": ("dm", {"model.pattern": "mamba mlp:post conv:none", "model.time_embedding": True}),
    "shared norms": ("dmm26", {"model.pattern": "(dense mamba)*2", "model.share_norms": True}),
    "a Gaussian": ("dmm-dc", {"model.head": "gaussian"}),
    "attention": ("dt", {"model.pattern": "attention mlp", "model.max_length": 30, "model.heads": 2}),
    "merged tokens": ("ds4", {"model.pattern": "s4d*2"}),
    "windows": ("mambadm", {"model.pattern": "gloma mlp gloma_shifted", "model.gloma_steps": 2}),
    "heads": ("dmm26", {"model.pattern": "(dense mamba2)*2", "model.head_size": 4}),
    "a frozen mixer": ("dmm26", {"model.pattern": "(dense mamba)*2", "model.frozen_shared_mixer": True}),
    "predicted returns": ("edt", {"model.pattern": "attention mlp", "model.max_length": 30, "model.heads": 2}),
    "an entropy": ("reinformer-mamba", {"model.pattern": "mamba mlp", "model.max_length": 30, "model.heads": 1}),
    "no history": ("bc", {"model.pattern": "mlp*2", "model.context": 1}),
}


def learners(name="dmm-dc", changes=None, dataset=None) -> list[Learner]:
    dataset = dataset or make_dataset()
    config = run_config(name, {**PLAIN, **(changes or {})})
    configs = [replace(config, train=replace(config.train, seed=seed)) for seed in SEEDS]
    return [Learner(Run(Path(f"seed-{c.train.seed}"), c), dataset, Stats.fit(dataset)) for c in configs]


def moments(one: Learner) -> dict[str, torch.Tensor]:
    names = {parameter: name for name, parameter in one.model.named_parameters()}
    return {f"{names[p]}.{key}": value for p, state in one.optimizer.state.items() for key, value in state.items()}


def assert_near(found: dict, expected: dict, tolerance: float) -> None:
    """Relative to the largest entry of each tensor."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        error = (found[name] - value).abs().max().item()
        assert error <= tolerance * max(value.abs().max().item(), 1e-3), f"{name}: {error:.1e}"


def weights(one: Learner) -> dict[str, torch.Tensor]:
    """All but what has no gradient except rounding: attention does not change if all keys move alike."""
    found = {name: tensor.clone() for name, tensor in one.model.state_dict().items()}
    for name, tensor in found.items():
        if name.endswith("qkv.bias"):
            tensor.view(3, -1)[1] = 0
    return found


@pytest.mark.parametrize("name", MODELS)
def test_every_seed_equals_its_solo_run(name):
    solo, many = learners(*MODELS[name]), learners(*MODELS[name])
    before = weights(many[0])
    together = Stacked(many)
    assert_near(weights(many[0]), before, 0.0)
    for update in range(30):
        found, expected = together.update(), [one.update() for one in solo]
        assert [one.step for one in many] == [one.step for one in solo] == [update + 1] * len(SEEDS)
        tolerance = 1e-5 if update == 0 else 1e-3
        for values, wanted in zip(found, expected, strict=True):
            assert values == pytest.approx(wanted, rel=tolerance)
        for one, alone in zip(many, solo, strict=True) if update == 0 else ():
            assert_near(moments(one), moments(alone), 1e-5)
    for one, alone in zip(many, solo, strict=True):
        assert_near(weights(one), weights(alone), 1e-4)
        assert one.sampler.state_dict() == alone.sampler.state_dict()


def test_choices_are_learned_as_alone():
    data = make_dataset(CARTPOLE)
    solo, many = learners(dataset=data), learners(dataset=data)
    together = Stacked(many)
    for _ in range(10):
        together.update()
        for one in solo:
            one.update()
    for one, alone in zip(many, solo, strict=True):
        assert_near(weights(one), weights(alone), 1e-4)


def test_gradients_are_clipped_seed_by_seed():
    sizes = [one.update()[1] for one in learners()]
    middle = sorted(sizes)[1] * 1.0001
    solo, many = (learners(changes={"train.clip_norm": middle}) for _ in range(2))
    assert sum(size > middle for size in sizes) == 1
    Stacked(many).update()
    for one, alone in zip(many, solo, strict=True):
        alone.update()
        assert_near(moments(one), moments(alone), 1e-5)


def test_what_no_output_depends_on_stays_as_it_is():
    many = learners("dt", {"model.pattern": "mlp", "model.reference_extras": True})
    before = [weights(one) for one in many]
    together = Stacked(many)
    for _ in range(2):
        together.update()
    for one, old in zip(many, before, strict=True):
        idle = {name: tensor for name, tensor in one.model.state_dict().items() if name.startswith("extras.")}
        assert idle
        assert all(torch.equal(tensor, old[name]) for name, tensor in idle.items())
        assert not any("extras" in name for name in moments(one))


def test_a_seed_that_diverges_is_named():
    many = learners()
    with torch.no_grad():
        next(many[1].model.parameters()).fill_(float("nan"))
    with pytest.raises(Diverged, match=r"^seed-3: update 1: expected a finite loss and gradient, got loss nan"):
        Stacked(many).update()
    assert [one.step for one in many] == [0, 0, 0]


def test_a_recorded_update_of_all_seeds_gives_the_same_bits(monkeypatch):
    eager, many = learners(), learners()
    expected = Stacked(eager)
    monkeypatch.setattr(stacked, "graphs_wanted", lambda device: True)
    monkeypatch.setattr(stacked, "CudaGraph", DirectCalls)
    recorded = Stacked(many)
    for _ in range(8):
        assert recorded.update() == expected.update()
    assert DirectCalls.made[-1].log[-5:] == ["replay"] * 5
    for one, other in zip(many, eager, strict=True):
        assert_near(weights(one), weights(other), 0.0)
        assert_near(moments(one), moments(other), 0.0)


def test_stacks_are_for_several_seeds_on_a_gpu_without_dropout():
    def pays(device, dropout, count=3):
        config = run_config("dmm-dc", {"train.device": device, "model.dropout": dropout})
        one = Learner.__new__(Learner)
        one.run, one.settings = Run(Path(), config), config.train
        return stacking_pays([one] * count)

    assert pays("cuda", 0.0)
    assert pays("cuda:1", 0.0)
    assert not pays("cuda", 0.1)
    assert not pays("cpu", 0.0)
    assert not pays("cuda", 0.0, count=1)


def test_a_stacked_run_that_was_stopped_ends_as_if_it_was_not(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "stacking_pays", lambda moving: len(moving) > 1)
    solo = fit(tmp_path / "solo", overrides=PLAIN, seed=2)
    fit(tmp_path / "whole", overrides=PLAIN, seeds=[2, 5])
    with monkeypatch.context() as patch:
        stop_at(patch, 14)
        with pytest.raises(Interrupted):
            fit(tmp_path / "parts", overrides=PLAIN, seeds=[2, 5])
    resume_seeds(tmp_path / "parts")
    for seed in ("seed-2", "seed-5"):
        assert outcome(tmp_path / "parts" / seed) == outcome(tmp_path / "whole" / seed)
    stacked, alone = (outcome(path) for path in (tmp_path / "whole" / "seed-2", solo.path))
    assert stacked[1].keys() == alone[1].keys()
    assert stacked[2] == alone[2]
    for line, expected in zip(stacked[3], alone[3], strict=True):
        assert line == pytest.approx(expected, rel=1e-3)
