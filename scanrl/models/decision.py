"""`DecisionModel`: tokens, a stack of mixers, a head. Every paper's model is this class with another config.

Symbols: `B` batch, `T` steps, `M` tokens per step, `L = T*M` tokens, `D` width, `A` action size.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from scanrl.batch import Batch
from scanrl.kernels.native_step import Code
from scanrl.nn import HEADS, MIXERS, Head, ModelConfig, PartsHead, ReturnHead, Stack, State, Tokens, map_state
from scanrl.nn.mamba import Mamba
from scanrl.nn.program import LAST, NoNativeStep, Program, Register
from scanrl.stats import Stats
from scanrl.types import DataError, Spec

__all__ = ["DecisionModel", "head_for", "initialise", "lower_choice"]

AUTOMATIC = {"auto": "regression", "auto_entropy": "entropy_gaussian"}
"""The head for continuous actions; for discrete ones all take `categorical`."""

WEIGHT_STD = 0.02  # GPT-2's initialisation, which every model of this family inherited


class MergedState(NamedTuple):
    """Of a model with merged tokens: its stack's state, and the sum of what its next token has so far."""

    mixers: State
    tail: Tensor  # (B, D)


class DecisionModel(nn.Module):
    """A policy as a sequence model: tokens of `(R, s, a, r)` in, an action at every `s` (or the R right behind it) out.

    `forward` and `loss` read a whole batch of windows; `feed` a few tokens of every stream. Both make the same tokens
    and run the same mixers, so acting step by step equals the training forward on the same history.

    Args:
        config: the shape of the network.
        spec: shapes and kinds of observations and actions.
        stats: statistics of the training data, applied in `Tokens`.
        seed: seed of the initial weights.

    Raises:
        DataError: if the config names an unknown mixer, or a head that does not serve the spec's kind of action.
    """

    def __init__(self, config: ModelConfig, spec: Spec, stats: Stats, seed: int = 0) -> None:
        super().__init__()
        self.config, self.spec, self.stats = config, spec, stats
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.tokens = Tokens(config, spec, stats)
            self.stack = Stack(config, MIXERS)
            self.norm = nn.LayerNorm(config.width)
            self.head = head_for(config, spec)
            self.returns = ReturnHead(config, spec, stats) if config.returns == "predicted" else None
            self.extras = _reference_extras(config, spec) if config.reference_extras else None
            # The token embeddings keep torch's initialisation, as in Decision Transformer's code. With a bias of zero,
            # LayerNorm(w R) is the same for every positive return-to-go R: the model would start blind to its target.
            for part in (self.stack, self.norm, self.head, *([self.returns] if self.returns else [])):
                part.apply(initialise)

    def forward(
        self, batch: Batch, state: State | None = None, half: torch.dtype | None = None
    ) -> tuple[Tensor, State]:
        """Hidden states where the actions are read `(B, T, D)`, and the state after the batch's last token.

        With `half`, the operands of the stack's matrix products take that dtype. Tokens and head do not: a return-to-go
        or an action with three digits would be another one.
        """
        hidden, after = self._run(batch, state, half)
        return self._at(hidden, self.config.read_at), after

    def loss(self, batch: Batch, half: torch.dtype | None = None, final_weight: float = 0.0) -> Tensor:
        """The head's loss, averaged over valid steps only, and that of predicted returns.

        Args:
            batch: windows.
            half: as in `forward`.
            final_weight: weight of the same loss of the head over the last steps of episodes alone, added to it. Where
                one step of hundreds needs the memory, a plain mean hardly asks for it.
        """
        return self.loss_from(None, batch, half, final_weight)[0]

    def loss_from(
        self, state: State | None, batch: Batch, half: torch.dtype | None = None, final_weight: float = 0.0
    ) -> tuple[Tensor, State]:
        """`loss` of rows that go on from `state`, and the state after them.

        It is of no use for a row that is padded: the padding is in it.
        """
        everywhere, after = self._run(batch, state, half)
        hidden = self._at(everywhere, self.config.read_at)
        actions = self.tokens.scale_actions(batch.actions)
        loss = self.head.loss(hidden, actions, batch.mask)
        if final_weight:
            loss = loss + final_weight * self.head.loss(hidden, actions, batch.finals())
        if self.returns is not None:
            loss = loss + self._return_loss(self.returns, everywhere, hidden, batch)
        return loss, after

    def predicted_returns(self, batch: Batch) -> Tensor:
        """Predicted returns-to-go in raw units at every step of a batch, `(B, T)`; at a step, its own R is not seen."""
        hidden, _ = self._run(batch)
        place = self.config.layout.index("s")
        return self.predict_return(hidden[:, place :: self.config.period])

    def actions(self, batch: Batch) -> Tensor:
        """Predicted actions in environment units for every step of a batch, `(B, T, A)` or `(B, T)`."""
        hidden, _ = self(batch)
        flat = self.head.act(hidden.flatten(0, 1))
        return self.tokens.unscale_actions(flat).unflatten(0, batch.rewards.shape)

    def feed(self, tokens: Sequence[tuple[str, Tensor]], timesteps: Tensor, state: State) -> tuple[Tensor, State]:
        """Some tokens of one step of every stream.

        Args:
            tokens: letters with their raw values `(B, ...)`, in the order of the layout; at least one.
            timesteps: index of the step within its episode `(B,)`.
            state: what the streams carry.

        Returns:
            The stack's output `(B, D)` at the last of the tokens, and the state after it.
        """
        if self.config.merged:
            return self._feed_merged(tokens, timesteps, cast(MergedState, state))
        # As one chunk: two tokens cost little more than one, since what costs is the number of calls.
        chunk = torch.stack([self.tokens.embed(letter, values, timesteps) for letter, values in tokens], 1)
        hidden, state = self.stack(chunk, state)
        return hidden[:, -1], state

    def decide(self, hidden: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Actions in environment units from the stack's output `(B, D)` where they are read."""
        return self.tokens.unscale_actions(self.head.act(self.norm(hidden), generator))

    def predict_return(self, hidden: Tensor) -> Tensor:
        """Returns-to-go `(...)` in raw units from the stack's output `(..., D)` at an observation token."""
        assert self.returns is not None
        return self.returns(self.norm(hidden)) * self.stats.return_scale

    def initial_state(self, batch: int) -> State:
        """The state of `batch` streams before their first token."""
        mixers = self.stack.initial_state(batch)
        weight = self.norm.weight
        return MergedState(mixers, weight.new_zeros(batch, len(weight))) if self.config.merged else mixers

    def training_state(self, batch: int) -> State:
        """The same for rows of whole episodes, in the precision of the weights: training carries it some hundred
        steps, where acting may carry it a million."""
        kind = self.norm.weight.dtype

        def narrowed(x: Tensor) -> Tensor:
            if x.is_floating_point() or x.is_complex():
                return x.to(kind.to_complex() if x.is_complex() else kind, copy=True)
            return x.clone()

        return map_state(narrowed, self.initial_state(batch))

    def lower(self, *, sample: bool = False) -> Code:
        """One step of a policy for the C kernels: `feed` of the tail and the head, then `decide`.

        Weights are copied; dropout is never part of it. With `sample` it gives what the head chooses from.

        Raises:
            NoNativeStep: a module has no such form.
        """
        if self.returns is not None:
            raise NoNativeStep("the step of a model that predicts its return is not one program")
        program = Program(self.config.period, self.config.read_at + 1)
        hidden = self.stack.lower(program, self.tokens.lower(program), LAST)
        lower_choice(program, program.norm(hidden, self.norm, LAST), self.head, self.tokens, sample=sample)
        used = (self.tokens, self.stack, self.norm, self.head)
        return program.finish([t for part in used for t in (*part.parameters(), *part.buffers())])

    def _run(self, batch: Batch, state: State | None = None, half: torch.dtype | None = None) -> tuple[Tensor, State]:
        """The stack's output `(B, T*M, D)`, and the state after it."""
        mixers, tail = state, None
        if self.config.merged and state is not None:
            mixers, tail = cast(MergedState, state)
        tokens = self.tokens(batch, tail)
        with torch.autocast(tokens.device.type, half) if half else nullcontext():
            hidden, after = self.stack(tokens, mixers)
        if self.config.merged:
            after = MergedState(after, self.tokens.last_tail(batch))
        return hidden.to(tokens.dtype), after

    def _at(self, hidden: Tensor, place: int) -> Tensor:
        """Hidden states `(B, T, D)` at one token of each step."""
        return self.norm(hidden[:, place :: self.config.period])

    def _return_loss(self, head: ReturnHead, everywhere: Tensor, hidden: Tensor, batch: Batch) -> Tensor:
        """Of predicted returns and observations, from the stack's output and from where actions are read."""
        seen = self._at(everywhere, self.config.layout.index("s"))
        loss = head.loss(seen, batch.returns_to_go / self.stats.return_scale, batch.mask)
        if head.state is None:
            return loss
        outputs = self.head.linear(hidden)
        acted = self.head.choose(outputs) if self.head.kind == "continuous" else outputs
        observations = self.tokens.scale_observations(batch.observations)
        return loss + head.state_loss(hidden, acted, observations, batch.mask & ~batch.finals())

    def parameter_count(self) -> int:
        """Number of trained scalars."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    def _feed_merged(
        self, tokens: Sequence[tuple[str, Tensor]], timesteps: Tensor, state: MergedState
    ) -> tuple[Tensor, State]:
        """A tail only adds to the token that the next head completes; so acting needs no rule of its own."""
        total = state.tail + self.tokens.summed(tokens, timesteps)
        if all(letter != "s" for letter, _ in tokens):
            return total, MergedState(state.mixers, total)
        hidden, mixers = self.stack.step(self.tokens.merge(total, timesteps), state.mixers)
        return hidden, MergedState(mixers, torch.zeros_like(total))


def lower_choice(program: Program, hidden: Register, head: Head, tokens: Tokens, *, sample: bool) -> None:
    """Ends a program with the action in environment units, or with what the head draws from.

    Raises:
        NoNativeStep: the head has no such form.
    """
    actions = head.lower_outputs(program, hidden) if sample else head.lower(program, hidden)
    if actions is not None:
        if not sample:
            tokens.lower_unscale(program, actions)
        program.write(actions)


def head_for(config: ModelConfig, spec: Spec) -> Head:
    """The action head that a config asks for.

    Raises:
        DataError: it does not serve the spec's kind of action.
    """
    name = config.head
    if spec.action_parts:
        real = any(not part.choices for part in spec.action_parts)
        wanted = (AUTOMATIC[name] if real else "categorical") if name in AUTOMATIC else name
        if HEADS[wanted].kind != ("continuous" if real else "discrete"):
            raise DataError(f"model.head: expected a head for {spec.action_kind} actions, got {name!r}")
        return PartsHead(config.width, spec.action_parts, HEADS[wanted])
    if name in AUTOMATIC:
        name = AUTOMATIC[name] if spec.action_kind == "continuous" else "categorical"
    if HEADS[name].kind != spec.action_kind:
        raise DataError(f"model.head: expected a head for {spec.action_kind} actions, got {name!r}")
    return HEADS[name](config.width, spec.action_size)  # type: ignore[call-arg]  # every head takes (width, size)


def _reference_extras(config: ModelConfig, spec: Spec) -> nn.ModuleDict:
    """The released Decision Transformer's idle parts: state and return heads, and a one-row token table."""
    return nn.ModuleDict(
        {
            "predict_state": nn.Linear(config.width, spec.observation_size),
            "predict_return": nn.Linear(config.width, 1),
            "table": nn.Embedding(1, config.width),
        }
    )


def initialise(module: nn.Module) -> None:
    """GPT-2's initialisation of linear layers and tables; Mamba's step sizes are then set as its config says."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=WEIGHT_STD)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    if isinstance(module, Mamba):  # parents come after their children
        module.reset_dt()
