"""The laws of every member of MIXERS, and of stacks of them. Algebra in float64 with tight tolerances."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from scanrl.config import to_values
from scanrl.nn import MIXERS, Mixer, ModelConfig, Stack, State, replace_rows
from scanrl.nn.attention import FEWEST_QUERIES
from scanrl.nn.config import InnerMixer
from scanrl.nn.mixer import parse_pattern
from scanrl.types import DataError

INNER: tuple[InnerMixer, ...] = ("conv4", "none", "conv", "modal_conv", "dense", "modal_linear")
CONFIG = ModelConfig(width=8, context=4, heads=2, window=5, state_size=3, mlp_ratio=2, head_size=4, gloma_steps=2)
GLOMA: tuple[dict[str, Any], ...] = (
    {"gloma_fusion": "gate"},
    {"gloma_fusion": "concat", "gloma_share": True},
    {"gloma_windows": "sliding"},
    {"gloma_windows": "sliding", "gloma_steps": 1, "layout": "sarR", "gloma_branch": "local"},
    {"gloma_branch": "global"},
    {"gloma_branch": "local"},
    {"gloma_steps": 1, "layout": "sarR"},
    {"inner_mixer": "modal_conv"},
)


def described(config: ModelConfig) -> str:
    """What differs from `CONFIG`."""
    same = to_values(CONFIG)
    return "-".join(f"{k}={v}" for k, v in to_values(config).items() if v != same[k]) or "plain"


CASES = [(name, CONFIG) for name in MIXERS]
CASES += [("mamba", replace(CONFIG, inner_mixer=inner)) for inner in INNER]
CASES += [("attention", replace(CONFIG, layout="sRa", hide_returns=True))]
CASES += [("modal_conv", replace(CONFIG, layout="sar")), ("attention", replace(CONFIG, context=1, layout="s"))]
CASES += [("mamba", replace(CONFIG, inner_activation="gelu")), ("s4d", replace(CONFIG, s4d_init="real"))]
CASES += [("gloma", replace(CONFIG, **changes)) for changes in GLOMA]
CASES += [("gloma_shifted", replace(CONFIG, gloma_steps=3, layout="sa"))]
IDS = [f"{name}-{described(c)}" for name, c in CASES]
every_mixer = pytest.mark.parametrize(("name", "config"), CASES, ids=IDS)


def build(name: str, config: ModelConfig, dtype: torch.dtype = torch.float64) -> Mixer:
    torch.manual_seed(0)
    mixer = MIXERS[name](config).double().eval()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return mixer.to(dtype)


def tokens(length: int, batch: int = 2, width: int = 8, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(batch, length, width, generator=torch.Generator().manual_seed(length), dtype=dtype)


def flat(state: State) -> list[Tensor]:
    return [state] if isinstance(state, Tensor) else [leaf for part in state for leaf in flat(part)]


def stepped(mixer: Mixer, x: Tensor, state: State) -> tuple[Tensor, State]:
    outputs = []
    for token in x.unbind(1):
        y, state = mixer.step(token, state)
        outputs.append(y)
    return torch.stack(outputs, 1), state


@every_mixer
@pytest.mark.parametrize("length", [1, 2, 3, 7, 12, 29])
def test_step_equals_forward(name: str, config: ModelConfig, length: int) -> None:
    mixer, x = build(name, config), tokens(length)
    whole, after = mixer(x)
    parts, after_parts = stepped(mixer, x, mixer.initial_state(2))
    torch.testing.assert_close(parts, whole, rtol=1e-10, atol=1e-10)
    for a, b in zip(flat(after), flat(after_parts), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10, check_dtype=False)


@every_mixer
@settings(max_examples=12, deadline=None)
@given(cuts=st.lists(st.integers(1, 20), min_size=1, max_size=3))
def test_forward_of_the_parts_equals_forward_of_the_whole(name: str, config: ModelConfig, cuts: list[int]) -> None:
    mixer, x = build(name, config), tokens(21)
    whole, _ = mixer(x)
    state, outputs, start = None, [], 0
    for end in [*sorted(set(cuts)), 21]:
        y, state = mixer(x[:, start:end], state)
        outputs.append(y)
        start = end
    torch.testing.assert_close(torch.cat(outputs, 1), whole, rtol=1e-10, atol=1e-10)


@every_mixer
def test_no_output_depends_on_a_later_token(name: str, config: ModelConfig) -> None:
    mixer, x = build(name, config), tokens(11)
    y, _ = mixer(x)
    for cut in (1, 4, 10):
        changed = x.clone()
        changed[:, cut:] = 7.0
        found = mixer(changed)[0][:, :cut]
        if name == "s4d":  # an FFT lets all tokens into the rounding
            torch.testing.assert_close(found, y[:, :cut], rtol=1e-13, atol=1e-13)
        else:
            assert torch.equal(found, y[:, :cut])


@every_mixer
def test_gradients_reach_every_parameter(name: str, config: ModelConfig) -> None:
    mixer = build(name, config)
    y, _ = mixer(tokens(13))
    y.square().sum().backward()
    for parameter_name, parameter in mixer.named_parameters():
        assert parameter.grad is not None, parameter_name
        reached = parameter.grad.abs() > 0
        assert reached.float().mean() > 0.9, parameter_name


@every_mixer
def test_gradients_are_those_of_the_function(name: str, config: ModelConfig) -> None:
    mixer, x = build(name, config), tokens(5, batch=1).requires_grad_()
    state = mixer(tokens(4, batch=1))[1]
    assert torch.autograd.gradcheck(lambda x: mixer(x)[0], (x,), atol=1e-6)
    assert torch.autograd.gradcheck(lambda x: mixer(x, state)[0], (x,), atol=1e-6)


@every_mixer
def test_gradients_flow_through_a_carried_state(name: str, config: ModelConfig) -> None:
    mixer, x = build(name, config), tokens(10)
    (whole,) = torch.autograd.grad(mixer(x)[0].square().sum(), next(mixer.parameters()), retain_graph=False)
    first, state = mixer(x[:, :4])
    second, _ = mixer(x[:, 4:], state)
    (parts,) = torch.autograd.grad(first.square().sum() + second.square().sum(), next(mixer.parameters()))
    torch.testing.assert_close(parts, whole, rtol=1e-8, atol=1e-8)


@every_mixer
def test_saved_weights_give_the_same_outputs(name: str, config: ModelConfig) -> None:
    mixer, x = build(name, config), tokens(6)
    other = MIXERS[name](config).double().eval()
    weights = mixer.state_dict()
    assert len({tensor.data_ptr() for tensor in weights.values()}) == len(weights)  # none under two names
    other.load_state_dict(weights)
    assert torch.equal(other(x)[0], mixer(x)[0])


HALVES = pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])


@HALVES
@every_mixer
def test_half_precision_stays_close_and_finite(name: str, config: ModelConfig, half: torch.dtype) -> None:
    """Outputs of windows and of steps, and gradients, against float64."""
    exact, x = build(name, config), tokens(12)
    mixer = build(name, config, torch.float32)
    expected, _ = exact(x)
    wanted = torch.autograd.grad(expected.square().mean(), list(exact.parameters()))
    with torch.autocast("cpu", half):
        y, _ = mixer(x.float())
        found = torch.autograd.grad(y.double().square().mean(), list(mixer.parameters()))
    assert (y.double() - expected).abs().max() <= 0.05 * expected.abs().max()
    largest = max(gradient.abs().max() for gradient in wanted)
    for one, other in zip(found, wanted, strict=True):
        assert (one.double() - other).abs().max() <= 0.05 * largest
    with torch.no_grad(), torch.autocast("cpu", half):
        state, steps = mixer.initial_state(x.shape[0]), []
        for token in x.float().unbind(1):
            y, state = mixer.step(token, state)
            steps.append(y)
    assert (torch.stack(steps, 1).double() - expected).abs().max() <= 0.05 * expected.abs().max()


@every_mixer
def test_one_row_can_restart_while_the_others_go_on(name: str, config: ModelConfig) -> None:
    mixer, x = build(name, config), tokens(9, batch=3)
    _, state = mixer(x[:, :4])
    state = replace_rows(state, torch.tensor([False, True, False]), mixer.initial_state(3))
    y, _ = mixer(x[:, 4:], state)
    whole, _ = mixer(x)
    fresh, _ = mixer(x[1:2, 4:])
    torch.testing.assert_close(y[[0, 2]], whole[[0, 2], 4:], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(y[1:2], fresh, rtol=1e-10, atol=1e-10)


@every_mixer
def test_a_broken_row_leaves_the_others_unchanged(name: str, config: ModelConfig) -> None:
    mixer, x = build(name, config), tokens(6, batch=3)
    y, _ = mixer(x)
    x[1] = float("nan")
    assert torch.equal(mixer(x)[0][[0, 2]], y[[0, 2]])


@every_mixer
def test_step_leaves_the_state_it_was_given_alone(name: str, config: ModelConfig) -> None:
    mixer, x = build(name, config), tokens(5)
    _, state = mixer(x)
    before = [leaf.clone() for leaf in flat(state)]
    mixer.step(x[:, 0], state)
    assert all(torch.equal(a, b) for a, b in zip(flat(state), before, strict=True))


@every_mixer
def test_state_is_constant_in_size(name: str, config: ModelConfig) -> None:
    mixer = build(name, config)
    sizes = {sum(leaf.numel() for leaf in flat(mixer(tokens(n))[1])) for n in (1, 5, 40)}
    assert sizes == {sum(leaf.numel() for leaf in flat(mixer.initial_state(2)))}


def test_modal_convolution_uses_the_kernel_of_the_output_token() -> None:
    mixer, x = build("modal_conv", CONFIG), tokens(9)
    y, _ = mixer(x)
    kernel, bias = mixer.kernel, mixer.bias  # type: ignore[attr-defined]
    padded = torch.cat([torch.zeros(2, 4, 8, dtype=torch.float64), x], 1)
    for t in range(9):
        expected = bias[t % 3] + sum(kernel[t % 3, i] * padded[:, t + i] for i in range(5))
        torch.testing.assert_close(y[:, t], expected)


def test_modal_linear_uses_the_matrix_of_the_output_token() -> None:
    mixer, x = build("modal_linear", CONFIG), tokens(9)
    y, _ = mixer(x)
    padded = torch.cat([torch.zeros(2, 4, 8, dtype=torch.float64), x], 1)
    for t in range(9):
        torch.testing.assert_close(y[:, t], padded[:, t : t + 5].flatten(1) @ mixer.weight[t % 3].T)  # type: ignore[attr-defined]


def test_plain_convolution_equals_torch_conv1d() -> None:
    mixer, x = build("conv", CONFIG), tokens(9)
    kernel = mixer.kernel[0].T[:, None]  # type: ignore[attr-defined]
    expected = torch.nn.functional.conv1d(x.transpose(1, 2), kernel, mixer.bias[0], padding=4, groups=8)[..., :9]  # type: ignore[attr-defined]
    torch.testing.assert_close(mixer(x)[0], expected.transpose(1, 2))


def test_attention_sees_one_training_window_and_no_more() -> None:
    mixer, x = build("attention", CONFIG), tokens(30)  # window 12 tokens
    y, _ = mixer(x)
    x[:, :10] = 3.0
    changed, _ = mixer(x)
    assert torch.equal(changed[:, 21:], y[:, 21:])
    assert not torch.equal(changed[:, 20], y[:, 20])


@pytest.mark.parametrize("changes", [{}, {"hide_returns": True}])
def test_attention_over_many_windows_is_the_same_in_blocks(changes: dict) -> None:
    mixer, x = build("attention", replace(CONFIG, **changes)), tokens(3 * FEWEST_QUERIES + 5)
    whole, _ = mixer(x)
    parts, _ = stepped(mixer, x, mixer.initial_state(2))
    torch.testing.assert_close(whole, parts, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("layout", ["sRa", "Rsa"])
def test_attention_that_hides_returns_sees_the_first_of_its_window_only(layout: str) -> None:
    mixer, x = build("attention", replace(CONFIG, layout=layout, hide_returns=True)), tokens(30)  # window 12 tokens
    y, _ = mixer(x)
    for token in range(30):
        changed = x.clone()
        changed[:, token] += 1.0
        seen = ((mixer(changed)[0] - y).abs().amax((0, 2)) > 1e-12).nonzero()[:, 0].tolist()
        expected = set(range(token, min(token + 12, 30)))
        if layout[token % 3] == "R":
            first = {q: min(k for k in range(max(0, q - 11), q + 4) if layout[k % 3] == "R") for q in range(30)}
            # Its own output changes all the same: the query is made of it.
            expected = {q for q in expected if first[q] == token} | {token}
        assert set(seen) == expected, token


def test_mamba_step_sizes_start_as_configured() -> None:
    official = MIXERS["mamba"](replace(CONFIG, width=64))
    dt = torch.nn.functional.softplus(official.dt_proj.bias)  # type: ignore[attr-defined]
    assert 1e-4 <= dt.min() < 3e-3
    assert 3e-2 < dt.max() <= 0.1001
    reset = MIXERS["mamba"](replace(CONFIG, width=64, dt_init="gpt2_reset"))
    assert not reset.dt_proj.bias.any()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("mlp", ["mlp:pre:0.0"]),
        ("(attention mlp)*2", ["attention:pre:0.0", "mlp:pre:0.1"] * 2),
        ("(modal_conv mamba:none)*1 mlp:post", ["modal_conv:pre:0.0", "mamba:none:0.1", "mlp:post:1.0"]),
        ("mamba*3", ["mamba:pre:0.0"] * 3),
    ],
)
def test_patterns_unroll(pattern: str, expected: list[str]) -> None:
    terms = parse_pattern(pattern, tuple(MIXERS))
    assert [f"{t.name}:{t.residual}:{t.slot}" for t in terms] == expected


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(atention mlp)*3", "did you mean 'attention'"),
        ("mamba:nune", "expected residual pre, post or none, got 'nune'"),
        ("(mamba", "expected names and"),
        ("", "expected at least one mixer"),
        ("()*3", r"expected groups with names in them, at least once, got '\(\)\*3'$"),
        ("()*3 mlp", r"expected groups with names in them, at least once, got '\(\)\*3'$"),
        ("(attention)*0 mlp", r"expected groups with names in them, at least once, got '\(attention\)\*0'$"),
    ],
)
def test_wrong_patterns_are_explained(pattern: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_pattern(pattern, tuple(MIXERS))


def test_residual_marks_do_what_they_say() -> None:
    x = tokens(4)
    for residual in ("pre", "post", "none"):
        torch.manual_seed(0)
        stack = Stack(replace(CONFIG, pattern=f"mlp:{residual}"), MIXERS).double().eval()
        normed = stack.norms[0](x)
        base = {"pre": x, "post": normed, "none": torch.zeros_like(x)}[residual]
        torch.testing.assert_close(stack(x)[0], base + stack.mixers[0](normed)[0])


def test_blocks_marked_post_are_those_that_normalise_behind_the_residual() -> None:
    """`y <- LN(y + f(y))`, as in the transformer's first form, behind one norm more at the start."""
    torch.manual_seed(0)
    stack = Stack(replace(CONFIG, pattern="(attention:post mlp:post)*2"), MIXERS).double().eval()
    x, last = tokens(7), torch.nn.LayerNorm(8).double()
    y = stack.norms[0](x)
    for mixer, norm in zip(stack.mixers, [*stack.norms[1:], last], strict=True):
        y = norm(y + mixer(y)[0])
    torch.testing.assert_close(last(stack(x)[0]), y, rtol=1e-10, atol=1e-10)


def test_shared_norms_are_one_module_per_place() -> None:
    stack = Stack(replace(CONFIG, pattern="(dense mamba)*3", share_norms=True), MIXERS)
    assert len(stack.norms) == 2
    assert stack.norm_of == [0, 1, 0, 1, 0, 1]
    mixed = Stack(replace(CONFIG, pattern="(dense mamba)*2 mlp", share_norms=True), MIXERS)
    assert mixed.norm_of == [0, 1, 0, 1, 2]  # the mlp is in no repeat and has its own


@pytest.mark.parametrize("pattern", ["(attention mlp)*2", "(modal_linear mamba:none)*2", "(dense mamba:post)*2"])
def test_a_stack_obeys_the_law_of_its_mixers(pattern: str) -> None:
    torch.manual_seed(1)
    stack = Stack(replace(CONFIG, pattern=pattern), MIXERS).double().eval()
    x = tokens(12)
    whole, _ = stack(x)
    parts, _ = stepped(stack, x, stack.initial_state(2))
    torch.testing.assert_close(parts, whole, rtol=1e-10, atol=1e-10)
