"""`Mixer`: a causal map of a token sequence in two forms that must agree, and `Stack`, a pattern of them.

Symbols: `B` batch, `L` tokens, `D` width. Sequences are `(B, L, D)`.

A mixer's state is a (possibly nested, possibly empty) tuple of tensors whose first axis is the batch, so that any row
can be restarted without knowing the mixer (`replace_rows`). Nothing is ever updated in place.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from scanrl.kernels import mlp
from scanrl.nn.config import LOCAL_MIXERS, Activation, ModelConfig
from scanrl.nn.program import ALL, NoNativeStep, Program, Register
from scanrl.types import DataError

__all__ = [
    "MLP",
    "Mixer",
    "Stack",
    "State",
    "Term",
    "carried_dtype",
    "map_state",
    "parse_pattern",
    "replace_rows",
]

State = tuple[Any, ...]
"""A tree of tensors; `()` for a mixer without memory."""

Residual = Literal["pre", "post", "none"]


class Mixer(nn.Module, ABC):
    """A causal token mixer of `(B, L, D) -> (B, L, D)`.

    Laws, tested for every member of `MIXERS`: `forward` over a sequence equals `step` over its tokens and `forward`
    over its parts with the state carried; no output depends on a later input; gradients reach every parameter.
    """

    undecayed: tuple[str, ...] = ()
    """Names of its own parameters that weight decay must not pull to zero."""

    @abstractmethod
    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Outputs `(B, L, D)` of a chunk, and the state after it; `None` starts from `initial_state`."""

    @abstractmethod
    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Output `(B, D)` of one token, and the new state."""

    @abstractmethod
    def initial_state(self, batch: int) -> State:
        """The state before the first token, for `batch` rows."""

    def lower(self, program: Program, x: Register, rows: int) -> Register:
        """Appends `step` for all tokens to the program; outputs are wanted of `rows` only.

        Raises:
            NoNativeStep: it has no such form; the policy then steps in torch.
        """
        raise NoNativeStep(f"{type(self).__name__} has no native step")


def map_state(function: Callable[..., Tensor], state: State, *others: State) -> State:
    """The tree of `function(leaf, ...)` over the tensors of trees of the same shape."""
    parts = [
        function(*leaves) if isinstance(leaves[0], Tensor) else map_state(function, *leaves)
        for leaves in zip(state, *others, strict=True)
    ]
    # A NamedTuple takes its fields one by one, a plain tuple all at once.
    return tuple(parts) if type(state) is tuple else type(state)(*parts)


def replace_rows(state: State, rows: Tensor, other: State) -> State:
    """`other` where `rows` `(B,)` bool is true, `state` elsewhere, through the whole tree."""
    return map_state(lambda a, b: torch.where(rows.view(-1, *(1,) * (a.ndim - 1)), b, a), state, other)


def carried_dtype(weight: Tensor) -> torch.dtype:
    """What a state space on the device of `weight` carries its state in when it acts.

    It may live for a million tokens, in which float32 loses up to a hundredth of it.
    """
    return torch.float32 if weight.device.type == "mps" else torch.float64  # mps has no float64


class MLP(Mixer):
    """Position-wise `W2 act(W1 x)` with hidden width `mlp_ratio * D`; a mixer whose state is empty."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation: Activation = config.activation
        self.up = nn.Linear(config.width, config.mlp_ratio * config.width)
        self.down = nn.Linear(config.mlp_ratio * config.width, config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        up, down = self.up, self.down
        return self.dropout(mlp(x, up.weight, up.bias, self.activation, down.weight, down.bias)), ()

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        return self.forward(x)

    def initial_state(self, batch: int) -> State:
        return ()

    def lower(self, program: Program, x: Register, rows: int) -> Register:
        hidden = program.linear(x, self.up.weight, self.up.bias, rows)
        program.activate(hidden, self.activation, rows)
        return program.linear(hidden, self.down.weight, self.down.bias, rows)


class Term(NamedTuple):
    """One mixer of a parsed pattern. `slot` is its place, `group.position`, the same in every repeat of the group."""

    name: str
    residual: Residual
    slot: str


def parse_pattern(pattern: str, known: tuple[str, ...]) -> list[Term]:
    """The terms of `"(modal_conv mamba:none)*3 mlp"`, repeats unrolled.

    Raises:
        DataError: if the text does not parse or names no member of `known` (the nearest one is given).
    """
    terms: list[Term] = []
    rest, groups = pattern.strip(), 0
    while rest:
        found = re.match(r"(?:\(([^()]*)\)(?:\*(\d+))?|([\w:]+)(?:\*(\d+))?)(?:\s+|$)", rest)
        if not found:
            raise DataError(f"model.pattern: expected names and (groups)*N, got {rest!r}")
        group, group_count, name, name_count = found.groups()
        words = group.split() if group is not None else [name]
        count = int(group_count or name_count or 1)
        if not words or not count:
            raise DataError(
                f"model.pattern: expected groups with names in them, at least once, got {found[0].strip()!r}"
            )
        for _ in range(count):
            terms += [_term(word, f"{groups}.{position}", known) for position, word in enumerate(words)]
        rest, groups = rest[found.end() :], groups + 1
    if not terms:
        raise DataError("model.pattern: expected at least one mixer, got nothing")
    return terms


def _term(word: str, slot: str, known: tuple[str, ...]) -> Term:
    name, _, residual = word.partition(":")
    if name not in known:
        near = get_close_matches(name, known, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise DataError(f"model.pattern: expected one of {', '.join(known)}, got {name!r}{hint}")
    if residual not in ("", "pre", "post", "none"):
        raise DataError(f"model.pattern: {word}: expected residual pre, post or none, got {residual!r}")
    return Term(name, cast(Residual, residual or "pre"), slot)


class Stack(Mixer):
    """Mixers one after another, each behind a LayerNorm and (unless marked) inside a residual.

    `x + f(LN(x))` for `pre`, `LN(x) + f(LN(x))` for `post`, `f(LN(x))` for `none`.
    """

    def __init__(self, config: ModelConfig, mixers: dict[str, Any]) -> None:
        super().__init__()
        terms = parse_pattern(config.pattern, tuple(mixers))
        self.residuals: list[Residual] = [term.residual for term in terms]
        # A shared module is one used several times; `mixer_of` and `norm_of` say which serves which layer.
        frozen = [config.frozen_shared_mixer and term.name in LOCAL_MIXERS for term in terms]
        owners = [term.slot if still else index for index, (term, still) in enumerate(zip(terms, frozen, strict=True))]
        distinct = list(dict.fromkeys(owners))
        self.mixer_of = [distinct.index(owner) for owner in owners]
        self.mixers = nn.ModuleList(mixers[terms[owners.index(owner)].name](config) for owner in distinct)
        for index, still in zip(self.mixer_of, frozen, strict=True):
            self.mixers[index].requires_grad_(not still)
        if config.frozen_shared_mixer and not any(frozen):
            expected = f"one of {', '.join(LOCAL_MIXERS)} in the pattern"
            raise DataError(f"model.frozen_shared_mixer: expected {expected}, got {config.pattern!r}")
        slots = list(dict.fromkeys(term.slot for term in terms))
        self.norm_of = [slots.index(t.slot) for t in terms] if config.share_norms else list(range(len(terms)))
        self.norms = nn.ModuleList(nn.LayerNorm(config.width) for _ in range(max(self.norm_of) + 1))

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        after: list[State] = []
        for index, (mixer, norm, residual) in enumerate(self._layers()):
            normed = norm(x)
            y, mixer_state = mixer(normed, None if state is None else state[index])
            x = _join(x, normed, y, residual)
            after.append(mixer_state)
        return x, tuple(after)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        after: list[State] = []
        for (mixer, norm, residual), mixer_state in zip(self._layers(), state, strict=True):
            normed = norm(x)
            y, mixer_state = mixer.step(normed, mixer_state)
            x = _join(x, normed, y, residual)
            after.append(mixer_state)
        return x, tuple(after)

    def initial_state(self, batch: int) -> State:
        return tuple(mixer.initial_state(batch) for mixer, _, _ in self._layers())

    def lower(self, program: Program, x: Register, rows: int) -> Register:
        """As `Mixer.lower`; the result replaces x."""
        # Behind the last mixer that remembers anything, tokens whose output nobody wants need no work.
        final = max((i for i, (mixer, _, _) in enumerate(self._layers()) if mixer.initial_state(1)), default=-1)
        for index, (mixer, norm, residual) in enumerate(self._layers()):
            reads, gives = (rows if index > final else ALL), (rows if index >= final else ALL)
            with program.temporary():
                normed = program.norm(x, cast(nn.LayerNorm, norm), reads)
                y = mixer.lower(program, normed, gives)
                if residual != "pre":
                    program.copy(y if residual == "none" else normed, x, gives)
                if residual != "none":
                    program.add(y, x, gives)
        return x

    def _layers(self) -> Iterator[tuple[Mixer, nn.Module, Residual]]:
        for mixer, norm, residual in zip(self.mixer_of, self.norm_of, self.residuals, strict=True):
            yield cast(Mixer, self.mixers[mixer]), self.norms[norm], residual


def _join(x: Tensor, normed: Tensor, y: Tensor, residual: Residual) -> Tensor:
    if residual == "none":
        return y
    return (x if residual == "pre" else normed) + y


def uniform_bound(fan_in: int) -> float:
    """Half-width of torch's default uniform initialisation of a convolution."""
    return 1.0 / math.sqrt(fan_in)
