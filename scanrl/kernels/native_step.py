"""The step of a whole policy in C on the CPU: its code, and the streams that it runs for.

`S` streams, `M` tokens per step. The code is written by the modules of a model (`scanrl.nn.program`); `csrc/step.h`
says what each instruction does. Everything is float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from scanrl.kernels import native

__all__ = ["HEADER", "LETTERS", "Code", "NativeStep", "StaleWeights", "aligned", "probe"]

LETTERS = "Rsarz"
"""The inputs of a step, in the order of `NativeStep`'s arguments."""

HEADER = 16  # floats of a stream's state before what its instructions keep, as in csrc/step.h

_LARGE = 1 << 23  # multiplications of one call from which a second thread is worth waking
_STALE = 1  # what the extension says of weights that changed, as in csrc/step.c
_LINE = 16  # floats of a cache line: where arrays start


class Code(NamedTuple):
    """A program with its weights; immutable, and shared by all that run it."""

    instructions: np.ndarray  # (n, 16) int64: number, rows, operands
    weights: np.ndarray  # float32
    places: int  # M
    head: int  # tokens that are known before acting
    prefix: int  # of them, those that a stream gets at its start only
    row_size: int  # floats of registers per token
    state_size: int  # floats per stream
    ring_size: int  # floats per stream: keys and values of attention
    output_shape: tuple[int, ...]  # per stream
    output_kind: type[np.generic]  # float32 or int64
    probes: np.ndarray  # (n, 2) int64: addresses in the model, and the bits that stood there
    sources: tuple[Tensor, ...]  # what the probes look at, kept alive

    def begin(self, count: int) -> NativeStep:
        """`count` streams before their first step."""
        return NativeStep(self, count)


class StaleWeights(Exception):
    """The model's weights have changed since they were copied."""


class NativeStep:
    """The state of `count` streams and the memory to move them on by a step.

    Streams are independent: what one gets is the same to the bit, whatever the number and the contents of the others.
    Memory is allocated here and nowhere else, so a step cannot fail half-way. Not safe for concurrent calls.
    """

    def __init__(self, code: Code, count: int) -> None:
        isa = native.isa()
        large = count * code.places * code.weights.size > _LARGE
        most = native.module().streams
        threads = min(native.threads(), count) if large else 1
        blocks = max(-(-count // most), threads)
        block = max(-(-count // blocks), 1)
        self.count = count
        self.state = aligned(count * code.state_size)
        self.rings = aligned(count * code.ring_size)
        self._scratch = aligned(threads * block * code.places * code.row_size)
        width = max(int(np.prod(code.output_shape)), 1)
        sizes = (code.row_size, code.state_size, code.ring_size, width)
        self._integers = (isa.number, threads, block, code.places, code.head, code.prefix, *sizes)
        self._run = native.module().step
        self._output = (count, *code.output_shape), code.output_kind
        self.load(code)

    def load(self, code: Code) -> None:
        """Goes on with other weights of the same program."""
        self.code = code
        arrays = (code.instructions, code.weights, code.probes, self._scratch, self.state, self.rings)
        self._fixed = (*self._integers, *arrays)

    def undo(self) -> Callable[[], None]:
        """What takes back the next step, if it is called before another one. It keeps a copy of all but the rings."""
        before = self.state.copy()

        def take_back() -> None:
            self.state[:] = before

        return take_back

    def copy(self) -> NativeStep:
        """The same streams, which go on by themselves."""
        other = self.code.begin(self.count)
        other.state[:], other.rings[:] = self.state, self.rings
        return other

    @property
    def nbytes(self) -> int:
        """Memory of all streams."""
        return self.state.nbytes + self.rings.nbytes

    def __call__(
        self,
        first: np.ndarray,
        last: np.ndarray,
        now: np.ndarray,
        R: np.ndarray | None = None,
        s: np.ndarray | None = None,
        a: np.ndarray | None = None,
        r: np.ndarray | None = None,
        z: np.ndarray | None = None,
        only: np.ndarray | None = None,
    ) -> np.ndarray | None:
        """Moves streams on by one step. Arrays are contiguous; an input that the program does not read may be None.

        Args:
            first: (S,) bool: rows that start; they forget everything and get no tail tokens.
            last: (S,) int64: index of the last step in its episode.
            now: (S,) int64: index of this one.
            R: (S,) float32: return-to-go of the step to which its token belongs.
            s: (S, *O) float32: observations.
            a: (S, A) float32 or (S,) int64: last actions.
            r: (S,) float32: rewards of the last actions.
            z: (S, *) float32: a vector that the program takes as it is.
            only: (S,) bool: rows that make the step; the others stay as they are. None: all.

        Returns:
            What the code computes (S, *), undefined in rows left out, or None, with nothing done, if an observation or
            reward is not finite.

        Raises:
            ValueError: an array is too small.
            StaleWeights: the model's weights are no longer the code's; nothing has been done.
        """
        output = np.empty(*self._output)
        outcome = self._run(*self._fixed, first, last, now, only, output, R, s, a, r, z)
        if outcome == _STALE:
            raise StaleWeights
        return None if outcome else output


def aligned(count: int) -> np.ndarray:
    """Zeros (count,) float32 that start on a cache line."""
    memory = np.zeros(count + _LINE, np.float32)
    start = -memory.ctypes.data // memory.itemsize % _LINE
    return memory[start : start + count]


def probe(tensors: tuple[Tensor, ...]) -> np.ndarray:
    """Addresses of the first and the middle entry of each tensor, and their bits: `Code.probes`.

    An update of the weights by any optimiser or a loaded checkpoint changes them. Torch's own version counters would
    not do: fused optimisers do not move them.
    """
    found: list[tuple[int, Any]] = []
    for tensor in tensors:
        bits = tensor.detach().view(-1).numpy().view(np.int32)
        for index in dict.fromkeys((0, bits.size // 2)):
            found.append((bits.ctypes.data + 4 * index, bits[index]))
    return np.array(found, np.int64).reshape(-1, 2)
