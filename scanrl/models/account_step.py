"""What the planner of a `HybridModel` is told of a segment, kept while streams are in it: the native form of `Account`.

Symbols: `S` streams, `c` steps of a segment, `D` width.
"""

from __future__ import annotations

from copy import copy
from typing import NamedTuple

import numpy as np

from scanrl.kernels.native_step import Code, NativeStep
from scanrl.models.planner import Account
from scanrl.nn import Tokens
from scanrl.nn.program import ALL, Program
from scanrl.types import Spec

__all__ = ["AccountCode", "Accounts", "lower_account"]


class AccountCode(NamedTuple):
    """How steps of a segment are embedded, and the vectors of their places, see `Account`."""

    embed: Code  # of one step, at its place
    places: np.ndarray  # (c, D)


class Accounts:
    """The steps of the segments that `count` streams are in, and the accounts of them.

    Steps are kept as they are and embedded together when a segment ends, by the weights of the step after it.
    """

    def __init__(self, code: AccountCode, spec: Spec, count: int) -> None:
        longest = len(code.places)
        discrete = spec.action_kind == "discrete"
        shape = () if discrete else (spec.action_size,)
        self._s = np.zeros((count, longest, *spec.observation_shape), np.float32)
        self._a = np.zeros((count, longest, *shape), np.int64 if discrete else np.float32)
        self._r = np.zeros((count, longest), np.float32)
        self._rows, self._steps = np.arange(count), np.arange(longest)
        self._now = np.tile(self._steps, count)
        self._places = code.places
        self._embed = NativeStep(code.embed, len(self._now))

    def load(self, code: AccountCode) -> None:
        """Goes on with other weights."""
        self._places = code.places
        self._embed.load(code.embed)

    def copy(self) -> Accounts:
        """The same steps, which go on by themselves, embedded by the same memory: for one of the two to be dropped."""
        other = copy(self)
        other.take(self)
        return other

    def take(self, other: Accounts) -> None:
        """Goes on from the steps of others."""
        self._s, self._a, self._r = other._s.copy(), other._a.copy(), other._r.copy()

    @property
    def nbytes(self) -> int:
        """Memory of all streams."""
        return self._s.nbytes + self._a.nbytes + self._r.nbytes

    def close(self, rows: np.ndarray, places: np.ndarray, a: np.ndarray, r: np.ndarray) -> None:
        """Notes what came of the steps at `places` `(S,)`, in `rows` `(S,)` bool."""
        at = self._rows[rows], places[rows]
        self._a[at], self._r[at] = a[rows], r[rows]

    def open(self, places: np.ndarray, s: np.ndarray) -> None:
        """Notes what is seen at the beginning of the steps at `places`."""
        self._s[self._rows, places] = s

    def __call__(self, steps: np.ndarray) -> np.ndarray:
        """The accounts `(S, D)` of the first `steps` `(S,)` of every segment."""
        there = self._steps < steps[:, None]
        s, a, r = (x.reshape(-1, *x.shape[2:]) for x in (self._s, self._a, self._r))
        terms = self._embed(np.zeros(len(s), bool), self._now, self._now, s=s, a=a, r=r, only=there.reshape(-1))
        assert terms is not None  # all of it has been read before
        terms = np.where(there[..., None], terms.reshape(*there.shape, -1), np.float32(0))  # the others are undefined
        return (terms * self._places).sum(1)


def lower_account(account: Account, tokens: Tokens, letters: str) -> AccountCode:
    """From what was seen, done and earned in a step, as far as `letters` says, to its embedding `(D,)`.

    Raises:
        NoNativeStep: an action of several parts.
    """
    program = Program(1, 1)
    total = program.register(tokens.width)
    with program.temporary():
        part = program.register(total.size)
        for number, letter in enumerate(letters):
            tokens.lower_raw(program, letter, part if number else total, ALL)
            if number:
                program.add(part, total, ALL)
    program.write(total)
    sources = [*tokens.parameters(), *tokens.buffers(), *account.parameters()]
    return AccountCode(program.finish(sources), account.place.weight.detach().numpy().copy())
