"""Causal softmax attention over a sliding window of tokens, with a key/value cache for acting.

Symbols: `B` batch, `L` tokens, `D` width, `H` heads, `W` window in tokens.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scanrl.kernels import linear
from scanrl.nn.config import ModelConfig
from scanrl.nn.mixer import Mixer, State
from scanrl.nn.program import ALL, NoNativeStep, Program, Register

__all__ = ["Attention", "AttentionState"]


FEWEST_QUERIES = 64
"""Of a block of windows that slide: what shorter ones cost is calls."""


class AttentionState(NamedTuple):
    """The last `W - 1` keys and values, newest last, and how many tokens there have been: the rest is not real."""

    keys: Tensor  # (B, H, W-1, D/H)
    values: Tensor  # (B, H, W-1, D/H)
    count: Tensor  # (B,) int64


class Attention(Mixer):
    """Multi-head self-attention: token `t` sees tokens `t-W+1 .. t`, where `W = context * M` (one training window).

    Within one training window this is plain causal attention; the window only bounds the cache when acting. With
    `hide_returns` no token sees an R, its own included, but the first one of its window.

    Reference: Vaswani et al. 2017, arXiv 1706.03762; in GPT-2's form as used by Chen et al. 2021, arXiv 2106.01345.
    Hidden returns: Wu et al. 2023 (Elastic Decision Transformer), arXiv 2307.02484.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.window = config.context * config.period
        self.dropout_rate = config.dropout
        self.period = config.period
        self.hidden_place = config.layout.index("R") if config.hide_returns and "R" in config.layout else None
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        length = x.shape[1]
        q, k, v = self._project(x)
        if state is None and length <= self.window:
            y = self._attend(q, k, v, None if self.hidden_place is None else self._mask_of_window(length))
            return self._merge(y), self._remember(k, v, torch.zeros_like(x[:, 0, 0], dtype=torch.int64))
        cache = cast(AttentionState, self.initial_state(len(x)) if state is None else state)
        k, v = torch.cat([cache.keys.to(k.dtype), k], 2), torch.cat([cache.values.to(v.dtype), v], 2)
        y = self._attend_in_blocks(q, k, v, cache.count)
        return self._merge(y), self._remember(k, v, cache.count, length)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        y, state = self.forward(x[:, None], state)
        return y[:, 0], state

    def initial_state(self, batch: int) -> AttentionState:
        weight = self.out.weight
        empty = weight.new_zeros(batch, self.heads, self.window - 1, weight.shape[0] // self.heads)
        return AttentionState(empty, empty, torch.zeros(batch, dtype=torch.int64, device=weight.device))

    def lower(self, program: Program, x: Register, rows: int) -> Register:
        if self.hidden_place is not None:
            raise NoNativeStep("attention that hides returns has no native step")
        head = len(self.out.weight) // self.heads
        width = program.padded(head)

        def by_head(values: Tensor) -> Tensor:  # (H * D/H, ...), with every head in whole vectors
            return (
                F.pad(values.unflatten(0, (self.heads, head)).transpose(1, -1), (0, width - head))
                .transpose(1, -1)
                .flatten(0, 1)
            )

        weights, biases = self.qkv.weight.chunk(3), self.qkv.bias.chunk(3)
        q, k, v = (
            program.linear(x, by_head(weight), by_head(bias), rows if i == 0 else ALL)
            for i, (weight, bias) in enumerate(zip(weights, biases, strict=True))
        )
        y = program.attend(q, k, v, self.heads, head, self.window, rows)
        return program.linear(y, by_head(self.out.weight.T).T, self.out.bias, rows)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (
            linear(x, self.qkv.weight, self.qkv.bias).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        )  # each (B, H, L, D/H)
        return q, k, v

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        rate = self.dropout_rate if self.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, mask, rate, is_causal=mask is None)

    def _attend_in_blocks(self, q: Tensor, k: Tensor, v: Tensor, count: Tensor) -> Tensor:
        """Windows that slide over `q` `(B, H, L, D/H)`, about `W` queries at a time: memory grows with `L`, not with
        its square. `k` and `v` begin with the cache."""
        parts, block = [], max(self.window, FEWEST_QUERIES)
        for start in range(0, q.shape[2], block):
            stop = min(start + block, q.shape[2])
            seen = slice(start, stop + self.window - 1)
            mask = self._mask(start, stop, count)
            parts.append(self._attend(q[:, :, start:stop], k[:, :, seen], v[:, :, seen], mask))
        return parts[0] if len(parts) == 1 else torch.cat(parts, 2)

    def _merge(self, y: Tensor) -> Tensor:
        return self.dropout(linear(y.transpose(1, 2).flatten(2), self.out.weight, self.out.bias))

    def _mask(self, start: int, stop: int, count: Tensor) -> Tensor:
        """`(B, 1, stop-start, W-1+stop-start)`: true where query `i` from `start` on may see cache slot or token `j`
        from there on."""
        memory = self.window - 1
        j = torch.arange(start, memory + stop, device=count.device)
        i = torch.arange(start, stop, device=count.device)[:, None]
        behind = i + memory - j  # tokens between key and query
        real = j >= memory - count[:, None]
        seen = (behind >= 0) & (behind < self.window) & real[:, None]
        if self.hidden_place is not None:
            seen = seen & self._not_hidden(count[:, None, None] + i, count[:, None, None] + j - memory)
        return seen[:, None]

    def _mask_of_window(self, length: int) -> Tensor:
        """`(L, L)`: the same for a window from its start."""
        j = torch.arange(length, device=self.out.weight.device)
        return (j <= j[:, None]) & self._not_hidden(j[:, None], j)

    def _not_hidden(self, query: Tensor, key: Tensor) -> Tensor:
        """True where the key is no R, or the first one of the query's window; both by their number in the stream."""
        first = (query - self.window + 1).clamp(min=0)
        return (key % self.period != self.hidden_place) | (key - first < self.period)

    def _remember(self, k: Tensor, v: Tensor, count: Tensor, length: int | None = None) -> AttentionState:
        memory = self.window - 1
        new = k.shape[2] if length is None else length
        if k.shape[2] < memory:  # a first chunk shorter than the cache
            k, v = (F.pad(t, (0, 0, memory - t.shape[2], 0)) for t in (k, v))
        start = k.shape[2] - memory
        return AttentionState(k[:, :, start:], v[:, :, start:], count + new)
