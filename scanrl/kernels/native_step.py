"""The step of a whole policy in C on the CPU: its code, and the streams that it runs for.

`S` streams, `M` tokens per step. The code is written by the modules of a model (`scanrl.nn.program`); `csrc/step.h`
says what each instruction does. Everything is float32.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from scanrl.kernels import native

__all__ = ["LETTERS", "Code", "NativeStep", "StaleWeights", "aligned", "probe"]

LETTERS = "Rsar"
"""The inputs of a step, in the order of `NativeStep`'s arguments."""

_LARGE = 1 << 23  # multiplications of one call from which a second thread is worth waking
_STALE = 1  # what the extension says of weights that changed, as in csrc/step.c
_LINE = 16  # floats of a cache line: where arrays start


class Code(NamedTuple):
    """A program with its weights; immutable, and shared by all that run it."""

    instructions: np.ndarray  # (n, 16) int64: number, rows, operands
    weights: np.ndarray  # float32
    places: int  # M
    head: int  # tokens that are known before acting
    row_size: int  # floats of registers per token
    state_size: int  # floats per stream
    output_shape: tuple[int, ...]  # per stream
    output_kind: type[np.generic]  # float32 or int64
    probes: np.ndarray  # (n, 2) int64: addresses in the model, and the bits that stood there
    sources: tuple[Tensor, ...]  # what the probes look at, kept alive


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
        self.state = aligned(count * code.state_size)
        self._scratch = aligned(threads * block * code.places * code.row_size)
        width = max(int(np.prod(code.output_shape)), 1)
        self._integers = (isa.number, threads, block, code.places, code.head, code.row_size, code.state_size, width)
        self._run = native.module().step
        self._output = (count, *code.output_shape), code.output_kind
        self.load(code)

    def load(self, code: Code) -> None:
        """Goes on with other weights of the same program."""
        self.code = code
        self._fixed = (*self._integers, code.instructions, code.weights, code.probes, self._scratch, self.state)

    def __call__(
        self,
        first: np.ndarray,
        steps: np.ndarray,
        R: np.ndarray | None = None,
        s: np.ndarray | None = None,
        a: np.ndarray | None = None,
        r: np.ndarray | None = None,
    ) -> np.ndarray | None:
        """Moves all streams on by one step. Arrays are contiguous; an input that the program does not read may be None.

        Args:
            first: (S,) bool: rows that start; they forget everything and get no tail tokens.
            steps: (S,) int64: index of the last step in its episode.
            R: (S,) float32: return-to-go of the step to which its token belongs.
            s: (S, *O) float32: observations.
            a: (S, A) float32 or (S,) int64: last actions.
            r: (S,) float32: rewards of the last actions.

        Returns:
            What the code computes (S, *), or None, with nothing done, if an observation or reward is not finite.

        Raises:
            ValueError: an array is too small.
            StaleWeights: the model's weights are no longer the code's; nothing has been done.
        """
        output = np.empty(*self._output)
        outcome = self._run(*self._fixed, first, steps, output, R, s, a, r)
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
