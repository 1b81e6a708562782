"""The matrix products and nonlinearities that the fused layers are made of, in every instruction set."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from scanrl.kernels import native, native_activation, native_local, native_product, products

extension, why = native.extension()
pytestmark = pytest.mark.skipif(extension is None, reason=why)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def assert_close(found: Tensor, truth: Tensor, size: int) -> None:
    """A sum of `size` products of normal numbers, within a few roundings of its usual size."""
    assert found.shape == truth.shape
    assert found.dtype == torch.float32
    if truth.numel():
        assert (found.double() - truth).abs().max() <= 1e-6 * max(size, 1) ** 0.5 * 4


SHAPES = [(1, 1, 1), (6, 16, 64), (7, 5, 3), (48, 256, 64), (49, 257, 65), (100, 600, 130), (13, 4, 128), (200, 36, 17)]


@pytest.mark.parametrize(("m", "k", "n"), SHAPES)
def test_products_equal_those_of_float64(isa, m, k, n):
    a, b, bias = normal(m, k), normal(k, n, seed=1), normal(n, seed=2)
    truth = a.double() @ b.double()
    assert_close(native_product.times(a, b), truth, k)
    assert_close(native_product.times(a, b.t().contiguous().t(), bias), truth + bias.double(), k)
    assert_close(native_product.times(a, b, out=torch.ones(m, n), add=True), truth + 1, k)
    assert_close(native_product.outer(a.t().contiguous(), b), truth, k)


@settings(max_examples=60, deadline=None)
@given(shape=st.tuples(st.integers(0, 90), st.integers(0, 300), st.integers(1, 150)), seed=st.integers(0, 99))
def test_any_shape_equals_float64(shape, seed):
    m, k, n = shape
    a, b = normal(m, k, seed=seed), normal(k, n, seed=seed + 1)
    truth = a.double() @ b.double()
    assert_close(native_product.times(a, b), truth, k)
    assert_close(native_product.outer(a.t(), b), truth, k)


def test_an_operand_may_be_any_view(isa):
    wide = normal(5, 20, 3, 40)
    views = {
        "part of the channels": wide[:, :, 1, 7:30],
        "every other token": wide[:, 1::2, 0, :23],
        "time first": wide[:, :, 2].transpose(0, 1)[..., :23],
        "channels apart": wide.permute(0, 2, 3, 1)[:, 1, 3:26].transpose(1, 2),
        "windows": normal(5, 30).as_strided((5, 8, 23), (30, 1, 1)),
        "the same everywhere": normal(1, 1, 23).expand(5, 20, 23),
    }
    b = normal(23, 50, seed=1)
    for name, a in views.items():
        out = torch.zeros(*a.shape[:2], 80)[..., 11:61]
        native_product.times(a, b, out=out)
        assert torch.equal(out, native_product.times(a.contiguous(), b)), name
        dy = normal(*a.shape[:2], 31, seed=3)
        truth = torch.einsum("btm,btn->mn", a.double(), dy.double())
        assert_close(native_product.outer(a, dy), truth, a.shape[0] * a.shape[1])
        assert_close(native_product.outer(dy, a), truth.t(), a.shape[0] * a.shape[1])


def test_outer_products_add_up_over_slabs(isa):
    a, b = normal(6, 10, 30), normal(6, 10, 50, seed=1)
    total = None
    for rows in (slice(0, 2), slice(2, 5), slice(5, 6)):
        total = products.outer(a[rows], b[rows], total)
    assert_close(total, torch.einsum("btm,btn->mn", a.double(), b.double()), 60)


def test_products_are_the_same_bits_for_any_number_of_threads(isa):
    a, b = normal(500, 700), normal(700, 90, seed=1)
    before = torch.get_num_threads()
    try:
        runs = []
        for threads in (1, 1, 2, 3):
            torch.set_num_threads(threads)
            runs.append((native_product.times(a, b), native_product.outer(a.t(), b)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(x, y) for run in runs for x, y in zip(run, runs[0], strict=True))


def test_nan_and_infinity_stay_in_their_rows(isa):
    a, b = normal(20, 30), normal(30, 40, seed=1)
    clean = native_product.times(a, b)
    a[3, 7], a[11, 2] = torch.nan, torch.inf
    found = native_product.times(a, b)
    others = [i for i in range(20) if i not in (3, 11)]
    assert torch.equal(found[others], clean[others])
    assert found[3].isnan().all()
    assert not found[11].isfinite().any()


@pytest.mark.parametrize(("m", "k", "n"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_operands_in_half_precision_are_rounded_and_sums_are_float32(isa, dtype, m, k, n):
    a, b, bias = normal(2, m, k), normal(k, n, seed=1), normal(n, seed=2)
    rounded = [t.to(dtype).double() for t in (a, b)]
    truth = rounded[0] @ rounded[1]
    exact = native_product.halves() and dtype == torch.bfloat16  # torch rounds the result once more
    near = {"rtol": 0, "atol": 1e-5 * k**0.5} if exact else {"rtol": 0.01, "atol": 0.02 * k**0.5}
    torch.testing.assert_close(products.times(a, b, bias, half=dtype).double(), truth + bias, **near)
    out = torch.ones(2, m, n + 3)[..., 3:]
    torch.testing.assert_close(products.times(a, b, out=out, add=True, half=dtype).double(), truth + 1, **near)
    dy = normal(2, m, n, seed=3)
    total = products.outer(dy, a, products.outer(dy, a, half=dtype), half=dtype)
    expected = 2 * torch.einsum("btm,btn->mn", dy.to(dtype).double(), rounded[0])
    near["atol"] *= 2 * max(1, m / k) ** 0.5
    torch.testing.assert_close(total.double(), expected, **near)


@settings(max_examples=40, deadline=None)
@given(shape=st.tuples(st.integers(0, 90), st.integers(0, 300), st.integers(1, 150)), seed=st.integers(0, 99))
def test_any_shape_in_bfloat16_equals_float64_of_the_rounded(shape, seed):
    if not native_product.halves():
        pytest.skip("no multiplication in bfloat16 here")
    m, k, n = shape
    a, b = normal(m, k, seed=seed), normal(k, n, seed=seed + 1)
    truth = a.bfloat16().double() @ b.bfloat16().double()
    assert_close(native_product.times(a, b, half=True), truth, k)
    assert_close(native_product.times(a, b.t().contiguous().t(), half=True), truth, k)
    assert_close(native_product.outer(a.t().contiguous(), b, half=True), truth, k)


@pytest.mark.parametrize("kind", ["SILU", "GELU"])
@pytest.mark.parametrize("shape", [(2, 3, 16), (1, 1, 1), (3, 50, 37)])
def test_nonlinearities_and_their_slopes_match_the_truth(isa, kind, shape):
    function = {"SILU": F.silu, "GELU": F.gelu}[kind]
    number = getattr(native_activation, kind)
    x, dy = 4 * normal(*shape), normal(*shape, seed=1)
    exact = x.double().requires_grad_()
    truth = function(exact)
    (slope,) = torch.autograd.grad(truth, exact, dy.double())
    assert (native_activation.forward(number, x) - truth).abs().max() <= 1e-6 * truth.abs().max().clamp(min=1)
    assert (native_activation.backward(number, x, dy) - slope).abs().max() <= 1e-6 * slope.abs().max().clamp(min=1)


def test_nonlinearities_at_the_ends_of_the_numbers(isa):
    x = torch.tensor([0.0, -0.0, 1e-30, -1e-30, 12.0, -12.0, 1e4, -1e4, 1e20, -1e20, torch.nan, torch.inf]).view(
        1, 1, -1
    )
    for kind, function in ((native_activation.SILU, F.silu), (native_activation.GELU, F.gelu)):
        torch.testing.assert_close(
            native_activation.forward(kind, x), function(x.double()).float(), rtol=1e-5, atol=1e-7, equal_nan=True
        )


def test_nonlinearities_read_and_write_views(isa):
    x, dy = normal(3, 7, 60)[..., 5:40], normal(3, 7, 35, seed=1)
    out = torch.zeros(3, 7, 90)
    native_activation.backward(native_activation.GELU, x, dy, out[..., 20:55])
    assert torch.equal(out[..., 20:55], native_activation.backward(native_activation.GELU, x.contiguous(), dy))
    assert not out[..., :20].any()
    assert not out[..., 55:].any()


@pytest.mark.parametrize(("places", "window", "length"), [(3, 6, 24), (1, 6, 7), (3, 4, 5), (4, 1, 9), (3, 6, 2)])
def test_the_matrix_over_a_window_needs_no_copies_of_windows(isa, places, window, length):
    x, dy = normal(3, length, 8), normal(3, length, 8, seed=1)
    weight = normal(places, 8, window * 8, seed=2)
    exact = [t.double().requires_grad_() for t in (x, weight)]
    windows = F.pad(exact[0], (0, 0, window - 1, 0)).unfold(1, window, 1).transpose(2, 3).flatten(2)
    truth = torch.einsum("blk,lok->blo", windows, exact[1][torch.arange(length) % places])
    expected = torch.autograd.grad(truth, exact, dy.double())
    leaves = [t.requires_grad_() for t in (x, weight)]
    y = native_local.local_linear(*leaves)
    assert_close(y.detach(), truth.detach(), window * 8)
    for found, gradient in zip(torch.autograd.grad(y, leaves, dy), expected, strict=True):
        assert_close(found, gradient, 8 * window * length)


def test_memory_can_be_kept():
    assert native.keep_memory() in (True, False)
