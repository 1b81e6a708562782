"""Kernels under `torch.func.vmap`: as many slices, as many calls, the same numbers and gradients."""

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap

from scanrl.kernels import causal_conv, native, selective_scan
from scanrl.kernels.slices import each_slice, transformed
from scanrl.nn.local import _Windows
from tests.kernels.scan_cases import make as scan_arguments
from tests.kernels.test_conv import make as conv_arguments

IMPLS = ["reference", *(["native"] if native.extension()[0] else [])]
SLICES = 3


def results(function, arguments: dict, dims: dict, batched: bool) -> dict[str, Tensor]:
    """Outputs and gradients for every slice, by `vmap` or one after the other."""
    leaves = {n: x.detach().requires_grad_(x.is_floating_point()) for n, x in arguments.items() if x is not None}
    if batched:
        found = vmap(lambda *x: function(**dict(zip(leaves, x, strict=True))), tuple(dims[n] for n in leaves))(
            *leaves.values()
        )
    else:
        parts = []
        for i in range(SLICES):
            slices = {n: x if dims[n] is None else x.select(dims[n], i) for n, x in leaves.items()}
            parts.append(function(**slices))
        found = tuple(map(torch.stack, zip(*parts, strict=True)))
    weights = [torch.randn(x.shape, generator=torch.Generator().manual_seed(7)) for x in found]
    wanted = {n: x for n, x in leaves.items() if x.requires_grad}
    gradients = torch.autograd.grad(sum((x * w).sum() for x, w in zip(found, weights, strict=True)), wanted.values())
    return {**dict(enumerate(found)), **dict(zip(wanted, gradients, strict=True))}


def stacked(make, shared: tuple[str, ...], axis: int) -> tuple[dict, dict]:
    """Arguments of several slices side by side along `axis`, those in `shared` the same for all."""
    every = [make(seed) for seed in range(SLICES)]
    arguments, dims = {}, {}
    for name, first in every[0].items():
        dims[name] = None if first is None or name in shared else axis
        arguments[name] = first if dims[name] is None else torch.stack([x[name] for x in every], axis)
    return arguments, dims


CASES = {
    "all of their own": ((), (), 0),
    "some shared": (("A", "D", "u", "kernel"), (), 0),
    "some left out": ((), ("D", "h", "past"), 0),
    "another axis": (("bias", "dt_bias"), ("z", "place"), 1),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("kernel", ["scan", "conv"])
def test_a_kernel_under_vmap_gives_what_its_slices_give(kernel, impl, case):
    shared, without, axis = CASES[case]
    if kernel == "scan":
        made = stacked(lambda seed: scan_arguments(2, 5, 3, 4, without=without, seed=seed), shared, axis)
        function = lambda **x: selective_scan(**x, impl=impl)  # noqa: E731
    else:
        made = stacked(lambda seed: conv_arguments(2, 5, 3, 2, 4, without=without, seed=seed), shared, axis)
        function = lambda **x: (causal_conv(**x, impl=impl),)  # noqa: E731
    batched, apart = results(function, *made, batched=True), results(function, *made, batched=False)
    assert batched.keys() == apart.keys()
    for name, expected in apart.items():
        torch.testing.assert_close(batched[name], expected, rtol=1e-5, atol=1e-5)


def test_windows_under_vmap_are_those_of_the_slices():
    padded = torch.randn(4, 2, 3, 7)
    for axis in (0, 1):
        leaves = [padded.clone().requires_grad_() for _ in range(2)]
        found = vmap(lambda x: _Windows.apply(x, 3), axis)(leaves[0])
        expected = torch.stack([_Windows.apply(x, 3) for x in leaves[1].unbind(axis)])
        assert torch.equal(found, expected)
        weights = torch.randn(found.shape)
        for result in (found, expected):
            (result * weights).sum().backward()
        assert torch.equal(leaves[0].grad, leaves[1].grad)


@each_slice
def odd(x, scale, name, other):
    assert type(x) is Tensor
    assert not transformed()
    assert (scale, name) == (2, "name")
    return x * scale, None, x + (0 if other is None else other)


def test_what_is_no_tensor_goes_through_and_none_comes_back():
    x = torch.arange(6.0).view(3, 2)
    double, nothing, same = vmap(lambda x: odd(x, 2, "name", None), out_dims=(0, None, 0))(x)
    assert torch.equal(double, 2 * x)
    assert nothing is None
    assert torch.equal(same, x)
    assert torch.equal(odd(x, 2, "name", None)[0], 2 * x)


def test_what_is_the_same_for_all_slices_is_computed_once_and_keeps_its_gradient():
    calls, shared = [], torch.ones(2, requires_grad=True)

    @each_slice
    def square(x):
        calls.append(x.shape)
        return x**2

    vmap(lambda x: square(shared) * x)(torch.tensor([2.0, 3.0])).sum().backward()
    assert calls == [(2,)]
    assert shared.grad.tolist() == [10.0, 10.0]


def test_one_vmap_inside_another():
    x = torch.randn(2, 3, 4)
    assert torch.equal(vmap(vmap(lambda y: odd(y, 2, "name", y)[2]))(x), 2 * x)


def test_other_transforms_are_refused():
    with pytest.raises(RuntimeError, match=r"^odd: expected no transform but torch.func.vmap; impl='reference'"):
        grad(lambda x: odd(x, 2, "name", None)[0].sum())(torch.ones(2))
