"""GLoMa: one Mamba over the whole sequence and one over windows of it, joined (MambaDM's mixer).

Symbols: `B` batch, `L` tokens, `D` width, `M` tokens per step, `W = gloma_steps * M` tokens per window.

The paper came without code and leaves windows and fusion open; what is fixed here is a reconstruction.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scanrl.nn.config import ModelConfig
from scanrl.nn.mamba import Mamba
from scanrl.nn.mixer import Mixer, State, map_state, replace_rows

__all__ = ["BlockState", "GLoMa", "GLoMaState", "SlidingState"]


class GLoMaState(NamedTuple):
    """States of the two branches; `()` for one that is switched off."""

    whole: State
    windowed: State


class GLoMa(Mixer):
    r"""`y = fuse(Mamba_g(x), Mamba_l(windows of x))`, with `fuse` a sum, `s g + (1 - s) l` for `s = \sigma(W [g; l])`,
    or `W [g; l]`.

    Block windows are counted from the start of the sequence, an episode when acting: the local branch forgets at steps
    0, w, 2w, ...; `shifted` cuts half a window earlier, for stacks that alternate. Sliding windows run Mamba anew over
    the last `W` tokens at every token, which costs `W` times as much. Nothing depends on a later token either way.

    Reference: Cao et al. 2024 (MambaDM), arXiv 2406.02013; reconstructed.
    """

    def __init__(self, config: ModelConfig, *, shifted: bool = False) -> None:
        super().__init__()
        width, both = config.width, config.gloma_branch == "both"
        self.mamba = Mamba(config)
        self.local = Mamba(config) if both and not config.gloma_share else None
        self.fusion = config.gloma_fusion if both else "sum"
        outputs = {"sum": 0, "gate": width, "concat": width}[self.fusion]
        self.fuse = nn.Linear(2 * width, outputs) if outputs else None
        self.sees_all = config.gloma_branch != "local"
        self.windows: _Windows | None = None
        if config.gloma_branch != "global":
            tokens = config.gloma_steps * config.period
            first = tokens - config.gloma_steps // 2 * config.period if shifted else tokens
            block = config.gloma_windows == "block"
            self.windows = _Blocks(tokens, first) if block else _Sliding(tokens)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        before = cast("GLoMaState | None", state)
        outputs: list[Tensor] = []
        whole: State = ()
        windowed: State = ()
        if self.sees_all:
            y, whole = self.mamba(x, None if before is None else before.whole)
            outputs.append(y)
        if self.windows is not None:
            mamba = self._local()
            if before is None:
                y, windowed = self.windows.begin(mamba, x)
            else:
                y, windowed = self.windows.go_on(mamba, x, before.windowed)
            outputs.append(y)
        return self._fused(outputs), GLoMaState(whole, windowed)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        whole, windowed = state
        outputs: list[Tensor] = []
        if self.sees_all:
            y, whole = self.mamba.step(x, whole)
            outputs.append(y)
        if self.windows is not None:
            y, windowed = self.windows.step(self._local(), x, windowed)
            outputs.append(y)
        return self._fused(outputs), GLoMaState(whole, windowed)

    def initial_state(self, batch: int) -> GLoMaState:
        whole = self.mamba.initial_state(batch) if self.sees_all else ()
        return GLoMaState(whole, () if self.windows is None else self.windows.initial_state(self._local(), batch))

    def _local(self) -> Mamba:
        return self.mamba if self.local is None else self.local

    def _fused(self, outputs: list[Tensor]) -> Tensor:
        if self.fuse is None:
            return outputs[0] if len(outputs) == 1 else outputs[0] + outputs[1]
        weights = self.fuse(torch.cat(outputs, -1))
        if self.fusion == "concat":
            return weights
        return torch.lerp(outputs[1], outputs[0], torch.sigmoid(weights).to(outputs[0].dtype))


class _Windows(ABC):
    """How the local branch cuts its windows. Mamba is handed in: its parameters belong to the mixer."""

    @abstractmethod
    def begin(self, mamba: Mamba, x: Tensor) -> tuple[Tensor, State]:
        """A chunk `(B, L, D)` from the first token of an episode."""

    @abstractmethod
    def go_on(self, mamba: Mamba, x: Tensor, state: State) -> tuple[Tensor, State]:
        """A chunk whose rows may be at different places."""

    @abstractmethod
    def step(self, mamba: Mamba, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One token `(B, D)`."""

    @abstractmethod
    def initial_state(self, mamba: Mamba, batch: int) -> State:
        """The state before the first token of an episode."""


class BlockState(NamedTuple):
    """Mamba's state within the window, and the tokens that the window still takes; at 0 the next token starts one."""

    mamba: State
    left: Tensor  # (B,) int64, in 0 .. W-1


class _Blocks(_Windows):
    """Windows of `tokens` one behind the other; the first of an episode takes `first`."""

    def __init__(self, tokens: int, first: int) -> None:
        self.tokens, self.first = tokens, first

    def begin(self, mamba: Mamba, x: Tensor) -> tuple[Tensor, State]:
        batch, length, _ = x.shape
        head = min(self.first, length) if self.first < self.tokens else 0
        tail = (length - head) % self.tokens
        outputs: list[Tensor] = []
        state: State = ()
        if head:
            y, state = mamba(x[:, :head])
            outputs.append(y)
        if length - head > tail:  # whole windows, as rows of one batch
            y, state = mamba(x[:, head : length - tail].reshape(-1, self.tokens, x.shape[2]))
            state = map_state(lambda leaf: leaf.unflatten(0, (batch, -1))[:, -1], state)
            outputs.append(y.reshape(batch, -1, x.shape[2]))
        if tail:
            y, state = mamba(x[:, length - tail :])
            outputs.append(y)
        left = torch.full((batch,), (self.first - length) % self.tokens, dtype=torch.int64, device=x.device)
        return (outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1)), BlockState(state, left)

    def go_on(self, mamba: Mamba, x: Tensor, state: State) -> tuple[Tensor, State]:
        if x.shape[1] <= self.tokens:
            return self._step_by_step(mamba, x, cast(BlockState, state))
        return self._regrouped(mamba, x, cast(BlockState, state))

    def step(self, mamba: Mamba, x: Tensor, state: State) -> tuple[Tensor, State]:
        inner, left = cast(BlockState, state)
        y, inner = mamba.step(x, replace_rows(inner, left == 0, mamba.initial_state(len(x))))
        return y, BlockState(inner, (left - 1) % self.tokens)

    def initial_state(self, mamba: Mamba, batch: int) -> BlockState:
        left = torch.full((batch,), self.first % self.tokens, dtype=torch.int64, device=mamba.A_log.device)
        return BlockState(mamba.initial_state(batch), left)

    def _step_by_step(self, mamba: Mamba, x: Tensor, state: BlockState) -> tuple[Tensor, State]:
        outputs = []
        after: State = state
        for token in x.unbind(1):
            y, after = self.step(mamba, token, after)
            outputs.append(y)
        return torch.stack(outputs, 1), after

    def _regrouped(self, mamba: Mamba, x: Tensor, state: BlockState) -> tuple[Tensor, State]:
        """More tokens than a window, rows at different places; a place is never read on the host."""
        length, left = x.shape[1], state.left
        rest, _ = mamba(x[:, : self.tokens - 1], state.mamba) if self.tokens > 1 else (x[:, :0], None)
        rest = F.pad(rest, (0, 0, 0, length - rest.shape[1]))
        whole = self._whole_windows(mamba, x, left)
        behind = torch.arange(length, device=x.device) - left[:, None]  # place of a token behind the row's first start
        y = torch.where(behind[..., None] < 0, rest, _gather(whole, behind.clamp(min=0)))
        return y, BlockState(self._amid_the_last(mamba, x, left), (left - length) % self.tokens)

    def _whole_windows(self, mamba: Mamba, x: Tensor, left: Tensor) -> Tensor:
        """Outputs `(B, n*W, D)` of the windows behind the one that still takes `left` `(B,)` tokens, rows of one batch.

        Every row has as many as any might need, padded by its own last token.
        """
        batch, length, width = x.shape
        count = -(-length // self.tokens)
        taken = left[:, None] + torch.arange(count * self.tokens, device=x.device)
        windows = _gather(x, taken.clamp(max=length - 1)).reshape(batch * count, self.tokens, width)
        return mamba(windows)[0].reshape(batch, count * self.tokens, width)

    def _amid_the_last(self, mamba: Mamba, x: Tensor, left: Tensor) -> State:
        """Mamba's state after a chunk, by stepping through each row's last window, which holds 1 to W of its tokens."""
        length = x.shape[1]
        used = (length - left - 1) % self.tokens + 1
        after = mamba.initial_state(len(x))
        for index in range(self.tokens):
            token = _gather(x, (length - used + index).clamp(max=length - 1)[:, None])[:, 0]
            after = replace_rows(after, index < used, mamba.step(token, after)[1])
        return after


class SlidingState(NamedTuple):
    """The last `W - 1` tokens, oldest first, and how many of them are real."""

    inputs: Tensor  # (B, W-1, D)
    count: Tensor  # (B,) int64


class _Sliding(_Windows):
    """Every token sees the last `tokens`, itself included, through a Mamba that starts at the first of them."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def begin(self, mamba: Mamba, x: Tensor) -> tuple[Tensor, State]:
        return self.go_on(mamba, x, self._empty(x))

    def go_on(self, mamba: Mamba, x: Tensor, state: State) -> tuple[Tensor, State]:
        inputs, count = cast(SlidingState, state)
        (batch, length, width), kept = x.shape, self.tokens - 1
        every = torch.cat([inputs.to(x.dtype), x], 1)  # (B, W-1+L, D)
        # Windows that an episode's start cuts short begin with its first token and are padded behind their last.
        present = torch.arange(length, device=x.device) + kept  # place of each token among all
        begin = torch.maximum(present - kept, kept - count[:, None])  # (B, L)
        taken = (begin[..., None] + torch.arange(self.tokens, device=x.device)).clamp(max=kept + length - 1)
        windows = _gather(every, taken.flatten(1)).reshape(batch * length, self.tokens, width)
        last = (present - begin).reshape(-1, 1)
        y = _gather(mamba(windows)[0], last).reshape(batch, length, width)
        return y, SlidingState(every[:, length:].clone(), (count + length).clamp(max=kept))

    def step(self, mamba: Mamba, x: Tensor, state: State) -> tuple[Tensor, State]:
        y, state = self.go_on(mamba, x[:, None], state)
        return y[:, 0], state

    def initial_state(self, mamba: Mamba, batch: int) -> SlidingState:
        return self._empty(mamba.out_proj.weight.new_empty(batch, 0, mamba.out_proj.weight.shape[0]))

    def _empty(self, x: Tensor) -> SlidingState:
        count = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        return SlidingState(x.new_zeros(len(x), self.tokens - 1, x.shape[2]), count)


def _gather(x: Tensor, taken: Tensor) -> Tensor:
    """Tokens `taken` `(B, n)` of each row: `(B, L, D) -> (B, n, D)`."""
    return x.gather(1, taken[..., None].expand(-1, -1, x.shape[2]))
