"""`HybridModel`: Decision Mamba-Hybrid. A planner of Mamba reads a long history every `c` steps and gives a sub-goal;
an executor, a small transformer, acts on it for `c` steps and remembers nothing else.

Symbols: `B` batch, `T` environment steps, `c` steps of a segment, `S` segments of a row, `D` width, `Z` size of a
sub-goal, `O`/`A` observation/action shape.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from scanrl.batch import Batch
from scanrl.models.decision import head_for
from scanrl.models.hybrid_step import HybridCode, lower_hybrid
from scanrl.models.planner import Account, Planner
from scanrl.models.segments import Segments, segments
from scanrl.nn import MIXERS, ModelConfig, Stack, State, Tokens, replace_rows
from scanrl.stats import Stats
from scanrl.types import DataError, Spec

__all__ = ["HybridModel", "HybridState"]


class HybridState(NamedTuple):
    """What a stream carries."""

    planner: State
    executor: State
    goal: Tensor  # (B, Z)
    reward: Tensor  # (B,) float64: earned since the segment began, raw units
    step: Tensor  # (B,) int64: steps of the segment so far; the longest c before the first
    tail: Tensor  # (B, D): with merged tokens, what the next one has so far
    account: Tensor  # (B, D): of the steps of the segment so far; (B, 0) where the planner is told of none
    number: Tensor  # (B,) int64: sub-goals so far


class HybridModel(nn.Module):
    """Sub-goals from a long history, actions from a short one.

    Every `c` steps the planner reads what the last segment earned, whether an episode begins, and the observation, and
    gives a Gaussian sub-goal `z`. The executor reads `z` and the steps of the segment so far. The state of the planner
    lives as long as the stream, over episodes; an action costs the executor, and every `c`-th one the planner.

    Trained on `(loss(action | z) + loss(action | f(s_g))) / 2`, where `s_g` is the valuable state ahead and `f` a
    linear map that is never trained. Reward sums are those of the segment *before*: that of the present one is not
    known yet.

    With `subgoal_choices` one network learns several `c`: each batch is read with all of them, the planner is told with
    which, and the longest that held-out action losses cannot tell from the best acts (`choose`, at every checkpoint,
    which keeps it; `act_every` takes another). Why not otherwise: a learned boundary is a decision without a gradient,
    and segments of unknown length cannot be cut before the planner has run, so that training would go step by step; a
    choice while acting would need a loss there, and nobody tells a policy the right action, while its own are likely
    under whichever `c` took them; one drawn `c` for each batch, or for each row, costs a third and learns later
    (docs/log.md).

    Args:
        config: the shape of the network; `subgoal_steps` is `c`, or the one of several before there was a choice.
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
        if config.planner_reads != "sums" and "a" not in config.layout:
            raise DataError(f"model.layout: expected an a where the planner reads actions, got {config.layout!r}")
        self.config, self.spec, self.stats = config, spec, stats
        goal, width = config.subgoal_size, config.width
        self.choices = config.subgoal_choices or (config.subgoal_steps,)
        self.longest = max(self.choices)
        # The executor's attention reaches back to the start of its segment, and no further.
        inner = replace(config, context=self.longest + 1, layout="R" + config.layout)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.tokens = Tokens(config, spec, stats)
            self.place = nn.Embedding(self.longest, width)  # of a step in its segment
            self.of_goal = nn.Linear(goal, width)
            self.goal_norm = nn.LayerNorm(width)
            self.stack = Stack(inner, MIXERS)
            self.norm = nn.LayerNorm(width)
            self.head = head_for(config, spec)
            self.planner = None if config.planner == "none" else Planner(config, spec)
            told = self.planner is not None and self.planner.account is not None
            self.account = Account(self.longest, width) if told else None
            # Never trained: a fixed picture of a state for the executor to aim at.
            self.register_buffer("valuable", torch.randn(goal, spec.observation_size) / spec.observation_size**0.5)
            # Torch's initialisation stays: GPT-2's small weights, in two networks one behind the other, keep what the
            # planner has to say below what the executor hears for hundreds of updates.
        if config.subgoal_choices:
            self.register_buffer("chosen", torch.tensor(config.subgoal_steps))

    valuable: Tensor
    chosen: Tensor

    @property
    def steps(self) -> int:
        """Steps of a segment, `c`, when acting and where nothing is trained."""
        return int(self.chosen) if self.config.subgoal_choices else self.config.subgoal_steps

    def act_every(self, steps: int) -> None:
        """Act with this `c`; streams that are under way take it from their next step on.

        Raises:
            DataError: it is none of those the model has learned.
        """
        if steps not in self.choices:
            raise DataError(f"steps: expected one of {', '.join(map(str, self.choices))}, got {steps}")
        if self.config.subgoal_choices:
            self.chosen.fill_(steps)

    # ---------------------------------------------------------------- training

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor, Segments]:
        """Hidden states at the observation tokens `(B, S, c, D)`, sub-goals `(B, S, Z)`, and the segments."""
        cut = segments(batch.timesteps, batch.mask, self.steps)
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
        rows, count, steps = cut.steps.shape
        if self.planner is None:
            return self.of_goal.weight.new_zeros(rows, count, self.config.subgoal_size)
        earned = (cut.gather(batch.rewards) * cut.valid).sum(2)
        seen = self._standardised(cut.gather(batch.observations)[:, :, 0])
        scaled = _before(earned) / self.tokens.return_scale
        tokens = self.planner.tokens(scaled, cut.new, seen, _before(self._account(batch, cut)), steps)
        hidden, _ = self.planner.stack(tokens)
        number = torch.arange(count, device=hidden.device)
        return self.planner.goal(hidden[:, self.planner.period - 1 :: self.planner.period], number)

    def loss(self, batch: Batch, half: torch.dtype | None = None, final_weight: float = 0.0) -> Tensor:
        """Mean over valid steps of the head's loss, with the planner's sub-goals and with the valuable states'.

        While training several `c`, the mean of their losses on the whole batch. Arguments are those of
        `DecisionModel.loss`.
        """
        if half is not None:
            raise DataError(f"half: expected None for a model with sub-goals, got {half}")
        every = self.choices if self.training else (self.steps,)
        return torch.stack([self._loss_every(steps, batch, final_weight) for steps in every]).mean()

    def _loss_every(self, steps: int, batch: Batch, final_weight: float) -> Tensor:
        """The loss with this `c`."""
        cut = segments(batch.timesteps, batch.mask, steps)
        goals, masks = [self.goals(batch, cut)], [cut.valid]
        if self.config.subgoal_targets != "none":
            ahead, worth = self._valuable(batch, cut)
            goals.append(ahead)
            masks.append(cut.valid if self.config.subgoal_targets == "all" else cut.valid & worth[:, :, None])
        return self._action_losses(batch, cut, torch.stack(goals), masks, final_weight).mean()

    def choice_losses(self, batch: Batch, final_weight: float = 0.0) -> Tensor:
        """`(n, B)`: the mean loss of the actions of each context, with the planner's sub-goals alone, for each of the
        `n` choices of `c`."""
        found = []
        for steps in self.choices:
            cut = segments(batch.timesteps, batch.mask, steps)
            [hidden] = self._execute(batch, cut, self.goals(batch, cut)[None])
            actions, last = self.tokens.scale_actions(cut.gather(batch.actions)), cut.gather(batch.finals())
            rows = zip(hidden, actions, cut.valid, last, strict=True)
            found += [self._action_loss(h, a, mask, end, final_weight) for h, a, mask, end in rows]
        return torch.stack(found).unflatten(0, (len(self.choices), -1))

    def choose(self, losses: Tensor, steps: Tensor | None = None) -> int:
        """Act with the longest `c` whose mean loss is within one standard error of the lowest one; it is returned.

        The longest is the cheapest, and its sub-goals have to tell most of what is known; differences below the error
        are those of the contexts that happen to be held out (the one-standard-error rule, Breiman et al. 1984).

        Args:
            losses: `(n, N)`, `choice_losses` of `N` contexts.
            steps: `(N,)`, how many steps each of them has, by which they count; `None`: all the same.
        """
        count = losses.shape[1]
        losses = losses.detach().nan_to_num(torch.inf)
        weights = torch.full((count,), 1 / count).to(losses) if steps is None else (steps / steps.sum()).to(losses)
        means = (losses * weights).sum(1)
        apart = weights * (losses[int(means.argmin())] - means.min())
        error = float(apart.square().sum() * count / (count - 1)) ** 0.5 if count > 1 else 0.0
        within = (means <= means.min() + (error if math.isfinite(error) else 0.0)).tolist()
        found = max(c for c, chosen in zip(self.choices, within, strict=True) if chosen)
        self.act_every(found)
        return found

    def _action_losses(
        self, batch: Batch, cut: Segments, goals: Tensor, masks: Sequence[Tensor], final_weight: float
    ) -> Tensor:
        """`(n,)`: losses with each of the sub-goals `(n, B, S, Z)`, over the steps of its mask `(B, S, c)`."""
        hidden = self._execute(batch, cut, goals)
        actions = self.tokens.scale_actions(cut.gather(batch.actions)).flatten(0, 1)
        last = cut.gather(batch.finals()).flatten(0, 1)
        rows = [(h.flatten(0, 1), mask.flatten(0, 1)) for h, mask in zip(hidden, masks, strict=True)]
        return torch.stack([self._action_loss(h, actions, mask, last, final_weight) for h, mask in rows])

    def _action_loss(self, hidden: Tensor, actions: Tensor, mask: Tensor, last: Tensor, final_weight: float) -> Tensor:
        """Mean over the steps of the mask `(S, c)`; `final_weight` times that over the last of an episode on top."""
        loss = self.head.loss(hidden, actions, mask)
        return loss + final_weight * self.head.loss(hidden, actions, mask & last) if final_weight else loss

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

    def _account(self, batch: Batch, cut: Segments) -> Tensor:
        """Accounts of all segments `(B, S, D)`; `(B, S, 0)` where the planner is told of none."""
        if self.account is None:
            return batch.rewards.new_zeros(*cut.valid.shape[:2], 0)
        columns = {"s": batch.observations, "a": batch.actions, "r": batch.rewards}
        places = torch.arange(cut.valid.shape[2], device=cut.valid.device).expand_as(cut.valid)
        embedded = self.tokens.summed([(x, cut.gather(columns[x])) for x in self.told], places)
        return (self.account(embedded, places) * cut.valid[..., None]).sum(2)

    @property
    def told(self) -> str:
        """Letters of the steps that the planner is told of."""
        return "a" if self.config.planner_reads == "actions" else "sar"

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
            () if self.planner is None else self.planner.stack.initial_state(batch),
            self.stack.initial_state(batch),
            weight.new_zeros(batch, self.config.subgoal_size),
            torch.zeros(batch, dtype=torch.float64, device=weight.device),
            torch.full((batch,), self.longest, device=weight.device),
            weight.new_zeros(batch, self.config.width),
            weight.new_zeros(batch, 0 if self.account is None else self.config.width),
            torch.zeros(batch, dtype=torch.int64, device=weight.device),
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
        places = (state.step - int(not seen)).clamp(0, self.longest - 1)
        if self.account is not None and letter in self.told:
            term = self.account(self.tokens.summed([(letter, values)], places), places)
            state = state._replace(account=state.account + term)
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
        steps = self.steps
        new = (state.step >= steps) | (timesteps % steps == 0)
        if not bool(new.any()):
            return state
        goal, planner = self._plan(observations, timesteps, state, steps)
        executor = self.stack.initial_state(len(new))
        if self.config.subgoal_prefix:
            _, executor = self.stack(self._goal_token(goal)[:, None], executor)
        reward, step, tail, account = map(torch.zeros_like, (state.reward, state.step, state.tail, state.account))
        begun = HybridState(planner, executor, goal, reward, step, tail, account, state.number + 1)
        return cast(HybridState, replace_rows(state, new, begun))

    def _plan(self, observations: Tensor, timesteps: Tensor, state: HybridState, steps: int) -> tuple[Tensor, State]:
        """Sub-goals `(B, Z)` of segments that begin now, and the planner's state after them."""
        if self.planner is None:
            return torch.zeros_like(state.goal), state.planner
        scaled = (state.reward / self.tokens.return_scale).to(self.norm.weight.dtype)
        columns = (scaled, timesteps == 0, self._standardised(observations), state.account)
        tokens = self.planner.tokens(*(x[:, None] for x in columns), steps=steps)
        hidden, planner = self.planner.stack(tokens, state.planner)
        return self.planner.goal(hidden[:, -1], state.number), planner

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


def _before(values: Tensor) -> Tensor:
    """Of every segment what the one before it has, `(B, S, ...)`; 0 for the first."""
    return torch.cat([torch.zeros_like(values[:, :1]), values[:, :-1]], 1)
