"""The seam to the C extension: strides of every kind, values at the edges of float32, any cut into tasks."""

import struct

import pytest
import torch
from scan_cases import make

from scanrl.kernels import causal_conv, native, native_conv, native_scan, selective_scan
from scanrl.kernels.native import Plan

extension, why = native.extension()
pytestmark = pytest.mark.skipif(extension is None, reason=why)

PAYLOAD = struct.unpack("f", struct.pack("I", 0x7FC00001))[0]  # NaN with a low bit set, which bit tricks could turn
SEQUENCES = ("u", "dt", "z", "B", "C")


def carried(x: dict) -> dict:
    return {**x, "h": x["h"].double()}


def both(x: dict, **options) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Results of the plain and the carried native scan."""
    return [selective_scan(**arguments, impl="native", **options) for arguments in (x, carried(x))]


def assert_equal_results(x: dict, expected: dict, **options) -> None:
    for found, wanted in zip(both(x, **options), both(expected, **options), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_expanded_sequences_have_zero_strides_and_the_same_results(isa, axis):
    x = make(3, 18, 20, 6)
    for name in SEQUENCES:
        x[name] = x[name].narrow(axis, 0, 1).expand_as(x[name])
        assert x[name].stride(axis) == 0
    assert_equal_results(x, {n: v.contiguous() for n, v in x.items()})


def test_far_apart_rows_are_read_in_place(isa):
    x = make(2, 5, 20, 6)
    far = {}
    for name in SEQUENCES:
        room = torch.full((2, 5, 20_000), torch.nan)
        room[..., 7 : 7 + x[name].shape[2]] = x[name]
        far[name] = room[..., 7 : 7 + x[name].shape[2]]
        assert native.rows(far[name]) is far[name]
    assert_equal_results({**x, **far}, x)


def test_flipped_and_unaligned_sequences_have_the_same_results(isa):
    x = make(2, 9, 20, 6)
    odd = {}
    for name in SEQUENCES:
        flipped = x[name].flip(1).contiguous().flip(1)
        room = torch.empty(flipped.numel() + 1)
        odd[name] = room[1:].view_as(flipped).copy_(flipped)  # 4 bytes beyond an aligned address
    assert_equal_results({**x, **odd}, x)


@pytest.mark.parametrize("value", [torch.nan, PAYLOAD, -PAYLOAD, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ["u", "dt", "z", "B", "C", "A", "D", "h", "dt_bias"])
def test_what_is_not_finite_in_the_reference_is_not_finite_in_c(isa, name, value):
    x = make(1, 6, 5, 3)
    x[name] = x[name].clone()
    x[name].view(-1)[4] = value
    y, last = selective_scan(**x, impl="reference")
    for found_y, found_last in both(x):
        for found, expected in ((found_y, y), (found_last, last)):
            assert torch.equal(found.isfinite(), expected.isfinite()), (found, expected)


@pytest.mark.parametrize("size", [1e-45, 1e-40, 1e-38, 1e-20, 1e20, 1e37])
def test_tiny_and_huge_inputs_are_scaled_results(isa, size):
    x = make(2, 7, 20, 4, without=("D", "z"))
    truth = selective_scan(
        **{n: None if v is None else v.double() for n, v in x.items()} | {"u": (size * x["u"]).double(), "h": None}
    )
    scaled = {**x, "u": size * x["u"], "h": None}
    for found, expected in zip(selective_scan(**scaled, impl="native"), truth, strict=True):
        fits = expected.abs() < 3e38
        assert torch.equal(found[fits].isfinite(), torch.ones_like(found[fits], dtype=torch.bool))
        assert (found[fits] - expected[fits]).abs().max() <= 1e-6 * expected[fits].abs().max() + 1e-43


@pytest.mark.parametrize("step", [100.0, 1e4, 1e30, 3e38])
def test_a_step_that_overflows_the_exponential_forgets(isa, step):
    x = make(2, 3, 20, 4, without=("D", "z", "dt_bias"))
    x = {**x, "dt": torch.full_like(x["dt"], step), "u": 0 * x["u"]}
    x["A"] = x["A"].clamp(max=-1.0)
    for y, last in both(x, softplus=False):
        assert y.abs().max() < 1e-30
        assert last.abs().max() < 1e-30


@pytest.mark.parametrize("exponent", [60.0, 87.0, 120.0, 127.5, 1e4, torch.inf])
def test_a_growing_state_grows_or_becomes_infinite(isa, exponent):
    x = make(1, 1, 20, 4, without=("D", "z", "dt_bias"))
    x = {**x, "dt": torch.ones_like(x["dt"]), "A": torch.full_like(x["A"], exponent), "u": 0 * x["u"]}
    x["h"] = torch.ones_like(x["h"])
    expected = torch.exp(torch.tensor(exponent))
    for _, last in both(x, softplus=False):
        if expected.isfinite():
            torch.testing.assert_close(last.float(), expected.expand(1, 20, 4), rtol=2e-5, atol=0)
        else:
            assert not last.isfinite().any()


def test_with_A_of_zero_nothing_is_forgotten(isa):
    x = make(2, 33, 20, 4, without=("D", "z"))
    x = {**x, "A": torch.zeros_like(x["A"]), "u": 0 * x["u"]}
    for _, last in both(x):
        assert torch.equal(last.float(), x["h"])


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 1, 17, 5), (3, 1, 16, 16), (2, 1, 33, 1)])
def test_one_token_is_a_scan_like_any_other(isa, shape):
    x = make(*shape)
    truth = selective_scan(**{n: v.double() for n, v in x.items()})
    for found in both(x):
        for a, b in zip(found, truth, strict=True):
            assert (a.double() - b).abs().max() <= 1e-6 * max(1.0, b.abs().max().item())


CUTS = [Plan(1, 1, 6, 3, 1), Plan(2, 1, 3, 3, 2), Plan(4, 2, 2, 2, 1), Plan(6, 3, 1, 1, 2), Plan(5, 2, 2, 2, 3)]


def test_any_cut_and_any_number_of_threads_give_the_same_outputs(isa, monkeypatch):
    channels = 2 * native.isa().lanes + 3
    x, tokens = make(6, 21, channels, 5), torch.randn(6, 21, channels)
    kernel, bias = torch.randn(3, 4, channels), torch.randn(3, channels)
    results = []
    for cut in CUTS:
        monkeypatch.setattr(native_scan, "_plan", lambda _, cut=cut: cut)
        monkeypatch.setattr(native_conv, "_plan", lambda _, cut=cut: cut)
        results.append([r for pair in both(x) for r in pair] + [causal_conv(tokens, kernel, bias, impl="native")])
    for other in results[1:]:
        assert all(map(torch.equal, other, results[0]))


@pytest.mark.parametrize("shape", [(2, 0, 3, 4), (0, 5, 3, 4), (2, 5, 0, 4), (2, 5, 3, 0), (0, 0, 0, 0)])
def test_a_carried_state_of_nothing_stays_what_it_was(shape):
    x = carried(make(*shape))
    y, last = selective_scan(**x, impl="native")
    expected_y, expected = selective_scan(**x, impl="reference")
    assert torch.equal(y, expected_y)
    assert torch.equal(last, expected)
    assert last.dtype == torch.float64
