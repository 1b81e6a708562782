"""Mamba: a gated, selective diagonal state-space mixer, in the published form and in Decision MetaMamba's.

Symbols: `B` batch, `L` tokens, `D` width, `E` inner width, `N` state size, `r = ceil(D / 16)` rank of the step size.
"""

from __future__ import annotations

import math
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scanrl.kernels import Inner, Weights, fast, mamba, selective_scan, selective_step
from scanrl.nn.config import ModelConfig
from scanrl.nn.local import LocalConv, LocalLinear, LocalState
from scanrl.nn.mixer import Mixer, State, carried_dtype
from scanrl.nn.program import ALL, Program, Register

__all__ = ["Mamba", "MambaState", "Selection", "step_size_bias"]

DT_MIN, DT_MAX, DT_FLOOR = 1e-3, 1e-1, 1e-4


class MambaState(NamedTuple):
    """State of the inner mixer (inputs it still needs) and of the scan."""

    inner: State
    h: Tensor  # (B, E, N); float64 when carried from `initial_state`, float32 without


class Selection(NamedTuple):
    """What the scan reads: inputs u and step sizes dt, after softplus `(B, L, E)`, and B, C `(B, L, N)`."""

    u: Tensor
    dt: Tensor
    B: Tensor
    C: Tensor


class Mamba(Mixer):
    r"""Selective state space behind a gate.

    With `(p, z) = W_in x`, `p = silu(inner(p))` and `(dt, B, C)` linear in `p`:
    `h_t = exp(dt_t A) h_{t-1} + dt_t p_t B_t`, `y_t = C_t h_t + D p_t`, output `W_out (y * silu(z))`.

    `inner_mixer` is Mamba's own 4-tap convolution, nothing (single Decision MetaMamba) or a local mixer at width `E`
    (the double forms). Papers print zero-order hold for B; all released code uses Euler's `dt B`, and so do we.

    Reference: Gu and Dao 2023, arXiv 2312.00752; Kim 2024 (Decision MetaMamba), arXiv 2408.10517.
    """

    undecayed = ("A_log", "D")

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, inner, states = config.width, config.inner_width, config.state_size
        self.dt_rank = math.ceil(width / 16)
        self.dt_init = config.dt_init
        self.activation = config.inner_activation
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.inner = _inner_mixer(config)
        self.x_proj = nn.Linear(inner, self.dt_rank + 2 * states, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, inner)
        # A = -exp(A_log) = -1 .. -N in every channel (S4D-Real).
        self.A_log = nn.Parameter(torch.arange(1, states + 1, dtype=torch.float32).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, width, bias=False)
        self.reset_dt()

    def reset_dt(self) -> None:
        """Initialise the step-size projection; call again after anything that re-initialises all linear layers."""
        weight, bias = self.dt_proj.weight, self.dt_proj.bias
        with torch.no_grad():
            if self.dt_init == "gpt2_reset":
                weight.normal_(0.0, 0.02)
                bias.zero_()
                return
            bound = self.dt_rank**-0.5
            weight.uniform_(-bound, bound)
            bias.copy_(step_size_bias(len(bias)))

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        before = cast("MambaState | None", state)
        if self._fusible(x, before):
            return self._fused(x.float(), before)
        p, z = self.in_proj(x).chunk(2, -1)
        inner_state: State = ()
        if self.inner is not None:
            p, inner_state = self.inner(p, None if before is None else before.inner)
        p = self._activated(p)
        dt, B, C = self._coefficients(p)
        y, h = selective_scan(
            p, dt, self._A(), B, C, D=self.D, z=z, dt_bias=self.dt_proj.bias, h=None if before is None else before.h
        )
        return self.out_proj(y), MambaState(inner_state, h)

    def selection(self, x: Tensor) -> Selection:
        """What the scan reads of tokens `(B, L, D)` that follow on an empty state."""
        p = self.in_proj(x).chunk(2, -1)[0]
        if self.inner is not None:
            p, _ = self.inner(p)
        u = self._activated(p)
        dt, B, C = self._coefficients(u)
        return Selection(u, F.softplus(dt + self.dt_proj.bias), B, C)

    def _fused(self, x: Tensor, before: MambaState | None) -> tuple[Tensor, State]:
        """`forward` as one function round its matrix products."""
        weights = Weights(
            self.in_proj.weight,
            self.x_proj.weight,
            self.dt_proj.weight,
            self.dt_proj.bias,
            self.A_log,
            self.D,
            self.out_proj.weight,
        )
        carried = None if before is None else before.h.float()
        if self.inner is None:
            y, _, h = mamba(x, weights, Inner(), carried)
            return y, MambaState((), h if before is None else h.to(before.h.dtype))
        mixer, state = cast("LocalConv | LocalLinear", self.inner), cast(LocalState, before and before.inner)
        past, place = (None, None) if before is None else (state.inputs.float(), state.place)
        if isinstance(mixer, LocalConv):
            inner = Inner(mixer.kernel, mixer.bias, past, place)
        else:
            inner = Inner(mixer.weight, None, past)
        y, inputs, h = mamba(x, weights, inner, carried)
        h = h if before is None else h.to(before.h.dtype)
        return y, MambaState(mixer.after(inputs, place, x.shape[1]), h)

    def _fusible(self, x: Tensor, before: MambaState | None) -> bool:
        if self.activation != "silu":
            return False
        if before is not None and before.h.dtype == torch.float64 and not torch.is_grad_enabled():
            return False  # acting: the scan carries the state in float64
        memory = 0 if self.inner is None else cast("LocalConv | LocalLinear", self.inner).window - 1
        if x.shape[1] < memory or not fast(x, self.A_log):
            return False
        return not isinstance(self.inner, LocalLinear) or self.inner.begins_step(before and before.inner)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        inner_state, h = state
        p, z = self.in_proj(x).chunk(2, -1)
        if self.inner is not None:
            p, inner_state = self.inner.step(p, inner_state)
        p = self._activated(p)
        dt, B, C = self._coefficients(p)
        y, h = selective_step(p, dt, self._A(), B, C, D=self.D, z=z, dt_bias=self.dt_proj.bias, h=h)
        return self.out_proj(y), MambaState(inner_state, h)

    def initial_state(self, batch: int) -> MambaState:
        inner = () if self.inner is None else self.inner.initial_state(batch)
        return MambaState(inner, self.A_log.new_zeros(batch, *self.A_log.shape, dtype=carried_dtype(self.A_log)))

    def lower(self, program: Program, x: Register, rows: int) -> Register:
        inner, gate = self.in_proj.weight.chunk(2)
        p, z = program.linear(x, inner), program.linear(x, gate, rows=rows)
        if self.inner is not None:
            p = self.inner.lower(program, p, ALL)
        program.activate(p, self.activation, ALL)
        coefficients = program.linear(p, self.x_proj.weight)
        rank, states = self.dt_rank, self.A_log.shape[1]
        dt = program.linear(coefficients[:rank], self.dt_proj.weight)
        B, C = coefficients[rank : rank + states], coefficients[rank + states :]
        y = program.scan(p, dt, B, C, z, self._A(), self.D, self.dt_proj.bias, rows)
        return program.linear(y, self.out_proj.weight, rows=rows)

    def _activated(self, p: Tensor) -> Tensor:
        return F.silu(p) if self.activation == "silu" else F.gelu(p)

    def _A(self) -> Tensor:
        # Never in half precision: the state would forget what it is meant to remember.
        return -torch.exp(self.A_log.to(torch.promote_types(self.A_log.dtype, torch.float32)))

    def _coefficients(self, p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Step size before bias and softplus `(..., E)`, and B, C `(..., N)`."""
        states = self.A_log.shape[1]
        dt, B, C = self.x_proj(p).split([self.dt_rank, states, states], -1)
        return F.linear(dt, self.dt_proj.weight), B, C


def step_size_bias(channels: int) -> Tensor:
    """What softplus takes to step sizes drawn between 1e-3 and 1e-1, evenly in their logarithm `(channels,)`."""
    dt = torch.empty(channels).uniform_(math.log(DT_MIN), math.log(DT_MAX)).exp_().clamp_(min=DT_FLOOR)
    return dt + torch.log(-torch.expm1(-dt))


def _inner_mixer(config: ModelConfig) -> Mixer | None:
    width = config.inner_width
    match config.inner_mixer:
        case "none":
            return None
        case "conv4":
            return LocalConv(config, width=width, window=4, split=False)
        case "conv" | "modal_conv":
            return LocalConv(config, width=width, split=config.inner_mixer == "modal_conv")
        case "dense" | "modal_linear":
            return LocalLinear(config, width=width, split=config.inner_mixer == "modal_linear")
