"""`HybridModel`: Decision Mamba-Hybrid. A planner of Mamba reads a long history every `c` steps and gives a sub-goal;
an executor, a small transformer, acts on it for `c` steps and remembers nothing else.

Symbols: `B` batch, `T` environment steps, `c` steps of a segment, `S` segments of a row, `D` width, `Z` size of a
sub-goal, `O`/`A` observation/action shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from scanrl.batch import Batch
from scanrl.models.decision import head_for
from scanrl.models.hybrid_step import HybridCode, lower_hybrid
from scanrl.nn import MIXERS, ModelConfig, Stack, State, Tokens, replace_rows
from scanrl.stats import Stats
from scanrl.types import DataError, Spec

__all__ = ["HybridModel", "HybridState", "Segments", "segments"]

LOG_STD_MIN, LOG_STD_MAX = -5.0, 2.0
LOG_STD_START = -2.0


class Segments(NamedTuple):
    """Where the segments of a batch are: `c` steps of one episode, fewer at its end.

    A segment starts where the index of a step in its episode is a multiple of `c`, and with the first step of a row.
    """

    steps: Tensor  # (B, S, c) int64: columns of the batch, inside it also where not valid
    valid: Tensor  # (B, S, c) bool
    new: Tensor  # (B, S) bool: the first of an episode

    def gather(self, column: Tensor) -> Tensor:
        """`(B, T, ...)` as `(B, S, c, ...)`."""
        return column[torch.arange(len(column), device=column.device)[:, None, None], self.steps]


def segments(timesteps: Tensor, mask: Tensor, length: int) -> Segments:
    """The segments of `length` steps of a batch with `timesteps` and `mask` `(B, T)`, which is padded on the right."""
    columns = torch.arange(timesteps.shape[1], device=timesteps.device)
    begins = ((timesteps % length == 0) | (columns == 0)) & mask
    number = begins.cumsum(1) - 1  # of the segment that a column belongs to
    count = int(begins.sum(1).max())
    # Rows with fewer segments fill up with empty ones at the end.
    first = torch.full((len(mask), count + 1), len(columns) - 1, device=mask.device)
    rows, places = begins.nonzero(as_tuple=True)
    first[rows, number[rows, places]] = places
    steps = (first[:, :count, None] + torch.arange(length, device=mask.device)).clamp(max=len(columns) - 1)
    row = torch.arange(len(mask), device=mask.device)[:, None, None]
    mine = number[row, steps] == torch.arange(count, device=mask.device)[:, None]
    # The last column stands for every place beyond it: only its first occurrence counts.
    ahead = first[:, :count, None] + torch.arange(length, device=mask.device)
    valid = mine & mask[row, steps] & (ahead < len(columns))
    return Segments(steps, valid, timesteps.gather(1, steps[:, :, 0]) == 0)


class HybridState(NamedTuple):
    """What a stream carries."""

    planner: State
    executor: State
    goal: Tensor  # (B, Z)
    reward: Tensor  # (B,) float64: earned since the segment began, raw units
    step: Tensor  # (B,) int64: steps of the segment so far; c before the first
    tail: Tensor  # (B, D): with merged tokens, what the next one has so far


class HybridModel(nn.Module):
    """Sub-goals from a long history, actions from a short one.

    Every `c` steps the planner reads what the last segment earned, whether an episode begins, and the observation, and
    gives a Gaussian sub-goal `z`. The executor reads `z` and the steps of the segment so far. The state of the planner
    lives as long as the stream, over episodes; an action costs the executor, and every `c`-th one the planner.

    Trained on `(loss(action | z) + loss(action | f(s_g))) / 2`, where `s_g` is the valuable state ahead and `f` a
    linear map that is never trained. Reward sums are those of the segment *before*: that of the present one is not
    known yet.

    Args:
        config: the shape of the network; `subgoal_steps` is `c`.
        spec: shapes and kinds of observations and actions.
        stats: statistics of the training data.
        seed: seed of the initial weights.

    Reference: Huang et al. 2024 (Decision Mamba-Hybrid), arXiv 2406.00079.
    """

    def __init__(self, config: ModelConfig, spec: Spec, stats: Stats, seed: int = 0) -> None:
        super().__init__()
        if config.subgoal_steps < 1:
            raise DataError(f"model.subgoal_steps: expected at least 1, got {config.subgoal_steps}")
        if "R" in config.layout or "r" not in config.layout:
            raise DataError(f"model.layout: expected an r and no R beside sub-goals, got {config.layout!r}")
        if spec.is_image:
            raise DataError(f"model.subgoal_steps: expected 0 with pictures, got {config.subgoal_steps}")
        if config.time_embedding:
            raise DataError("model.time_embedding: expected false beside sub-goals, which come with a place, got true")
        if config.merged and config.subgoal_prefix:
            raise DataError("model.subgoal_prefix: expected false beside merged tokens, got true")
        self.config, self.spec, self.stats = config, spec, stats
        goal, width = config.subgoal_size, config.width
        # The executor's attention reaches back to the start of its segment, and no further.
        inner = replace(config, context=config.subgoal_steps + 1, layout="R" + config.layout)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.tokens = Tokens(config, spec, stats)
            self.place = nn.Embedding(config.subgoal_steps, width)  # of a step in its segment
            self.of_goal = nn.Linear(goal, width)
            self.goal_norm = nn.LayerNorm(width)
            self.stack = Stack(inner, MIXERS)
            self.norm = nn.LayerNorm(width)
            self.head = head_for(config, spec)
            self.planner = _Planner(config, spec)
            # Never trained: a fixed picture of a state for the executor to aim at.
            self.register_buffer("valuable", torch.randn(goal, spec.observation_size) / spec.observation_size**0.5)
            # Torch's initialisation stays: GPT-2's small weights, in two networks one behind the other, keep what the
            # planner has to say below what the executor hears for hundreds of updates.

    valuable: Tensor

    # ---------------------------------------------------------------- training

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor, Segments]:
        """Hidden states at the observation tokens `(B, S, c, D)`, sub-goals `(B, S, Z)`, and the segments."""
        cut = segments(batch.timesteps, batch.mask, self.config.subgoal_steps)
        goals = self.goals(batch, cut)
        return self._execute(batch, cut, goals[None])[0], goals, cut

    def actions(self, batch: Batch) -> Tensor:
        """Predicted actions in environment units for every step of a batch, `(B, T, A)` or `(B, T)`; 0 where padded."""
        hidden, _, cut = self(batch)
        found = self.tokens.unscale_actions(self.head.act(hidden[cut.valid]))
        actions = torch.zeros_like(batch.actions, dtype=found.dtype)
        actions[batch.mask] = found  # both in the order of rows and steps
        return actions

    def goals(self, batch: Batch, cut: Segments) -> Tensor:
        """Sub-goals `(B, S, Z)`; the one of a segment depends on nothing that comes after its first observation."""
        earned = (cut.gather(batch.rewards) * cut.valid).sum(2)
        before = torch.cat([torch.zeros_like(earned[:, :1]), earned[:, :-1]], 1)
        seen = self._standardised(cut.gather(batch.observations)[:, :, 0])
        tokens = self.planner.tokens(before / self.tokens.return_scale, cut.new, seen)
        hidden, _ = self.planner.stack(tokens)
        return self.planner.goal(hidden[:, self.planner.period - 1 :: self.planner.period])

    def loss(self, batch: Batch, half: torch.dtype | None = None, final_weight: float = 0.0) -> Tensor:
        """Mean over valid steps of the head's loss, with the planner's sub-goals and with the valuable states'.

        Arguments are those of `DecisionModel.loss`.
        """
        if half is not None:
            raise DataError("train.precision: expected float32 for a model with sub-goals, got bfloat16")
        cut = segments(batch.timesteps, batch.mask, self.config.subgoal_steps)
        goals, masks = [self.goals(batch, cut)], [cut.valid]
        if self.config.subgoal_targets != "none":
            ahead, worth = self._valuable(batch, cut)
            goals.append(ahead)
            masks.append(cut.valid if self.config.subgoal_targets == "all" else cut.valid & worth[:, :, None])
        hidden = self._execute(batch, cut, torch.stack(goals))
        actions = self.tokens.scale_actions(cut.gather(batch.actions)).flatten(0, 1)
        last = cut.gather(batch.finals())
        total = hidden.new_zeros(())
        for h, mask in zip(hidden, masks, strict=True):
            total = total + self.head.loss(h.flatten(0, 1), actions, mask.flatten(0, 1))
            if final_weight:
                total = total + final_weight * self.head.loss(h.flatten(0, 1), actions, (mask & last).flatten(0, 1))
        return total / len(masks)

    def loss_from(self, state: State | None, batch: Batch, half: torch.dtype | None = None) -> tuple[Tensor, State]:
        """`loss` of contexts that each begin a stream; they are held-out ones, and no state goes on from them."""
        assert state is None
        return self.loss(batch, half), ()

    def _valuable(self, batch: Batch, cut: Segments) -> tuple[Tensor, Tensor]:
        """Pictures of the valuable states `(B, S, Z)`, and whether anything is earned on the way there `(B, S)`."""
        if not batch.goals.numel():
            raise DataError("batch: goals: expected the valuable states of sub-goal training, got none")
        ahead = self._standardised(cut.gather(batch.goals)[:, :, 0])
        return ahead @ self.valuable.T, cut.gather(batch.goal_values)[:, :, 0] > 0

    def _execute(self, batch: Batch, cut: Segments, goals: Tensor) -> Tensor:
        """Hidden states `(n, B, S, c, D)` at the observation tokens, for `n` choices of sub-goals `(n, B, S, Z)`."""
        n, (rows, count, c) = len(goals), cut.steps.shape
        columns = {"s": batch.observations, "a": batch.actions, "r": batch.rewards}
        places = torch.arange(c, device=cut.steps.device).expand(rows * count, c)
        values = {letter: cut.gather(columns[letter]).flatten(0, 1) for letter in self.config.layout}
        goal = self._goal_token(goals.flatten(0, 2))  # (n * B * S, D)
        if self.config.merged:
            tails = self.tokens.summed([(x, values[x]) for x in self.config.layout if x != "s"], places)
            steps = self.tokens.summed([("s", values["s"])], places) + nn.functional.pad(tails[:, :-1], (0, 0, 1, 0))
            own = self._merged(steps, places).expand(n, -1, -1, -1).flatten(0, 1)
            tokens, start, period = own + goal[:, None], 0, 1
        else:
            own = torch.stack([self._token(letter, values[letter], places) for letter in self.config.layout], 2)
            steps = own.expand(n, -1, -1, -1, -1).flatten(0, 1)  # (n * B * S, c, M, D)
            start, period = 1, steps.shape[2] + (not self.config.subgoal_prefix)
            if self.config.subgoal_prefix:
                tokens = torch.cat([goal[:, None], steps.flatten(1, 2)], 1)
            else:
                tokens = torch.cat([goal[:, None, None].expand(-1, c, 1, -1), steps], 2).flatten(1, 2)
        hidden, _ = self.stack(tokens)
        return self.norm(hidden[:, start::period][:, :c]).unflatten(0, (n, rows, count))

    # ------------------------------------------------------------------ acting

    def initial_state(self, batch: int) -> HybridState:
        """The state of `batch` streams before their first token."""
        weight = self.of_goal.weight
        return HybridState(
            self.planner.stack.initial_state(batch),
            self.stack.initial_state(batch),
            weight.new_zeros(batch, self.config.subgoal_size),
            torch.zeros(batch, dtype=torch.float64, device=weight.device),
            torch.full((batch,), self.config.subgoal_steps, device=weight.device),
            weight.new_zeros(batch, self.config.width),
        )

    def feed(self, tokens: Sequence[tuple[str, Tensor]], timesteps: Tensor, state: State) -> tuple[Tensor, State]:
        """Some tokens of one step of every stream, as `DecisionModel.feed`; a segment begins with an observation."""
        state = cast(HybridState, state)
        hidden = state.tail
        for letter, values in tokens:
            if letter == "s":
                state = self._begin(values, timesteps, state)
            elif letter == "r":
                state = state._replace(reward=state.reward + values)
            hidden, state = self._act(letter, values, state)
        return hidden, state

    def _act(self, letter: str, values: Tensor, state: HybridState) -> tuple[Tensor, HybridState]:
        """The executor's output `(B, D)` at a token; a merged one comes with its observation."""
        seen = letter == "s"
        # The place of a tail token is that of the last step, which has been counted.
        places = (state.step - int(not seen)).clamp(0, self.config.subgoal_steps - 1)
        if self.config.merged:
            total = state.tail + self.tokens.summed([(letter, values)], places)
            if not seen:
                return total, state._replace(tail=total)
            chunk = [self._merged(total, places) + self._goal_token(state.goal)]
        else:
            chunk = [self._token(letter, values, places)]
            if seen and not self.config.subgoal_prefix:
                chunk.insert(0, self._goal_token(state.goal))
        out, executor = self.stack(torch.stack(chunk, 1), state.executor)
        after = state._replace(executor=executor, step=state.step + int(seen), tail=torch.zeros_like(state.tail))
        return out[:, -1], after

    def decide(self, hidden: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Actions in environment units from the stack's output `(B, D)` at an observation token."""
        return self.tokens.unscale_actions(self.head.act(self.norm(hidden), generator))

    def lower(self, *, sample: bool = False) -> HybridCode:
        """One step of a policy for the C kernels, as `DecisionModel.lower`."""
        return lower_hybrid(self, sample=sample)

    def _begin(self, observations: Tensor, timesteps: Tensor, state: HybridState) -> HybridState:
        """A new segment in the rows where one is due; the planner runs only if there is such a row."""
        new = (state.step >= self.config.subgoal_steps) | (timesteps % self.config.subgoal_steps == 0)
        if not bool(new.any()):
            return state
        scaled = (state.reward / self.tokens.return_scale).to(self.norm.weight.dtype)
        tokens = self.planner.tokens(
            scaled[:, None], timesteps[:, None] == 0, self._standardised(observations)[:, None]
        )
        hidden, planner = self.planner.stack(tokens, state.planner)
        goal = self.planner.goal(hidden[:, -1])
        executor = self.stack.initial_state(len(new))
        if self.config.subgoal_prefix:
            _, executor = self.stack(self._goal_token(goal)[:, None], executor)
        begun = HybridState(planner, executor, goal, *(torch.zeros_like(x) for x in state[3:]))
        return cast(HybridState, replace_rows(state, new, begun))

    # ------------------------------------------------------------------- parts

    def _standardised(self, observations: Tensor) -> Tensor:
        return (observations.flatten(2 if observations.ndim > 2 else 1) - self.tokens.observation_mean) / (
            self.tokens.observation_std
        )

    def _token(self, letter: str, values: Tensor, places: Tensor) -> Tensor:
        """Tokens `(..., D)` of values at places `(...)` of their segment."""
        return self.tokens.embed(letter, values, places) + self.place(places)

    def _merged(self, total: Tensor, places: Tensor) -> Tensor:
        """The same, from the sums `(..., D)` of their parts."""
        return self.tokens.merge(total, places) + self.place(places)

    def _goal_token(self, goals: Tensor) -> Tensor:
        return self.goal_norm(self.of_goal(goals))

    def parameter_count(self) -> int:
        """Number of trained scalars."""
        return sum(p.numel() for p in self.parameters())


class _Planner(nn.Module):
    """From reward sums, episode starts and observations to sub-goals."""

    def __init__(self, config: ModelConfig, spec: Spec) -> None:
        super().__init__()
        width = config.width
        self.merged = config.planner_tokens == "merged"
        self.period = 1 if self.merged else 3
        self.reward, self.new = nn.Linear(1, width), nn.Linear(1, width)
        self.observation = nn.Linear(spec.observation_size, width)
        self.token_norm = nn.LayerNorm(width)
        inner = replace(config, pattern=config.planner, layout="s" if self.merged else "sar", merged=False)
        self.stack = Stack(inner, MIXERS)
        self.norm = nn.LayerNorm(width)
        self.moments = nn.Linear(width, 2 * config.subgoal_size)
        with torch.no_grad():  # else the noise drowns what the mean has to say at first
            self.moments.bias[config.subgoal_size :] = LOG_STD_START

    def tokens(self, rewards: Tensor, new: Tensor, observations: Tensor) -> Tensor:
        """Tokens `(B, S * period, D)`, the observation last, of scaled rewards and flags `(B, S)`."""
        parts = [
            self.reward(rewards[..., None]),
            self.new(new.to(rewards.dtype)[..., None]),
            self.observation(observations),
        ]
        if self.merged:
            return self.token_norm(sum(parts[1:], parts[0]))
        return self.token_norm(torch.stack(parts, 2)).flatten(1, 2)

    def goal(self, hidden: Tensor) -> Tensor:
        """`mu + sigma e` while training, `mu` otherwise; `(..., Z)`."""
        mean, log_std = self.moments(self.norm(hidden)).chunk(2, -1)
        if not self.training:
            return mean
        return mean + log_std.clamp(LOG_STD_MIN, LOG_STD_MAX).exp() * torch.randn_like(mean)
