"""`Policy`: a decision model in an environment, for one stream or many at once.

Symbols: `B` streams, `K` steps of context, `M` tokens per step, `O`/`A` observation/action shape.

Acting feeds exactly the training sequence. Each `act` feeds the *tail* of the last step (`a`, and `r` where the layout
has it), puts the initial state into the rows that start an episode, feeds the *head* of this one (`R`, `s`) and reads
the action at `s`. The same rule serves every layout.
"""

from __future__ import annotations

import copy
import math
import threading
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from scanrl.batch import Batch
from scanrl.checkpoint import load_checkpoint
from scanrl.models.decision import DecisionModel
from scanrl.nn import State, replace_rows
from scanrl.types import Context, DataError

__all__ = ["Policy"]


class Policy:
    """Acts with a `DecisionModel`, in raw environment units.

    Args:
        model: the network; put into evaluation mode.
        target_return: return to ask for, raw units; `None` takes the best return of the training data. A model
            without return-to-go in its layout takes none.
        context: `"recurrent"` or a number of steps; see `Context`.
        sample: draw actions from the head's distribution instead of taking its mode.
        seed: of the sampling generator.

    One policy serves one caller at a time: calls from several threads are serialised.
    """

    def __init__(
        self,
        model: DecisionModel,
        *,
        target_return: float | None = None,
        context: Context = "recurrent",
        sample: bool = False,
        seed: int = 0,
    ) -> None:
        if context != "recurrent" and (not isinstance(context, int) or context < 1):
            raise DataError(f"context: expected 'recurrent' or a number of steps, got {context!r}")
        self.model = model.eval()
        self.spec = model.spec
        self.context: Context = context
        self.target_return = self._target(target_return)
        self._device = next(model.parameters()).device
        self._generator = torch.Generator(self._device) if sample else None
        self._seed = seed
        self._lock = threading.Lock()
        self.reset()

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        target_return: float | None = None,
        context: Context = "recurrent",
        device: torch.device | str = "cpu",
        sample: bool = False,
        seed: int = 0,
    ) -> Policy:
        """The policy of a run folder (its latest checkpoint) or of one checkpoint folder.

        Raises:
            DataError: there is no checkpoint at `path`.
            CorruptFile: the checkpoint is not what its manifest says.
        """
        model = load_checkpoint(path).model().to(device)
        return cls(model, target_return=target_return, context=context, sample=sample, seed=seed)

    def with_target(self, target_return: float) -> Policy:
        """The same model asking for another return, with no stream begun.

        Raises:
            DataError: the target is not finite, or the model reads no return-to-go.
        """
        other = copy.copy(self)
        other._lock = threading.Lock()
        other._generator = None if self._generator is None else torch.Generator(self._device)
        other.target_return = self._target(target_return)
        other.reset()
        return other

    def reset(self, count: int | None = None) -> None:
        """Forget every stream and prepare `count` fresh ones; `None` waits for the first `act` to tell how many.

        Sampling starts over as well: what follows depends on the seed and on what is seen, not on what was before.
        """
        with self._lock:
            self._count = 0
            if self._generator is not None:
                self._generator.manual_seed(self._seed)
            if count is not None:
                self._begin(count)

    def act(
        self, observations: Any, rewards: Any = 0.0, first: Any = False, *, target_return: Any = None
    ) -> np.ndarray:
        """Actions for the present observations.

        Args:
            observations: `(B, *O)`, or `(*O)` for a single stream; raw units.
            rewards: `(B,)` or a number: what the previous action earned. Ignored in rows that start.
            first: `(B,)` bool or a bool: rows in which an episode starts now. All rows do after `reset`.
            target_return: `(B,)` or a number, for rows that start now; the policy's own by default.

        Returns:
            `(B, A)` float32, or `(B,)` int64 if discrete; without the batch axis for a single stream.

        Raises:
            DataError: a wrong shape, a value that is not finite, or another number of streams than before.
        """
        seen = _array("observations", observations, np.float32)
        single = seen.shape == self.spec.observation_shape
        seen = seen[None] if single else seen
        with self._lock, torch.inference_mode():
            inputs = self._check(seen, rewards, first, target_return)
            if not self._count:
                self._begin(len(seen))
            actions = self._advance(*inputs)
        result = actions.cpu().numpy()
        return result[0] if single else result

    def _target(self, target: float | None) -> float | None:
        """The return to ask for: as told, else the best of the data; `None` where the model reads none."""
        if "R" not in self.model.config.layout:
            if target is not None:
                raise DataError(
                    f"target_return: expected none (the layout {self.model.config.layout!r} has no R), got {target}"
                )
            return None
        if target is None:
            return float(self.model.stats.return_max)
        if not math.isfinite(target):
            raise DataError(f"target_return: expected a finite number, got {target}")
        return float(target)

    # The state of the streams: nothing of it is touched before the inputs have been checked.

    def _check(self, seen: np.ndarray, rewards: Any, first: Any, target: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        shape = self.spec.observation_shape
        if seen.shape[1:] != shape or seen.ndim != len(shape) + 1:
            raise DataError(f"act: observations: expected {shape} or (B, {str(shape)[1:]}, got {seen.shape}")
        if self._count and len(seen) != self._count:
            raise DataError(f"act: observations: expected {self._count} streams, got {len(seen)} (call reset first)")
        count = len(seen)
        starts = _column("first", first, np.bool_, count)
        earned = _column("rewards", rewards, np.float32, count)
        if target is not None:
            self._target(0.0)  # refused where the model reads none
        wanted = _column("target_return", (self.target_return or 0.0) if target is None else target, np.float64, count)
        if self._count:
            starts |= self._fresh
        else:
            starts[:] = True
        earned[starts] = 0.0
        told = np.where(starts, wanted, 0.0)  # elsewhere the target is not looked at
        columns = {"observations": seen.reshape(count, -1), "rewards": earned[:, None], "target_return": told[:, None]}
        for name, values in columns.items():
            bad = ~np.isfinite(values).all(1)
            if bad.any():
                row = int(bad.argmax())
                raise DataError(f"act: stream {row}: {name}: expected finite values, got {values[row]}")
        tensors = (torch.from_numpy(x).to(self._device) for x in (seen, earned, starts, wanted))
        return cast(tuple[Tensor, Tensor, Tensor, Tensor], tuple(tensors))

    def _begin(self, count: int) -> None:
        device, spec = self._device, self.spec
        self._count = count
        self._fresh = np.ones(count, dtype=bool)
        # In float64: a float32 counter of thousands no longer notices rewards of thousandths.
        self._return_to_go = torch.zeros(count, dtype=torch.float64, device=device)
        self._timesteps = torch.zeros(count, dtype=torch.int64, device=device)
        kind = torch.float32 if spec.action_kind == "continuous" else torch.int64
        self._last_action = torch.zeros(count, *spec.action_shape, dtype=kind, device=device)
        if self.context == "recurrent":
            self._state: State = self.model.initial_state(count)
            self._initial = self._state
        else:
            self._history = _History.empty(count, cast(int, self.context), self)

    def _advance(self, seen: Tensor, earned: Tensor, starts: Tensor, wanted: Tensor) -> Tensor:
        recurrent = self.context == "recurrent"
        state = self._feed_tail(earned) if recurrent else None
        return_to_go = torch.where(starts, wanted, self._return_to_go - earned)
        timesteps = torch.where(starts, 0, self._timesteps + 1)
        if recurrent:
            state = replace_rows(cast(State, state), starts, self._initial)
            hidden, state = self._feed_head(return_to_go.float(), seen, timesteps, state)
            actions = self.model.decide(hidden, self._generator)
        else:
            history = self._history.pushed(self._last_action, earned, seen, return_to_go.float(), timesteps, starts)
            actions = self.model.decide(self._recompute(history), self._generator)
            self._history = history
        # Everything has been computed: only now does the policy move on, so that a failure changes nothing.
        if recurrent:
            self._state = cast(State, state)
        self._return_to_go, self._timesteps, self._last_action = return_to_go, timesteps, actions
        self._fresh = np.zeros(self._count, dtype=bool)
        return actions

    def _feed_tail(self, earned: Tensor) -> State:
        layout = self.model.config.layout
        values = {"a": self._last_action, "r": earned, "R": self._return_to_go.float()}
        tail = [(letter, values[letter]) for letter in layout[layout.index("s") + 1 :]]
        return self.model.feed(tail, self._timesteps, self._state)[1] if tail else self._state

    def _feed_head(self, return_to_go: Tensor, seen: Tensor, timesteps: Tensor, state: State) -> tuple[Tensor, State]:
        layout = self.model.config.layout
        # An `a` or `r` before `s` would be this step's, which is not known yet.
        values = {"R": return_to_go, "s": seen}
        head = [(letter, values[letter]) for letter in layout[: layout.index("s") + 1]]
        return self.model.feed(head, timesteps, state)

    def _recompute(self, history: _History) -> Tensor:
        batch, last = history.batch()
        hidden, _ = self.model.stack(self.model.tokens(batch))
        layout = self.model.config.layout
        at_observation = hidden[:, layout.index("s") :: len(layout)]
        return at_observation[torch.arange(len(last), device=last.device), last]


def _array(name: str, values: Any, kind: type[np.generic]) -> np.ndarray:
    try:
        return np.asarray(values, dtype=kind)
    except (TypeError, ValueError):
        raise DataError(f"act: {name}: expected an array of numbers, got {type(values).__name__}") from None


def _column(name: str, values: Any, kind: type[np.generic], count: int) -> np.ndarray:
    """One value per stream, from that many or from a single one."""
    column = _array(name, values, kind)
    if column.shape not in ((), (1,), (count,)):
        raise DataError(f"act: {name}: expected a number or {count} of them, got shape {column.shape}")
    return np.broadcast_to(column, (count,)).copy()


class _History:
    """The last `K` steps of every row, oldest first, aligned to the left as in training (padding on the right)."""

    def __init__(self, columns: dict[str, Tensor], length: Tensor) -> None:
        self.columns, self.length = columns, length

    @classmethod
    def empty(cls, count: int, context: int, policy: Policy) -> _History:
        def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(count, context, *shape, dtype=dtype, device=policy._device)

        columns = {
            "observations": zeros(*policy.spec.observation_shape),
            "actions": zeros(*policy.spec.action_shape, dtype=policy._last_action.dtype),
            "rewards": zeros(),
            "returns_to_go": zeros(),
            "timesteps": zeros(dtype=torch.int64),
        }
        return cls(columns, torch.zeros(count, dtype=torch.int64, device=policy._device))

    def pushed(
        self, action: Tensor, reward: Tensor, seen: Tensor, return_to_go: Tensor, timesteps: Tensor, starts: Tensor
    ) -> _History:
        """The history with the last step completed and a new step begun; rows that start keep nothing."""
        columns = {name: column.clone() for name, column in self.columns.items()}
        rows, context = torch.arange(len(starts), device=starts.device), columns["rewards"].shape[1]
        last = (self.length - 1).clamp(min=0)
        columns["actions"][rows, last] = action
        columns["rewards"][rows, last] = reward
        full = self.length == context
        for name, column in columns.items():
            moved = torch.where(full.view(-1, *(1,) * (column.ndim - 1)), column.roll(-1, 1), column)
            columns[name] = moved.masked_fill(starts.view(-1, *(1,) * (column.ndim - 1)), 0)
        length = torch.where(starts, 1, (self.length + 1).clamp(max=context))
        new = length - 1
        columns["observations"][rows, new] = seen
        columns["returns_to_go"][rows, new] = return_to_go
        columns["timesteps"][rows, new] = timesteps
        columns["actions"][rows, new] = 0
        columns["rewards"][rows, new] = 0.0
        return _History(columns, length)

    def batch(self) -> tuple[Batch, Tensor]:
        """A batch of windows, cut to the longest row, and the index of each row's present step."""
        longest = int(self.length.max())
        cut = {name: column[:, :longest] for name, column in self.columns.items()}
        mask = torch.arange(longest, device=self.length.device) < self.length[:, None]
        return Batch(**cut, mask=mask), self.length - 1
