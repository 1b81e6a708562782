"""`Program`: the step of a policy as instructions for the C kernels, written by the modules of the model themselves.

Every module has a `lower` beside its `forward`: given the register that holds its input it appends what computes its
output and returns the register that holds that. A register is a place in the row of a token; an instruction works on
the rows of all tokens of the step (`ALL`), of those at which the action is read (`LAST`), of streams that do not start
(`GOING`), or of one place of the layout (`at`). `csrc/step.h` says what each instruction does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple

import numpy as np
from torch import Tensor, nn

from scanrl.kernels import native
from scanrl.kernels.native_step import HEADER, LETTERS, Code, aligned, probe

__all__ = ["ALL", "GOING", "LAST", "NoNativeStep", "Program", "Register", "at"]

ALL, LAST, GOING = 0, 1, 2
_OF_PLACE = 3
_ACTIVATIONS = ("relu", "gelu", "silu", "tanh")
_SOURCES = ("action", "time", "last time")
_OPERANDS = 14


class NoNativeStep(Exception):
    """A module that cannot say its step in instructions; the message says which and why."""


class Register(NamedTuple):
    """Where a row keeps a vector."""

    offset: int
    size: int  # without padding

    def __getitem__(self, part: slice) -> Register:  # type: ignore[override]
        start, stop, _ = part.indices(self.size)
        return Register(self.offset + start, stop - start)


def at(place: int) -> int:
    """The rows of one place in the layout."""
    return _OF_PLACE + place


class Program:
    """Collects instructions and weights for one model.

    Args:
        places: tokens of one step.
        head: how many of them are known before acting; the action is read at the last of these.
        prefix: how many of these a stream gets only where it starts.
    """

    def __init__(self, places: int, head: int, prefix: int = 0) -> None:
        self.places, self.head, self.prefix = places, head, prefix
        self._lanes = native.isa().lanes
        self._ops = native.module().step_ops()
        self._panel = native.module().panel
        self._code: list[tuple[int, ...]] = []
        self._weights: list[tuple[int, np.ndarray]] = []  # where a matrix goes
        self._weight_size = self._ring_size = self._used = self._most = 0
        self._state_size = HEADER
        self._output: tuple[tuple[int, ...], type[np.generic]] = ((), np.float32)

    def register(self, size: int) -> Register:
        """Room for a vector in every row."""
        register = Register(self._used, size)
        self._used += self.padded(size)
        self._most = max(self._most, self._used)
        return register

    @contextmanager
    def temporary(self) -> Iterator[None]:
        """Registers taken inside are free again afterwards."""
        before = self._used
        yield
        self._used = before

    def padded(self, size: int) -> int:
        """`size` in whole vectors."""
        return -(-size // self._lanes) * self._lanes

    def finish(self, sources: Sequence[Tensor]) -> Code:
        """The program; `sources` are the tensors of the model whose change makes it stale."""
        weights = aligned(self._weight_size)
        for start, part in self._weights:
            room = weights[start : start + len(part) * self.padded(part.shape[1])]
            room.reshape(len(part), -1)[:, : part.shape[1]] = part
        # An odd number of cache lines: rows a multiple of a page apart would push each other out of the cache.
        row = -(-self._most // 32) * 32 + 16
        shape, kind = self._output
        return Code(
            instructions=np.array(self._code, np.int64),
            weights=weights,
            places=self.places,
            head=self.head,
            prefix=self.prefix,
            row_size=row,
            state_size=self._state_size,
            ring_size=self._ring_size,
            output_shape=shape,
            output_kind=kind,
            probes=probe(tuple(sources)),
            sources=tuple(sources),
        )

    # ------------------------------------------------------------ instructions

    def read(self, letter: str, size: int, shift: np.ndarray, scale: np.ndarray, rows: int) -> Register:
        """`(input - shift) / scale` of a letter."""
        y = self.register(size)
        scales = np.ones(self.padded(size), np.float32)
        scales[:size] = scale
        self._emit("read", rows, LETTERS.index(letter), y.offset, size, self._keep(shift), self._keep(scales))
        return y

    def table(
        self,
        source: Literal["action", "time", "last time"],
        weight: Tensor,
        rows: int,
        into: Register | None = None,
    ) -> Register:
        """The row of a table `(count, D)`, at most its last, for the last action, for the token's step of the episode,
        or for the step before the present one."""
        count, size = weight.shape
        y = into or self.register(size)
        operands = (_SOURCES.index(source), y.offset, self.padded(size), count)
        self._emit("table", rows, *operands, self._keep(_numpy(weight)))
        return y

    def linear(
        self,
        x: Register,
        weight: Tensor | np.ndarray,
        bias: Tensor | np.ndarray | None = None,
        rows: int = ALL,
        into: Register | None = None,
    ) -> Register:
        """`W x + b` with `W` `(outputs, inputs)`."""
        weight = _numpy(weight)
        assert weight.shape[1] == x.size, (weight.shape, x.size)
        y = into or self.register(len(weight))
        biases = np.zeros(len(weight), np.float32) if bias is None else _numpy(bias)
        operands = (x.offset, x.size, y.offset, self.padded(len(weight)))
        self._emit("linear", rows, *operands, self._keep_panels(weight), self._keep(biases))
        return y

    def norm(self, x: Register, norm: nn.LayerNorm, rows: int) -> Register:
        """LayerNorm of x."""
        y = self.register(x.size)
        weight, bias = (self._keep(_numpy(p)) for p in (norm.weight, norm.bias))
        self._emit("norm", rows, x.offset, y.offset, x.size, weight, bias, self._keep(np.array([norm.eps])))
        return y

    def activate(self, y: Register, name: str, rows: int) -> None:
        """The named nonlinearity, in place."""
        self._emit("activate", rows, _ACTIVATIONS.index(name), y.offset, self.padded(y.size))

    def copy(self, x: Register, y: Register, rows: int) -> None:
        """`y = x`."""
        self._emit("copy", rows, x.offset, y.offset, self.padded(x.size))

    def add(self, x: Register, y: Register, rows: int) -> None:
        """`y = y + x`."""
        self._emit("add", rows, x.offset, y.offset, self.padded(x.size))

    def affine(self, y: Register, scale: Tensor, shift: Tensor, rows: int) -> None:
        """`y = y * scale + shift`."""
        operands = (y.offset, self.padded(y.size), self._keep(_numpy(scale)), self._keep(_numpy(shift)))
        self._emit("affine", rows, *operands)

    def conv(self, x: Register, kernel: Tensor, bias: Tensor, rows: int) -> Register:
        """Depthwise convolution over the last tokens, kernel `(places, w, D)`, bias `(places, D)`."""
        places, window, size = kernel.shape
        y = self.register(size)
        operands = (x.offset, y.offset, self.padded(size), window, places, self._keep(_numpy(kernel)))
        self._emit("conv", rows, *operands, self._keep(_numpy(bias)), self._inputs(window, size))
        return y

    def window(self, x: Register, window: int, rows: int) -> Register:
        """The last `window` tokens, oldest first, each padded to whole vectors."""
        y = self.register(window * self.padded(x.size))
        operands = (x.offset, y.offset, self.padded(x.size), window, self._inputs(window, x.size))
        self._emit("window", rows, *operands)
        return y

    def scan(
        self,
        u: Register,
        dt: Register,
        B: Register,
        C: Register,
        z: Register,
        A: Tensor,
        D: Tensor,
        bias: Tensor,
        rows: int,
    ) -> Register:
        """The selective scan, `A` `(E, N)` as in `selective_scan`, gated by z."""
        channels, states = A.shape
        width = self.padded(channels)
        y = self.register(channels)
        rates = np.zeros((width, states))
        rates[:channels] = _numpy(A) / np.log(2.0)
        by_block = rates.reshape(-1, self._lanes, states).transpose(0, 2, 1).astype(np.float32)
        operands = (u.offset, dt.offset, B.offset, C.offset, z.offset, y.offset, width, states)
        weights = (self._keep(by_block.reshape(1, -1)), self._keep(_numpy(D)), self._keep(_numpy(bias)))
        self._emit("scan", rows, *operands, *weights, self._keep_state(2 * width * states))
        return y

    def attend(self, q: Register, k: Register, v: Register, heads: int, head: int, window: int, rows: int) -> Register:
        """Softmax attention over the last `window` tokens; heads start at whole vectors."""
        length = window + self.places - 1  # so that a step can be taken back, see csrc/step.h
        width, slots = self.padded(head), self.padded(length)
        y, scores = self.register(heads * width), self.register(slots)
        ring, self._ring_size = self._ring_size, self._ring_size + heads * (head * slots + length * width)
        self._ring_size += -self._ring_size % 16
        operands = (q.offset, k.offset, v.offset, y.offset, scores.offset, heads, head, width, window, slots, ring)
        self._emit("attend", rows, *operands)
        return y

    def write(self, x: Register) -> None:
        """The vector is what the step gives."""
        self._output = (x.size,), np.float32
        self._emit("write", LAST, x.offset, x.size)

    def argmax(self, x: Register) -> None:
        """The index of the largest entry is what the step gives."""
        self._output = (), np.int64
        self._emit("argmax", LAST, x.offset, x.size)

    # ------------------------------------------------------------------ memory

    def _emit(self, op: str, rows: int, *operands: int) -> None:
        self._code.append((self._ops.index(op), rows, *operands, *(0,) * (_OPERANDS - len(operands))))

    def _keep(self, values: np.ndarray) -> int:
        """Weights `(..., D)`, each row padded to whole vectors; returns where they start."""
        return self._append([values.reshape(-1, values.shape[-1])])

    def _keep_panels(self, weight: np.ndarray) -> int:
        """A matrix in the order in which the kernel reads it."""
        panels, row = [], 0
        while row < len(weight):
            left = self.padded(len(weight) - row) // self._lanes
            end = row + min(self._panel, 1 << (left.bit_length() - 1)) * self._lanes
            panels.append(weight[row:end].T)
            row = end
        return self._append(panels)

    def _append(self, parts: list[np.ndarray]) -> int:
        """Matrices one after the other, their rows padded; returns where the first starts."""
        start = self._weight_size
        for part in parts:
            self._weights.append((self._weight_size, part))
            self._weight_size += len(part) * self.padded(part.shape[1])
        self._weight_size += -self._weight_size % 16  # everything starts on a cache line
        return start

    def _inputs(self, window: int, size: int) -> int:
        """State for the inputs before the present one."""
        return self._keep_state((window - 1) * self.padded(size))

    def _keep_state(self, size: int) -> int:
        start = self._state_size
        self._state_size += -(-size // 16) * 16
        return start


def _numpy(x: Tensor | np.ndarray) -> np.ndarray:
    return x if isinstance(x, np.ndarray) else x.detach().numpy()
