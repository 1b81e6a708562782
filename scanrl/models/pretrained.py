"""`PretrainedModel`: the Decision-Pretrained Transformer. A set of transitions of a task, in any order, tells what the
task is; behind them stands nothing but a state, for which the model gives the action that is best in that task.

Symbols: `B` batch, `T` transitions of a context, `D` width, `O`/`A` observation/action shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn

from scanrl.batch import Batch
from scanrl.kernels.native_step import Code
from scanrl.models.decision import head_for
from scanrl.nn import MIXERS, ModelConfig, Stack, State, Tokens
from scanrl.nn.program import NoNativeStep
from scanrl.stats import Stats
from scanrl.types import DataError, Spec

__all__ = ["PretrainedModel"]


class PretrainedModel(nn.Module):
    """The optimal action of a query state from examples of its task.

    The first token is the query state, the others are transitions `(s, a, s', r)`: linear maps of their parts added up,
    which is one linear map of them side by side; what a token does not have counts as zeros. The action is read at
    every token: at the query from nothing but it, at the `t`-th transition from `t` of them. There is no state to
    carry, since everything is read in the light of the query.

    Args:
        config: the shape of the network; `query` is set. `context` is `T` at most, and `time_embedding` gives every
            place of the sequence an embedding of its own.
        spec: shapes and kinds of observations and actions.
        stats: statistics of the training data.
        seed: seed of the initial weights.

    Reference: Lee et al. 2023 (Decision-Pretrained Transformer), arXiv 2306.14892.
    """

    def __init__(self, config: ModelConfig, spec: Spec, stats: Stats, seed: int = 0) -> None:
        super().__init__()
        if spec.is_image:
            raise DataError("model.query: expected false with pictures, got true")
        self.config, self.spec, self.stats = config, spec, stats
        # Attention reaches from the last transition back to the query.
        inner = replace(config, context=config.context + 1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.tokens = Tokens(replace(config, query=False, layout="sar", time_embedding=False), spec, stats)
            self.following = nn.Linear(spec.observation_size, config.width, bias=False)
            self.place = nn.Embedding(config.context + 1, config.width) if config.time_embedding else None
            self.stack = Stack(inner, MIXERS)
            self.norm = nn.LayerNorm(config.width)
            self.head = head_for(config, spec)
            # Torch's initialisation stays: with GPT-2's small weights, in so narrow a network, attention is even for
            # thousands of updates, and the few examples with a reward are lost among the others.

    def forward(self, batch: Batch, half: torch.dtype | None = None) -> Tensor:
        """Hidden states `(B, T + 1, D)` where actions are read: entry `t` knows `t` transitions.

        With `half`, the operands of the stack's matrix products take that dtype.
        """
        tokens = self._embed(batch)
        with torch.autocast(tokens.device.type, half) if half else nullcontext():
            hidden, _ = self.stack(tokens)
        return self.norm(hidden.to(tokens.dtype))

    def loss(self, batch: Batch, half: torch.dtype | None = None, final_weight: float = 0.0) -> Tensor:
        """Mean of the head's loss towards the optimal action of the query, over every context length there is.

        Raises:
            DataError: the batch has no optimal actions, or `final_weight` is not 0.
        """
        if final_weight:
            raise DataError(f"train.final_weight: expected 0 for a model with a query, got {final_weight}")
        if not batch.targets.numel():
            raise DataError("batch: targets: expected the optimal actions of queries, got none")
        mask = torch.cat([torch.ones_like(batch.mask[:, :1]), batch.mask], 1)
        targets = batch.targets[:, None].expand(*mask.shape, *batch.targets.shape[1:])
        return self.head.loss(self(batch, half), self.tokens.scale_actions(targets), mask)

    def loss_from(self, state: State | None, batch: Batch, half: torch.dtype | None = None) -> tuple[Tensor, State]:
        """`loss`; there is no state to go on from."""
        assert not state
        return self.loss(batch, half), ()

    def actions(self, batch: Batch) -> Tensor:
        """Actions in environment units at every context length from 0 on, `(B, T + 1, A)` or `(B, T + 1)`."""
        hidden = self(batch)
        found = self.tokens.unscale_actions(self.head.act(hidden.flatten(0, 1)))
        return found.unflatten(0, hidden.shape[:2])

    def decide(self, hidden: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Actions in environment units from what `forward` gives at one context length, `(B, D)`."""
        return self.tokens.unscale_actions(self.head.act(hidden, generator))

    def initial_state(self, batch: int) -> State:
        """Nothing: it carries no state."""
        return ()

    def training_state(self, batch: int) -> State:
        """Likewise."""
        return ()

    def feed(self, tokens: Sequence[tuple[str, Tensor]], timesteps: Tensor, state: State) -> tuple[Tensor, State]:
        """Raises TypeError: a model with a query reads its context anew for each."""
        raise TypeError("a model with a query is not fed step by step")

    def lower(self, *, sample: bool = False) -> Code:
        """Raises NoNativeStep: every step reads the whole context."""
        raise NoNativeStep("a model with a query has no native step")

    def parameter_count(self) -> int:
        """Number of trained scalars."""
        return sum(p.numel() for p in self.parameters())

    def _embed(self, batch: Batch) -> Tensor:
        """Tokens `(B, T + 1, D)`, the query first."""
        start = torch.zeros_like(batch.timesteps[:, :1])
        query = self.tokens.summed([("s", batch.queries[:, None])], start)
        parts = [("s", batch.observations), ("a", batch.actions), ("r", batch.rewards)]
        following = self.following(self.tokens.scale_observations(batch.next_observations))
        seen = self.tokens.summed(parts, batch.timesteps) + following * batch.followed[..., None]
        tokens = torch.cat([query, seen], 1)
        if self.place is not None:
            tokens = tokens + self.place.weight[: tokens.shape[1]]
        return self.tokens.dropout(self.tokens.norm(tokens))
