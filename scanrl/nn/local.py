"""Local mixers: each token mixes with the few before it, by a depthwise convolution or a dense matrix.

Symbols: `B` batch, `L` tokens, `D` width, `w` window in tokens, `M` tokens per step.

The *modal* forms keep one set of weights per place in the step (return-to-go, observation, action, ...) and use the one
that belongs to the OUTPUT token; the input window mixes all modalities. The place of a row is part of its state.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from scanrl.kernels import causal_conv, fast, local_linear
from scanrl.nn.config import ModelConfig
from scanrl.nn.mixer import Mixer, State, uniform_bound
from scanrl.nn.program import ALL, Program, Register, at

__all__ = ["LocalConv", "LocalLinear", "LocalState"]


class LocalState(NamedTuple):
    """The last `w - 1` inputs, oldest first, and the place in the step of the next token."""

    inputs: Tensor  # (B, w-1, D)
    place: Tensor  # (B,) int64, in 0 .. M-1


class LocalConv(Mixer):
    r"""Depthwise causal convolution, `y_t = b^m + \sum_i k^m_i * x_{t-w+1+i}`, with `m` the place of `t` in its step.

    `split=False` is the plain form: one kernel for all tokens.

    Reference: Kim et al. 2024 (Decision ConvFormer), arXiv 2310.03022; Kim 2024 (Decision MetaMamba), arXiv 2408.10517.
    """

    def __init__(self, config: ModelConfig, *, width: int | None = None, window: int | None = None, split: bool = True):
        super().__init__()
        width, window = width or config.width, window or config.window
        self.window = window
        self.places = config.period if split else 1
        bound = uniform_bound(window)
        self.kernel = nn.Parameter(torch.empty(self.places, window, width).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(self.places, width).uniform_(-bound, bound))

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        before = cast("LocalState | None", state)
        past, place = (None, None) if before is None else (before.inputs.to(x.dtype), before.place)
        length, kept = x.shape[1], self.window - 1
        # A copy of the last tokens: the state neither keeps the chunk in memory nor changes with it.
        inputs = x[:, max(0, length - kept) :].clone()
        if length < kept:
            earlier = self.initial_state(len(x)).inputs if past is None else past
            inputs = torch.cat([earlier[:, length:].to(x.dtype), inputs], 1)
        y = causal_conv(x, self.kernel, self.bias, past=past, place=place)
        return y, self.after(inputs, place, length)

    def after(self, inputs: Tensor, place: Tensor | None, length: int) -> LocalState:
        """The state `length` tokens after `place`, or after the start, with the last inputs."""
        return _after(inputs, place, length, self.places)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        window, place, state = _advance(self, x[:, None], state)
        kernel, bias = self.kernel[place[:, 0]], self.bias[place[:, 0]]
        return (window * kernel).sum(1) + bias, state

    def initial_state(self, batch: int) -> LocalState:
        return _empty(self.kernel, batch, self.kernel.shape[1], self.kernel.shape[2])

    def lower(self, program: Program, x: Register, rows: int) -> Register:
        return program.conv(x, self.kernel, self.bias, rows)


class LocalLinear(Mixer):
    """Dense matrix over the window, `y_t = W^m concat(x_{t-w+1}, ..., x_t)`, no bias.

    `split=False` is the dense sequence mixer: one matrix for all tokens.

    Reference: Kim 2024 (Decision MetaMamba), arXiv 2408.10517; the unsplit form arXiv 2602.19805.
    """

    def __init__(self, config: ModelConfig, *, width: int | None = None, split: bool = True) -> None:
        super().__init__()
        self.width = width or config.width
        self.window = config.window
        self.places = config.period if split else 1
        bound = uniform_bound(self.window * self.width)
        self.weight = nn.Parameter(torch.empty(self.places, self.width, self.window * self.width))
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        before = cast("LocalState | None", state)
        batch, length, width = x.shape
        if length >= self.window - 1 and fast(x, self.weight) and self.begins_step(before):
            inputs = x[:, length - (self.window - 1) :].clone()
            past, place = (None, None) if before is None else (before.inputs.float(), before.place)
            return local_linear(x.float(), self.weight, past), self.after(inputs, place, length)
        padded, place, state = _advance(self, x, state)
        if before is not None:
            return self._select(_Windows.apply(padded, self.window), place), state
        # Every row starts at place 0: group tokens by place and spend one matrix product on each group.
        extra = -length % self.places
        padded = F.pad(padded, (0, 0, 0, extra)) if extra else padded  # which would copy also for nothing
        windows = _Windows.apply(padded, self.window)  # (B, L+extra, wD)
        groups = windows.view(-1, self.places, windows.shape[-1]).transpose(0, 1)  # (M, B*T, wD)
        y = torch.bmm(groups, self.weight.to(x.dtype).transpose(1, 2))  # (M, B*T, D)
        return y.transpose(0, 1).reshape(batch, length + extra, width)[:, :length], state

    def begins_step(self, state: State | None) -> bool:
        """Whether the next token of every row is the first of its step, so that rows share one matrix at each place."""
        return state is None or self.places == 1 or not bool(cast(LocalState, state).place.any())

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        window, place, state = _advance(self, x[:, None], state)
        return self._select(window.flatten(1)[:, None], place)[:, 0], state

    def initial_state(self, batch: int) -> LocalState:
        return _empty(self.weight, batch, self.window, self.width)

    def after(self, inputs: Tensor, place: Tensor | None, length: int) -> LocalState:
        """The state `length` tokens after `place`, or after the start, with the last inputs."""
        return _after(inputs, place, length, self.places)

    def lower(self, program: Program, x: Register, rows: int) -> Register:
        tokens = program.window(x, self.window, rows)
        y = program.register(self.width)
        weights = self.weight.unflatten(2, (self.window, self.width))
        padded = F.pad(weights, (0, program.padded(self.width) - self.width)).flatten(2)  # (M, D, w * whole vectors)
        if self.places == 1:
            return program.linear(tokens, padded[0], rows=rows, into=y)
        for place in range(self.places) if rows == ALL else [program.head - 1]:
            program.linear(tokens, padded[place], rows=at(place), into=y)
        return y

    def _select(self, windows: Tensor, place: Tensor) -> Tensor:
        """All places' products, then the one that belongs to each token: `(B, L, wD) -> (B, L, D)`."""
        every = F.linear(windows, self.weight.to(windows.dtype).flatten(0, 1)).unflatten(-1, (self.places, self.width))
        index = place.expand(windows.shape[:2])[..., None, None].expand(-1, -1, 1, self.width)
        return every.gather(2, index)[:, :, 0]


def _empty(weight: Tensor, batch: int, window: int, width: int) -> LocalState:
    place = torch.zeros(batch, dtype=torch.int64, device=weight.device)
    return LocalState(weight.new_zeros(batch, window - 1, width), place)


def _after(inputs: Tensor, place: Tensor | None, length: int, places: int) -> LocalState:
    if place is None:
        place = torch.full((len(inputs),), length % places, dtype=torch.int64, device=inputs.device)
        return LocalState(inputs, place)
    return LocalState(inputs, (place + length) % places)


def _advance(mixer: LocalConv | LocalLinear, x: Tensor, state: State | None) -> tuple[Tensor, Tensor, LocalState]:
    """Inputs with their past `(B, w-1+L, D)`, places of the tokens `(1 or B, L)`, and the state after the chunk."""
    batch, length, _ = x.shape
    fresh = cast(LocalState, mixer.initial_state(batch) if state is None else state)
    padded = torch.cat([fresh.inputs.to(x.dtype), x], 1)
    start = fresh.place[:, None] if state is not None else fresh.place.new_zeros(1, 1)
    place = (start + torch.arange(length, device=x.device)) % mixer.places
    return padded, place, LocalState(padded[:, length:], (fresh.place + length) % mixer.places)


class _Windows(torch.autograd.Function):
    """Every window of `w` tokens as one row: `(B, w-1+L, D) -> (B, L, wD)`, oldest token first."""

    @staticmethod
    def forward(padded: Tensor, window: int) -> Tensor:
        padded = padded.contiguous()
        batch, total, width = padded.shape
        # Consecutive windows overlap in memory: row t starts one token after row t-1.
        rows = padded.as_strided((batch, total - window + 1, window * width), (total * width, width, 1))
        return rows.clone(memory_format=torch.contiguous_format)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
        ctx.shape, ctx.window = inputs[0].shape, inputs[1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        parts = grad.unflatten(-1, (ctx.window, -1))  # (B, L, w, D)
        padded = grad.new_zeros(ctx.shape)
        for i in range(ctx.window):
            padded[:, i : i + grad.shape[1]] += parts[:, :, i]
        return padded, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int, None], *given: Any) -> tuple[Tensor, int]:
        # Windows have no parameters, so that the rows of all slices are rows of one batch.
        padded, window = given[0].movedim(in_dims[0], 0), given[1]
        rows = _Windows.apply(padded.flatten(0, 1), window)
        return cast(Tensor, rows).unflatten(0, padded.shape[:2]), 0
