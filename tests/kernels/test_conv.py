"""The causal convolution: its algebra in float64, the C form against it in every instruction set, what is refused."""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from scanrl.kernels import causal_conv, choice, native

extension, why = native.extension()
needs_native = pytest.mark.skipif(extension is None, reason=why)
OPTIONAL = ("past", "place")


def make(
    batch: int, length: int, width: int, places: int, window: int, *, without: tuple[str, ...] = (), seed: int = 0
) -> dict[str, Tensor | None]:
    """Arguments of `causal_conv` in float32, some optional ones left out."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    every = {
        "x": normal(batch, length, width),
        "kernel": normal(places, window, width) / window**0.5,
        "bias": normal(places, width),
        "past": normal(batch, window - 1, width),
        "place": torch.randint(0, places, (batch,), generator=generator),
    }
    return {name: None if name in without else x for name, x in every.items()}


def convert(arguments: dict, dtype: torch.dtype) -> dict:
    return {n: v if v is None or n == "place" else v.detach().to(dtype) for n, v in arguments.items()}


def y_and_gradients(arguments: dict, dtype=torch.float32, **options) -> dict[str, Tensor]:
    """y, and the gradient of every argument from a fixed random weighting of y."""
    leaves = convert(arguments, dtype)
    wanted = {n: v.requires_grad_() for n, v in leaves.items() if v is not None and n != "place"}
    y = causal_conv(**leaves, **options)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(7)).to(y)
    gradients = torch.autograd.grad(y, list(wanted.values()), weights, allow_unused=True, materialize_grads=True)
    return {"y": y.detach(), **{f"d{n}": g for n, g in zip(wanted, gradients, strict=True)}}


def compare(arguments: dict) -> None:
    """The C form within 1e-6 (y) and 1e-5 (gradients) of float64, relative to the largest entry."""
    found = y_and_gradients(arguments, impl="native")
    for name, truth in y_and_gradients(arguments, torch.float64, impl="reference").items():
        assert found[name].shape == truth.shape, name
        if truth.numel():
            limit, scale = 1e-6 if name == "y" else 1e-5, truth.abs().max().item()
            error = (found[name].double() - truth).abs().max().item()
            assert error <= limit * scale + 1e-30, f"{name}: error {error:.2e}, largest entry {scale:.2e}"


def test_an_output_is_the_bias_and_the_taps_of_its_own_place():
    x = convert(make(3, 7, 4, 3, 5), torch.float64)
    y = causal_conv(**x, impl="reference")
    padded = torch.cat([x["past"], x["x"]], 1)
    for row in range(3):
        for t in range(7):
            m = (x["place"][row] + t) % 3
            expected = x["bias"][m] + sum(x["kernel"][m, i] * padded[row, t + i] for i in range(5))
            torch.testing.assert_close(y[row, t], expected)


def test_one_place_is_the_convolution_of_torch():
    x = convert(make(2, 9, 8, 1, 4, without=OPTIONAL), torch.float64)
    expected = F.conv1d(x["x"].mT, x["kernel"][0].T[:, None], x["bias"][0], padding=3, groups=8)[..., :9]
    torch.testing.assert_close(causal_conv(**x), expected.mT)


@pytest.mark.parametrize("impl", ["reference", pytest.param("native", marks=needs_native)])
def test_no_past_and_no_place_mean_zeros(impl):
    x = make(2, 5, 20, 3, 4)
    zeros = {"past": torch.zeros_like(x["past"]), "place": torch.zeros_like(x["place"])}
    assert torch.equal(causal_conv(**x | dict.fromkeys(OPTIONAL), impl=impl), causal_conv(**x | zeros, impl=impl))


@pytest.mark.parametrize("impl", ["reference", pytest.param("native", marks=needs_native)])
def test_places_count_modulo_the_places_there_are(impl):
    x = make(4, 5, 20, 3, 4)
    for shift in (-3, 3, 300):
        shifted = x | {"place": x["place"] + shift}
        assert torch.equal(causal_conv(**x, impl=impl), causal_conv(**shifted, impl=impl))


@pytest.mark.parametrize("without", [(), OPTIONAL])
def test_gradients_are_those_of_finite_differences(without):
    x = convert(make(2, 4, 2, 3, 3, without=without), torch.float64)
    wanted = {n: v.requires_grad_() for n, v in x.items() if v is not None and n != "place"}
    assert torch.autograd.gradcheck(
        lambda *a: causal_conv(**x | dict(zip(wanted, a, strict=True))), tuple(wanted.values())
    )


@needs_native
@pytest.mark.parametrize("without", [(), *((name,) for name in OPTIONAL), OPTIONAL])
@pytest.mark.parametrize(
    "shape",
    [(2, 24, 64, 3, 6), (1, 1, 1, 1, 1), (3, 7, 37, 2, 4), (2, 3, 20, 3, 9), (5, 40, 16, 1, 8), (2, 50, 33, 4, 19)],
)
def test_results_and_every_gradient_match_the_truth(isa, shape, without):
    compare(make(*shape, without=without))


@needs_native
@pytest.mark.parametrize("places", [1, 3])
@pytest.mark.parametrize("window", range(1, 11))
def test_every_window_matches_the_truth(isa, window, places):
    compare(make(2, 13, 16, places, window))


@needs_native
@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(*(st.integers(1, n) for n in (5, 40, 70, 5, 12))),
    without=st.sets(st.sampled_from(OPTIONAL)),
    seed=st.integers(0, 1000),
)
def test_any_shape_matches_the_truth(shape, without, seed):
    compare(make(*shape, without=tuple(without), seed=seed))


@needs_native
def test_a_large_batch_and_a_wide_layer_are_cut_into_tasks_correctly(isa):
    compare(make(300, 12, 40, 3, 6))
    compare(make(1, 20, 700, 2, 4))


@needs_native
@pytest.mark.parametrize("shape", [(0, 5, 3, 2, 4), (2, 0, 3, 2, 4), (2, 5, 0, 2, 4), (0, 0, 0, 1, 1)])
def test_empty_axes_are_no_special_case(shape):
    compare(make(*shape))


@needs_native
def test_views_are_read_in_place(isa):
    both = torch.randn(21, 3, 48).transpose(0, 1)  # time first, then cut in two
    x = make(3, 16, 24, 3, 6) | {"x": both[:, 5:, :24], "past": both[:, :5, :24]}
    copies = {name: value.contiguous() for name, value in x.items()}
    assert native.rows(x["x"]) is x["x"]
    assert torch.equal(causal_conv(**x, impl="native"), causal_conv(**copies, impl="native"))


@needs_native
def test_other_layouts_are_copied(isa):
    x = make(4, 11, 17, 3, 5)
    odd = {
        n: v.transpose(0, -1).contiguous().transpose(0, -1) if v.ndim > 1 else v.repeat(2)[::2] for n, v in x.items()
    }
    odd["place"] = torch.tensor([0, 9, 1, 9, 2, 9, 0, 9])[::2]
    compare(odd)
    compare(x | {"x": torch.randn(17).expand(4, 11, 17)})


@needs_native
def test_gradients_arrive_through_an_expanded_gradient():
    x = make(2, 5, 20, 3, 4)
    leaf = x["x"].requires_grad_()
    causal_conv(**x, impl="native").sum().backward()
    truth = convert(x, torch.float64)
    truth["x"].requires_grad_()
    causal_conv(**truth).sum().backward()
    torch.testing.assert_close(leaf.grad, truth["x"].grad.float(), rtol=1e-5, atol=1e-5)


@needs_native
def test_only_the_gradients_that_are_asked_for_arrive():
    x = make(2, 5, 20, 3, 4)
    x["kernel"].requires_grad_()
    causal_conv(**x, impl="native").sum().backward()
    assert x["kernel"].grad is not None
    assert x["x"].grad is x["bias"].grad is x["past"].grad is None


@needs_native
def test_two_halves_with_the_past_carried_over_equal_the_whole(isa):
    x = make(3, 30, 20, 3, 6)
    whole = causal_conv(**x, impl="native")
    first = causal_conv(**x | {"x": x["x"][:, :11]}, impl="native")
    rest = {"x": x["x"][:, 11:], "past": x["x"][:, 6:11], "place": x["place"] + 11}
    assert torch.equal(torch.cat([first, causal_conv(**x | rest, impl="native")], 1), whole)


@needs_native
def test_results_are_the_same_bits_every_time_and_for_any_number_of_threads(isa):
    x = make(200, 30, 70, 3, 6)
    before = torch.get_num_threads()
    try:
        runs = []
        for threads in (1, 1, 2, 3):
            torch.set_num_threads(threads)
            runs.append(y_and_gradients(x, impl="native"))
    finally:
        torch.set_num_threads(before)
    for name, expected in runs[0].items():
        assert all(torch.equal(run[name], expected) for run in runs), name


@needs_native
@pytest.mark.parametrize("broken", ["x", "past"])
def test_nan_in_one_row_leaves_the_other_rows_alone(isa, broken):
    x = make(3, 20, 18, 3, 6)
    clean = y_and_gradients(x, impl="native")
    x[broken] = x[broken].clone()
    x[broken][1].view(-1)[5] = torch.nan
    found = y_and_gradients(x, impl="native")
    for name in ("y", "dx", "dpast"):
        assert torch.equal(found[name][[0, 2]], clean[name][[0, 2]]), name
    assert found["y"][1].isnan().any()


@needs_native
def test_the_arguments_are_kept_for_backward_and_nothing_else():
    x = make(2, 320, 32, 3, 6)
    own = {v.requires_grad_().data_ptr() for n, v in x.items() if n != "place"} | {x["place"].data_ptr()}
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        causal_conv(**x, impl="native")
    assert {t.data_ptr() for t in saved} == own


@needs_native
def test_a_second_derivative_is_refused():
    x = make(1, 3, 2, 2, 2)
    leaf = x["x"].requires_grad_()
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(causal_conv(**x, impl="native").sum(), leaf, create_graph=True)


@pytest.mark.parametrize("impl", ["reference", pytest.param("native", marks=needs_native)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype, impl):
    x = convert(make(2, 12, 20, 3, 6), dtype)
    with torch.autocast("cpu", torch.bfloat16):
        y = causal_conv(**x, impl=impl)
    assert y.dtype == dtype
    assert torch.equal(y, causal_conv(**convert(x, torch.float32), impl=impl).to(dtype))


def test_without_the_extension_the_reference_runs_and_warns_once(without_extension, monkeypatch):
    monkeypatch.delenv("SCANRL_SCAN", raising=False)
    x = make(2, 5, 3, 2, 3)
    with pytest.warns(RuntimeWarning, match=r"causal_conv: .*install a C compiler"):
        found = causal_conv(**x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        causal_conv(**x)
    assert torch.equal(found, causal_conv(**x, impl="reference"))
    with pytest.raises(RuntimeError, match="native implementation was asked for"):
        causal_conv(**x, impl="native")


def test_the_environment_forces_an_implementation(monkeypatch, fresh):
    x = make(2, 5, 3, 2, 3)
    monkeypatch.setenv("SCANRL_SCAN", "reference")
    assert torch.equal(causal_conv(**x), causal_conv(**x, impl="reference"))
    monkeypatch.setenv("SCANRL_SCAN", "gpu")
    choice._forced.cache_clear()
    with pytest.raises((RuntimeError, ValueError), match="the gpu implementation"):
        causal_conv(**x)


@needs_native
def test_float64_takes_the_reference_and_a_forced_native_form_refuses_it():
    x = convert(make(1, 4, 3, 2, 2), torch.float64)
    assert causal_conv(**x).dtype == torch.float64
    with pytest.raises(ValueError, match=r"^x: .*float64"):
        causal_conv(**x, impl="native")


def test_a_traced_graph_takes_the_reference(monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    x = make(2, 5, 20, 3, 4)
    assert torch.equal(causal_conv(**x), causal_conv(**x, impl="reference"))


WRONG = {
    "x": torch.zeros(2, 3),
    "kernel": torch.zeros(2, 4, 5),
    "bias": torch.zeros(3, 3),
    "past": torch.zeros(2, 4, 3),
    "place": torch.zeros(3, dtype=torch.int64),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_shape_is_refused_by_name(name):
    with pytest.raises(ValueError, match=f"^{name}: expected "):
        causal_conv(**make(2, 5, 3, 2, 4) | {name: WRONG[name]})


@pytest.mark.parametrize("shape", [(0, 4, 3), (2, 0, 3), (4, 3)])
def test_a_kernel_without_places_or_taps_is_refused(shape):
    with pytest.raises(ValueError, match=r"^kernel: expected shape \(M, w, D\)"):
        causal_conv(**make(2, 5, 3, 2, 4) | {"kernel": torch.zeros(shape)})


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("wrong", ["int32", "complex", "double", "list", "device"])
def test_a_wrong_dtype_or_device_is_refused_by_name(name, wrong):
    x = make(2, 5, 3, 2, 4)
    value = x[name]
    x[name] = {
        "int32": value.int(),
        "complex": value + 0j,
        "double": value.double(),
        "list": value.tolist(),
        "device": value.to("meta"),
    }[wrong]
    blamed = r"^\w+: " if name == "x" and wrong in ("double", "device") else f"^{name}: "
    with pytest.raises((TypeError, ValueError), match=blamed):
        causal_conv(**x)
