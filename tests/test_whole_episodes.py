"""Training on whole episodes: the state carried from chunk to chunk is that of the whole episode, and of no other."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from scanrl import learner as learner_module
from scanrl.batch import Batch
from scanrl.checkpoint import load_checkpoint
from scanrl.data.windows import EpisodeSampler, iterate_episodes
from scanrl.graphs import leaves
from scanrl.kernels import native, native_mamba
from scanrl.learner import Learner
from scanrl.models.decision import DecisionModel
from scanrl.models.recipes import recipe
from scanrl.nn import MIXERS, ModelConfig, map_state, replace_rows
from scanrl.nn.local import LocalLinear
from scanrl.policy import Policy
from scanrl.run import Run, open_run
from scanrl.scoring import score_run
from scanrl.settings import run_config
from scanrl.stacked import stacking_pays
from scanrl.stats import Stats
from scanrl.training import resume, train
from scanrl.types import CorruptFile, DataError
from tests.conftest import BOX, CHOICE, SEQUENCE_RECIPES, make_dataset, make_stats
from tests.runs import CARTPOLE, DT, HALF, TINY, fit, outcome, stopped
from tests.test_checkpoint import reseal
from tests.test_graphs import DirectCalls
from tests.test_policy import play

pytestmark = pytest.mark.usefixtures("no_flushing")

WHOLE = {"train.sequences": "episodes"}

CONFIG = ModelConfig(width=16, context=4, heads=2, state_size=3, mlp_ratio=2)
INNER = ("none", "modal_conv", "dense", "modal_linear")
CASES = {name: replace(CONFIG, pattern=f"{name} mlp") for name in MIXERS if name != "mlp"}
CASES |= {f"mamba-{inner}": replace(CONFIG, pattern="mamba*2", inner_mixer=inner) for inner in INNER}
CASES |= {"time": replace(CONFIG, pattern="mamba attention", time_embedding=True, layout="sar")}
CASES |= {"merged": replace(CONFIG, pattern="s4d mamba", merged=True)}
every_family = pytest.mark.parametrize("config", CASES.values(), ids=CASES)


def build(config: ModelConfig, spec=BOX, dtype: torch.dtype = torch.float32) -> DecisionModel:
    model = DecisionModel(config, spec, make_stats(spec), seed=1).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    return model.to(dtype)


def wide(batch: Batch) -> Batch:
    return Batch(*(x.double() if x.is_floating_point() else x for x in batch))


def joined(batches: list[Batch]) -> Batch:
    """One after the other in time."""
    columns = zip(*batches, strict=True)
    return Batch(*(torch.cat(parts, 1) if parts[0].numel() else parts[0] for parts in columns))


def small(name: str) -> ModelConfig:
    sizes = {"width": 16, "context": 4, "state_size": 3, "mlp_ratio": 2, "gloma_steps": 2, "max_length": 30}
    return replace(recipe(name).model, **sizes, head="auto")


CUT = [(config, chunk) for config in CASES.values() for chunk in (1, 4, 40)]
CUT += [(small(name), 4) for name in SEQUENCE_RECIPES if name not in ("bc", "bc10")]


@pytest.mark.parametrize(("config", "chunk"), CUT)
def test_carried_chunks_equal_one_forward_over_the_episode(config, chunk):
    spec = CHOICE if chunk == 4 else BOX
    model, data = build(config, spec, torch.float64), make_dataset(spec, episodes=5)
    sampler, empty, seen = EpisodeSampler(data, chunk, 3, seed=0), model.training_state(1), 0
    state, rows = model.training_state(3), [[], [], []]
    for _ in range(max(8, 28 // chunk)):
        batch, first = sampler.sample()
        hidden, state = model(wide(batch), replace_rows(state, first, empty))
        for row in range(3):
            rows[row] = [] if first[row] else rows[row]
            rows[row].append((Batch(*(x[row : row + 1] for x in batch)), hidden[row : row + 1]))
            history = joined([b for b, _ in rows[row]])
            expected, _ = model(wide(history))
            valid = history.mask[0]
            found = torch.cat([h for _, h in rows[row]], 1)
            torch.testing.assert_close(found[:, valid], expected[:, valid], rtol=1e-10, atol=1e-10)
            seen += len(rows[row]) > 1
    assert seen > 0 or chunk == 40


@every_family
def test_a_row_that_starts_anew_keeps_no_trace_of_what_it_carried(config):
    model, data = build(config), make_dataset(episodes=5)
    sampler = EpisodeSampler(data, 4, 3, seed=0)
    (first, _), (second, _) = sampler.sample(), sampler.sample()
    _, carried = model.loss_from(model.training_state(3), first)
    assert leaves(carried)

    def poisoned(x):
        x = x.clone()
        x[1] = torch.nan if x.is_floating_point() else 1
        return x

    anew = torch.tensor([False, True, False])
    before = replace_rows(map_state(poisoned, carried), anew, model.training_state(1))
    for found, clean in zip(leaves(before), leaves(replace_rows(carried, anew, model.training_state(1))), strict=True):
        assert torch.equal(found, clean)
    hidden, _ = model(second, before)
    fresh, _ = model(second, model.training_state(3))
    assert torch.equal(hidden[1], fresh[1])
    assert not torch.equal(hidden[0], fresh[0])


@every_family
def test_a_policy_that_carries_its_state_acts_as_the_carried_chunks_say(config):
    model = build(config)
    batch = play(Policy(model), 22)
    state, said = model.training_state(3), []
    with torch.no_grad():
        for start in range(0, 22, 4):
            part = Batch(*(x[:, start : start + 4] if x.numel() else x for x in batch))
            hidden, state = model(part, state)
            said.append(model.tokens.unscale_actions(model.head.act(hidden.flatten(0, 1))).unflatten(0, (3, -1)))
    torch.testing.assert_close(torch.cat(said, 1), batch.actions, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(native.extension()[0] is None, reason="no native kernels")
@pytest.mark.parametrize("inner", INNER)
def test_the_fused_kernels_carry_the_state(inner, monkeypatch):
    monkeypatch.setattr(LocalLinear, "_select", None)  # every place's product for every token
    calls = []
    forward = native_mamba._Mamba.forward
    monkeypatch.setattr(native_mamba._Mamba, "forward", staticmethod(lambda *a: calls.append(1) or forward(*a)))
    model = build(replace(CONFIG, pattern="modal_linear mamba", inner_mixer=inner))
    batch, _ = EpisodeSampler(make_dataset(), 4, 20, seed=0).sample()
    _, state = model.loss_from(model.training_state(20), batch)
    assert {x.dtype for x in leaves(state)} == {torch.float32, torch.int64}
    with torch.no_grad():
        model.loss_from(state, batch)
    assert len(calls) == 2


@every_family
def test_gradients_from_an_empty_state_are_those_of_windows(config):
    model = build(config, dtype=torch.float64)
    batch = wide(EpisodeSampler(make_dataset(), 4, 3, seed=0).sample()[0])
    wanted = list(model.parameters())
    windows = torch.autograd.grad(model.loss(batch), wanted, allow_unused=True)
    carried = torch.autograd.grad(model.loss_from(model.training_state(3), batch)[0], wanted, allow_unused=True)
    for a, b in zip(windows, carried, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


# Runs


@pytest.mark.parametrize(
    "recipe, overrides", [("dmm-dc", TINY), ("dt", DT), ("dm", HALF), ("dmm-dl", {**TINY, "model.context": 1})]
)
def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path, monkeypatch, recipe, overrides):
    overrides = {**overrides, **WHOLE}
    whole = fit(tmp_path / "whole", recipe, overrides=overrides)
    parts = stopped(tmp_path / "parts", monkeypatch, 7, recipe=recipe, overrides=overrides)
    assert any(x.any() for n, x in load_checkpoint(parts).optimizer.items() if n.startswith("carried."))
    resume(parts)
    assert outcome(parts) == outcome(whole.path)


def test_the_comparison_notices_a_carried_state_that_was_not_restored(tmp_path, monkeypatch):
    whole = fit(tmp_path / "whole", overrides={**TINY, **WHOLE})
    parts = stopped(tmp_path / "parts", monkeypatch, overrides={**TINY, **WHOLE})
    file = parts / "checkpoints/step-7/train/optimizer.safetensors"
    tensors = load_file(file)
    save_file({n: torch.zeros_like(x) if n.startswith("carried.") else x for n, x in tensors.items()}, file)
    reseal(file.parents[1])
    resume(parts)
    assert outcome(parts)[1] != outcome(whole.path)[1]


def test_a_checkpoint_without_what_its_rows_carried_is_refused(tmp_path, monkeypatch):
    run = stopped(tmp_path / "run", monkeypatch, overrides={**TINY, **WHOLE})
    file = run / "checkpoints/step-7/train/optimizer.safetensors"
    save_file({n: x for n, x in load_file(file).items() if n != "carried.1"}, file)
    reseal(file.parents[1])
    with pytest.raises(CorruptFile, match=r"step-7/train: carried state 1: expected shape \(4,\), got None$"):
        resume(run)


@pytest.mark.parametrize("before, after", [({}, "episodes"), (WHOLE, "windows")])
def test_a_run_does_not_go_on_in_the_other_form(tmp_path, monkeypatch, before, after):
    run = stopped(tmp_path / "run", monkeypatch, overrides={**TINY, **before})
    text = (run / "config.yaml").read_text()
    other = {"episodes": "windows", "windows": "episodes"}[after]
    (run / "config.yaml").write_text(text.replace(f"sequences: {other}", f"sequences: {after}"))
    with pytest.raises(DataError, match=rf"state.json: sampler state: expected one of (whole )?{after}, got one of"):
        resume(run)


@pytest.mark.parametrize("spec", [BOX, CHOICE])
def test_seeds_side_by_side_equal_their_solo_runs(tmp_path, spec):
    data, overrides = make_dataset(spec), {**TINY, **WHOLE, "train.steps": 6}
    runs = train("dmm-dc", data, seeds=[3, 5], out=tmp_path / "seeds", overrides=overrides)
    for seed, run in zip((3, 5), runs, strict=True):
        alone = train("dmm-dc", data, seed=seed, out=tmp_path / f"alone-{seed}", overrides=overrides)
        assert outcome(run.path) == outcome(alone.path)


def test_seeds_are_not_stacked():
    plain = {**TINY, "model.dropout": 0.0}
    many = [learner({**plain, **WHOLE, "train.seed": seed}) for seed in (0, 1)]
    for one in many:
        one.settings = replace(one.settings, device="cuda")
    assert not stacking_pays(many)
    windows = [learner({**plain, "train.seed": seed}) for seed in (0, 1)]
    for one in windows:
        one.settings = replace(one.settings, device="cuda")
    assert stacking_pays(windows)


@pytest.mark.parametrize("recipe, overrides", [("dmm-dl", TINY), ("dt", DT)])
def test_a_run_carries_the_state_of_the_episode_so_far(recipe, overrides):
    still = {**overrides, **WHOLE, "model.dropout": 0.0, "train.learning_rate": 1e-30, "train.weight_decay": 0.0}
    one, seen = learner(still, recipe), [[], [], [], []]
    columns = one.columns
    taken: list[tuple] = []
    one.columns = lambda: taken.append(columns()) or taken[-1]
    for _ in range(9):
        one.update()
        *batch, first = taken[-1]
        for row in range(4):
            seen[row] = ([] if first[row] else seen[row]) + [Batch(*(x[row : row + 1] for x in batch))]
            if not seen[row][-1].mask.all():
                continue  # padded: the row starts anew
            history = joined(seen[row])
            with torch.no_grad():
                _, expected = one.model(history)
            for found, wanted in zip(leaves(one.carried), leaves(expected), strict=True):
                torch.testing.assert_close(found[row], wanted[0], rtol=1e-4, atol=1e-6, check_dtype=False)
    assert max(map(len, seen)) > 2


def learner(overrides, recipe="dmm-dc") -> Learner:
    data, config = make_dataset(), run_config(recipe, overrides)
    return Learner(Run(Path(), config), data, Stats.fit(data))


@pytest.mark.parametrize("recipe, overrides", [("dmm-dc", TINY), ("dt", DT)])
def test_a_recorded_update_trains_to_the_same_bits(tmp_path, monkeypatch, recipe, overrides):
    overrides = {**overrides, **WHOLE}
    eager = fit(tmp_path / "eager", recipe, overrides=overrides)
    monkeypatch.setattr(learner_module, "graphs_wanted", lambda device: True)
    monkeypatch.setattr(learner_module, "CudaGraph", DirectCalls)
    recorded = fit(tmp_path / "recorded", recipe, overrides=overrides)
    assert DirectCalls.made[-1].log[-13:] == ["replay"] * 13
    assert outcome(recorded.path) == outcome(eager.path)


def test_a_model_without_memory_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(DataError, match=r"^train.sequences: expected windows for a model without memory, got episodes"):
        train("bc", make_dataset(), out=tmp_path / "run", overrides=WHOLE)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("sequences", ["windows", "episodes"])
def test_the_recurrent_loss_is_that_of_whole_held_out_episodes(tmp_path, monkeypatch, sequences):
    monkeypatch.setattr(learner_module, "CHUNK", 8)
    data, overrides = make_dataset(), {**TINY, "train.validation": 0.3, "train.sequences": sequences}
    run = fit(tmp_path / "run", data=data, overrides=overrides)
    model, held_out = run.checkpoint().model().eval(), data.split(0.3, 0)[1]
    with torch.no_grad():
        whole = [next(iterate_episodes(held_out.select([i]), 40, 1)) for i in range(len(held_out))]
        total = sum(float(model.loss(batch)) * int(batch.mask.sum()) for batch in whole)
    last = open_run(run.path).metrics()[-1]
    assert last["val/loss_recurrent"] == pytest.approx(total / held_out.steps, rel=1e-5)
    assert last["val/loss_recurrent"] != last["val/loss"]


def test_a_model_without_memory_has_no_recurrent_loss(tmp_path):
    run = fit(tmp_path / "run", "bc", overrides={"model.width": 8, "train.batch_size": 4}, steps=3)
    assert "val/loss" in run.metrics()[-1]
    assert not any("val/loss_recurrent" in line for line in run.metrics())


@pytest.mark.parametrize("sequences, window", [("windows", 4), ("episodes", None)])
def test_a_score_tells_the_window_of_the_training_where_there_was_one(tmp_path, sequences, window):
    run = fit(tmp_path / "run", data=make_dataset(CARTPOLE), overrides={**TINY, "train.sequences": sequences}, steps=2)
    (scores,) = score_run(run.path, "CartPole-v1", episodes=1)
    assert scores.trained_context == window
