"""Scan arguments for the tests, and the float64 truth about them."""

import torch
from torch import Tensor

from scanrl.kernels import selective_scan

OPTIONAL = ("D", "z", "dt_bias", "h")


def make(
    batch: int, length: int, channels: int, states: int, *, without: tuple[str, ...] = (), seed: int = 0
) -> dict[str, Tensor | None]:
    """Arguments of `selective_scan` in float32 (values a trained layer would have), some optional ones left out."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    every = {
        "u": normal(batch, length, channels),
        "dt": normal(batch, length, channels),
        "A": -torch.exp(normal(channels, states) / 2),
        "B": normal(batch, length, states),
        "C": normal(batch, length, states),
        "D": normal(channels),
        "z": normal(batch, length, channels),
        "dt_bias": normal(channels) - 2,
        "h": normal(batch, channels, states),
    }
    return {name: None if name in without else x for name, x in every.items()}


def outputs_and_gradients(arguments: dict, dtype=torch.float32, *, use=("y", "last"), **options) -> dict[str, Tensor]:
    """y, the last state, and the gradient of every argument from a fixed random weighting of the results in `use`."""
    leaves = {n: None if x is None else x.detach().to(dtype).requires_grad_() for n, x in arguments.items()}
    y, last = selective_scan(**leaves, **options)
    generator = torch.Generator().manual_seed(7)
    weights = {"y": torch.randn(y.shape, generator=generator), "last": torch.randn(last.shape, generator=generator)}
    loss = sum((x * weights[name].to(x)).sum() for name, x in {"y": y, "last": last}.items() if name in use)
    present = {name: leaf for name, leaf in leaves.items() if leaf is not None}
    gradients = torch.autograd.grad(loss, list(present.values()), allow_unused=True, materialize_grads=True)
    return {"y": y.detach(), "last": last.detach(), **{f"d{n}": g for n, g in zip(present, gradients, strict=True)}}


def uncancelled(arguments: dict) -> dict[str, float]:
    """What the largest entries of y and of the last state would be if no two terms had opposite signs.

    In a tensor of a few entries all of them may happen to cancel; float32 can then be no closer to the truth than
    a rounding error of the terms.
    """
    x = {n: None if a is None else a.double() for n, a in arguments.items()}
    positive = {n: None if x[n] is None else x[n].abs() for n in ("u", "B", "C", "D", "h")}
    y, last = selective_scan(**{**x, **positive, "z": None}, impl="reference")
    y = y if x["z"] is None else y * torch.nn.functional.silu(x["z"]).abs()
    return {"y": y.max().item(), "last": last.max().item()}


def assert_close_to_truth(found: dict[str, Tensor], truth: dict[str, Tensor], largest: dict[str, float]) -> None:
    """Outputs within 1e-6 and gradients within 1e-5 of float64, relative to the largest entry, or to `largest`."""
    assert found.keys() == truth.keys()
    for name, expected in truth.items():
        limit = 1e-6 if name in ("y", "last") else 1e-5
        scale = largest.get(name, expected.abs().max().item() if expected.numel() else 1.0)
        assert found[name].shape == expected.shape, name
        error = (found[name].double() - expected).abs().max().item() if expected.numel() else 0.0
        assert error <= limit * scale + 1e-30, f"{name}: error {error:.2e} against a largest entry of {scale:.2e}"
