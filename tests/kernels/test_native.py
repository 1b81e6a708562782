"""The C scan against the float64 reference, in every instruction set of this machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scan_cases import OPTIONAL, assert_close_to_truth, make, outputs_and_gradients, uncancelled

from scanrl.kernels import native, selective_scan

ROOT = Path(__file__).parents[2]
extension, why = native.extension()
pytestmark = pytest.mark.skipif(extension is None, reason=why)


def compare(arguments, largest=None, **options):
    truth = outputs_and_gradients(arguments, torch.float64, impl="reference", **options)
    assert_close_to_truth(outputs_and_gradients(arguments, impl="native", **options), truth, largest or {})


@pytest.mark.parametrize(
    "shape",
    [(2, 40, 48, 16), (1, 1, 1, 1), (3, 17, 5, 3), (2, 33, 31, 17), (2, 16, 130, 64), (5, 15, 8, 1), (1, 97, 16, 8)],
)
def test_results_and_every_gradient_match_the_truth(isa, shape):
    compare(make(*shape))


@pytest.mark.parametrize("without", [*((name,) for name in OPTIONAL), OPTIONAL])
def test_optional_arguments_may_be_missing(isa, without):
    compare(make(2, 19, 21, 5, without=without))


def test_without_softplus_dt_is_the_step_size(isa):
    x = make(2, 19, 21, 5)
    compare({**x, "dt": x["dt"].abs(), "dt_bias": x["dt_bias"].abs()}, softplus=False)


@pytest.mark.parametrize("use", [("y",), ("last",)])
def test_either_result_alone_gives_gradients(isa, use):
    compare(make(2, 35, 20, 16), use=use)


def test_a_long_sequence_keeps_its_accuracy(isa):
    x = make(1, 4096, 16, 16)
    compare({**x, "A": x["A"] / 10})


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 70), st.integers(1, 50), st.integers(1, 20)),
    without=st.sets(st.sampled_from(OPTIONAL)),
    use=st.sampled_from([("y",), ("last",), ("y", "last")]),
    seed=st.integers(0, 1000),
)
def test_any_shape_matches_the_truth(shape, without, use, seed):
    arguments = make(*shape, without=tuple(without), seed=seed)
    compare(arguments, uncancelled(arguments), use=use)


def test_a_large_batch_and_a_wide_layer_are_cut_into_tasks_correctly(isa):
    compare(make(70, 3, 40, 4))
    compare(make(1, 20, 700, 4))


@pytest.mark.parametrize("shape", [(2, 0, 3, 4), (0, 5, 3, 4), (2, 5, 0, 4), (2, 5, 3, 0), (0, 0, 0, 0)])
def test_empty_axes_are_no_special_case(isa, shape):
    compare(make(*shape))


def test_views_of_one_projection_are_read_in_place(isa):
    batch, length, channels, states = 3, 21, 24, 16
    projected = torch.randn(length, batch, 3 * channels + 2 * states).transpose(0, 1)  # time first, then cut in five
    u, dt, z, B, C = projected.split([channels, channels, channels, states, states], -1)
    views = {**make(batch, length, channels, states), "u": u, "dt": dt, "z": z, "B": B, "C": C}
    copies = {name: x.contiguous() for name, x in views.items()}
    assert native.rows(u) is u
    found, expected = (selective_scan(**x, impl="native") for x in (views, copies))
    assert all(map(torch.equal, found, expected))


def test_other_layouts_are_copied(isa):
    x = make(2, 20, 17, 6)
    odd = {
        n: v.transpose(0, -1).contiguous().transpose(0, -1) if v.ndim > 1 else v.repeat(2)[::2] for n, v in x.items()
    }
    odd["dt"] = torch.randn(17).expand(2, 20, 17)
    compare(odd)


def test_gradients_arrive_through_an_expanded_gradient():
    x = make(2, 5, 6, 3)
    leaf = x["u"].requires_grad_()
    selective_scan(**x, impl="native")[0].sum().backward()
    reference = x["u"].detach().double().requires_grad_()
    selective_scan(**{n: v.detach().double() for n, v in x.items()} | {"u": reference})[0].sum().backward()
    torch.testing.assert_close(leaf.grad, reference.grad.float(), rtol=1e-5, atol=1e-5)


def test_two_halves_with_the_state_carried_over_equal_the_whole(isa):
    x = make(2, 45, 20, 16)
    y, last = selective_scan(**x, impl="native")
    time = ("u", "dt", "B", "C", "z")
    y1, h = selective_scan(**{n: v[:, :19] if n in time else v for n, v in x.items()}, impl="native")
    y2, h = selective_scan(**{n: v[:, 19:] if n in time else v for n, v in x.items()} | {"h": h}, impl="native")
    assert torch.equal(torch.cat([y1, y2], 1), y)
    assert torch.equal(h, last)


def test_results_are_the_same_bits_every_time_and_for_any_number_of_threads(isa):
    x = make(40, 30, 70, 16)
    before = torch.get_num_threads()
    try:
        runs = []
        for threads in (1, 1, 2, 3):
            torch.set_num_threads(threads)
            runs.append(outputs_and_gradients(x, impl="native"))
    finally:
        torch.set_num_threads(before)
    for name, expected in runs[0].items():
        assert all(torch.equal(run[name], expected) for run in runs), name


@pytest.mark.parametrize("broken", ["u", "dt", "z", "B", "C", "h"])
def test_nan_in_one_row_leaves_the_other_rows_alone(isa, broken):
    x = make(3, 20, 18, 16)
    clean = outputs_and_gradients(x, impl="native")
    x[broken] = x[broken].clone()
    x[broken][1].view(-1)[5] = torch.nan
    found = outputs_and_gradients(x, impl="native")
    per_row = ["y", "last", "du", "ddt", "dz", "dB", "dC", "dh"]
    for name in per_row:
        assert torch.equal(found[name][[0, 2]], clean[name][[0, 2]]), name
    assert any(found[name][1].isnan().any() for name in ("y", "last"))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_nan_and_infinity_in_the_inputs_are_not_hidden(isa, value):
    x = make(1, 3, 4, 2)
    x["u"][0, 1, 2] = value
    y, last = selective_scan(**x, impl="native")
    assert not y[0, 1, 2].isfinite()
    assert y[0, :, :2].isfinite().all()
    assert not last[0, 2].isfinite().any()


@pytest.mark.parametrize("step", [0.0, 1e-30, 1e-6, 30.0, 1e4, 1e30])
def test_decay_from_one_to_zero(isa, step):
    x = make(2, 40, 18, 16, without=("dt_bias",))
    compare({**x, "dt": step * x["dt"].abs()}, softplus=False)


def test_infinite_steps_forget_everything(isa):
    x = make(1, 2, 16, 4, without=("dt_bias", "D", "z"))
    x["dt"][:] = torch.inf
    x["u"][:] = 0
    x["B"][:] = 0
    _, last = selective_scan(**{**x, "dt": torch.full_like(x["dt"], 3e38)}, softplus=False, impl="native")
    assert last.abs().max() < 1e-30


def test_the_softplus_is_accurate_relative_to_its_own_size(isa):
    # With A = 0 and u = B = C = 1, the output of the first token is delta itself.
    x = torch.linspace(-100, 100, 20001).reshape(-1, 1, 1)
    one = torch.ones_like(x)
    y, _ = selective_scan(one, x, torch.zeros(1, 1), one, one, impl="native")
    expected = torch.nn.functional.softplus(x.double(), threshold=1000)
    normal = expected > 1.2e-38  # below, float32 has fewer digits
    assert ((y - expected).abs() / expected)[normal].max() < 5e-7
    assert (y - expected).abs()[~normal].max() < 3e-45


def test_the_exponential_is_accurate_and_never_garbage(isa):
    # With u = 0 and C = 1, the output is exp(-dt) times the initial state.
    step = torch.cat([torch.linspace(0, 100, 20001), torch.tensor([1e-8, 1e3, 1e10, 1e37])]).reshape(-1, 1, 1)
    one = torch.ones_like(step)
    y, _ = selective_scan(0 * one, step, -torch.ones(1, 1), one, one, h=one, softplus=False, impl="native")
    expected = torch.exp(-step.double())
    assert (y - expected).abs().max() < 2e-7
    assert ((y - expected).abs() / expected)[step < 1].max() < 3e-7
    assert y[0] == 1
    assert (y >= 0).all()


def test_bfloat16_is_computed_in_float32():
    x = make(2, 30, 20, 16)
    half = {n: v if n in ("A", "D", "dt_bias", "h") else v.bfloat16() for n, v in x.items()}
    y, last = selective_scan(**half, impl="native")
    expected, expected_last = selective_scan(**{n: v.float() for n, v in half.items()}, impl="native")
    assert y.dtype == torch.bfloat16
    assert last.dtype == torch.float32
    assert torch.equal(y, expected.bfloat16())
    assert torch.equal(last, expected_last)


def test_a_second_derivative_is_refused():
    x = make(1, 3, 2, 2)
    u = x["u"].requires_grad_()
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(selective_scan(**x, impl="native")[0].sum(), u, create_graph=True)


def test_memory_for_backward_is_one_state_per_chunk():
    x = {n: v.requires_grad_() for n, v in make(2, 320, 32, 16).items()}
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        selective_scan(**x, impl="native")
    own = {x[n].data_ptr() for n in x}
    extra = sum(t.numel() for t in saved if t.data_ptr() not in own)
    assert extra <= 2 * 320 // extension.chunk * 32 * 16 + 2 * 32 * 16


def child(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True
    )


def test_an_instruction_set_that_is_not_there_is_refused_by_name():
    run = child("from scanrl.kernels import native; native.isa()", SCANRL_ISA="avx1024")
    assert "RuntimeError: SCANRL_ISA=avx1024: there is no such instruction set; use " in run.stderr


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads /proc")
def test_one_openmp_runtime_is_loaded():
    # torch's own threads and those of the extension, so that whatever either of them loads late is there.
    code = """
import torch
from scanrl.kernels import selective_scan
torch.set_num_threads(2)
torch.randn(300, 300) @ torch.randn(300, 300).exp()
x = torch.randn(8, 64, 64, requires_grad=True)
selective_scan(x, x, -torch.ones(64, 64), x, x, impl="native")[0].sum().backward()
print(*{line.split()[-1] for line in open("/proc/self/maps")}, sep="\\n")
"""
    run = child(code)
    assert run.returncode == 0, run.stderr
    names = [Path(line).name for line in run.stdout.splitlines()]
    runtimes = [name for name in names if name.startswith(("libgomp", "libomp", "libiomp"))]
    assert any(name.startswith("_native.") for name in names)
    assert len(runtimes) == 1, runtimes


def test_an_extension_of_another_version_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "ABI", native.ABI + 1)
    native.extension.cache_clear()
    try:
        module, why = native.extension()
    finally:
        native.extension.cache_clear()
    assert module is None
    assert "of another version of the source" in why
