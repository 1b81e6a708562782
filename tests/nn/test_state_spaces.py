"""What S4D, Mamba-2 and GLoMa compute, told in another way than their code does."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import cast

import pytest
import torch
from torch import Tensor

from scanrl.nn import MIXERS, ModelConfig
from scanrl.nn.gloma import GLoMa
from scanrl.nn.mamba2 import Mamba2, chunked_scan
from scanrl.nn.mixer import map_state
from scanrl.nn.s4d import S4D
from scanrl.types import DataError

CONFIG = ModelConfig(width=4, layout="sa", state_size=6, head_size=2, gloma_steps=3)


def tokens(length: int, width: int = 4, batch: int = 2) -> Tensor:
    return torch.randn(batch, length, width, generator=torch.Generator().manual_seed(length), dtype=torch.float64)


def s4d(**changes: object) -> S4D:
    torch.manual_seed(0)
    return cast(S4D, MIXERS["s4d"](replace(CONFIG, **changes)).double().eval())  # type: ignore[arg-type]


@pytest.mark.parametrize("init", ["lin", "real"])
def test_s4d_convolves_with_powers_of_the_dense_state_matrix(init: str) -> None:
    """The discretised system as real matrices: exp of the block [[A, B], [0, 0]] dt, powers of which act on inputs."""
    mixer, x, length = s4d(s4d_init=init), tokens(17), 17
    dt = mixer.log_dt.exp()
    A = torch.complex(-mixer.log_A_real.exp(), mixer.A_imag)
    C = torch.view_as_complex(mixer.C)
    expected = torch.empty_like(x)
    for channel in range(4):
        full = torch.zeros(7, 7, dtype=torch.complex128)  # three pairs with their conjugates, and the input
        full[:6, :6] = torch.diag(torch.cat([A[channel], A[channel].conj()]))
        full[:6, 6] = 1
        held = torch.linalg.matrix_exp(dt[channel] * full)
        step, write, read = held[:6, :6], held[:6, 6], torch.cat([C[channel], C[channel].conj()])
        kernel = torch.stack([read @ torch.linalg.matrix_power(step, k) @ write for k in range(length)])
        assert kernel.imag.abs().max() < 1e-12
        for t in range(length):
            past = sum(kernel.real[k] * x[:, t - k, channel] for k in range(t + 1))
            expected[:, t, channel] = past + mixer.D[channel] * x[:, t, channel]
    found, _ = mixer._convolve(x, None)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_what_comes_out_of_s4d_is_half_of_a_map_gated_by_the_other_half() -> None:
    mixer, x = s4d(), tokens(9)
    y, _ = mixer._convolve(x, None)
    y = y * 0.5 * (1 + torch.erf(y / math.sqrt(2)))
    mapped = y @ mixer.out.weight.T + mixer.out.bias
    expected = mapped[..., :4] / (1 + (-mapped[..., 4:]).exp())
    torch.testing.assert_close(mixer(x)[0], expected, rtol=1e-10, atol=1e-10)


def test_s4d_starts_with_the_modes_it_is_told() -> None:
    lin, real = s4d(), s4d(s4d_init="real")
    torch.testing.assert_close(lin.log_A_real.exp(), torch.full((4, 3), 0.5, dtype=torch.float64))
    torch.testing.assert_close(lin.A_imag[1], math.pi * torch.arange(3, dtype=torch.float64))
    torch.testing.assert_close(real.log_A_real.exp()[2], torch.arange(1, 4, dtype=torch.float64))
    assert not real.A_imag.any()
    dt = s4d(width=256, layout="s").log_dt.exp()
    assert 1e-3 <= dt.min() < 2e-3
    assert 5e-2 < dt.max() <= 0.1


def test_s4d_remembers_for_as_long_as_its_slowest_mode_says() -> None:
    """One impulse: the answer falls by exp(-dt / 2) a token once the real part alone decides."""
    mixer = s4d(state_size=2)  # one mode, -1/2
    x = torch.zeros(1, 400, 4, dtype=torch.float64)
    x[:, 0] = 1
    y, _ = mixer._convolve(x, None)
    expected = (-0.5 * mixer.log_dt.exp() * 300).exp()
    torch.testing.assert_close(y[0, 350] / y[0, 50], expected)


@pytest.mark.parametrize("length", [1, 2, 7, 16, 33])
@pytest.mark.parametrize("carried", [False, True], ids=["fresh", "carried"])
def test_mamba2_in_chunks_equals_its_recurrence(length: int, carried: bool) -> None:
    g = torch.Generator().manual_seed(length)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    u, dt, B, C = draw(2, length, 3, 2), draw(2, length, 3).exp(), draw(2, length, 5), draw(2, length, 5)
    A, h = -draw(3).exp(), draw(2, 3, 2, 5) if carried else torch.zeros(2, 3, 2, 5, dtype=torch.float64)
    found = chunked_scan(u, dt, A, B, C, h if carried else None, chunk=8)
    outputs = []
    for t in range(length):
        h = torch.einsum("bh,bhpn->bhpn", (dt[:, t] * A).exp(), h)
        h = h + torch.einsum("bh,bhp,bn->bhpn", dt[:, t], u[:, t], B[:, t])
        outputs.append(torch.einsum("bhpn,bn->bhp", h, C[:, t]))
    torch.testing.assert_close(found, (torch.stack(outputs, 1), h), rtol=1e-10, atol=1e-10)


def test_mamba2_is_the_recurrence_of_its_paper_token_by_token() -> None:
    torch.manual_seed(0)
    mixer, x = Mamba2(CONFIG).double(), tokens(9)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, dtype=torch.float64))
        projected = x @ mixer.in_proj.weight.T  # z (8), u (8), B (6), C (6), dt (4 heads of 2 channels)
        expected = torch.empty_like(x)
        for row in range(2):
            h = torch.zeros(4, 2, 6, dtype=torch.float64)
            for t in range(9):
                z, dt = projected[row, t, :8], projected[row, t, 28:]
                p = mixer.conv.bias[0].clone()
                for back in range(min(4, t + 1)):
                    p += mixer.conv.kernel[0, 3 - back] * projected[row, t - back, 8:28]
                p = p / (1 + (-p).exp())
                u, B, C = p[:8].reshape(4, 2), p[8:14], p[14:]
                dt = (1 + (dt + mixer.dt_bias).exp()).log()
                for head in range(4):
                    decay = (-dt[head] * mixer.A_log[head].exp()).exp()
                    h[head] = decay * h[head] + dt[head] * torch.outer(u[head], B)
                y = (h @ C + mixer.D[:, None] * u).reshape(8) * (z / (1 + (-z).exp()))
                y = y / (y.square().mean() + 1e-5).sqrt() * mixer.norm
                expected[row, t] = mixer.out_proj.weight @ y
        torch.testing.assert_close(mixer(x)[0], expected, rtol=1e-10, atol=1e-10)


def test_mamba2_with_the_fastest_decays_stays_finite_in_float32() -> None:
    """exp(-16 * 3 * 300) is nothing, and its inverse infinite: what quotients of running products would run into."""
    u, dt, B, C = torch.ones(1, 300, 1, 1), torch.full((1, 300, 1), 3.0), torch.ones(1, 300, 1), torch.ones(1, 300, 1)
    dt[:, ::50] = 1e-4  # here and there a token after which nothing is forgotten
    A = torch.tensor([-16.0], requires_grad=True)
    y, _ = chunked_scan(u, dt, A, B, C)
    exact, _ = chunked_scan(*(t.double() for t in (u, dt, A, B, C)))
    torch.testing.assert_close(y.double(), exact, rtol=1e-5, atol=1e-6)
    y.sum().backward()
    assert A.grad is not None
    assert A.grad.isfinite().all()


def test_mamba2_refuses_heads_that_do_not_divide_its_width() -> None:
    with pytest.raises(DataError, match=r"model.head_size: expected a divisor of expand \* width = 8, got 3"):
        Mamba2(replace(CONFIG, head_size=3))


def gloma(name: str = "gloma", **changes: object) -> GLoMa:
    torch.manual_seed(0)
    return cast(GLoMa, MIXERS[name](replace(CONFIG, **changes)).double().eval())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "starts"),
    # windows of eight tokens, shifted by two steps of four
    [("gloma", [0, 8, 16]), ("gloma_shifted", [0, 4, 12])],
)
def test_the_local_branch_of_gloma_sees_nothing_before_its_window(name: str, starts: list[int]) -> None:
    mixer, x = gloma(name, gloma_branch="local", gloma_steps=4), tokens(20)
    y, _ = mixer(x)
    for begin, end in zip(starts, [*starts[1:], 20], strict=True):
        torch.testing.assert_close(y[:, begin:end], mixer.mamba(x[:, begin:end])[0], rtol=1e-12, atol=1e-12)
    changed = x.clone()
    changed[:, : starts[2]] = 3.0
    assert torch.equal(mixer(changed)[0][:, starts[2] :], y[:, starts[2] :])
    assert not torch.equal(mixer(changed)[0][:, starts[2] - 1], y[:, starts[2] - 1])


@pytest.mark.parametrize("windows", ["block", "sliding"])
def test_windows_of_a_single_token_forget_everything(windows: str) -> None:
    mixer, x = gloma(gloma_branch="local", gloma_windows=windows, gloma_steps=1, layout="s"), tokens(7)
    y, state = mixer(x[:, :3])
    y = torch.cat([y, mixer(x[:, 3:6], state)[0]], 1)
    torch.testing.assert_close(y, mixer.mamba(x[:, :6].reshape(12, 1, 4))[0].reshape(2, 6, 4))


def test_sliding_windows_of_gloma_show_each_token_its_last_ones() -> None:
    mixer, x = gloma(gloma_branch="local", gloma_windows="sliding"), tokens(20)
    y, _ = mixer(x)
    for t in range(20):
        alone, _ = mixer.mamba(x[:, max(0, t - 5) : t + 1])
        torch.testing.assert_close(y[:, t], alone[:, -1], rtol=1e-12, atol=1e-12)


def test_the_global_branch_of_gloma_is_a_mamba_over_everything() -> None:
    mixer, x = gloma(gloma_branch="global"), tokens(20)
    assert torch.equal(mixer(x)[0], mixer.mamba(x)[0])


@pytest.mark.parametrize("fusion", ["sum", "gate", "concat"])
def test_gloma_joins_its_branches_as_it_is_told(fusion: str) -> None:
    mixer, x = gloma(gloma_fusion=fusion), tokens(6)  # one window: both branches see the same
    assert mixer.local is not None
    g, near = mixer.mamba(x)[0], mixer.local(x)[0]
    both = torch.cat([g, near], -1)
    share = torch.sigmoid(mixer.fuse(both)) if mixer.fuse else None
    expected = {
        "sum": lambda: g + near,
        "gate": lambda: share * g + (1 - share) * near,
        "concat": lambda: both @ mixer.fuse.weight.T + mixer.fuse.bias,
    }[fusion]()
    torch.testing.assert_close(mixer(x)[0], expected)


def test_gloma_with_shared_parameters_has_one_mamba() -> None:
    count = {share: sum(p.numel() for p in gloma(gloma_share=share).parameters()) for share in (False, True)}
    assert count[False] == 2 * count[True]


def test_rows_of_gloma_at_different_places_keep_their_own_windows() -> None:
    """A long chunk behind chunks that left every row elsewhere in its window."""
    mixer, x = gloma(), tokens(30, batch=4)
    y, _ = mixer(x)
    fresh, states = mixer.initial_state(1), []
    for row, places in enumerate((0, 1, 5, 8)):
        states.append(mixer(x[row : row + 1, :places])[1] if places else fresh)
    state = map_state(lambda *leaves: torch.cat(leaves), *states)
    rest = torch.stack([x[row, places : places + 20] for row, places in enumerate((0, 1, 5, 8))])
    found, after = mixer(rest, state)
    for row, places in enumerate((0, 1, 5, 8)):
        torch.testing.assert_close(found[row], y[row, places : places + 20], rtol=1e-10, atol=1e-10)
        alone = mixer(x[row : row + 1, : places + 20])[1]
        torch.testing.assert_close(after.windowed.left[row], alone.windowed.left[0])  # type: ignore[attr-defined]
        torch.testing.assert_close(after.windowed.mamba.h[row], alone.windowed.mamba.h[0])  # type: ignore[attr-defined]
