"""The definition: its algebra in float64."""

import pytest
import torch
from scan_cases import OPTIONAL, make, outputs_and_gradients

from scanrl.kernels import selective_scan, selective_step


def float64(arguments):
    return {name: None if x is None else x.double() for name, x in arguments.items()}


def test_one_state_and_one_channel_follow_the_formula_by_hand():
    one = torch.ones(1, 1, 1, dtype=torch.float64)
    y, h = selective_scan(
        2 * one, 0.5 * one, -one[0], 3 * one, 5 * one, D=one[0, 0], z=one, h=7 * one, softplus=False, impl="reference"
    )
    state = torch.exp(torch.tensor(-0.5, dtype=torch.float64)) * 7 + 0.5 * 2 * 3
    torch.testing.assert_close(h, state.reshape(1, 1, 1))
    torch.testing.assert_close(y, ((5 * state + 2) * torch.sigmoid(one[0, 0])).reshape(1, 1, 1))


def test_dt_passes_through_a_softplus_after_its_bias():
    x = float64(make(2, 5, 3, 2))
    delta = torch.nn.functional.softplus(x["dt"] + x["dt_bias"])
    expected = selective_scan(**{**x, "dt": delta, "dt_bias": None}, softplus=False)
    torch.testing.assert_close(selective_scan(**x), expected)


@pytest.mark.parametrize("without", [(), OPTIONAL])
def test_gradients_are_those_of_finite_differences(without):
    x = {n: None if v is None else v.double().requires_grad_() for n, v in make(2, 3, 2, 2, without=without).items()}
    names = [name for name, value in x.items() if value is not None]
    assert torch.autograd.gradcheck(
        lambda *a: selective_scan(**dict(zip(names, a, strict=True))), [x[n] for n in names]
    )


def test_steps_give_what_the_scan_gives():
    x = float64(make(3, 6, 5, 4))
    y, last = selective_scan(**x)
    h, ys = x["h"], []
    for t in range(6):
        token = {name: x[name][:, t] for name in ("u", "dt", "B", "C", "z")}
        y_t, h = selective_step(**token, A=x["A"], D=x["D"], dt_bias=x["dt_bias"], h=h)
        ys.append(y_t)
    torch.testing.assert_close(torch.stack(ys, 1), y)
    torch.testing.assert_close(h, last)


def test_a_step_leaves_the_old_state_as_it_was():
    x = make(2, 1, 3, 4)
    before = x["h"].clone()
    token = {name: x[name][:, 0] for name in ("u", "dt", "B", "C", "z")}
    _, after = selective_step(**token, A=x["A"], h=x["h"])
    assert torch.equal(x["h"], before)
    assert after.data_ptr() != x["h"].data_ptr()


def test_no_state_means_zeros():
    x = float64(make(2, 4, 3, 2))
    zeros = torch.zeros_like(x["h"])
    torch.testing.assert_close(selective_scan(**{**x, "h": None}), selective_scan(**{**x, "h": zeros}))


def test_float64_runs_without_the_native_scan_and_without_a_warning():
    found = outputs_and_gradients(make(1, 2, 3, 4), torch.float64)
    assert all(value.dtype == torch.float64 for value in found.values())
