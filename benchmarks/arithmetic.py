"""What a training step has to compute, without anything round it: the machine's own limit for that step."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.timing import measure
from scanrl.kernels import causal_conv, selective_scan
from scanrl.kernels.products import outer, times
from scanrl.models.decision import DecisionModel
from scanrl.nn.local import LocalConv
from scanrl.nn.mamba import Mamba
from scanrl.nn.mixer import MLP

__all__ = ["arithmetic"]


CACHED = 2048  # tokens


def arithmetic(model: DecisionModel, batch: int, length: int) -> Callable[[], None]:
    """One call does the arithmetic of a step of `model` on (batch, length) tokens, nothing depending on anything else.

    Every matrix product and both its gradients (by torch or by our kernel, whichever is faster), scans, convolutions,
    norms and GELU with theirs, and the additions of the residuals. A large batch is taken in parts that stay in caches.
    """
    times = -(-batch * length // CACHED)
    parts = _parts(model, -(-batch // times), length)

    def run() -> None:
        for _ in range(times):
            for part in parts:
                part()

    return run


def _parts(model: DecisionModel, batch: int, length: int) -> list[Callable[[], object]]:
    parts: list[Callable[[], object]] = []
    width = model.config.width
    x = torch.randn(batch, length, width)
    for mixer in model.stack.mixers:
        parts += [_training(partial(F.layer_norm, normalized_shape=(width,)), x), lambda: x + x, lambda: x + x]
        if isinstance(mixer, Mamba):
            parts += _mamba(mixer, batch, length)
        elif isinstance(mixer, MLP):
            parts += _products([mixer.up.weight, mixer.down.weight], batch, length)
            parts.append(_training(F.gelu, torch.randn(batch, length, len(mixer.up.weight))))
        elif isinstance(mixer, LocalConv):
            parts.append(_conv(mixer, batch, length))
        else:
            raise TypeError(f"arithmetic: no list of parts for {type(mixer).__name__}")
    return parts


def _mamba(mixer: Mamba, batch: int, length: int) -> list[Callable[[], object]]:
    channels, states = mixer.A_log.shape
    weights = [mixer.in_proj.weight, mixer.x_proj.weight, mixer.dt_proj.weight, mixer.out_proj.weight]
    u, dt, z = torch.randn(3, batch, length, channels)
    B, C = torch.randn(2, batch, length, states)
    A = -torch.exp(mixer.A_log.detach())
    scan = [t.requires_grad_() for t in (u, dt, A, B, C, z)]
    parts = _products(weights, batch, length)
    if isinstance(mixer.inner, LocalConv):
        parts.append(_conv(mixer.inner, batch, length))
    parts.append(_training(lambda u, dt, A, B, C, z: selective_scan(u, dt, A, B, C, z=z)[0], *scan))
    return parts


def _conv(mixer: LocalConv, batch: int, length: int) -> Callable[[], object]:
    x = torch.randn(batch, length, mixer.kernel.shape[2])
    return _training(causal_conv, x, mixer.kernel, mixer.bias)


def _training(function: Callable[..., Tensor], *arguments: Tensor) -> Callable[[], object]:
    """Forward and backward."""
    leaves = [a.detach().requires_grad_() for a in arguments]
    weights = torch.randn_like(function(*leaves))
    return lambda: torch.autograd.grad(function(*leaves), leaves, weights)


def _products(weights: list[Tensor], batch: int, length: int) -> list[Callable[[], object]]:
    """`x W^T` and its two gradients, for every weight (N, K), each by the faster of two."""
    found: list[Callable[[], object]] = []
    for weight in weights:
        W = weight.detach()
        x, dy = torch.randn(batch * length, W.shape[1]), torch.randn(batch * length, W.shape[0])
        pairs = (
            (partial(times, x, W.t()), partial(torch.mm, x, W.t())),
            (partial(times, dy, W), partial(torch.mm, dy, W)),
            (partial(outer, dy, x), partial(torch.mm, dy.t(), x)),
        )
        found += [min(pair, key=_milliseconds) for pair in pairs]
    return found


def _milliseconds(function: Callable[[], object]) -> float:
    return measure({"": function}, 2, turn_s=0.005)[""].median_ms
