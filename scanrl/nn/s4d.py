"""S4D: a diagonal state space that does not depend on its input, so that a whole chunk is one convolution.

Symbols: `B` batch, `L` tokens, `D` width, `N` state size, `P = ceil(N / 2)` conjugate pairs of complex modes.
"""

from __future__ import annotations

import math
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scanrl.kernels import linear
from scanrl.nn.config import ModelConfig
from scanrl.nn.mixer import Mixer, State, carried_dtype

__all__ = ["S4D", "S4DState"]

DT_MIN, DT_MAX = 1e-3, 1e-1


class S4DState(NamedTuple):
    """One number of each conjugate pair, as real and imaginary part."""

    h: Tensor  # (B, D, P, 2); float64 when carried from `initial_state`, float32 without


class S4D(Mixer):
    r"""Diagonal state space, GELU, and a gated linear map (DS4's block without its norm and residual).

    Per channel: `h_t = exp(dt A) h_{t-1} + (exp(dt A) - 1) / A u_t`, `y_t = 2 Re(C . h_t) + D u_t`, with `P` complex
    entries of `A` and `C`; the output is `GLU(W gelu(y) + b)`. The discretisation is the zero-order hold with B = 1.

    `forward` convolves with the kernel `k_l = 2 Re(\sum_n C_n Bbar_n exp(l dt A_n))` by FFT; a carried state adds its
    own decaying response. Unlike the other mixers' sums, an FFT lets later tokens into the rounding of earlier ones.

    Reference: Gu et al. 2022 (S4D), arXiv 2206.11893; Bar-David et al. 2023 (Decision S4), arXiv 2306.05167.
    """

    undecayed = ("log_dt", "log_A_real", "A_imag", "D")

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, pairs = config.width, math.ceil(config.state_size / 2)
        modes = torch.arange(pairs, dtype=torch.float32)
        lin = config.s4d_init == "lin"
        real = torch.full_like(modes, 0.5) if lin else modes + 1  # of -A
        self.log_dt = nn.Parameter(torch.empty(width).uniform_(math.log(DT_MIN), math.log(DT_MAX)))
        self.log_A_real = nn.Parameter(real.log().repeat(width, 1))
        self.A_imag = nn.Parameter((math.pi * modes if lin else 0 * modes).repeat(width, 1))
        self.C = nn.Parameter(torch.randn(width, pairs, 2) * math.sqrt(0.5))  # of variance 1 as a complex number
        self.D = nn.Parameter(torch.randn(width))
        self.out = nn.Linear(width, 2 * width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        before = cast("S4DState | None", state)
        wide = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            y, h = self._convolve(x.to(wide), None if before is None else before.h)
        return self._gated(y.to(x.dtype)), S4DState(h)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        h = cast(S4DState, state).h
        wide = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            rate, written, C = self._coefficients(h.dtype)
            u = x.to(h.dtype)
            modes = rate.exp() * torch.view_as_complex(h) + written * u[..., None]
            y = 2 * (C * modes).sum(-1).real.to(wide) + self.D.to(wide) * x.to(wide)
        return self._gated(y.to(x.dtype)), S4DState(torch.view_as_real(modes))

    def initial_state(self, batch: int) -> S4DState:
        return S4DState(self.C.new_zeros(batch, *self.C.shape, dtype=carried_dtype(self.C)))

    def _convolve(self, u: Tensor, h: Tensor | None) -> tuple[Tensor, Tensor]:
        """Outputs before the nonlinearity `(B, L, D)`, and the state `(B, D, P, 2)` after the chunk."""
        length = u.shape[1]
        rate, written, C = self._coefficients(u.dtype)
        powers = (rate[..., None] * torch.arange(length, device=u.device)).exp()  # (D, P, L)
        kernel = 2 * ((C * written)[..., None] * powers).sum(1).real  # (D, L)
        size = 1 << (2 * length - 1).bit_length()  # padded, or the end of the chunk would wrap round to its start
        spectrum = torch.fft.rfft(u, size, dim=1) * torch.fft.rfft(kernel, size).T
        y = torch.fft.irfft(spectrum, size, dim=1)[:, :length] + self.D.to(u.dtype) * u
        # Real times complex as one real product: (D, B, L) x (D, L, 2P).
        backwards = torch.view_as_real(powers.flip(-1)).transpose(1, 2).flatten(2)  # (D, L, 2P)
        sums = torch.bmm(u.permute(2, 0, 1), backwards).unflatten(2, (-1, 2)).transpose(0, 1)  # (B, D, P, 2)
        after = written * torch.view_as_complex(sums.contiguous())
        if h is None:
            return y, torch.view_as_real(after)
        earlier = torch.view_as_complex(h)
        response = C * rate.exp() * earlier.to(C.dtype)  # (B, D, P)
        y = y + 2 * torch.einsum("bdp,dpl->bld", response, powers).real
        exact, _, _ = self._coefficients(h.dtype)
        return y, torch.view_as_real((exact * length).exp() * earlier + after.to(exact.dtype))

    def _coefficients(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """`dt A`, `(exp(dt A) - 1) / A` and `C`, each complex `(D, P)`, computed in `dtype`."""
        A = torch.complex(-self.log_A_real.to(dtype).exp(), self.A_imag.to(dtype))
        rate = self.log_dt.to(dtype).exp()[:, None] * A
        return rate, torch.expm1(rate) / A, torch.view_as_complex(self.C.to(dtype))

    def _gated(self, y: Tensor) -> Tensor:
        return self.dropout(F.glu(linear(F.gelu(y), self.out.weight, self.out.bias), -1))
