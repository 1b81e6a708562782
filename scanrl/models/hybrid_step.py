"""The step of a `HybridModel` in C: one program for the planner, run where a segment begins, one for the executor.

Symbols: `S` streams, `c` steps of a segment, `D` width, `A` action size. What the two programs compute is what
`HybridModel.feed` computes; this file says when each of them runs, for every stream by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from scanrl.kernels.native_step import Code, NativeStep
from scanrl.models.account_step import AccountCode, Accounts, lower_account
from scanrl.models.decision import lower_choice
from scanrl.models.planner import Account, Planner
from scanrl.nn import Head, ModelConfig, Stack, Tokens
from scanrl.nn.local import LocalConv, LocalLinear
from scanrl.nn.program import ALL, LAST, NoNativeStep, Program, Register, at
from scanrl.types import Spec

__all__ = ["HybridCode", "HybridStep", "lower_hybrid"]

_MOST = np.finfo(np.float32).max


class Lowered(Protocol):
    """What of a `HybridModel` becomes programs."""

    config: ModelConfig
    spec: Spec
    tokens: Tokens
    planner: Planner | None
    of_goal: nn.Linear
    goal_norm: nn.LayerNorm
    account: Account | None
    place: nn.Embedding
    stack: Stack
    norm: nn.LayerNorm
    head: Head
    chosen: Tensor
    longest: int

    @property
    def steps(self) -> int: ...
    @property
    def told(self) -> str: ...


class HybridCode(NamedTuple):
    """The programs of a model with sub-goals; immutable, and shared by all that run them."""

    planner: Code
    executor: Code
    length: int  # c
    return_scale: float
    width: int  # D: of the token that the planner hands over
    account: AccountCode | None  # what the planner is told of the segment before, besides its reward sum
    spec: Spec

    def begin(self, count: int) -> HybridStep:
        """`count` streams before their first step."""
        return HybridStep(self, count)


class HybridStep:
    """The state of `count` streams with sub-goals, with the methods of `NativeStep`.

    The token of a sub-goal is made once, by the weights of the step with which its segment begins.
    """

    def __init__(self, code: HybridCode, count: int) -> None:
        self.code, self.count = code, count
        self._planner, self._executor = NativeStep(code.planner, count), NativeStep(code.executor, count)
        self._place = np.zeros(count, np.int64)  # of the last step in its segment
        self._earned = np.zeros(count)  # since the segment began, raw units
        self._goal = np.zeros((count, code.width), np.float32)  # the token that the executor reads
        self._account = None if code.account is None else Accounts(code.account, code.spec, count)

    def load(self, code: HybridCode) -> None:
        """Goes on with other weights of the same programs."""
        self.code = code
        if self._account is not None and code.account is not None:
            self._account.load(code.account)
        self._planner.load(code.planner)
        self._executor.load(code.executor)

    def undo(self) -> Callable[[], None]:
        """What takes back the next step, if it is called before another one.

        A step within a segment writes to the accounts what only later steps read; another one works on a copy of them.
        """
        planner, executor = self._planner.undo(), self._executor.undo()
        own = self._place, self._earned, self._goal, self._account  # those are replaced and never written to

        def take_back() -> None:
            planner()
            executor()
            self._place, self._earned, self._goal, self._account = own

        return take_back

    def copy(self) -> HybridStep:
        """The same streams, which go on by themselves."""
        other = self.code.begin(self.count)
        other._planner, other._executor = self._planner.copy(), self._executor.copy()
        other._place, other._earned, other._goal = self._place, self._earned, self._goal
        if self._account is not None and other._account is not None:
            other._account.take(self._account)
        return other

    @property
    def nbytes(self) -> int:
        """Memory of all streams."""
        own = self._place.nbytes + self._earned.nbytes + self._goal.nbytes
        own += 0 if self._account is None else self._account.nbytes
        return self._planner.nbytes + self._executor.nbytes + own

    def __call__(
        self,
        first: np.ndarray,
        last: np.ndarray,
        now: np.ndarray,
        R: np.ndarray | None,
        s: np.ndarray,
        a: np.ndarray,
        r: np.ndarray,
    ) -> np.ndarray | None:
        """Moves all streams on by one step; arguments, result and errors are those of `NativeStep`."""
        length, place, earned = self.code.length, self._place + 1, self._earned + r
        begins = first | (place >= length) | (now % length == 0)
        if not np.count_nonzero(begins):
            outputs = self._executor(begins, self._place, place, None, s, a, r, self._goal)
            if outputs is not None:
                if self._account is not None:
                    self._account.close(~first, self._place, a, r)
                    self._account.open(place, s)
                self._place, self._earned = place, earned
            return outputs
        if not (np.isfinite(s).all() and np.isfinite(r).all()):
            return None  # found out before the planner moves
        take_back = self.undo()
        try:
            return self._begin(begins, first, now, s, a, r)
        except BaseException:  # also weights that changed between the two programs: both go back, and again
            take_back()
            raise

    def _begin(
        self, begins: np.ndarray, first: np.ndarray, now: np.ndarray, s: np.ndarray, a: np.ndarray, r: np.ndarray
    ) -> np.ndarray | None:
        """A step with which a segment begins in some of the rows."""
        last = self._place
        earned = np.where(first, 0.0, self._earned + r)
        scaled = np.clip(earned / self.code.return_scale, -_MOST, _MOST).astype(np.float32)
        place = np.where(begins, 0, last + 1)
        goals = self._planner(first, now, now, s=s, r=scaled, z=self._noted(first, place, s, a, r), only=begins)
        assert goals is not None  # what it reads is finite
        self._goal = np.where(begins[:, None], goals, self._goal)
        self._place, self._earned = place, np.where(begins, 0.0, earned)
        return self._executor(begins, last, self._place, None, s, a, r, self._goal)

    def _noted(
        self, first: np.ndarray, place: np.ndarray, s: np.ndarray, a: np.ndarray, r: np.ndarray
    ) -> np.ndarray | None:
        """Notes the last step and this one, at its `place`, and returns the accounts `(S, D)` of all segments so far;
        `None` where the planner is told of none."""
        if self._account is None:
            return None
        account = self._account.copy()
        account.close(~first, self._place, a, r)
        told = account(np.where(first, 0, self._place + 1))
        account.open(place, s)
        self._account = account
        return told


def lower_hybrid(model: Lowered, *, sample: bool) -> HybridCode:
    """One step of a policy for the C kernels, as `DecisionModel.lower`.

    Raises:
        NoNativeStep: a module has no such form.
    """
    planner, executor = _planner(model), _executor(model, sample)
    account = None if model.account is None else lower_account(model.account, model.tokens, model.told)
    sizes = model.steps, model.tokens.return_scale, model.config.width
    return HybridCode(planner, executor, *sizes, account, model.spec)


def _planner(model: Lowered) -> Code:
    """From scaled reward sum, index in the episode, account and observation to the token of the sub-goal `(S, D)`."""
    planner, tokens = model.planner, model.tokens
    if planner is None or planner.draw == "always":
        raise NoNativeStep("sub-goals that are drawn, or are none, have no native step")
    program = Program(planner.period, planner.period)
    x = program.register(model.config.width)
    with program.temporary():
        total, part = program.register(x.size), program.register(x.size)
        rows = [ALL, ALL, ALL] if planner.merged else [at(0), at(1), at(planner.period - 1)]
        parts = [total, part, part] if planner.merged else [total, total, total]
        pace = planner.pace_of(model.steps)
        first, others = planner.reward.bias + pace, torch.zeros_like(pace) if planner.merged else pace
        program.linear(_read(program, "r", 1, rows[0]), planner.reward.weight, first, rows[0], parts[0])
        # The flag of an episode's start is 1 at its first step and 0 behind: two rows of a table.
        flags = torch.stack([planner.new.weight[:, 0] + planner.new.bias, planner.new.bias]) + others
        program.table("time", flags, rows[1], parts[1])
        if planner.merged:
            program.add(part, total, ALL)
        if planner.account is not None:
            norm, linear = planner.account
            where, into = (ALL, part) if planner.merged else (at(2), total)
            told = program.norm(_read(program, "z", x.size, where), norm, where)
            program.linear(told, linear.weight, linear.bias + others, where, into)
            if planner.merged:
                program.add(part, total, ALL)
        mean, deviation = tokens.observation_mean.numpy(), tokens.observation_std.numpy()
        seen = program.read("s", len(mean), mean, deviation, rows[2])
        program.linear(seen, planner.observation.weight, planner.observation.bias + others, rows[2], parts[2])
        if planner.merged:
            program.add(part, total, ALL)
        program.copy(program.norm(total, planner.token_norm, ALL), x, ALL)
    hidden = program.norm(planner.stack.lower(program, x, LAST), planner.norm, LAST)
    size = model.config.subgoal_size  # of the moments, the mean
    goal = program.linear(hidden, planner.moments.weight[:size], planner.moments.bias[:size], LAST)
    token = program.linear(goal, model.of_goal.weight, model.of_goal.bias, LAST)
    program.write(program.norm(token, model.goal_norm, LAST))
    return program.finish(_tensors(planner, model.of_goal, model.goal_norm, tokens))


def _executor(model: Lowered, sample: bool) -> Code:
    """From the sub-goal's token and the steps of the segment to the action; times are places in the segment."""
    config, tokens = model.config, model.tokens
    prefix = config.subgoal_prefix
    # Such mixers go by the number of the token, which with a single token in front no longer tells its letter.
    if prefix and any(isinstance(m, LocalConv | LocalLinear) and m.places > 1 for m in model.stack.modules()):
        raise NoNativeStep("modal mixers behind a sub-goal that comes once have no native step")
    others = 0 if config.merged else 1  # tokens before the observation
    program = Program(config.period + others, config.read_at + 1 + others, int(prefix))
    x = tokens.lower(program, others)
    with program.temporary():
        program.add(program.table("time", model.place.weight, ALL), x, ALL)
        if config.merged:
            program.add(_read(program, "z", x.size, ALL), x, ALL)
        else:
            program.copy(_read(program, "z", x.size, at(0)), x, at(0))
    hidden = program.norm(model.stack.lower(program, x, LAST), model.norm, LAST)
    lower_choice(program, hidden, model.head, tokens, sample=sample)
    chosen = [model.chosen] if model.config.subgoal_choices else []  # where a segment ends depends on it
    return program.finish([*_tensors(tokens, model.place, model.stack, model.norm, model.head), *chosen])


def _read(program: Program, letter: str, size: int, rows: int) -> Register:
    """A letter as it is given."""
    return program.read(letter, size, np.zeros(size, np.float32), np.ones(size, np.float32), rows)


def _tensors(*parts: nn.Module) -> list[Tensor]:
    return [tensor for part in parts for tensor in (*part.parameters(), *part.buffers())]
