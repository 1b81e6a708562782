"""The Triton kernels against the float64 reference: run by `test_gpu.py` in a process of its own.

In triton's interpreter on CPU tensors where there is no CUDA device, so shapes are small: every operation of every
program is a call into numpy.
"""

from functools import partial

import pytest
import test_conv
import torch
from scan_cases import OPTIONAL, assert_close_to_truth, make, outputs_and_gradients
from torch.func import vmap

from scanrl.kernels import causal_conv, gpu, gpu_scan, selective_scan
from scanrl.kernels.native import rows

DEVICE = "cpu" if gpu.found().interpreted else "cuda"
TIME = ("u", "dt", "B", "C", "z")
CONV = [(2, 18, 40, 3, 6), (1, 1, 1, 1, 1), (3, 7, 5, 2, 4), (2, 3, 6, 3, 9), (1, 33, 4, 1, 8)]


def there(arguments: dict) -> dict:
    return {n: None if x is None else x.to(DEVICE) for n, x in arguments.items()}


def compare(arguments: dict, **options) -> None:
    arguments = there(arguments)
    truth = outputs_and_gradients(arguments, torch.float64, impl="reference", **options)
    assert_close_to_truth(outputs_and_gradients(arguments, impl="gpu", **options), truth, {})


def compare_conv(arguments: dict) -> None:
    """Within 1e-6 (y) and 1e-5 (gradients) of float64, relative to the largest entry."""
    found = test_conv.y_and_gradients(there(arguments), impl="gpu")
    for name, truth in test_conv.y_and_gradients(there(arguments), torch.float64, impl="reference").items():
        assert found[name].shape == truth.shape, name
        if truth.numel():
            limit, scale = 1e-6 if name == "y" else 1e-5, truth.abs().max().item()
            error = (found[name].double() - truth).abs().max().item()
            assert error <= limit * scale + 1e-30, f"{name}: error {error:.2e}, largest entry {scale:.2e}"


@pytest.fixture
def segments(monkeypatch):
    """Cuts every sequence of more than 16 tokens into segments of 16."""
    for name, value in {"SHORT": 16, "SEGMENT": 16, "PROGRAMS": 1000}.items():
        monkeypatch.setattr(gpu_scan, name, value)


@pytest.mark.parametrize("shape", [(2, 19, 20, 16), (1, 1, 1, 1), (3, 9, 5, 3), (1, 8, 70, 2), (1, 10, 17, 17)])
def test_results_and_every_gradient_match_the_truth(shape):
    compare(make(*shape))


@pytest.mark.parametrize("without", [*((name,) for name in OPTIONAL), OPTIONAL])
def test_optional_arguments_may_be_missing(without):
    compare(make(2, 9, 6, 5, without=without))


@pytest.mark.parametrize("length", [17, 32, 41, 137])  # the last in more than one round of `carry`
def test_segments_change_nothing(segments, length):
    assert gpu_scan.plan(1, length, 6, 4).segments == -(-length // 16)
    compare(make(1, length, 6, 4))


def test_segments_of_several_rows_and_blocks(segments):
    assert gpu_scan.plan(2, 20, 40, 8) == (8, 32, 2, 1, 16, 2)
    compare(make(2, 20, 40, 8))


def test_segments_without_optional_arguments(segments):
    compare(make(1, 34, 4, 2, without=OPTIONAL))


def test_without_softplus_dt_is_the_step_size(segments):
    x = make(1, 19, 6, 5)
    compare({**x, "dt": x["dt"].abs(), "dt_bias": x["dt_bias"].abs()}, softplus=False)


@pytest.mark.parametrize("use", [("y",), ("last",)])
def test_either_result_alone_gives_gradients(segments, use):
    compare(make(1, 19, 5, 4), use=use)


def test_shapes_decide_on_the_cut():
    assert gpu_scan.plan(64, 24, 128, 16)[-1] == 1
    assert gpu_scan.plan(64, 192, 128, 16)[-1] == 1
    assert gpu_scan.plan(1, 20000, 256, 16)[-2:] == (512, 40)
    assert gpu_scan.plan(4, 2048, 256, 16)[-2:] == (128, 16)
    assert gpu_scan.plan(1, 257, 16, 16)[-2:] == (64, 5)
    assert all(gpu_scan.plan(1, n, 16, 16).segment % gpu_scan.CHUNK == 0 for n in range(257, 5000, 97))


@pytest.mark.parametrize("shape", [(2, 0, 3, 4), (0, 5, 3, 4), (2, 5, 0, 4), (2, 5, 3, 0)])
def test_empty_axes_are_no_special_case(shape):
    compare(make(*shape))


def test_views_of_one_projection_are_read_in_place():
    batch, length, channels, states = 2, 10, 6, 4
    projected = torch.randn(length, batch, 3 * channels + 2 * states).transpose(0, 1).to(DEVICE)
    u, dt, z, B, C = projected.split([channels, channels, channels, states, states], -1)
    views = {**there(make(batch, length, channels, states)), "u": u, "dt": dt, "z": z, "B": B, "C": C}
    copies = {name: x.contiguous() for name, x in views.items()}
    assert rows(u) is u
    assert not u.is_contiguous()
    found, expected = (selective_scan(**x, impl="gpu") for x in (views, copies))
    assert all(map(torch.equal, found, expected))


def test_other_layouts_are_copied():
    x = make(2, 9, 7, 3)
    odd = {
        n: v.transpose(0, -1).contiguous().transpose(0, -1) if v.ndim > 1 else v.repeat(2)[::2] for n, v in x.items()
    }
    odd["dt"] = torch.randn(7).expand(2, 9, 7)
    compare(odd)


def test_gradients_arrive_through_an_expanded_gradient():
    x = there(make(1, 5, 6, 3))
    leaf = x["u"].requires_grad_()
    selective_scan(**x, impl="gpu")[0].sum().backward()
    truth = {n: v.detach().double() for n, v in x.items()}
    truth["u"].requires_grad_()
    selective_scan(**truth)[0].sum().backward()
    torch.testing.assert_close(leaf.grad, truth["u"].grad.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cut", [8, 11])
def test_two_parts_with_the_state_carried_over_equal_the_whole(cut):
    x = there(make(1, 21, 6, 4))
    y, last = selective_scan(**x, impl="gpu")
    y1, h = selective_scan(**{n: v[:, :cut] if n in TIME else v for n, v in x.items()}, impl="gpu")
    y2, h = selective_scan(**{n: v[:, cut:] if n in TIME else v for n, v in x.items()} | {"h": h}, impl="gpu")
    torch.testing.assert_close(torch.cat([y1, y2], 1), y, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(h, last, rtol=1e-6, atol=1e-6)


def test_results_are_the_same_bits_every_time(segments):
    x = there(make(1, 20, 20, 4))
    first, second = (outputs_and_gradients(x, impl="gpu") for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("broken", ["dt", "C"])
def test_nan_in_one_row_leaves_the_other_rows_alone(broken):
    x = there(make(3, 5, 4, 3))
    clean = outputs_and_gradients(x, impl="gpu")
    x[broken] = x[broken].clone()
    x[broken][1].view(-1)[3] = torch.nan
    found = outputs_and_gradients(x, impl="gpu")
    for name in ("y", "last", "du", "ddt", "dz", "dB", "dC", "dh"):
        assert torch.equal(found[name][[0, 2]], clean[name][[0, 2]]), name
    assert any(found[name][1].isnan().any() for name in ("y", "last"))


@pytest.mark.parametrize("step", [0.0, 1e-30, 1e-6, 30.0, 1e4, 1e30])
def test_decay_from_one_to_zero(step):
    x = make(1, 10, 6, 4, without=("dt_bias",))
    compare({**x, "dt": step * x["dt"].abs()}, softplus=False)


def test_the_softplus_is_accurate_relative_to_its_own_size():
    # With A = 0 and u = B = C = 1, the output of the first token is delta itself. The argument of the exponential is
    # rounded, which far from zero is most of the error.
    x = torch.linspace(-85, 100, 640).reshape(1, 1, -1).to(DEVICE)
    one = torch.ones_like(x)
    y, _ = selective_scan(one, x, torch.zeros_like(x[0].T), one[..., :1], one[..., :1], impl="gpu")
    expected = torch.nn.functional.softplus(x.double(), threshold=1000)
    assert ((y - expected).abs() / expected / (4 + x.abs())).max() < 1e-7


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    x = there(make(1, 10, 6, 4))
    half = {n: v if n in ("A", "D", "dt_bias", "h") else v.to(dtype) for n, v in x.items()}
    expected, expected_last = selective_scan(**{n: v.float() for n, v in half.items()}, impl="gpu")
    leaves = {n: v.requires_grad_() for n, v in half.items()}
    y, last = selective_scan(**leaves, impl="gpu")
    assert y.dtype == dtype
    assert last.dtype == torch.float32
    torch.testing.assert_close(y.float(), expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)
    assert torch.equal(last, expected_last)
    gradients = torch.autograd.grad(y.float().sum(), list(leaves.values()))
    assert [g.dtype for g in gradients] == [leaf.dtype for leaf in leaves.values()]


def test_a_second_derivative_is_refused():
    x = there(make(1, 3, 2, 2))
    u = x["u"].requires_grad_()
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(selective_scan(**x, impl="gpu")[0].sum(), u, create_graph=True)


def test_memory_for_backward_is_one_state_per_chunk():
    x = {n: v.requires_grad_() for n, v in there(make(1, 32, 8, 4)).items()}
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        selective_scan(**x, impl="gpu")
    own = {x[n].data_ptr() for n in x}
    extra = sum(t.numel() for t in saved if t.data_ptr() not in own)
    assert extra == 32 // gpu_scan.CHUNK * 8 * 4 + 8 * 4  # and A transposed


@pytest.mark.parametrize("cut", [False, True])
def test_a_float64_state_is_computed_in_float64(monkeypatch, cut):
    if cut:
        for name, value in {"SHORT": 16, "SEGMENT": 16, "PROGRAMS": 1000}.items():
            monkeypatch.setattr(gpu_scan, name, value)
    x = there(make(1, 19, 5, 4))
    x = {**x, "A": x["A"] * 1e-6}  # decays that float32 would round by a tenth of their distance from 1
    h = x["h"].double()
    y, last = selective_scan(**{**x, "h": h}, impl="gpu")
    truth, exact = selective_scan(**{n: v.double() for n, v in x.items()}, impl="reference")
    assert last.dtype == torch.float64
    torch.testing.assert_close(y.double(), truth, rtol=1e-5, atol=1e-5)
    # Of the change, not of the state: what u and dt add is rounded to float32, the decay is not.
    assert (last - exact).abs().max() <= 1e-6 * (exact - h).abs().max()
    leaf = h.requires_grad_()
    _, last = selective_scan(**{**x, "h": leaf}, impl="gpu")
    assert last.dtype == torch.float64
    (gradient,) = torch.autograd.grad(last.sum(), leaf)
    assert gradient.dtype == torch.float64
    torch.testing.assert_close(gradient, torch.ones_like(gradient), rtol=1e-3, atol=0.0)


def slices_agree(function, arguments: list[dict], shared: tuple[str, ...], axis: int) -> None:
    """Results and gradients under vmap against those of one slice after the other."""
    first = arguments[0]
    dims = {n: None if v is None or n in shared else axis for n, v in first.items()}
    joined = {n: first[n] if dims[n] is None else torch.stack([x[n] for x in arguments], axis) for n in first}
    leaves = {n: v.requires_grad_(v.is_floating_point()) for n, v in joined.items() if v is not None}
    stacked = vmap(lambda *x: function(**dict(zip(leaves, x, strict=True))), tuple(dims[n] for n in leaves))
    parts = [
        function(**{n: v if dims[n] is None else v.select(dims[n], i) for n, v in leaves.items()})
        for i in range(len(arguments))
    ]
    wanted = [v for v in leaves.values() if v.requires_grad]
    found, expected = stacked(*leaves.values()), tuple(map(torch.stack, zip(*parts, strict=True)))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    gradients = [torch.autograd.grad(sum((v**2).sum() for v in results), wanted) for results in (found, expected)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "shared, without, axis", [((), (), 0), (("A", "u"), ("D", "h"), 1), (("A", "D", "dt_bias"), (), 0)]
)
def test_several_scans_are_one_under_vmap(shared, without, axis):
    arguments = [there(make(2, 5, 3, 2, without=without, seed=seed)) for seed in range(3)]
    slices_agree(partial(selective_scan, impl="gpu"), arguments, shared, axis)


@pytest.mark.parametrize(
    "shared, without, axis", [((), (), 0), (("bias", "x"), ("place",), 1), (("kernel", "bias"), ("past",), 0)]
)
def test_several_convolutions_are_one_under_vmap(shared, without, axis):
    arguments = [there(test_conv.make(2, 5, 3, 2, 3, without=without, seed=seed)) for seed in range(3)]
    slices_agree(lambda **x: (causal_conv(**x, impl="gpu"),), arguments, shared, axis)


def test_other_transforms_are_refused():
    x = there(make(1, 2, 2, 2))
    with pytest.raises(RuntimeError, match=r"^_scan: expected no transform but torch.func.vmap"):
        torch.func.grad(lambda u: selective_scan(**{**x, "u": u}, impl="gpu")[0].sum())(x["u"])


@pytest.mark.parametrize("without", [(), *((name,) for name in test_conv.OPTIONAL), test_conv.OPTIONAL])
@pytest.mark.parametrize("shape", CONV)
def test_the_convolution_and_every_gradient_match_the_truth(shape, without):
    compare_conv(test_conv.make(*shape, without=without))


@pytest.mark.parametrize("shape", [(0, 5, 3, 2, 4), (2, 0, 3, 2, 4), (2, 5, 0, 2, 4)])
def test_empty_axes_are_no_special_case_of_the_convolution(shape):
    compare_conv(test_conv.make(*shape))


def test_places_count_modulo_the_places_there_are():
    x = there(test_conv.make(3, 5, 4, 3, 4))
    for shift in (-3, 3, 300):
        shifted = x | {"place": x["place"] + shift}
        assert torch.equal(causal_conv(**x, impl="gpu"), causal_conv(**shifted, impl="gpu"))


def test_the_convolution_reads_views_in_place_and_copies_other_layouts():
    both = torch.randn(12, 2, 16).transpose(0, 1)  # time first, then cut in two
    x = test_conv.make(2, 7, 8, 3, 6) | {"x": both[:, 5:, :8], "past": both[:, :5, :8]}
    compare_conv(x)
    compare_conv({n: v.transpose(0, -1).contiguous().transpose(0, -1) for n, v in x.items()})


def test_the_convolution_gives_the_same_bits_every_time():
    x = there(test_conv.make(4, 40, 6, 2, 3))
    first, second = (test_conv.y_and_gradients(x, impl="gpu") for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_convolution_computes_half_precision_in_float32(dtype):
    x = there(test_conv.convert(test_conv.make(2, 6, 5, 3, 4), dtype))
    y = causal_conv(**x, impl="gpu")
    assert y.dtype == dtype
    expected = causal_conv(**test_conv.convert(x, torch.float32), impl="reference")
    torch.testing.assert_close(y.float(), expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-5)


def test_a_second_derivative_of_the_convolution_is_refused():
    x = there(test_conv.make(1, 3, 2, 2, 2))
    leaf = x["x"].requires_grad_()
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(causal_conv(**x, impl="gpu").sum(), leaf, create_graph=True)
