"""`Planner`: the half of Decision Mamba-Hybrid that reads the long history, one sub-goal for every segment.

Symbols: `B` batch, `S` segments of a row, `D` width, `Z` size of a sub-goal, `c` steps of a segment.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from scanrl.nn import MIXERS, ModelConfig, Stack
from scanrl.types import Spec

__all__ = ["Account", "Planner"]

LOG_STD_MIN, LOG_STD_MAX = -5.0, 2.0
LOG_STD_START = -2.0
DRAWS = 1024
LAYOUTS = {1: "s", 3: "sar", 4: "Rsar"}  # of as many letters as a segment has tokens, for mixers that count them


class Planner(nn.Module):
    """From reward sums, episode starts and observations to sub-goals."""

    def __init__(self, config: ModelConfig, spec: Spec) -> None:
        super().__init__()
        width, size = config.width, config.subgoal_size
        self.merged, self.draw = config.planner_tokens == "merged", config.subgoal_draw
        self.choices = config.subgoal_choices
        self.reward, self.new = nn.Linear(1, width), nn.Linear(1, width)
        self.observation = nn.Linear(spec.observation_size, width)
        # The norm keeps many steps from drowning the other parts of the token.
        told = config.planner_reads != "sums"
        self.account = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width)) if told else None
        self.pace = nn.Embedding(len(self.choices), width) if self.choices else None
        self.token_norm = nn.LayerNorm(width)
        self.period = 1 if self.merged else 3 + told
        inner = replace(config, pattern=config.planner, layout=LAYOUTS[self.period], merged=False)
        self.stack = Stack(inner, MIXERS)
        self.norm = nn.LayerNorm(width)
        self.moments = nn.Linear(width, size if self.draw == "never" else 2 * size)
        with torch.no_grad():  # else the noise drowns what the mean has to say at first
            self.moments.bias[size:] = LOG_STD_START
        if self.draw == "always":
            # The same at every place of every stream: whoever streams draws what whoever recomputes has drawn.
            drawn = torch.randn(DRAWS, size, generator=torch.Generator().manual_seed(0))
            self.register_buffer("draws", drawn, persistent=False)

    draws: Tensor

    def tokens(self, rewards: Tensor, new: Tensor, observations: Tensor, account: Tensor, steps: int) -> Tensor:
        """Tokens `(B, S * period, D)`, the observation last.

        Args:
            rewards: `(B, S)`, of the segment before, scaled.
            new: `(B, S)` bool, whether an episode begins.
            observations: `(B, S, O)`, the first of the segment, standardised.
            account: `(B, S, D)`, of the steps of the segment before; not read where the sums are all that is told.
            steps: `c`, one of the choices where there are several.
        """
        parts = [self.reward(rewards[..., None]), self.new(new.to(rewards.dtype)[..., None])]
        if self.account is not None:
            parts.append(self.account(account))
        parts.append(self.observation(observations))
        pace = self.pace_of(steps)
        parts = [sum(parts, pace)] if self.merged else [part + pace for part in parts]
        return self.token_norm(torch.stack(parts, 2)).flatten(1, 2)

    def pace_of(self, steps: int) -> Tensor:
        """What tells the planner `c`, `(D,)`; 0 where there is but one."""
        if self.pace is None:
            return torch.zeros_like(self.norm.weight)
        return self.pace.weight[self.choices.index(steps)]

    def goal(self, hidden: Tensor, number: Tensor) -> Tensor:
        """`mu + sigma e` where sub-goals are drawn, else `mu`; `(..., Z)`.

        Args:
            hidden: `(..., D)` at the observation tokens.
            number: `(...)` int64, how many sub-goals the stream had before.
        """
        if self.draw == "never":
            return self.moments(self.norm(hidden))
        mean, log_std = self.moments(self.norm(hidden)).chunk(2, -1)
        if not self.training and self.draw == "training":
            return mean
        noise = torch.randn_like(mean) if self.training else self.draws[number % DRAWS].to(mean.dtype)
        return mean + log_std.clamp(LOG_STD_MIN, LOG_STD_MAX).exp() * noise


class Account(nn.Module):
    """What happened in a segment, as one vector: the embeddings of its steps, each times a vector of its place, added.

    Products with different random vectors hardly overlap, so that the sum tells which step was where; and a stream adds
    one term per step.

    Reference: Plate 1995 (Holographic reduced representations), doi 10.1109/72.377968, which convolves where this
    multiplies.
    """

    def __init__(self, steps: int, width: int) -> None:
        super().__init__()
        self.place = nn.Embedding(steps, width)

    def forward(self, embedded: Tensor, places: Tensor) -> Tensor:
        """The terms `(..., D)` of steps embedded as `(..., D)` at `places` `(...)` of their segment."""
        return self.place(places) * embedded
