"""The fused forms of the layers against their composition in float64: outputs, states, and every gradient."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import Tensor

from scanrl.kernels import native, native_mamba, products
from scanrl.nn import MIXERS, Mixer, ModelConfig, State
from scanrl.nn.config import InnerMixer

extension, why = native.extension()
pytestmark = pytest.mark.skipif(extension is None, reason=why)

CONFIG = ModelConfig(width=16, context=8, window=5, state_size=3, expand=2)
WIDE = replace(CONFIG, width=64, state_size=16, window=6)
INNER = get_args(InnerMixer)
LAYERS = [("mamba", replace(c, inner_mixer=inner)) for inner in INNER for c in (CONFIG, WIDE)]
LAYERS += [("mamba", replace(CONFIG, width=10, inner_mixer=inner, window=9)) for inner in INNER]
LAYERS += [("mlp", replace(CONFIG, activation=name)) for name in ("gelu", "silu", "relu")]
LAYERS += [(name, c) for name in ("modal_linear", "dense", "attention") for c in (CONFIG, WIDE)]
IDS = [f"{name}-{c.inner_mixer}-{c.activation}-{c.width}" for name, c in LAYERS]
every_layer = pytest.mark.parametrize(("name", "config"), LAYERS, ids=IDS)


def build(name: str, config: ModelConfig) -> tuple[Mixer, Mixer]:
    """The same layer in float32 and in float64, which takes the composition."""
    torch.manual_seed(0)
    mixer = MIXERS[name](config).eval()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    exact = MIXERS[name](config).double().eval()
    exact.load_state_dict(mixer.state_dict())
    return mixer, exact


def tokens(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def leaves(state: State) -> list[Tensor]:
    return [state] if isinstance(state, Tensor) else [leaf for part in state for leaf in leaves(part)]


def widened(state: State) -> State:
    parts = [(p.double() if p.is_floating_point() else p) if isinstance(p, Tensor) else widened(p) for p in state]
    return tuple(parts) if type(state) is tuple else type(state)(*parts)


def detached(state: State) -> State:
    parts = [p.detach().clone() if isinstance(p, Tensor) else detached(p) for p in state]
    return tuple(parts) if type(state) is tuple else type(state)(*parts)


def differentiable(state: State) -> list[Tensor]:
    return [leaf for leaf in leaves(state) if leaf.is_floating_point() and leaf.numel()]


def results(mixer: Mixer, x: Tensor, state: State | None, through_state: bool = True) -> dict[str, Tensor]:
    """Outputs, state and the gradients of a fixed weighting of them for parameters, inputs and the state before."""
    x = x.detach().requires_grad_()
    before = [] if state is None else [leaf.requires_grad_() for leaf in differentiable(state)]
    y, after = mixer(x, state)
    outputs = [y, *(differentiable(after) if through_state else [])]
    weights = [tokens(*o.shape).to(o.dtype) for o in outputs]
    loss = sum((o * w).sum() for o, w in zip(outputs, weights, strict=True))
    wanted = {**dict(mixer.named_parameters()), "x": x, **{f"before {i}": b for i, b in enumerate(before)}}
    found = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True, materialize_grads=True)
    values = {f"y {i}": o.detach() for i, o in enumerate(outputs)}
    return values | {f"d {n}": g for n, g in zip(wanted, found, strict=True)}


def assert_close(found: dict[str, Tensor], truth: dict[str, Tensor]) -> None:
    """Outputs within 4e-6 and gradients within 1e-5 of float64, relative to the largest entry."""
    assert found.keys() == truth.keys()
    for name, expected in truth.items():
        assert found[name].shape == expected.shape, name
        limit = 4e-6 if name.startswith("y") else 1e-5
        error = (found[name].double() - expected).abs().max().item()
        assert error <= limit * expected.abs().max().item(), f"{name}: {error:.1e} of {expected.abs().max():.1e}"


@every_layer
@pytest.mark.parametrize("shape", [(2, 24), (3, 8), (1, 37), (64, 9)])
def test_fused_layers_equal_their_composition(name: str, config: ModelConfig, shape: tuple[int, int]) -> None:
    mixer, exact = build(name, config)
    x = tokens(*shape, config.width)
    assert_close(results(mixer, x, None), results(exact, x.double(), None))


@every_layer
def test_slabs_of_the_batch_add_up(name: str, config: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "CACHED", 500)  # one or two rows each
    mixer, exact = build(name, config)
    before = detached(mixer(tokens(5, 12, config.width))[1])
    x = tokens(5, 9, config.width)
    assert_close(results(mixer, x, None), results(exact, x.double(), None))
    assert_close(results(mixer, x, before), results(exact, x.double(), widened(before)))


@every_layer
@pytest.mark.parametrize("length", [16, 33, 50])
def test_slabs_of_a_long_row_add_up(
    name: str, config: ModelConfig, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "CACHED", 1)  # 16 tokens each
    mixer, exact = build(name, config)
    before = detached(mixer(tokens(2, 11, config.width))[1])
    x = tokens(2, length, config.width)
    assert_close(results(mixer, x, None), results(exact, x.double(), None))
    assert_close(results(mixer, x, before), results(exact, x.double(), widened(before)))


@every_layer
@pytest.mark.parametrize("length", [11, 12])  # in the midst of a step, and between two
def test_fused_layers_go_on_from_a_state(name: str, config: ModelConfig, length: int) -> None:
    mixer, exact = build(name, config)
    before = detached(mixer(tokens(2, length, config.width))[1])
    x = tokens(2, 14, config.width)
    assert_close(results(mixer, x, before), results(exact, x.double(), widened(before)))


@every_layer
@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_chunks_shorter_than_the_window_are_no_special_case(name: str, config: ModelConfig, length: int) -> None:
    mixer, exact = build(name, config)
    x = tokens(2, length, config.width)
    assert_close(results(mixer, x, None), results(exact, x.double(), None))


@every_layer
def test_results_are_the_same_bits_every_time_and_for_any_number_of_threads(name: str, config: ModelConfig) -> None:
    mixer, _ = build(name, config)
    x = tokens(64, 24, config.width)
    before = torch.get_num_threads()
    runs = []
    try:
        for threads in (1, 1, 2, 3):
            torch.set_num_threads(threads)
            runs.append(results(mixer, x, None))
    finally:
        torch.set_num_threads(before)
    if name == "attention":  # torch's own kernel in the middle
        runs = runs[:2]
    for key, expected in runs[0].items():
        assert all(torch.equal(run[key], expected) for run in runs), key


@pytest.mark.parametrize("inner", INNER)
def test_the_fused_mixer_is_what_runs(inner: InnerMixer, monkeypatch: pytest.MonkeyPatch) -> None:
    mixer, _ = build("mamba", replace(CONFIG, inner_mixer=inner))
    calls = []
    forward = native_mamba._Mamba.forward
    monkeypatch.setattr(native_mamba._Mamba, "forward", staticmethod(lambda *a: calls.append(1) or forward(*a)))
    mixer(tokens(2, 12, 16))
    assert calls


@pytest.mark.parametrize("inner", INNER)
def test_a_broken_row_leaves_the_others_unchanged(inner: InnerMixer) -> None:
    mixer, _ = build("mamba", replace(WIDE, inner_mixer=inner))
    x = tokens(3, 12, 64)
    clean = results(mixer, x, None, through_state=False)
    x[1, 4] = torch.nan
    found = results(mixer, x, None, through_state=False)
    for key in ("y 0", "d x"):
        assert torch.equal(found[key][[0, 2]], clean[key][[0, 2]])
    assert found["y 0"][1].isnan().any()


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("strange", ["expanded", "transposed", "offset"])
def test_inputs_may_have_any_layout(inner: InnerMixer, strange: str) -> None:
    mixer, _ = build("mamba", replace(CONFIG, inner_mixer=inner))
    x = tokens(12, 2, 16).transpose(0, 1)
    if strange == "expanded":
        x = tokens(1, 12, 16).expand(2, 12, 16)
    elif strange == "offset":
        x = tokens(2, 13, 20)[:, 1:, 2:18]
    assert torch.equal(mixer(x)[0], mixer(x.contiguous())[0])


@every_layer
def test_autocast_narrows_the_products_and_keeps_float32(name: str, config: ModelConfig) -> None:
    mixer, exact = build(name, config)
    x = tokens(4, 24, config.width)
    truth = results(exact, x.double(), None, through_state=False)
    with torch.autocast("cpu", torch.bfloat16):
        found = results(mixer, x, None, through_state=False)
    whole = results(mixer, x, None, through_state=False)
    assert not torch.equal(found["y 0"], whole["y 0"])
    for key, expected in truth.items():
        assert found[key].dtype == torch.float32
        assert (found[key] - expected).norm() <= 0.03 * expected.norm(), key


@pytest.mark.parametrize("inner", INNER)
def test_layers_in_half_precision_take_the_composition(inner: InnerMixer) -> None:
    mixer, exact = build("mamba", replace(CONFIG, inner_mixer=inner))
    x = tokens(2, 12, 16)
    y, _ = mixer.bfloat16()(x.bfloat16())
    assert y.dtype == torch.bfloat16
    assert (y - exact(x.double())[0]).abs().max() <= 0.1 * exact(x.double())[0].abs().max()


def test_a_second_derivative_is_refused() -> None:
    mixer, _ = build("mamba", CONFIG)
    x = tokens(1, 9, 16).requires_grad_()
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(mixer(x)[0].sum(), x, create_graph=True)
