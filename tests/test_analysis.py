"""What is said of a trained scan, against the recurrence itself."""

import json
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from scanrl.analysis import activations, draw_activations, draw_spectra, full_windows, spectra
from scanrl.analysis.scans import scans
from scanrl.cli import main
from scanrl.models.decision import DecisionModel
from scanrl.nn import ModelConfig
from scanrl.nn.mamba import Mamba
from scanrl.types import DataError
from tests.conftest import BOX, make_dataset, make_stats
from tests.runs import TINY, fit

CONFIG = ModelConfig(pattern="modal_conv mamba mlp mamba", width=8, context=6, state_size=3)


def build(**changes) -> DecisionModel:
    return DecisionModel(replace(CONFIG, **changes), BOX, make_stats(BOX), seed=1).double()


def windows(count: int = 2, steps: int = 6):
    batch = full_windows(make_dataset(), steps, count)
    return type(batch)(*(x.double() if x.is_floating_point() else x for x in batch))


@pytest.mark.parametrize("inner", ["none", "conv4", "modal_linear"])
def test_the_selection_is_what_the_scan_reads(inner):
    model = build(inner_mixer=inner)
    mixer = model.stack.mixers[1]
    assert isinstance(mixer, Mamba)
    x = torch.randn(2, 18, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    read = mixer.selection(x)
    h = torch.zeros(2, 16, 3, dtype=torch.float64)
    for t in range(18):
        decay = torch.exp(-read.dt[:, t, :, None] * mixer.A_log.exp())
        h = decay * h + (read.dt[:, t] * read.u[:, t])[..., None] * read.B[:, t, None]
    torch.testing.assert_close(h, mixer(x)[1].h, rtol=1e-10, atol=1e-10)


def test_a_memory_is_the_steps_in_which_a_state_falls_to_a_fraction_of_e():
    model = build()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, Mamba):
                module.dt_proj.weight.zero_()
                module.dt_proj.bias.fill_(-3.0)
    first, second = spectra(model, windows())
    assert (first.name, second.name) == ("mixer 2", "mixer 4")
    dt = np.log1p(np.exp(-3.0))
    np.testing.assert_allclose(first.eigenvalues, np.tile([-1.0, -2.0, -3.0], (16, 1)), rtol=1e-6)
    np.testing.assert_allclose(first.step_sizes, dt, rtol=1e-6)
    tokens = 3 * first.memory
    np.testing.assert_allclose(np.exp(dt * first.eigenvalues * tokens), np.exp(-1), rtol=1e-6)


def test_step_sizes_are_means_over_the_data():
    model, batch = build(), windows(5)
    mixer, [read] = scans(model, batch)["mixer 4"]
    np.testing.assert_allclose(spectra(model, batch)[1].step_sizes, read.dt.mean((0, 1)).detach(), rtol=1e-12)
    assert read.dt.shape == (5, 18, 16)
    assert mixer is model.stack.mixers[3]


def test_the_activation_map_is_that_of_each_tokens_own_trace():
    model, batch = build(), windows()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    found = {one.name: one for one in activations(model, batch)}
    for name, (mixer, [read]) in scans(model, batch).items():
        a = -mixer.A_log.detach().exp()
        for t in range(18):
            write = (read.dt[:, t] * read.u[:, t])[..., None] * read.B[:, t, None]  # (B, E, N)
            h = write
            for later in range(t + 1, 18):
                h = torch.exp(read.dt[:, later, :, None] * a) * h
            size, kept = write.flatten(1).norm(dim=1), torch.exp(read.dt[:, t, :, None] * a).mean((1, 2))
            at = np.s_[:, t // 3, t % 3]
            np.testing.assert_allclose(found[name].written[at], size, rtol=1e-9)
            np.testing.assert_allclose(found[name].left[at], h.flatten(1).norm(dim=1) / size, rtol=1e-9)
            np.testing.assert_allclose(found[name].kept[at], kept, rtol=1e-9)
        np.testing.assert_allclose(found[name].left[:, -1, -1], 1.0)


def test_scans_are_found_wherever_they_stand():
    model, batch = build(pattern="mlp gloma", gloma_steps=2), windows()
    assert [one.name for one in spectra(model, batch)] == ["mixer 2 mamba", "mixer 2 local"]
    local = activations(model, batch)[1]
    assert local.left.shape == (2, 6, 3)
    np.testing.assert_allclose(local.left[:, -1, -1], 1.0)
    assert (local.left[:, 4:] > 0).all()
    assert not local.left[:, :4].any()  # forgotten where the next window began
    assert (local.written > 0).all()


def test_a_branch_that_is_reset_remembers_its_window_at_most():
    model, batch = build(pattern="gloma", gloma_steps=2), windows()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, Mamba):
                module.dt_proj.weight.zero_()
                module.dt_proj.bias.fill_(-6.0)
    whole, local = spectra(model, batch)
    assert whole.memory.max() > 100
    assert (local.memory == 2).all()
    assert (local.step_sizes == whole.step_sizes).all()


def test_a_scan_that_is_called_in_pieces_is_averaged_over_all_of_them():
    model, batch = build(pattern="gloma", gloma_steps=4), windows()  # a window of four steps and one of two
    _, reads = scans(model, batch)["mixer 1 local"]
    assert [read.dt.shape[:2] for read in reads] == [(2, 12), (2, 6)]
    expected = (12 * reads[0].dt.mean((0, 1)) + 6 * reads[1].dt.mean((0, 1))) / 18
    np.testing.assert_allclose(spectra(model, batch)[1].step_sizes, expected.detach(), rtol=1e-12)


@pytest.mark.parametrize("pattern", ["gloma", "gloma_shifted"])
def test_the_map_of_a_local_branch_has_its_unfinished_windows_too(pattern):
    model, batch = build(pattern=pattern, gloma_steps=4), windows()  # windows of 4 and 2 steps, or of 2 and 4
    local = activations(model, batch)[1]
    assert (local.name, local.left.shape) == ("mixer 1 local", (2, 6, 3))
    last = 4 if pattern == "gloma" else 2
    assert (local.left[:, last:] > 0).all()
    assert not local.left[:, :last].any()
    np.testing.assert_allclose(local.left[:, -1, -1], 1.0)
    _, reads = scans(model, batch)["mixer 1 local"]
    sizes = torch.cat([(r.dt * r.u).norm(dim=2) * r.B.norm(dim=2) for r in reads], 1).detach()
    np.testing.assert_allclose(local.written.reshape(2, 18), sizes, rtol=1e-9)


def test_windows_that_overlap_have_no_map():
    model, batch = build(pattern="gloma", gloma_steps=4, gloma_windows="sliding"), windows()
    assert [one.name for one in activations(model, batch)] == ["mixer 1 mamba"]


def test_looking_leaves_the_model_as_it_was():
    model, batch = build(dropout=0.5).train(), windows()
    found = [spectra(model, batch)[0].step_sizes for _ in range(2)]
    np.testing.assert_array_equal(found[0], found[1])  # no dropout while looking
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("count", [1, 4, 400])
def test_windows_are_full_and_spread_over_the_data(count):
    data = make_dataset()
    batch = full_windows(data, 6, count)
    assert batch.mask.all()
    assert batch.mask.shape == (min(count, (data.lengths // 6).sum()), 6)
    owners = {
        next(i for i, e in enumerate(data) if o in e.observations[:, 0]) for o in batch.observations[:, 0, 0].numpy()
    }
    assert len(owners) >= min(count, 9)


def test_windows_longer_than_every_episode_are_as_long_as_the_longest():
    data = make_dataset()
    assert full_windows(data, 500, 3).mask.shape == ((data.lengths == data.lengths.max()).sum(), data.lengths.max())


def test_a_model_without_a_scan_is_refused():
    with pytest.raises(DataError, match=r"^model.pattern: expected a model with a mamba .*, got 'attention mlp'$"):
        spectra(build(pattern="attention mlp"), windows())


def test_drawings_stand_alone_and_are_well_formed():
    model, batch = build(), windows()
    for drawn in (draw_spectra(spectra(model, batch), 6), draw_activations(activations(model, batch), "Rsa", 40)):
        root = ElementTree.fromstring(str(drawn))
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        text = " ".join(root.itertext())
        assert "mixer 2" in text
        assert "mixer 4" in text
    assert "step 45, a: 1" in text


@pytest.fixture
def run(tmp_path, no_flushing, elsewhere):
    return fit(tmp_path / "run", steps=2, overrides={**TINY, "model.pattern": "modal_conv mamba"}).path


def test_the_commands_show_draw_and_give_every_value(run, capsys):
    assert main(["analyse", "eigenvalues", str(run), "--windows", "3"]) == 0
    assert "mixer 2" in capsys.readouterr().out
    ElementTree.parse(run / "eigenvalues.svg")
    assert main(["analyse", "activations", str(run), "--start", "1", "--steps", "2", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert np.shape(found["left"]) == (2, 3)
    ElementTree.parse(run / "activations.svg")
    assert main(["analyse", "eigenvalues", str(run), "--json", "--out", str(run / "other.svg")]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert np.shape(found["memory"]) == (16, 4)
    assert (run / "other.svg").is_file()


def test_merged_tokens_are_one_line(tmp_path, no_flushing, elsewhere, capsys):
    overrides = {**TINY, "model.pattern": "mamba", "model.merged": True, "model.layout": "Rsa"}
    run = fit(tmp_path / "run", steps=2, overrides=overrides).path
    assert main(["analyse", "activations", str(run), "--steps", "2", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert np.shape(found["left"]) == (2, 1)


@pytest.mark.parametrize(("windows", "left_out"), [("sliding", True), ("block", False)])
def test_scans_without_a_map_are_named(tmp_path, no_flushing, elsewhere, capsys, windows, left_out):
    overrides = {**TINY, "model.pattern": "gloma", "model.gloma_steps": 2, "model.gloma_windows": windows}
    run = fit(tmp_path / "run", steps=2, overrides=overrides).path
    assert main(["analyse", "activations", str(run), "--steps", "3"]) == 0
    said = "left out, since they do not read every step once: mixer 1 local\n"
    assert (said in capsys.readouterr().out) == left_out


def test_nothing_is_drawn_into_the_folder_of_a_checkpoint(run, capsys):
    checkpoint = next((run / "checkpoints").iterdir())
    before = sorted(checkpoint.rglob("*"))
    assert main(["analyse", "eigenvalues", str(checkpoint), "--data", str(run / "data")]) == 0
    assert "drawn: eigenvalues.svg" in capsys.readouterr().out
    assert sorted(checkpoint.rglob("*")) == before


@pytest.mark.parametrize(
    "words, message",
    [
        (["--episode", "12"], "analyse activations: --episode: expected 0 to 11, got 12"),
        (["--start", "-1"], "analyse activations: --start: expected 0 to "),
        (["--steps", "0"], "analyse activations: --steps: expected at least 1"),
    ],
)
def test_steps_that_are_not_there_are_named(run, failing, words, message):
    assert message in failing("analyse", "activations", str(run), *words)


def test_a_checkpoint_alone_needs_its_data_named(run, failing):
    checkpoint = next((run / "checkpoints").iterdir())
    assert "data: expected --data for a checkpoint" in failing("analyse", "eigenvalues", str(checkpoint))
    assert main(["analyse", "eigenvalues", str(checkpoint), "--data", str(run / "data"), "--out", "here.svg"]) == 0
